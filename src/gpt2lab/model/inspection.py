"""Tools for trained models: attention weights, and mean-pooled heads for grouped-query attention."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from gpt2lab.errors import InputError
from gpt2lab.model.attention import CausalSelfAttention, reference
from gpt2lab.model.config import divisors
from gpt2lab.model.gpt import GPT, evaluating


@torch.no_grad()
def attention_weights(model: GPT, tokens: torch.Tensor) -> torch.Tensor:
    """Return the attention weights (L, B, H, T, T) of tokens (B, T): how much each query attends to each key.

    They are softmax(Q K^T / sqrt(D) + M), whatever kernel the model uses: with the identity as values, attention
    returns the weights themselves.

    Raises:
        InputError: More tokens than the context.
    """
    plain = GPT(dataclasses.replace(model.config, kernel="reference")).to(tokens.device)
    plain.load_state_dict(model.state_dict())
    found: list[torch.Tensor] = []

    def record(module: CausalSelfAttention, args: tuple[Any, ...]) -> None:
        x, bias, rotation = args[:3]
        q, k, _ = module.project(x, rotation)
        values = torch.eye(x.shape[1], device=x.device).expand(*k.shape[:3], -1)  # (B, K, T, T)
        weights = reference(q, k, values, bias.mask, 0.0)  # (B, H, T, T)
        found.append(weights if bias.empty is None else weights.masked_fill(bias.empty, 0.0))

    for module in plain.modules():
        if isinstance(module, CausalSelfAttention):
            module.register_forward_pre_hook(record)
    with evaluating(plain):
        plain.hidden(tokens)
    return torch.stack(found)


@torch.no_grad()
def pool_heads(model: GPT, n_kv_head: int) -> GPT:
    """Return a copy of a model with ``n_kv_head`` key and value heads, each the mean of its group.

    Raises:
        InputError: ``n_kv_head`` does not divide the number of key and value heads.
    """
    old = model.config
    if n_kv_head < 1 or old.kv_heads % n_kv_head:
        fits = divisors(old.kv_heads)
        raise InputError(f"n_kv_head {n_kv_head} does not divide the present {old.kv_heads}; choose from {fits}")
    pooled = GPT(dataclasses.replace(old, n_kv_head=n_kv_head)).to(model.wte.weight)
    weights = {
        name: _pooled(weight, old.n_head, n_kv_head, old.head_dim) if ".c_attn." in name else weight
        for name, weight in model.state_dict().items()
    }
    pooled.load_state_dict(weights)
    return pooled.train(model.training)


def _pooled(c_attn: torch.Tensor, n_head: int, n_kv_head: int, head_dim: int) -> torch.Tensor:
    """Pool the rows of a c_attn: its weight ((H + 2 K) D, C) or its bias ((H + 2 K) D,)."""
    q, kv = c_attn[: n_head * head_dim], c_attn[n_head * head_dim :]
    groups = kv.view(2, n_kv_head, -1, head_dim, *kv.shape[1:])  # k or v, group, head of the group, D, ..
    return torch.cat([q, groups.mean(dim=2).reshape(-1, *kv.shape[1:])])
