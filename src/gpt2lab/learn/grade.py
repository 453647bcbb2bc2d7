"""Grade a class: check every submission, give points by a rubric, write the table and the pages.

    folder/alice/ch01_bytes.py ..   submissions.py: files with limits     grades.csv          a row for each student
    folder/bob.zip                  sandbox.py: verdicts      rubric.py   grades/index.html   for the teacher
                                    similarity.py: pairs                  grades/alice.html   for a student

Each submission is checked in a copy of its Python files. What is graded is on the disk before the next one is done.
"""

from __future__ import annotations

import csv
import io
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2lab.errors import InputError
from gpt2lab.files import write_atomically
from gpt2lab.formatting import page, plural, printable
from gpt2lab.learn.exercises import PARTS, SLUGS
from gpt2lab.learn.rubric import Rubric
from gpt2lab.learn.similarity import Pair, imported
from gpt2lab.learn.submissions import Submission

if TYPE_CHECKING:
    from gpt2lab.learn.check import Verdict

    Check = Callable[[Path, Collection[int]], Generator[Verdict]]
    """Yields a verdict on each part of some chapters in a directory, as `sandbox.check_directory` does."""

BINS = 10
"""Bars of the distribution."""
SHOWN = 3
"""Parts that the table names of a near-identical pair."""


@dataclass(frozen=True)
class Grade:
    """What a student gets, and why."""

    student: str
    points: dict[str, float]
    """Of each part of the rubric."""
    verdicts: tuple[Verdict, ...] = ()
    """On the parts of the rubric, as far as they could be checked."""
    notes: tuple[str, ...] = ()
    """What could not be read or checked, and what is imported from gpt2lab."""

    @property
    def total(self) -> float:
        """The sum of the points, without the noise of binary fractions."""
        return round(sum(self.points.values()), 6)

    @property
    def wrong(self) -> list[Verdict]:
        """The verdicts on parts that are written but not right."""
        return [verdict for verdict in self.verdicts if verdict.status not in ("right", "missing")]


def grade(submissions: Sequence[Submission], rubric: Rubric, check: Check, jobs: int = 1) -> Generator[Grade]:
    """Grade submissions, several at a time; yield each when it is done. Whatever one does, the others are graded.

    Closing the iterator, or Ctrl-C, ends the checks that are in progress after the part that they are at.
    """
    stop = threading.Event()
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = [pool.submit(_grade, submission, rubric, check, stop) for submission in submissions]
        for future in as_completed(futures):
            yield future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _grade(submission: Submission, rubric: Rubric, check: Check, stop: threading.Event) -> Grade:
    verdicts: list[Verdict] = []
    borrowed = imported(submission.files).items()
    notes = [*submission.notes, *(f"{file} imports from gpt2lab: {', '.join(names)}" for file, names in borrowed)]
    with tempfile.TemporaryDirectory(prefix="gpt2lab-grade-", ignore_cleanup_errors=True) as copy:
        try:
            for name, data in submission.files.items():
                file = Path(copy, name)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
            if submission.files:
                with closing(check(Path(copy), rubric.chapters)) as checked:
                    for verdict in checked:
                        verdicts.append(verdict)
                        if stop.is_set():
                            break
        except Exception as error:  # whatever a submission causes, the others are graded
            notes.append(printable(" ".join(f"could not be checked to the end: {error}".split())))
    verdicts = [verdict for verdict in verdicts if verdict.part in rubric.points]
    of = {verdict.part: rubric.of(verdict) for verdict in verdicts}
    return Grade(submission.student, {part: of.get(part, 0) for part in rubric.points}, tuple(verdicts), tuple(notes))


# Files ----------------------------------------------------------------------------------------------------------------


