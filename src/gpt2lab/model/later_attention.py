"""Attention after GPT-2's: two softmax maps subtracted.

Each is a subclass of `CausalSelfAttention` that overrides what differs, and runs on the same kernels.

    differential    A = (softmax(Q_1 K_1^T / sqrt(D)) - lambda softmax(Q_2 K_2^T / sqrt(D))) V     Ye et al. 2024
"""

from __future__ import annotations

import math

import torch
from torch import nn

from gpt2lab.model.attention import AttentionBias, CausalSelfAttention
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.layers import RMSNorm


def make_attention(config: GPTConfig, layer: int = 0) -> CausalSelfAttention:
    """Return the attention of a layer, from 0 on."""
    return (DifferentialAttention if config.differential_attention else CausalSelfAttention)(config, layer)


class DifferentialAttention(CausalSelfAttention):
    """Heads that subtract two softmax maps, so that what both attend to cancels (Ye et al. 2024, section 2.1).

    Head i of the H / 2 takes queries i and i + H / 2 of ``c_attn``, as in Hugging Face's DiffLlama; with grouped heads,
    key and value heads are paired in the same way. Its value is both value heads of the pair, 2 D numbers, and its
    output is normalized by itself. A head of the paper is twice as wide as one of GPT-2 and there are half as many, so
    the projections have as many parameters.

        lambda = exp(lambda_q1 . lambda_k1) - exp(lambda_q2 . lambda_k2) + lambda_init
        lambda_init = 0.8 - 0.6 exp(-0.3 layer), the layer counted from 0
    """

    def __init__(self, config: GPTConfig, layer: int = 0) -> None:
        super().__init__(config, layer)
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * layer)
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            nn.Parameter(torch.empty(config.head_dim).normal_(std=0.1)) for _ in range(4)
        )
        self.head_norm = RMSNorm(2 * config.head_dim, config.norm_eps, config.norm_affine)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: AttentionBias) -> torch.Tensor:
        """Return the output of the heads (B, H / 2, T, 2 D)."""
        pairs = torch.cat(v.chunk(2, dim=1), dim=-1)  # (B, K / 2, S, 2 D)
        maps = super().attend(q, k, pairs.repeat(1, 2, 1, 1), bias)  # (B, H, T, 2 D)
        first, second = maps.chunk(2, dim=1)
        return (1.0 - self.lambda_init) * self.head_norm(first - self.second_weight() * second)

    def weights(self, q: torch.Tensor, k: torch.Tensor, bias: AttentionBias) -> torch.Tensor:
        """Return the differences of the maps (B, H / 2, T, S): a query's sum to 1 - lambda."""
        first, second = super().weights(q, k, bias).chunk(2, dim=1)
        return first - self.second_weight() * second

    def second_weight(self) -> torch.Tensor:
        """Return lambda, fp32, ()."""
        first, second = (self.lambda_q1 * self.lambda_k1).sum(), (self.lambda_q2 * self.lambda_k2).sum()
        return first.exp() - second.exp() + self.lambda_init
