"""Activation checkpointing: less memory for a third more work (Chen et al. 2016, "Sublinear Memory Cost").

    kept for the backward pass     without: every product's, norm's and softmax's input in every block
                                   with:    each block's input, (B, T, C), and one block's worth of the rest at a time

The backward pass runs a block's forward pass again, from its input and the random state it had, so dropout draws the
same numbers and the losses are the same bit for bit. It is applied from outside: the model knows nothing of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from gpt2lab.model import GPT


def checkpoint_blocks(model: GPT) -> None:
    """Let every block of a model recompute its activations in the backward pass. Call before compiling."""
    for block in model.h:
        block.forward = _recomputed(block.forward)


def _recomputed(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(forward)
    def run(*inputs: Any) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return forward(*inputs)
        return checkpoint(forward, *inputs, use_reentrant=False)  # type: ignore[no-any-return]

    return run
