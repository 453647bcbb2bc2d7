"""A random model, and streams of given tokens, for tests of evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from gpt2lab.data.shards import UINT16, ShardWriter, TokenStream, open_shard
from gpt2lab.evaluation.perplexity import HeldOut
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def model() -> GPT:
    """A model with 61 tokens and a context of 24, far enough from uniform for its choices to differ."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=3, n_embd=24, n_ctx=24, vocab_size=61, dropout=0.2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


@pytest.fixture(scope="session")
def held_out_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., HeldOut]:
    """Write tokens to shards of 37 and open them as the split "test", with a text of 1,000 bytes."""

    def held_out(tokens: Sequence[int] | np.ndarray, n_bytes: int = 1000, eot: int = 0, **known: Any) -> HeldOut:
        writer = ShardWriter(tmp_path_factory.mktemp("stream"), "test", UINT16, 37)
        writer.write(np.asarray(tokens))
        writer.finish()
        return HeldOut("test", TokenStream("test", [open_shard(path) for path in writer.paths]), n_bytes, eot, **known)

    return held_out


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A tokenizer for the words of HellaSwag items in tests."""
    return Tokenizer.train(["A man is sitting on a roof. He is holding a cube [title] and sings. " * 20], 300)
