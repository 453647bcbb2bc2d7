"""Positions, grouped heads, norm placement, and what they cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_models import random_ids, random_model
from torch import nn

from gpt2lab.errors import InputError
from gpt2lab.model.attention import AttentionBias, CausalSelfAttention, choose_kernel
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT, attention_weights, pool_heads
from gpt2lab.model.masks import causal, sliding_window
from gpt2lab.runtime import can_compile

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_ctx": 20, "vocab_size": 61, "dropout": 0.0}


def model_of(**changes: Any) -> GPT:
    return random_model(SHAPE | changes, 0.1).eval()


def tokens_of(rows: int = 3) -> torch.Tensor:
    return random_ids(61, rows, 20, seed=1)


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rope"])
def test_positions_tell_orders_apart_where_the_mask_does_not(position: Any) -> None:
    tokens = torch.tensor([[5, 6, 7]])
    model, without = (model_of(mask="bidirectional", position=p) for p in (position, "none"))
    for each, same in (model, False), (without, True):
        a, b = each(tokens).logits[0, 2], each(tokens[:, [1, 0, 2]]).logits[0, 2]
        assert torch.allclose(a, b, atol=1e-5) == same


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", ["reference", "matmul", "sdpa"])
@pytest.mark.parametrize("K", [1, 2, 4])
def test_grouped_heads_are_torch_multihead_attention_with_repeated_keys(K: int, kernel: str, bias: bool) -> None:
    torch.manual_seed(0)
    ours = CausalSelfAttention(GPTConfig(1, 4, 32, n_kv_head=K, bias=bias, dropout=0.0))
    theirs = nn.MultiheadAttention(32, 4, bias=bias, batch_first=True)

    def repeated(rows: torch.Tensor) -> torch.Tensor:
        q, k, v = rows.detach().split((32, 8 * K, 8 * K))
        return torch.cat([q, *(x.view(K, 8, -1).repeat_interleave(4 // K, 0).reshape(32, -1) for x in (k, v))]).squeeze(
            1
        )

    copies = {"in_proj_weight": repeated(ours.c_attn.weight), "out_proj.weight": ours.c_proj.weight}
    if bias:
        nn.init.normal_(ours.c_attn.bias)
        copies |= {"in_proj_bias": repeat_bias(repeated, ours), "out_proj.bias": ours.c_proj.bias}
    theirs.load_state_dict({name: weight.detach() for name, weight in copies.items()})
    x, y = (torch.randn(2, 11, 32, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    found, ahead = ours(x, AttentionBias(kernel)), torch.ones(11, 11, dtype=torch.bool).triu(1)
    expected, _ = theirs(y, y, y, attn_mask=ahead, need_weights=False)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=1e-4)


def repeat_bias(repeated: Any, ours: CausalSelfAttention) -> torch.Tensor:
    return repeated(ours.c_attn.bias[:, None]).flatten()


def test_pooling_heads_that_are_alike_changes_nothing() -> None:
    model = model_of()
    with torch.no_grad():
        for block in model.h:
            for parameter in block.get_submodule("attn.c_attn").parameters():
                heads = parameter[32:].view(2, 2, 2, 8, -1)
                heads[:, :, 1] = heads[:, :, 0]
    pooled = pool_heads(model, 2)
    assert pooled.config == dataclasses.replace(model.config, n_kv_head=2)
    torch.testing.assert_close(pooled(tokens_of()).logits, model(tokens_of()).logits, atol=1e-5, rtol=1e-5)


def test_pooling_takes_the_mean_of_each_group() -> None:
    model = model_of()
    weight = model.h[0].get_parameter("attn.c_attn.weight")
    pooled = pool_heads(model, 1).h[0].get_parameter("attn.c_attn.weight")
    assert torch.equal(pooled[:32], weight[:32])
    torch.testing.assert_close(pooled[32:40], weight[32:64].view(4, 8, 32).mean(0))
    torch.testing.assert_close(pooled[40:], weight[64:].view(4, 8, 32).mean(0))
    with pytest.raises(InputError, match=r"n_kv_head 3 does not divide the present 4; choose from \[1, 2, 4\]"):
        pool_heads(model, 3)


def test_post_norm_equals_hugging_faces_gpt_1() -> None:
    from transformers import OpenAIGPTConfig, OpenAIGPTModel

    ours = model_of(norm_placement="post")
    theirs = OpenAIGPTModel(OpenAIGPTConfig(vocab_size=61, n_positions=20, n_embd=32, n_layer=2, n_head=4)).eval()
    names = {"tokens_embed.weight": "wte.weight", "positions_embed.weight": "wpe.weight"}
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            weight = ours.get_parameter(names.get(name, name))
            weight = weight.T if name.startswith("h.") and weight.dim() == 2 else weight
            parameter.copy_(weight[: len(parameter)])
        expected = theirs(tokens_of()).last_hidden_state
        torch.testing.assert_close(ours.hidden(tokens_of()), expected, atol=1e-5, rtol=1e-5)


def test_post_norm_begins_without_scaled_projections_and_has_no_final_norm() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(6, 4, 128, 256, 1000, norm_placement="post"))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and name != "wte.weight":
            assert parameter.std().item() == pytest.approx(0.02, rel=0.03), name
    assert not any(name.startswith("ln_f") for name, _ in model.named_parameters())


def test_parameters_of_the_variants_by_hand() -> None:
    plain = model_of().n_params
    assert model_of(position="rope").n_params == plain - 20 * 32
    assert model_of(n_kv_head=1).n_params == plain - 2 * (2 * 3 * 8) * (32 + 1)  # layers, k and v heads less, weights
    assert model_of(norm_placement="post").n_params == plain - 2 * 32
    assert model_of(mask="window", window=3).n_params == plain


def test_operations_and_cache_of_the_variants_by_hand() -> None:
    plain = GPTConfig(2, 4, 32, 64, 100)
    grouped, window = dataclasses.replace(plain, n_kv_head=1), dataclasses.replace(plain, mask="window", window=16)
    assert plain.flops_per_token(64) - grouped.flops_per_token(64) == 6 * 2 * (32 * 2 * 3 * 8)
    assert plain.flops_per_token(64) - window.flops_per_token(64) == 12 * 2 * 32 * (64 - 16)
    assert plain.flops_per_token(8) == window.flops_per_token(8)
    assert plain.cache_bytes(1, torch.bfloat16) == 2 * 2 * 4 * 8 * 2
    assert grouped.cache_bytes(1, torch.bfloat16) * 4 == plain.cache_bytes(1, torch.bfloat16)
    assert window.cache_bytes(64, torch.float32) == plain.cache_bytes(16, torch.float32)


def test_the_automatic_choice() -> None:
    bf16, fp32 = torch.bfloat16, torch.float32
    chosen = [
        choose_kernel(causal(), CPU, bf16, 256, 256, True)[0],
        choose_kernel(causal(), CPU, fp32, 256, 256, True)[0],
        choose_kernel(causal(), CPU, bf16, 256, 256, False)[0],
        choose_kernel(causal(), CPU, bf16, 4096, 4096, True)[0],
        choose_kernel(sliding_window(256), CPU, bf16, 4096, 4096, True)[0],
        choose_kernel(sliding_window(256), CPU, bf16, 1, 4096, False)[0],
        choose_kernel(sliding_window(16), CPU, bf16, 128, 128, True)[0],
    ]
    assert chosen == ["matmul", "sdpa", "sdpa", "sdpa", "banded", "sdpa", "matmul"]


@pytest.mark.skipif(not can_compile(CPU)[0], reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's own, inside the compiler
@pytest.mark.parametrize("kernel", ["banded", "flex"])
def test_compiled_kernels_equal_the_reference(kernel: str) -> None:
    changes = {"mask": "window", "window": 5, "n_kv_head": 2, "position": "rope", "n_layer": 1}
    model, reference = model_of(kernel=kernel, **changes), model_of(kernel="reference", **changes)
    backward = kernel == "banded"
    if backward:  # block by block, as training does, but without the slow last stage; flex is compiled by itself
        for block in model.h:
            block.compile(backend="aot_eager")
    with torch.set_grad_enabled(backward):
        found, expected = (each(tokens_of(), tokens_of().roll(-1, 1)).loss for each in (model, reference))
    torch.testing.assert_close(found, expected)
    if backward:
        found.backward()
        expected.backward()
        for a, b in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)


def test_attention_weights_are_those_of_hugging_face(hugging_face_twin: Callable[[GPT], Any]) -> None:
    model = model_of()
    theirs = hugging_face_twin(model)(tokens_of(), output_attentions=True).attentions
    torch.testing.assert_close(attention_weights(model, tokens_of()), torch.stack(theirs), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"position": "rope"}, {"n_kv_head": 1}, {"mask": "window", "window": 3}, {"norm_placement": "post"}],
    ids=str,
)
def test_attention_weights_sum_to_one_and_are_zero_where_masked(options: dict[str, Any]) -> None:
    weights = attention_weights(model_of(**options), tokens_of(1))
    assert weights.shape == (2, 1, 4, 20, 20)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 1, 4, 20))
    assert not weights.triu(1).any()
    if "window" in options:
        assert not weights.tril(-3).any()
