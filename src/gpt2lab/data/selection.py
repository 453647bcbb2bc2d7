"""Which text is trained on and which is held out, decided document by document.

By hash: u = blake2b(text) / 2**64 is uniform in [0, 1), and

    u < val  ->  val        val <= u < val + test  ->  test        else  ->  train

so the same text is in the same split always, and a copy of a test document cannot stand in the training text.
With few documents that would be a lottery; then each is cut in three instead, in this order:

    | train: the first 1 - (val + test) of its characters | val | test |

which for one file with val 0.1 and test 0 is the usual split of Tiny Shakespeare: 90 % of the characters and the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from gpt2lab.data.documents import Document
from gpt2lab.errors import InputError
from gpt2lab.files import write_atomically

SPLITS = ("train", "val", "test")
FEW_DOCUMENTS = 100
"""Below this number documents are cut in three instead of being assigned whole."""


@dataclass(frozen=True)
class SplitRule:
    """How documents are divided: by ``"hash"`` (whole), by ``"position"`` (each cut in three), or as they came."""

    by: Literal["hash", "position", "given"]
    val_fraction: float
    test_fraction: float

    def __post_init__(self) -> None:
        for name, fraction in (("val", self.val_fraction), ("test", self.test_fraction)):
            if not 0.0 <= fraction < 1.0:
                raise InputError(f"the {name} fraction is {fraction}; it must be 0 or more and less than 1")
        if self.val_fraction + self.test_fraction >= 1.0:
            raise InputError(
                f"the val and test fractions {self.val_fraction} and {self.test_fraction} leave nothing to train on; "
                "their sum must be less than 1"
            )

    def wanted(self) -> tuple[str, ...]:
        """Return the splits that must not be empty, in the order of `SPLITS`; none where they are given."""
        if self.by == "given":
            return ()
        fractions = (1.0, self.val_fraction, self.test_fraction)
        return tuple(split for split, fraction in zip(SPLITS, fractions, strict=True) if fraction > 0.0)

    def parts(self, document: Document, hashed: int | None = None) -> Iterator[Part]:
        """Yield what of the document goes to which split; read a part before asking for the next.

        Args:
            document: A document.
            hashed: Its hash, where that is known already.
        """
        if self.by == "hash":
            split = self._split_of(hash_of(document) if hashed is None else hashed)
            yield Part(split, document.pieces(), document.bits)
            return
        n = sum(map(len, document.pieces()))
        held_out = self.val_fraction + self.test_fraction
        edges = (0, int(n * (1.0 - held_out)), int(n * (1.0 - self.test_fraction)), n)
        for split, start, stop in zip(SPLITS, edges[:-1], edges[1:], strict=True):
            if start < stop:
                yield Part(split, _section(document.pieces(), start, stop), None)

    def _split_of(self, hashed: int) -> str:
        u = hashed / 2**64
        if u < self.val_fraction:
            return "val"
        return "test" if u < self.val_fraction + self.test_fraction else "train"


def hash_of(document: Document) -> int:
    """Return 64 bits of BLAKE2b of a document's text."""
    digest = hashlib.blake2b(digest_size=8)
    for piece in document.pieces():
        digest.update(piece.encode("utf-8"))
    return int.from_bytes(digest.digest(), "big")


@dataclass(frozen=True)
class Part:
    """A document, or a section of one, that goes to one split."""

    split: str
    pieces: Iterator[str]
    bits: float | None


def _section(pieces: Iterator[str], start: int, stop: int) -> Iterator[str]:
    """Yield the characters from ``start`` to ``stop`` of a text given in pieces."""
    position = 0
    for piece in pieces:
        text = piece[max(0, start - position) : max(0, stop - position)]
        if text:
            yield text
        position += len(piece)
        if position >= stop:
            return


HASHES = "{split}.hashes"
"""Name of the file that keeps a chunk's hashes of a split: 8 bytes a document, in order."""


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
    """Return the hashes of some splits that chunks kept, sorted."""
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
