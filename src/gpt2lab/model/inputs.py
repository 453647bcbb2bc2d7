"""What may be given to a forward pass together, and what may not."""

from __future__ import annotations

import warnings

import torch

from gpt2lab.errors import InputError
from gpt2lab.model.cache import KVCache
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.masks import Mask


def check_inputs(
    config: GPTConfig,
    tokens: torch.Tensor,
    mask: torch.Tensor | None,
    cache: KVCache | None,
    documents: torch.Tensor | None,
    positions: torch.Tensor | None,
) -> None:
    """Raise `InputError` where the arguments of a pass do not fit one another or the model."""
    if tokens.dim() != 2:
        raise InputError(f"the tokens have shape {tuple(tokens.shape)}; give (B, T): rows of ids")
    n_ctx, T = config.n_ctx, tokens.shape[1]
    if cache is None and n_ctx < T:
        raise InputError(f"{T} tokens are more than the model's context of {n_ctx}")
    for name, given in (("documents", documents), ("positions", positions)):
        if given is not None and cache is not None:
            raise InputError(f"{name} are for whole passes: a cache holds one document a row; leave them out")
        if given is not None and (given.shape != tokens.shape or given.is_floating_point()):
            raise InputError(f"{name} has shape {tuple(given.shape)}, {given.dtype}; give integers like the tokens'")
    if positions is not None and positions.device.type == "cpu":  # elsewhere the question would wait for the device
        low, high = int(positions.min()), int(positions.max())
        if low < 0 or high >= n_ctx:
            reached = f"down to {low}" if low < 0 else f"up to {high}"
            raise InputError(f"positions go {reached}; the model's context is {n_ctx}")
    if cache is not None and mask is not None and cache.rolling:
        raise InputError(f"the cache of mask {config.mask} forgets keys that a tensor may name; leave one out")
    if cache is not None and cache.length and cache.looks_ahead and mask is None:
        raise InputError(
            f"mask {config.mask} reads ahead: what is cached would change with each new token; "
            "read the whole sequence again"
        )


def check_targets(tokens: torch.Tensor, targets: torch.Tensor) -> None:
    """Raise `InputError` unless there is a target for each token: one too many would move all that follow."""
    if targets.shape != tokens.shape:
        raise InputError(f"targets has shape {tuple(targets.shape)}; give one for each token, {tuple(tokens.shape)}")


def warn_of_leaks(mask: Mask | torch.Tensor) -> None:
    """Warn where a mask lets a token read what it is to predict."""
    if mask.looks_ahead if isinstance(mask, Mask) else bool(mask.triu(1).any()):
        warnings.warn(
            "the mask lets tokens read what follows them, which is what they are to predict: the loss leaks and says "
            "nothing of the model",
            stacklevel=3,
        )
