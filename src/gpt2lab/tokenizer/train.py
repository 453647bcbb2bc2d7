"""Training at full size: the merges of :func:`gpt2lab.tokenizer.bpe.train_reference`, on all cores and incrementally.

**Counting.** The texts are read once, in chunks of about a megabyte. Each chunk is split and counted by whichever
process is free: this one, or a helper process, which gets chunks through a pipe and returns its counts at the end.
Memory holds the chunks in flight and the distinct words. Counts are sums: any number of processes gives the same. ::

    texts -> chunks -> queue -> helper 1 -> counts
                        |       helper 2 -> counts    sum
                      full? ->  this process

**Merging.** A merge changes only the words that contain the pair, and there only the two pairs beside each position. So
the distinct words lie in one array of tokens, linked to their neighbors and weighted by the word's count; every pair
knows its positions, and a heap orders the pairs by count::

    tokens    l  o  w | l  o  w  e  r |          merge (l, o) at positions 0 and 4
    counts    (l, o): 9   (o, w): 9  ...         (o, w) loses 9, and (lo, w), new, gets 9

All positions of a pair arise when its younger token is made; later the pair only loses some. Hence a pair enters the
heap once, with all its positions, and a count that has fallen since is corrected when it reaches the top. Ties go to
the smallest (left id, right id), as in Hugging Face's trainer, or where asked for to the lexicographically greatest
(left bytes, right bytes), as in Stanford CS336's: the result depends on nothing but the counts.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import queue
import signal
import sys
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from subprocess import PIPE, Popen
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from gpt2lab.tokenizer.bpe import BYTE_ORDER, BYTES, ID_OF_BYTE, Ties
from gpt2lab.tokenizer.pretokenize import Pattern, find_pattern, grouped, special_pattern, split_fast, well_formed

# ---------------------------------------------------------------------------------------------------------- counting

_CHUNK = 1 << 20  # characters
_TOO_FEW = 6  # chunks: starting helpers would take longer than they save
_MAX_PROCESSES = 8  # this one cannot feed more

_PACKAGE_ROOT = str(Path(__file__).parents[2])
_SERVE = "from gpt2lab.tokenizer.train import serve; serve()"

Chunk = list[str]


def count_words(
    texts: Iterable[str], pattern: Pattern, special_tokens: Sequence[str] = (), *, processes: int | None = None
) -> Counter[str]:
    """Count the words of ``texts``.

    Args:
        texts: Read once, never held as a whole.
        pattern: How a text splits into words.
        special_tokens: Their texts are cut out, and no word reaches across them.
        processes: How many may count, including this one; by default the number of cores. A few megabytes are always
            counted in this process.
    """
    chunks = _chunks(texts, pattern, special_tokens)
    head = list(islice(chunks, _TOO_FEW))
    helpers = min(processes or os.cpu_count() or 1, _MAX_PROCESSES) - 1
    counts: Counter[str] = Counter()
    if helpers == 0 or len(head) < _TOO_FEW:
        _count(chain(head, chunks), pattern, counts)
    else:
        _count_with_helpers(helpers, chain(head, chunks), pattern, counts)
    return counts


def _chunks(texts: Iterable[str], pattern: Pattern, special_tokens: Sequence[str]) -> Iterator[Chunk]:
    """Yield lists of about ``_CHUNK`` characters of text, without special tokens; long texts are cut between words."""
    special = special_pattern(special_tokens)

    def pieces() -> Iterator[str]:
        for text in texts:
            for part in special.split(text) if any(token in text for token in special_tokens) else [text]:
                yield from pattern.pieces(well_formed(part), _CHUNK)

    return grouped(pieces(), _CHUNK)


def _count(chunks: Iterable[Chunk], pattern: Pattern, counts: Counter[str]) -> None:
    for chunk in chunks:
        for piece in chunk:
            counts.update(split_fast(pattern, piece))


def _count_with_helpers(helpers: int, chunks: Iterable[Chunk], pattern: Pattern, counts: Counter[str]) -> None:
    """Count in ``helpers`` processes beside this one; a thread feeds each of them from a queue."""
    work: queue.Queue[Chunk | None] = queue.Queue(maxsize=2 * helpers)
    with ThreadPoolExecutor(helpers) as pool:
        running = [pool.submit(_count_in_helper, pattern, work) for _ in range(helpers)]
        try:
            for chunk in chunks:
                try:
                    work.put_nowait(chunk)
                except queue.Full:
                    _count([chunk], pattern, counts)
            _count(_taken_back(work), pattern, counts)  # rather than wait until the helpers have done it
        finally:
            list(_taken_back(work))
            for _ in running:
                work.put(None)
    for helper in running:
        counts.update(helper.result())


def _taken_back(work: queue.Queue[Chunk | None]) -> Iterator[Chunk]:
    """Yield the chunks that no helper has started."""
    with contextlib.suppress(queue.Empty):
        while True:
            if (chunk := work.get_nowait()) is not None:
                yield chunk


def _count_in_helper(pattern: Pattern, work: queue.Queue[Chunk | None]) -> dict[str, int]:
    """Start a child process, feed it chunks until ``None`` comes, and return its counts.

    Not ``multiprocessing``, whose children import the user's main program again, with everything that it imports, and
    which every script must guard against.
    """
    search_path = os.pathsep.join(filter(None, [_PACKAGE_ROOT, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": search_path}
    process = Popen([sys.executable, "-c", _SERVE], stdin=PIPE, stdout=PIPE, env=environment)
    answer = b""
    with contextlib.suppress(BrokenPipeError), process:  # the exit status tells of a helper that died
        assert process.stdin is not None and process.stdout is not None
        for value in chain([pattern.name], iter(work.get, None)):
            _send(process.stdin, value)
        process.stdin.close()
        answer = process.stdout.read()
    if process.returncode != 0:
        raise RuntimeError(f"a process that counted words ended with status {process.returncode}")
    return json.loads(answer)


def _send(pipe: IO[bytes], value: Any) -> None:
    pipe.write(json.dumps(value, ensure_ascii=False).encode("utf-8") + b"\n")
    pipe.flush()


def serve() -> None:
    """Be a helper: read the pattern and then chunks from stdin, one line of JSON each; write the counts to stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    lines = map(json.loads, sys.stdin.buffer)
    pattern = find_pattern(next(lines))
    counts: Counter[str] = Counter()
    _count(lines, pattern, counts)
    _send(sys.stdout.buffer, counts)


