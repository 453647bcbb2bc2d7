"""GPT-2 from scratch, and a laboratory around it.

The names below are the public API; they are imported on first use, so that ``import gpt2lab`` costs nothing::

    from gpt2lab import GPT, GPTConfig, Tokenizer, TrainConfig, generate, train
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2lab.generation import generate
    from gpt2lab.lab.train import train
    from gpt2lab.model.config import GPTConfig
    from gpt2lab.model.gpt import GPT
    from gpt2lab.tokenizer.tokenizer import Tokenizer
    from gpt2lab.training.config import TrainConfig

__version__ = "0.1.0"
__all__ = ["GPT", "GPTConfig", "Tokenizer", "TrainConfig", "generate", "train"]

_HOME = {
    "GPT": "model.gpt",
    "GPTConfig": "model.config",
    "Tokenizer": "tokenizer.tokenizer",
    "TrainConfig": "training.config",
    "generate": "generation",
    "train": "lab.train",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its package on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'gpt2lab' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gpt2lab.{_HOME[name]}"), name)
