"""The report of runs as one HTML file that loads nothing: content first (`gather.py`), then set in type.

    run directories ── gather ──> Report ── render ──> HTML
                                         └─ figures ─> SVG inside it

The file carries its style sheet, its pictures and its equations (MathML), forbids itself to load anything else, and
reads well on a page, a phone and paper, light and dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2lab.errors import InputError
from gpt2lab.files import write_atomically
from gpt2lab.lab import figures
from gpt2lab.lab.content import KeyFigure, Report, RunContent
from gpt2lab.lab.gather import gather
from gpt2lab.lab.page import GENERATOR, page
from gpt2lab.runs import Run


@dataclass(frozen=True)
class Figures:
    """The pictures of a report as SVG elements, and what they show in words."""

    losses_wide: str
    losses_narrow: str
    gradient_norm: str
    speed: str
    described: tuple[str, ...]
    stretch: int
    """Rows of metrics.csv that a point stands for, at most."""


def write_report(runs: Sequence[Run], out: Path) -> Path:
    """Write the report of one run, or of several beside each other, and return its path.

    Args:
        runs: What to report on; what is unfinished, missing or damaged in one is said in the report.
        out: An HTML file. An earlier report of that name is replaced.

    Raises:
        InputError: No run is given; ``out`` is not an .html file, lies in no folder, or exists and is not a report.
    """
    if not runs:
        raise InputError("a report needs at least one run directory; give the one that gpt2lab train --out wrote")
    _require_replaceable(out)
    write_atomically(out, render(gather(runs)))
    return out


def render(report: Report) -> str:
    """Set a report as HTML."""
    return page(
        "report.html.jinja",
        report=report,
        figures=_figures(report.runs),
        generator=GENERATOR,
        strip=_strip,
        labels=_labels,
        has_prompt=_has_prompt,
    )


def _require_replaceable(out: Path) -> None:
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{out}: a report is an HTML file; give a name that ends in .html")
    if not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}; make it, or give another --out")
    if not out.exists():
        return
    if out.is_dir():
        raise InputError(f"{out} is a folder; give the name of an HTML file")
    with out.open("rb") as file:
        start = file.read(2_000)
    if f'<meta name="generator" content="{GENERATOR}'.encode() not in start:
        raise InputError(f"{out} exists and is not a report that gpt2lab wrote; give another --out")


def _figures(runs: Sequence[RunContent]) -> Figures | None:
    """Draw what there is to draw; None where no run has recorded a loss."""
    recorded = [run for run in runs if run.curves.train_loss.x]
    if not recorded:
        return None
    alone = len(runs) == 1
    described = tuple(run.curves.described if alone else f"{run.name}: {run.curves.described}" for run in runs)
    return Figures(
        losses_wide=figures.losses(recorded, figures.WIDE),
        losses_narrow=figures.losses(recorded, figures.NARROW),
        gradient_norm=figures.gradient_norm(recorded),
        speed=figures.speed(recorded),
        described=described,
        stretch=figures.stretch(recorded),
    )


def _strip(run: RunContent) -> list[KeyFigure]:
    """Return the figures that stand at the head of a run: two rows of four."""
    return [figure for figure in run.key_figures if figure.value is not None or not figure.only_where_known][:8]


def _labels(runs: Sequence[RunContent]) -> list[str]:
    """Return the key figures that any of the runs has, in order."""
    return list(dict.fromkeys(figure.label for run in runs for figure in run.key_figures))


def _has_prompt(run: RunContent) -> bool:
    return any(sample.prompt for strategy in run.strategies for sample in strategy.samples)
