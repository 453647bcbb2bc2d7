"""Token files are read to the end by one rank of a machine, and what it finds ends all of them before step 1."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from ranks import launch, needs_fork, this_rank
from support import nothing, saved_steps, small

from gpt2lab.data import dataset
from gpt2lab.runs import Run
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.session import resume, start

pytestmark = needs_fork


def read(*_: object) -> None:
    raise AssertionError("this rank reads the files too")


def train_without_reading(each: TrainConfig) -> None:
    """Start a run and go on with it, on rank 1 without reading any file to the end."""
    if this_rank() == 1:
        dataset.checked_sha256 = read
    (start if each.resume is None else resume)(each, nothing)


def train_on_two(each: TrainConfig, folder: Path) -> None:
    """Start a run whose rank 1 has its data elsewhere."""
    start(dataclasses.replace(each, data=folder) if this_rank() == 1 else each, nothing)


def flip(folder: Path) -> None:
    """Change a bit of the last token."""
    (shard,) = folder.glob("train_*.bin")
    content = bytearray(shard.read_bytes())
    content[-2] ^= 1
    shard.write_bytes(content)


def test_one_rank_of_a_machine_checks_for_all(data: Path, tmp_path: Path) -> None:
    each = small(data, tmp_path / "run", steps=4, micro_batch=2)
    assert launch(2, train_without_reading, each) == ["", ""]
    assert launch(2, train_without_reading, dataclasses.replace(each, resume="last", steps=8)) == ["", ""]
    assert saved_steps(Run(tmp_path / "run")) == [4, 8]


def test_a_flipped_bit_is_found_by_whoever_has_the_file(data: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(data, tmp_path / "flipped"))
    flip(other)
    for folder, rank in ((other, 0), (data, 1)):
        each = small(folder, tmp_path / "run", steps=4, micro_batch=2)
        said = launch(2, train_on_two, each, other)
        assert [line.split(": ")[0] for line in said] == ["InputError", "ReportedElsewhere"]
        assert "changed since it was written" in said[0] and ("rank 1: " in said[0]) == (rank == 1)
        assert not (tmp_path / "run").exists()
