"""The plots of a report, as SVG that takes its colours and its font from the page around it.

matplotlib draws with fixed colours; each is then replaced by a variable of the page's style sheet, with the fixed one
where there is none. So one drawing is right on white, on black and on paper. Lines differ in colour (Okabe & Ito 2008),
in lightness and in their dashes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpt2lab import formatting
from gpt2lab.report import run_data
from gpt2lab.report.document import RunContent, Series
from gpt2lab.report.plots import DASHES, INK, LINES, RULE, TRAIN, VAL, can_be_drawn, draw_positions, draw_text_quality

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


VARIABLES = {INK: "--figure-ink", RULE: "--figure-rule", **{hue: f"--line-{n}" for n, hue in enumerate(LINES, 1)}}
POINTS = 400
"""Points of a curve; a longer one is drawn as the means of as many stretches."""
MARKS = 20
LOSS_TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12)
WIDE, NARROW, HALF, PAPER = 9.6, 4.0, 4.7, 7.0
"""Widths in inches: for a page, for a phone, for two beside each other, for paper."""
HEIGHTS = {WIDE: 4.9, NARROW: 4.2, PAPER: 3.5}


def stretch(runs: Sequence[RunContent]) -> int:
    """Return how many rows of metrics.csv a point of the curves stands for, at most."""
    return max((-(-len(run.curves.train_loss.x) // POINTS) for run in runs), default=1)


def thin(series: Series, points: int = POINTS) -> Series:
    """Return the means of at most ``points`` stretches of equal length; a short curve stays as it is."""
    size = -(-len(series.x) // points)
    if size <= 1:
        return series
    pieces = [slice(start, start + size) for start in range(0, len(series.x), size)]
    return Series(tuple(_mean(series.x[p]) for p in pieces), tuple(_mean(series.y[p]) for p in pieces))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def losses(runs: Sequence[RunContent], width: float) -> str:
    """Return `draw_losses` for a page."""
    return _svg(draw_losses(runs, width), "wide" if width == WIDE else "narrow")


def draw_losses(runs: Sequence[RunContent], width: float) -> Figure:
    """Draw training and validation loss, and below them the learning rate, over training tokens."""
    from matplotlib.ticker import MaxNLocator

    figure = _figure(width, HEIGHTS[width], left=0.8)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3.6, 1))
    figure.subplots_adjust(hspace=0.2)
    for index, run in enumerate(runs):
        _loss_lines(top, run, index, alone=len(runs) == 1)
        rate = thin(run.curves.lr)
        bottom.plot(rate.x, rate.y, color=INK if len(runs) == 1 else _hue(index), ls=_dash(index), lw=1.3)
    _loss_axis(top)
    top.legend(frameon=False, loc="upper right", labelcolor=INK, borderaxespad=0.2, handlelength=2.4)
    _title(top, "Loss, nats per token (logarithmic)")
    _title(bottom, "Learning rate")
    bottom.set_ylim(bottom=0)
    bottom.yaxis.set_major_locator(MaxNLocator(3))
    bottom.yaxis.set_major_formatter(lambda y, _: _round_tick(y))
    _token_axis(bottom)
    return figure


def gradient_norm(runs: Sequence[RunContent], legend: bool = False) -> str:
    """Draw the norm of the gradient before clipping; with a legend where no picture above has one."""
    return _one([(run.name, run.curves.grad_norm) for run in runs], "Gradient norm before clipping", "norm", legend)


def speed(runs: Sequence[RunContent]) -> str:
    """Draw the tokens trained on per second."""
    return _one([(run.name, run.curves.tokens_per_s) for run in runs], "Tokens per second", "speed")


def _one(curves: Sequence[tuple[str, Series]], title: str, mark: str, legend: bool = False) -> str:
    from matplotlib.ticker import MaxNLocator

    figure = _figure(HALF, 2.1, left=0.55)
    axes = figure.subplots()
    for index, (name, series) in enumerate(curves):
        thinned = thin(series)
        axes.plot(thinned.x, thinned.y, color=_hue(index), ls=_dash(index), lw=1.1, label=name)
    if legend:
        axes.legend(frameon=False, loc="upper right", labelcolor=INK, fontsize=8.5)
    _title(axes, title)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(lambda y, _: _round_tick(y))
    _token_axis(axes)
    return _svg(figure, mark)


def _loss_lines(axes: Axes, run: RunContent, index: int, alone: bool) -> None:
    """One run: training and validation in two colours. Several: a colour each, training thin behind validation."""
    train, val, floor = thin(run.curves.train_loss), run.curves.val_loss, run.curves.floor
    hue = TRAIN if alone else _hue(index)
    axes.plot(train.x, train.y, color=hue, lw=1.0 if alone else 0.6, label="training" if alone else None)
    every = max(1, len(val.x) // MARKS)
    marked = {"marker": "o", "markevery": every, "ms": 3.5, "lw": 1.6, "ls": "solid" if alone else _dash(index)}
    if val.x:
        axes.plot(val.x, val.y, color=VAL if alone else hue, label="validation" if alone else run.name, **marked)
    if floor is not None and alone:
        axes.axhline(floor, color=INK, lw=1.1, ls=(0, (4, 3)), label="entropy of the test text")
    for number, (who, loss) in enumerate(run.curves.published if alone else ()):
        axes.axhline(loss, color=LINES[2 + number], lw=1.1, ls=DASHES[2 + number], label=f"{who}: {loss:g}")


def _loss_axis(axes: Axes) -> None:
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    shown = [tick for tick in LOSS_TICKS if low <= tick <= high]
    axes.yaxis.set_major_locator(FixedLocator(shown) if len(shown) > 3 else MaxNLocator(5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")


def _hue(index: int) -> str:
    return LINES[index % len(LINES)]


def _dash(index: int) -> str | tuple[int, tuple[float, ...]]:
    return DASHES[index % len(DASHES)]


def _figure(width: float, height: float, left: float) -> Figure:
    """Return a figure of a size in inches with fixed margins: several in a column have their axes below each other."""
    from matplotlib.figure import Figure  # slow to import, and needed only where something is drawn

    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(left=left / width, right=1 - 0.28 / width, top=1 - 0.3 / height, bottom=0.52 / height)
    return figure


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=10.5, color=INK)
    axes.grid(color=RULE, lw=0.6)
    axes.tick_params(colors=INK, labelsize=10, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(INK)


def _token_axis(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda x, _: _round_tick(x))
    axes.set_xlabel("tokens trained on", fontsize=10, color=INK)


def _round_tick(x: float) -> str:
    """Return 2.5 M rather than 2.50 M, as a tick is exact, and 2 × 10⁻³ rather than 0.002."""
    if 0 < x < 0.01:
        return formatting.number(x, 2)
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if x >= size:
            return f"{x / size:g} {unit}"
    return f"{x:g}"


def _svg(figure: Figure, mark: str) -> str:
    """Return the figure's SVG element: named within the page by ``mark``, sized and coloured by its style sheet."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": mark}):
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', svg, count=1)
    svg = re.sub(r" <defs>\s*<style.*?</defs>\n|font-family: [^;]*; ", "", svg, flags=re.DOTALL)
    svg = re.sub(r'id="|(?<=[("])#(?=[\w])', lambda m: f"{m[0]}{mark}-", svg)
    svg = re.sub(r"(\d\.\d\d)\d+", r"\1", svg)
    return re.sub("|".join(VARIABLES), lambda m: f"var({VARIABLES[m[0]]}, {m[0]})", svg).strip()


def pictures_of(run: RunContent) -> dict[str, Figure]:
    """Return a run's figures by name: ``attention``, ``positions``, ``texts``."""
    drawn: dict[str, Figure] = {}
    if run.attention is not None:
        drawn["attention"] = run_data.draw(run.attention)
    if run.positions is not None:
        drawn["positions"] = draw_positions(run.positions.points)
    if run.quality is not None and can_be_drawn(run.quality):
        drawn["texts"] = draw_text_quality(run.quality)
    return drawn
