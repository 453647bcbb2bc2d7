"""Byte-pair encoding over bytes: the readable reference, the vocabulary, and fast encoding, which must equal it.

Byte-level BPE starts from the 256 bytes, so that it can write every text. GPT-2 (Radford et al. 2019, section 2.2)
stores its vocabulary as text and therefore writes each byte as one visible character: the 188 bytes that are visible in
Latin-1 as themselves, the other 68 as the characters from U+0100 on. ::

    byte         0x20 (space)  0x21 '!'  0x41 'A'  0x0A (newline)
    character    'Ġ' U+0120    '!'       'A'       'Ċ' U+010A

Sorted by these characters the bytes also get their ids: '!' is 0, and NUL, the first of the 68, is 188.

A word is a list of tokens, at first one per byte. Encoding merges the adjacent pair of lowest rank into one token until
no adjacent pair is in the list of merges::

    l o w e r     merges: 0 (l, o)  1 (e, r)  2 (lo, w)
    lo w e r
    lo w er
    low er

Training makes that list: it merges the most frequent pair of the corpus, again and again (Gage 1994; Sennrich, Haddow
and Birch 2016, algorithm 1). :func:`train_reference` is that sentence as a program;
:mod:`gpt2lab.tokenizer.train` finds the same merges faster.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import tiktoken

from gpt2lab.errors import InputError
from gpt2lab.tokenizer.pretokenize import Pattern, find_pattern, well_formed

_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]

BYTE_ORDER: tuple[int, ...] = (*_VISIBLE, *_HIDDEN)
"""The byte of each of the first 256 ids."""

BYTES: tuple[bytes, ...] = tuple(bytes([byte]) for byte in BYTE_ORDER)
"""The tokens of the first 256 ids."""

ID_OF_BYTE: tuple[int, ...] = tuple(sorted(range(256), key=BYTE_ORDER.__getitem__))
"""The id of each byte: the inverse of :data:`BYTE_ORDER`."""

_CHARACTER = {byte: chr(byte) for byte in _VISIBLE} | {byte: chr(0x100 + i) for i, byte in enumerate(_HIDDEN)}
_BYTE = {character: byte for byte, character in _CHARACTER.items()}

Merge = tuple[bytes, bytes]
Ties = Literal["smallest_ids", "greatest_bytes"]
"""Which of equally frequent pairs training merges: Hugging Face's choice, or that of Stanford CS336."""


def bytes_to_unicode(token: bytes) -> str:
    """Return the bytes of a token as GPT-2's visible characters, one per byte."""
    return "".join([_CHARACTER[byte] for byte in token])


def unicode_to_bytes(characters: str) -> bytes:
    """Return the bytes that GPT-2's visible characters stand for.

    Raises:
        InputError: A character stands for no byte, so the vocabulary is not byte-level.
    """
    try:
        return bytes([_BYTE[character] for character in characters])
    except KeyError as unknown:
        what = f"the token {characters!r} is not from a byte-level vocabulary"
        raise InputError(f"{what}: {unknown.args[0]!r} stands for no byte") from None


# ------------------------------------------------------------------------------------------------ the reference


def encode_text(text: str, pattern: Pattern, ranks: Mapping[Merge, int]) -> Iterator[bytes]:
    """Yield the tokens of a text: split it into words, then merge within each."""
    for word in pattern.split(well_formed(text)):
        yield from merge_word(word.encode("utf-8"), ranks)


def merge_word(word: bytes, ranks: Mapping[Merge, int]) -> list[bytes]:
    """Return the tokens of one word: the pair of lowest rank merges first, the leftmost in a tie.

    A heap of (rank, position) and a linked list of the remaining tokens make it O(n log n) for n bytes: a word of
    100,000 letters does not take minutes.
    """
    tokens = [word[i : i + 1] for i in range(len(word))]  # tokens[i] starts at byte i; b"" once merged into its left
    after = list(range(1, len(word) + 1))
    before = list(range(-1, len(word) - 1))
    heap = [(ranks[pair], i) for i, pair in enumerate(pairwise(tokens)) if pair in ranks]
    heapq.heapify(heap)

    def push(left: int, right: int) -> None:
        if left >= 0 and right < len(word) and (rank := ranks.get((tokens[left], tokens[right]))) is not None:
            heapq.heappush(heap, (rank, left))

    while heap:
        rank, left = heapq.heappop(heap)
        right = after[left]
        if right == len(word) or ranks.get((tokens[left], tokens[right])) != rank:
            continue  # one of the two has merged with another since
        tokens[left] += tokens[right]
        tokens[right] = b""
        after[left] = after[right]
        if after[left] < len(word):
            before[after[left]] = left
        push(before[left], left)
        push(left, after[left])
    return [token for token in tokens if token]


