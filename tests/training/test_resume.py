"""A run that stopped and was resumed is, bit for bit, the run that never stopped; one process at a time trains it."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import (
    PLAIN,
    Alone,
    Doing,
    assert_same_run,
    at_step,
    checkpoint,
    copy_of,
    digests,
    go_on,
    hidden,
    interrupted,
    refusal,
    rows,
    saved_steps,
    small,
    snapshot,
    train,
)
from torch import nn

from gpt2lab import runtime
from gpt2lab.evaluation.measure import LoadedRun
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.parts import FEED_FORWARDS
from gpt2lab.runs import Run
from gpt2lab.runtime import can_compile
from gpt2lab.training.config import OptimConfig, TrainConfig, saved_config
from gpt2lab.training.distributed import SINGLE_PROCESS, Interrupted, catch_signals
from gpt2lab.training.session import held
from ranks import launch, needs_fork

Copied = tuple[Run, TrainConfig]


@pytest.mark.parametrize("step", [4, 8, 16, 20], ids=lambda step: f"step{step}")
def test_resuming_from_any_checkpoint_ends_as_the_unbroken_run(unbroken: Run, tmp_path: Path, step: int) -> None:
    # Steps 4 and 16 lie between rows of metrics.csv; epochs end within steps 10 and 19; dropout is on.
    run, config = copy_of(unbroken, tmp_path / "run")
    go_on(config, step)
    assert_same_run(run, unbroken)


def test_resuming_several_times_ends_as_the_unbroken_run(unbroken: Run, tmp_path: Path) -> None:
    run, config = copy_of(unbroken, tmp_path / "run")
    for which, stop in (4, 10), ("last", 12), ("last", 17), (12, 13):
        interrupted(dataclasses.replace(config, resume=str(which)), stop)
    go_on(config)
    assert_same_run(run, unbroken)


class Experts(nn.Module):
    """A frozen matrix, and two experts of which the rows of a step reach only the first."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.eye(config.n_embd).flip(0), requires_grad=False)
        self.experts = nn.ModuleList(nn.Linear(config.n_embd, config.n_embd) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.experts
        return first(x @ self.turn) + second(x) if len(x) > 4 else first(x @ self.turn)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_frozen_parameters_and_those_without_a_gradient_yet_resume(
    optimizer: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FEED_FORWARDS, "experts", Experts)
    model, optim = dataclasses.replace(PLAIN, feed_forward="experts"), OptimConfig(name=optimizer, lr=1e-2)
    config = small(data, tmp_path / "run", model=model, optim=optim, steps=8)
    unbroken = train(dataclasses.replace(config, out=tmp_path / "unbroken"))
    interrupted(config, 5)
    assert_same_run(go_on(config), unbroken, 8)


def test_random_windows_resume_as_the_unbroken_run(data: Path, tmp_path: Path) -> None:
    config = small(data, tmp_path / "run", model=PLAIN, sampling="random")
    unbroken = train(dataclasses.replace(config, out=tmp_path / "unbroken"))
    interrupted(config, 10)
    assert_same_run(go_on(config), unbroken)
    ordered = train(dataclasses.replace(config, sampling="permutation", out=tmp_path / "ordered"))
    assert rows(ordered)[0]["train_loss"] != rows(unbroken)[0]["train_loss"]


def test_the_unbroken_run_repeats_itself(unbroken: Run, tmp_path: Path) -> None:
    again = dataclasses.replace(saved_config(unbroken).as_asked(), out=tmp_path / "again")
    assert_same_run(train(again), unbroken)


def test_another_seed_is_another_run(finished: Run, data: Path, tmp_path: Path) -> None:
    other = train(small(data, tmp_path / "run", seed=7))
    assert digests(other) != digests(finished)
    assert rows(other)[0]["train_loss"] != rows(finished)[0]["train_loss"]


@pytest.mark.skipif(not can_compile(torch.device("cpu"))[0], reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's own, inside the compiler
def test_compiled_with_two_threads_on_data_that_repeats_tokens(data: Path, tmp_path: Path) -> None:
    model = GPTConfig(n_layer=1, n_head=2, n_embd=32, n_ctx=16, dropout=0.1)
    config = small(data, tmp_path / "run", model=model, compile="on", batch_tokens=512, micro_batch=16, steps=16)
    torch.set_num_threads(2)
    try:
        with torch.compiler.config.patch(cache_key_tag=""):  # type: ignore[attr-defined]
            unbroken = train(config)
            assert torch.compiler.config.cache_key_tag == torch.backends.cpu.get_cpu_capability()
            run, again = copy_of(unbroken, tmp_path / "copy")
            assert_same_run(go_on(again, 4), unbroken, 16)
    finally:
        torch.set_num_threads(1)
    assert saved_config(run).compile == "on"


@pytest.mark.parametrize("schedule", ["linear", "constant", "wsd"])
def test_every_schedule_resumes(data: Path, tmp_path: Path, schedule: Any) -> None:
    optim = OptimConfig(lr=1e-2, warmup_tokens=4 * 128, schedule=schedule)
    unbroken = train(small(data, tmp_path / "unbroken", model=PLAIN, optim=optim))
    _, config = copy_of(unbroken, tmp_path / "run")
    assert_same_run(go_on(config, 12), unbroken)
    assert float(rows(unbroken)[0]["lr"]) == pytest.approx(1e-2, rel=0.3)


def test_the_length_is_kept_unless_more_steps_are_given(copied: Copied) -> None:
    run, config = copied
    go_on(config, 8, steps=None)
    assert (saved_config(run).steps, saved_steps(run)[-1]) == (24, 24)
    go_on(config, steps=32)
    assert [int(row["step"]) for row in rows(run)][-2:] == [30, 32]
    assert (saved_config(run).steps, saved_steps(run)[-1]) == (32, 32)


def test_more_steps_after_patience_ran_out(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 3.1, 3.2, 2.0, 2.1])
    monkeypatch.setattr("gpt2lab.training.loop.validation_loss", lambda *_: next(losses))
    config = small(data, tmp_path / "run", model=PLAIN, eval_every=4, patience=2)
    run = train(config)
    assert saved_steps(run)[-1] == 12
    before = snapshot(run.path)
    go_on(config)
    assert snapshot(run.path) == before
    go_on(config, patience=3, steps=20)
    assert saved_steps(run)[-1] == 20


@pytest.mark.parametrize("which", ["last", "24", "best"])
def test_a_finished_run_says_so_and_stays(copied: Copied, caplog: pytest.LogCaptureFixture, which: str) -> None:
    run, config = copied
    (run.checkpoints / ".step_00000025.1.tmp").mkdir()
    before = snapshot(run.path)
    with caplog.at_level("INFO", logger="gpt2lab"):
        go_on(config, which)
    assert "is finished (24 steps done): nothing to do" in caplog.text
    assert snapshot(run.path) == before


def test_later_checkpoints_are_kept_aside(copied: Copied) -> None:
    run, config = copied
    weights = (checkpoint(run, 24) / "model.safetensors").read_bytes()
    go_on(config, 16)
    aside = run.checkpoints / "step_00000024.before_resume_at_16"
    assert (aside / "model.safetensors").read_bytes() == weights
    go_on(config, 16)
    assert (run.checkpoints / "step_00000024.before_resume_at_16-2").is_dir()
    assert saved_steps(run) == [4, 8, 12, 16, 20, 24]


def test_what_came_later_or_was_cut_off_by_a_kill_is_dropped(copied: Copied) -> None:
    run, config = copied
    half = run.checkpoints / ".step_00000099.12345.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (run.path / ".metrics.csv.12345.tmp").write_bytes(b"half")
    for step, text in ((8, "early"), (24, "late")):
        run.add_eval(step, "perplexity", "test", "p", "loss", 1.0)
        run.add_sample(step, "greedy", "", text)
    with (run.path / "metrics.csv").open("a", encoding="utf-8") as file:
        file.write("25,3200,2.6")
    go_on(config, 12)
    assert [row["step"] for row in run.evals()] == ["8"]
    assert [sample["text"] for sample in run.samples()] == ["early"]
    assert [int(row["step"]) for row in rows(run)] == [5, 8, 10, 15, 16, 20, 24]
    assert not hidden(run)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"micro_batch": 2}, "micro_batch was 4 and is 2: from here on equal to an unbroken run but for rounding"),
        ({"precision": "bf16"}, "precision was fp32 and is bf16: "),
    ],
    ids=["micro_batch", "precision"],
)
def test_a_run_may_move_to_another_machine_with_a_warning(
    copied: Copied, caplog: pytest.LogCaptureFixture, change: dict[str, Any], said: str
) -> None:
    run, config = copied
    go_on(config, 20, **change)
    assert said in caplog.text
    assert saved_steps(run)[-1] == 24
    assert {name: getattr(saved_config(run), name) for name in change} == change


