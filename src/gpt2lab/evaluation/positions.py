"""How much a model gains from its context: the mean loss by position in the window.

    loss(t) = mean of -ln p(token | the t tokens before it in its window),    t = 1 ... context

The curve of a model that uses its context falls; where it turns flat, more context brings nothing. Windows do not
overlap (stride = context), so every position is averaged over equally many tokens.

A run keeps the curve as ``positions.json``, with a plot beside it:

    {"step", "split", "protocol", "losses": [nats, ...], "tokens": [count, ...]}

Entry t - 1 of both lists belongs to position t; a loss is null where no token was scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpt2lab import plots
from gpt2lab.data.shards import TokenStream
from gpt2lab.errors import InputError
from gpt2lab.evaluation.likelihood import require_causal_mask
from gpt2lab.evaluation.perplexity import cut_windows, losses_by_batch, window_length
from gpt2lab.files import read_json, write_json
from gpt2lab.model.gpt import GPT
from gpt2lab.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POSITIONS_FILE = "positions.json"
MAX_POSITION_POINTS = 40
"""Points of a curve of losses by position, evenly spaced on the logarithmic axis."""


@dataclass(frozen=True)
class PositionLosses:
    """The mean loss at each position; entry t - 1 belongs to the tokens with t tokens before them."""

    losses: tuple[float, ...]
    """Mean loss in nats; NaN where no token was scored."""
    tokens: tuple[int, ...]
    """Number of tokens scored."""
    by_document: bool
    """Whether windows stay within documents."""

    @property
    def protocol(self) -> str:
        """How the curve was measured, in one sentence."""
        across = "within documents" if self.by_document else "across document boundaries"
        return (
            f"Mean loss by the number of preceding tokens in the window, over {sum(self.tokens):,} tokens in "
            f"non-overlapping windows of {len(self.losses):,} tokens {across}."
        )


def loss_by_position(
    model: GPT,
    stream: TokenStream,
    context: int | None = None,
    batch_size: int = 8,
    eot: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PositionLosses:
    """Measure the mean loss at each position of the window. Arguments and errors are those of `perplexity_of`."""
    require_causal_mask(model.config)
    context = window_length(model, stream, context)
    windows = cut_windows(stream, context, context, eot)
    sums, counts = np.zeros(context), np.zeros(context, dtype=np.int64)
    for positions, losses in losses_by_batch(model, stream, windows, batch_size, progress):
        sums += np.bincount(positions, losses, minlength=context)
        counts += np.bincount(positions, minlength=context)
    with np.errstate(invalid="ignore"):
        means = sums / counts
    return PositionLosses(tuple(means.tolist()), tuple(counts.tolist()), eot is not None)


@dataclass(frozen=True)
class PositionCurve:
    """The loss by position of a run, as it is plotted."""

    step: int
    split: str
    protocol: str
    points: tuple[tuple[float, float], ...]
    """Position (the number of tokens before) and loss; see `position_points`."""


def save_positions(run: Run, step: int, split: str, curve: PositionLosses) -> tuple[Path, Path]:
    """Write ``positions.json`` and ``positions.png`` for the weights of a step; return their paths."""
    file = run.evaluations(step) / POSITIONS_FILE
    losses = [loss if math.isfinite(loss) else None for loss in curve.losses]
    saved = {"step": step, "split": split, "protocol": curve.protocol, "losses": losses, "tokens": curve.tokens}
    write_json(file, saved)
    points = position_points(curve.losses, curve.tokens)
    figure = draw_positions(points, f"{run.path.name}, step {step:,}, {split}")
    plots.write_png(file.with_suffix(".png"), figure)
    return file, file.with_suffix(".png")


def saved_positions(run: Run) -> PositionCurve | None:
    """Return the curve that `save_positions` wrote for the newest step; None if there is none.

    Raises:
        InputError: The file is damaged.
    """
    path = run.latest_evaluation(POSITIONS_FILE)
    if path is None:
        return None
    saved = read_json(path)
    try:
        losses = [math.nan if loss is None else float(loss) for loss in saved["losses"]]
        points = tuple(position_points(losses, saved["tokens"]))
        return PositionCurve(int(saved["step"]), str(saved["split"]), str(saved["protocol"]), points)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path}: not a curve of losses by position; run gpt2lab eval positions again") from error


def draw_positions(points: plots.Points, title: str = "") -> Figure:
    """Plot a curve of losses by position."""
    return plots.by_distance({"": [points]}, "tokens before it in the window", "loss, nats per token", title)


def position_points(losses: Sequence[float], tokens: Sequence[int]) -> list[tuple[float, float]]:
    """Return the mean position and the mean loss, weighted by tokens, of intervals that grow by a constant factor."""
    last = len(losses)
    edges = sorted({round(last ** (n / MAX_POSITION_POINTS)) for n in range(MAX_POSITION_POINTS)} | {last + 1})
    points: list[tuple[float, float]] = []
    for begin, end in pairwise(edges):
        positions = [t for t in range(begin, end) if tokens[t - 1]]
        if total := sum(tokens[t - 1] for t in positions):
            loss = sum(losses[t - 1] * tokens[t - 1] for t in positions) / total
            points.append((sum(positions) / len(positions), loss))
    return points
