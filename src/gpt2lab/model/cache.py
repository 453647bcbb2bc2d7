"""The keys and values of the positions already read, so that a new token costs one position and not all of them."""

from __future__ import annotations

import torch

from gpt2lab.errors import InputError
from gpt2lab.model.config import GPTConfig


class LayerCache:
    """One layer's keys and values, (B, H, n_ctx, D) each, filled from the left."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values
        self.length = 0

    def append(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new k and v (B, H, T, D) behind the old ones; return all of them, (B, H, length + T, D)."""
        start, self.length = self.length, self.length + k.shape[2]
        self.keys[:, :, start : self.length] = k
        self.values[:, :, start : self.length] = v
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class KVCache:
    """Keys and values of every layer; the model appends to it while it runs."""

    def __init__(self, config: GPTConfig, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (2, config.n_layer, batch, config.n_head, config.n_ctx, config.head_dim)
        keys, values = torch.empty(shape, device=device, dtype=dtype)
        self.layers = [LayerCache(k, v) for k, v in zip(keys, values, strict=True)]
        self.capacity = config.n_ctx
        self.nbytes = keys.nbytes + values.nbytes
        """Bytes that keys and values take."""

    @property
    def length(self) -> int:
        """How many positions it holds."""
        return self.layers[0].length

    def require_room(self, T: int) -> None:
        """Raise `InputError` unless T more positions fit; the caller then drops the oldest and fills a new cache."""
        if self.length + T > self.capacity:
            raise InputError(
                f"the cache holds {self.length} of {self.capacity} positions and {T} more were asked for; "
                "drop the oldest and fill it anew"
            )

    def clear(self) -> None:
        """Forget everything, keep the memory."""
        for layer in self.layers:
            layer.length = 0
