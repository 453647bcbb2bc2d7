"""Processes killed while they train: nothing is lost but the steps since the last checkpoint, and none of it shows."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support import assert_same_run, go_on, saved_steps, small, train

from gpt2lab.model.config import GPTConfig
from gpt2lab.runs import Run
from gpt2lab.runtime import can_compile
from gpt2lab.training import checkpoint
from gpt2lab.training.config import TrainConfig, to_dict

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither SIGKILL nor limits on files")
TRAIN = """
import json, sys
import torch
torch.set_num_threads(int(sys.argv[2]))
from gpt2lab.training.loop import Hooks
from gpt2lab.training.distributed import Interrupted
from gpt2lab.training.config import from_dict
from gpt2lab.training.session import resume, start

told = []

def on_step(report):
    if not told:
        told.append(print("ready", flush=True))

config = from_dict(json.loads(sys.argv[1]))
try:
    (start if config.resume is None else resume)(config, lambda run: Hooks(on_step=on_step))
except Interrupted as stop:
    print(stop)
    sys.exit(128 + stop.signal)
"""
DIE = """
import os, shutil, signal, sys
from pathlib import Path
from gpt2lab.training import checkpoint

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def around(name, nth, when, home=checkpoint):
    calls, real = [], getattr(home, name)
    def patched(*args, **kwargs):
        calls.append(name)
        if len(calls) == nth and when == "before":
            die()
        result = real(*args, **kwargs)
        if len(calls) == nth:
            die()
        return result
    setattr(home, name, patched)

def die_within_weights():
    saved, real = [], checkpoint.save_file
    def half(tensors, path):
        real(tensors, path)
        saved.append(path)
        if len(saved) == 3:
            path.write_bytes(path.read_bytes()[:1000])
            die()
    checkpoint.save_file = half

def die_within_removal():
    def some(folder):
        (Path(folder) / "model.safetensors").unlink()
        die()
    shutil.rmtree = some
"""
STAGES = {
    # Of the second save: each writes two files of tensors, two of JSON, and syncs two folders.
    "within the weights": "die_within_weights()",
    "after the weights": "around('save_file', 3, 'after')",
    "after the optimiser": "around('save_file', 4, 'after')",
    "after the state": "around('write_json', 3, 'after')",
    "before the manifest": "around('write_json', 4, 'before')",
    "before the rename": "around('sync_directory', 3, 'after')",
    "after the rename": "around('sync_directory', 4, 'before')",
    "before pruning": "around('prune', 2, 'before')",
    "while pruning": "die_within_removal()",
    "after pruning": "around('prune', 2, 'after')",
}


Launch = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def launch() -> Iterator[Launch]:
    """Train in a process of its own, going on with the run where it has a checkpoint; none outlives its test."""
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


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    """Return after the first step."""
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def test_sigterm_to_a_process(launch: Launch, data: Path, tmp_path: Path) -> None:
    config = small(data, tmp_path / "run", steps=100_000, checkpoint_every=100_000, eval_every=100_000)
    process = launch(config)
    wait_until_ready(process)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    run = Run(tmp_path / "run")
    (step,) = saved_steps(run)
    assert process.returncode == 128 + signal.SIGTERM
    assert said == f"stopped after step {step}, state saved; resume with: gpt2lab train --out {run.path} --resume\n"
    go_on(config, steps=step + 5)
    assert saved_steps(run) == [step, step + 5]


@pytest.mark.fault
def test_killed_at_twenty_random_moments(launch: Launch, data: Path, tmp_path: Path) -> None:
    options = {"steps": 800, "checkpoint_every": 3, "keep_last": 2, "eval_every": 50, "log_every": 7}
    unbroken = train(small(data, tmp_path / "unbroken", **options))
    seconds = unbroken.metrics()[-1]["seconds"] or 0.0
    config, moments = small(data, tmp_path / "run", **options), random.Random(20)
    for _ in range(20):  # of the run's whole length about 0.6 in expectation, so that it is not over before the last
        process = launch(config)
        wait_until_ready(process)
        time.sleep(moments.uniform(0.0, seconds / 16))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    last = launch(config)
    last.communicate(timeout=200)
    assert last.returncode == 0
    run = Run(tmp_path / "run")
    assert_same_run(run, unbroken, 800)
    assert not [p for p in run.path.rglob("*") if p.name.startswith(".")]


@pytest.mark.fault
@pytest.mark.skipif(not can_compile(torch.device("cpu"))[0], reason="no C++ compiler")
def test_compiled_with_two_threads_and_killed_in_several_processes(launch: Launch, data: Path, tmp_path: Path) -> None:
    model = GPTConfig(n_layer=1, n_head=2, n_embd=32, n_ctx=16, dropout=0.1)
    options = {"model": model, "compile": "on", "batch_tokens": 512, "micro_batch": 16, "steps": 60, "eval_every": 50}
    unbroken, config = (small(data, tmp_path / name, **options) for name in ("unbroken", "run"))
    assert launch(unbroken, threads=2).wait(timeout=200) == 0
    for step in (8, 20):
        process = launch(config, threads=2)
        while max(saved_steps(Run(tmp_path / "run")) if (tmp_path / "run").exists() else [], default=0) < step:
            time.sleep(0.01)
            assert process.poll() is None
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert launch(config, threads=2).wait(timeout=200) == 0
    assert_same_run(Run(tmp_path / "run"), Run(tmp_path / "unbroken"), 60)


@pytest.fixture(scope="module")
def saves_often(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The unbroken run that those killed while saving are compared to."""
    return train(small(data, tmp_path_factory.mktemp("often") / "run", steps=12, keep_last=1, eval_every=100))


@pytest.mark.fault
@pytest.mark.parametrize("stage", STAGES)
def test_killed_during_a_save(launch: Launch, data: Path, saves_often: Run, tmp_path: Path, stage: str) -> None:
    config = small(data, tmp_path / "run", steps=12, keep_last=1, eval_every=100)
    process = launch(config, f"{DIE}\n{STAGES[stage]}\n")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    run = Run(config.out or tmp_path)
    newest = checkpoint.newest_valid(run, pytest.fail)
    renamed = list(STAGES).index(stage) >= list(STAGES).index("after the rename")
    assert newest.step == (8 if renamed else 4)
    go_on(config)
    assert_same_run(run, saves_often, 12)
    assert saved_steps(run) == [12]
    assert not [p for p in run.path.rglob("*") if p.name.startswith(".")]


@pytest.mark.fault
def test_a_file_that_cannot_grow(launch: Launch, data: Path, tmp_path: Path) -> None:
    limited = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
    process = launch(small(data, tmp_path / "run"), limited)
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert saved_steps(Run(tmp_path / "run")) == []
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]
