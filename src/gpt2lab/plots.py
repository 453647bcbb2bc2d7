"""Every figure that gpt2lab draws, with one palette.

Lines differ in color (Okabe & Ito 2008), in lightness and in dashes, so that they can be told apart by the
color-blind and in grayscale. Each function takes plain values (a curve is a sequence of points) and returns a
matplotlib figure; `png`, `svg` and `page_svg` turn a figure into a file's content.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2lab import formatting
from gpt2lab.files import write_atomically

if TYPE_CHECKING:  # matplotlib is slow to import, and needed only where something is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]
"""A curve: x and y of each point."""

TRAIN, VAL = "#0072b2", "#d55e00"
LINES = (TRAIN, VAL, "#009e73", "#aa4499", "#e69f00", "#56b4e9")
DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
MARKERS = "osD^vP*X"
INK, RULE = "#444444", "#cccccc"
VARIABLES = {INK: "--figure-ink", RULE: "--figure-rule", **{color: f"--line-{n}" for n, color in enumerate(LINES, 1)}}
"""The CSS variable that replaces each color in `page_svg`."""

WIDE, NARROW, HALF, PAPER = 9.6, 4.0, 4.7, 7.0
"""Widths in inches: for a web page, for a phone, for two figures side by side, for paper."""
HEIGHTS = {WIDE: 4.9, NARROW: 4.2, PAPER: 3.5}
MAX_POINTS = 400
"""Points of a curve; a longer one is drawn as means over consecutive points."""
MAX_MARKS = 20
LOSS_TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12)


def losses(
    runs: Mapping[str, Mapping[str, Points]],
    width: float = PAPER,
    x_label: str = "tokens trained on",
    floor: float | None = None,
    references: Mapping[str, float] | None = None,
) -> Figure:
    """Draw training and validation loss, and below them the learning rate.

    Args:
        runs: The curves ``train_loss``, ``val_loss`` and ``lr`` of each run by its name.
        width: Width in inches, one of `HEIGHTS`.
        x_label: What the curves' x counts.
        floor: Lowest loss that is possible; drawn for a single run, as ``references`` are.
        references: Other losses to draw as horizontal lines, by label.
    """
    figure = new_figure(width, HEIGHTS[width], left=0.8)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3.6, 1))
    figure.subplots_adjust(hspace=0.2)
    alone = len(runs) == 1
    for index, (name, curves) in enumerate(runs.items()):
        style = _style(index)
        train = {"color": TRAIN, "lw": 1.0, "label": "training"} if alone else {"color": style["color"], "lw": 0.6}
        val = {"color": VAL, "label": "validation"} if alone else {**style, "label": name}
        top.plot(*_xy(thin(curves["train_loss"])), **train)
        if points := curves["val_loss"]:
            top.plot(*_xy(points), lw=1.6, marker="o", ms=3.5, markevery=max(1, len(points) // MAX_MARKS), **val)
            if alone:
                text = {"textcoords": "offset points", "xytext": (-4, 8), "ha": "right", "color": VAL}
                top.annotate(f"{points[-1][1]:.3f}", points[-1], **text)
        bottom.plot(*_xy(thin(curves["lr"])), lw=1.3, **style | ({"color": INK} if alone else {}))
    if alone:
        if floor is not None:
            top.axhline(floor, color=INK, lw=1.1, ls=(0, (4, 3)), label="entropy of the test text")
        for index, (label, loss) in enumerate((references or {}).items(), start=2):
            top.axhline(loss, lw=1.1, label=f"{label}: {loss:g}", **_style(index))
    _log_loss_axis(top)
    frame(top, title="Loss, nats per token (logarithmic)")
    top.legend(frameon=False, loc="upper right", labelcolor=INK, borderaxespad=0.2, handlelength=2.4)
    frame(bottom, x_label, title="Learning rate")
    _axes_from_zero(bottom, y_ticks=3)
    return figure


def over_tokens(curves: Mapping[str, Points], title: str, legend: bool = False) -> Figure:
    """Draw a quantity such as the gradient norm over the tokens trained on, a curve for each run."""
    figure = new_figure(HALF, 2.1, left=0.55)
    axes = figure.subplots()
    for index, (name, points) in enumerate(curves.items()):
        axes.plot(*_xy(thin(points)), lw=1.1, label=name, **_style(index))
    if legend:
        axes.legend(frameon=False, loc="upper right", labelcolor=INK, fontsize=8.5)
    frame(axes, "tokens trained on", title=title)
    _axes_from_zero(axes, y_ticks=4)
    return figure


def by_distance(curves: Mapping[str, Sequence[Points]], x_label: str, y_label: str, title: str = "") -> Figure:
    """Draw losses over a logarithmic axis of positions or distances.

    Args:
        curves: The curves of each line's runs, by its name; see `_mean_and_range`. A single line has no legend.
        x_label: What the curves' x counts.
        y_label: Which loss it is.
        title: Written above.
    """
    alone = len(curves) == 1
    figure = new_figure(5.4, 2.4) if alone else new_figure(6.2, 3.8)
    axes = figure.subplots()
    _mean_and_range(axes, curves)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    frame(axes, x_label, y_label, title)
    if not alone:
        _legend_above(figure)
    return figure


def losses_over_costs(panels: Mapping[str, Mapping[str, Sequence[Points]]]) -> Figure:
    """Draw validation losses of several arms against different costs, side by side.

    Args:
        panels: By the cost's name (steps, tokens, seconds), the curves of each arm's runs; see `_mean_and_range`.
    """
    figure = new_figure(10.5, 3.7)
    for index, (cost, curves) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), index + 1)
        _mean_and_range(axes, curves)
        frame(axes, cost, "" if index else "validation loss, nats per token")
        _log_loss_axis(axes)
        _few_ticks(axes.xaxis, 4)
    _legend_above(figure)
    return figure


def losses_over_parameters(arms: Mapping[str, Points]) -> Figure:
    """Draw the best validation loss of each run against its number of parameters, a marker for each arm."""
    figure = new_figure(6.2, 3.8)
    axes = figure.subplots()
    for index, (arm, points) in enumerate(arms.items()):
        style = _style(index, marked=True) | {"ls": "none", "mfc": "none", "ms": 7}
        axes.plot(*_xy(points), label=arm, **style)
    axes.set_xscale("log")
    frame(axes, "parameters", "best validation loss, nats per token")
    for axis, ticks in ((axes.xaxis, 4), (axes.yaxis, 6)):
        _few_ticks(axis, ticks)
    _legend_above(figure)
    return figure


def _mean_and_range(axes: Axes, curves: Mapping[str, Sequence[Points]]) -> None:
    """Draw the mean of each line's curves point by point, with a band from the lowest to the highest."""
    for index, (name, runs) in enumerate(curves.items()):
        columns = list(zip(*filter(None, runs), strict=False))  # the shortest run ends the line
        if not columns:
            continue
        xs = [sum(x for x, _ in points) / len(points) for points in columns]
        ys = [[y for _, y in points] for points in columns]
        style = _style(index, marked=True) | {"lw": 1.5, "ms": 4, "markevery": max(1, len(xs) // 8)}
        axes.plot(xs, [sum(y) / len(y) for y in ys], label=name, **style)
        axes.fill_between(xs, list(map(min, ys)), list(map(max, ys)), color=style["color"], alpha=0.15, lw=0)


STRATEGIES = {
    "greedy": (INK, "X", (8, 4)),
    "temperature": (LINES[0], "o", (-9, 8)),
    "top-k": (LINES[1], "s", (8, -12)),
    "nucleus": (LINES[2], "^", (7, -4)),
}
"""Color and marker of each family of decoding strategies, and the offset of its labels in points."""


def text_quality(
    held_out: Mapping[str, float], families: Mapping[str, Mapping[str, Mapping[str, float]]], title: str = ""
) -> Figure:
    """Draw self-BLEU over perplexity, and over the share of grammatical texts where that was measured.

    Each family of decoding strategies is a line through its settings, in the style of figure 6 of Holtzman et al. 2020.

    Args:
        held_out: The metrics of the held-out text.
        families: The metrics of each setting (such as 0.9), by the family's name (a key of `STRATEGIES`).
        title: Written above.
    """
    panels = {"perplexity": "perplexity of the texts under the model (logarithmic)"}
    settings = [metrics for family in families.values() for metrics in family.values()]
    if all("grammatical" in metrics for metrics in (held_out, *settings)):
        panels["grammatical"] = "share of grammatical texts"
    figure = new_figure(8.2 if len(panels) > 1 else 5.4, 3.6)
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (metric, label) in zip(row, panels.items(), strict=True):
        x, y = held_out[metric], held_out["self_bleu"]
        axes.axvline(x, color=RULE, lw=1.2, ls="--")
        axes.axhline(y, color=RULE, lw=1.2, ls="--")
        axes.plot(x, y, "*", color="black", ms=14, ls="none", label="held-out text", zorder=3)
        for family, (color, marker, offset) in STRATEGIES.items():
            points = [(m[metric], m["self_bleu"]) for m in families.get(family, {}).values()]
            if points:
                axes.plot(*_xy(points), color=color, marker=marker, ms=6.5, lw=1.1, label=family)
            for setting, point in zip(families.get(family, ()), points, strict=True):
                axes.annotate(setting, point, textcoords="offset points", xytext=offset, fontsize=8, color=color)
        frame(axes, label)
        axes.margins(0.1, 0.08)
    left = row[0]
    left.set_xscale("log")
    _few_ticks(left.xaxis, 5)
    left.invert_yaxis()
    left.set_ylabel("self-BLEU: more diverse upwards", color=INK)
    left.set_title(title, loc="left", fontsize=10, color=INK)
    left.legend(frameon=False, loc="lower right", fontsize=8.5)
    return figure


def attention(tokens: Sequence[str], layers: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Draw attention weights side by side, dark where the weight is large.

    Args:
        tokens: Labels of the T tokens.
        layers: (T, T) weights by their title; row i holds the weights of query i.
    """
    from matplotlib.colors import PowerNorm

    figure = new_figure(3.6 * len(layers) + 0.3, 3.7)
    positions = range(len(tokens))
    for index, (title, weights) in enumerate(layers.items()):
        axes = figure.add_subplot(1, len(layers), index + 1)
        axes.imshow(weights, cmap="Greys", norm=PowerNorm(0.5, 0.0, 1.0), interpolation="nearest")
        axes.set_title(title, fontsize=8, loc="left")
        axes.set_xticks(positions, tokens, rotation=90, fontsize=6)
        axes.set_yticks(positions, [""] * len(tokens) if index else tokens, fontsize=6)
        axes.tick_params(length=0)
        axes.set_xlabel("keys", fontsize=7)
        axes.set_ylabel("" if index else "queries", fontsize=7)
    return figure


def token_statistics(counts: Sequence[int], lengths: Sequence[int], edges: Sequence[int], title: str) -> Figure:
    """Draw the frequency of tokens over their rank, and a histogram of the documents' lengths.

    Args:
        counts: Occurrences of each token that occurs, most frequent first.
        lengths: Tokens of each document.
        edges: Edges of the histogram's bins.
        title: Written above.
    """
    figure = new_figure(9.0, 3.8)
    left, right = figure.subplots(1, 2)
    left.loglog(range(1, len(counts) + 1), counts, color=TRAIN, lw=1.6)
    frame(left, "rank of the token", "occurrences")
    if len(lengths):
        right.hist(lengths, bins=edges, color=TRAIN)
    right.set_xscale("log")
    frame(right, "tokens per document", "documents")
    figure.suptitle(title, fontsize=10, color=INK)
    return figure


def thin(points: Points, limit: int = MAX_POINTS) -> Points:
    """Return the means over ``limit`` runs of consecutive points at most; a short curve stays as it is."""
    size = points_per_mean(len(points), limit)
    if size <= 1:
        return points
    pieces = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in piece) / len(piece), sum(y for _, y in piece) / len(piece)) for piece in pieces]


def points_per_mean(length: int, limit: int = MAX_POINTS) -> int:
    """Return how many points of a curve of this length `thin` averages into one."""
    return -(-length // limit)


def _style(index: int, marked: bool = False) -> dict[str, Any]:
    """Return the color and the dashes of a line, and its marker if it has one."""
    style = {"color": LINES[index % len(LINES)], "ls": DASHES[index % len(DASHES)]}
    return style | ({"marker": MARKERS[index % len(MARKERS)]} if marked else {})


def _xy(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def new_figure(width: float, height: float, left: float | None = None) -> Figure:
    """Return a figure of a size in inches; ``left`` fixes its margins, so that figures in a column line up."""
    from matplotlib.figure import Figure

    if left is None:
        return Figure(figsize=(width, height), layout="constrained")
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(left=left / width, right=1 - 0.28 / width, top=1 - 0.3 / height, bottom=0.52 / height)
    return figure


def frame(axes: Axes, x_label: str = "", y_label: str = "", title: str = "") -> None:
    """Label the axes, and give them the look that all share: a grid and a baseline."""
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.set_title(title, loc="left", fontsize=10.5, color=INK)
    axes.set_axisbelow(True)
    axes.grid(color=RULE, lw=0.6)
    axes.tick_params(colors=INK, length=0, which="both")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(INK)


def _axes_from_zero(axes: Axes, y_ticks: int) -> None:
    axes.set(xlim=(0, None), ylim=(0, None))
    _few_ticks(axes.xaxis, 5)
    _few_ticks(axes.yaxis, y_ticks)


def _log_loss_axis(axes: Axes) -> None:
    """Make the y axis logarithmic: most of a run is spent on the last few percent of the loss."""
    from matplotlib.ticker import FixedLocator

    axes.set_yscale("log")
    _few_ticks(axes.yaxis, 5)
    low, high = axes.get_ylim()
    shown = [tick for tick in LOSS_TICKS if low <= tick <= high]
    if len(shown) > 3:
        axes.yaxis.set_major_locator(FixedLocator(shown))


def _few_ticks(axis: Any, number: int) -> None:
    """Give an axis, logarithmic or not, a few ticks with plain numbers."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    axis.set_major_locator(MaxNLocator(number))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))


def _tick(x: float) -> str:
    """Return 2.5 M rather than 2.50 M, as a tick is exact, and 2 × 10⁻³ rather than 0.002."""
    if 0 < x < 0.01:
        return formatting.number(x, 2)
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if x >= size:
            return f"{x / size:g} {unit}"
    return f"{x:g}"


def _legend_above(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = min(len(labels), 4 if len(figure.axes) > 1 else 2)
    figure.legend(handles, labels, loc="outside upper left", ncols=max(1, columns), frameon=False, fontsize=9)


@dataclass(frozen=True)
class Picture:
    """A figure with its caption, in a report."""

    figure: Figure
    caption: str
    wide: bool = False
    """Whether it needs the whole width of a page."""

    @cached_property
    def png(self) -> bytes:
        """The figure as PNG."""
        return png(self.figure)

    @property
    def base64(self) -> str:
        """The PNG for a data URL."""
        return base64.b64encode(self.png).decode("ascii")


def png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    return picture.getvalue()


def write_png(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, atomically."""
    write_atomically(path, png(figure))


def svg(figure: Figure, salt: str = "report", **options: Any) -> str:
    """Return a figure as an SVG file whose text is text, in matplotlib's own font."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, **options)
    return buffer.getvalue()


def page_svg(figure: Figure, prefix: str) -> str:
    """Return a figure as an SVG element that takes its size, font and colors from the style sheet of its page.

    Each color becomes a variable of the style sheet that falls back to the fixed color, so that one drawing suits
    light mode, dark mode and paper.

    Args:
        figure: The figure.
        prefix: Put before the element's ids, which must be unique in the page.
    """
    element = svg(figure, prefix, transparent=True)
    element = element[element.index("<svg") :]
    element = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', element, count=1)
    element = re.sub(r" <metadata>.*?</metadata>\n", "", element, flags=re.DOTALL)
    element = re.sub(r" <defs>\s*<style.*?</defs>\n|font-family: [^;]*; ", "", element, flags=re.DOTALL)
    element = re.sub(r'id="|(?<=[("])#(?=[\w])', lambda m: f"{m[0]}{prefix}-", element)
    element = re.sub(r"(\d\.\d\d)\d+", r"\1", element)
    return re.sub("|".join(VARIABLES), lambda m: f"var({VARIABLES[m[0]]}, {m[0]})", element).strip()
