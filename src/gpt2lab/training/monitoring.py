"""Watching over a run: what is not finite stops it before the update, what jumps is noticed before it does harm.

A loss spikes when it lies far above those of the last steps:

    z = (loss - mean) / deviation        over the losses of the last 100 steps; a spike is z > spike_z

Skipping the updates of such steps is what Chowdhery et al. 2022 (PaLM, section 5.1) did by hand. A spiked loss joins
the window like any other, so a level that stays is a spike for a few steps only and then the new normal.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import torch

from gpt2lab import plots
from gpt2lab.files import free_path, temporary_name
from gpt2lab.runs import Run

SPIKE_WINDOW = 100
"""Steps whose losses a new one is compared to."""
SPIKE_FROM = 20
"""Losses that are needed for a comparison."""
LEAST_DEVIATION = 0.01
"""Share of the mean that the deviation is taken to be at least: on a plateau every rise is many deviations."""
NAMED_WINDOWS = 8


class Spike(NamedTuple):
    """How far a loss lies above those before it."""

    mean: float
    z: float


def find_spike(loss: float, recent: Sequence[float], threshold: float) -> Spike | None:
    """Return by how much a loss spikes; None where it does not, or where there is too little to compare it to."""
    if len(recent) < SPIKE_FROM:
        return None
    mean = statistics.fmean(recent)
    z = (loss - mean) / max(statistics.pstdev(recent, mean), LEAST_DEVIATION * abs(mean))
    return Spike(mean, z) if z > threshold else None


def remember(loss: float, recent: list[float]) -> None:
    """Add a loss to the window in place; the oldest falls out."""
    recent.append(loss)
    del recent[:-SPIKE_WINDOW]


def first_broken(losses: Sequence[Sequence[float]]) -> tuple[int, int] | None:
    """Return rank and micro-step of the first loss that is not finite, of losses by both; None where all are."""
    every = ((rank, index, loss) for rank, row in enumerate(losses) for index, loss in enumerate(row))
    return next(((rank, index) for rank, index, loss in every if not math.isfinite(loss)), None)


def name_windows(windows: np.ndarray) -> str:
    """Return the numbers of windows of the training split for a message, such as ``windows 3, 17, 5 and 9 more``."""
    named = ", ".join(str(window) for window in windows[:NAMED_WINDOWS])
    more = f" and {len(windows) - NAMED_WINDOWS} more" if len(windows) > NAMED_WINDOWS else ""
    return f"window{'s' if len(windows) > 1 else ''} {named}{more}"


def draw(run: Run, path: Path | None = None) -> Path:
    """Draw ``curves.png`` from ``metrics.csv``, atomically; return its path."""
    path = path or run.path / "curves.png"
    rows = run.metrics()
    curves = {
        name: [(step, y) for row in rows if (step := row["step"]) is not None and (y := row[name]) is not None]
        for name in ("train_loss", "val_loss", "lr")
    }
    plots.write_png(path, plots.losses({"": curves}, x_label="step"))
    return path


log = logging.getLogger("gpt2lab")


class Profiler:
    """Records the steps of a window; used around the loop, so that an interrupted window is written too."""

    def __init__(self, steps: range | None, folder: Path, device: torch.device) -> None:
        self._steps, self._folder, self._device = steps, folder, device
        self._recording: torch.profiler.profile | None = None

    def __enter__(self) -> Profiler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()

    def before(self, step: int) -> None:
        """Begin to record where the window begins with this step, counted from 1."""
        if self._steps is not None and step == self._steps[0]:
            activities = [torch.profiler.ProfilerActivity.CPU]
            activities += [torch.profiler.ProfilerActivity.CUDA] if self._device.type == "cuda" else []
            self._recording = torch.profiler.profile(activities=activities, acc_events=True)
            self._recording.start()

    def after(self, step: int) -> None:
        """Write the trace where the window ends with this step."""
        if self._steps is not None and step == self._steps[-1]:
            self._write()

    def _write(self) -> None:
        if self._recording is None or self._steps is None:
            return
        recording, self._recording = self._recording, None
        recording.stop()
        path = free_path(self._folder / f"trace_{self._steps[0]}-{self._steps[-1]}.json")
        beside = temporary_name(path)
        recording.export_chrome_trace(str(beside))
        beside.replace(path)
        log.info("trace of steps %d to %d: %s", self._steps[0], self._steps[-1], path)