# ----------------------------------------------------------------------------------------------------------- merging

_END = -1  # follows each word: no pair reaches across it
_GONE = -2  # the right half of a merged pair
_SHIFT = 32  # a pair is left << 32 | right: integers in the order of (left, right)
_RIGHT = (1 << _SHIFT) - 1
_PAIR_BITS = 2 * _SHIFT
_PAIR = (1 << _PAIR_BITS) - 1
_MANY = 48  # positions from which numpy is faster than a loop

Positions = npt.NDArray[np.int32]
Progress = Callable[[int, int], None]


def learn_merges(
    words: Mapping[str, int],
    n_merges: int,
    *,
    min_frequency: int = 2,
    ties: Ties = "smallest_ids",
    progress: Progress | None = None,
) -> list[tuple[int, int]]:
    """Return up to ``n_merges`` merges, as pairs of ids, for a corpus given as its distinct words and their counts.

    Fewer if no remaining pair occurs ``min_frequency`` times. ``progress`` is called with the number of merges made and
    ``n_merges``, after each hundred and at the end.
    """
    merges: list[tuple[int, int]] = []
    tokens = list(BYTES)
    corpus = _Corpus(words)
    counts = corpus.counts
    heap: list[int] = []  # -count << 64 | pair: integers by falling count, then by rising ids
    candidates: Iterable[int] = list(counts)
    while len(merges) < n_merges:
        for pair in candidates:
            if counts[pair] >= min_frequency:
                heapq.heappush(heap, -counts[pair] << _PAIR_BITS | pair)
        if not heap:
            break
        key = heapq.heappop(heap)
        count, pair = -(key >> _PAIR_BITS), key & _PAIR
        if counts[pair] != count:  # has fallen since it was pushed
            candidates = (pair,)
            continue
        if ties == "greatest_bytes":
            tied = [pair, *_tied(heap, count, counts, min_frequency)]
            pair = max(tied, key=lambda pair: (tokens[pair >> _SHIFT], tokens[pair & _RIGHT]))
            tokens.append(tokens[pair >> _SHIFT] + tokens[pair & _RIGHT])
            for other in tied:
                if other != pair:
                    heapq.heappush(heap, -count << _PAIR_BITS | other)
        candidates = corpus.merge(pair, len(BYTE_ORDER) + len(merges))
        merges.append((pair >> _SHIFT, pair & _RIGHT))
        if progress is not None and len(merges) % 100 == 0:
            progress(len(merges), n_merges)
    if progress is not None:
        progress(len(merges), n_merges)
    return merges


def _tied(heap: list[int], count: int, counts: Mapping[int, int], min_frequency: int) -> Iterator[int]:
    """Take from the heap the pairs that occur ``count`` times, its most frequent; correct counts that have fallen."""
    while heap and -(heap[0] >> _PAIR_BITS) == count:
        pair = heapq.heappop(heap) & _PAIR
        if counts[pair] == count:
            yield pair
        elif counts[pair] >= min_frequency:
            heapq.heappush(heap, -counts[pair] << _PAIR_BITS | pair)


