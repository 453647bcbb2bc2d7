"""A comparison as files: a table as Markdown and CSV, everything as JSON, plots, and an HTML page of all of it."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gpt2lab
from gpt2lab import formatting, plots
from gpt2lab.compare.results import COMPARISON_FILE, Cell, Comparison, Validation, signed
from gpt2lab.files import write_atomically, write_json
from gpt2lab.pages import page
from gpt2lab.plots import Picture

COLUMNS = ("metric", "unit", "arm", "runs", "mean", "half_width", "difference", "low", "high", "pairs", "verdict")
"""Columns of table.csv; differences are to the first arm."""
NOTE = (
    "Mean over the seeds ± half its 95 % interval; below it, the mean difference to the reference, paired by seed, "
    "with its 95 % interval (Student's t) in brackets. An interval that contains 0 shows no difference."
)


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Write every file of a comparison into its directory, replacing earlier ones."""
    pictures = draw(comparison)
    for name, picture in pictures.items():
        write_atomically(out / f"{name}.png", picture.png)
    write_atomically(out / "table.md", _markdown(comparison))
    write_atomically(out / "table.csv", _csv(comparison))
    html = page(
        "comparison.html.jinja",
        comparison=comparison,
        rows=table_rows(comparison),
        pictures=pictures,
        note=NOTE,
    )
    write_atomically(out / "comparison.html", html)
    write_json(out / COMPARISON_FILE, _as_json(comparison, out))


class CellText(NamedTuple):
    """A cell of the table as text; what does not apply is empty."""

    value: str
    spread: str = ""
    """Half the 95 % interval of the mean."""
    difference: str = ""
    """Difference to the reference."""
    interval: str = ""
    """Its 95 % interval."""
    verdict: str = ""


class TableRow(NamedTuple):
    """A row of the table as text."""

    title: str
    unit: str
    cells: list[CellText]


def table_rows(comparison: Comparison) -> list[TableRow]:
    """Return the rows of a comparison as text."""
    loss = f"a validation loss of {formatting.number(comparison.target_loss or 0.0)}"
    return [
        TableRow(row.metric.title.replace("the loss", loss), row.metric.unit, [_cell_text(cell) for cell in row.cells])
        for row in comparison.rows
    ]


def _cell_text(cell: Cell) -> CellText:
    if cell.mean is None:
        return CellText(formatting.MISSING)
    value = _number(cell.mean)
    spread = f"± {_small(cell.half_width) or formatting.number(cell.half_width, 2)}" if cell.half_width else ""
    d = cell.difference
    if d is None:
        return CellText(value, spread)
    interval = ""
    if d.low is not None and d.high is not None and d.low != d.high:
        interval = f"[{signed(d.low)}, {signed(d.high)}]"
    return CellText(value, spread, signed(d.mean), interval, d.verdict)


def _number(x: float) -> str:
    if x < 0:
        return f"−{_number(-x)}"
    if x >= 1e5:
        return formatting.short(x)
    if x == round(x) or x >= 1e3:
        return formatting.count(x)
    return _small(x, 3) or formatting.number(x)


def _small(x: float, digits: int = 2) -> str:
    """Return a small number without an exponent; an empty string if it is not one."""
    return f"{x:.{digits}g}" if 1e-4 <= x < 1e-2 else ""


def _markdown(comparison: Comparison) -> str:
    """Return the findings and the table as a page of Markdown."""
    head = ["", *(f"{arm} (reference)" if arm == comparison.reference else arm for arm in comparison.arms)]
    rows = [head, ["---", *["---:"] * len(comparison.arms)]]
    for row in table_rows(comparison):
        cells = [f"{row.title}, {row.unit}" if row.unit else row.title]
        for cell in row.cells:
            parts = (cell.value, cell.spread), (cell.difference, cell.interval, cell.verdict)
            cells.append("<br>".join(filter(None, (" ".join(filter(None, part)) for part in parts))))
        rows.append(cells)
    table = "\n".join(f"| {' | '.join(cell.replace('|', '∣') for cell in row)} |" for row in rows)
    listed = "\n".join(f"- {text}" for text in (*comparison.findings, *comparison.remarks))
    return f"# Comparison\n\n{listed}\n\n{table}\n\n{NOTE}\n"


