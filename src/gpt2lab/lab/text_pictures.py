"""The quality of texts by strategy, as a table, as JSON in the run, and as a picture: fluency against diversity.

text.json    {"step", "split", "protocol",
              "rows": [{"name", "strategy": null or {"temperature", "top_k", "top_p", "greedy"},
                        "figures": {name: value}}],
              "examples": [{"prompt", "held_out", "completions": {name of the row: text}}]}
             the first row is the held-out text; names of figures are those of evaluation.METRICS
text.png     after figure 6 of Holtzman et al. 2020
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from gpt2lab.evaluation import METRICS
from gpt2lab.files import write_json
from gpt2lab.generation import Strategy
from gpt2lab.lab.pictures import write_png
from gpt2lab.lab.text_quality import Row, TextQuality
from gpt2lab.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = {
    "greedy": ("#444444", "X", (7, 5)),
    "temperature": ("#0072B2", "o", (-9, 8)),
    "top-k": ("#D55E00", "s", (8, -12)),
    "nucleus": ("#009E73", "^", (-4, -16)),
}
"""Colour (Okabe & Ito 2008) and mark of each family of strategies, and where its settings are written, in points."""


def save_text_quality(run: Run, step: int, split: str, quality: TextQuality) -> tuple[Path, Path]:
    """Write ``text.json`` and ``text.png`` for a step's weights; return their paths."""
    folder = run.evaluations(step)
    write_json(folder / "text.json", {"step": step, "split": split, **dataclasses.asdict(quality)})
    write_png(folder / "text.png", draw_text_quality(quality, f"{run.path.name}, step {step:,}"))
    return folder / "text.json", folder / "text.png"


def table_of(quality: TextQuality, title: str) -> Table:
    """Return the figures as a table for the terminal: a row for each strategy, the held-out text first."""
    names = [name for name in METRICS if any(name in row.figures for row in quality.rows)]
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("texts", no_wrap=True)
    for name in names:
        table.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    for row in quality.rows:
        table.add_row(row.name, *(_cell(row.figures.get(name)) for name in names))
    return table


def draw_text_quality(quality: TextQuality, title: str) -> Figure:
    """Draw perplexity against self-BLEU, each family of strategies a line through its settings.

    The cross is where people are: left of it text is likelier than theirs, below it texts are more alike.
    """
    from matplotlib.figure import Figure  # slow to import, and needed only where something is drawn

    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes = figure.subplots()
    human, *rows = (row for row in quality.rows if {"perplexity", "self_bleu"} <= row.figures.keys())
    x, y = _place(human)
    axes.axvline(x, color="#999999", lw=0.8, ls="--")
    axes.axhline(y, color="#999999", lw=0.8, ls="--")
    axes.plot(x, y, "*", color="black", ms=15, ls="none", label=human.name)
    for family in LOOKS:
        _line(axes, [row for row in rows if row.strategy and _family(row.strategy) == family], family)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("perplexity of the texts under the model (log): surer to the left")
    axes.set_ylabel("self-BLEU: more diverse upwards")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


def _line(axes: Axes, rows: Sequence[Row], family: str) -> None:
    if not rows:
        return
    colour, mark, beside = LOOKS[family]
    xs, ys = zip(*map(_place, rows), strict=True)
    axes.plot(xs, ys, color=colour, marker=mark, ms=7, lw=1.2, label=family)
    for row, x, y in zip(rows, xs, ys, strict=True):
        setting = row.name.removeprefix(family).strip()
        axes.annotate(setting, (x, y), textcoords="offset points", xytext=beside, fontsize=8, color=colour)


def _place(row: Row) -> tuple[float, float]:
    return row.figures["perplexity"], row.figures["self_bleu"]


def _family(strategy: Strategy) -> str:
    if strategy.greedy:
        return "greedy"
    return "top-k" if strategy.top_k is not None else "nucleus" if strategy.top_p is not None else "temperature"


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
