"""Write docs/build/mistakes.md, the mistakes that `gpt2lab learn check` knows, from the catalogue.

python docs/build/catalogue.py
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from gpt2lab.learn.exercises import PARTS, SLUGS
from gpt2lab.learn.mistakes import MISTAKES, Mistake

PAGE = Path(__file__).with_name("mistakes.md")
HEAD = """# The mistakes that `gpt2lab learn check` knows

{count} mistakes that people make in building GPT-2. Each is a small change of the reference,
[`gpt2.py`]({source}/gpt2.py), in [`mistakes.toml`]({source}/mistakes.toml). A part
whose output equals that of such a change to rounding has this mistake, however it is written.
[`catalogue.py`](catalogue.py) makes this page.
"""


def page() -> str:
    """Return the text of the page."""
    chapter = {part.name: part.chapter for part in PARTS}
    text = HEAD.format(count=len(MISTAKES), source="../../src/gpt2lab/learn")
    for number, mistakes in groupby(MISTAKES, key=lambda mistake: chapter[mistake.part]):
        slug = SLUGS[number - 1]
        text += f"\n## [{number}. {slug.capitalize()}]({number:02}-{slug}.md)\n\n"
        text += "| part | your output is that of | what to do |\n|---|---|---|\n" + "".join(map(_row, mistakes))
    return text


def _row(mistake: Mistake) -> str:
    what, instead = (told.replace("|", "\\|").replace("<", "\\<") for told in (mistake.what, mistake.instead))
    repository, _, number = mistake.seen.partition("#")
    seen = f" ([{mistake.seen}](https://github.com/{repository}/issues/{number}))" if number else ""
    return f"| `{mistake.part}` | {what}{seen} | {instead} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
