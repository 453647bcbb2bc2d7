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
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

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
