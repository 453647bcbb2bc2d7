"""Monitoring a run: loss spikes, losses that are not finite, the loss curve, and traces of steps.

A loss is a spike if it is far above the losses of the last steps:

    z = (loss - mean) / standard deviation        over the last 100 steps; a spike has z > spike_z

Chowdhery et al. 2022 (PaLM, section 5.1) skipped the updates around spikes by hand. A spike is added to the window like
any other loss, so a loss that stays high counts as a spike for a few steps only.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gpt2lab import plots
from gpt2lab.files import free_path, temporary_name
from gpt2lab.runs import Run

SPIKE_WINDOW = 100
"""Steps to which a loss is compared."""
SPIKE_FROM = 20
"""Losses needed before any can be a spike."""
LEAST_DEVIATION = 0.01
"""Lower bound of the standard deviation as a fraction of the mean: on a plateau, every rise is many deviations."""
NAMED_WINDOWS = 8


class Spike(NamedTuple):
    """A loss far above the mean of those before it: ``z`` standard deviations."""

    mean: float
    z: float


def find_spike(loss: float, recent: Sequence[float], threshold: float) -> Spike | None:
    """Return the spike if a loss is one; None otherwise, or if too few losses came before it."""
    if len(recent) < SPIKE_FROM:
        return None
    mean = statistics.fmean(recent)
    z = (loss - mean) / max(statistics.pstdev(recent, mean), LEAST_DEVIATION * abs(mean))
    return Spike(mean, z) if z > threshold else None


def remember(loss: float, recent: list[float]) -> None:
    """Append a loss to the window in place, and drop the oldest."""
    recent.append(loss)
    del recent[:-SPIKE_WINDOW]


def first_broken(losses: Sequence[Sequence[float]]) -> tuple[int, int] | None:
    """Return (rank, micro-step) of the first loss that is not finite, or None; ``losses`` is indexed by both."""
    every = ((rank, index, loss) for rank, row in enumerate(losses) for index, loss in enumerate(row))
    return next(((rank, index) for rank, index, loss in every if not math.isfinite(loss)), None)


def name_windows(windows: np.ndarray) -> str:
    """Return the indices of training windows as text, such as ``windows 3, 17, 5 and 9 more``."""
    named = ", ".join(str(window) for window in windows[:NAMED_WINDOWS])
    more = f" and {len(windows) - NAMED_WINDOWS} more" if len(windows) > NAMED_WINDOWS else ""
    return f"window{'s' if len(windows) > 1 else ''} {named}{more}"


def draw(run: Run) -> None:
    """Draw ``curves.png`` from ``metrics.csv``, atomically."""
    rows = run.metrics()
    curves = {
        name: [(step, y) for row in rows if (step := row["step"]) is not None and (y := row[name]) is not None]
        for name in ("train_loss", "val_loss", "lr")
    }
    plots.write_png(run.path / "curves.png", plots.losses({"": curves}, x_label="step"))


log = logging.getLogger("gpt2lab")


@contextmanager
def traced(steps: range, folder: Path, device: torch.device) -> Iterator[None]:
    """Trace a block that runs ``steps`` with torch.profiler; the trace is written even if the block is interrupted."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    profiler = torch.profiler.profile(activities=activities, acc_events=True)
    profiler.start()
    try:
        yield
    finally:
        profiler.stop()
        path = free_path(folder / f"trace_{steps[0]}-{steps[-1]}.json")
        temporary = temporary_name(path)
        profiler.export_chrome_trace(str(temporary))
        temporary.replace(path)
        log.info("trace of steps %d to %d: %s", steps[0], steps[-1], path)
