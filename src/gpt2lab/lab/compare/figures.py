"""The pictures of a comparison. Arms differ in colour (Okabe & Ito 2008), in dashes and in markers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from gpt2lab.lab.compare.outcome import Validated
from gpt2lab.lab.compare.results import Comparison
from gpt2lab.lab.pictures import dress
from gpt2lab.lab.style import DASHES, INK, LINES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vP*X"
Points = list[tuple[float, float]]


def draw(comparison: Comparison) -> dict[str, Figure]:
    """Return the figures of a comparison by name; one that has nothing to show is left out.

    All of them show losses per token, so there is none where these do not compare.
    """
    if not comparison.per_token:
        return {}
    figures = {
        "curves": curves(comparison),
        "parameters": parameters(comparison),
        "recall": recall(comparison),
        "positions": positions(comparison),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def curves(comparison: Comparison) -> Figure | None:
    """Draw validation loss against steps, tokens and seconds: the mean over seeds, and the span between extremes."""
    if not any(o.curve for o in comparison.outcomes):
        return None
    figure = _figure(10.5, 3.7)
    panels: list[tuple[str, Callable[[Validated], float]]] = [
        ("step", lambda p: p.step),
        ("tokens trained on", lambda p: p.tokens),
        ("seconds of training", lambda p: p.seconds),
    ]
    for index, (label, x) in enumerate(panels):
        axes = figure.add_subplot(1, 3, index + 1)
        for number, arm in enumerate(comparison.arms):
            _band(axes, [[(x(p), p.loss) for p in o.curve] for o in comparison.of(arm)], number, arm)
        _dress(axes, label, "validation loss, nats per token" if index == 0 else "")
        axes.set_yscale("log")
        _plain_ticks(axes)
    _legend(figure, comparison)
    return figure


def parameters(comparison: Comparison) -> Figure | None:
    """Draw the best validation loss against the number of parameters, a mark for each run and a bar for each arm."""
    sized = [o for o in comparison.outcomes if o.usable and {"parameters", "val_loss"} <= o.figures.keys()]
    if len({o.figures["parameters"] for o in sized}) < 2:
        return None
    figure = _figure(6.2, 3.8)
    axes = figure.add_subplot()
    for number, arm in enumerate(comparison.arms):
        runs = [o for o in sized if o.arm == arm]
        xs, ys = [o.figures["parameters"] for o in runs], [o.figures["val_loss"] for o in runs]
        axes.plot(xs, ys, ls="none", marker=_marker(number), color=_hue(number), mfc="none", ms=7, label=arm)
    axes.set_xscale("log")
    _dress(axes, "parameters", "best validation loss, nats per token")
    _plain_ticks(axes)
    _legend(figure, comparison)
    return figure


def recall(comparison: Comparison) -> Figure | None:
    """Draw the loss on the second occurrence of random tokens against the distance of the two."""
    return _by_distance(comparison, "recall", "tokens since the first occurrence", "loss on the second, nats")


def positions(comparison: Comparison) -> Figure | None:
    """Draw the loss on a token against the number of tokens before it in its window."""
    return _by_distance(comparison, "positions", "tokens before it in the window", "loss, nats per token")


def _by_distance(comparison: Comparison, curve: Literal["recall", "positions"], x: str, y: str) -> Figure | None:
    """Draw a curve of the outcomes over a logarithmic axis of distances; None where no outcome has it."""
    if not any(getattr(o, curve) for o in comparison.outcomes):
        return None
    figure = _figure(6.2, 3.8)
    axes = figure.add_subplot()
    for number, arm in enumerate(comparison.arms):
        _band(axes, [list(getattr(o, curve)) for o in comparison.of(arm)], number, arm)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    _dress(axes, x, y)
    _legend(figure, comparison)
    return figure


def _band(axes: Axes, curves: Sequence[Points], number: int, arm: str) -> None:
    """Draw the mean of several curves, and the span between their lowest and highest."""
    curves = [points for points in curves if points]
    length = min(map(len, curves), default=0)
    if not length:
        return
    xs = [sum(points[i][0] for points in curves) / len(curves) for i in range(length)]
    ys = [[points[i][1] for points in curves] for i in range(length)]
    style = {"color": _hue(number), "ls": DASHES[number % len(DASHES)], "marker": _marker(number)}
    axes.plot(xs, [sum(y) / len(y) for y in ys], lw=1.5, ms=4, markevery=max(1, length // 8), label=arm, **style)
    axes.fill_between(xs, [min(y) for y in ys], [max(y) for y in ys], color=_hue(number), alpha=0.15, lw=0)


def _hue(number: int) -> str:
    return LINES[number % len(LINES)]


def _marker(number: int) -> str:
    return MARKERS[number % len(MARKERS)]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # slow to import, and needed only where something is drawn

    return Figure(figsize=(width, height), layout="constrained")


def _dress(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    dress(axes)


def _plain_ticks(axes: Axes) -> None:
    """Write the few ticks of a logarithmic axis as plain numbers."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _short(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"


def _legend(figure: Figure, comparison: Comparison) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = min(len(labels), 4 if len(figure.axes) > 1 else 2)
    figure.legend(handles, labels, loc="outside upper left", ncols=max(1, columns), frameon=False, fontsize=9)
