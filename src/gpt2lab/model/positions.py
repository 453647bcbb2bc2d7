"""Where a token stands, in four forms that need no training: waves, rotations, distances, or nothing.

    sinusoidal    x_0 = wte[token] + PE[p]                          added to the embedding    (Vaswani et al. 2017)
    rope          q . k  becomes  (R(p_q) q) . (R(p_k) k)           queries and keys rotate   (Su et al. 2021)
    alibi         q . k / sqrt(D)  becomes  .. - m_h |p_q - p_k|    distance lowers scores    (Press et al. 2022)

R(p) rotates pair i of a head by the angle p * theta_i, theta_i = base^(-2i/R), so that the product depends on the
distance alone. Each is made once per pass and used by every layer. Learned positions are a table of the model (gpt.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch

from gpt2lab.model.config import GPTConfig
from gpt2lab.model.masks import Predicate

# Waves ----------------------------------------------------------------------------------------------------------------

SINUSOID_SCALE = 0.02
"""Vaswani et al. multiply the embedding, of standard deviation 1/sqrt(C), by sqrt(C) and add waves of amplitude 1. Our
embedding starts at 0.02, so the waves are scaled instead: their share is the same, and the stream starts as small as
GPT-2's."""


def sinusoidal(positions: torch.Tensor, width: int) -> torch.Tensor:
    """Return the fixed embedding (.., C), fp32, of positions (..), times `SINUSOID_SCALE` (Vaswani et al. 2017)."""
    pair = torch.arange(0, width, 2, device=positions.device)
    angles = positions[..., None] * torch.exp(pair * (-math.log(10_000.0) / width))  # (.., C/2)
    waves = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)  # (.., C), one more if C is odd
    return SINUSOID_SCALE * waves[..., :width]


# Rotations ------------------------------------------------------------------------------------------------------------

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of the angles, each (T, R/2) or (B, 1, T, R/2), for the R numbers of a head that are rotated."""
YARN_TURNS = (32.0, 1.0)
"""Pairs that turn more often than the first within the trained context keep their angles; those that turn less often
than the second are interpolated (Peng et al. 2023, section 3.2, their choice for Llama)."""


def frequencies(config: GPTConfig, device: torch.device) -> torch.Tensor:
    """Return the angle per position of each rotated pair, (R/2,), fp32, scaled for a longer context if asked for.

    With factor s: ``linear`` divides all angles by s (Chen et al. 2023). ``ntk`` raises the base by s^(R/(R-2)), which
    divides the slowest angle by s and leaves the fastest (bloc97 2023). ``yarn`` divides the angles of slow pairs by s,
    keeps those of fast ones, and goes over linearly from one to the other (Peng et al. 2023, section 3.2).
    """
    R, base, factor = config.rotary_dim, config.rope_base, config.rope_factor or 1.0
    if config.rope_scaling == "ntk":
        base *= factor ** (R / (R - 2))
    theta = torch.exp(torch.arange(0, R, 2, device=device) * (-math.log(base) / R))
    if config.rope_scaling == "linear":
        return theta / factor
    if config.rope_scaling == "yarn":
        slow = _slow_pairs(R, base, config.rope_original_ctx or config.n_ctx, device)
        return theta / factor * slow + theta * (1.0 - slow)
    return theta


def _slow_pairs(R: int, base: float, n_ctx: int, device: torch.device) -> torch.Tensor:
    """Return for each pair (R/2,) 0 if it turns often within ``n_ctx`` positions, 1 if it does not, or between."""
    first, last = (R * math.log(n_ctx / (2 * math.pi * turns)) / (2 * math.log(base)) for turns in YARN_TURNS)
    low, high = max(math.floor(first), 0), min(math.ceil(last), R - 1)
    return ((torch.arange(R // 2, device=device) - low) / max(high - low, 0.001)).clamp(0, 1)


def rotation(positions: torch.Tensor, config: GPTConfig, dtype: torch.dtype) -> Rotation:
    """Return cosines and sines of the angles of positions (T,) or (B, T), computed in fp32.

    YaRN lowers the temperature of attention: the products of what is rotated grow by (0.1 ln s + 1)^2 (section 3.4).
    """
    angles = positions[..., None] * frequencies(config, positions.device)  # (.., T, R/2)
    angles = angles[:, None] if positions.dim() == 2 else angles
    cos, sin = angles.cos(), angles.sin()
    if config.rope_scaling == "yarn" and config.rope_factor is not None:
        length = 0.1 * math.log(config.rope_factor) + 1.0
        cos, sin = length * cos, length * sin
    return cos.to(dtype), sin.to(dtype)


def rotations(positions: torch.Tensor, config: GPTConfig, dtype: torch.dtype) -> list[Rotation | None]:
    """Return the rotation of each layer, the same for all; None in a layer without rotary positions."""
    if config.position != "rope":
        return [None] * config.n_layer
    by = rotation(positions, config, dtype)
    without = config.nope_layers
    return [None if layer in without else by for layer in range(config.n_layer)]


def rotate_halves(x: torch.Tensor, by: Rotation) -> torch.Tensor:
    """Rotate each head of x (B, H, T, R) by the angles of its position; pair i is made of numbers i and i + R/2.

    This is the pairing of GPT-NeoX and Llama, since halves are contiguous. One pairing is a fixed permutation of the
    other, but weights do not carry over between them.
    """
    cos, sin = by
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rotate_interleaved(x: torch.Tensor, by: Rotation) -> torch.Tensor:
    """Rotate as `rotate_halves`; pair i is made of numbers 2i and 2i + 1, as in the paper and GPT-J."""
    cos, sin = by
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)


def make_rotate(config: GPTConfig) -> Callable[[torch.Tensor, Rotation], torch.Tensor]:
    """Return the function that rotates heads (B, H, T, D), all of D or its beginning, in the configured pairing."""
    rotate = {"halves": rotate_halves, "interleaved": rotate_interleaved}[config.rope_pairing]
    if config.rotary_dim == config.key_width:
        return rotate
    return functools.partial(_rotate_beginning, rotate, config.rotary_dim)


def _rotate_beginning(
    rotate: Callable[[torch.Tensor, Rotation], torch.Tensor], R: int, x: torch.Tensor, by: Rotation
) -> torch.Tensor:
    return torch.cat((rotate(x[..., :R], by), x[..., R:]), dim=-1)


# Distances ------------------------------------------------------------------------------------------------------------

ScoreBias = Predicate
"""What is added to the score of query and key: like a mask's predicate, a function of row, head, query and key."""


def alibi_slopes(n_head: int, device: torch.device) -> torch.Tensor:
    """Return m_h of each head (H,), fp32: 2^(-8h/H) for h = 1 .. H where H is a power of two.

    Otherwise the slopes of the next lower power P, then the odd ones of 2 P, as in the code of Press et al. 2022.
    """
    P = 1 << (n_head.bit_length() - 1)
    first = torch.arange(1, P + 1, device=device) * (-8.0 / P)
    others = torch.arange(1, 2 * (n_head - P) + 1, 2, device=device) * (-4.0 / P)
    return torch.exp2(torch.cat((first, others)))


def alibi(n_head: int, positions: torch.Tensor | None, device: torch.device) -> ScoreBias:
    """Return -m_h |q - k|, of the positions in the row, or of those that ``positions`` (B, T) says they have."""
    slopes = alibi_slopes(n_head, device)
    if positions is None:
        return lambda b, h, q, k: -slopes[h] * (q - k).abs()
    return lambda b, h, q, k: -slopes[h] * (positions[b, q] - positions[b, k]).abs()
