"""The parts of a block that GPT-2 fixed and its successors changed: the norm, and the feed-forward layer.

A part is chosen once, when the model is built; a forward pass just calls it.

    layernorm   (x - mean(x)) / sqrt(var(x) + eps) * weight + bias       Ba et al. 2016; GPT-2
    rmsnorm     x / sqrt(mean(x^2) + eps) * weight                       Zhang & Sennrich 2019; Llama

The feed-forward layer maps x to c_proj(activation(c_fc(x))). An ordinary activation maps each number by itself. A gated
one (Dauphin et al. 2017, Shazeer 2020) halves its input and multiplies one half, the value, by a function of the other,
the gate: c_fc is twice as wide, and its first rows are the gate's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from gpt2lab.model.config import GPTConfig
from gpt2lab.model.parts import make_part


class RMSNorm(nn.Module):
    """Division by the root mean square, without subtracting the mean (Zhang & Sennrich 2019, section 4).

    Written out, since on a CPU torch's own rms_norm takes twice the time and keeps more for the backward pass. As in
    Llama, the quotient is computed in fp32 and rounded to the input's dtype before the weight multiplies it.
    """

    def __init__(self, width: int, eps: float, affine: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize x (.., C)."""
        accurate = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=accurate)
        y = (x * torch.rsqrt(length.square() / x.shape[-1] + self.eps)).to(x.dtype)
        return y if self.weight is None else y * self.weight.to(x.dtype)


def make_norm(config: GPTConfig, width: int | None = None) -> nn.Module:
    """Return a norm over the last dimension, of the residual stream's width unless another is given."""
    width = width or config.n_embd
    if config.norm == "rmsnorm":
        return RMSNorm(width, config.norm_eps, config.norm_affine)
    return nn.LayerNorm(width, config.norm_eps, config.norm_affine, config.bias)


def _gated(gate: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def activation(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return gate(first) * second

    return activation


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu_tanh": partial(F.gelu, approximate="tanh"),  # Hendrycks & Gimpel 2016, as GPT-2 approximates it
    "gelu": F.gelu,  # with erf, as BERT
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),  # So et al. 2021, Primer
    "silu": F.silu,  # Elfwing et al. 2017; Ramachandran et al. 2017 call it Swish
    "glu": _gated(torch.sigmoid),  # Dauphin et al. 2017
    "geglu": _gated(partial(F.gelu, approximate="tanh")),  # this and the next: Shazeer 2020
    "swiglu": _gated(F.silu),
}
"""By name in the configuration. A gated one maps (.., 2 F) to (.., F), the others (.., F) to (.., F)."""


def make_feed_forward(config: GPTConfig) -> nn.Module:
    """Return the feed-forward layer of a block: a user's own if the configuration names one."""
    return FeedForward(config) if config.feed_forward is None else make_part("feed_forward", config)


class FeedForward(nn.Module):
    """Two linear layers with the activation between them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.c_fc = nn.Linear(config.n_embd, config.inner * (2 if config.is_gated else 1), bias=config.bias)
        self.c_proj = nn.Linear(config.inner, config.n_embd, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (B, T, C) to (B, T, C)."""
        return self.c_proj(self.activation(self.c_fc(x)))
