"""What a model attends to: the softmax of its attention as a tensor, for pictures and for study."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from gpt2lab.model.attention import CausalSelfAttention, reference
from gpt2lab.model.gpt import GPT
from gpt2lab.model.modes import evaluating


@torch.no_grad()
def attention_weights(model: GPT, tokens: torch.Tensor) -> torch.Tensor:
    """Return the attention weights (L, B, H, T, T) of tokens (B, T): how much each query reads of each key.

    They are those of the equation, softmax(Q K^T / sqrt(D) + M), whatever kernel the model runs with: attention that
    reads the identity for its values gives the weights themselves.

    Raises:
        InputError: More tokens than the context.
    """
    plain = GPT(dataclasses.replace(model.config, kernel="reference")).to(tokens.device)
    plain.load_state_dict(model.state_dict())
    found: list[torch.Tensor] = []

    def record(module: CausalSelfAttention, args: tuple[Any, ...]) -> None:
        x, view, rotation = args[:3]
        q, k, _ = module.project(x, rotation)
        values = torch.eye(x.shape[1], device=x.device).expand(*k.shape[:3], -1)  # (B, K, T, T)
        weights = reference(q, k, values, view.mask, 0.0)  # (B, H, T, T)
        found.append(weights if view.empty is None else weights.masked_fill(view.empty, 0.0))

    for module in plain.modules():
        if isinstance(module, CausalSelfAttention):
            module.register_forward_pre_hook(record)
    with evaluating(plain):
        plain.hidden(tokens)
    return torch.stack(found)
