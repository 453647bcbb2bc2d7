"""Models in which no bias is 0 and no gain 1, so that each would be missed."""

from __future__ import annotations

from typing import Any

import torch

from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT


def random_model(shape: dict[str, Any], scale: float = 0.2, seed: int = 0) -> GPT:
    """A model of a shape, without dropout unless it says otherwise, moved by random numbers of this deviation."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{"dropout": 0.0, **shape}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=scale)
    return model


def random_ids(vocab_size: int, *shape: int, seed: int = 0) -> torch.Tensor:
    """Token ids, the same for a seed."""
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))
