"""``gpt2lab learn start|check|grade``: the course in which one builds GPT-2."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.markup import escape
from tyro.conf import Positional, arg

from gpt2lab.cli.arguments import Command
from gpt2lab.console import bar, console
from gpt2lab.errors import InputError, require
from gpt2lab.formatting import plural
from gpt2lab.learn import exercises, sandbox
from gpt2lab.learn.grade import Grade, Gradebook, grade, points
from gpt2lab.learn.rubric import Rubric, load
from gpt2lab.learn.similarity import alike
from gpt2lab.learn.submissions import find, read_all

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


@dataclass(frozen=True)
class LearnGrade(Command):
    """Grade a class: points for each student by a rubric, a page for each, and one for the teacher.

    The submissions run with your rights: docs/teaching.md shows how to grade in a container.
    """

    folder: Positional[Path]
    """Holds the submissions: a directory, or a .zip, for each student."""
    out: Path
    """Table to write, such as grades.csv; the pages go to grades/. Nothing is overwritten."""
    rubric: Annotated[str, arg(metavar="NAME|FILE")] = "gpt2"
    """gpt2 (all chapters), transformer (chapters 2 to 8), or your own TOML file."""
    jobs: int = os.cpu_count() or 1
    """Submissions checked at a time; each takes a core and up to 2 GB of memory."""
    seconds: float = sandbox.SECONDS
    """Time limit of a part."""

    def run(self) -> None:
        """Grade, print a line for each student, and keep what is graded if interrupted."""
        require(self.jobs >= 1, "--jobs", self.jobs, "1 or more")
        require(0 < self.seconds < float("inf"), "--seconds", self.seconds, "greater than 0")
        rubric = load(self.rubric)
        if self.out.resolve().is_relative_to(self.folder.resolve()):
            raise InputError(f"--out is {self.out}, among the submissions; give a path outside of {self.folder}")
        submissions = list(read_all(find(self.folder)))
        book = Gradebook(self.out, rubric)
        check = partial(sandbox.check_directory, seconds=self.seconds)
        try:
            with bar("grading") as show, closing(grade(submissions, rubric, check, self.jobs)) as graded:
                show(0, len(submissions))
                for done in graded:
                    book.add(done)
                    show(len(book.grades), len(submissions))
                    _print_grade(done, rubric)
        except KeyboardInterrupt:
            print(f"graded {len(book.grades)} of {len(submissions)} before the interruption")
            raise
        finally:
            done = {each.student for each in book.grades}
            files = {each.student: each.files for each in submissions if each.student in done}
            pairs = alike(files, rubric.points)
            book.finish(pairs)
            for pair in pairs:
                console.print(f"near-identical: {escape(' and '.join(pair.students))} ({100 * pair.similarity:.0f} %)")
            console.print(f"wrote {escape(str(self.out))} and {escape(str(book.folder / 'index.html'))}")


def _print_grade(done: Grade, rubric: Rubric) -> None:
    line = f"{escape(done.student)}  {points(done.total)} of {points(rubric.total)}"
    parts = ", ".join(verdict.part for verdict in done.wrong)
    console.print("; ".join([line, *([f"wrong: {parts}"] if parts else []), *map(escape, done.notes)]))


def _page(chapter: int) -> str:
    """Return where a chapter is: in this checkout, or in the repository if gpt2lab was installed without docs."""
    name = f"docs/build/{chapter:02}-{exercises.SLUGS[chapter - 1]}.md"
    path = Path(__file__).parents[3] / name
    return path.as_posix() if path.exists() else f"{name} in the repository of gpt2lab"


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
