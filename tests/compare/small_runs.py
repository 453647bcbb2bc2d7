"""Small data and a small training configuration for comparisons."""

from __future__ import annotations

from pathlib import Path

from gpt2lab.data.prepare import prepare
from gpt2lab.model.config import GPTConfig
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.config import TrainConfig

TEXT = "".join(f"{n} cats and {n + 2} dogs went to the {'sea' if n % 3 else 'hill'}. " for n in range(80))


def prepare_text(folder: Path, text: str = TEXT, test_fraction: float = 0.2) -> Path:
    """Prepare a text as bytes; return the directory of the data."""
    (folder / "text.txt").write_text(text, encoding="utf-8")
    tokenizer = Tokenizer.train([TEXT], 257)
    prepare([str(folder / "text.txt")], tokenizer, folder / "data", val_fraction=0.2, test_fraction=test_fraction)
    return folder / "data"


def base_config(data: Path) -> TrainConfig:
    """A few steps of a tiny model."""
    model = GPTConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=16, dropout=0.0)
    return TrainConfig(
        data=data, model=model, steps=6, batch_tokens=64, eval_every=2, log_every=2, checkpoint_every=2, device="cpu"
    )
