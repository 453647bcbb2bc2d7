"""One training of a run at a time; a lock that a process held ends with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ranks import launch, needs_fork
from support import at_step, go_on, nothing, saved_steps, small, snapshot, train

from gpt2lab.errors import InputError
from gpt2lab.runs import Run
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.distributed import SINGLE_PROCESS
from gpt2lab.training.session import held, resume

SAID = "run is being trained by another process; wait for it, or end it"
HOLD = """
import sys
from pathlib import Path
from gpt2lab.runs import Run
from gpt2lab.training.session import held
from gpt2lab.training.distributed import SINGLE_PROCESS
with held(Run(Path(sys.argv[1])), SINGLE_PROCESS):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_that_is_being_trained_is_not_resumed(data: Path, tmp_path: Path) -> None:
    config = small(data, tmp_path / "run", steps=12)

    def again() -> None:
        before = snapshot(tmp_path / "run")
        with pytest.raises(InputError, match=SAID):
            go_on(config)
        assert snapshot(tmp_path / "run") == before

    run = train(config, at_step(6, again))
    go_on(config, hooks=at_step(15, again), steps=16)
    assert saved_steps(run) == [4, 8, 12, 16]


def test_the_lock_of_a_killed_process_is_gone(copied: tuple[Run, TrainConfig]) -> None:
    run, config = copied
    command = [sys.executable, "-c", HOLD, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=SAID):
            go_on(config, steps=28)
        holder.kill()
    go_on(config, steps=28)
    assert saved_steps(run)[-1] == 28


def going_on(config: TrainConfig) -> None:
    """Go on with a run as one of several ranks."""
    resume(config, nothing)


@needs_fork
def test_every_rank_is_told_of_the_lock(data: Path, tmp_path: Path) -> None:
    config = small(data, tmp_path / "run", steps=4)
    run = train(config)
    with held(run, SINGLE_PROCESS):
        first, second = launch(2, going_on, small(data, run.path, steps=8, resume="last"))
    assert first.startswith("InputError: ")
    assert second.startswith("ReportedElsewhere: ")
    assert first.endswith(SAID)
    assert second.endswith(SAID)
