"""docs/cs336.md: its blocks are executed, and every function is compared with plain PyTorch or its formula."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

PAGE = Path(__file__).parents[1] / "docs" / "cs336.md"
FUNCTIONS = {
    "run_linear",
    "run_embedding",
    "run_swiglu",
    "run_scaled_dot_product_attention",
    "run_multihead_self_attention",
    "run_multihead_self_attention_with_rope",
    "run_rope",
    "run_transformer_block",
    "run_transformer_lm",
    "run_rmsnorm",
    "run_silu",
    "run_get_batch",
    "run_softmax",
    "run_cross_entropy",
    "run_gradient_clipping",
    "get_adamw_cls",
    "run_get_lr_cosine_schedule",
    "run_save_checkpoint",
    "run_load_checkpoint",
    "get_tokenizer",
    "run_train_bpe",
}
"""All of the assignment's adapters.py."""
B, T, C, H, F_, V, THETA = 2, 7, 16, 4, 24, 61, 50.0


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """The names that the page's blocks define, executed in order."""
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(block, names)
    return names


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_page_has_every_function_of_the_assignment(page: dict[str, Any]) -> None:
    assert page.keys() >= FUNCTIONS


def test_layers(page: dict[str, Any]) -> None:
    x, w, table = normal(B, T, C), normal(F_, C, seed=1), normal(V, C, seed=2)
    equal(page["run_linear"](C, F_, w, x), x @ w.T)
    ids = torch.tensor([[3, 0], [60, 3]])
    assert torch.equal(page["run_embedding"](V, C, table, ids), table[ids])
    equal(page["run_silu"](x), x / (1 + torch.exp(-x)))
    equal(page["run_rmsnorm"](C, 0.1, w[0], x), x / torch.sqrt((x * x).mean(-1, keepdim=True) + 0.1) * w[0])
    w2, w3 = normal(C, F_, seed=3), normal(F_, C, seed=4)
    equal(page["run_swiglu"](C, F_, w, w2, w3, x), swiglu(x, w, w2, w3))


def swiglu(x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, w3: torch.Tensor) -> torch.Tensor:
    return (F.silu(x @ w1.T) * (x @ w3.T)) @ w2.T


def rope(x: torch.Tensor, positions: torch.Tensor, theta: float = THETA) -> torch.Tensor:
    """Neighboring numbers of x (.., T, D) are complex numbers, which a rotation multiplies (Su et al. 2021)."""
    D = x.shape[-1]
    angles = positions[..., None].double() / theta ** (torch.arange(0, D, 2) / D)
    turned = torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2).float()


@pytest.mark.parametrize("positions", [torch.arange(T), torch.tensor([[0, 3, 1, 9, 9, 2, 4], [1, 2, 3, 4, 5, 6, 7]])])
def test_rope_rotates_neighboring_numbers(page: dict[str, Any], positions: torch.Tensor) -> None:
    x = normal(B, T, C)
    equal(page["run_rope"](C, THETA, 32, x, positions), rope(x, positions))


