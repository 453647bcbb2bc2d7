"""Leaving documents out on request: short ones, and ones that came before, known by a hash of 64 bits.

A hash takes 8 bytes of memory a document, and some 100 while its portion is under way. Among n documents two different
ones have the same with probability n**2 / 2**65: for 100 million, 0.0003.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gpt2lab.data.document import Document
from gpt2lab.files import write_atomically

HASHES = "{split}.hashes"
"""Name of the file that keeps a portion's hashes of a split: 8 bytes a document, in order."""


class Cleaner:
    """Decides which documents are kept. ``short`` and ``duplicates`` count those that are not."""

    def __init__(self, min_length: int, deduplicate: bool, seen: np.ndarray) -> None:
        """Keep documents of ``min_length`` characters or more; of those whose hash is in ``seen``, sorted, none."""
        self._min_length = min_length
        self._deduplicate = deduplicate
        self._seen = seen
        self._new: set[int] = set()
        self.short = self.duplicates = 0

    def keeps(self, document: Document, hashed: int | None) -> bool:
        """Return whether to keep a document, whose hash is given where duplicates are to be left out."""
        if self._min_length and sum(map(len, document.pieces())) < self._min_length:
            self.short += 1
            return False
        if self._deduplicate:
            assert hashed is not None
            if hashed in self._new or _holds(self._seen, hashed):
                self.duplicates += 1
                return False
            self._new.add(hashed)
        return True


def _holds(ordered: np.ndarray, value: int) -> bool:
    key = np.uint64(value)
    place = int(np.searchsorted(ordered, key))
    return place < len(ordered) and bool(ordered[place] == key)


def write_hashes(folder: Path, hashes: dict[str, list[int]]) -> None:
    """Keep the hashes of each split's documents."""
    for split, values in hashes.items():
        write_atomically(folder / HASHES.format(split=split), np.array(values, dtype="<u8").tobytes())


def read_hashes(folders: list[Path], splits: tuple[str, ...]) -> np.ndarray:
    """Return the hashes of some splits that portions kept, sorted."""
    files = [folder / HASHES.format(split=split) for folder in folders for split in splits]
    kept = [np.fromfile(file, dtype="<u8") for file in files if file.exists()]
    return np.sort(np.concatenate(kept)) if kept else np.empty(0, dtype="<u8")


def overlap(folders: list[Path]) -> int:
    """Return how many documents held out, for validation or the test, also stand in train."""
    held_out = read_hashes(folders, ("val", "test"))
    found: set[int] = set()
    for folder in folders:  # train's are passed over file by file: only what is held out is in memory
        found.update(np.intersect1d(held_out, read_hashes([folder], ("train",))).tolist())
    return int(np.isin(held_out, np.array(sorted(found), dtype="<u8")).sum())
