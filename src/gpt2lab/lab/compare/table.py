"""A comparison as text: the table for a page, for Markdown and for a spreadsheet."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

from gpt2lab.lab import words
from gpt2lab.lab.compare.results import Cell, Comparison, signed

COLUMNS = ("metric", "unit", "arm", "runs", "mean", "half_width", "difference", "low", "high", "pairs", "verdict")
"""Columns of table.csv; differences are to the first arm."""


@dataclass(frozen=True)
class Entry:
    """A cell as it is read."""

    value: str
    spread: str
    """Half the 95 % interval of the mean."""
    difference: str
    """Difference to the reference; empty in the reference."""
    interval: str
    """Its 95 % interval; empty where there is none."""
    verdict: str


@dataclass(frozen=True)
class Line:
    """A metric as it is read."""

    title: str
    unit: str
    entries: tuple[Entry, ...]


def lines(comparison: Comparison) -> list[Line]:
    """Return the rows of a comparison as they are read."""
    return [
        Line(_title(row.metric.title, comparison), row.metric.unit, tuple(_entry(cell) for cell in row.cells))
        for row in comparison.rows
    ]


def markdown(comparison: Comparison) -> str:
    """Return the comparison as a page of Markdown."""
    head = ["", *(f"{arm} (reference)" if arm == comparison.reference else arm for arm in comparison.arms)]
    rows = [head, ["---", *["---:"] * len(comparison.arms)]]
    for line in lines(comparison):
        name = f"{line.title}, {line.unit}" if line.unit else line.title
        rows.append([name, *("<br>".join(filter(None, _words(entry))) for entry in line.entries)])
    table = "\n".join(f"| {' | '.join(cell.replace('|', '∣') for cell in row)} |" for row in rows)
    said = [*comparison.findings, *comparison.remarks]
    listed = "\n".join(f"- {text}" for text in said)
    return f"# Comparison\n\n{listed}\n\n{table}\n\n{NOTE}\n"


NOTE = (
    "Mean over the seeds ± half its 95 % interval; below it the mean of the differences to the reference, paired by "
    "seed, with their 95 % interval (Student's t) in brackets. Where that holds 0, no difference is shown."
)


def spreadsheet(comparison: Comparison) -> str:
    """Return the comparison as CSV, a line for each metric of each arm, in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in comparison.rows:
        for arm, cell in zip(comparison.arms, row.cells, strict=True):
            d = cell.difference
            found = (d.mean, d.low, d.high, d.pairs, d.verdict) if d else ("",) * 5
            writer.writerow((row.metric.name, row.metric.unit, arm, cell.runs, cell.mean, cell.half_width, *found))
    return text.getvalue()


def _title(title: str, comparison: Comparison) -> str:
    """Say which loss steps and seconds are counted to."""
    return title.replace("the loss", f"a validation loss of {words.number(comparison.target_loss or 0.0)}")


def _words(entry: Entry) -> list[str]:
    difference = (entry.difference, entry.interval, entry.verdict)
    return [f"{entry.value} {entry.spread}".strip(), " ".join(filter(None, difference))]


def _entry(cell: Cell) -> Entry:
    if cell.mean is None:
        return Entry(words.MISSING, "", "", "", "")
    spread = f"± {_half(cell.half_width)}" if cell.half_width else ""
    difference = cell.difference
    if difference is None:
        return Entry(_value(cell.mean), spread, "", "", "")
    interval = ""
    if difference.low is not None and difference.high is not None and difference.low != difference.high:
        interval = f"[{signed(difference.low)}, {signed(difference.high)}]"
    return Entry(_value(cell.mean), spread, signed(difference.mean), interval, difference.verdict)


def _value(x: float) -> str:
    if x < 0:
        return f"−{_value(-x)}"
    if 1e-4 <= x < 1e-2:
        return f"{x:.3g}"
    return words.short(x) if x >= 1e5 else words.count(x) if x == round(x) or x >= 1e3 else words.number(x)


def _half(x: float) -> str:
    return f"{x:.2g}" if 1e-4 <= x < 1e-2 else words.number(x, 2)
