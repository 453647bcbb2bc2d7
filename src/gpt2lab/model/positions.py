"""How a token's place enters the model. Attention alone sees a set: without this, order is known by the mask only.

- learned (Radford et al. 2018): x_p = wte[token] + wpe[p]. Places beyond the table do not exist.
- sinusoidal (Vaswani et al. 2017, section 3.5): the table is fixed,

      PE[p, 2i] = sin(p / 10000^(2i/C))      PE[p, 2i+1] = cos(p / 10000^(2i/C))

- rope, rotary (Su et al. 2021, section 3.2): nothing is added; queries and keys are turned by an angle that grows with
  their place, so that their product depends on the distance alone,

      (R_p q) . (R_s k) = q . R_(s - p) k      R_p turns pair i by p * base^(-2i/D)

- none: the causal mask is all that tells places apart (Haviv et al. 2022).
"""

from __future__ import annotations

import math

import torch

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of the angles, each (T, D/2) or (B, 1, T, D/2)."""

SINUSOID_SCALE = 0.02
"""Vaswani et al. multiply the embedding, of standard deviation 1/sqrt(C), by sqrt(C) and add waves of amplitude 1. Ours
begins at 0.02, so the waves are scaled instead: their share is the same, and the stream begins as small as GPT-2's."""


def sinusoidal(positions: torch.Tensor, width: int) -> torch.Tensor:
    """Return the fixed embedding (.., C), fp32, of positions (..), times `SINUSOID_SCALE`."""
    pair = torch.arange(0, width, 2, device=positions.device)
    angles = positions[..., None] * torch.exp(pair * (-math.log(10_000.0) / width))  # (.., C/2)
    waves = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)  # (.., C), one more where C is odd
    return SINUSOID_SCALE * waves[..., :width]


def rotation(positions: torch.Tensor, head_dim: int, base: float, dtype: torch.dtype) -> Rotation:
    """Return cosines and sines for positions (T,) or (B, T); computed in fp32, then of ``dtype``."""
    pair = torch.arange(0, head_dim, 2, device=positions.device)
    angles = positions[..., None] * torch.exp(pair * (-math.log(base) / head_dim))  # (.., T, D/2)
    angles = angles[:, None] if positions.dim() == 2 else angles
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: torch.Tensor, by: Rotation) -> torch.Tensor:
    """Turn each head of x (B, H, T, D) by its place's angles.

    Pair i is made of numbers i and i + D/2, as in GPT-NeoX and Llama, since halves are contiguous; the paper pairs 2i
    with 2i + 1. Either is a fixed permutation of the other, but weights do not carry over between them.
    """
    cos, sin = by
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
