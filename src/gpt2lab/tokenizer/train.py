"""Counting the words of a corpus, the first half of training a tokenizer.

The texts are read once, in chunks of about a megabyte. Each chunk is split and counted by whichever process is free:
this one, or helpers that are fed through pipes and send their counts at the end. In memory are the chunks under way and
the distinct words, no more. Counts are sums, so the result is the same for any number of processes::

    texts -> chunks -> queue -> helper 1 -> counts
                        |       helper 2 -> counts    sum
                      full? ->  this process

Helpers are plain child processes, not ``multiprocessing``'s: those import the user's main program anew, with all that
it imports, and must be guarded against in every script.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from gpt2lab.tokenizer.bpe import BYTE_ORDER, ID_OF_BYTE
from gpt2lab.tokenizer.pretokenize import Pattern, find_pattern, special_pattern, split_fast, well_formed

_CHUNK = 1 << 20  # characters
_TOO_FEW = 6  # chunks, for which starting helpers would take longer than it saves
_MOST = 8  # processes; more are not fed fast enough

_PACKAGE_ROOT = str(Path(__file__).parents[2])
_SERVE = "from gpt2lab.tokenizer.counting import serve; serve()"


def count_words(
    texts: Iterable[str], pattern: Pattern, special_tokens: Sequence[str] = (), *, processes: int | None = None
) -> Counter[str]:
    """Count the words of ``texts``.

    Args:
        texts: Read once, never held as a whole.
        pattern: How a text splits into words.
        special_tokens: Their texts are cut out, and no word reaches over them.
        processes: How many may count, this one included; by default the number of cores. A few megabytes are counted
            here in any case.
    """
    chunks = _chunks(_parts(texts, special_tokens), pattern)
    head = list(islice(chunks, _TOO_FEW))
    helpers = min(processes or os.cpu_count() or 1, _MOST) - 1
    if helpers == 0 or len(head) < _TOO_FEW:
        counts: Counter[str] = Counter()
        _count(chain(head, chunks), pattern, counts)
        return counts
    return _count_with(helpers, chain(head, chunks), pattern)


def _parts(texts: Iterable[str], special_tokens: Sequence[str]) -> Iterator[str]:
    """Yield the texts, well formed, without the texts of special tokens."""
    special = special_pattern(special_tokens)
    for text in texts:
        if any(token in text for token in special_tokens):
            yield from map(well_formed, special.split(text))
        else:
            yield well_formed(text)


def _chunks(parts: Iterable[str], pattern: Pattern) -> Iterator[list[str]]:
    """Gather parts, long ones cut where no word can straddle, into lists of about ``_CHUNK`` characters."""
    chunk: list[str] = []
    size = 0
    for part in parts:
        for piece in pattern.pieces(part, _CHUNK):
            chunk.append(piece)
            size += len(piece)
            if size >= _CHUNK:
                yield chunk
                chunk, size = [], 0
    yield chunk


def _count(chunks: Iterable[list[str]], pattern: Pattern, counts: Counter[str]) -> None:
    for chunk in chunks:
        for piece in chunk:
            counts.update(split_fast(pattern, piece))


def _count_with(helpers: int, chunks: Iterable[list[str]], pattern: Pattern) -> Counter[str]:
    """Count with ``helpers`` processes beside this one."""
    work: queue.Queue[list[str] | None] = queue.Queue(maxsize=2 * helpers)
    running = [_Helper(pattern, work) for _ in range(helpers)]
    counts: Counter[str] = Counter()
    try:
        for chunk in chunks:
            try:
                work.put_nowait(chunk)
            except queue.Full:
                _count([chunk], pattern, counts)
        _count(_taken_back(work), pattern, counts)  # rather than wait for helpers to do it
    except BaseException:
        for helper in running:
            helper.kill()
        raise
    finally:
        list(_taken_back(work))
        for _ in running:
            work.put(None)
        for helper in running:
            helper.join()
    for helper in running:
        counts.update(helper.counts())
    return counts


def _taken_back(work: queue.Queue[list[str] | None]) -> Iterator[list[str]]:
    """Yield what nobody has begun."""
    while True:
        try:
            chunk = work.get_nowait()
        except queue.Empty:
            return
        if chunk is not None:
            yield chunk


class _Helper:
    """A child process that counts, and the thread that feeds it with chunks until it gets ``None``."""

    def __init__(self, pattern: Pattern, work: queue.Queue[list[str] | None]) -> None:
        search_path = os.pathsep.join(filter(None, [_PACKAGE_ROOT, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": search_path},
        )
        self._answer = b""
        self._thread = threading.Thread(target=self._feed, args=(pattern, work), daemon=True)
        self._thread.start()
        self.kill = self._process.kill
        self.join = self._thread.join

    def _feed(self, pattern: Pattern, work: queue.Queue[list[str] | None]) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError), self._process:  # a helper that has died is told by its exit status
            _send(self._process.stdin, pattern.name)
            while (chunk := work.get()) is not None:
                _send(self._process.stdin, chunk)
            self._process.stdin.close()
            self._answer = self._process.stdout.read()

    def counts(self) -> dict[str, int]:
        """Return what was counted; to be called after ``join``."""
        if self._process.returncode != 0:
            raise RuntimeError(f"a process that counted words ended with status {self._process.returncode}")
        return json.loads(self._answer)


def _send(pipe: IO[bytes], value: Any) -> None:
    pipe.write(json.dumps(value, ensure_ascii=False).encode("utf-8") + b"\n")
    pipe.flush()


def serve() -> None:
    """Be a helper: read the pattern and then chunks from stdin, a line of JSON each; write the counts to stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    lines = map(json.loads, sys.stdin.buffer)
    pattern = find_pattern(next(lines))
    counts: Counter[str] = Counter()
    _count(lines, pattern, counts)
    _send(sys.stdout.buffer, counts)


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
