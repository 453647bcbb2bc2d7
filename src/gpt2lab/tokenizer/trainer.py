"""Training at full size: the merges of :func:`gpt2lab.tokenizer.bpe.train_naively`, found incrementally.

Merging a pair changes only the words that hold it, and there only the two pairs beside each place. So the distinct
words of the corpus lie in one row of tokens, linked to their neighbours and each weighted by its word's count; every
pair knows its places, and a heap holds the pairs by count::

    tokens    l  o  w | l  o  w  e  r |          merge (l, o) at places 0 and 4
    counts    (l, o): 9   (o, w): 9  ...         (o, w) loses 9 and (lo, w), new, gets 9

All places of a pair arise when its younger token is made; later the pair can only lose some. Hence a pair enters the
heap once, with all its places, and a count that has sunk since is put right when it comes to the top. Ties go to the
smallest (left id, right id), as with Hugging Face's trainer, so the result depends on nothing but the counts.

A pair of many places is merged with numpy, one of few in plain Python: the arrays share their memory.
"""

from __future__ import annotations

import heapq
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from gpt2lab.tokenizer.alphabet import BYTE_ORDER, ID_OF_BYTE

Progress = Callable[[int, int], None]

_END = -1  # stands after each word: no pair reaches over it
_GONE = -2  # the right half of a merged pair
_SHIFT = 32  # a pair is left << 32 | right: integers in the order of (left, right)
_RIGHT = (1 << _SHIFT) - 1
_MANY = 48  # places from which on numpy is faster than a loop

Places = npt.NDArray[np.int32]


