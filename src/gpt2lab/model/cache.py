"""The key-value cache: keys and values of earlier positions are kept, so a new token costs one position.

A mask that reaches back W positions needs the leading positions, which every query attends to, and the last W. Such a
cache rolls: position p has slot p while p < leading, then slot leading + (p - leading) mod W, so each new key
overwrites the one that has just gone out of reach.

    leading 1, W 3     positions 0 1 2 3 | 4      slots  0 1 2 3  ->  0 4 2 3  ->  0 4 5 3  ->  0 4 5 6

Keys are stored after rotation, which depends on the position and not on the slot, so they stay valid when the cache
rolls. Grouped-query attention stores n_kv_head heads of each; latent attention stores one key, which holds the latent,
and no value. If layers have different masks, each keeps what its own reaches.

Rows of different lengths are padded on the left: ``padding[b]`` empty positions precede row b's first token. No query
attends to them, and positions count from the first token.

    padding 2, 0, 1       . . a b      c d e f      . g h i

A server's rows come and go at any time. `BatchCache` gives each a length of its own, counted from the left:

    lengths 2, 4, 3       a b . .      c d e f      g h i .
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

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
        near = max(0, T - self._reach)  # the last ones, and before them the leading ones
        kept = torch.cat([new[: min(max(0, self._leading - start), near)], new[near:]]) - start
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
        k, v = k.to(self.keys.dtype), v.to(self.values.dtype)
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
        self.padding, self.dtype = padding, dtype
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
        heads, *widths = config.cached
        for slots in map(self._slots.__getitem__, masks):
            shape = batch, heads, len(slots.positions)
            keys, values = (torch.empty(*shape, width, device=device, dtype=dtype) for width in widths)
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


BLOCK = 16
"""`BatchCache` reads a multiple of this many slots, so that the kernel sums a row alike beside longer ones."""


class _RowSlots:
    """Which position has which slot, in the layers of one mask, for rows of different lengths: as in `_Slots`."""

    def __init__(self, mask: Mask, n_ctx: int) -> None:
        rolling = mask.reach is not None and mask.leading + mask.reach < n_ctx
        self._leading, self._reach = (mask.leading, mask.reach or n_ctx) if rolling else (0, n_ctx)
        self.capacity = self._leading + self._reach
        self.now = torch.empty(0, dtype=torch.long)
        """Slot of each row's new key, (B,)."""
        self.filled = 0
        """Number of slots that are read."""

    def begin(self, new: torch.Tensor, longest: int) -> torch.Tensor:
        """Place the position ``new`` (B,) of each row; return those of the keys (B, S), later ones in empty slots."""
        beyond = self._leading + (new - self._leading) % self._reach
        self.now = torch.where(new < self.capacity, new, beyond)
        self.filled = min(-(-(longest + 1) // BLOCK) * BLOCK, self.capacity)
        slots, new = torch.arange(self.filled, device=new.device), new[:, None]
        newest = new - (new - slots) % self._reach  # of the positions that share the slot
        return torch.where((slots < self._leading) | (newest < slots), slots, newest)


class _BatchLayer(LayerCache):
    """One layer's keys and values of a `BatchCache`."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, slots: _RowSlots) -> None:
        self.keys, self.values, self._rows = keys, values, slots

    def append(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new k and v (B, K, 1, D) of each row; return the keys and values to read, (B, K, S, D)."""
        B, slots, filled = len(k), self._rows.now, self._rows.filled
        self._reserve(B, filled)
        rows = torch.arange(B, device=k.device)
        self.keys[rows, :, slots] = k[:, :, 0].to(self.keys.dtype)
        self.values[rows, :, slots] = v[:, :, 0].to(self.values.dtype)
        return self.keys[:B, :, :filled], self.values[:B, :, :filled]

    def join(self, row: int, cache: LayerCache, length: int) -> None:
        """Copy the first row of a cache that has seen ``length`` positions."""
        filled = min(length, self._rows.capacity)
        self._reserve(row + 1, filled)
        for mine, its in ((self.keys, cache.keys), (self.values, cache.values)):
            mine[row] = 0  # what another row left behind, such as NaN, must not reach this one
            mine[row, :, :filled] = its[0, :, :filled]

    def leave(self, row: int, last: int) -> None:
        """Move the last row to the place of one that leaves."""
        for kept in (self.keys, self.values):
            kept[row] = kept[last]

    def clear(self) -> None:
        """Give the memory back."""
        self.keys, self.values = (x.new_zeros(0, x.shape[1], 0, x.shape[3]) for x in (self.keys, self.values))

    def _reserve(self, rows: int, filled: int) -> None:
        """Make room. Empty slots hold zeros: a kernel multiplies what it masks by 0."""
        R, _, S, _ = self.keys.shape
        if rows > R or filled > S:
            more_rows = max(rows, 2 * R) - R if rows > R else 0
            more_slots = min(max(filled, 2 * S), self._rows.capacity) - S if filled > S else 0
            by = (0, 0, 0, more_slots, 0, 0, 0, more_rows)
            self.keys, self.values = (F.pad(x, by) for x in (self.keys, self.values))


class BatchCache:
    """Keys and values of rows that join and leave a running batch; every pass takes one new token of each.

    A row has read its prompt with a `KVCache` of its own, which `join` copies. Rows are numbered without gaps: when one
    leaves, the last gets its number. Memory grows with the number of rows and the longest of them.
    """

    padding, length, rolling, looks_ahead = None, 0, False, False

    def __init__(self, config: GPTConfig, rows: int, device: torch.device, dtype: torch.dtype, least: int = 1) -> None:
        """Make an empty cache.

        Args:
            config: Configuration of the model; none of its masks may look ahead.
            rows: Maximum number of rows.
            device: Device of the model.
            dtype: Data type of keys and values; attention is computed in it.
            least: Number of rows that a pass has at least: the last one is repeated, and not kept. With 2, a CPU's
                products in bf16 give a row the same bits alone as beside others.
        """
        self.dtype, self._device, self._room, self._most, self.least = dtype, device, config.n_ctx, rows, least
        self._slots = {mask: _RowSlots(mask, config.n_ctx) for mask in config.masks}
        self.endless = KVCache(config, 0, device, dtype).endless
        """Whether a row may outgrow the context, as in `KVCache`."""
        self.lengths: list[int] = []
        """Number of positions that each row has seen."""
        self.positions = torch.empty(0, 1, dtype=torch.long)
        """Position of each row's new token, (B, 1)."""
        heads, *widths = config.cached
        keys, values = (torch.zeros(0, heads, 0, width, device=device, dtype=dtype) for width in widths)
        self.layers = [_BatchLayer(keys, values, self._slots[mask]) for mask in config.masks]

    def join(self, cache: KVCache) -> int:
        """Add a row that continues the only row of ``cache``; return its number.

        Raises:
            InputError: All rows are taken.
        """
        row = len(self.lengths)
        if row == self._most:
            raise InputError(f"all {row} rows of the batch are taken; wait until one leaves")
        for mine, its in zip(self.layers, cache.layers, strict=True):
            mine.join(row, its, cache.length)
        self.lengths.append(cache.length)
        return row

    def leave(self, row: int) -> None:
        """Remove a row; the last one gets its number."""
        last = self.lengths.pop()
        for layer in self.layers:
            if self.lengths:
                layer.leave(row, len(self.lengths))
            else:
                layer.clear()
        if row < len(self.lengths):
            self.lengths[row] = last

    def begin(self, T: int) -> dict[Mask, torch.Tensor]:
        """Prepare for T = 1 new position of each row; return the positions (B, S) of the keys that it reads, by mask.

        Raises:
            InputError: A row is full, or T is not 1.
        """
        longest = max(self.lengths)
        if T != 1 or (longest >= self._room and not self.endless):
            raise InputError(f"a row holds {longest} of {self._room} positions, {T} more were asked for; a pass adds 1")
        repeated = self.lengths[-1:] * (self.least - len(self.lengths))
        new = torch.tensor(self.lengths + repeated, device=self._device)
        self.positions = new[:, None]
        return {mask: slots.begin(new, longest) for mask, slots in self._slots.items()}

    def end(self, T: int) -> None:
        """Count the positions that every layer has stored."""
        self.lengths = [length + T for length in self.lengths]