@dataclass
class Gradebook:
    """The files of a class: ``out`` and, in the directory of its name without .csv, the pages."""

    out: Path
    rubric: Rubric
    grades: list[Grade] = field(default_factory=list)
    pages: dict[str, str] = field(default_factory=dict)
    """The file of each student's page."""

    def __post_init__(self) -> None:
        if self.out.suffix.lower() != ".csv":
            raise InputError(f"--out is {self.out}; it must end in .csv")
        for path in (self.out, self.folder):
            if path.exists():
                raise InputError(f"{path} exists and nothing was graded; give another --out")
        try:
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be created ({error.strerror}); give another --out") from error

    @property
    def folder(self) -> Path:
        """The directory of the pages."""
        return self.out.with_suffix("")

    def add(self, grade: Grade) -> None:
        """Write the page of a student, and the table with all so far."""
        self.grades.append(grade)
        self.grades.sort(key=lambda grade: grade.student.casefold())
        self.pages[grade.student] = name = self._free_name(grade.student)
        by_part = {verdict.part: verdict for verdict in grade.verdicts}
        chapters = [
            (
                number,
                SLUGS[number - 1],
                [part for part in PARTS if part.chapter == number and part.name in grade.points],
            )
            for number in self.rubric.chapters
        ]
        values = {"grade": grade, "rubric": self.rubric, "chapters": chapters, "verdicts": by_part, "points": points}
        write_atomically(self.folder / name, page("grade_student.html.jinja", **values, plural=plural))
        self._write_table([])

    def finish(self, pairs: Sequence[Pair]) -> None:
        """Write the teacher's page, and the table with the pairs that are alike."""
        self._write_table(pairs)
        ranked = sorted(self.grades, key=lambda grade: (-grade.total, grade.student.casefold()))
        values = {
            "grades": ranked,
            "rubric": self.rubric,
            "bars": distribution([grade.total for grade in ranked], self.rubric.total),
            "mistakes": _frequent(ranked),
            "parts": _difficulty(ranked, self.rubric),
            "pairs": pairs,
            "common": {pair.students: _same_mistakes(ranked, pair) for pair in pairs},
            "pages": self.pages,
            "points": points,
            "plural": plural,
        }
        write_atomically(self.folder / "index.html", page("grade_class.html.jinja", **values))

    def _free_name(self, student: str) -> str:
        """Return a file name that every system allows and nobody else has."""
        stem = re.sub(r"[^\w.()-]+", "-", student).strip("-.")[:60] or "student"
        taken = {"index.html", *(name.casefold() for name in self.pages.values())}
        names = [f"{stem}.html", *(f"{stem}-{number}.html" for number in range(2, len(taken) + 2))]
        return next(name for name in names if name.casefold() not in taken)

    def _write_table(self, pairs: Sequence[Pair]) -> None:
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(["student", "total", "of", *self.rubric.points, "mistakes", "notes", "near-identical to"])
        for each in self.grades:
            mistakes = "; ".join(f"{verdict.part}: {verdict.says}" for verdict in each.wrong)
            others = "; ".join(_partner(each.student, pair) for pair in pairs if each.student in pair.students)
            row = [each.student, each.total, self.rubric.total, *each.points.values()]
            row += [mistakes, "; ".join(each.notes), others]
            table.writerow([cell(value) if isinstance(value, str) else points(value) for value in row])
        write_atomically(self.out, text.getvalue().encode("utf-8-sig"))  # Excel needs the mark to read UTF-8


def _partner(student: str, pair: Pair) -> str:
    other = next(name for name in pair.students if name != student)
    return f"{other} ({100 * pair.similarity:.0f} %; {', '.join(list(pair.parts)[:SHOWN])})"


def cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula.

    >>> cell("=1+1")
    "'=1+1"
    """
    text = printable(" ".join(text.split()))
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠")) else text


def points(value: float) -> str:
    """Return points without needless digits: 4, 2.5."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def distribution(totals: Sequence[float], highest: float) -> list[tuple[str, int]]:
    """Return how many totals fall into each tenth of the points; the last one holds the highest."""
    counts = Counter(min(int(BINS * total / highest), BINS - 1) for total in totals)
    edges = [points(highest * i / BINS) for i in range(BINS + 1)]
    return [(f"{edges[i]} to {edges[i + 1]}", counts[i]) for i in range(BINS)]


def _frequent(grades: Iterable[Grade]) -> list[tuple[str, str, int]]:
    """Return the verdicts that several students got: part, what it says, how many; the most frequent first."""
    counts = Counter((verdict.part, verdict.says) for grade in grades for verdict in grade.wrong)
    return [(part, says, number) for (part, says), number in counts.most_common(20)]


def _difficulty(grades: Sequence[Grade], rubric: Rubric) -> list[tuple[str, int, int, int]]:
    """Return for each part how many students have it right, wrong, and not at all; the fewest right first."""
    rows = []
    for part in rubric.points:
        right = sum(verdict.right for grade in grades for verdict in grade.verdicts if verdict.part == part)
        wrong = sum(verdict.part == part for grade in grades for verdict in grade.wrong)
        rows.append((part, right, wrong, len(grades) - right - wrong))
    return sorted(rows, key=lambda row: row[1])


def _same_mistakes(grades: Iterable[Grade], pair: Pair) -> list[str]:
    """Return the parts for which both of a pair got the same verdict, which is not that it is right."""
    both = [
        {(verdict.part, verdict.says) for verdict in grade.wrong} for grade in grades if grade.student in pair.students
    ]
    return sorted(part for part, _ in set.intersection(*both)) if len(both) == 2 else []