@pytest.mark.parametrize("shape", [(B, T), (B, H, T)])
def test_scaled_dot_product_attention(page: dict[str, Any], shape: tuple[int, ...]) -> None:
    q, k, v = normal(*shape, C), normal(*shape[:-1], 5, C, seed=1), normal(*shape[:-1], 5, 3, seed=2)
    mask = normal(*shape, 5, seed=3) > -0.5
    mask[..., 0] = True
    run = page["run_scaled_dot_product_attention"]
    equal(run(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    equal(run(q, k, v), F.scaled_dot_product_attention(q, k, v))


def attention(x: torch.Tensor, weights: list[torch.Tensor], positions: torch.Tensor | None = None) -> torch.Tensor:
    *into, o = weights
    q, k, v = ((x @ w.T).unflatten(-1, (H, -1)).transpose(1, 2) for w in into)
    if positions is not None:
        q, k = rope(q, positions), rope(k, positions)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2) @ o.T


def test_multihead_self_attention_with_and_without_rope(page: dict[str, Any]) -> None:
    x, weights = normal(B, T, C), [normal(C, C, seed=seed) for seed in range(1, 5)]
    equal(page["run_multihead_self_attention"](C, H, *weights, x), attention(x, weights))
    positions = torch.arange(T) + 3
    with_rope = page["run_multihead_self_attention_with_rope"]
    equal(with_rope(C, H, 32, THETA, *weights, x, positions), attention(x, weights, positions))
    equal(with_rope(C, H, 32, THETA, *weights, x), attention(x, weights, torch.arange(T)))


def block_of(w: dict[str, torch.Tensor], x: torch.Tensor, name: str = "") -> torch.Tensor:
    def norm(x: torch.Tensor, gain: str) -> torch.Tensor:
        return F.rms_norm(x, (C,), w[f"{name}{gain}.weight"], eps=1e-5)

    parts = [w[f"{name}attn.{part}_proj.weight"] for part in ("q", "k", "v", "output")]
    x = x + attention(norm(x, "ln1"), parts, torch.arange(x.shape[1]))
    w1, w2, w3 = (w[f"{name}ffn.w{n}.weight"] for n in (1, 2, 3))
    return x + swiglu(norm(x, "ln2"), w1, w2, w3)


def weights_of_block(seed: int, name: str = "") -> dict[str, torch.Tensor]:
    shapes = {f"attn.{part}_proj": (C, C) for part in ("q", "k", "v", "output")} | {"ln1": (C,), "ln2": (C,)}
    shapes |= {"ffn.w1": (F_, C), "ffn.w2": (C, F_), "ffn.w3": (F_, C)}
    return {f"{name}{key}.weight": normal(*shape, seed=seed + n) for n, (key, shape) in enumerate(shapes.items())}


def test_transformer_block(page: dict[str, Any]) -> None:
    x, weights = normal(B, T, C), weights_of_block(1)
    equal(page["run_transformer_block"](C, H, F_, 32, THETA, weights, x), block_of(weights, x))


def test_transformer_language_model(page: dict[str, Any]) -> None:
    w = weights_of_block(1, "layers.0.") | weights_of_block(20, "layers.1.") | {"ln_final.weight": normal(C, seed=40)}
    w |= {name: normal(V, C, seed=50 + n) for n, name in enumerate(("token_embeddings.weight", "lm_head.weight"))}
    ids = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(0))
    x = w["token_embeddings.weight"][ids]
    for layer in range(2):
        x = block_of(w, x, f"layers.{layer}.")
    expected = F.rms_norm(x, (C,), w["ln_final.weight"], eps=1e-5) @ w["lm_head.weight"].T
    logits = page["run_transformer_lm"](V, 32, C, 2, H, F_, THETA, w, ids)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_softmax_and_cross_entropy_even_of_large_numbers(page: dict[str, Any]) -> None:
    for scale in (1.0, 1000.0):
        x, targets = scale * normal(B, 5, seed=1), torch.tensor([4, 0])
        for dim in (0, 1, -1):
            equal(page["run_softmax"](x, dim), torch.softmax(x, dim))
        equal(page["run_cross_entropy"](x, targets), F.cross_entropy(x, targets))


@pytest.mark.parametrize("limit", [1e-2, 1e3])
def test_gradient_clipping(page: dict[str, Any], limit: float) -> None:
    sides = [[nn.Parameter(normal(5, 5, seed=n)) for n in range(4)] for _ in range(2)]
    for parameters in sides:
        parameters[0].requires_grad_(False)
        torch.cat([p.exp().flatten() for p in parameters]).sum().backward()
    page["run_gradient_clipping"](iter(sides[0]), limit)
    nn.utils.clip_grad_norm_(sides[1], limit)
    assert sides[0][0].grad is None
    for ours, theirs in zip(sides[0][1:], sides[1][1:], strict=True):
        assert ours.grad is not None and theirs.grad is not None
        equal(ours.grad, theirs.grad)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 50) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        model(normal(3, seed=step)).square().sum().backward()
        optimizer.step()


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2, bias=False)


OPTIONS: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.99), "eps": 1e-6}


def test_adamw(page: dict[str, Any]) -> None:
    ours, theirs = linear(), linear()
    train(ours, page["get_adamw_cls"]()(ours.parameters(), **OPTIONS))
    train(theirs, torch.optim.AdamW(theirs.parameters(), **OPTIONS))
    equal(ours.weight, theirs.weight)