class _Corpus:
    """The distinct words as one linked row of tokens, with the count of every pair and its places."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        words = [word.encode("utf-8") for word in counts]
        lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words)) + 1
        row = np.array(ID_OF_BYTE)[np.frombuffer(b"\n".join(words) + b"\n", dtype=np.uint8)]
        row[np.cumsum(lengths) - 1] = _END
        weights = np.fromiter(counts.values(), dtype=np.int64, count=len(words))
        places = np.arange(len(row))
        self.tokens, self.np_tokens = _shared("i", row)
        self.weights, self.np_weights = _shared("q", np.repeat(weights, lengths))
        self.after, self.np_after = _shared("i", places + 1)
        self.before, self.np_before = _shared("i", places - 1)  # before the first stands the last, an _END like others
        self.counts: defaultdict[int, int] = defaultdict(int)
        self.places: dict[int, Places | list[int]] = {}
        self._count_all()

    def _count_all(self) -> None:
        left, right = self.np_tokens[:-1], self.np_tokens[1:]
        inside = np.flatnonzero((left != _END) & (right != _END)).astype(np.int32)
        pairs = (left[inside].astype(np.int64) << _SHIFT) | right[inside]
        for pair, places in _grouped(pairs, inside):
            self.places[pair] = places
            self.counts[pair] = int(self.np_weights[places].sum())

    def merge(self, pair: int, new: int) -> list[int]:
        """Make ``pair`` one token, ``new``, everywhere; return the pairs that came into being."""
        left, right = pair >> _SHIFT, pair & _RIGHT
        places = self.places.pop(pair)
        if len(places) < _MANY or left == right:
            return self._merge_few(left, right, new, places if isinstance(places, list) else places.tolist())
        return self._merge_many(left, right, new, np.asarray(places, dtype=np.int32))

    def _merge_few(self, left: int, right: int, new: int, places: list[int]) -> list[int]:
        tokens, after, before, weights, counts = self.tokens, self.after, self.before, self.weights, self.counts
        fresh: dict[int, list[int]] = {}
        for place in sorted(places) if left == right else places:
            second = after[place]
            if tokens[place] != left or tokens[second] != right:
                continue  # merged with another neighbour since
            weight = weights[place]
            previous, following = before[place], after[second]
            tokens[place], tokens[second] = new, _GONE
            after[place], before[following] = following, place
            if (token := tokens[previous]) != _END:
                counts[token << _SHIFT | left] -= weight
                key = token << _SHIFT | new
                counts[key] += weight
                fresh.setdefault(key, []).append(previous)
            if (token := tokens[following]) != _END:
                counts[right << _SHIFT | token] -= weight
                key = new << _SHIFT | token
                counts[key] += weight
                fresh.setdefault(key, []).append(place)
        self.places.update(fresh)
        return list(fresh)

    def _merge_many(self, left: int, right: int, new: int, places: Places) -> list[int]:
        tokens, after, before = self.np_tokens, self.np_after, self.np_before
        seconds = after[places]
        there = (tokens[places] == left) & (tokens[seconds] == right)
        places, seconds = places[there], seconds[there]
        following = after[seconds]
        tokens[places], tokens[seconds] = new, _GONE
        after[places], before[following] = following, places
        previous, following = before[places], after[places]
        made: list[int] = []
        # Neighbours are looked up after merging, so where two merged pairs touch both see `new`: counted as left only.
        for token, group in _grouped(tokens[previous], previous):
            if token != _END:
                lost = (right if token == new else token) << _SHIFT | left
                made.append(self._take_over(lost, token << _SHIFT | new, group))
        for token, group in _grouped(tokens[following], places):
            if token not in (_END, new):
                made.append(self._take_over(right << _SHIFT | token, new << _SHIFT | token, group))
        return made

    def _take_over(self, lost: int, gained: int, places: Places) -> int:
        """Move the count of ``places`` from one pair to the pair that stands there now."""
        weight = int(self.np_weights[places].sum())
        self.counts[lost] -= weight
        self.counts[gained] += weight
        self.places[gained] = places
        return gained


def _shared(code: str, values: npt.NDArray[np.integer]) -> tuple[array[int], npt.NDArray[np.signedinteger]]:
    """Return the values as an array for loops and as one for numpy, in the same memory."""
    shared = array(code, values.astype(code).tobytes())
    return shared, np.frombuffer(shared, dtype=code)


def _grouped(keys: npt.NDArray[np.integer], values: Places) -> Iterator[tuple[int, Places]]:
    """Yield each distinct key with the values beside it."""
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], values[order]
    starts = np.flatnonzero(np.diff(keys, prepend=keys[:1] - 1)).tolist()
    ends = [*starts[1:], len(keys)]
    return ((int(keys[start]), values[start:end]) for start, end in zip(starts, ends[: len(starts)], strict=True))


def learn_merges(
    counts: Mapping[str, int], n_merges: int, *, min_frequency: int = 2, progress: Progress | None = None
) -> list[tuple[int, int]]:
    """Return up to ``n_merges`` merges, as pairs of ids, for a corpus of words with their ``counts``.

    Fewer where no pair that is left occurs ``min_frequency`` times. ``progress`` is called with the merges made and
    ``n_merges``, after each hundred and at the end.
    """
    merges: list[tuple[int, int]] = []
    corpus = _Corpus(counts)
    heap = [(-count, pair) for pair, count in corpus.counts.items() if count >= min_frequency]
    heapq.heapify(heap)
    while heap and len(merges) < n_merges:
        negative, pair = heapq.heappop(heap)
        count = corpus.counts[pair]
        if count != -negative:  # has sunk since it was put there
            if count >= min_frequency:
                heapq.heappush(heap, (-count, pair))
            continue
        made = corpus.merge(pair, len(BYTE_ORDER) + len(merges))
        merges.append((pair >> _SHIFT, pair & _RIGHT))
        for fresh in made:
            if corpus.counts[fresh] >= min_frequency:
                heapq.heappush(heap, (-corpus.counts[fresh], fresh))
        if progress is not None and len(merges) % 100 == 0:
            progress(len(merges), n_merges)
    if progress is not None:
        progress(len(merges), n_merges)
    return merges
