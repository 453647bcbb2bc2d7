"""The files of a comparison: comparison.json, table.md, table.csv, its pictures and one page of HTML.

Everything is made from the run directories, so it can be made again at any time.
"""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path
from typing import Any

import gpt2lab
from gpt2lab.files import write_atomically, write_json
from gpt2lab.lab.compare import figures
from gpt2lab.lab.compare.results import Comparison
from gpt2lab.lab.compare.table import NOTE, lines, markdown, spreadsheet
from gpt2lab.lab.page import GENERATOR, page
from gpt2lab.lab.pictures import write_png

FILE = "comparison.json"


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Write every file of a comparison into its directory; earlier ones are replaced."""
    pictures = {}
    for name, figure in figures.draw(comparison).items():
        write_png(out / f"{name}.png", figure)
        pictures[name] = (out / f"{name}.png").read_bytes()
    write_atomically(out / "table.md", markdown(comparison))
    write_atomically(out / "table.csv", spreadsheet(comparison))
    write_atomically(out / "comparison.html", _html(comparison, pictures))
    write_json(out / FILE, as_json(comparison, out))


def as_json(comparison: Comparison, out: Path) -> dict[str, Any]:
    """Return everything that was found as plain values; the runs' paths are relative to ``out``."""
    runs = []
    for outcome in comparison.outcomes:
        values = dataclasses.asdict(outcome)
        values["path"] = Path(outcome.path).relative_to(out).as_posix()
        runs.append(values)
    rows = []
    for row in comparison.rows:
        cells = dict(zip(comparison.arms, map(_cell, row.cells), strict=True))
        rows.append({"metric": row.metric.name, "unit": row.metric.unit, "better": row.metric.better, "arms": cells})
    return {
        "version": gpt2lab.__version__,
        "reference": comparison.reference,
        "arms": list(comparison.arms),
        "seeds": list(comparison.seeds),
        "target_loss": comparison.target_loss,
        "findings": list(comparison.findings),
        "remarks": list(comparison.remarks),
        "metrics": rows,
        "runs": runs,
    }


def _cell(cell: Any) -> dict[str, Any]:
    values = dataclasses.asdict(cell)
    if cell.difference is not None:
        values["difference"]["verdict"] = cell.difference.verdict
    return values


TITLES = {
    "curves": "Validation loss against steps, tokens and seconds. Lines are means over the seeds, bands reach from the "
    "lowest to the highest.",
    "parameters": "Best validation loss against the number of parameters, a mark for each run.",
    "recall": "Associative recall: loss on the second occurrence of random tokens, by the distance to the first.",
    "positions": "Loss by the number of tokens before a token in its window.",
}
"""Captions of the pictures."""


def _html(comparison: Comparison, pictures: dict[str, bytes]) -> str:
    encoded = {name: base64.b64encode(picture).decode("ascii") for name, picture in pictures.items()}
    return page(
        "comparison.html.jinja",
        comparison=comparison,
        lines=lines(comparison),
        pictures=encoded,
        titles=TITLES,
        note=NOTE,
        version=gpt2lab.__version__,
        generator=GENERATOR,
    )