def train_reference(
    texts: Iterable[str],
    n_merges: int,
    *,
    pattern: str = "gpt2",
    min_frequency: int = 2,
    ties: Ties = "smallest_ids",
) -> list[tuple[int, int]]:
    """Return up to ``n_merges`` merges as pairs of ids: the definition of training, and the oracle of the fast trainer.

    It counts all pairs again for each merge, so use it on small texts. Of equally frequent pairs the one with the
    smallest (left id, right id) is merged, or the greatest (left bytes, right bytes), as ``ties`` says. Training ends
    when no pair occurs ``min_frequency`` times.
    """
    tokens_of = list(BYTES)
    split = find_pattern(pattern).split
    counts = Counter(word for text in texts for word in split(well_formed(text)))
    words = [([ID_OF_BYTE[byte] for byte in word.encode("utf-8")], count) for word, count in counts.items()]
    merges: list[tuple[int, int]] = []
    while len(merges) < n_merges:
        pairs: Counter[tuple[int, int]] = Counter()
        for tokens, count in words:
            for pair in pairwise(tokens):
                pairs[pair] += count
        if ties == "smallest_ids":
            best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        else:
            best = max(pairs, key=lambda p: (pairs[p], tokens_of[p[0]], tokens_of[p[1]]), default=None)
        if best is None or pairs[best] < min_frequency:
            break
        new = len(BYTE_ORDER) + len(merges)
        words = [(_replace_pair(tokens, best, new), count) for tokens, count in words]
        merges.append(best)
        tokens_of.append(tokens_of[best[0]] + tokens_of[best[1]])
    return merges


