"""What is refused before several processes begin: worlds that do not fit the batch, and others that never come."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import small

from gpt2lab.data.dataset import TokenDataset
from gpt2lab.errors import InputError
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.distributed import Communicator, process_group
from gpt2lab.training.setup import resolve


def of_world(world: int) -> Communicator:
    """The processes of a run as rank 0 sees them."""
    return Communicator(0, world, 0, "a launch")


def resolved(config: TrainConfig, comm: Communicator) -> str:
    """The mode that a configuration gets."""
    return resolve(config, TokenDataset(config.data), comm).config.parallel


@pytest.mark.parametrize(
    ("world", "said"),
    [
        (3, r"3 processes cannot share the 8 sequences of a step evenly; start 2 or 4, .* such as 144"),
        (7, r"start 4 or 8, the nearest that can"),
        (9, r"9 processes, but a step of 128 tokens has only 8 sequences of 16; start at most 8"),
    ],
)
def test_a_world_that_does_not_divide_the_step_is_told_what_does(
    data: Path, tmp_path: Path, world: int, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        resolved(small(data, tmp_path / "run", micro_batch=1), of_world(world))


def test_modes(data: Path, tmp_path: Path) -> None:
    def config(mode: str) -> TrainConfig:
        return small(data, tmp_path / "run", micro_batch=1, parallel=mode)

    assert resolved(config("auto"), Communicator()) == "none"
    assert resolved(config("auto"), of_world(2)) == "ddp"
    assert resolved(config("fsdp"), of_world(2)) == "fsdp"
    with pytest.raises(InputError, match="parallel is none, but torchrun started 2 processes"):
        resolved(config("none"), of_world(2))
    with pytest.raises(InputError, match="parallel ddp needs torchrun: torchrun --standalone"):
        resolved(config("ddp"), Communicator())


def test_processes_that_nobody_meets_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(InputError, match="RANK is set, but another variable of torchrun is missing or invalid"),
        process_group("cpu"),
    ):
        pass
    monkeypatch.setenv("MASTER_PORT", "1")
    for seconds in ("abc", "0", "nan", "inf"):
        monkeypatch.setenv("GPT2LAB_RENDEZVOUS_SECONDS", seconds)
        with (
            pytest.raises(
                InputError, match=f'^GPT2LAB_RENDEZVOUS_SECONDS is "{seconds}"; give a number of seconds above 0 and at'
            ),
            process_group("cpu"),
        ):
            pass
    monkeypatch.setenv("GPT2LAB_RENDEZVOUS_SECONDS", "1")
    with (
        pytest.raises(InputError, match=r"rank 1 of 2 could not reach the other ranks at .* within 1 s"),
        process_group("cpu"),
    ):
        pass
