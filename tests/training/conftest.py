"""Small data, and one unbroken run that others are compared to."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import Alone, copy_of, small, train

from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.prepare import prepare
from gpt2lab.runs import Run
from gpt2lab.stories.corpus import stories
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.checkpoint import list_checkpoints
from gpt2lab.training.config import OptimConfig, TrainConfig
from ranks import quickly

TEXT = "".join(f"{n} cats and {n + 2} dogs went to the {'sea' if n % 3 else 'hill'}. " for n in range(50))


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Train small models quickly in this folder's modules; what other folders test is as it was."""
    with quickly():
        yield


def prepared(factory: pytest.TempPathFactory, text: str, n_vocab: int = 257, val_fraction: float = 0.2) -> Path:
    """Prepare a text as data."""
    folder = factory.mktemp("prepared")
    (folder / "text.txt").write_text(text, encoding="utf-8")
    tokenizer = Tokenizer.train([text], n_vocab)
    prepare([str(folder / "text.txt")], tokenizer, folder / "data", val_fraction=val_fraction)
    return folder / "data"


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """75 windows of 16 tokens to train on: an epoch is 9.4 steps of 8."""
    folder = prepared(tmp_path_factory, TEXT[:1600])
    assert (TokenDataset(folder).manifest.splits["train"].tokens - 1) // 16 == 75
    return folder


@pytest.fixture(scope="session")
def other_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another text with the same tokenizer."""
    return prepared(tmp_path_factory, TEXT[1:1601].upper())


@pytest.fixture(scope="session")
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same text with another tokenizer."""
    return prepared(tmp_path_factory, TEXT[:1600], n_vocab=270)


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 stories, which a small model does not memorize in a few steps."""
    return prepared(tmp_path_factory, "\n".join(story.text for story in itertools.islice(stories(0), 150)))


@pytest.fixture(scope="session")
def without_val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data without a validation split."""
    return prepared(tmp_path_factory, TEXT[:1600], val_fraction=0.0)


KINDS = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "muon": {"optim": OptimConfig(name="muon", lr=1e-2, warmup_steps=4)},
    "growing": {"grow_batch": "0.25:0.5", "grow_seq_len": "0.33:0.66"},  # at steps 6 and 12, 8 and 16
}


@pytest.fixture(scope="session", params=KINDS)
def unbroken(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of each kind that never stopped, with a checkpoint every 4 steps. Read it, do not write to it."""
    if request.param == "fp32":
        return request.getfixturevalue("finished")
    with quickly():  # this outlives the module that asks first, and may come before that one's `quick`
        return train(small(data, tmp_path_factory.mktemp("unbroken") / "run", **KINDS[request.param]))


@pytest.fixture(scope="session")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The unbroken run in fp32. Read it, do not write to it."""
    with quickly():
        return train(small(data, tmp_path_factory.mktemp("finished") / "run"))


@pytest.fixture
def copied(finished: Run, tmp_path: Path) -> tuple[Run, TrainConfig]:
    """A copy of the finished run, and its configuration."""
    return copy_of(finished, tmp_path / "run")


@pytest.fixture
def start() -> Iterator[Callable[..., Alone]]:
    """Train in a process of its own, resuming the run where it has a checkpoint; none outlives its test."""
    started: list[Alone] = []

    def begin(config: TrainConfig, threads: int = 1, largest_file: int | None = None) -> Alone:
        if config.out is not None and config.out.exists():
            if list_checkpoints(Run(config.out)):
                config = dataclasses.replace(config, resume="last")
            else:
                shutil.rmtree(config.out)
        started.append(Alone(config, threads, largest_file))
        return started[-1]

    yield begin
    for each in started:
        each.process.kill()
        each.process.join()
        each.told.close()
