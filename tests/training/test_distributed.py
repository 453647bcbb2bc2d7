"""How processes meet, agree and check files for one another; whatever fails on one rank ends all, and one says why."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import launch_each, needs_fork, this_rank
from support import at_step, flip, nothing, refusal, saved_steps, small, train
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]

from gpt2lab.data import dataset
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.errors import InputError
from gpt2lab.model.gpt import GPT
from gpt2lab.runs import Run
from gpt2lab.training import checkpoint, loop, monitoring
from gpt2lab.training import setup as setting_up
from gpt2lab.training.config import OptimConfig, TrainConfig
from gpt2lab.training.distributed import Communicator, fail_on_all_ranks, process_group
from gpt2lab.training.loop import Hooks, HooksFor
from gpt2lab.training.setup import resolve

TWO = Communicator(0, 2, 0, "a launch")


@pytest.mark.parametrize(
    ("asked", "comm", "expected"),
    [
        ("auto", Communicator(), "none"),
        ("auto", TWO, "ddp"),
        ("fsdp", TWO, "fsdp"),
        ("none", TWO, "parallel is none, but torchrun started 2 processes"),
        ("ddp", Communicator(), "parallel ddp needs torchrun: torchrun --standalone"),
        ("auto", 3, r"3 processes cannot share the 8 sequences of a step evenly; start 2 or 4, .* such as 144"),
        ("auto", 7, r"start 4 or 8, the nearest that can"),
        ("auto", 9, r"9 processes, but a step of 128 tokens has only 8 sequences of 16; start at most 8"),
    ],
)
def test_the_mode_fits_the_processes_and_they_fit_the_batch(
    data: Path, tmp_path: Path, asked: str, comm: Communicator | int, expected: str
) -> None:
    comm = dataclasses.replace(TWO, world_size=comm) if isinstance(comm, int) else comm
    each = small(data, tmp_path / "run", micro_batch=1, parallel=asked)
    if expected in ("none", "ddp", "fsdp"):
        assert resolve(each, TokenDataset(data), comm).config.parallel == expected
    else:
        refusal(lambda: resolve(each, TokenDataset(data), comm), expected)


INVALID_SECONDS = {
    seconds: f'^GPT2LAB_RENDEZVOUS_SECONDS is "{seconds}"; give a number of seconds above 0 and at most 86400'
    for seconds in ("abc", "0", "nan", "inf")
}
RENDEZVOUS = {None: "RANK is set, but another variable of torchrun is missing or invalid"} | INVALID_SECONDS
RENDEZVOUS |= {"1": r"rank 1 of 2 could not reach the other ranks at 127\.0\.0\.1:1 within 1 s"}


@pytest.mark.parametrize(("seconds", "expected"), RENDEZVOUS.items())
def test_processes_that_cannot_meet_say_so(monkeypatch: pytest.MonkeyPatch, seconds: str | None, expected: str) -> None:
    environment = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}
    if seconds is not None:
        environment |= {"MASTER_PORT": "1", "GPT2LAB_RENDEZVOUS_SECONDS": seconds}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=expected), process_group("cpu"):
        pass


def train_without_reading(each: TrainConfig) -> None:
    """Start or resume a run; rank 1 must not read any file to the end."""

    def read(*_: object) -> None:
        raise AssertionError("this rank reads the files too")

    with pytest.MonkeyPatch.context() as patch:
        if this_rank() == 1:
            patch.setattr(dataset, "checked_sha256", read)
        train(each)


def train_on_two(each: TrainConfig, folder: Path) -> None:
    """Start a run whose rank 1 has its data elsewhere."""
    train(dataclasses.replace(each, data=folder) if this_rank() == 1 else each)


@needs_fork
def test_one_rank_of_a_machine_checks_the_files_for_all(data: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(data, tmp_path / "flipped"))
    (shard,) = other.glob("train_*.bin")
    flip(shard, -2)
    each = small(data, tmp_path / "run", steps=4, micro_batch=2)
    flipped = small(data, tmp_path / "flipped_run", steps=4, micro_batch=2)
    said = launch_each(2, [
        partial(train_without_reading, each),
        partial(train_without_reading, dataclasses.replace(each, resume="last", steps=8)),
        partial(train_on_two, dataclasses.replace(flipped, data=other), other),
        partial(train_on_two, flipped, other),
    ])  # fmt: skip
    assert said[:2] == [["", ""]] * 2
    assert saved_steps(Run(tmp_path / "run")) == [4, 8]
    for lines, rank in zip(said[2:], (0, 1), strict=True):
        assert [line.split(": ")[0] for line in lines] == ["InputError", "ReportedElsewhere"]
        assert "changed since it was written" in lines[0] and ("rank 1: " in lines[0]) == (rank == 1)
    assert not (tmp_path / "flipped_run").exists()


class Defect(Exception):
    """An error that no run expects."""


def after(step: int, act: Callable[[Run], object]) -> HooksFor:
    """Do something on rank 0 after a step."""
    return lambda run: at_step(step, lambda: act(run))(run)


def raises(error: Exception) -> Callable[..., Any]:
    def function(*_: object) -> None:
        raise error

    return function


def full(path: Path) -> None:
    """Let every write to a file find no space."""
    path.unlink()
    path.symlink_to("/dev/full")


def failing_sample(run: Run) -> Hooks:
    def sample(model: GPT, step: int) -> None:
        (run.path / "samples.jsonl").mkdir()
        run.add_sample(step, "nucleus", "", "a text")

    return Hooks(sample=sample)


def in_micro_step(at: tuple[int, int], act: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Accumulate as the trainer does, and do something with the loss of one micro-step."""
    accumulate = loop.Trainer._backward

    def spoiled(self: loop.Trainer, step: int, micro_step: int) -> torch.Tensor:
        loss = accumulate(self, step, micro_step)
        return act(loss) if (step, micro_step) == at else loss

    return spoiled


