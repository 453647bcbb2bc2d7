"""Encoding ordinary text with a vocabulary: readably, and fast on tiktoken's core with the same result.

The core is Rust: it splits and merges some hundred times faster than Python can. It is handed the ids as ranks of
tokens, which says the same as the merges for every vocabulary that training has made; for another the readable encoder
does the work. The two can differ only on characters newer than the Unicode tables of one of them, ``regex`` or the
core: they may not agree yet whether such a character is a letter.
"""

from __future__ import annotations

import functools
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import tiktoken

from gpt2lab.tokenizer.bpe import Merge, encode_text
from gpt2lab.tokenizer.pretokenize import well_formed
from gpt2lab.tokenizer.vocabulary import Vocabulary, ranks_of_tokens

# The core's expression engine gives up on about a million characters of white space in one run.
_LONGEST = 500_000
_LONG_SPACE = re.compile(r"\s{1000}")
# The core's search for special tokens is slow where it has none to search for; this one is never allowed.
_NEVER_MADE = "<|endoftext|>"


class Encoder:
    """Turns text into ids; knows nothing of special tokens."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def readable(self, text: str) -> np.ndarray:
        """Return the ids of a text, uint32, by the definition, :func:`gpt2lab.tokenizer.bpe.encode_text`."""
        ids = self._vocabulary.ids
        return np.array([ids[token] for token in encode_text(text, self._vocabulary.pattern, self._ranks)], np.uint32)

    def fast(self, text: str) -> np.ndarray:
        """Return the same ids by tiktoken's core, which does not hold the interpreter's lock meanwhile."""
        if self._core is None:
            return self.readable(text)
        if len(text) <= _LONGEST:
            return _by(self._core, text)
        parts = []
        for piece in self._vocabulary.pattern.pieces(text, _LONGEST):
            too_long = len(piece) > 2 * _LONGEST and _LONG_SPACE.search(piece)
            parts.append(self.readable(piece) if too_long else _by(self._core, piece))
        return np.concatenate(parts)

    @functools.cached_property
    def _ranks(self) -> dict[Merge, int]:
        ranks: dict[Merge, int] = {}
        for rank, merge in enumerate(self._vocabulary.merges):
            ranks.setdefault(merge, rank)
        return ranks

    @functools.cached_property
    def _core(self) -> tiktoken.Encoding | None:
        ranks = ranks_of_tokens(self._vocabulary)
        if ranks is None:
            return None
        fast, special = self._vocabulary.pattern.fast, {_NEVER_MADE: len(ranks)}
        return tiktoken.Encoding("gpt2lab", pat_str=fast, mergeable_ranks=ranks, special_tokens=special)


def _by(core: tiktoken.Encoding, text: str) -> np.ndarray:
    return core.encode_to_numpy(well_formed(text), disallowed_special=())


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def ahead(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Yield ``function`` of each item, in order; threads, one for each core, work on a few items that come next."""
    workers = os.cpu_count() or 1
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