@pytest.mark.parametrize(("warmup", "cycle"), [(7, 21), (0, 10), (1, 2)])
def test_cosine_schedule(page: dict[str, Any], warmup: int, cycle: int) -> None:
    def formula(it: int) -> float:
        if it < warmup:
            return it / warmup * 1.0
        progress = min(1.0, (it - warmup) / (cycle - warmup))
        return 0.1 + 0.5 * (1 + math.cos(math.pi * progress)) * 0.9

    for it in range(cycle + 5):
        assert page["run_get_lr_cosine_schedule"](it, 1.0, 0.1, warmup, cycle) == pytest.approx(formula(it)), it


def test_get_batch_draws_every_start_alike(page: dict[str, Any]) -> None:
    dataset, starts = np.arange(100, dtype=np.uint16), np.zeros(100)
    for _ in range(300):
        x, y = page["run_get_batch"](dataset, 32, 7, "cpu")
        assert x.shape == y.shape == (32, 7) and x.dtype == torch.int64
        assert torch.equal(y, x + 1) and torch.equal(x, x[:, :1] + torch.arange(7))
        np.add.at(starts, x[:, 0].numpy(), 1)
    expected = 300 * 32 / 93
    assert (starts[93:] == 0).all() and (abs(starts[:93] - expected) < 5 * math.sqrt(expected)).all()


def test_a_checkpoint_restores_weights_optimizer_and_iteration(page: dict[str, Any], tmp_path: Path) -> None:
    model, fresh = linear(), nn.Linear(3, 2, bias=False)
    make = page["get_adamw_cls"]()
    optimizer, other = make(model.parameters(), **OPTIONS), make(fresh.parameters(), **OPTIONS)
    train(model, optimizer, 10)
    page["run_save_checkpoint"](model, optimizer, 10, tmp_path / "checkpoint")
    assert page["run_load_checkpoint"](tmp_path / "checkpoint", fresh, other) == 10
    train(model, optimizer, 5)
    train(fresh, other, 5)
    assert torch.equal(model.weight, fresh.weight)


def test_bpe_of_the_assignments_example(page: dict[str, Any], tmp_path: Path) -> None:
    """Section 2.4 works it by hand: ties go to the lexicographically greatest pair."""
    words = ["low"] * 5 + ["lower"] * 2 + ["widest"] * 3 + ["newest"] * 6
    (tmp_path / "text.txt").write_text("<|endoftext|>".join(words))
    vocab, merges = page["run_train_bpe"](tmp_path / "text.txt", 256 + 1 + 6, ["<|endoftext|>"])
    expected = ["s t", "e st", "o w", "l ow", "w est", "n e"]
    assert merges == [tuple(part.encode() for part in merge.split()) for merge in expected]
    tokens = {bytes([byte]) for byte in range(256)} | {left + right for left, right in merges} | {b"<|endoftext|>"}
    assert sorted(vocab) == list(range(263)) and set(vocab.values()) == tokens


def test_a_tokenizer_from_vocabulary_and_merges_encodes_as_tiktoken(
    page: dict[str, Any], gpt2_vocabulary: Path, tmp_path: Path
) -> None:
    import tiktoken

    from gpt2lab import Tokenizer

    gpt2 = Tokenizer.gpt2(gpt2_vocabulary)
    ranks = {token: number for number, token in gpt2.vocab.items() if token != b"<|endoftext|>"}
    specials = {"<|endoftext|>": 50256, "<|endoftext|><|endoftext|>": 50257}
    pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    theirs = tiktoken.Encoding("here", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)
    ours = page["get_tokenizer"](gpt2.vocab, gpt2.merges, list(specials))
    text = "Héllo, how are you?<|endoftext|><|endoftext|> 🙃<|endoftext|>"
    assert ours.encode(text) == theirs.encode(text, allowed_special="all")
    assert ours.decode(ours.encode(text)) == text
    assert list(ours.encode_iterable([text[:20], text[20:]])) == ours.encode(text)
    plain = page["get_tokenizer"](gpt2.vocab, gpt2.merges)
    assert plain.decode(plain.encode(text)) == text
