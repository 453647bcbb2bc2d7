"""Attention after GPT-2's: two softmax maps subtracted, or keys and values expanded from a small latent.

Each is a subclass of `CausalSelfAttention` that overrides what differs, and runs on the same kernels.

    differential    A = (softmax(Q_1 K_1^T / sqrt(D)) - lambda softmax(Q_2 K_2^T / sqrt(D))) V     Ye et al. 2024
    latent          c = norm(x W^DKV), K = [rotated x W^KR; c W^UK], V = c W^UV                    DeepSeek-AI 2024
"""

from __future__ import annotations

import math

import torch
from torch import nn

from gpt2lab.model.attention import AttentionBias, CausalSelfAttention
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.layers import RMSNorm
from gpt2lab.model.positions import Rotation

Pair = tuple[torch.Tensor, torch.Tensor]


def make_attention(config: GPTConfig, layer: int = 0) -> CausalSelfAttention:
    """Return the attention of a layer, from 0 on."""
    if config.latent_dim is not None:
        return LatentAttention(config, config.latent_dim)
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
        maps = self.of_one_query if q.shape[2] == 1 else self.of_queries
        first, second = maps(q, k, v, bias)  # (B, H / 2, T, 2 D)
        return (1.0 - self.lambda_init) * self.head_norm(first - self.second_weight() * second)

    def of_queries(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: AttentionBias) -> Pair:
        """Return what both maps read: each head reads both values of its pair at once, as 2 D numbers."""
        pairs = torch.cat(v.chunk(2, dim=1), dim=-1)  # (B, K / 2, S, 2 D)
        first, second = super().attend(q, k, pairs.repeat(1, 2, 1, 1), bias).chunk(2, dim=1)
        return first, second

    def of_one_query(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: AttentionBias) -> Pair:
        """Return the same: each head reads one value after the other, since wider ones would copy all cached keys."""
        own_1, own_2 = super().attend(q, k, v, bias).chunk(2, dim=1)
        other_1, other_2 = super().attend(q, k, v.roll(v.shape[1] // 2, dims=1), bias).chunk(2, dim=1)
        return torch.cat((own_1, other_1), dim=-1), torch.cat((other_2, own_2), dim=-1)

    def weights(self, q: torch.Tensor, k: torch.Tensor, bias: AttentionBias) -> torch.Tensor:
        """Return the differences of the maps (B, H / 2, T, S): a query's sum to 1 - lambda."""
        first, second = super().weights(q, k, bias).chunk(2, dim=1)
        return first - self.second_weight() * second

    def second_weight(self) -> torch.Tensor:
        """Return lambda, fp32, ()."""
        # FSDP holds them in bf16, in which exp(..) near 1 has steps of 0.008.
        q1, k1, q2, k2 = (v.float() for v in (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2))
        first, second = (q1 * k1).sum(), (q2 * k2).sum()
        return first.exp() - second.exp() + self.lambda_init


class LatentAttention(CausalSelfAttention):
    """Keys and values are expanded from a latent of L numbers (DeepSeek-AI 2024, DeepSeek-V2, section 2.1).

    Positions cannot rotate what is expanded later, so R further numbers of each query and of one key that all heads
    share are rotated in their place. ``c_attn`` projects to H queries of R + D numbers, then that key, then the latent,
    which an RMSNorm follows as in section 3.1.2; queries are not compressed, as in DeepSeek-V2-Lite. ``c_latent`` holds
    for each head D rows that expand the latent to its key, and D to its value.

    The cache holds key and latent, R + L numbers a position. A pass over several positions expands them. For a single
    one, as in generation, the expansion is moved to the other side of both products, q . (W c) = (W^T q) . c, and
    attention has one key-value head, the cache itself.
    """

    def __init__(self, config: GPTConfig, latent_dim: int) -> None:
        super().__init__(config)
        self.latent_dim, self.rotary = latent_dim, config.latent_rotary
        self.latent_norm = RMSNorm(latent_dim, config.norm_eps, config.norm_affine)
        self.c_latent = nn.Linear(latent_dim, 2 * config.n_embd, bias=False)

    def project(self, x: torch.Tensor, rotation: Rotation | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries (B, H, T, R + D), key and latent (B, 1, T, R + L), and no values, (B, 1, T, 0)."""
        R, L = self.rotary, self.latent_dim
        q, kept = self.c_attn(x).split((self.n_head * (R + self.head_dim), R + L), dim=-1)
        q = q.unflatten(-1, (self.n_head, -1)).transpose(1, 2)
        key, latent = kept[:, None].split((R, L), dim=-1)
        kept = torch.cat((key, self.latent_norm(latent)), dim=-1)
        if rotation is not None:
            q, kept = self.rotate(q, rotation), self.rotate(kept, rotation)
        return q, kept, kept[..., :0]

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: AttentionBias) -> torch.Tensor:
        """Return the output of the heads (B, H, T, D) of queries (B, H, T, R + D) over the cache (B, 1, S, R + L)."""
        return self.absorbed(q, k, bias) if q.shape[2] == 1 else super().attend(q, *self.expand(k), bias)

    def expand(self, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys (B, H, S, R + D) and values (B, H, S, D)."""
        key, latent = kept.split((self.rotary, self.latent_dim), dim=-1)
        heads = self.c_latent(latent[:, 0]).unflatten(-1, (self.n_head, -1)).transpose(1, 2)  # (B, H, S, 2 D)
        keys, values = heads.chunk(2, dim=-1)
        return torch.cat((key.expand(-1, self.n_head, -1, -1), keys), dim=-1), values

    def absorbed(self, q: torch.Tensor, kept: torch.Tensor, bias: AttentionBias) -> torch.Tensor:
        """Return the same without expanding keys and values."""
        R, L, D = self.rotary, self.latent_dim, self.head_dim
        to_key, to_value = self.c_latent.weight.view(self.n_head, 2 * D, L).chunk(2, dim=1)  # (H, D, L)
        rotated, q = q.split((R, D), dim=-1)
        q = torch.cat((rotated, torch.einsum("bhtd,hdl->bhtl", q, to_key)), dim=-1)
        q = q * math.sqrt((R + L) / (R + D))  # the kernel divides by the root of its width
        y = super().attend(q, kept, kept, bias)[..., R:]  # (B, H, T, L)
        return torch.einsum("bhtl,hdl->bhtd", y, to_value)

    def weights(self, q: torch.Tensor, k: torch.Tensor, bias: AttentionBias) -> torch.Tensor:
        """Return the attention weights (B, H, T, S)."""
        return super().weights(q, self.expand(k)[0], bias)