class _Corpus:
    """The distinct words as one linked array of tokens, with the count and the positions of every pair.

    A pair of many positions is merged with numpy, one of few in plain Python: the arrays share their memory.
    """

    def __init__(self, words: Mapping[str, int]) -> None:
        encoded = [word.encode("utf-8") for word in words]
        lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)) + 1
        tokens = np.array(ID_OF_BYTE)[np.frombuffer(b"\n".join(encoded) + b"\n", dtype=np.uint8)]
        tokens[np.cumsum(lengths) - 1] = _END
        weights = np.fromiter(words.values(), dtype=np.int64, count=len(words))
        positions = np.arange(len(tokens))
        self.tokens, self.np_tokens = _shared("i", tokens)
        self.weights, self.np_weights = _shared("q", np.repeat(weights, lengths))
        self.after, self.np_after = _shared("i", positions + 1)
        self.before, self.np_before = _shared("i", positions - 1)  # before the first comes the last, which is an _END
        self.counts: defaultdict[int, int] = defaultdict(int)  # of each pair
        self.positions: dict[int, Positions | list[int]] = {}
        left, right = self.np_tokens[:-1], self.np_tokens[1:]
        inside = np.flatnonzero((left != _END) & (right != _END)).astype(np.int32)
        pairs = (left[inside].astype(np.int64) << _SHIFT) | right[inside]
        for pair, weight, group in self._grouped(pairs, inside):
            self._add(pair, weight, group)

    def merge(self, pair: int, new: int) -> Iterable[int]:
        """Make ``pair`` one token, ``new``, everywhere; return the pairs that arise."""
        left, right = pair >> _SHIFT, pair & _RIGHT
        positions = self.positions.pop(pair)
        if len(positions) < _MANY or left == right:
            return self._merge_few(left, right, new, positions if isinstance(positions, list) else positions.tolist())
        return self._merge_many(left, right, new, np.asarray(positions, dtype=np.int32))

    def _merge_few(self, left: int, right: int, new: int, positions: list[int]) -> Iterable[int]:
        tokens, after, before, weights, counts = self.tokens, self.after, self.before, self.weights, self.counts
        made: dict[int, list[int]] = {}
        for first in sorted(positions) if left == right else positions:
            second = after[first]
            if tokens[first] != left or tokens[second] != right:
                continue  # merged with another neighbor since
            weight = weights[first]
            previous, following = before[first], after[second]
            tokens[first], tokens[second] = new, _GONE
            after[first], before[following] = following, first
            if (token := tokens[previous]) != _END:
                counts[token << _SHIFT | left] -= weight
                pair = token << _SHIFT | new
                counts[pair] += weight
                made.setdefault(pair, []).append(previous)
            if (token := tokens[following]) != _END:
                counts[right << _SHIFT | token] -= weight
                pair = new << _SHIFT | token
                counts[pair] += weight
                made.setdefault(pair, []).append(first)
        self.positions.update(made)
        return made

    def _merge_many(self, left: int, right: int, new: int, firsts: Positions) -> Iterable[int]:
        tokens, after, before = self.np_tokens, self.np_after, self.np_before
        seconds = after[firsts]
        there = (tokens[firsts] == left) & (tokens[seconds] == right)
        firsts, seconds = firsts[there], seconds[there]
        following = after[seconds]
        tokens[firsts], tokens[seconds] = new, _GONE
        after[firsts], before[following] = following, firsts
        previous = before[firsts]
        made: list[int] = []
        # Neighbors are looked up after merging, so where two merged pairs touch both see `new`: the right one counts.
        for token, weight, group in self._grouped(tokens[previous], previous):
            if token != _END:
                self.counts[(right if token == new else token) << _SHIFT | left] -= weight
                made.append(self._add(token << _SHIFT | new, weight, group))
        for token, weight, group in self._grouped(tokens[following], firsts):
            if token not in (_END, new):
                self.counts[right << _SHIFT | token] -= weight
                made.append(self._add(new << _SHIFT | token, weight, group))
        return made

    def _add(self, pair: int, weight: int, positions: Positions) -> int:
        self.counts[pair] = weight
        self.positions[pair] = positions
        return pair

    def _grouped(self, keys: npt.NDArray[np.integer], positions: Positions) -> Iterator[tuple[int, int, Positions]]:
        """Yield each distinct key with the total weight of its positions and the positions themselves."""
        if not len(keys):
            return
        order = np.argsort(keys)
        keys, positions = keys[order], positions[order]
        starts = np.concatenate(([0], np.flatnonzero(keys[1:] != keys[:-1]) + 1))
        weights = np.add.reduceat(self.np_weights[positions], starts).tolist()
        ends = [*starts[1:].tolist(), len(keys)]
        for key, weight, start, end in zip(keys[starts].tolist(), weights, starts.tolist(), ends, strict=True):
            yield key, weight, positions[start:end]


def _shared(code: str, values: npt.NDArray[np.integer]) -> tuple[array[int], npt.NDArray[np.signedinteger]]:
    """Return the values as an array for loops and as one for numpy, in the same memory."""
    shared = array(code, values.astype(code).tobytes())
    return shared, np.frombuffer(shared, dtype=code)
