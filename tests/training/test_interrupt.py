"""Ctrl-C and SIGTERM finish the step, save, and say how to go on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from support import assert_same_run, at_step, go_on, saved_steps, small, train

from gpt2lab.runs import Run
from gpt2lab.training.distributed import Interrupted, catch_signals

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("step", [6, 13])
def test_a_signal_stops_after_the_step_and_the_run_goes_on_as_if_unbroken(
    data: Path, finished: Run, tmp_path: Path, number: signal.Signals, step: int
) -> None:
    config = small(data, tmp_path / "run")
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stopped:
        train(config, at_step(step, lambda: signal.raise_signal(number)))
    run = Run(tmp_path / "run")
    assert stopped.value.signal == number
    assert str(stopped.value) == (
        f"stopped after step {step + 1}, state saved; resume with: gpt2lab train --out {run.path} --resume"
    )
    assert saved_steps(run)[-1] == step + 1  # neither a multiple of log_every nor of checkpoint_every
    assert signal.getsignal(number) is before
    go_on(config)
    assert_same_run(run, finished)


def test_a_signal_in_the_last_step_lets_the_run_end(data: Path, finished: Run, tmp_path: Path) -> None:
    config = small(data, tmp_path / "run")
    run = train(config, at_step(23, lambda: signal.raise_signal(signal.SIGTERM)))
    assert_same_run(run, finished)


def test_a_second_ctrl_c_takes_effect_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), catch_signals() as received:
        signal.raise_signal(signal.SIGINT)
        assert received() == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_a_signal_nothing_is_received() -> None:
    with catch_signals() as received:
        assert received() is None
