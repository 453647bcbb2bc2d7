"""Byte-pair encoding, readable: the reference that every faster path must equal.

A word is a row of tokens, at first one for each byte. Encoding replaces the neighbouring pair of lowest rank by one
token until no neighbours are in the list of merges::

    l o w e r     merges: 0 (l, o)  1 (e, r)  2 (lo, w)
    lo w e r
    lo w er
    low er

Training makes that list: the pair that occurs most in the corpus is merged, over and over (Gage 1994; Sennrich, Haddow
and Birch 2016, algorithm 1; over bytes: Radford et al. 2019, section 2.2). :func:`train_naively` is that sentence as a
program, :mod:`gpt2lab.tokenizer.trainer` gives the same list sooner.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import json
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import tiktoken

from gpt2lab.errors import InputError
from gpt2lab.tokenizer.pretokenize import Pattern, find_pattern, well_formed

_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]

BYTE_ORDER: tuple[int, ...] = (*_VISIBLE, *_HIDDEN)
"""The byte of each of the first 256 ids."""

ID_OF_BYTE: tuple[int, ...] = tuple(sorted(range(256), key=BYTE_ORDER.__getitem__))
"""The id of each byte: the inverse of :data:`BYTE_ORDER`."""

_SPELLING = {byte: chr(byte) for byte in _VISIBLE} | {byte: chr(0x100 + i) for i, byte in enumerate(_HIDDEN)}
_BYTE_OF = {character: byte for byte, character in _SPELLING.items()}


def spell(token: bytes) -> str:
    """Write the bytes of a token as GPT-2's visible characters, one for each byte."""
    return "".join([_SPELLING[byte] for byte in token])


def unspell(spelling: str) -> bytes:
    """Return the bytes that ``spelling`` stands for.

    Raises:
        InputError: a character stands for no byte, so the vocabulary is not a byte-level one.
    """
    try:
        return bytes([_BYTE_OF[character] for character in spelling])
    except KeyError as unknown:
        raise InputError(
            f"the token {spelling!r} is not of a byte-level vocabulary: {unknown.args[0]!r} stands for no byte; "
            "only byte-level BPE as GPT-2's can be read"
        ) from None


Merge = tuple[bytes, bytes]


def merge_word(word: bytes, ranks: Mapping[Merge, int]) -> list[bytes]:
    """Return the tokens of one word: the pair of lowest rank merges first, the leftmost of equals.

    A heap of (rank, place) and a linked list of the tokens still there make it O(n log n) for n bytes, so that a word
    of 100,000 letters takes no minutes.
    """
    tokens = [word[i : i + 1] for i in range(len(word))]  # tokens[i] starts at byte i; b"" once its left one took it
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


def in_order_of_training(merges: Sequence[Merge]) -> bool:
    """Say whether the list is one that training can have made; then a token's rank alone decides each merge.

    tiktoken's core knows tokens, not merges: it joins whichever neighbours make a token of low rank. That is the same
    exactly when each merge joins what the merges before it leave side by side. A list put together otherwise (parts
    made later, one token made in two ways) encodes differently there.
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
    """Say whether encoding ``left + right`` would merge over the seam before both stand whole.

    Undoes the later made of the two tokens at the seam, again and again: at each step the pair at the seam must not be
    one that merges sooner than the token just undone.
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
        else:  # of equals the left merges first; a pair at the seam is left of those within ``right``, so wins a tie
            limit, right = right_rank + 1, merges[right_rank][0]


def encode_text(text: str, pattern: Pattern, ranks: Mapping[Merge, int]) -> Iterator[bytes]:
    """Yield the tokens of a text: split it into words, then merge within each."""
    for word in pattern.split(well_formed(text)):
        yield from merge_word(word.encode("utf-8"), ranks)


def train_naively(
    texts: Iterable[str], n_merges: int, *, pattern: str = "gpt2", min_frequency: int = 2
) -> list[tuple[int, int]]:
    """Return up to ``n_merges`` merges as pairs of ids: the definition of training, and the oracle of the fast trainer.

    Counts all pairs anew for each merge, so use it on small texts. Of pairs that occur equally often the one with the
    smallest (left id, right id) is merged; fewer than ``min_frequency`` occurrences end it.
    """
    split = find_pattern(pattern).split
    counts = Counter(word for text in texts for word in split(well_formed(text)))
    words = [([ID_OF_BYTE[byte] for byte in word.encode("utf-8")], count) for word, count in counts.items()]
    merges: list[tuple[int, int]] = []
    while len(merges) < n_merges:
        pairs: Counter[tuple[int, int]] = Counter()
        for tokens, count in words:
            for pair in pairwise(tokens):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < min_frequency:
            break
        new = len(BYTE_ORDER) + len(merges)
        words = [(_replace_pair(tokens, best, new), count) for tokens, count in words]
        merges.append(best)
    return merges


