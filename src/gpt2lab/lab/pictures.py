"""Evaluations that are more than a figure, kept in the run as JSON with a picture beside it.

positions.json    {"step", "split", "protocol", "losses": [nats, ...], "tokens": [count, ...]}: entry t - 1 is of the
                  tokens with t tokens before them; a loss is null where no token was scored
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2lab.errors import InputError
from gpt2lab.evaluation import PositionLosses
from gpt2lab.files import read_json, write_atomically, write_json
from gpt2lab.lab.style import INK, RULE, TRAIN
from gpt2lab.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POSITIONS = "positions.json"
SMOOTHED = 40
"""Points that a long curve is drawn with: means over stretches that grow with the position, as its axis does."""


@dataclass(frozen=True)
class PositionCurve:
    """A run's loss by position, as it is drawn."""

    step: int
    split: str
    protocol: str
    points: tuple[tuple[float, float], ...]
    """Tokens before a token in its window, and the loss on it; see `stretches`."""


def saved_positions(run: Run) -> PositionCurve | None:
    """Return what `save_positions` kept of the newest step; None where there is none.

    Raises:
        InputError: The file is damaged.
    """
    path = run.newest_evaluation(POSITIONS)
    if path is None:
        return None
    values = read_json(path)
    try:
        losses = [math.nan if loss is None else float(loss) for loss in values["losses"]]
        points = tuple(zip(*stretches(losses, values["tokens"]), strict=True))
        return PositionCurve(int(values["step"]), str(values["split"]), str(values["protocol"]), points)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path}: not a curve of losses by position; measure the run again") from error


def save_positions(run: Run, step: int, split: str, curve: PositionLosses) -> tuple[Path, Path]:
    """Write ``positions.json`` and ``positions.png`` for a step's weights; return their paths."""
    folder = run.evaluations(step)
    losses = [loss if math.isfinite(loss) else None for loss in curve.losses]
    kept = {"step": step, "split": split, "protocol": curve.protocol, "losses": losses, "tokens": curve.tokens}
    write_json(folder / POSITIONS, kept)
    points = list(zip(*stretches(curve.losses, curve.tokens), strict=True))
    write_png(folder / "positions.png", draw_positions(points, f"{run.path.name}, step {step:,}, {split}"))
    return folder / POSITIONS, folder / "positions.png"


def draw_positions(points: Sequence[tuple[float, float]], title: str = "") -> Figure:
    """Draw the loss over the position, both axes as a reader compares them: positions in octaves, losses linear."""
    from matplotlib.figure import Figure  # slow to import, and needed only where something is drawn

    figure = Figure(figsize=(5.4, 2.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*points, strict=True), color=TRAIN, lw=1.6, marker="o", ms=3)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("tokens before it in the window", color=INK)
    axes.set_ylabel("loss, nats per token", color=INK)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    dress(axes)
    return figure


def dress(axes: Axes) -> None:
    """Give a plot the frame that all of them have: a grid, two spines, no ticks."""
    axes.grid(color=RULE, lw=0.6)
    axes.tick_params(colors=INK, length=0, which="both")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def stretches(losses: Sequence[float], tokens: Sequence[int]) -> tuple[list[float], list[float]]:
    """Return the mean position and mean loss of stretches between evenly spaced powers, weighted by tokens."""
    last = len(losses)
    edges = sorted({round(last ** (n / SMOOTHED)) for n in range(SMOOTHED)} | {last + 1})
    points: list[tuple[float, float]] = []
    for begin, end in pairwise(edges):
        places = [t for t in range(begin, end) if tokens[t - 1]]
        if total := sum(tokens[t - 1] for t in places):
            loss = sum(losses[t - 1] * tokens[t - 1] for t in places) / total
            points.append((sum(places) / len(places), loss))
    return [x for x, _ in points], [y for _, y in points]


def write_png(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, atomically."""
    write_atomically(path, png(figure))


def png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    return picture.getvalue()
