"""What the tests of training do again and again: start small runs, go on with them, and look at what they wrote."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2lab.model.config import GPTConfig
from gpt2lab.runs import Run
from gpt2lab.training import loop, monitoring
from gpt2lab.training.config import OptimConfig, TrainConfig
from gpt2lab.training.loop import Hooks, HooksFor, StepReport
from gpt2lab.training.session import resume, start

CLOCKS = ("tokens_per_s", "mfu", "peak_memory_mb", "seconds")
"""Columns of metrics.csv that depend on the machine's mood."""
SMALL = GPTConfig(n_layer=2, n_head=2, n_embd=16, n_ctx=16, dropout=0.1)


@contextmanager
def quickly() -> Iterator[None]:
    """Leave out what costs more than a small run: threads, measuring the machine's peak, pictures (tested apart)."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "peak_flops", lambda device, precision: (1e12, "not measured"))
        patch.setattr(monitoring, "draw", lambda run: run.path)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def small(data: Path, out: Path, **changes: Any) -> TrainConfig:
    """A run of two and a half epochs: 24 steps of 2 x 4 sequences, 16 tokens each, with dropout."""
    options: dict[str, Any] = {
        "model": SMALL,
        "optim": OptimConfig(lr=1e-2, warmup_steps=4),
        "steps": 24,
        "batch_tokens": 128,
        "micro_batch": 4,
        "log_every": 5,
        "eval_every": 8,
        "eval_tokens": 64,
        "checkpoint_every": 4,
        "keep_last": 20,
        "precision": "fp32",
        "compile": "off",
        "device": "cpu",
    }
    return TrainConfig(data=data, out=out, **(options | changes))


def nothing(run: Run) -> Hooks:
    """No hooks."""
    return Hooks()


def go_on(config: TrainConfig, which: str | int = "last", hooks: HooksFor = nothing, **changes: Any) -> Run:
    """Resume a run, with other options on top."""
    return resume(dataclasses.replace(config, resume=str(which), **changes), hooks)


def at_step(step: int, act: Callable[[], None]) -> HooksFor:
    """Do something after a step."""

    def on_step(report: StepReport) -> None:
        if report.step == step:
            act()

    return lambda run: Hooks(on_step=on_step)


def train(config: TrainConfig, hooks: HooksFor = nothing) -> Run:
    """Start a run."""
    return start(config, hooks)


def rows(run: Run) -> list[dict[str, str]]:
    """The rows of metrics.csv as they are written, less the clocks."""
    with (run.path / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCKS} for row in csv.DictReader(file)]


def digests(run: Run, step: int = 24) -> dict[str, str]:
    """SHA-256 of the weights and of the optimiser's state after a step."""
    folder = checkpoint(run, step)
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", "optimizer.safetensors")
    }


def checkpoint(run: Run, step: int) -> Path:
    """The folder of a checkpoint."""
    return run.checkpoints / f"step_{step:08d}"


def saved_steps(run: Run) -> list[int]:
    """The steps of the checkpoints in a run."""
    return sorted(int(p.name.removeprefix("step_")) for p in run.checkpoints.iterdir() if p.name[5:].isdigit())


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and bytes of every file."""
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_same_run(run: Run, unbroken: Run, step: int = 24) -> None:
    """A run is bit for bit another: its losses as written, weights and optimiser."""
    assert rows(run) == rows(unbroken)
    assert digests(run, step) == digests(unbroken, step)
