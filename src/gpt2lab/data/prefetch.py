"""Batches read ahead by threads, while the model computes.

A batch is a pure function of where training stands, so reading ahead needs no protocol: threads compute the batches
that come next, and whoever asks for one takes it, or computes it where nobody has begun. The batches are the same for
any number of threads. Reading files and copying arrays lets other threads run meanwhile.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from gpt2lab.data.loader import Batch, Loader
from gpt2lab.data.round_loader import RoundLoader
from gpt2lab.errors import InputError

_AHEAD = 2
"""Batches that each thread may be ahead."""


class Prefetcher:
    """Gives a loader's batches, read ahead by ``workers`` threads within a ``with`` block; by none outside of one."""

    def __init__(self, loader: Loader | RoundLoader, workers: int) -> None:
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
        """Return what the loader's ``batch`` does, and have those that follow it read."""
        asked = (step, micro_step)
        ready = self._coming.pop(asked, None)
        if self._pool is not None:
            self._read_ahead(asked, self._pool)
        return self._loader.batch(*asked) if ready is None else ready.result()

    def _read_ahead(self, position: tuple[int, int], pool: ThreadPoolExecutor) -> None:
        wanted: dict[tuple[int, int], Future[Batch]] = {}
        for _ in range(_AHEAD * self._workers):
            step, micro_step = position
            position = (step, micro_step + 1) if micro_step + 1 < self._loader.micro_steps else (step + 1, 0)
            if not self._loader.is_ready(position[0]):  # a thread must not wait for data that is being prepared
                break
            wanted[position] = self._coming.get(position) or pool.submit(self._loader.batch, *position)
        self._coming = wanted  # what nobody asks for any more is dropped
