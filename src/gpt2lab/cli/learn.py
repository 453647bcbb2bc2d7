"""``gpt2lab learn start|check``: the course in which one builds GPT-2."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.markup import escape
from tyro.conf import Positional, arg

from gpt2lab.cli.arguments import Command
from gpt2lab.console import bar, console
from gpt2lab.errors import require
from gpt2lab.formatting import plural
from gpt2lab.learn import exercises, sandbox

if TYPE_CHECKING:
    from gpt2lab.learn.check import Verdict

PRINTED = 20
"""Lines of a part's output that are shown."""
Chapters = Annotated[tuple[int, ...], arg(metavar="[CHAPTER ...]")]


@dataclass(frozen=True)
class LearnStart(Command):
    """Write the exercises: a file for each chapter, with the parts to complete, and my_gpt2.py, which joins them."""

    directory: Positional[Path]
    """Where to write; files that exist are never overwritten."""
    chapters: Positional[Chapters] = ()
    """Chapters from 1 to 10; all by default."""
    style: Literal["functions", "modules"] = "functions"
    """Write the layers of chapters 4 to 6 as functions of tensors, or as PyTorch modules."""

    def run(self) -> None:
        """Write the files and say what to do next."""
        written = exercises.start(self.directory, self.chapters, self.style)
        print(f"wrote {', '.join(path.name for path in written)} to {self.directory}")
        first = written[0]
        chapter = exercises.FILES.index(first.name) + 1
        print(
            f"next: read {_page(chapter)}, complete {first}, then run: gpt2lab learn check {self.directory} {chapter}"
        )


@dataclass(frozen=True)
class LearnCheck(Command):
    """Check your parts one by one: what is right, and what is wrong and why. Exit code 1 if a part is not right."""

    directory: Positional[Path]
    """Directory with your chapters, as learn start writes it."""
    chapters: Positional[Chapters] = ()
    """Chapters from 1 to 10; all by default. What wrong parts print is shown if you name chapters."""
    seconds: float = sandbox.SECONDS
    """Time limit of a part."""

    def run(self) -> int:
        """Check each part in a process with limits, print a line for each and a summary."""
        require(0 < self.seconds < float("inf"), "--seconds", self.seconds, "greater than 0")
        part_of = {part.name: part for part in exercises.PARTS}
        verdicts: list[Verdict] = []
        checked = sandbox.check_directory(self.directory, self.chapters, self.seconds)
        total = sum(not self.chapters or part.chapter in self.chapters for part in exercises.PARTS)
        with bar("checking") as show, closing(checked):
            grouped = itertools.groupby(_counted(checked, show, total), lambda verdict: part_of[verdict.part].chapter)
            for chapter, group in grouped:
                of_chapter = list(group)
                _print_chapter(chapter, of_chapter, with_output=bool(self.chapters))
                verdicts += of_chapter
        bad = [verdict for verdict in verdicts if not verdict.right]
        missing = sum(verdict.status == "missing" for verdict in bad)
        counts = f", {len(bad) - missing} wrong, {missing} missing" if bad else ""
        console.print(f"\n{len(verdicts) - len(bad)} of {plural(len(verdicts), 'part')} right{counts}")
        if bad:
            part = part_of[bad[0].part]
            console.print(f"next: {part.name} in {self.directory / part.file}; read {_page(part.chapter)}")
        return int(bool(bad))


def _page(chapter: int) -> str:
    return f"docs/build/{chapter:02}-{exercises.SLUGS[chapter - 1]}.md"


def _counted(verdicts: Iterable[Verdict], show: Callable[[int, int], None], total: int) -> Iterator[Verdict]:
    for number, verdict in enumerate(verdicts, start=1):
        show(number, total)
        yield verdict


def _print_chapter(chapter: int, verdicts: Sequence[Verdict], with_output: bool) -> None:
    """Print the verdicts on a chapter: one line if all say the same, else a line for each and its details below."""
    console.print(f"\n[bold]{chapter} {exercises.SLUGS[chapter - 1]}[/]")
    width = max(len(verdict.part) for verdict in verdicts)
    if len(verdicts) > 1 and verdicts[0].says and len({verdict.says for verdict in verdicts}) == 1:
        verdicts = [replace(verdicts[0], part=f"all {len(verdicts)} parts")]
    for verdict in verdicts:
        sign = {"right": "[green]✓[/]", "missing": "[yellow]–[/]"}.get(verdict.status, "[red]✗[/]")
        console.print(f"  {sign} {verdict.part:{width}}  {escape(verdict.says)}".rstrip(), emoji=False)
        printed = (
            [f"printed: {line}" for line in verdict.output.splitlines()] if with_output and not verdict.right else []
        )
        if len(printed) > PRINTED:
            printed[PRINTED:] = [f"and {plural(len(printed) - PRINTED, 'line')} more"]
        for line in [*verdict.detail.splitlines(), *printed]:
            console.print(f"    {'':{width}}  [dim]{escape(line)}[/]", emoji=False)
