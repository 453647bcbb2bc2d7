"""A comparison as files: a table as Markdown and CSV, everything as JSON, plots, and an HTML page of all of it."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import gpt2lab
from gpt2lab import formatting, plots
from gpt2lab.compare.results import COMPARISON_FILE, Cell, Comparison, plain, signed
from gpt2lab.files import write_atomically, write_checked_json
from gpt2lab.formatting import page
from gpt2lab.plots import Picture

COLUMNS = ("metric", "unit", "arm", "runs", "mean", "half_width", "difference", "low", "high", "pairs", "verdict")
"""Columns of table.csv; differences are to the first arm."""
MAX_COLUMNS = 5
"""Arms side by side in a table of a page; more make several tables."""
NOTE = (
    "Mean over the seeds ± half its 95 % interval; below it, the mean difference to the reference, paired by seed, "
    "with its 95 % interval (Student's t) in brackets. An interval that contains 0 shows no difference."
)
NOTE_OF_SINGLE_RUNS = (
    "A run of each; below its figure, the difference to the reference if they have the same seed. There is no "
    "interval, so a difference may be chance."
)


def note(comparison: Comparison) -> str:
    """Return how to read the table."""
    several = any(cell.runs > 1 for row in comparison.rows for cell in row.cells)
    return NOTE if several else NOTE_OF_SINGLE_RUNS


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Write every file of a comparison into its directory, replacing earlier ones."""
    pictures = draw(comparison)
    for name, picture in pictures.items():
        write_atomically(out / f"{name}.png", picture.png)
    write_atomically(out / "table.md", _markdown(comparison))
    write_atomically(out / "table.csv", _csv(comparison))
    html = page("comparison.html.jinja", **page_values(comparison), pictures=pictures)
    write_atomically(out / "comparison.html", html)
    write_checked_json(out / COMPARISON_FILE, _as_json(comparison, out))


def page_values(comparison: Comparison) -> dict[str, Any]:
    """Return what a page says about a comparison besides its plots."""
    groups = column_groups(len(comparison.arms))
    return {"comparison": comparison, "rows": table_rows(comparison), "groups": groups, "note": note(comparison)}


def column_groups(arms: int) -> list[list[int]]:
    """Return the arms of each table, by their places: as many as a page is wide, and the reference in each."""
    tables = max(1, math.ceil((arms - 1) / (MAX_COLUMNS - 1)))
    size = math.ceil((arms - 1) / tables)
    return [[0, *range(1 + n * size, min(1 + (n + 1) * size, arms))] for n in range(tables)]


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
    spread = f"± {plain(cell.half_width, 2)}" if cell.half_width else ""
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
    return formatting.count(x) if x == round(x) or x >= 1e3 else plain(x)


def _markdown(comparison: Comparison) -> str:
    """Return the findings, the options of each arm and the table as a page of Markdown."""
    head = ["", *(f"{arm} (reference)" if arm == comparison.reference else arm for arm in comparison.arms)]
    rows = [head, ["---", *["---:"] * len(comparison.arms)]]
    for row in table_rows(comparison):
        cells = [f"{row.title}, {row.unit}" if row.unit else row.title]
        for cell in row.cells:
            parts = (cell.value, cell.spread), (cell.difference, cell.interval, cell.verdict)
            cells.append("<br>".join(filter(None, (" ".join(filter(None, part)) for part in parts))))
        rows.append(cells)
    lines = "\n".join(f"| {' | '.join(cell.replace('|', '∣') for cell in row)} |" for row in rows)
    listed = "\n".join(f"- {text}" for text in (*comparison.findings, *comparison.remarks))
    changes = {arm: comparison.options.get(arm, ("options unknown",)) for arm in comparison.arms}
    variants = "\n".join(f"- {arm}: `{' '.join(changed) or 'no changes'}`" for arm, changed in changes.items())
    return f"# Comparison\n\n{listed}\n\n{variants}\n\n{lines}\n\n{note(comparison)}\n"


def _csv(comparison: Comparison) -> str:
    """Return the comparison as CSV in full precision, a row for each metric of each arm."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in comparison.rows:
        for arm, cell in zip(comparison.arms, row.cells, strict=True):
            difference = dataclasses.astuple(cell.difference) if cell.difference else ("",) * 5
            writer.writerow((row.metric.name, row.metric.unit, arm, cell.runs, cell.mean, cell.half_width, *difference))
    return text.getvalue()


def _as_json(comparison: Comparison, out: Path) -> dict[str, Any]:
    """Return everything as plain values; the paths of the runs are relative to ``out``."""
    metrics = []
    for metric, cells in comparison.rows:
        arms = {arm: dataclasses.asdict(cell) for arm, cell in zip(comparison.arms, cells, strict=True)}
        metrics.append({"metric": metric.name, "unit": metric.unit, "better": metric.better, "arms": arms})
    runs = [dataclasses.asdict(o) | {"path": Path(o.path).relative_to(out).as_posix()} for o in comparison.outcomes]
    for run in runs:
        del run["options"], run["own_name"]  # its config.json has them
    names = ("reference", "arms", "seeds", "target_loss", "options", "findings", "remarks")
    found = {name: getattr(comparison, name) for name in names}
    return {"version": gpt2lab.__version__, **found, "metrics": metrics, "runs": runs}


COSTS = {"step": "step", "tokens trained on": "tokens", "seconds of training": "seconds"}
"""What validation losses are drawn against: the field of `Validation` by the label of the axis."""
BY_DISTANCE = {
    "recall": (
        "tokens since the first occurrence",
        "loss on the second, nats",
        "Associative recall: loss on the second occurrence of random tokens by the distance to the first.",
    ),
    "positions": (
        "tokens before it in the window",
        "loss, nats per token",
        "Loss by the number of tokens before a token in its window.",
    ),
}
"""The labels of both axes and the caption, by the field of `Outcome` that is drawn."""


def draw(comparison: Comparison) -> dict[str, Picture]:
    """Return the plots of a comparison by name; those without data are left out.

    All of them show losses per token, so there is none if these do not compare.
    """
    if not comparison.per_token:
        return {}
    arms = {arm: [o for o in comparison.outcomes if o.arm == arm and o.usable] for arm in comparison.arms}
    pictures: dict[str, Picture] = {}
    if any(o.curve for o in comparison.outcomes):
        panels = {
            label: {arm: [[(getattr(p, cost), p.loss) for p in o.curve] for o in runs] for arm, runs in arms.items()}
            for label, cost in COSTS.items()
        }
        caption = (
            "Validation loss against steps, tokens and seconds. Lines are means over the seeds, bands span the lowest "
            "and the highest run."
        )
        pictures["curves"] = Picture(plots.losses_over_costs(panels), caption, wide=True)
    both = {"parameters", "val_loss"}
    sizes = {
        arm: [(o.figures["parameters"], o.figures["val_loss"]) for o in runs if both <= o.figures.keys()]
        for arm, runs in arms.items()
    }
    if len({parameters for points in sizes.values() for parameters, _ in points}) > 1:
        caption = "Best validation loss against the number of parameters, a marker for each run."
        pictures["parameters"] = Picture(plots.losses_over_parameters(sizes), caption)
    for name, (x_label, y_label, caption) in BY_DISTANCE.items():
        curves = {arm: [getattr(o, name) for o in runs] for arm, runs in arms.items()}
        if any(map(any, curves.values())):
            pictures[name] = Picture(plots.by_distance(curves, x_label, y_label), caption)
    return pictures