def _csv(comparison: Comparison) -> str:
    """Return the comparison as CSV in full precision, a row for each metric of each arm."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in comparison.rows:
        for arm, cell in zip(comparison.arms, row.cells, strict=True):
            d = cell.difference
            difference = (d.mean, d.low, d.high, d.pairs, d.verdict) if d else ("",) * 5
            writer.writerow((row.metric.name, row.metric.unit, arm, cell.runs, cell.mean, cell.half_width, *difference))
    return text.getvalue()


def _as_json(comparison: Comparison, out: Path) -> dict[str, Any]:
    """Return everything as plain values; the paths of the runs are relative to ``out``."""
    metrics = [
        {
            "metric": metric.name,
            "unit": metric.unit,
            "better": metric.better,
            "arms": {arm: _cell_as_json(cell) for arm, cell in zip(comparison.arms, cells, strict=True)},
        }
        for metric, cells in comparison.rows
    ]
    runs = [dataclasses.asdict(o) | {"path": Path(o.path).relative_to(out).as_posix()} for o in comparison.outcomes]
    return {
        "version": gpt2lab.__version__,
        "reference": comparison.reference,
        "arms": comparison.arms,
        "seeds": comparison.seeds,
        "target_loss": comparison.target_loss,
        "findings": comparison.findings,
        "remarks": comparison.remarks,
        "metrics": metrics,
        "runs": runs,
    }


def _cell_as_json(cell: Cell) -> dict[str, Any]:
    values = dataclasses.asdict(cell)
    if cell.difference is not None:
        values["difference"]["verdict"] = cell.difference.verdict
    return values


def draw(comparison: Comparison) -> dict[str, Picture]:
    """Return the plots of a comparison by name; those without data are left out.

    All of them show losses per token, so there is none if these do not compare.
    """
    if not comparison.per_token:
        return {}
    usable = {arm: comparison.of(arm) for arm in comparison.arms}
    pictures: dict[str, Picture] = {}
    if any(o.curve for o in comparison.outcomes):
        costs: dict[str, Callable[[Validation], float]] = {
            "step": lambda point: point.step,
            "tokens trained on": lambda point: point.tokens,
            "seconds of training": lambda point: point.seconds,
        }
        panels = {
            name: {arm: [[(cost(p), p.loss) for p in o.curve] for o in runs] for arm, runs in usable.items()}
            for name, cost in costs.items()
        }
        pictures["curves"] = Picture(
            plots.losses_over_costs(panels),
            "Validation loss against steps, tokens and seconds. Lines are means over the seeds, bands span the lowest "
            "and the highest run.",
            wide=True,
        )
    sizes = {
        arm: [
            (o.figures["parameters"], o.figures["val_loss"])
            for o in runs
            if {"parameters", "val_loss"} <= o.figures.keys()
        ]
        for arm, runs in usable.items()
    }
    if len({parameters for points in sizes.values() for parameters, _ in points}) > 1:
        caption = "Best validation loss against the number of parameters, a marker for each run."
        pictures["parameters"] = Picture(plots.losses_over_parameters(sizes), caption)
    recall = {arm: [o.recall for o in runs] for arm, runs in usable.items()}
    if any(map(any, recall.values())):
        figure = plots.by_distance(recall, "tokens since the first occurrence", "loss on the second, nats")
        caption = "Associative recall: loss on the second occurrence of random tokens by the distance to the first."
        pictures["recall"] = Picture(figure, caption)
    positions = {arm: [o.positions for o in runs] for arm, runs in usable.items()}
    if any(map(any, positions.values())):
        figure = plots.by_distance(positions, "tokens before it in the window", "loss, nats per token")
        caption = "Loss by the number of tokens before a token in its window."
        pictures["positions"] = Picture(figure, caption)
    return pictures
