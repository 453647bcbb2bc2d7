"""From a trained multi-head model to grouped-query attention (Ainslie et al. 2023, section 2.1).

    heads of k, and of v      0 1 2 3 | 4 5 6 7      8 -> 2
    become                    mean    | mean

The query heads stay as they are. The loss rises at once, and most of it comes back with a little more training (the
paper takes 5 % of the original steps).
"""

from __future__ import annotations

import dataclasses

import torch

from gpt2lab.errors import InputError
from gpt2lab.model.gpt import GPT


@torch.no_grad()
def pool_heads(model: GPT, n_kv_head: int) -> GPT:
    """Return a copy of a model in which each ``n_kv_head`` is the mean of the key and value heads of its group.

    Raises:
        InputError: ``n_kv_head`` does not divide the key and value heads that there are.
    """
    old = model.config
    if n_kv_head < 1 or old.kv_heads % n_kv_head:
        fits = [n for n in range(1, old.kv_heads + 1) if old.kv_heads % n == 0]
        raise InputError(f"n_kv_head {n_kv_head} does not divide the {old.kv_heads} there are; choose from {fits}")
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
