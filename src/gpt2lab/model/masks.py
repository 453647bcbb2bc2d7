"""Who may attend to whom, as a boolean tensor: True where query q may read key k.

Queries are the last T of S positions, so that one rule serves training (T = S) and decoding with a cache (T < S).
"""

from __future__ import annotations

import torch

from gpt2lab.errors import InputError


def causal(T: int, S: int, device: torch.device) -> torch.Tensor:
    """Return the (T, S) mask in which query i, standing at position S - T + i, reads positions up to its own."""
    queries = torch.arange(S - T, S, device=device)[:, None]  # (T, 1)
    keys = torch.arange(S, device=device)[None, :]  # (1, S)
    return keys <= queries


def as_mask(mask: torch.Tensor, B: int, H: int, T: int, S: int) -> torch.Tensor:
    """Return a user's mask as a boolean tensor that broadcasts to (B, H, T, S).

    Args:
        mask: Shape (T, S), (B, T, S) or (B, H, T, S); boolean, or numbers that are all 0 or 1.
        B: Batch size.
        H: Heads.
        T: Queries.
        S: Keys.

    Raises:
        InputError: Another shape, or another value than 0 and 1.
    """
    if tuple(mask.shape) not in ((T, S), (B, T, S), (B, H, T, S)):
        raise InputError(
            f"the mask has shape {tuple(mask.shape)}; allowed here are {(T, S)}, {(B, T, S)} and {(B, H, T, S)}"
        )
    if mask.dtype != torch.bool:
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise InputError("the mask holds values other than 0 and 1; give a boolean tensor, True where q may read k")
        mask = mask.bool()
    return mask[:, None] if mask.dim() == 3 else mask
