"""The validation loss: of all the split or of the same windows each time, spread evenly over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import small, train

from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.training.checkpoint import load_model
from gpt2lab.training.loop import validation_loss


def _windows(folder: Path) -> torch.Tensor:
    """Every whole window of the validation split, from the file itself: llm.c's header is 1,024 bytes."""
    tokens = np.fromfile(next(folder.glob("val*.bin")), dtype="<u2", offset=1024).astype(np.int64)
    return torch.from_numpy(np.stack([tokens[i : i + 17] for i in range(0, len(tokens) - 16, 16)]))


def test_validation_with_0_tokens_uses_all_of_them(data: Path, tmp_path: Path) -> None:
    run = train(small(data, tmp_path / "run", eval_tokens=0))
    model, _ = load_model(run, "last")
    windows = _windows(data)
    with torch.no_grad():
        logits = model(windows[:, :-1]).logits
    assert logits is not None
    expected = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()
    assert run.metrics()[-1]["val_loss"] == pytest.approx(expected, abs=1e-5)


class Reads:
    """A stream of tokens that remembers where it was read."""

    def __init__(self, length: int) -> None:
        self.name = "memory"
        self.tokens = np.random.default_rng(0).integers(0, 257, length).astype(np.uint16)
        self.starts: list[int] = []

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        self.starts += starts.tolist()
        return np.stack([self.tokens[start : start + length] for start in starts])


@pytest.mark.parametrize(
    ("max_tokens", "starts"),
    [(0, range(0, 1600, 16)), (5000, range(0, 1600, 16)), (80, [0, 320, 640, 960, 1280]), (3, [0])],
    ids=["all", "more than there are", "five", "less than one"],
)
def test_validation_reads_the_same_windows_each_time_spread_evenly(max_tokens: int, starts: Any) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(1, 2, 16, 16, vocab_size=257)).eval()
    losses = []
    for _ in range(2):
        stream = Reads(1601)
        losses.append(validation_loss(model, stream, 16, max_tokens))  # type: ignore[arg-type]
        assert stream.starts == list(starts)
    assert losses[0] == losses[1]
