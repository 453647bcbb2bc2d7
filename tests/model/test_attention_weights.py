"""Attention weights against those that Hugging Face's GPT-2 returns, and for every mask and position."""

from __future__ import annotations

import pytest
import torch

from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.model.inspection import attention_weights

SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_ctx": 16, "vocab_size": 50, "dropout": 0.0}


def test_weights_are_those_of_hugging_face(hugging_face_twin) -> None:
    model = GPT(GPTConfig(**SIZES))
    tokens = torch.randint(50, (2, 12))
    theirs = hugging_face_twin(model)(tokens, output_attentions=True).attentions
    torch.testing.assert_close(attention_weights(model, tokens), torch.stack(theirs), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{"position": "rope"}, {"n_kv_head": 1}, {"mask": "window", "window": 3}, {"norm": "post"}], ids=str
)
def test_rows_sum_to_one_and_what_is_masked_is_zero(options: dict) -> None:
    model = GPT(GPTConfig(**SIZES, **options))
    weights = attention_weights(model, torch.randint(50, (1, 12)))
    assert weights.shape == (2, 1, 4, 12, 12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 1, 4, 12))
    assert not weights.triu(1).any()
    if "window" in options:
        assert not weights.tril(-3).any()
