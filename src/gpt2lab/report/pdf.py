"""The report as a PDF, set by typst from the same content as the page: values in, no markup, so nothing to escape.

Report ── values ──> report.json ─┐
       └─ figures ─> *.svg ───────┴─ report.typ ── typst ──> report.pdf
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gpt2lab.compare import output as comparison_figures
from gpt2lab.compare.output import NOTE, TITLES, lines
from gpt2lab.report import figures
from gpt2lab.report.document import Report, RunContent
from gpt2lab.report.facts import CITE
from gpt2lab.report.figures import pictures_of
from gpt2lab.report.page import GENERATOR, TEMPLATES, printable
from gpt2lab.report.plots import CAPTION

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LONGEST_SAMPLE, LONGEST_ENDING = 420, 420
"""Characters shown of a text."""


def render_pdf(report: Report) -> bytes:
    """Set a report as a PDF: one run at length, and how the others compare with it."""
    import matplotlib  # slow to import, as typst is, and needed here only
    import typst

    files, pictures = _pictures(report)
    values = json.dumps(_values(report, pictures) | {"files": list(files)}, ensure_ascii=False)
    files["report.json"] = printable(values).encode("utf-8")
    files["main.typ"] = (TEMPLATES / "report.typ").read_bytes()
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"  # the figures' text is set in DejaVu Sans
    return typst.compile(cast(Any, files), format="pdf", font_paths=[fonts], ignore_system_fonts=True)


def _values(report: Report, pictures: list[dict[str, Any]]) -> dict[str, Any]:
    run = report.runs[0]
    plain = dataclasses.asdict(run)
    del plain["curves"], plain["quality"]  # they are drawn
    comparison = report.comparison
    return {
        "title": report.title if comparison is None else f"{len(comparison.outcomes)} runs compared",
        "version": report.version,
        "generator": GENERATOR,
        "run": plain,
        "key": [dataclasses.asdict(figure) for figure in run.strip],
        "losses": bool(run.curves.train_loss.x),
        "described": run.curves.described,
        "stretch": figures.stretch([run]),
        "samples": _samples(run),
        "completion": _completion(run),
        "caption_of_texts": CAPTION,
        "prompted": run.prompted,
        "notes": report.notes,
        "references": report.references,
        "cite": CITE,
        "comparison": None
        if comparison is None
        else {
            "arms": comparison.arms,
            "findings": comparison.findings,
            "remarks": comparison.remarks,
            "lines": [dataclasses.asdict(line) for line in lines(comparison)],
            "note": NOTE,
            "pictures": pictures,
        },
    }


def _samples(run: RunContent) -> list[dict[str, Any]]:
    """Return the first text of each strategy, on one line and cut to what a page has room for."""
    shown = []
    for strategy in run.strategies:
        sample = strategy.samples[0]
        text, cut = _line(sample.continuation if sample.prompt else sample.continuation.lstrip(), LONGEST_SAMPLE)
        shown.append({"name": strategy.name, "prompt": sample.prompt, "text": text, "cut": cut or sample.cut})
    return shown


def _completion(run: RunContent) -> dict[str, Any] | None:
    """Return the first held-out beginning with its endings, each on one line and cut."""
    if not run.completions:
        return None
    first = run.completions[0]
    endings = [(name, *_line(text.strip(), LONGEST_ENDING)) for name, text in first.endings]
    return {"prompt": _line(first.prompt, LONGEST_ENDING)[0], "endings": endings}


def _line(text: str, longest: int) -> tuple[str, bool]:
    """Return a text on one line, cut behind a word to what a page has room for, and whether it was cut."""
    line = re.sub(r"\s*\n\s*", " ¶ ", text)
    if len(line) <= longest:
        return line, False
    return line[: max(line.rfind(" ", 0, longest), longest // 2)], True


def _pictures(report: Report) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """Return the files of the figures, and which of them belong to the comparison."""
    run, files = report.runs[0], {}
    if run.curves.train_loss.x:
        files["losses.svg"] = as_svg(figures.draw_losses([run], figures.PAPER))
    files |= {f"run-{name}.svg": as_svg(figure) for name, figure in pictures_of(run).items()}
    placed = []
    if report.comparison is not None:
        for name, figure in comparison_figures.draw(report.comparison).items():
            files[f"{name}.svg"] = as_svg(figure)
            placed.append({"file": f"{name}.svg", "caption": TITLES[name], "wide": name == "curves"})
    return files, placed


def as_svg(figure: Figure) -> bytes:
    """Return a figure as an SVG whose text is text, in matplotlib's own font."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
