"""One split's shards as one long sequence of tokens, of which any stretch can be read.

    shard 0              shard 1              shard 2
    |t0 ... t(n0 - 1)|   |t(n0) ...       |   |...            |        read([start], length) may begin and end anywhere

Tokens are read from the files by position, never mapped: pages of a mapped file count as the process's memory, which
then grows over a pass until a machine with a limit kills it. What was read stays in the system's cache, so a second
pass is as fast as memory allows, and the process itself holds nothing but the rows asked for. No file stays open.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt2lab.data.shards import Shard
from gpt2lab.errors import InputError


class TokenStream:
    """The tokens of several shards, in their order, as one sequence; ``len(stream)`` is their number."""

    def __init__(self, name: str, shards: Sequence[Shard]) -> None:
        """Join ``shards``, which must have one dtype. ``name`` is how messages call the stream."""
        dtypes = {shard.dtype for shard in shards}
        if len(dtypes) != 1:
            raise InputError(
                f"{name}: {len(shards)} token files of {len(dtypes)} formats; give one or more of one format"
            )
        self.name = name
        self.shards = tuple(shards)
        self.dtype = dtypes.pop()
        self._ends = np.cumsum([shard.tokens for shard in shards])  # (shards,): where each shard ends in the sequence

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Return the stretches of ``length`` tokens that begin at ``starts``.

        Args:
            starts: (n,) positions in the sequence, 0 <= start <= len(self) - length, in any order.
            length: Tokens of each stretch.

        Returns:
            (n, length) array of the files' dtype.

        Raises:
            InputError: A file can no longer be read, or became shorter.
        """
        starts = np.asarray(starts, dtype=np.int64)
        if length < 1 or (starts.size and (starts.min() < 0 or starts.max() + length > len(self))):
            raise IndexError(f"stretches of {length} tokens must lie within the {len(self)} of {self.name}")
        rows = np.empty((len(starts), length), dtype=self.dtype)
        first = np.searchsorted(self._ends, starts, side="right")
        last = np.searchsorted(self._ends, starts + length - 1, side="right")
        for index in range(int(first.min(initial=0)), int(last.max(initial=-1)) + 1):
            touched = np.flatnonzero((first <= index) & (index <= last))
            if touched.size:
                self._fill(rows, touched, starts, index)
        return rows

    def _fill(self, rows: np.ndarray, touched: np.ndarray, starts: np.ndarray, index: int) -> None:
        """Read what shard ``index`` holds of the ``touched`` rows."""
        shard = self.shards[index]
        begins = int(self._ends[index]) - shard.tokens
        try:
            # Unbuffered: a buffer would read 8 KiB ahead of every row.
            with shard.path.open("rb", buffering=0) as file:
                for row, start in zip(touched.tolist(), (starts[touched] - begins).tolist(), strict=True):
                    target = rows[row, max(0, -start) : shard.tokens - start]
                    file.seek(shard.offset + max(0, start) * shard.dtype.itemsize)
                    if file.readinto(target.data) != target.nbytes:
                        raise InputError(f"{shard.path}: became shorter while in use; copy or prepare it again")
        except OSError as error:
            raise InputError(f"{shard.path}: cannot be read ({error.strerror}); prepare the data again") from error
