"""What a split holds, in one pass over its tokens: how often each comes, where documents end, which are the same."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gpt2lab.data.stream import TokenStream

_BLOCK = 1 << 20
"""Tokens read, and counted, at once."""


@dataclass(frozen=True)
class Survey:
    """Figures of a split.

    Attributes:
        counts: (n_vocab,) how often each id comes.
        lengths: (documents,) tokens of each document, its ``<|endoftext|>`` not counted.
        hashes: (documents,) 64 bits of BLAKE2b of each document's ids: equal where the documents are.
    """

    counts: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray


def split_documents(stream: TokenStream, eot: int) -> Iterator[np.ndarray]:
    """Yield the ids of each document that is not empty, whether ``<|endoftext|>`` comes before documents or after."""
    held: list[np.ndarray] = []  # of the document that a block ends in
    for start in range(0, len(stream), _BLOCK):
        block = stream.read(np.array([start]), min(_BLOCK, len(stream) - start))[0]
        first, *rest = np.split(block, np.flatnonzero(block == eot))
        held.append(first)
        for following in rest:
            yield from _whole(held)
            held = [following[1:]]
    yield from _whole(held)


def _whole(parts: list[np.ndarray]) -> Iterator[np.ndarray]:
    if sum(map(len, parts)):
        yield np.concatenate(parts)


def survey(stream: TokenStream, n_vocab: int, eot: int) -> Survey:
    """Read a split once. Memory: 16 bytes a document, the ids of a few, and the counts."""
    lengths, hashes = array("q"), array("Q")
    counts = np.zeros(n_vocab, dtype=np.int64)
    size, waiting = 0, list[np.ndarray]()  # to be counted together, for the vocabulary is longer than a document
    for ids in split_documents(stream, eot):
        lengths.append(len(ids))
        hashes.append(int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "big"))
        waiting.append(ids)
        size += len(ids)
        if size >= _BLOCK:
            counts += np.bincount(np.concatenate(waiting), minlength=n_vocab)
            size, waiting = 0, []
    if waiting:
        counts += np.bincount(np.concatenate(waiting), minlength=n_vocab)
    counts[eot] = len(stream) - sum(lengths)  # which no document holds
    return Survey(counts, np.array(lengths), np.array(hashes))
