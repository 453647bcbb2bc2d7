"""What the tests of training share: small runs, what they wrote, and what they refuse."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2lab.data.dataset import TokenDataset
from gpt2lab.errors import InputError
from gpt2lab.model.config import GPTConfig
from gpt2lab.runs import Run
from gpt2lab.training.config import OptimConfig, TrainConfig, saved_config
from gpt2lab.training.distributed import Interrupted
from gpt2lab.training.loop import Hooks, StepReport, Trainer
from gpt2lab.training.session import train
from gpt2lab.training.setup import Data, Setup, resolve
from ranks import FORKED, begin, quickly

CLOCKS = ("tokens_per_s", "mfu", "peak_memory_mb", "seconds")
"""Columns of metrics.csv that depend on the machine's mood."""
SMALL = GPTConfig(n_layer=2, n_head=2, n_embd=16, n_ctx=16, dropout=0.1)
PLAIN = GPTConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=16, dropout=0.0)


class Alone:
    """A training in a process of its own, which tells each step that it has done and what stopped it."""

    def __init__(self, config: TrainConfig, threads: int, largest_file: int | None) -> None:
        self.told, tell = FORKED.Pipe(duplex=False)
        arguments = (dict(os.environ), config, threads, largest_file, tell)
        self.process = FORKED.Process(target=_train_alone, args=arguments)
        self.process.start()
        tell.close()

    def kill_after(self, steps: int, seconds: float = 0.0) -> None:
        """Kill the process when it has told some steps, and a while later."""
        for _ in range(steps):
            self.told.recv()
        time.sleep(seconds)
        self.process.kill()
        assert self.exit_code() == -signal.SIGKILL

    def last_told(self) -> object:
        """Wait for the end of the process; return what it told last."""
        told = None
        with suppress(EOFError):
            while True:
                told = self.told.recv()
        return told

    def exit_code(self) -> int:
        """Wait for the end of the process."""
        self.process.join(200)
        return self.process.exitcode


def _train_alone(
    environment: dict[str, str], config: TrainConfig, threads: int, largest_file: int | None, tell: Connection
) -> None:
    begin(environment)
    if largest_file is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    with quickly():
        torch.set_num_threads(threads)
        try:
            train(config, Doing(on_step=lambda report: tell.send(report.step)))
        except Interrupted as stop:
            tell.send(str(stop))
            sys.exit(128 + stop.signal)


def small(data: Path, out: Path, **changes: Any) -> TrainConfig:
    """A run of two and a half epochs: 24 steps of 2 x 4 sequences, 16 tokens each, with dropout."""
    options: dict[str, Any] = {
        "model": SMALL, "optim": OptimConfig(lr=1e-2, warmup_steps=4), "steps": 24, "batch_tokens": 128,
        "micro_batch": 4, "log_every": 5, "eval_every": 8, "eval_tokens": 64, "checkpoint_every": 4, "keep_last": 20,
        "precision": "fp32", "compile": "off", "device": "cpu",
    }  # fmt: skip
    return TrainConfig(data=data, out=out, **(options | changes))


def plan(data: Path, **changes: Any) -> Setup:
    """What a small run resolves to."""
    return resolve(small(data, Path("unused"), **changes), TokenDataset(data))


def trainer_of(data: Path, out: Path, **changes: Any) -> Trainer:
    """The trainer of a small run in a directory that exists."""
    setup = plan(data, **changes)
    return Trainer(setup, Data.open(TokenDataset(data), setup.config), Run(out), Hooks())


class Doing(Hooks):
    """Hooks given as functions by name."""

    def __init__(self, **functions: Callable[..., object]) -> None:
        vars(self).update(functions)


def at_step(step: int, act: Callable[[], object]) -> Hooks:
    """Do something after a step."""
    return Doing(on_step=lambda report: act() if report.step == step else None)


def go_on(config: TrainConfig, which: str | int = "last", hooks: Hooks | None = None, **changes: Any) -> Run:
    """Resume a run, with other options on top."""
    return train(dataclasses.replace(config, resume=str(which), **changes), hooks)


def interrupted(config: TrainConfig, step: int, number: signal.Signals = signal.SIGTERM) -> Interrupted:
    """Train, with a signal after a step; return what stopped the run."""
    with pytest.raises(Interrupted) as stopped:
        train(config, at_step(step, lambda: signal.raise_signal(number)))
    return stopped.value


def reported(config: TrainConfig) -> tuple[Run, list[StepReport]]:
    """Train; return the run with the report of each step."""
    reports: list[StepReport] = []
    return train(config, Doing(on_step=reports.append)), reports


def refusal(act: Callable[[], object], said: str) -> InputError:
    """The `InputError` that something raises: one line that says why."""
    with pytest.raises(InputError, match=said) as caught:
        act()
    assert "\n" not in str(caught.value)
    return caught.value


def copy_of(run: Run, folder: Path) -> tuple[Run, TrainConfig]:
    """A copy of a run to play with, and its configuration."""
    shutil.copytree(run.path, folder)
    return Run(folder), dataclasses.replace(saved_config(run).as_asked(), out=folder)


def rows(run: Run) -> list[dict[str, str]]:
    """The rows of metrics.csv as they are written, less the clocks."""
    with (run.path / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if k not in {*CLOCKS, "crc32"}} for row in csv.DictReader(file)]


def column(run: Run, name: str) -> list[float]:
    """The values of a column of metrics.csv, where there are any."""
    return [value for row in run.metrics() if (value := row[name]) is not None]


def log_of(run: Run) -> str:
    """The text of train.log."""
    return (run.path / "train.log").read_text(encoding="utf-8")


def digests(run: Run, step: int = 24) -> dict[str, str]:
    """SHA-256 of the weights and of the optimizer state after a step."""
    names = ("model.safetensors", "optimizer.safetensors")
    return {name: hashlib.sha256((checkpoint(run, step) / name).read_bytes()).hexdigest() for name in names}


def checkpoint(run: Run, step: int) -> Path:
    """The folder of a checkpoint."""
    return run.checkpoints / f"step_{step:08d}"


def saved_steps(run: Run) -> list[int]:
    """The steps of the checkpoints in a run."""
    return sorted(int(p.name.removeprefix("step_")) for p in run.checkpoints.iterdir() if p.name[5:].isdigit())


def hidden(run: Run) -> list[Path]:
    """The temporary files in a run."""
    return [path for path in run.path.rglob("*") if path.name.startswith(".")]


def flip(path: Path, position: int = -1) -> None:
    """Change a bit of a file, by default in its last byte."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    """Cut off the last two bytes of a file."""
    path.write_bytes(path.read_bytes()[:-2])


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and bytes of every file."""
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_same_run(run: Run, unbroken: Run, step: int = 24) -> None:
    """A run is bit for bit another: its losses as written, weights and optimizer state."""
    assert rows(run) == rows(unbroken)
    assert digests(run, step) == digests(unbroken, step)
