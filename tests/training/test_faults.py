"""Processes killed or stopped while they train, alone or under torchrun: nothing is lost but the steps since the last
checkpoint, and none of it shows."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from support import PLAIN, Alone, assert_same_run, column, go_on, hidden, saved_steps, small, train
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from gpt2lab.cli.main import main
from gpt2lab.model.config import GPTConfig
from gpt2lab.runs import Run
from gpt2lab.runtime import can_compile
from gpt2lab.training import checkpoint, loop
from gpt2lab.training.config import OptimConfig, TrainConfig, saved_config
from ranks import FORKED, launch, launch_each, needs_fork, run_under_agent

pytestmark = needs_fork  # Windows has neither SIGKILL nor limits on files
needs_compiler = pytest.mark.skipif(not can_compile(torch.device("cpu"))[0], reason="no C++ compiler")
Start = Callable[..., Alone]


@pytest.mark.fault
def test_sigterm_to_a_process(start: Start, data: Path, tmp_path: Path) -> None:
    options = {"model": PLAIN, "steps": 100_000, "checkpoint_every": 100_000, "eval_every": 100_000}
    config = small(data, tmp_path / "run", **options)
    training = start(config)
    while training.told.recv() < 20:
        pass
    training.process.terminate()
    said = training.last_told()
    run = Run(tmp_path / "run")
    (step,) = saved_steps(run)
    assert training.exit_code() == 128 + signal.SIGTERM
    assert said == f"stopped after step {step}, state saved; resume with: gpt2lab train --out {run.path} --resume"
    go_on(config, steps=step + 5)
    assert saved_steps(run) == [step, step + 5]


@pytest.mark.fault
def test_killed_at_twenty_random_moments(start: Start, data: Path, tmp_path: Path) -> None:
    options = {"steps": 400, "checkpoint_every": 3, "keep_last": 2, "eval_every": 50, "log_every": 7}
    unbroken = train(small(data, tmp_path / "unbroken", **options))
    seconds = unbroken.metrics()[-1]["seconds"] or 0.0
    config, moments = small(data, tmp_path / "run", **options), random.Random(20)
    for _ in range(20):  # of the run's whole length about 0.6 in expectation, so that it is not over before the last
        start(config).kill_after(1, moments.uniform(0.0, seconds / 16))
    assert start(config).exit_code() == 0
    run = Run(tmp_path / "run")
    assert_same_run(run, unbroken, 400)
    assert not hidden(run)


@pytest.mark.fault
@needs_compiler
def test_compiled_with_two_threads_and_killed_in_several_processes(start: Start, data: Path, tmp_path: Path) -> None:
    model = GPTConfig(n_layer=1, n_head=2, n_embd=32, n_ctx=16, dropout=0.1)
    options = {"model": model, "compile": "on", "batch_tokens": 512, "micro_batch": 16, "steps": 60, "eval_every": 50}
    unbroken, config = (small(data, tmp_path / name, **options) for name in ("unbroken", "run"))
    assert start(unbroken, threads=2).exit_code() == 0
    for steps in (9, 12):
        start(config, threads=2).kill_after(steps)
    assert start(config, threads=2).exit_code() == 0
    assert_same_run(Run(tmp_path / "run"), Run(tmp_path / "unbroken"), 60)


Death = tuple[int, Any, str, int, str]
ALONE: dict[str, Death] = {
    # Of the second save: each writes two files of tensors, which it syncs, two of JSON, and syncs two folders.
    "within the weights": (0, checkpoint, "save_file", 3, "within"),
    "after the weights": (0, checkpoint, "save_file", 3, "after"),
    "after the optimizer": (0, checkpoint, "save_file", 4, "after"),
    "after the state": (0, checkpoint, "write_checked_json", 3, "after"),
    "before the manifest": (0, checkpoint, "write_checked_json", 4, "before"),
    "before the rename": (0, checkpoint, "sync", 7, "after"),
    "after the rename": (0, checkpoint, "sync", 8, "before"),
    "before pruning": (0, checkpoint, "prune", 2, "before"),
    "while pruning": (0, shutil, "rmtree", 1, "within"),
    "after pruning": (0, checkpoint, "prune", 2, "after"),
}
SHARDED: dict[str, Death] = {
    "shard": (1, checkpoint, "write_sharded_state", 2, "before"),
    "weights": (0, checkpoint, "save_file", 2, "before"),
    "state": (0, checkpoint, "write_checked_json", 3, "before"),
    "manifest": (0, checkpoint, "_publish", 2, "before"),
    "rename": (0, checkpoint, "sync", 7, "before"),  # each save syncs the weights, two folders, renames, syncs one
}
"""The rank that is killed, the function in whose call it is, which call, and whether before, within or after it."""


def die_while_saving(each: TrainConfig, stage: str) -> None:
    """Start a run that is killed during its second save."""
    rank, home, name, nth, when = (ALONE | SHARDED)[stage]
    real, calls = getattr(home, name), []

    def dying(*arguments: Any) -> object:
        calls.append(name)
        if len(calls) < nth or int(os.environ.get("RANK", "0")) != rank:
            return real(*arguments)
        if when == "within" and home is shutil:
            (Path(arguments[0]) / "model.safetensors").unlink()
        elif when != "before":
            real(*arguments)
        if name == "save_file" and when == "within":
            arguments[1].write_bytes(arguments[1].read_bytes()[:1000])
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    setattr(home, name, dying)
    train(each)


@pytest.fixture(scope="module")
def short(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An unbroken run of 12 steps that keeps its last checkpoint."""
    out = tmp_path_factory.mktemp("short") / "run"
    return train(small(data, out, steps=12, keep_last=1, eval_every=100))


