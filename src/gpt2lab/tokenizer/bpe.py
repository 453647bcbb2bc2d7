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

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from gpt2lab.tokenizer.alphabet import BYTE_ORDER, ID_OF_BYTE
from gpt2lab.tokenizer.pretokenize import Pattern, find_pattern, well_formed

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