def _replace_pair(tokens: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Replace each ``pair`` in ``tokens`` by ``new``, from left to right."""
    replaced: list[int] = []
    for token in tokens:
        if replaced and (replaced[-1], token) == pair:
            replaced[-1] = new
        else:
            replaced.append(token)
    return replaced


# ----------------------------------------------------------------------------------------------- the vocabulary


_MAX_CHARACTERS = 500_000  # The core's regex engine fails on about a million characters of white space in one run.
_LONG_SPACE = re.compile(r"\s{1000}")
_UNUSED_SPECIAL = "<|endoftext|>"  # The core searches for special tokens slowly if it has none; this is never allowed.


@dataclass(frozen=True)
class Vocabulary:
    """Everything that defines a tokenizer, checked once, here. It turns text into ids, without special tokens.

    tiktoken's core does so fast. It is Rust: it splits and merges some hundred times faster than Python. It takes the
    ids as ranks of tokens, which is equivalent to the merges for every vocabulary that training has made; the reference
    encodes with any other. The two can differ only on characters newer than the Unicode tables of ``regex`` or the
    core, which may not agree yet whether such a character is a letter.

    Attributes:
        ids: The id of each ordinary token: the 256 bytes and the results of the merges.
        merges: The two parts of each merge, by rank.
        special_tokens: The id of each special token, by its text.
        pattern: How text splits into words.

    Raises:
        InputError: A merge has an unknown part, a byte has no id, an id is used twice or left out, or a special token
            cannot be used.
    """

    ids: Mapping[bytes, int]
    merges: Sequence[Merge]
    special_tokens: Mapping[str, int]
    pattern: Pattern

    def __post_init__(self) -> None:
        _check_merges(self.ids, self.merges)
        for text in self.special_tokens:
            _check_special_token(text, self.ids)
        numbers = [*self.ids.values(), *self.special_tokens.values()]
        if missing := set(range(len(numbers))).difference(numbers):
            n = len(numbers)
            raise InputError(
                f"the vocabulary of {n} tokens has no id {min(missing)}; ids must be 0 to {n - 1}, each once"
            )

    @classmethod
    def from_pairs(
        cls, pairs: Iterable[tuple[int, int]], special_tokens: Sequence[str], pattern: Pattern
    ) -> Vocabulary:
        """Number the tokens as GPT-2 does: the bytes in GPT-2's order, merges (pairs of ids), special tokens."""
        tokens, merges = list(BYTES), []
        for left, right in pairs:
            merges.append((tokens[left], tokens[right]))
            tokens.append(tokens[left] + tokens[right])
        ids = {token: number for number, token in enumerate(tokens)}
        return cls(ids, merges, {name: len(tokens) + i for i, name in enumerate(special_tokens)}, pattern)

    @functools.cached_property
    def by_id(self) -> dict[int, bytes]:
        """The bytes of every id, in the order of ids; those of a special token are its text as UTF-8."""
        tokens = {number: token for token, number in self.ids.items()}
        tokens.update({number: text.encode("utf-8") for text, number in self.special_tokens.items()})
        return {number: tokens[number] for number in range(len(tokens))}

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of everything that decides which ids a text gets."""
        content = {
            "ids": [bytes_to_unicode(token) for token in sorted(self.ids, key=self.ids.__getitem__)],
            "merges": [list(map(bytes_to_unicode, merge)) for merge in self.merges],
            "special_tokens": sorted(self.special_tokens.items()),
            "pattern": self.pattern.published,
        }
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode("ascii")).hexdigest()

    def token_ranks(self) -> dict[bytes, int] | None:
        """Return the id of each token that encoding can produce, if these ids as ranks decide every merge.

        ``None`` if they do not: training cannot have made the merges, or the ids do not follow them.
        """
        made = [left + right for left, right in self.merges]
        numbers = [self.ids[token] for token in made]
        if numbers != sorted(numbers) or not _in_order_of_training(self.merges):
            return None
        return {token: self.ids[token] for token in [*BYTES, *made]}

    def encode_reference(self, text: str) -> np.ndarray:
        """Return the ids of a text, uint32, by the definition, :func:`encode_text`."""
        return np.array([self.ids[token] for token in encode_text(text, self.pattern, self._ranks)], np.uint32)

    def encode(self, text: str) -> np.ndarray:
        """Return the same ids by tiktoken's core, which releases the interpreter's lock meanwhile."""
        if self._core is None:
            return self.encode_reference(text)
        pieces = [text] if len(text) <= _MAX_CHARACTERS else self.pattern.pieces(text, _MAX_CHARACTERS)
        return np.concatenate([self._encode_piece(piece, self._core) for piece in pieces])

    def _encode_piece(self, text: str, core: tiktoken.Encoding) -> np.ndarray:
        if len(text) > _MAX_CHARACTERS and _LONG_SPACE.search(text):
            return self.encode_reference(text)
        return core.encode_to_numpy(well_formed(text), disallowed_special=())

    @functools.cached_property
    def _ranks(self) -> dict[Merge, int]:
        merges = list(enumerate(self.merges))
        return {merge: rank for rank, merge in reversed(merges)}  # the first of equal merges counts

    @functools.cached_property
    def _core(self) -> tiktoken.Encoding | None:
        ranks = self.token_ranks()
        if ranks is None:
            return None
        special = {_UNUSED_SPECIAL: len(ranks)}
        return tiktoken.Encoding("gpt2lab", pat_str=self.pattern.fast, mergeable_ranks=ranks, special_tokens=special)


def _check_merges(ids: Mapping[bytes, int], merges: Sequence[Merge]) -> None:
    for token in BYTES:
        if token not in ids:
            raise InputError(f"the vocabulary has no token for the byte 0x{token.hex()}; byte-level BPE has all 256")
    for rank, (left, right) in enumerate(merges):
        for token in (left, right, left + right):
            if token not in ids:
                pair = f"{bytes_to_unicode(left)} {bytes_to_unicode(right)}"
                missing = bytes_to_unicode(token)
                raise InputError(f"merge {rank} ({pair}) names {missing!r}, which is not in the vocabulary")


def _check_special_token(text: str, ids: Mapping[bytes, int]) -> None:
    if not text:
        raise InputError("a special token is empty; give it a text, such as <|endoftext|>")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"the special token {text!r} holds half a surrogate pair; use whole characters") from None
    # Files write ordinary tokens in visible characters: they could not tell this text from such a token.
    if set(text) <= _BYTE.keys() and unicode_to_bytes(text) in ids:
        raise InputError(f"the special token {text!r} is also an ordinary token; choose another, such as <|endoftext|>")


def _in_order_of_training(merges: Sequence[Merge]) -> bool:
    """Return whether training can have made this list of merges; then the rank of a token alone decides each merge.

    tiktoken's core knows tokens, not merges: it joins adjacent tokens whenever their bytes are a token of low rank.
    That is the same only if each merge joins what the merges before it leave side by side. Any other list (parts made
    later, one token made in two ways) would encode differently there.
    """
    ranks: dict[Merge, int] = {}
    made: dict[bytes, int] = {}
    for rank, (left, right) in enumerate(merges):
        token = left + right
        known = all(len(part) == 1 or part in made for part in (left, right))
        if not known or token in made or _joined_across(left, right, ranks, made, merges):
            return False
        ranks[left, right] = rank
        made[token] = rank
    return True


def _joined_across(
    left: bytes, right: bytes, ranks: Mapping[Merge, int], made: Mapping[bytes, int], merges: Sequence[Merge]
) -> bool:
    """Return whether encoding ``left + right`` would merge across their boundary before both are complete.

    Undoes the later merge of the two tokens at the boundary, again and again: at each step the pair at the boundary
    must not merge earlier than the token just undone.
    """
    limit = len(merges)
    while True:
        if ranks.get((left, right), limit) < limit:
            return True
        left_rank, right_rank = made.get(left, -1), made.get(right, -1)
        if left_rank == right_rank == -1:
            return False
        if left_rank > right_rank:
            limit, left = left_rank, merges[left_rank][1]
        else:  # the leftmost of equal pairs merges first: the pair at the boundary beats those within ``right``
            limit, right = right_rank + 1, merges[right_rank][0]