def _replace_pair(tokens: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Replace each ``pair`` among ``tokens`` by ``new``, from left to right."""
    replaced: list[int] = []
    for token in tokens:
        if replaced and (replaced[-1], token) == pair:
            replaced[-1] = new
        else:
            replaced.append(token)
    return replaced


@dataclass(frozen=True)
class Vocabulary:
    """The whole of a tokenizer, in memory.

    Attributes:
        ids: the id of each ordinary token: the 256 bytes and what the merges make.
        merges: the two parts of each merge, by rank.
        special_tokens: the id of each special token, by its text.
        pattern: how text splits into words.

    Raises:
        InputError: merges of unknown parts, a byte without id, an id given twice or left out, an unusable special
            token.
    """

    ids: Mapping[bytes, int]
    merges: Sequence[Merge]
    special_tokens: Mapping[str, int]
    pattern: Pattern

    def __post_init__(self) -> None:
        _check_merges(self.ids, self.merges)
        for text in self.special_tokens:
            _check_special_token(text, self.ids)
        _check_ids([*self.ids.values(), *self.special_tokens.values()])

    @property
    def by_id(self) -> dict[int, bytes]:
        """The bytes of every id, in the order of ids; a special token's are its text as UTF-8."""
        tokens = {number: token for token, number in self.ids.items()}
        tokens.update({number: text.encode("utf-8") for text, number in self.special_tokens.items()})
        return {number: tokens[number] for number in range(len(tokens))}

    def fingerprint(self) -> str:
        """Return the SHA-256 (hexadecimal) of all that decides which ids a text gets."""
        content = {
            "ids": [spell(token) for token in sorted(self.ids, key=self.ids.__getitem__)],
            "merges": [[spell(left), spell(right)] for left, right in self.merges],
            "special_tokens": sorted(self.special_tokens.items()),
            "pattern": self.pattern.published,
        }
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode("ascii")).hexdigest()


def in_gpt2_order(merges: Sequence[Merge], special_tokens: Iterable[str], pattern: Pattern) -> Vocabulary:
    """Number the tokens as GPT-2 does: the bytes in GPT-2's order, what the merges make, the special tokens."""
    names = unique_special_tokens(special_tokens)
    ordinary = [*(bytes([byte]) for byte in BYTE_ORDER), *(left + right for left, right in merges)]
    ids = {token: number for number, token in enumerate(ordinary)}
    return Vocabulary(ids, merges, {name: len(ordinary) + i for i, name in enumerate(names)}, pattern)


def unique_special_tokens(names: Iterable[str]) -> list[str]:
    """Return the names of special tokens as a list. Raises InputError where one is given twice."""
    unique = [names] if isinstance(names, str) else list(names)
    for name, times in Counter(unique).items():
        if times > 1:
            raise InputError(f"the special token {name!r} is given {times} times; give each once")
    return unique


def ranks_of_tokens(vocabulary: Vocabulary) -> dict[bytes, int] | None:
    """Return the id of each token that encoding can give, if these as ranks of tokens decide every merge.

    ``None`` where they do not: merges that training cannot have made, or ids in another order than the merges.
    """
    made = [left + right for left, right in vocabulary.merges]
    numbers = [vocabulary.ids[token] for token in made]
    if numbers != sorted(numbers) or not in_order_of_training(vocabulary.merges):
        return None
    return {token: vocabulary.ids[token] for token in [*(bytes([byte]) for byte in BYTE_ORDER), *made]}


def _check_merges(ids: Mapping[bytes, int], merges: Sequence[Merge]) -> None:
    for byte in BYTE_ORDER:
        if bytes([byte]) not in ids:
            raise InputError(
                f"the vocabulary has no token for the byte 0x{byte:02x}; a byte-level vocabulary has all 256"
            )
    for rank, merge in enumerate(merges):
        for token in (*merge, merge[0] + merge[1]):
            if token not in ids:
                raise InputError(
                    f"merge {rank} ({spell(merge[0])} {spell(merge[1])}) names {spell(token)!r}, "
                    "which is not in the vocabulary; merges and vocabulary must be of the same tokenizer"
                )


def _check_special_token(text: str, ids: Mapping[bytes, int]) -> None:
    if not text:
        raise InputError("a special token is empty; give it a text, such as <|endoftext|>")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"the special token {text!r} holds half a surrogate pair; use whole characters") from None
    if _is_spelling(text, ids):
        raise InputError(
            f"the special token {text!r} is also an ordinary token of the vocabulary; "
            "choose a text that does not occur, such as <|endoftext|>"
        )


def _is_spelling(text: str, ids: Mapping[bytes, int]) -> bool:
    """Say whether files, which name ordinary tokens by their spelling, could not tell ``text`` from one."""
    try:
        return unspell(text) in ids
    except InputError:
        return False


def _check_ids(numbers: Sequence[int]) -> None:
    missing = set(range(len(numbers))).difference(numbers)
    if missing:
        raise InputError(
            f"the vocabulary of {len(numbers)} tokens has no id {min(missing)}; "
            f"ids must be 0 to {len(numbers) - 1}, each once"
        )


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
