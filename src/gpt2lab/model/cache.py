"""The keys and values of the places already read, so that a new token costs one place and not all of them.

A model whose mask reaches back W places needs no more than W, after the leading ones that everyone may read. Its cache
rolls: place p has slot p while p < leading, then slot leading + (p - leading) mod W, so that each new key takes the
place of the one that has just gone out of reach.

    leading 1, W 3        places 0 1 2 3 | 4      slots  0 1 2 3  ->  0 4 2 3  ->  0 4 5 3  ->  0 4 5 6

Keys are stored with their rotation, which belongs to their place in the sequence and not to their slot: so they stay
right when the cache has rolled. Grouped heads store n_kv_head of each.

Rows of different lengths stand flush right, with ``padding[b]`` empty places before row b's first token. The empty ones
are read by none, and positions count from the first token.

    padding 2, 0, 1       . . a b      c d e f      . g h i
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from gpt2lab.errors import InputError
from gpt2lab.model.config import GPTConfig


class _Pass(NamedTuple):
    """What a forward pass writes and reads in every layer."""

    slots: slice | torch.Tensor
    """Where new keys go."""
    kept: torch.Tensor | None
    """Which of the new ones are stored; None: all, and before they are read."""
    filled: int
    """Slots that are read."""


class LayerCache:
    """One layer's keys and values, (B, K, slots, D) each."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values
        self.now = _Pass(slice(0), None, 0)

    def append(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new k and v (B, K, T, D); return all that the new queries may read, (B, K, S, D)."""
        slots, kept, filled = self.now
        if kept is None:
            self.keys[:, :, slots] = k
            self.values[:, :, slots] = v
            return self.keys[:, :, :filled], self.values[:, :, :filled]
        # A chunk overwrites what its own first queries still read, so old and new are put side by side first.
        keys, values = (
            torch.cat([self.keys[:, :, :filled], k], dim=2),
            torch.cat([self.values[:, :, :filled], v], dim=2),
        )
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
        """Make room for ``batch`` rows.

        Args:
            config: The model's.
            batch: Rows.
            device: Where the model is.
            dtype: Of keys and values, as the projection gives them.
            padding: Empty places before each row's first token, (B,), integers; None where all rows are of one length.
            room: Places at most; None is the model's context.
        """
        mask = config.attention_mask
        self.padding = padding
        self.length = 0
        """How many places it was given; a rolling one has forgotten some of them."""
        self._room = config.n_ctx if room is None else room
        self._leading = mask.leading
        if mask.leading and padding is not None:
            self._leading += int(padding.max())  # each row's own leading tokens are among these
        self._reach = config.n_ctx if mask.reach is None else mask.reach
        self.looks_ahead = mask.looks_ahead
        """Whether the mask lets places read later ones: then the cache serves one pass and no more."""
        self.rolling = mask.reach is not None and self._leading + self._reach < config.n_ctx
        """Whether it forgets what has gone out of the mask's reach."""
        self.endless = self.rolling and config.position != "learned"
        """Whether it takes more places than the context: it rolls, and positions have no table that ends."""
        capacity = self._leading + self._reach if self.rolling else self._room
        shape = (2, config.n_layer, batch, config.kv_heads, capacity, config.head_dim)
        keys, values = torch.empty(shape, device=device, dtype=dtype)
        self.layers = [LayerCache(k, v) for k, v in zip(keys, values, strict=True)]
        self.nbytes = keys.nbytes + values.nbytes
        """Bytes that keys and values take."""
        self._places = torch.arange(capacity, device=device)  # the place whose key each slot holds

    def require_room(self, T: int) -> None:
        """Raise `InputError` unless T more places fit; the caller then drops the oldest and fills a new cache."""
        if not self.endless and self.length + T > self._room:
            raise InputError(
                f"the cache holds {self.length} of {self._room} positions and {T} more were asked for; "
                "drop the oldest and refill the cache"
            )

    def begin(self, T: int) -> torch.Tensor:
        """Make ready for T new places; return the places (S,) of the keys that these may read, in `append`'s order.

        Raises:
            InputError: There is no room.
        """
        self.require_room(T)
        start, end, capacity = self.length, self.length + T, len(self._places)
        if not self.rolling or T == 1:
            slot = start if start < capacity else self._leading + (start - self._leading) % self._reach
            now = _Pass(slice(slot, slot + T), None, min(end, capacity))
            self._places[slot : slot + T] = torch.arange(start, end, device=self._places.device)
            places = self._places[: now.filled]
        else:
            new = torch.arange(start, end, device=self._places.device)
            kept = ((new < self._leading) | (new >= end - self._reach)).nonzero()[:, 0]
            slots = torch.where(new < capacity, new, self._leading + (new - self._leading) % self._reach)[kept]
            now = _Pass(slots, kept, min(start, capacity))
            places = torch.cat([self._places[: now.filled], new])
            self._places[slots] = new[kept]
        for layer in self.layers:
            layer.now = now
        return places

    def end(self, T: int) -> None:
        """Count T places that every layer has stored."""
        self.length += T

    def copy_rows(self, source: KVCache, rows: torch.Tensor) -> None:
        """Hold in row i what ``source`` holds in row ``rows[i]``, and nothing else; ``rows`` (B,) may repeat."""
        self.clear()
        self.require_room(source.length)
        filled = min(source.length, len(source._places))
        self._places[:filled] = source._places[:filled]
        for mine, theirs in zip(self.layers, source.layers, strict=True):
            mine.keys[:, :, :filled] = theirs.keys[rows, :, :filled]
            mine.values[:, :, :filled] = theirs.values[rows, :, :filled]
        self.length = source.length
        self.padding = None if source.padding is None else source.padding[rows]

    def clear(self, dropped: int = 0) -> None:
        """Forget everything, keep the memory; the rows have lost so many places at their beginning."""
        self.length = 0
        if self.padding is not None and dropped:
            self.padding = (self.padding - dropped).clamp(min=0)
