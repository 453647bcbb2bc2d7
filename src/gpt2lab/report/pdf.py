"""A report as a PDF, typeset by typst from the same content as the HTML: values only, so nothing needs escaping.

Report ── values ──> report.json ─┐
       └─ figures ─> *.svg ───────┴─ report.typ ── typst ──> report.pdf
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, cast

import gpt2lab
from gpt2lab import plots
from gpt2lab.compare.output import NOTE, table_rows
from gpt2lab.pages import GENERATOR, TEMPLATES, printable
from gpt2lab.report.content import Report, RunContent
from gpt2lab.report.facts import CITE
from gpt2lab.report.html import loss_figure, points_per_mean

MAX_CHARACTERS = 420
"""Characters shown of a text."""


def render_pdf(report: Report) -> bytes:
    """Return a report as a PDF: the first run at length, and how the others compare with it."""
    import matplotlib  # slow to import, as typst is, and needed here only
    import typst

    run = report.runs[0]
    figures = {f"run-{name}": picture.figure for name, picture in run.pictures.items()}
    figures |= {name: picture.figure for name, picture in report.pictures.items()}
    if run.curves["train_loss"]:
        figures["losses"] = loss_figure([run], plots.PAPER)
    files = {f"{name}.svg": plots.svg(figure).encode() for name, figure in figures.items()}
    values = json.dumps(_values(report) | {"files": list(files)}, ensure_ascii=False)
    files["report.json"] = printable(values).encode("utf-8")
    files["main.typ"] = (TEMPLATES / "report.typ").read_bytes()
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"  # the text of the figures is in DejaVu Sans
    return typst.compile(cast(Any, files), format="pdf", font_paths=[fonts], ignore_system_fonts=True)


def _values(report: Report) -> dict[str, Any]:
    run, comparison = report.runs[0], report.comparison
    values = dataclasses.asdict(dataclasses.replace(run, curves={}, pictures={}))
    values["pictures"] = _pictures(run.pictures)
    return {
        "title": report.title if comparison is None else f"{len(comparison.outcomes)} runs compared",
        "version": gpt2lab.__version__,
        "generator": GENERATOR,
        "run": values,
        "headline": [dataclasses.asdict(figure) for figure in run.headline],
        "points_per_mean": points_per_mean([run]),
        "samples": _samples(run),
        "completion": _completion(run),
        "prompted": run.prompted,
        "notes": report.notes,
        "references": report.references,
        "cite": CITE,
        "comparison": comparison
        and {
            "arms": comparison.arms,
            "findings": comparison.findings,
            "remarks": comparison.remarks,
            "rows": [row._asdict() | {"cells": [c._asdict() for c in row.cells]} for row in table_rows(comparison)],
            "note": NOTE,
            "pictures": _pictures(report.pictures),
        },
    }


def _pictures(pictures: dict[str, plots.Picture]) -> dict[str, dict[str, Any]]:
    return {name: {"caption": picture.caption, "wide": picture.wide} for name, picture in pictures.items()}


def _samples(run: RunContent) -> list[dict[str, Any]]:
    """Return the first sample of each strategy, on one line and cut to what fits on a page."""
    shown = []
    for strategy in run.strategies:
        sample = strategy.samples[0]
        text, cut = _line(sample.continuation if sample.prompt else sample.continuation.lstrip())
        shown.append({"name": strategy.name, "prompt": sample.prompt, "text": text, "cut": cut or sample.cut})
    return shown


def _completion(run: RunContent) -> dict[str, Any] | None:
    """Return the first held-out prompt with its continuations, each on one line and cut."""
    if not run.completions:
        return None
    first = run.completions[0]
    endings = [(name, *_line(text.strip())) for name, text in first.endings]
    return {"prompt": _line(first.prompt)[0], "endings": endings}


def _line(text: str) -> tuple[str, bool]:
    """Return a text on one line, cut after a word to what fits on a page, and whether it was cut."""
    line = re.sub(r"\s*\n\s*", " ¶ ", text)
    if len(line) <= MAX_CHARACTERS:
        return line, False
    return line[: max(line.rfind(" ", 0, MAX_CHARACTERS), MAX_CHARACTERS // 2)], True
