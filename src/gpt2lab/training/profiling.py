"""A trace of a few steps: what ran when, on the processor and on the GPU.

The file is for https://ui.perfetto.dev or chrome://tracing. A window is short, since a trace of a few steps of a large
model takes hundreds of megabytes, and recording slows the steps it records.
"""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType

import torch

from gpt2lab.files import temporary_name
from gpt2lab.runs import Run

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
        path = Run.unused(self._folder / f"trace_{self._steps[0]}-{self._steps[-1]}.json")
        beside = temporary_name(path)
        recording.export_chrome_trace(str(beside))
        beside.replace(path)
        log.info("trace of steps %d to %d: %s", self._steps[0], self._steps[-1], path)
