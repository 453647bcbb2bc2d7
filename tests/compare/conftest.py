"""Small data and a small training configuration for comparisons."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2lab.data.prepare import prepare
from gpt2lab.model.config import GPTConfig
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.config import TrainConfig

TEXT = "".join(f"{n} cats and {n + 2} dogs went to the {'sea' if n % 3 else 'hill'}. " for n in range(80))
PrepareText = Callable[..., Path]


@pytest.fixture(scope="session")
def prepare_text(tmp_path_factory: pytest.TempPathFactory) -> PrepareText:
    """Prepare a text as bytes, its sentences separated by something; return the directory of the data."""

    def prepared(separator: str = ". ", test_fraction: float = 0.2) -> Path:
        folder = tmp_path_factory.mktemp("compare")
        (folder / "text.txt").write_text(TEXT.replace(". ", separator), encoding="utf-8")
        tokenizer = Tokenizer.train([TEXT], 257)
        prepare([str(folder / "text.txt")], tokenizer, folder / "data", val_fraction=0.2, test_fraction=test_fraction)
        return folder / "data"

    return prepared


@pytest.fixture(scope="session")
def data(prepare_text: PrepareText) -> Path:
    return prepare_text()


@pytest.fixture(scope="session")
def base(data: Path) -> TrainConfig:
    """A few steps of a tiny model."""
    model = GPTConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=16, dropout=0.0)
    config = TrainConfig(data=data, model=model, steps=6, batch_tokens=64, device="cpu")
    return dataclasses.replace(config, eval_every=2, log_every=2, checkpoint_every=2)
