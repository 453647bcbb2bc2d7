"""The key-value cache: keys and values of earlier positions are kept, so a new token costs one position.

A mask that reaches back W positions needs the leading positions, which every query attends to, and the last W. Such a
cache rolls: position p has slot p while p < leading, then slot leading + (p - leading) mod W, so each new key
overwrites the one that has just gone out of reach.

    leading 1, W 3     positions 0 1 2 3 | 4      slots  0 1 2 3  ->  0 4 2 3  ->  0 4 5 3  ->  0 4 5 6

Keys are stored after rotation, which depends on the position and not on the slot, so they stay valid when the cache
rolls. Grouped-query attention stores n_kv_head heads of each. If layers have different masks, each keeps what its own
reaches.

Rows of different lengths are padded on the left: ``padding[b]`` empty positions precede row b's first token. No query
attends to them, and positions count from the first token.

    padding 2, 0, 1       . . a b      c d e f      . g h i
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from gpt2lab.errors import InputError
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.masks import Mask


class _Pass(NamedTuple):
    """The slots that a forward pass writes and reads, the same in every layer of a mask."""

    slots: slice | torch.Tensor
    """Where new keys are written."""
    kept: torch.Tensor | None
    """Indices of the new keys that are stored; None: all, before they are read."""
    filled: int
    """Number of slots that are read."""


class _Slots:
    """Which position has which slot, in the layers of one mask."""

    def __init__(self, mask: Mask, n_ctx: int, room: int, padding: torch.Tensor | None, device: torch.device) -> None:
        self._leading = mask.leading
        if mask.leading and padding is not None:
            self._leading += int(padding.max())  # each row's own leading tokens are among these
        self._reach = n_ctx if mask.reach is None else mask.reach
        self.rolling = mask.reach is not None and self._leading + self._reach < n_ctx
        self.positions = torch.arange(self._leading + self._reach if self.rolling else room, device=device)
        """Position of the key in each slot."""
        self.now = _Pass(slice(0), None, 0)

    def begin(self, start: int, T: int) -> torch.Tensor:
        """Place T new positions from ``start`` on; return the positions of the keys that they read."""
        end, capacity = start + T, len(self.positions)
        if not self.rolling or T == 1:
            slot = start if start < capacity else self._leading + (start - self._leading) % self._reach
            self.now = _Pass(slice(slot, slot + T), None, min(end, capacity))
            self.positions[slot : slot + T] = torch.arange(start, end, device=self.positions.device)
            return self.positions[: self.now.filled]
        new = torch.arange(start, end, device=self.positions.device)
        kept = ((new < self._leading) | (new >= end - self._reach)).nonzero()[:, 0]
        slots = torch.where(new < capacity, new, self._leading + (new - self._leading) % self._reach)[kept]
        self.now = _Pass(slots, kept, min(start, capacity))
        positions = torch.cat([self.positions[: self.now.filled], new])
        self.positions[slots] = new[kept]
        return positions


class LayerCache:
    """One layer's keys and values, (B, K, slots, D) each."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, slots: _Slots) -> None:
        self.keys, self.values, self._slots = keys, values, slots

    def append(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new k and v (B, K, T, D); return the keys and values that the new queries read, (B, K, S, D)."""
        slots, kept, filled = self._slots.now
        if kept is None:
            self.keys[:, :, slots] = k
            self.values[:, :, slots] = v
            return self.keys[:, :, :filled], self.values[:, :, :filled]
        # A chunk overwrites keys that its own first queries still read, so old and new are concatenated first.
        keys = torch.cat([self.keys[:, :, :filled], k], dim=2)
        values = torch.cat([self.values[:, :, :filled], v], dim=2)
        self.keys[:, :, slots], self.values[:, :, slots] = k[:, :, kept], v[:, :, kept]
        return keys, values


class KVCache:
    """Keys and values of every layer; the model calls `begin`, each layer's `append`, and `end`."""

    def __init__(
        self,
        config: GPTConfig,
        batch: int,
        device: torch.device,
        dtype: torch.dtype,
        padding: torch.Tensor | None = None,
        room: int | None = None,
    ) -> None:
        """Allocate the cache.

        Args:
            config: Configuration of the model.
            batch: Number of rows B.
            device: Device of the model.
            dtype: Data type of keys and values, as the projection returns them.
            padding: Empty positions before each row's first token, (B,), integers; None: all rows have one length.
            room: Maximum number of positions; None is the model's context.
        """
        masks = config.masks
        self.padding = padding
        self.length = 0
        """Number of positions seen so far; a rolling cache has dropped some of them."""
        self._room = config.n_ctx if room is None else room
        self.looks_ahead = config.looks_ahead
        """Whether queries attend to later keys: then the cache is valid for a single pass."""
        self._slots = {mask: _Slots(mask, config.n_ctx, self._room, padding, device) for mask in masks}
        self.rolling = any(slots.rolling for slots in self._slots.values())
        """Whether keys beyond the reach of a mask are dropped."""
        self.endless = all(slots.rolling for slots in self._slots.values()) and config.position != "learned"
        """Whether it takes more positions than the context: it rolls, and there is no table of positions."""
        self.layers: list[LayerCache] = []
        for slots in map(self._slots.__getitem__, masks):
            shape = (2, batch, config.kv_heads, len(slots.positions), config.head_dim)
            keys, values = torch.empty(shape, device=device, dtype=dtype)
            self.layers.append(LayerCache(keys, values, slots))
        self.nbytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)
        """Bytes of keys and values."""

    def require_room(self, T: int) -> None:
        """Raise `InputError` unless T more positions fit; the caller then drops the oldest and refills the cache."""
        if not self.endless and self.length + T > self._room:
            raise InputError(
                f"the cache holds {self.length} of {self._room} positions and {T} more were asked for; "
                "drop the oldest and refill the cache"
            )

    def begin(self, T: int) -> dict[Mask, torch.Tensor]:
        """Prepare for T new positions; return the positions (S,) of the keys that they read, by mask.

        They are in the order of `LayerCache.append`.

        Raises:
            InputError: There is no room.
        """
        self.require_room(T)
        return {mask: slots.begin(self.length, T) for mask, slots in self._slots.items()}

    def end(self, T: int) -> None:
        """Count T positions that every layer has stored."""
        self.length += T

    def copy_rows(self, source: KVCache, rows: torch.Tensor) -> None:
        """Copy row ``rows[i]`` of ``source`` to row i and drop everything else; ``rows`` (B,) may repeat."""
        self.clear()
        self.require_room(source.length)
        for mask, slots in self._slots.items():
            theirs = source._slots[mask].positions[: source.length]
            slots.positions[: len(theirs)] = theirs
        for mine, its in zip(self.layers, source.layers, strict=True):
            filled = min(source.length, its.keys.shape[2])
            mine.keys[:, :, :filled] = its.keys[rows, :, :filled]
            mine.values[:, :, :filled] = its.values[rows, :, :filled]
        self.length = source.length
        self.padding = None if source.padding is None else source.padding[rows]

    def clear(self, dropped: int = 0) -> None:
        """Empty the cache, keep its memory; ``dropped`` positions were removed from the start of the rows."""
        self.length = 0
        if self.padding is not None and dropped:
            self.padding = (self.padding - dropped).clamp(min=0)
