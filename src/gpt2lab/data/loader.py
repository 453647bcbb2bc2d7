"""Batches of the token stream as a pure function of (seed, step, micro_step, rank, world).

The stream is cut into n = (tokens - 1) // seq_len windows. Window k holds the seq_len + 1 tokens that start at
k * seq_len; its inputs are all but the last of them, its targets all but the first.

    tokens   t0 t1 t2 t3 | t4 t5 t6 t7 | t8 ...          seq_len 4
    window 0 t0 t1 t2 t3   t4
    window 1               t4 t5 t6 t7   t8

Sequences are numbered across steps. A step has S of them, and row b of micro-step m on rank r is

    number = step * S + (m * world + r) * micro_batch + b        epoch = number // n
    window = permutation of that epoch (number mod n)

So each window is read once per epoch, in an order that is neither stored nor advanced. The loader has no state but the
step, and a step reads the same sequences for any number of processes.

The permutation is a Feistel network over the digits of an index in base (a, b), a * b >= n, that is applied again to
results outside the set ("cycle walking"; Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).

With random sampling, as in nanoGPT, a sequence may begin at any token, independently of all others:

    start = hash(seed, number) mod (tokens - seq_len)

Batch and context may grow. With k doublings of the batch ahead, a step has S / 2**k sequences; with k doublings of the
context ahead, each sequence is cut into 2**k rows. The number of a sequence is still that of all read before it.

If attention must stay within documents, a batch also holds, for each token, the document of its row that it belongs to
and its position in that document. A document begins at ``<|endoftext|>``; one that began before the row counts from 0.

    tokens     a  b  |  c  d  e  |  f        | is <|endoftext|>
    documents  0  0  1  1  1  1  2  2
    positions  0  1  0  1  2  3  0  1

Of conversations only some tokens count in the loss (see chat.py); the targets of the others are `UNCOUNTED`.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Self, TypeVar

import numpy as np
import torch

from gpt2lab.data.shards import TokenStream
from gpt2lab.data.streaming import Preparer, StreamingDataset
from gpt2lab.errors import InputError

log = logging.getLogger("gpt2lab")
_POLL_SECONDS = 0.05
"""Between two looks whether a segment is ready."""

ROUNDS = 8
"""Rounds of the Feistel network. With 4 or 6, the permutations of a few indices are not equally likely; 8 suffice."""


def permute(indices: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Apply the permutation of {0, ..., n-1} that belongs to (seed, epoch) to each index.

    Args:
        indices: Integers in [0, n), any shape.
        n: Size of the permuted set, 1 <= n < 2**62.
        seed: Any integer.
        epoch: Any integer; each epoch has its own permutation.

    Returns:
        int64 array with the shape of ``indices``.
    """
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    keys = _round_keys(seed, epoch)
    x = _network(np.atleast_1d(indices).astype(np.uint64), np.uint64(a), np.uint64(b), keys)
    while (outside := x >= np.uint64(n)).any():
        x[outside] = _network(x[outside], np.uint64(a), np.uint64(b), keys)
    return x.astype(np.int64).reshape(np.shape(indices))


def _network(x: np.ndarray, a: np.uint64, b: np.uint64, keys: np.ndarray) -> np.ndarray:
    left, right = np.divmod(x, b)
    for key_left, key_right in zip(keys[::2], keys[1::2], strict=True):
        left = (left + _hash(right + key_left)) % a
        right = (right + _hash(left + key_right)) % b
    return left * b + right