def terminate(loss: torch.Tensor) -> torch.Tensor:
    """Send SIGTERM to this rank."""
    os.kill(os.getpid(), signal.SIGTERM)
    return loss


HOOKS: dict[str, HooksFor] = {
    "row": after(2, lambda run: full(run.path / "metrics.csv")),
    "on_step": after(2, raises(Defect("a defect"))),
    "sample": failing_sample,
    "hooks": raises(InputError("an ending is too long")),
}
NO_SPACE = raises(OSError(28, "No space left on device", "a file"))
PATCHES: dict[str, tuple[int, Any, str, Callable[..., Any]]] = {
    "curves": (0, monitoring, "draw", NO_SPACE),
    "trace": (0, monitoring, "temporary_name", NO_SPACE),
    "hash": (1, checkpoint, "sha256_of", NO_SPACE),
    "save": (0, checkpoint, "save_file", NO_SPACE),
    "second resolve": (1, setting_up, "resolve", raises(InputError("memory is gone"))),
    "nan": (1, loop.Trainer, "_backward", in_micro_step((2, 1), lambda loss: loss * float("nan"))),
    "signal": (1, loop.Trainer, "_backward", in_micro_step((4, 1), terminate)),
}
FAILURES = {
    "row": ("ddp", 0, r"metrics\.csv: cannot be written \(No space left on device\); "),
    "sample": ("fsdp", 0, r"samples\.jsonl: cannot be "),
    "cut off": ("ddp", 1, "became shorter during use"),
    "second resolve": ("ddp", 1, "memory is gone"),
    "on_step": ("ddp", 0, "a defect"),
    "hooks": ("ddp", 0, "an ending is too long"),
    "curves": ("fsdp", 0, "No space left on device"),
    "trace": ("ddp", 0, "No space left on device"),
}
"""Mode, the rank on which something fails, and what it says: the other ends with it."""
AGREED = {
    "hash": ("fsdp", 0, r"cannot be written \(rank 1: \[Errno 28\] No space left on device: 'a file'\)"),
    "save": ("ddp", 0, r"step_00000003 cannot be written \(.*No space left on device"),
    "options": ("ddp", 0, "the configuration of rank 1 differs from that of rank 0: optim.lr is 0.02, on rank 0 0.01;"),
    "other data": ("ddp", 0, r"the data set of rank 1 differs from that of rank 0: data is \w+, on rank 0 \w+;"),
    "no data": ("ddp", 0, "rank 1: .*none: no such directory of prepared data"),
    "nan": ("ddp", 0, "step 3: loss nan.* on rank 1 in micro-step 2, windows"),
}
"""The same where the ranks exchange what failed: both know it, and rank 0 says it."""
NOT_STARTED = ("second resolve", "options", "other data", "no data")