@pytest.mark.fault
@pytest.mark.parametrize("stage", ALONE)
def test_killed_during_a_save(short: Run, tmp_path: Path, stage: str) -> None:
    config = dataclasses.replace(saved_config(short).as_asked(), out=tmp_path / "run")
    process = FORKED.Process(target=die_while_saving, args=(config, stage))
    process.start()
    process.join(100)
    assert process.exitcode == -signal.SIGKILL
    run = Run(tmp_path / "run")
    renamed = list(ALONE).index(stage) >= list(ALONE).index("after the rename")
    found, warnings = checkpoint.newest_valid(run)
    assert (found.step, warnings) == (8 if renamed else 4, [])
    go_on(config)
    assert_same_run(run, short, 12)
    assert saved_steps(run) == [12]
    assert not hidden(run)


@pytest.mark.fault
def test_a_file_that_cannot_grow(start: Start, data: Path, tmp_path: Path) -> None:
    assert start(small(data, tmp_path / "run"), largest_file=50_000).exit_code() == 1
    assert saved_steps(Run(tmp_path / "run")) == []
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


def killed_once(each: TrainConfig, at: int) -> None:
    """Train; on the first start rank 1 is killed in a step."""
    backward = loop.Trainer._backward

    def killed(self: loop.Trainer, step: int, micro_step: int) -> torch.Tensor:
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1" and step == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return backward(self, step, micro_step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "_backward", killed)
        train(each)


def on_two_ranks(data: Path, out: Path, mode: str) -> TrainConfig:
    """12 steps with a checkpoint every 4."""
    options = {"steps": 12, "micro_batch": 2, "log_every": 1, "eval_every": 100}
    return small(data, out, model=dataclasses.replace(PLAIN, n_layer=2), parallel=mode, **options)


@pytest.mark.fault
@pytest.mark.parametrize(("mode", "step"), [("ddp", 9), ("fsdp", 9), ("fsdp", 2)])
def test_a_killed_rank_is_restarted_and_the_run_goes_on(data: Path, tmp_path: Path, mode: str, step: int) -> None:
    run_under_agent(tmp_path / "logs", killed_once, on_two_ranks(data, tmp_path / "run", mode), step, restarts=1)
    run, alone = Run(tmp_path / "run"), train(on_two_ranks(data, tmp_path / "alone", "auto"))
    assert column(run, "step") == list(range(1, 13))
    assert column(run, "train_loss") == pytest.approx(column(alone, "train_loss"), abs=1e-5)
    assert saved_steps(run) == [4, 8, 12]


def command_line(folder: Path, data: Path, options: str) -> None:
    """``gpt2lab train`` on a rank, which writes its process id to a file of its number."""
    (folder / os.environ["RANK"]).write_text(str(os.getpid()), encoding="utf-8")
    files = ["--data", str(data), "--out", str(folder / "run")]
    options += " --seq-len 16 --batch-tokens 128 --micro-batch 2 --log-every 1 --device cpu --precision fp32"
    sys.exit(main(["train", *files, *options.split()]))


