from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gpt2lab.errors import InputError
from gpt2lab.model.config import PRESETS, GPTConfig
from gpt2lab.model.gpt import GPT

PUBLISHED = {
    "nano": (1, 2, 64, 128, 0.0, 3_274_752),
    "tiny": (2, 4, 128, 256, 0.1, 6_862_464),
    "distilgpt2": (6, 12, 768, 1024, 0.1, 81_912_576),
    "gpt2": (12, 12, 768, 1024, 0.1, 124_439_808),
    "gpt2-medium": (24, 16, 1024, 1024, 0.1, 354_823_168),
    "gpt2-large": (36, 20, 1280, 1024, 0.1, 774_030_080),
    "gpt2-xl": (48, 25, 1600, 1024, 0.1, 1_557_611_200),
    "gpt2-modern": (12, 12, 768, 1024, 0.0, 2 * 50257 * 768 + 12 * (12 * 768**2 + 2 * 768 + 2 * 64) + 768),
    "cs336": (4, 16, 512, 256, 0.0, 22_696_448),
}
"""Layers, heads, width, context, dropout and number of parameters."""


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_have_the_published_shape_and_parameter_count(name: str) -> None:
    config = GPTConfig.preset(name)
    with torch.device("meta"):
        n_params = GPT(config).n_params
    shape = (config.n_layer, config.n_head, config.n_embd, config.n_ctx)
    assert (*shape, config.dropout, n_params) == PUBLISHED[name]
    assert config.vocab_size == (10_000 if name == "cs336" else 50257)


def test_the_model_of_cs336_is_the_assignments() -> None:
    """Section 7.2 (2025): d_ff 1344, RoPE theta 10,000, about 17 million parameters without the token embedding."""
    config = GPTConfig.preset("cs336")
    assert (config.inner, config.rope_base, config.norm_eps) == (1344, 10_000, 1e-5)
    assert config.rope_pairing == "interleaved"
    assert PUBLISHED["cs336"][-1] - 10_000 * 512 == pytest.approx(17e6, rel=0.05)


@pytest.mark.parametrize(("vocab_size", "padded"), [(1, 64), (63, 64), (64, 64), (65, 128), (50257, 50304)])
def test_the_vocabulary_is_padded_to_a_multiple_of_64(vocab_size: int, padded: int) -> None:
    assert GPTConfig(vocab_size=vocab_size).padded_vocab == padded


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_inner", [None, 10, 200])
def test_parameters_are_counted_without_padding_and_the_tied_head_once(bias: bool, n_inner: int | None) -> None:
    L, C, V, T, F = 3, 24, 100, 17, n_inner or 96
    config = GPTConfig(n_layer=L, n_head=4, n_embd=C, n_ctx=T, vocab_size=V, n_inner=n_inner, bias=bias)
    matrices = V * C + T * C + L * (3 * C * C + C * C + 2 * C * F) + (2 * L + 1) * C
    biases = L * (3 * C + C + F + C) + (2 * L + 1) * C
    model = GPT(config)
    assert model.n_params == matrices + biases * bias
    assert any(name.endswith("bias") for name, _ in model.named_parameters()) == bias


def test_a_preset_takes_changes() -> None:
    config = GPTConfig.preset("gpt2", n_layer=2, dropout=0.0)
    assert (config.n_layer, config.dropout, config.n_embd) == (2, 0.0, 768)
    assert PRESETS["gpt2"].n_layer == 12


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_layer": 0}, "n_layer is 0; it must be at least 1"),
        ({"n_ctx": -5}, "n_ctx is -5; it must be at least 1"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"n_inner": 0}, r"n_inner is 0; it must be at least 1"),
        ({"n_embd": 64, "n_head": 5}, r"n_embd 64 is not divisible by n_head 5; .* fit: \[1, 2, 4, 8\]"),
        ({"dropout": 1.0}, "dropout is 1.0; it must be at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"n_kv_head": 3}, r"n_kv_head is 3; it must divide n_head 4: choose from \[1, 2, 4\]"),
        ({"n_kv_head": 0}, "n_kv_head is 0; it must divide"),
        ({"mask": "window"}, "mask window needs window: give it, from 1 to the context of 20"),
        ({"mask": "window", "window": 0}, "window is 0; it must be between 1 and the context of 20"),
        ({"mask": "window", "window": 21}, "window is 21; it must be between 1 and the context of 20"),
        ({"window": 5}, "window is 5, but mask causal has none; take mask window or global or strided"),
        ({"mask": "strided", "window": 5, "prefix": 2}, "prefix is 2, but mask strided has none; take mask global or"),
        ({"mask": "windoww"}, r'unknown mask "windoww" \(did you mean "window"\?\)'),
        ({"position": "rotary"}, 'unknown position "rotary"'),
        ({"position": "rope", "n_embd": 36}, "36 / n_head 4 = 9 per head is odd; choose another n_head or n_embd"),
        ({"position": "rope", "rope_base": 1.0}, "rope_base is 1.0; it must be above 1"),
        ({"norm": "both"}, 'unknown norm "both"'),
        ({"kernel": "banded"}, "kernel banded needs a causal mask of limited reach, and mask causal has none"),
        ({"kernel": "flex", "dropout": 0.1}, "kernel flex cannot drop attention weights; set dropout 0"),
        ({"kernel": "spda"}, r'unknown kernel "spda" \(did you mean "sdpa"\?\); choose from auto, '),
    ],
)
def test_impossible_values_are_refused_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        GPTConfig(**({"n_head": 4, "n_embd": 32, "n_ctx": 20, "dropout": 0.0} | values))
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r'unknown preset "gpt2-meduim" \(did you mean "gpt2-medium"\?\); choose from'):
        GPTConfig.preset("gpt2-meduim")


@pytest.mark.parametrize("kernel", ["reference", "matmul"])
@pytest.mark.parametrize(
    "options",
    [{}, {"n_inner": 50}, {"activation": "swiglu", "attention_gate": True}, {"latent_dim": 9, "position": "rope"}],
    ids=str,
)
@pytest.mark.parametrize(("B", "T"), [(1, 16), (3, 7)])
def test_the_formula_equals_a_count_of_the_products_of_a_training_step(
    B: int, T: int, options: Any, kernel: Any
) -> None:
    config = GPTConfig(n_layer=3, n_head=2, n_embd=32, n_ctx=16, vocab_size=192, dropout=0.0, kernel=kernel, **options)
    model = GPT(config)
    tokens = torch.zeros(B, T, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens, tokens).loss.backward()
    assert counter.get_total_flops() == config.flops_per_token(T) * B * T


def test_operations_of_gpt2_124m_by_hand() -> None:
    # 124,439,808 parameters without the 786,432 of wpe, the biases and the norms; attention over 1,024 positions
    products = 12 * 12 * 768**2 + 50257 * 768
    assert PRESETS["gpt2"].flops_per_token(1024) == 6 * products + 12 * 12 * 768 * 1024