@pytest.mark.parametrize("speedup", [0.1, 9.0])
def test_auto_evaluates_in_the_precision_of_training(
    unbroken: Run, monkeypatch: pytest.MonkeyPatch, speedup: float
) -> None:
    monkeypatch.setattr(runtime, "bf16_speedup", lambda: speedup)
    used = [LoadedRun(unbroken.path, "best", "cpu", asked).runtime.precision for asked in ("auto", "bf16")]
    assert used == [saved_config(unbroken).precision, "bf16"]


def test_auto_threads_and_moved_data_change_nothing(
    copied: Copied, data: Path, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = copied
    auto = dict.fromkeys(("micro_batch", "precision", "device", "compile"), "auto")
    moved = Path(shutil.copytree(data, tmp_path / "moved"))
    used: list[str] = []
    hooks = Doing(begin=lambda run, where: used.append(where.precision))
    monkeypatch.setattr(runtime, "bf16_speedup", lambda: 9.0)
    go_on(config, 8, hooks, data=moved, loader_workers=0, **auto)
    assert used == ["fp32"]
    assert (saved_config(run).micro_batch, saved_config(run).data) == (4, moved)
    assert_same_run(run, finished)


def test_intervals_may_change(copied: Copied) -> None:
    run, config = copied
    go_on(config, 20, log_every=1, checkpoint_every=2, keep_last=2, patience=5)
    assert [int(row["step"]) for row in rows(run)][-4:] == [21, 22, 23, 24]
    assert saved_config(run).patience == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [6, 13])