class Ended(NamedTuple):
    """What two ranks printed, and the exit code of the one that left first; torchrun ends the other."""

    said: str
    errors: str
    exit_code: int


def stopped_by(folder: Path, data: Path, mode: str, act: Callable[[Run], object]) -> Ended:
    """Start a run of more steps than it will do, and do something that ends it when three are done."""
    run = Run(folder / "run")
    options = f"--parallel {mode} --steps 100000 --checkpoint-every 100000 --eval-every 100000 --compile off"
    with ThreadPoolExecutor(1) as pool:
        ranks = pool.submit(run_under_agent, folder / "logs", command_line, folder, data, options)
        while not (run.path / "metrics.csv").exists() or len(run.metrics()) < 3:
            assert not ranks.done(), ranks.exception()
            time.sleep(0.05)
        act(run)
        with pytest.raises(ChildFailedError) as ended:
            ranks.result(100)
    said, errors = ("".join(path.read_text() for path in folder.rglob(f"std{name}.log")) for name in ("out", "err"))
    return Ended(said, errors, ended.value.get_first_failure()[1].exitcode)


@pytest.mark.fault
@pytest.mark.parametrize(("mode", "rank"), [("ddp", 1), ("fsdp", 1), ("ddp", 0)])
def test_sigterm_to_one_rank_makes_all_save_and_leave(data: Path, tmp_path: Path, mode: str, rank: int) -> None:
    def terminate(run: Run) -> None:
        os.kill(int((tmp_path / str(rank)).read_text(encoding="utf-8")), signal.SIGTERM)

    run, ended = Run(tmp_path / "run"), stopped_by(tmp_path, data, mode, terminate)
    (step,) = saved_steps(run)
    assert step == run.metrics()[-1]["step"]
    checkpoint.verify(checkpoint.find(run, "last"))
    stopped = f"stopped after step {step}, state saved; resume with: gpt2lab train --out {run.path} --resume"
    assert ended.said.count(stopped) == 1
    assert (ended.exit_code, "Traceback" in ended.errors) == (143, False)


@pytest.mark.fault
def test_a_row_that_cannot_be_written_ends_a_run_under_torchrun_with_one_line(data: Path, tmp_path: Path) -> None:
    def fill(run: Run) -> None:
        (tmp_path / "full").symlink_to("/dev/full")
        (tmp_path / "full").replace(run.path / "metrics.csv")

    ended = stopped_by(tmp_path, data, "ddp", fill)
    assert ended.errors.count("metrics.csv: cannot be written (No space left on device); free space") == 1
    assert (ended.exit_code, "Traceback" in ended.errors) == (2, False)


@pytest.mark.fault
@needs_compiler
def test_compiled_on_two_ranks_losses_are_those_of_one_process(data: Path, tmp_path: Path) -> None:
    model, optim = dataclasses.replace(PLAIN, n_layer=2), OptimConfig(lr=1e-2, warmup_steps=2)
    options = {"model": model, "optim": optim, "steps": 8, "micro_batch": 2, "log_every": 1, "eval_every": 4}
    works = [
        partial(train, small(data, tmp_path / mode, parallel=mode, compile="on", **options)) for mode in ("ddp", "fsdp")
    ]
    assert launch_each(2, works) == [["", ""]] * 2
    alone = train(small(data, tmp_path / "alone", **options))
    for mode in ("ddp", "fsdp"):
        run = Run(tmp_path / mode)
        assert (saved_config(run).compile, saved_config(run).parallel) == ("on", mode)
        for figure, count in (("train_loss", 8), ("val_loss", 2)):
            assert len(column(alone, figure)) == count
            assert column(run, figure) == pytest.approx(column(alone, figure), abs=1e-5, rel=0)


@pytest.mark.fault
@pytest.mark.parametrize("stage", SHARDED)
def test_a_rank_killed_during_a_sharded_save(data: Path, tmp_path: Path, stage: str) -> None:
    each = on_two_ranks(data, tmp_path / "run", "fsdp")
    with pytest.raises(AssertionError):
        launch(2, die_while_saving, each, stage)
    run = Run(tmp_path / "run")
    found, warnings = checkpoint.newest_valid(run)
    assert (found.step, warnings) == (4, [])
    assert launch(2, go_on, each) == ["", ""]
    assert saved_steps(run) == [4, 8, 12]
    assert not hidden(run)
    assert len(run.metrics()) == 12
