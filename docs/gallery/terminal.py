"""The quickstart in a terminal, as a picture for the README:  terminal.py OUTPUT.txt PICTURE.svg

OUTPUT.txt is what `gpt2lab quickstart` printed. Steps without a validation, texts but the last, and what is wrong in
the stories are left out; nothing is added but the command. rich adds colors and exports it.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 104
LEFT_OUT = r"step (?!.* val )|text \d+, |protocol: |attention kernel|peak \d|parallel |$"
LOOKS = {r"\d\. ": "bold cyan", r"step ": "green", r"[┌├└│]|\s*results": "bold", r"open |next | {7}runs": "yellow"}
"""The style of a line by how it begins."""


def shown(lines: list[str]) -> Iterator[str]:
    """Leave out texts that are written on the way, all strategies' but the last, and the lines named above."""
    skipping = False
    last = max(number for number, line in enumerate(lines) if re.match(r"\[.*\]$", line))
    for number, line in enumerate(lines):
        if re.match(r"sample at step|\[.*\]$", line):
            skipping = number != last
        elif re.match(r"step |finished|\d\. ", line):
            skipping = False
        if not skipping and not re.match(LEFT_OUT, line):
            yield line


def main() -> None:
    """Write the picture."""
    output, picture = map(Path, sys.argv[1:])
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), highlight=False)
    lines = output.read_text(encoding="utf-8").splitlines()
    run = next(line.split()[-1] for line in lines if line.startswith("3. "))
    console.print(Text(f"$ gpt2lab quickstart --steps 1500 --out {run}", style="bold"))
    for line in shown(lines):
        style = next((style for pattern, style in LOOKS.items() if re.match(pattern, line)), "")
        console.print(Text(line, style=style))
    svg = console.export_svg(title="gpt2lab quickstart", unique_id="terminal")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # a picture on a page may load no font
    svg = svg.replace("Fira Code, monospace", "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace")
    picture.write_text(svg, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