def test_a_signal_stops_after_the_step_and_the_run_resumes_as_if_unbroken(
    data: Path, finished: Run, tmp_path: Path, number: signal.Signals, step: int
) -> None:
    config, run = small(data, tmp_path / "run"), Run(tmp_path / "run")
    before = signal.getsignal(number)
    stopped = interrupted(config, step, number)
    assert stopped.signal == number
    assert str(stopped) == (
        f"stopped after step {step + 1}, state saved; resume with: gpt2lab train --out {run.path} --resume"
    )
    assert saved_steps(run)[-1] == step + 1  # neither a multiple of log_every nor of checkpoint_every
    assert signal.getsignal(number) is before
    assert_same_run(go_on(config), finished)


def test_a_signal_at_any_moment_is_deferred_to_the_end_of_the_step(data: Path, tmp_path: Path) -> None:
    late = dict.fromkeys(("steps", "checkpoint_every", "eval_every"), 100_000)
    config = small(data, tmp_path / "run", model=PLAIN, **late)
    soon = threading.Timer(0.1, signal.raise_signal, [signal.SIGTERM])
    with pytest.raises(Interrupted) as stopped:
        train(config, at_step(20, soon.start))
    assert saved_steps(Run(tmp_path / "run")) == [stopped.value.step]
    go_on(config, steps=stopped.value.step + 5)
    assert saved_steps(Run(tmp_path / "run"))[-1] == stopped.value.step + 5


def test_a_signal_in_the_last_step_lets_the_run_end(data: Path, finished: Run, tmp_path: Path) -> None:
    run = train(small(data, tmp_path / "run"), at_step(23, lambda: signal.raise_signal(signal.SIGTERM)))
    assert_same_run(run, finished)


def test_a_second_ctrl_c_takes_effect_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), catch_signals() as received:
        assert received() is None
        signal.raise_signal(signal.SIGINT)
        assert received() == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


TAKEN = "run is being trained by another process; wait for it, or end it"


def test_a_run_that_is_being_trained_is_not_resumed(data: Path, tmp_path: Path) -> None:
    config = small(data, tmp_path / "run", model=PLAIN, steps=12)

    def again() -> None:
        before = snapshot(tmp_path / "run")
        refusal(lambda: go_on(config), TAKEN)
        assert snapshot(tmp_path / "run") == before

    run = train(config, at_step(6, again))
    go_on(config, hooks=at_step(15, again), steps=16)
    assert saved_steps(run) == [4, 8, 12, 16]


@needs_fork
def test_the_lock_of_a_killed_process_is_gone(copied: Copied, start: Callable[..., Alone]) -> None:
    run, config = copied
    training = start(dataclasses.replace(config, steps=100_000, checkpoint_every=100_000))
    assert training.told.recv() == 25
    refusal(lambda: go_on(config, steps=28), TAKEN)
    training.kill_after(0)
    go_on(config, steps=28)
    assert saved_steps(run)[-1] == 28


@needs_fork
def test_every_rank_is_told_of_the_lock(copied: Copied) -> None:
    run, config = copied
    with held(run, SINGLE_PROCESS):
        said = launch(2, train, dataclasses.replace(config, resume="last", steps=28))
    assert [line.split(": ")[0] for line in said] == ["InputError", "ReportedElsewhere"]
    assert all(line.endswith(TAKEN) for line in said)
