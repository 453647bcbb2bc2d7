"""A rank killed: under torchrun the run goes on by itself, and a save that was cut off leaves the one before it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from ranks import launch, needs_fork, this_rank
from support import nothing, saved_steps, small, train

from gpt2lab.model.config import GPTConfig
from gpt2lab.runs import Run
from gpt2lab.runtime import can_compile
from gpt2lab.training import checkpoint
from gpt2lab.training.config import OptimConfig, TrainConfig, saved_config, to_dict
from gpt2lab.training.session import resume, start

pytestmark = [needs_fork, pytest.mark.fault]
MODEL = GPTConfig(n_layer=2, n_head=2, n_embd=16, n_ctx=16, dropout=0.0)
KILLED_ONCE = """
import json, os, signal, sys
import torch
from gpt2lab.training.loop import Hooks
from gpt2lab.training.config import from_dict
from gpt2lab.training import loop
from gpt2lab.training.session import start
torch.set_num_threads(1)
accumulate = loop.Trainer._backward
def killed(self, step, micro_step):
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and os.environ["RANK"] == "1" and step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return accumulate(self, step, micro_step)
loop.Trainer._backward = killed
start(from_dict(json.loads(sys.argv[1])), lambda run: Hooks())
"""


def config(data: Path, out: Path, mode: str) -> TrainConfig:
    """12 steps with a checkpoint every 4."""
    options = {"model": MODEL, "steps": 12, "batch_tokens": 128, "micro_batch": 2, "log_every": 1, "eval_every": 100}
    return small(data, out, parallel=mode, **options)


@pytest.mark.parametrize(("mode", "step"), [("ddp", 9), ("fsdp", 9), ("fsdp", 2)])
def test_a_killed_rank_is_restarted_and_the_run_goes_on(data: Path, tmp_path: Path, mode: str, step: int) -> None:
    script = tmp_path / "train.py"
    script.write_text(KILLED_ONCE, encoding="utf-8")
    each = config(data, tmp_path / "run", mode)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "--max-restarts", "1", str(script), json.dumps(to_dict(each)), str(step)]
    subprocess.run(command, check=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"})
    run, alone = Run(tmp_path / "run"), train(config(data, tmp_path / "alone", "auto"))
    assert [row["step"] for row in run.metrics()] == list(range(1, 13))
    expected = [row["train_loss"] for row in alone.metrics()]
    assert [row["train_loss"] for row in run.metrics()] == pytest.approx(expected, abs=1e-5)
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


@contextmanager
def under_torchrun(folder: Path, data: Path, mode: str) -> Iterator[tuple[Run, subprocess.Popen[str]]]:
    """Start ``gpt2lab train`` on two ranks, for more steps than they will do; yield when three are done.

    Each rank writes its process id to a file of its number in ``folder``.
    """
    script, run = folder / "train.py", Run(folder / "run")
    script.write_text(COMMAND_LINE, encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = f"--parallel {mode} --steps 100000 --seq-len 16 --batch-tokens 128 --micro-batch 2 --log-every 1"
    options += " --checkpoint-every 100000 --eval-every 100000 --device cpu --precision fp32 --compile off"
    command = [*torchrun, str(script), str(folder), "train", "--data", str(data), "--out", str(run.path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, *options.split()], env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes) as started:
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


@pytest.mark.parametrize(("mode", "rank"), [("ddp", 1), ("fsdp", 1), ("ddp", 0)])
def test_sigterm_to_one_rank_makes_all_save_once_and_leave_with_143(
    data: Path, tmp_path: Path, mode: str, rank: int
) -> None:
    with under_torchrun(tmp_path, data, mode) as (run, started):
        os.kill(int((tmp_path / str(rank)).read_text(encoding="utf-8")), signal.SIGTERM)
        said, report = started.communicate(timeout=100)
    (step,) = saved_steps(run)
    assert step == run.metrics()[-1]["step"]
    checkpoint.verify(checkpoint.find(run, "last"))
    assert (
        said.count(f"stopped after step {step}, state saved; resume with: gpt2lab train --out {run.path} --resume") == 1
    )
    assert started.returncode == 1 and first_exit(report) == 143


def test_a_row_that_cannot_be_written_ends_a_run_under_torchrun_with_one_line(data: Path, tmp_path: Path) -> None:
    with under_torchrun(tmp_path, data, "ddp") as (run, started):
        (tmp_path / "full").symlink_to("/dev/full")
        (tmp_path / "full").replace(run.path / "metrics.csv")
        _, report = started.communicate(timeout=100)
    assert report.count("metrics.csv: cannot be written (No space left on device); free space") == 1
    assert started.returncode == 1 and first_exit(report) == 2


@pytest.mark.skipif(not can_compile(torch.device("cpu"))[0], reason="no C++ compiler")
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_compiled_on_two_ranks_losses_are_those_of_one_process_that_is_not(
    data: Path, tmp_path: Path, mode: str
) -> None:
    script = tmp_path / "train.py"
    script.write_text(COMMAND_LINE, encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    options = f"--parallel {mode} --steps 8 --seq-len 16 --batch-tokens 128 --micro-batch 2 --log-every 1"
    options += " --eval-every 4 --eval-tokens 64 --device cpu --precision fp32 --compile on"
    options += " --optim.lr 1e-2 --optim.warmup-steps 2"
    options += " --model.n-layer 2 --model.n-head 2 --model.n-embd 16 --model.n-ctx 16 --model.dropout 0"
    files = ["--data", str(data), "--out", str(tmp_path / "run")]
    command = [*torchrun, str(tmp_path), "train", *files, *options.split()]
    subprocess.run(command, check=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    optim = OptimConfig(lr=1e-2, warmup_steps=2)
    alone = train(small(data, tmp_path / "alone", model=MODEL, optim=optim, steps=8, log_every=1, eval_every=4))
    run = Run(tmp_path / "run")
    assert (saved_config(run).compile, saved_config(run).parallel) == ("on", mode)
    for figure in ("train_loss", "val_loss"):
        expected = [row[figure] for row in alone.metrics() if row[figure] is not None]
        found = [row[figure] for row in run.metrics() if row[figure] is not None]
        assert len(expected) > 1 and found == pytest.approx(expected, abs=1e-5, rel=0)


STAGES = ["share", "weights", "state", "manifest", "rename"]


def die_while_saving(each: TrainConfig, stage: str) -> None:
    """Start a run whose second save is cut off by the death of a rank."""
    names = {"share": "write_sharded_state", "weights": "save_file", "manifest": "_publish"}
    home = checkpoint
    name, nth = names.get(stage, "write_json"), {"state": 3}.get(stage, 2)
    if stage == "rename":
        name, nth = "sync_directory", 5  # each save syncs two folders before the rename, and one after
    real, calls = getattr(home, name), []

    def dying(*arguments: object) -> object:
        calls.append(name)
        if len(calls) == nth and this_rank() == (1 if stage == "share" else 0):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    setattr(home, name, dying)
    start(each, nothing)


@pytest.mark.parametrize("stage", STAGES)
def test_a_rank_killed_during_a_sharded_save(data: Path, tmp_path: Path, stage: str) -> None:

    each = config(data, tmp_path / "run", "fsdp")
    with pytest.raises(AssertionError):
        launch(2, die_while_saving, each, stage)
    run = Run(tmp_path / "run")
    assert checkpoint.newest_valid(run, pytest.fail).step == 4
    assert launch(2, _resumed, each) == ["", ""]
    assert saved_steps(run) == [4, 8, 12]
    assert not [path for path in run.path.rglob("*") if path.name.startswith(".")]
    assert len(run.metrics()) == 12


def _resumed(each: TrainConfig) -> None:

    resume(dataclasses.replace(each, resume="last"), nothing)