def fail(each: TrainConfig, changes: dict[str, dict[str, Any]], what: str) -> None:
    """Start a run in which something fails on one rank, or rank 1 has other options."""
    hooks = HOOKS.get(what, nothing)
    if this_rank() == 1:
        each = dataclasses.replace(each, **changes.get(what, {}))
    if what == "cut off":
        (shard,) = changes[what]["data"].glob("train_*.bin")
        hooks = after(2, lambda run: shard.write_bytes(shard.read_bytes()[:1100]))
    with pytest.MonkeyPatch.context() as patch:
        if what in PATCHES and PATCHES[what][0] == this_rank():
            patch.setattr(*PATCHES[what][1:])
        try:
            train(each, hooks)
        except (Defect, OSError) as error:
            raise InputError(str(error)) from error


TOGETHER = [what for what, (mode, _, _) in (FAILURES | AGREED).items() if mode == "ddp"]
"""Tested in one launch: DDP closes its connections when a rank fails, FSDP when its process ends."""


@needs_fork
@pytest.mark.parametrize(
    "failures",
    [
        [*TOGETHER, "signal"],
        ["sample"],
        *(pytest.param([what], marks=pytest.mark.fault) for what in ("curves", "hash")),
    ],
    ids=", ".join,
)
def test_a_failure_on_one_rank_ends_all_and_one_says_why(
    data: Path, other_data: Path, tmp_path: Path, failures: list[str]
) -> None:
    changes: dict[str, dict[str, Any]] = {
        "cut off": {"data": Path(shutil.copytree(data, tmp_path / "copy"))},
        "options": {"optim": OptimConfig(lr=2e-2, warmup_steps=4)},
        "other data": {"data": other_data},
        "no data": {"data": tmp_path / "none"},
    }
    options = {"steps": 8, "micro_batch": 2, "log_every": 1, "sample_every": 3, "eval_every": 3, "profile_steps": "2:3"}
    options |= {"checkpoint_every": 8, "patience": 0}
    works = []
    for what in failures:
        mode = (FAILURES | AGREED).get(what, ("ddp",))[0]
        works.append(partial(fail, small(data, tmp_path / what, parallel=mode, **options), changes, what))
    for what, said in zip(failures, launch_each(2, works), strict=True):
        if what == "signal":
            run = Run(tmp_path / what)
            stopped = f"stopped after step 5, state saved; resume with: gpt2lab train --out {run.path} --resume"
            assert said == [f"Interrupted: {stopped}"] * 2
            assert saved_steps(run)[-1] == 5
            continue
        _, rank, reason = (FAILURES | AGREED)[what]
        assert [line.split(": ")[0] for line in (said[rank], said[1 - rank])] == ["InputError", "ReportedElsewhere"], (
            what
        )
        assert re.search(reason, said[rank]), said
        assert what in AGREED or re.search(f"rank {rank}: .*{reason}", said[1 - rank]), said
        assert (tmp_path / what).exists() == (what not in NOT_STARTED), what
        assert what in NOT_STARTED or not list((tmp_path / what / "checkpoints").glob(".*"))


STAYS = """
import sys, time
import torch.distributed as dist
from gpt2lab.training import distributed
distributed.POLL_SECONDS = distributed.GRACE_SECONDS = 0.1
with distributed.fail_on_all_ranks(dist.FileStore(sys.argv[1]), 1):
    print("started", flush=True)
    time.sleep(100)
"""


@pytest.mark.fault
def test_a_rank_that_notices_nothing_is_ended(tmp_path: Path) -> None:
    store = FileStore(str(tmp_path / "store"))
    with subprocess.Popen([sys.executable, "-c", STAYS, str(tmp_path / "store")], stdout=subprocess.PIPE) as rank:
        assert rank.stdout is not None and rank.stdout.readline() == b"started\n"
        with pytest.raises(Defect), fail_on_all_ranks(store, 0):
            raise Defect
        assert rank.wait(60) == 2
