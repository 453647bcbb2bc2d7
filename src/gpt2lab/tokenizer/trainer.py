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
from collections.abc import Callable, Iterable, Iterator, Mapping

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

    def __init__(self, words: Mapping[str, int]) -> None:
        rows = [word.encode("utf-8") for word in words]
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)) + 1
        row = np.array(ID_OF_BYTE)[np.frombuffer(b"\n".join(rows) + b"\n", dtype=np.uint8)]
        row[np.cumsum(lengths) - 1] = _END
        weights = np.fromiter(words.values(), dtype=np.int64, count=len(words))
        places = np.arange(len(row))
        self.tokens, self.np_tokens = _shared("i", row)
        self.weights, self.np_weights = _shared("q", np.repeat(weights, lengths))
        self.after, self.np_after = _shared("i", places + 1)
        self.before, self.np_before = _shared("i", places - 1)  # before the first stands the last, an _END like others
        self.counts: defaultdict[int, int] = defaultdict(int)  # of each pair
        self.places: dict[int, Places | list[int]] = {}
        self._find_pairs()

    def _find_pairs(self) -> None:
        left, right = self.np_tokens[:-1], self.np_tokens[1:]
        inside = np.flatnonzero((left != _END) & (right != _END)).astype(np.int32)
        pairs = (left[inside].astype(np.int64) << _SHIFT) | right[inside]
        for pair, weight, places in self._grouped(pairs, inside):
            self.counts[pair] = weight
            self.places[pair] = places

    def merge(self, pair: int, new: int) -> Iterable[int]:
        """Make ``pair`` one token, ``new``, everywhere; return the pairs that came into being."""
        left, right = pair >> _SHIFT, pair & _RIGHT
        places = self.places.pop(pair)
        if len(places) < _MANY or left == right:
            return self._merge_few(left, right, new, places if isinstance(places, list) else places.tolist())
        return self._merge_many(left, right, new, np.asarray(places, dtype=np.int32))

    def _merge_few(self, left: int, right: int, new: int, places: list[int]) -> Iterable[int]:
        tokens, after, before, weights, counts = self.tokens, self.after, self.before, self.weights, self.counts
        made: dict[int, list[int]] = {}
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
                pair = token << _SHIFT | new
                counts[pair] += weight
                made.setdefault(pair, []).append(previous)
            if (token := tokens[following]) != _END:
                counts[right << _SHIFT | token] -= weight
                pair = new << _SHIFT | token
                counts[pair] += weight
                made.setdefault(pair, []).append(place)
        self.places.update(made)
        return made

    def _merge_many(self, left: int, right: int, new: int, places: Places) -> Iterable[int]:
        tokens, after, before = self.np_tokens, self.np_after, self.np_before
        seconds = after[places]
        there = (tokens[places] == left) & (tokens[seconds] == right)
        places, seconds = places[there], seconds[there]
        following = after[seconds]
        tokens[places], tokens[seconds] = new, _GONE
        after[places], before[following] = following, places
        previous, following = before[places], after[places]
        made: list[int] = []
        # Neighbours are looked up after merging, so where two merged pairs touch both see `new`: the right one counts.
        for token, weight, group in self._grouped(tokens[previous], previous):
            if token != _END:
                self.counts[(right if token == new else token) << _SHIFT | left] -= weight
                made.append(self._add(token << _SHIFT | new, weight, group))
        for token, weight, group in self._grouped(tokens[following], places):
            if token not in (_END, new):
                self.counts[right << _SHIFT | token] -= weight
                made.append(self._add(new << _SHIFT | token, weight, group))
        return made

    def _add(self, pair: int, weight: int, places: Places) -> int:
        self.counts[pair] = weight
        self.places[pair] = places
        return pair

    def _grouped(self, keys: npt.NDArray[np.integer], places: Places) -> Iterator[tuple[int, int, Places]]:
        """Yield each distinct key with the weight of its places and the places themselves."""
        if not len(keys):
            return
        order = np.argsort(keys)
        keys, places = keys[order], places[order]
        starts = np.flatnonzero(keys[1:] != keys[:-1]) + 1
        starts = np.concatenate((np.zeros(1, dtype=starts.dtype), starts))
        weights = np.add.reduceat(self.np_weights[places], starts).tolist()
        ends = [*starts[1:].tolist(), len(keys)]
        for key, weight, start, end in zip(keys[starts].tolist(), weights, starts.tolist(), ends, strict=True):
            yield key, weight, places[start:end]


class _Queue:
    """Pairs by falling count, then by rising ids.

    No merge makes a pair more frequent than the pair merged, so counts are served from the highest down: one heap of
    pairs for the count being served, plain lists for those below.
    """

    def __init__(self) -> None:
        self._waiting: defaultdict[int, list[int]] = defaultdict(list)
        self._levels: list[int] = []  # heap of the negated counts of the lists
        self.count = 0
        self._served: list[int] = []

    def add(self, pair: int, count: int) -> None:
        if count == self.count:
            heapq.heappush(self._served, pair)
            return
        level = self._waiting[count]
        if not level:
            heapq.heappush(self._levels, -count)
        level.append(pair)

    def pop(self) -> int | None:
        """Return the next pair, whose count as it was added is ``self.count``; ``None`` where none is left."""
        while not self._served:
            if not self._levels:
                return None
            self.count = -heapq.heappop(self._levels)
            self._served = self._waiting.pop(self.count)
            heapq.heapify(self._served)
        return heapq.heappop(self._served)


def _shared(code: str, values: npt.NDArray[np.integer]) -> tuple[array[int], npt.NDArray[np.signedinteger]]:
    """Return the values as an array for loops and as one for numpy, in the same memory."""
    shared = array(code, values.astype(code).tobytes())
    return shared, np.frombuffer(shared, dtype=code)


def learn_merges(
    words: Mapping[str, int], n_merges: int, *, min_frequency: int = 2, progress: Progress | None = None
) -> list[tuple[int, int]]:
    """Return up to ``n_merges`` merges, as pairs of ids, for a corpus given as its distinct words and their counts.

    Fewer where no pair that is left occurs ``min_frequency`` times. ``progress`` is called with the merges made and
    ``n_merges``, after each hundred and at the end.
    """
    merges: list[tuple[int, int]] = []
    corpus = _Corpus(words)
    counts, queue = corpus.counts, _Queue()
    candidates: Iterable[int] = list(counts)
    while len(merges) < n_merges:
        for pair in candidates:
            if counts[pair] >= min_frequency:
                queue.add(pair, counts[pair])
        pair = queue.pop()
        if pair is None:
            break
        if counts[pair] != queue.count:  # has sunk since it was added
            candidates = (pair,)
            continue
        candidates = corpus.merge(pair, len(BYTE_ORDER) + len(merges))
        merges.append((pair >> _SHIFT, pair & _RIGHT))
        if progress is not None and len(merges) % 100 == 0:
            progress(len(merges), n_merges)
    if progress is not None:
        progress(len(merges), n_merges)
    return merges
