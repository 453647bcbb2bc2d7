"""The keys and values of the positions already read, so that a new token costs one position and not all of them."""

from __future__ import annotations

import torch

from gpt2lab.errors import InputError
from gpt2lab.model.config import GPTConfig


class KVCache:
    """Keys and values of every layer, shape (n_layer, B, H, n_ctx, D) each, filled from the left.

    The model appends to it while it runs; ``length`` is how many positions it holds.
    """

    def __init__(self, config: GPTConfig, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.n_layer, batch, config.n_head, config.n_ctx, config.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.capacity = config.n_ctx
        self.length = 0

    def update(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a layer's new k, v (B, H, T, D) behind the old ones; return all of them, (B, H, length + T, D).

        Raises:
            InputError: There is no room; the caller slides the window and starts a new cache.
        """
        end = self.length + k.shape[2]
        if end > self.capacity:
            raise InputError(f"the cache holds {self.capacity} positions and {end} were asked for; drop the oldest first")
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, T: int) -> None:
        """Count T positions as held, once every layer has stored them."""
        self.length += T

    def clear(self) -> None:
        """Forget everything, keep the memory."""
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes that keys and values take."""
        return self.keys.nbytes + self.values.nbytes
