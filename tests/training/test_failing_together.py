"""What fails on one rank only, wherever it is, ends all of them, and one of them says why."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from ranks import launch, needs_fork, this_rank
from support import nothing, small
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]

from gpt2lab.errors import InputError
from gpt2lab.model.gpt import GPT
from gpt2lab.runs import Run
from gpt2lab.training import checkpoint, monitoring
from gpt2lab.training import setup as setting_up
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.distributed import fail_on_all_ranks
from gpt2lab.training.loop import Hooks, HooksFor, StepReport
from gpt2lab.training.session import start

pytestmark = needs_fork


class Defect(Exception):
    """What no run expects."""


def after(step: int, act: Callable[[Run], object]) -> HooksFor:
    """Do something on rank 0 after a step."""

    def hooks(run: Run) -> Hooks:
        def on_step(report: StepReport) -> None:
            if report.step == step:
                act(run)

        return Hooks(on_step=on_step)

    return hooks


def defect(*_: object) -> None:
    raise Defect("a defect")


def full(path: Path) -> None:
    """Let every write to a file find no space."""
    path.unlink()
    path.symlink_to("/dev/full")


def sampling(run: Run) -> Hooks:
    def sample(model: GPT, step: int) -> None:
        (run.path / "samples.jsonl").mkdir()
        run.add_sample(step, "nucleus", "", "a text")

    return Hooks(sample=sample)


def unmade(run: Run) -> Hooks:
    raise InputError("an ending is too long")


def cut_short(folder: Path) -> HooksFor:
    """Take away most of the tokens that rank 1 reads."""
    (shard,) = folder.glob("train_*.bin")
    return after(2, lambda run: shard.write_bytes(shard.read_bytes()[:1100]))


def no_space(*_: object) -> None:
    raise OSError(28, "No space left on device", "a file")


def no_memory(*_: object) -> None:
    raise InputError("memory is gone")


HOOKS: dict[str, HooksFor] = {
    "row": after(2, lambda run: full(run.path / "metrics.csv")),
    "on_step": after(2, defect),
    "sample": sampling,
    "making hooks": unmade,
}
PATCHES: dict[str, tuple[int, ModuleType, str, Callable[..., None]]] = {
    "curves": (0, monitoring, "draw", no_space),
    "trace": (0, monitoring, "temporary_name", no_space),
    "hash": (1, checkpoint, "sha256_of", no_space),
    "resolving again": (1, setting_up, "resolve", no_memory),
}


def fail(each: TrainConfig, copy: Path, what: str) -> None:
    """Start a run in which something fails on one rank."""
    hooks = cut_short(copy) if what == "data" else HOOKS.get(what, nothing)
    if this_rank() == 1 and what == "data":
        each = dataclasses.replace(each, data=copy)
    if what in PATCHES:
        rank, module, name, failing = PATCHES[what]
        if this_rank() == rank:
            setattr(module, name, failing)
    try:
        start(each, hooks)
    except (Defect, OSError) as error:
        raise InputError(str(error)) from error


CASES = [
    ("row", "ddp", 0, "metrics.csv: cannot be written (No space left on device); make room"),
    ("sample", "fsdp", 0, "samples.jsonl: cannot be "),
    ("data", "ddp", 1, "became shorter while in use"),
    ("resolving again", "ddp", 1, "memory is gone"),
]
SLOW = [
    ("on_step", "ddp", 0, "a defect"),
    ("making hooks", "ddp", 0, "an ending is too long"),
    ("curves", "fsdp", 0, "No space left on device"),
    ("trace", "ddp", 0, "No space left on device"),
    ("hash", "fsdp", 1, "cannot be written (rank 1: [Errno 28] No space left on device: 'a file')"),
]


@pytest.mark.parametrize(
    ("what", "mode", "rank", "reason"),
    [
        *(pytest.param(*case, id=case[0]) for case in CASES),
        *(pytest.param(*case, id=case[0], marks=pytest.mark.fault) for case in SLOW),
    ],
)
def test_a_failure_on_one_rank_ends_all_and_one_says_why(
    data: Path, tmp_path: Path, what: str, mode: str, rank: int, reason: str
) -> None:
    shutil.copytree(data, tmp_path / "copy")
    options = {"steps": 8, "batch_tokens": 128, "micro_batch": 2, "log_every": 1, "sample_every": 3, "parallel": mode}
    each = small(data, tmp_path / "run", eval_every=3, profile_steps="2:3", **options)
    said = launch(2, fail, each, tmp_path / "copy", what)
    agreed = what == "hash"
    (line,) = [line for line in said if not line.startswith("ReportedElsewhere: ")]
    assert said.index(line) == (0 if agreed else rank)
    assert line.startswith("InputError: ") and reason in line
    assert agreed or (f"rank {rank}: " in said[1 - rank] and reason in said[1 - rank])


STAYS = """
import sys, time
import torch.distributed as dist
from gpt2lab.training import distributed
distributed.POLL_SECONDS = distributed.GRACE_SECONDS = 0.1
with distributed.fail_on_all_ranks(dist.FileStore(sys.argv[1]), 1):
    print("begun", flush=True)
    time.sleep(100)
"""


@pytest.mark.fault
def test_a_rank_that_notices_nothing_is_ended(tmp_path: Path) -> None:
    store = FileStore(str(tmp_path / "store"))
    with subprocess.Popen([sys.executable, "-c", STAYS, str(tmp_path / "store")], stdout=subprocess.PIPE) as rank:
        assert rank.stdout is not None and rank.stdout.readline() == b"begun\n"
        with pytest.raises(Defect), fail_on_all_ranks(store, 0):
            defect()
        assert rank.wait(60) == 2
