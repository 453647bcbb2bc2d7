"""Rotary positions in their forms, sinusoids and ALiBi, against Hugging Face's and by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from random_models import random_ids, random_model
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import flex_attention

from gpt2lab.errors import InputError
from gpt2lab.model import attention, banded
from gpt2lab.model.attention import AttentionPattern
from gpt2lab.model.cache import KVCache
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT, attention_weights
from gpt2lab.model.masks import causal
from gpt2lab.model.positions import (
    SINUSOID_SCALE,
    alibi,
    alibi_slopes,
    frequencies,
    make_rotate,
    rotation,
    sinusoidal,
)
from gpt2lab.runtime import can_compile

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_ctx": 20, "vocab_size": 61, "dropout": 0.0}


def model_of(**changes: Any) -> GPT:
    return random_model(SHAPE | changes, 0.1).eval()


def tokens_of(rows: int = 3) -> torch.Tensor:
    return random_ids(61, rows, 20, seed=1)


def rope_of(head_dim: int, **options: Any) -> GPTConfig:
    return GPTConfig(1, 4, 4 * head_dim, 512, position="rope", **options)


# Rotary ---------------------------------------------------------------------------------------------------------------


def rotated(x: torch.Tensor, positions: torch.Tensor, config: GPTConfig) -> torch.Tensor:
    return make_rotate(config)(x, rotation(positions, config, x.dtype))


def test_rotation_equals_hugging_faces_llama() -> None:
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(hidden_size=32, num_attention_heads=4)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 500.0}
    x = torch.randn(2, 3, 9, 8)
    positions = torch.arange(5, 14)
    cos, sin = LlamaRotaryEmbedding(config)(x, positions[None])
    expected, _ = apply_rotary_pos_emb(x, x, cos, sin)
    torch.testing.assert_close(rotated(x, positions, rope_of(8, rope_base=500.0)), expected)


def test_the_interleaved_pairing_equals_hugging_faces_gpt_j() -> None:
    from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb, create_sinusoidal_positions

    x = torch.randn(2, 3, 9, 8)
    sin, cos = create_sinusoidal_positions(14, 8)[None, 5:14].chunk(2, dim=-1)
    expected = apply_rotary_pos_emb(x.transpose(1, 2), sin, cos).transpose(1, 2)
    config = rope_of(8, rope_pairing="interleaved")
    torch.testing.assert_close(rotated(x, torch.arange(5, 14), config), expected)


def test_a_fraction_of_the_head_rotates_as_in_hugging_faces_gpt_neox() -> None:
    from transformers.models.gpt_neox.configuration_gpt_neox import GPTNeoXConfig
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding, apply_rotary_pos_emb

    config = GPTNeoXConfig(hidden_size=64, num_attention_heads=4)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}
    x, positions = torch.randn(2, 4, 9, 16), torch.arange(9)
    cos, sin = GPTNeoXRotaryEmbedding(config)(x, positions[None])
    assert cos.shape[-1] == 4
    expected, _ = apply_rotary_pos_emb(x, x, cos, sin)
    torch.testing.assert_close(rotated(x, positions, rope_of(16, rope_fraction=0.25)), expected)


def hugging_faces_frequencies(kind: str, head_dim: int, **parameters: Any) -> tuple[torch.Tensor, float]:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.configuration_llama import LlamaConfig

    config = LlamaConfig(hidden_size=4 * head_dim, num_attention_heads=4, max_position_embeddings=512)
    config.rope_parameters = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 4.0, **parameters}
    length = 4 * 512 if kind == "dynamic" else None
    return ROPE_INIT_FUNCTIONS[kind](config, CPU, length)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("head_dim", [8, 64])
@pytest.mark.parametrize("scaling", ["linear", "yarn"])
def test_scaled_rotations_equal_hugging_faces(scaling: Any, head_dim: int, fraction: float) -> None:
    original = {"rope_original_ctx": 128} if scaling == "yarn" else {}
    config = rope_of(head_dim, rope_scaling=scaling, rope_factor=4.0, rope_fraction=fraction, **original)
    theirs, length = hugging_faces_frequencies(
        scaling, head_dim, partial_rotary_factor=fraction, original_max_position_embeddings=128
    )
    torch.testing.assert_close(frequencies(config, CPU), theirs)
    assert length == pytest.approx(0.1 * math.log(4) + 1 if scaling == "yarn" else 1.0)
    angles = torch.arange(9)[:, None] * theirs
    cos, sin = rotation(torch.arange(9), config, torch.float32)
    torch.testing.assert_close(cos, length * angles.cos())
    torch.testing.assert_close(sin, length * angles.sin())


def test_ntk_equals_hugging_faces_dynamic_one_at_four_times_its_context() -> None:
    config = rope_of(64, rope_scaling="ntk", rope_factor=4.0)
    found, (expected, _) = frequencies(config, CPU), hugging_faces_frequencies("dynamic", 64, factor=1.0)
    torch.testing.assert_close(found, expected)
    plain = frequencies(rope_of(64), CPU)
    torch.testing.assert_close(found[[0, -1]], plain[[0, -1]] / torch.tensor([1.0, 4.0]))


def test_yarn_keeps_fast_pairs_and_interpolates_slow_ones_in_any_context() -> None:
    plain = frequencies(rope_of(64), CPU)
    for context, ratio in (1, torch.tensor([1.0] + [4.0] * 31)), (10**9, torch.ones(32)):
        config = rope_of(64, rope_scaling="yarn", rope_factor=4.0, rope_original_ctx=context)
        torch.testing.assert_close(plain / frequencies(config, CPU), ratio)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rope_pairing": "interleaved"},
        {"rope_fraction": 0.5},
        {"rope_scaling": "ntk", "rope_factor": 8.0},
        {"rope_scaling": "linear", "rope_factor": 8.0, "rope_pairing": "interleaved", "rope_fraction": 0.25},
    ],
    ids=str,
)
def test_rotation_keeps_lengths_and_makes_products_depend_on_the_distance(options: dict[str, Any]) -> None:
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)
    config = rope_of(16, **options)
    products = []
    for start in (0, 3, 1000):
        positions = torch.tensor([start, start + 7])
        turned_q, turned_k = (rotated(x.expand(1, 1, 2, 16), positions, config)[0, 0] for x in (q, k))
        torch.testing.assert_close(turned_q[1].norm(), q.norm())
        products.append(turned_q[1] @ turned_k[0])
    torch.testing.assert_close(products[1:], [products[0]] * 2, atol=1e-3, rtol=0)  # angles are fp32


def test_every_nth_layer_has_no_positions_as_in_hugging_faces_smollm3() -> None:
    from transformers.models.smollm3.configuration_smollm3 import SmolLM3Config

    theirs = SmolLM3Config(num_hidden_layers=9, no_rope_layer_interval=4, pad_token_id=0).no_rope_layers
    config = GPTConfig(9, 2, 8, position="rope", nope_every=4)
    assert theirs is not None
    assert [layer not in config.nope_layers for layer in range(9)] == [bool(rotates) for rotates in theirs]
    rope, some, none = (
        attention_weights(model_of(position=position, nope_every=every), tokens_of(1))
        for position, every in (("rope", None), ("rope", 2), ("none", None))
    )
    torch.testing.assert_close(some[0], rope[0])
    assert not torch.allclose(rope[0], none[0], atol=1e-4)
    first, plain = model_of(position="rope", nope_every=2), model_of(position="none")
    with torch.no_grad():
        for parameter in first.get_submodule("h.0.attn.c_proj").parameters():
            parameter.zero_()  # so that nothing comes out of the only layer with positions
        plain.load_state_dict(first.state_dict())
        torch.testing.assert_close(first(tokens_of()).logits, plain(tokens_of()).logits)


# Sinusoids ------------------------------------------------------------------------------------------------------------


def test_sinusoids_by_hand() -> None:
    found = sinusoidal(torch.tensor([0, 3]), 4) / SINUSOID_SCALE
    by_hand = [[0.0, 1.0, 0.0, 1.0], [math.sin(3), math.cos(3), math.sin(3 / 100), math.cos(3 / 100)]]
    torch.testing.assert_close(found, torch.tensor(by_hand))
    assert sinusoidal(torch.arange(3), 5).shape == (3, 5)


# ALiBi ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("H", [1, 2, 3, 6, 8, 12, 16, 25])
def test_slopes_and_biases_are_those_of_hugging_faces_bloom(H: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 9), H, torch.float32)[:, 0]  # m k, which differs by m q from -m (q - k)
    torch.testing.assert_close(alibi_slopes(H, CPU), theirs[:, 1])
    places = torch.arange(9)
    pattern = AttentionPattern(causal(), 1, H, places, places, score_bias=alibi(H, None, CPU))
    mask = pattern.bias("reference", torch.float32, training=False).mask
    assert isinstance(mask, torch.Tensor)
    expected = (theirs[:, None] - theirs[..., None]).masked_fill(torch.ones(9, 9, dtype=torch.bool).triu(1), -math.inf)
    torch.testing.assert_close(mask, expected[None])


def test_slopes_by_hand() -> None:
    assert alibi_slopes(8, CPU).tolist() == [2.0**-n for n in range(1, 9)]
    assert alibi_slopes(6, CPU).tolist() == pytest.approx([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])


def test_a_model_with_alibi_attends_as_the_formula_by_hand() -> None:
    model, tokens = model_of(n_layer=1, n_head=2, position="alibi", n_kv_head=1), tokens_of(2)
    x = model.get_submodule("h.0.ln_1")(model.wte(tokens))
    q, k, _ = model.get_submodule("h.0.attn.c_attn")(x).split((32, 16, 16), dim=-1)
    scores = torch.einsum("bqhd,bkd->bhqk", q.view(2, 20, 2, 16), k) / 4
    places = torch.arange(20)
    distance = places[:, None] - places
    scores = scores - torch.tensor([2.0**-4, 2.0**-8])[:, None, None] * distance
    expected = scores.masked_fill(distance < 0, -math.inf).softmax(-1)
    torch.testing.assert_close(attention_weights(model, tokens)[0], expected)


KERNELS = ["reference", "matmul", "sdpa", "banded"]
WINDOW: dict[str, Any] = {"mask": "window", "window": 5}


@pytest.mark.parametrize("kernel", KERNELS)
def test_documents_in_a_row_read_as_they_do_alone(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(banded, "BLOCK", 4)
    model, tokens = model_of(position="alibi", kernel=kernel, **WINDOW), tokens_of(2)
    documents = (torch.arange(20) >= torch.tensor([[8], [13]])).long()
    positions = torch.arange(20) - documents * torch.tensor([[8], [13]])
    with torch.no_grad():
        for given in (positions, None):  # within a document, the distance is that in the row
            found = model(tokens, documents=documents, positions=given).logits
            for row, cut in enumerate((8, 13)):
                for part in (slice(0, cut), slice(cut, 20)):
                    expected = model(tokens[row : row + 1, part]).logits[0]
                    torch.testing.assert_close(found[row, part], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_distances_are_those_of_the_positions_that_are_given(kernel: str) -> None:
    model, tokens = model_of(position="alibi", kernel=kernel, **WINDOW), tokens_of(2)
    order = torch.arange(20)
    with torch.no_grad():
        plain, same = model(tokens).logits, model(tokens, positions=order.expand(2, -1)).logits
        torch.testing.assert_close(same, plain, atol=1e-6, rtol=1e-6)
        spread = model(tokens, positions=(order // 2).expand(2, -1)).logits
    assert not torch.allclose(spread, plain, atol=1e-3)


@pytest.mark.parametrize("options", [{}, WINDOW, {"mask": "global", "window": 4, "prefix": 2}], ids=str)
@torch.no_grad()
def test_rows_padded_on_the_left_read_as_they_do_alone(options: dict[str, Any]) -> None:
    model, tokens, padding = model_of(position="alibi", **options), tokens_of(3), torch.tensor([3, 0, 7])
    cache = KVCache(model.config, 3, CPU, torch.float32, padding)
    found = torch.cat([model.hidden(tokens[:, a:b], cache=cache) for a, b in ((0, 11), (11, 12), (12, 20))], dim=1)
    for row, empty in enumerate(padding.tolist()):
        expected = model.hidden(tokens[row : row + 1, empty:])[0]
        torch.testing.assert_close(found[row, empty:], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_tensor_mask_keeps_the_distances(kernel: str) -> None:
    model = model_of(position="alibi", kernel="auto" if kernel == "banded" else kernel)
    allowed = torch.ones(20, 20).tril()
    with torch.no_grad():
        torch.testing.assert_close(
            model(tokens_of(), mask=allowed).logits, model(tokens_of()).logits, atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("position", ["alibi", "none", "rope"])
@torch.no_grad()
def test_a_rolling_cache_goes_beyond_the_context(position: str) -> None:
    model = model_of(position=position, n_ctx=8, **WINDOW)
    longer = model_of(position=position, **WINDOW)
    longer.load_state_dict(model.state_dict())
    cache = model.new_cache(3)
    assert cache.endless
    found = torch.cat([model.hidden(tokens_of()[:, n : n + 1], cache=cache) for n in range(20)], dim=1)
    torch.testing.assert_close(found, longer.hidden(tokens_of()), atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not can_compile(CPU)[0], reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's own, inside the compiler
def test_compiled_flex_attention_takes_the_distances_into_its_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounterWithBackend("aot_eager")  # without the slow last stage
    compiled = torch.compile(flex_attention, backend=counter)
    monkeypatch.setattr(attention, "_compiled_flex", lambda: compiled)
    changes: dict[str, Any] = {"n_kv_head": 2, "position": "alibi", **WINDOW}
    model, reference = model_of(kernel="flex", **changes), model_of(kernel="reference", **changes)
    with torch.no_grad():
        for seed in range(3):
            tokens = random_ids(61, 3, 20, seed=seed)
            torch.testing.assert_close(model(tokens).logits, reference(tokens).logits, atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1


# Refusals -------------------------------------------------------------------------------------------------------------

ROPE: dict[str, Any] = {"position": "rope"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": "alibi", "rope_pairing": "interleaved"}, "rope_pairing interleaved with position alibi; only"),
        ({"rope_fraction": 0.5}, "rope_fraction 0.5 with position learned; only position rope takes rope_fraction"),
        (
            {"position": "none", "nope_every": 2},
            "nope_every 2 with position none; only position rope takes nope_every: leave it out, or set it to None",
        ),
        ({"position": "sinusoidal", "rope_factor": 2.0}, "rope_factor 2.0 with position sinusoidal; only position"),
        (ROPE | {"rope_pairing": "adjacent"}, 'unknown rope_pairing "adjacent"'),
        (ROPE | {"rope_scaling": "yran"}, r'unknown rope_scaling "yran" \(did you mean "yarn"\?\)'),
        (ROPE | {"rope_fraction": 0.3}, r"0.3 of 8 .* is 2.4; .* choose from \[0.25, 0.5, 0.75, 1.0\]"),
        (ROPE | {"rope_fraction": 0.0}, "rope_fraction 0.0 of 8 numbers per head is 0"),
        (ROPE | {"rope_fraction": 1.5}, "rope_fraction 1.5 of 8 numbers per head is 12"),
        (ROPE | {"rope_scaling": "linear"}, "rope_scaling linear needs rope_factor: give it, or take"),
        (ROPE | {"rope_scaling": "yarn", "rope_factor": 2.0}, "rope_scaling yarn needs rope_original_ctx"),
        (
            ROPE | {"rope_factor": 2.0},
            "rope_factor 2.0 with rope_scaling none, which has none; take",
        ),
        (
            ROPE | {"rope_scaling": "ntk", "rope_factor": 2.0, "rope_original_ctx": 9},
            "rope_original_ctx 9 with rope_scaling ntk, which has none; take rope_scaling yarn",
        ),
        (ROPE | {"rope_scaling": "linear", "rope_factor": 0.5}, "rope_factor is 0.5; it must be at least 1"),
        (ROPE | {"rope_scaling": "linear", "rope_factor": math.nan}, "rope_factor is nan; it must be at least 1"),
        (
            ROPE | {"rope_scaling": "yarn", "rope_factor": 2.0, "rope_original_ctx": 0},
            "rope_original_ctx is 0; it must be at least 1",
        ),
        (
            ROPE | {"rope_scaling": "ntk", "rope_factor": 2.0, "rope_fraction": 0.25},
            "rope_scaling ntk .* one pair is rotated; take linear or yarn",
        ),
        (ROPE | {"nope_every": 1}, "nope_every is 1; it must be from 2 to n_layer 2"),
        (ROPE | {"nope_every": 3}, "nope_every is 3; it must be from 2 to n_layer 2"),
    ],
)
def test_options_of_positions_that_do_not_fit_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        GPTConfig(**(SHAPE | options))
    assert "\n" not in str(caught.value)
