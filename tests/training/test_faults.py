"""Processes killed or stopped while they train, alone or under torchrun: nothing is lost but the steps since the last
checkpoint, and none of it shows."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import FORKED, launch, needs_fork
from support import PLAIN, TRAIN, assert_same_run, column, go_on, hidden, saved_steps, small, train

from gpt2lab.model.config import GPTConfig
from gpt2lab.runs import Run
from gpt2lab.runtime import can_compile
from gpt2lab.training import checkpoint
from gpt2lab.training.config import OptimConfig, TrainConfig, saved_config, to_dict

pytestmark = needs_fork  # Windows has neither SIGKILL nor limits on files
needs_compiler = pytest.mark.skipif(not can_compile(torch.device("cpu"))[0], reason="no C++ compiler")
Launch = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Launch]:
    """Train in a process of its own, resuming the run where it has a checkpoint; none outlives its test."""
    processes: list[subprocess.Popen[str]] = []

    def begin(config: TrainConfig, preamble: str = "", threads: int = 1) -> subprocess.Popen[str]:
        if config.out is not None and config.out.exists():
            if checkpoint.list_checkpoints(Run(config.out)):
                config = dataclasses.replace(config, resume="last")
            else:
                shutil.rmtree(config.out)
        command = [sys.executable, "-c", preamble + TRAIN, json.dumps(to_dict(config)), str(threads)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8"))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def wait_for_steps(process: subprocess.Popen[str], count: int) -> None:
    """Return after some steps of a process."""
    assert process.stdout is not None
    for _ in range(count):
        assert process.stdout.readline()


@pytest.mark.fault
def test_sigterm_to_a_process(start: Launch, data: Path, tmp_path: Path) -> None:
    options = {"model": PLAIN, "steps": 100_000, "checkpoint_every": 100_000, "eval_every": 100_000}
    config = small(data, tmp_path / "run", **options)
    process = start(config)
    wait_for_steps(process, 20)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    run = Run(tmp_path / "run")
    (step,) = saved_steps(run)
    assert process.returncode == 128 + signal.SIGTERM
    stopped = f"stopped after step {step}, state saved; resume with: gpt2lab train --out {run.path} --resume"
    assert said.splitlines()[-1] == stopped
    go_on(config, steps=step + 5)
    assert saved_steps(run) == [step, step + 5]


@pytest.mark.fault
def test_killed_at_twenty_random_moments(start: Launch, data: Path, tmp_path: Path) -> None:
    options = {"steps": 800, "checkpoint_every": 3, "keep_last": 2, "eval_every": 50, "log_every": 7}
    unbroken = train(small(data, tmp_path / "unbroken", **options))
    seconds = unbroken.metrics()[-1]["seconds"] or 0.0
    config, moments = small(data, tmp_path / "run", **options), random.Random(20)
    for _ in range(20):  # of the run's whole length about 0.6 in expectation, so that it is not over before the last
        process = start(config)
        wait_for_steps(process, 1)
        time.sleep(moments.uniform(0.0, seconds / 16))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    last = start(config)
    last.communicate(timeout=200)
    assert last.returncode == 0
    run = Run(tmp_path / "run")
    assert_same_run(run, unbroken, 800)
    assert not hidden(run)


@pytest.mark.fault
@needs_compiler
def test_compiled_with_two_threads_and_killed_in_several_processes(start: Launch, data: Path, tmp_path: Path) -> None:
    model = GPTConfig(n_layer=1, n_head=2, n_embd=32, n_ctx=16, dropout=0.1)
    options = {"model": model, "compile": "on", "batch_tokens": 512, "micro_batch": 16, "steps": 60, "eval_every": 50}
    unbroken, config = (small(data, tmp_path / name, **options) for name in ("unbroken", "run"))
    assert start(unbroken, threads=2).wait(timeout=200) == 0
    for step in (9, 12):
        process = start(config, threads=2)
        wait_for_steps(process, step)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert start(config, threads=2).wait(timeout=200) == 0
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


@pytest.mark.fault
@pytest.mark.parametrize("stage", ALONE)
def test_killed_during_a_save(data: Path, tmp_path: Path, stage: str) -> None:
    config = small(data, tmp_path / "run", steps=12, keep_last=1, eval_every=100)
    process = FORKED.Process(target=die_while_saving, args=(config, stage))
    process.start()
    process.join(100)
    assert process.exitcode == -signal.SIGKILL
    run = Run(tmp_path / "run")
    renamed = list(ALONE).index(stage) >= list(ALONE).index("after the rename")
    found, warnings = checkpoint.newest_valid(run)
    assert (found.step, warnings) == (8 if renamed else 4, [])
    go_on(config)
    assert_same_run(run, train(dataclasses.replace(config, out=tmp_path / "unbroken")), 12)
    assert saved_steps(run) == [12]
    assert not hidden(run)


@pytest.mark.fault
def test_a_file_that_cannot_grow(start: Launch, data: Path, tmp_path: Path) -> None:
    limited = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
    process = start(small(data, tmp_path / "run"), limited)
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert saved_steps(Run(tmp_path / "run")) == []
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
KILLED_ONCE = """
import json, os, signal, sys
import torch
from gpt2lab.training import loop
from gpt2lab.files import from_json
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.session import train
torch.set_num_threads(1)
accumulate = loop.Trainer._backward
def killed(self, step, micro_step):
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and os.environ["RANK"] == "1" and step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return accumulate(self, step, micro_step)
loop.Trainer._backward = killed
train(from_json(TrainConfig, json.loads(sys.argv[1]), "the arguments"))
"""


def on_two_ranks(data: Path, out: Path, mode: str) -> TrainConfig:
    """12 steps with a checkpoint every 4."""
    options = {"steps": 12, "micro_batch": 2, "log_every": 1, "eval_every": 100}
    return small(data, out, model=dataclasses.replace(PLAIN, n_layer=2), parallel=mode, **options)


@pytest.mark.fault
@pytest.mark.parametrize(("mode", "step"), [("ddp", 9), ("fsdp", 9), ("fsdp", 2)])
def test_a_killed_rank_is_restarted_and_the_run_goes_on(data: Path, tmp_path: Path, mode: str, step: int) -> None:
    script = tmp_path / "train.py"
    script.write_text(KILLED_ONCE, encoding="utf-8")
    each = on_two_ranks(data, tmp_path / "run", mode)
    command = [*TORCHRUN, "--max-restarts", "1", str(script), json.dumps(to_dict(each)), str(step)]
    subprocess.run(command, check=True, timeout=200, env=ENVIRONMENT)
    run, alone = Run(tmp_path / "run"), train(on_two_ranks(data, tmp_path / "alone", "auto"))
    assert column(run, "step") == list(range(1, 13))
    assert column(run, "train_loss") == pytest.approx(column(alone, "train_loss"), abs=1e-5)
    assert saved_steps(run) == [4, 8, 12]


COMMAND_LINE = """
import os, sys
from pathlib import Path
import torch
from gpt2lab.cli.main import main
torch.set_num_threads(1)
Path(sys.argv[1], os.environ["RANK"]).write_text(str(os.getpid()))
sys.exit(main(sys.argv[2:]))
"""


def command_line(folder: Path, data: Path, options: str) -> list[str]:
    """``gpt2lab train`` on two ranks; each writes its process id to a file of its number in ``folder``."""
    (folder / "train.py").write_text(COMMAND_LINE, encoding="utf-8")
    files = ["--data", str(data), "--out", str(folder / "run")]
    options += " --seq-len 16 --batch-tokens 128 --micro-batch 2 --log-every 1 --device cpu --precision fp32"
    return [*TORCHRUN, str(folder / "train.py"), str(folder), "train", *files, *options.split()]


@contextmanager
def under_torchrun(folder: Path, data: Path, mode: str) -> Iterator[tuple[Run, subprocess.Popen[str]]]:
    """Start a run of more steps than it will do; yield when three are done."""
    run, pipe = Run(folder / "run"), subprocess.PIPE
    options = f"--parallel {mode} --steps 100000 --checkpoint-every 100000 --eval-every 100000 --compile off"
    command = command_line(folder, data, options)
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True) as started:
        try:
            while not (run.path / "metrics.csv").exists() or len(run.metrics()) < 3:
                assert started.poll() is None, started.communicate()
                time.sleep(0.05)
            yield run, started
        finally:
            started.terminate()


def first_exit(report: str) -> int:
    """Return the exit code of the rank that left first; torchrun ends the others, and has a trace of its own alone."""
    assert report.count("Traceback") == 1
    return int(re.findall(r"exitcode +: (-?\d+)", report)[-1])


@pytest.mark.fault
@pytest.mark.parametrize(("mode", "rank"), [("ddp", 1), ("fsdp", 1), ("ddp", 0)])
def test_sigterm_to_one_rank_makes_all_save_and_leave(data: Path, tmp_path: Path, mode: str, rank: int) -> None:
    with under_torchrun(tmp_path, data, mode) as (run, started):
        os.kill(int((tmp_path / str(rank)).read_text(encoding="utf-8")), signal.SIGTERM)
        said, report = started.communicate(timeout=100)
    (step,) = saved_steps(run)
    assert step == run.metrics()[-1]["step"]
    checkpoint.verify(checkpoint.find(run, "last"))
    stopped = f"stopped after step {step}, state saved; resume with: gpt2lab train --out {run.path} --resume"
    assert said.count(stopped) == 1
    assert started.returncode == 1 and first_exit(report) == 143


@pytest.mark.fault
def test_a_row_that_cannot_be_written_ends_a_run_under_torchrun_with_one_line(data: Path, tmp_path: Path) -> None:
    with under_torchrun(tmp_path, data, "ddp") as (run, started):
        (tmp_path / "full").symlink_to("/dev/full")
        (tmp_path / "full").replace(run.path / "metrics.csv")
        _, report = started.communicate(timeout=100)
    assert report.count("metrics.csv: cannot be written (No space left on device); free space") == 1
    assert started.returncode == 1 and first_exit(report) == 2


@pytest.mark.fault
@needs_compiler
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_compiled_on_two_ranks_losses_are_those_of_one_process(data: Path, tmp_path: Path, mode: str) -> None:
    options = f"--parallel {mode} --steps 8 --eval-every 4 --eval-tokens 64 --compile on"
    options += " --optim.lr 1e-2 --optim.warmup-steps 2"
    options += " --model.n-layer 2 --model.n-head 2 --model.n-embd 16 --model.n-ctx 16 --model.dropout 0"
    subprocess.run(command_line(tmp_path, data, options), check=True, timeout=300, env=ENVIRONMENT)
    model, optim = dataclasses.replace(PLAIN, n_layer=2), OptimConfig(lr=1e-2, warmup_steps=2)
    alone = train(small(data, tmp_path / "alone", model=model, optim=optim, steps=8, log_every=1, eval_every=4))
    run = Run(tmp_path / "run")
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
