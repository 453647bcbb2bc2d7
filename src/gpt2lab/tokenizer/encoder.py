"""Encoding ordinary text with a vocabulary: readably, and fast on tiktoken's core with the same result.

The core is Rust: it splits and merges some hundred times faster than Python can. It is handed the ids as ranks of
tokens, which says the same as the merges for every vocabulary that training has made; for another the readable encoder
does the work. The two can differ only on characters newer than the Unicode tables of one of them, ``regex`` or the
core: they may not agree yet whether such a character is a letter.
"""

from __future__ import annotations

import functools
import re

import tiktoken

from gpt2lab.tokenizer.bpe import Merge, encode_text
from gpt2lab.tokenizer.vocabulary import Vocabulary, ranks_of_tokens

# The core's expression engine gives up on about a million characters of white space in one run.
_LONGEST = 500_000
_LONG_SPACE = re.compile(r"\s{1000}")


class Encoder:
    """Turns text into ids; knows nothing of special tokens."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def readable(self, text: str) -> list[int]:
        """Return the ids of a text by the definition, :func:`gpt2lab.tokenizer.bpe.encode_text`."""
        ids = self._vocabulary.ids
        return [ids[token] for token in encode_text(text, self._vocabulary.pattern, self._ranks)]

    def fast(self, text: str) -> list[int]:
        """Return the same ids by tiktoken's core."""
        if self._core is None:
            return self.readable(text)
        if len(text) <= _LONGEST:
            return self._core.encode_ordinary(text)
        ids: list[int] = []
        for piece in self._vocabulary.pattern.pieces(text, _LONGEST):
            too_long = len(piece) > 2 * _LONGEST and _LONG_SPACE.search(piece)
            ids += self.readable(piece) if too_long else self._core.encode_ordinary(piece)
        return ids

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
        fast = self._vocabulary.pattern.fast
        return tiktoken.Encoding("gpt2lab", pat_str=fast, mergeable_ranks=ranks, special_tokens={})