def _hash(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 without its lowest bit: below 2**63, so that adding a digit does not overflow."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) >> np.uint64(1)


def _round_keys(seed: int, epoch: int) -> np.ndarray:
    return _keys(f"{seed}/{epoch}", ROUNDS)


def _keys(name: str, count: int) -> np.ndarray:
    return np.frombuffer(hashlib.blake2b(name.encode(), digest_size=8 * count).digest(), dtype="<u8")


def draw(numbers: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Draw from {0, ..., n-1} with replacement: the outcome of each draw is a function of its number and the seed.

    The generator is SplitMix64 (Steele, Lea & Flood 2014), whose state is a counter, so that any draw costs the same.

    Args:
        numbers: Numbers of the draws, integers of 0 or more, any shape.
        n: Possible outcomes, 1 <= n < 2**40: each then has its probability to within 2**-23 of it.
        seed: Any integer.

    Returns:
        int64 array with the shape of ``numbers``.
    """
    states = _keys(f"{seed}/random", 1) + np.asarray(numbers).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (_hash(states) % np.uint64(n)).astype(np.int64)


UNCOUNTED = -100
"""Target where the next token does not count in the loss, as in ``torch.nn.functional.cross_entropy``."""


@dataclass(frozen=True)
class Batch:
    """Inputs and targets, (B, T), int64: ``targets[b, t]`` is the token after ``tokens[b, t]``, or `UNCOUNTED`.

    ``documents`` and ``positions``, of the same shape, are set if attention must stay within documents. ``weight`` is
    set if not all targets count: the sum of weight * mean loss over the batches of a rank in a step, averaged over the
    ranks, is then the mean loss over all targets of the step that count.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    documents: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    weight: float | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        parts = (self.tokens, self.targets, self.documents, self.positions)
        moved = (part.to(device, non_blocking=True) for part in parts if part is not None)
        return Batch(*moved, weight=self.weight)


Source = TypeVar("Source", TokenStream, StreamingDataset)


def size_at(step: int, full: int, doublings: Sequence[int]) -> int:
    """Return a size that doubles at each of the steps ``doublings`` (ascending), up to ``full``."""
    return full >> sum(step < doubling for doubling in doublings)


def sum_before(step: int, full: int, doublings: Sequence[int]) -> int:
    """Return the sum of the sizes of the steps before ``step``; see `size_at`.

    >>> sum_before(6, 8, (2, 4))  # 2 + 2 + 4 + 4 + 8 + 8
    28
    """
    begins, ends = (0, *doublings), (*doublings, step)
    return sum(
        size_at(begin, full, doublings) * max(0, min(step, end) - begin)
        for begin, end in zip(begins, ends, strict=True)
    )


class Section(NamedTuple):
    """Windows that are read in permutations of their own: ``windows`` of a stream, from step ``first_step`` on."""

    stream: TokenStream
    windows: int
    first_step: int = 0
    first_epoch: int = 0
    """Number of the first permutation."""


@dataclass(eq=False)
class BatchLoader(ABC, Generic[Source]):
    """The training batches of one process; the module docstring says which windows a batch holds.

    Attributes:
        source: The training split.
        seq_len: Tokens in a sequence.
        sequences_per_step: Sequences in a step over all processes.
        micro_batch: Sequences in a micro-step of one process; if the batch grows, the most.
        seed: Seed of the permutations.
        world: Processes.
        rank: This process.
        eot: The id that documents begin with, to set `Batch.documents`; None leaves them out.
        random: Whether windows begin at random tokens.
        batch_doublings: Steps at which the sequences of a step double, up to ``sequences_per_step``.
        length_doublings: Steps at which the rows that sequences are cut into double in length, up to ``seq_len``.

    Raises:
        InputError: The step is not divisible (see `micro_steps`).
    """

    source: Source
    seq_len: int
    sequences_per_step: int
    micro_batch: int
    seed: int
    world: int = 1
    rank: int = 0
    eot: int | None = None
    random: bool = False
    batch_doublings: tuple[int, ...] = ()
    length_doublings: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise InputError(f"rank {self.rank} of {self.world} processes; ranks go from 0 to {self.world - 1}")
        self.batch_tokens = self.sequences_per_step * self.seq_len
        self.micro_steps = micro_steps(self.batch_tokens, self.seq_len, self.micro_batch, self.world)
        self._stride = 1 if self.random else self.seq_len
        self.counted = functools.lru_cache(8)(self._counted)
        """Returns how many targets of a step, over all processes, count in the loss; None if all do."""

    def sequences_before(self, step: int) -> int:
        """Return the sequences that the steps before ``step`` read, over all processes."""
        return sum_before(step, self.sequences_per_step, self.batch_doublings)

    def tokens_before(self, step: int) -> int:
        """Return the tokens that the steps before ``step`` read, over all processes."""
        return self.sequences_before(step) * self.seq_len

    def length_at(self, step: int) -> int:
        """Return the tokens in a row of a step's batches."""
        return size_at(step, self.seq_len, self.length_doublings)

    def passes(self, step: int) -> tuple[int, int]:
        """Return the micro-steps of a step, and the sequences in each of one process."""
        share = size_at(step, self.sequences_per_step, self.batch_doublings) // self.world
        most = max(n for n in range(1, min(share, self.micro_batch) + 1) if share % n == 0)
        return share // most, most

    @abstractmethod
    def section(self, step: int) -> Section:
        """Return the section that a step reads; wait until it is ready."""

    @abstractmethod
    def epoch_of(self, step: int) -> float:
        """Return the epochs completed after ``step`` steps."""

    def batch(self, step: int, micro_step: int) -> Batch:
        """Return the batch of one micro-step, of step 0, 1, ..."""
        starts = self.windows(step, micro_step) * self._stride
        tokens, targets = read_windows(self.section(step).stream, starts, self.seq_len)
        weight = None
        if (counted := self.counted(step)) is not None:
            weight = int((targets != UNCOUNTED).sum()) * self.world / max(1, counted)
        tokens, targets = (half.reshape(-1, self.length_at(step)) for half in (tokens, targets))
        documents = () if self.eot is None else within_documents(tokens, self.eot)
        return Batch(tokens, targets, *documents, weight=weight)

    def _counted(self, step: int) -> int | None:
        stream = self.section(step).stream
        if not stream.masked:
            return None
        places = [(micro_step, rank) for micro_step in range(self.passes(step)[0]) for rank in range(self.world)]
        windows = np.concatenate([self.windows(step, *place) for place in places])
        return int(stream.counted(windows * self._stride + 1, self.seq_len).sum())

    def windows(self, step: int, micro_step: int, rank: int | None = None) -> np.ndarray:
        """Return the indices of the windows in that batch, (B,), or in the batch of another rank.

        Window k of a section starts at token k * seq_len, or with random sampling at token k.
        """
        rank = self.rank if rank is None else rank
        count, size = self.passes(step)
        if step < 0 or not 0 <= micro_step < count:
            raise IndexError(f"step {step}, micro_step {micro_step}: the step has {count} micro-steps")
        stream, n, first_step, first_epoch = self.section(step)
        rows = (micro_step * self.world + rank) * size + np.arange(size)
        before = self.sequences_before(step)
        if self.random:
            return draw(before + rows, len(stream) - self.seq_len, self.seed)
        epochs, positions = np.divmod(before - self.sequences_before(first_step) + rows, n)
        windows = np.empty_like(positions)
        for epoch in np.unique(epochs):
            of_epoch = epochs == epoch
            windows[of_epoch] = permute(positions[of_epoch], n, self.seed, first_epoch + int(epoch))
        return windows

    def is_ready(self, step: int) -> bool:
        """Return whether the batches of a step can be read now."""
        return True

    def begins_section(self, step: int) -> bool:
        """Return whether the section before a step can be deleted once the state at that step is saved."""
        return False

    @contextmanager
    def preparing_ahead(self, step: int, check: Callable[[], None]) -> Iterator[None]:
        """Prepare sections in the background, starting with that of ``step``, within the block.

        Args:
            step: The first step that will be read.
            check: Called repeatedly while a batch waits for its section; an exception from it ends the wait.
        """
        yield

    def release(self, step: int, over: bool) -> None:
        """Delete the sections before that of ``step``, or all of them if the run is ``over``.

        Call this once the state after ``step`` steps is saved.
        """


class Loader(BatchLoader[TokenStream]):
    """The batches of data that is all on disk: one section, in a new permutation each epoch unless sampled.

    Raises:
        InputError: The stream is shorter than a window.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.windows_per_epoch = count_windows(self.source, self.seq_len)

    def section(self, step: int) -> Section:
        """Return all the data."""
        return Section(self.source, self.windows_per_epoch)

    def epoch_of(self, step: int) -> float:
        """Return the passes over the data after ``step`` steps."""
        return self.sequences_before(step) / self.windows_per_epoch


def read_windows(stream: TokenStream, starts: np.ndarray, seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens and targets (n, seq_len) of the windows that begin at ``starts`` (n,), int64."""
    rows = torch.from_numpy(stream.read(starts, seq_len + 1).astype(np.int64))
    tokens, targets = rows[:, :-1], rows[:, 1:]
    if stream.masked:
        counted = torch.from_numpy(stream.counted(starts + 1, seq_len))
        targets = torch.where(counted, targets, UNCOUNTED)
    return tokens, targets


def within_documents(tokens: torch.Tensor, eot: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the document of each token (B, T) within its row, and its position in it: both (B, T), int64."""
    begins = tokens == eot
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    starts = torch.where(begins, positions, 0).cummax(1).values  # where the document of each token begins
    return begins.cumsum(1), positions - starts


def count_windows(stream: TokenStream, seq_len: int) -> int:
    """Return the windows of an epoch. Raises `InputError` if the stream is shorter than one."""
    if seq_len < 1:
        raise InputError(f"seq_len is {seq_len}; it must be 1 or more")
    if len(stream) <= seq_len:
        raise InputError(
            f"{stream.name}: {len(stream)} tokens, fewer than one window of seq_len {seq_len} and the token after it; "
            f"use more text or a seq_len of at most {len(stream) - 1}"
        )
    return (len(stream) - 1) // seq_len


def spread_windows(stream: TokenStream, seq_len: int, max_tokens: int) -> np.ndarray:
    """Return where windows begin that are spread evenly over a stream and hold at most ``max_tokens``, or all if 0.

    Raises:
        InputError: The stream is shorter than one, or none of their tokens counts in the loss.
    """
    windows = count_windows(stream, seq_len)
    used = min(windows, max(1, max_tokens // seq_len)) if max_tokens else windows
    starts = np.arange(used) * windows // used * seq_len
    if stream.masked and not stream.counted(starts + 1, seq_len).any():
        raise InputError(
            f"{stream.name}: none of {used * seq_len:,} tokens counts in the loss"
            "; give more --eval-tokens, or 0 for all"
        )
    return starts


def micro_steps(batch_tokens: int, seq_len: int, micro_batch: int, world: int = 1) -> int:
    """Return the micro-steps in a step of ``batch_tokens`` tokens over all processes.

    Args:
        batch_tokens: Tokens in an optimizer step.
        seq_len: Tokens in a sequence.
        micro_batch: Sequences in a micro-step of one process.
        world: Processes.

    Raises:
        InputError: ``batch_tokens`` is not a multiple of ``seq_len * micro_batch * world``; names the nearest that are.
    """
    for name, value in (("seq_len", seq_len), ("micro_batch", micro_batch), ("world", world)):
        if value < 1:
            raise InputError(f"{name} is {value}; it must be 1 or more")
    pass_tokens = seq_len * micro_batch * world
    count, remainder = divmod(batch_tokens, pass_tokens)
    if remainder or count < 1:
        nearest = [str(k * pass_tokens) for k in (count, count + 1) if k >= 1]
        raise InputError(
            f"batch_tokens {batch_tokens} is not a multiple of micro_batch {micro_batch} x seq_len {seq_len} x "
            f"{world} process{'es' if world > 1 else ''} = {pass_tokens}; nearest that fit: {' or '.join(nearest)}"
            f"{_other_micro_batches(batch_tokens, seq_len * world, micro_batch)}"
        )
    return count


def _other_micro_batches(batch_tokens: int, row_tokens: int, micro_batch: int) -> str:
    """Name the nearest micro-batches that divide the step, if any do."""
    rows, remainder = divmod(batch_tokens, row_tokens)
    if remainder or rows < 1:
        return ""
    below = next(n for n in range(min(micro_batch, rows), 0, -1) if rows % n == 0)
    above = [n for n in range(micro_batch, rows + 1) if rows % n == 0][:1]
    return f", or a micro_batch of {' or '.join(map(str, [below, *above]))}"


class StreamLoader(BatchLoader[StreamingDataset]):
    """The batches of a streamed corpus, whose segments are the sections.

    A step reads one segment only; the windows left over at its end, fewer than a step, are skipped.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._first_steps = [0]  # of each segment whose size is known, and of the one after
        self._stream = functools.lru_cache(2)(self.source.stream)  # which checks every byte
        self._guard = threading.RLock()  # batches are prefetched by threads
        self._preparer: Preparer | None = None
        self._check: Callable[[], None] = lambda: None
        self._over = False

    def section(self, step: int) -> Section:
        """Return the segment that a step reads; wait until it is ready.

        Raises:
            InputError: The helper process has ended, or the segment is smaller than a step.
        """
        if not self.is_ready(step):
            self._wait_for(step)
        number = self.segment_of(step)
        with self._guard:
            stream = self._stream(number)
        return Section(stream, count_windows(stream, self.seq_len), self._first_steps[number], number)

    def epoch_of(self, step: int) -> float:
        """Return the segments completed after ``step`` steps."""
        number = self.segment_of(step)
        if number + 1 == len(self._first_steps):  # the size of this segment is not known yet
            return float(number)
        first, end = self._first_steps[number : number + 2]
        return number + (step - first) / (end - first)

    def segment_of(self, step: int) -> int:
        """Return the segment that a step reads, or the first segment of unknown size or smaller than a step."""
        with self._guard:
            while step >= self._first_steps[-1]:
                number = len(self._first_steps) - 1
                first, windows = self._first_steps[-1], ((self.source.tokens(number) or 1) - 1) // self.seq_len
                end = self.sequences_before(first) + windows
                steps = bisect_right(range(first + 1, first + 1 + windows), end, key=self.sequences_before)
                if not steps:
                    return number
                self._first_steps.append(first + steps)
            return bisect_right(self._first_steps, step) - 1

    def is_ready(self, step: int) -> bool:
        """Return whether the segment of a step is prepared."""
        number = self.segment_of(step)
        return number + 1 < len(self._first_steps) and self.source.is_ready(number)

    def begins_section(self, step: int) -> bool:
        """Return whether a step is the first of its segment."""
        self.segment_of(step)
        return step in self._first_steps

    @contextmanager
    def preparing_ahead(self, step: int, check: Callable[[], None]) -> Iterator[None]:
        """Run the helper process that prepares segments."""
        with Preparer(self.source, self.segment_of(step)) as preparer:
            self._preparer, self._check = preparer, check
            yield
        if self._over:
            self.source.remove_all()

    def release(self, step: int, over: bool) -> None:
        """Have the helper process delete segments."""
        self._over = over
        assert self._preparer is not None
        self._preparer.keep_from(self.segment_of(step))

    def _wait_for(self, step: int) -> None:
        log.info("waiting for segment %d of the data to be prepared", self.segment_of(step))
        assert self._preparer is not None
        while not self.is_ready(step):
            self._check()
            self.source.require_one_step(self.segment_of(step), self.batch_tokens)
            self._preparer.require_running()
            time.sleep(_POLL_SECONDS)


_BATCHES_AHEAD = 2
"""Batches prefetched per thread."""


class Prefetcher:
    """Batches of a loader, prefetched by ``workers`` threads within a ``with`` block (without prefetching outside)."""

    def __init__(self, loader: BatchLoader[Any], workers: int) -> None:
        if workers < 0:
            raise InputError(f"workers is {workers}; it must be 0 or more")
        self._loader = loader
        self._workers = workers
        self._pool: ThreadPoolExecutor | None = None
        self._coming: dict[tuple[int, int], Future[Batch]] = {}

    def __enter__(self) -> Self:
        if self._workers:
            self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="gpt2lab-batches")
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        self._coming.clear()

    def batch(self, step: int, micro_step: int) -> Batch:
        """Return the loader's batch, and prefetch those that follow."""
        ready = self._coming.pop((step, micro_step), None)
        if self._pool is not None:
            self._prefetch((step, micro_step), self._pool)
        return self._loader.batch(step, micro_step) if ready is None else ready.result()

    def _prefetch(self, position: tuple[int, int], pool: ThreadPoolExecutor) -> None:
        wanted: dict[tuple[int, int], Future[Batch]] = {}
        for _ in range(_BATCHES_AHEAD * self._workers):
            step, micro_step = position
            position = (step, micro_step + 1) if micro_step + 1 < self._loader.passes(step)[0] else (step + 1, 0)
            if not self._loader.is_ready(position[0]):  # threads must not wait for data that is being prepared
                break
            wanted[position] = self._coming.get(position) or pool.submit(self._loader.batch, *position)
        self._coming = wanted  # drops batches that are no longer needed
