"""Training on a corpus that is prepared segment by segment meanwhile; see `segments` for what is on disk.

    training process    StreamingDataset -> StreamLoader        reads segment 1
                                              |  "keep_from 1"
    helper process                          Preparer            deletes segment 0, writes segments 2 and 3

Within a segment, windows are visited in a permutation of its own, as in an epoch of a `Loader`. A step reads one
segment only; the windows left over at its end, fewer than a step, are skipped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Self

import numpy as np

from gpt2lab.data.dataset import HELD_OUT, TokenDataset
from gpt2lab.data.download import DiskFull, Unreachable
from gpt2lab.data.loader import Batch, Loader, micro_steps
from gpt2lab.data.prepare import PrepareConfig, make_plan, output_bytes, require_eot, source_info
from gpt2lab.data.segments import SegmentStore, training_chunks
from gpt2lab.data.selection import SplitRule
from gpt2lab.data.shards import DataManifest, TokenizerInfo
from gpt2lab.data.writing import Journal, PreparePlan
from gpt2lab.errors import InputError
from gpt2lab.tokenizer.tokenizer import Tokenizer

log = logging.getLogger("gpt2lab")
_POLL_SECONDS = 0.05


class StreamingDataset:
    """Stands in for a `TokenDataset`; its ``manifest`` holds what is known before anything is prepared."""

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        directory: Path,
        max_disk: int | None = None,
        column: str | None = None,
    ) -> None:
        """Stream the corpus ``name`` (any source of `documents`) through ``directory``, which may exist already.

        Raises:
            InputError: The tokenizer has no ``<|endoftext|>``.
        """
        self.directory = directory
        self._tokenizer = tokenizer
        self._max_disk = max_disk
        self._config = PrepareConfig((name,), column=column)
        made_with = TokenizerInfo(tokenizer.fingerprint, tokenizer.n_vocab, require_eot(tokenizer))
        self.manifest = DataManifest(source_info(self._config), made_with, SplitRule("given", 0.0, 0.0), {}, ())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the plan: which chunks there are, at which commit, and how they become tokens.

        Raises:
            InputError: The corpus is unknown or unreachable, or was begun here with another tokenizer.
            DiskFull: No segment of it fits.
        """
        return hashlib.sha256(json.dumps(asdict(self._plan()), sort_keys=True).encode()).hexdigest()

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer."""
        return self._tokenizer

    def held_out(self) -> TokenDataset:
        """Return the held-out splits, after preparing them and segment 0. Raises what `prepare` does."""
        self._plan()
        self.segments().prepare_first(self._config)
        return TokenDataset(self.directory / HELD_OUT)

    def segments(self) -> SegmentStore:
        """Return the segments to train on."""
        return SegmentStore(self.directory, self._tokenizer, self._max_disk)

    @contextmanager
    def discard_if_refused(self) -> Iterator[None]:
        """Delete a directory created within the block if it raises an error that the same command would raise again."""
        existed = self.directory.exists()
        try:
            yield
        except (DiskFull, Unreachable):
            raise
        except InputError:
            if not existed:
                shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def move_to(self, directory: Path) -> None:
        """Move everything that was prepared."""
        self.directory = self.directory.rename(directory)

    def _plan(self) -> PreparePlan:
        return Journal(self.directory).plan(self._config.arguments(self._tokenizer), self._make_plan)

    def _make_plan(self) -> PreparePlan:
        plan, name = make_plan(self._config, self._tokenizer, None, 1), self._config.sources[0]
        if not (chunks := training_chunks(plan)):
            raise InputError(f"{name}: has no split to train on; choose another corpus")
        needed = max(chunk.download + output_bytes([chunk], self._tokenizer) for chunk in chunks)
        if self._max_disk is not None and needed > self._max_disk:
            raise DiskFull(
                f"{name}: about {needed:,} bytes are needed (a download and its shards), but --max-disk allows "
                f"{self._max_disk:,}; allow more, ideally twice as much so that the next segment is ready in time"
            )
        return plan


class StreamLoader:
    """The training batches of a streamed corpus. Arguments as for `Loader`."""

    def __init__(
        self,
        segments: SegmentStore,
        seq_len: int,
        sequences_per_step: int,
        micro_batch: int,
        seed: int,
        world: int = 1,
        rank: int = 0,
        eot: int | None = None,
    ) -> None:
        self._batch_tokens = sequences_per_step * seq_len
        self.micro_steps = micro_steps(self._batch_tokens, seq_len, micro_batch, world)
        self._segments = segments
        self._arguments = (seq_len, sequences_per_step, micro_batch, seed, world, rank, eot)
        self._first_steps = [0]  # of each segment whose size is known, and of the one after
        self._open: dict[int, Loader] = {}
        self._guard = threading.RLock()  # batches are prefetched by threads
        self._preparer: Preparer | None = None
        self._check: Callable[[], None] = lambda: None
        self._over = False

    def batch(self, step: int, micro_step: int) -> Batch:
        """Return the batch of a micro-step; wait until its segment is ready.

        Raises:
            InputError: The helper process has ended, or the segment is smaller than a step.
        """
        if not self.is_ready(step):
            self._wait_for(step)
        loader, first = self._loader(step)
        return loader.batch(step - first, micro_step)

    def windows(self, step: int, micro_step: int, rank: int | None = None) -> np.ndarray:
        """Return the indices of the windows of that batch within its segment, (B,)."""
        loader, first = self._loader(step)
        return loader.windows(step - first, micro_step, rank)

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
            seq_len, sequences = self._arguments[:2]
            while step >= self._first_steps[-1]:
                number = len(self._first_steps) - 1
                steps = ((self._segments.tokens(number) or 1) - 1) // seq_len // sequences
                if not steps:
                    return number
                self._first_steps.append(self._first_steps[-1] + steps)
            return bisect_right(self._first_steps, step) - 1

    def is_ready(self, step: int) -> bool:
        """Return whether the batches of a step can be read now."""
        number = self.segment_of(step)
        return number + 1 < len(self._first_steps) and self._segments.is_ready(number)

    def begins_segment(self, step: int) -> bool:
        """Return whether a step is the first of its segment."""
        self.segment_of(step)
        return step in self._first_steps

    @contextmanager
    def preparing_ahead(self, step: int, check: Callable[[], None]) -> Iterator[None]:
        """Run the helper process that prepares segments, starting with that of ``step``, within the block.

        Args:
            step: The first step that will be read.
            check: Called repeatedly while a batch waits for its segment; an exception from it ends the wait.
        """
        with Preparer(self._segments, self.segment_of(step)) as preparer:
            self._preparer, self._check = preparer, check
            yield
        if self._over:
            self._segments.remove_all()

    def release(self, step: int, over: bool) -> None:
        """Delete the segments before that of ``step``, or all of them if the run is ``over``.

        Call this once the state after ``step`` steps is saved.
        """
        number, self._over = self.segment_of(step), over
        with self._guard:
            for old in [n for n in self._open if n < number]:
                del self._open[old]
        assert self._preparer is not None
        self._preparer.keep_from(number)

    def _wait_for(self, step: int) -> None:
        log.info("waiting for segment %d of the data to be prepared", self.segment_of(step))
        assert self._preparer is not None
        while not self.is_ready(step):
            self._check()
            self._segments.require_one_step(self.segment_of(step), self._batch_tokens)
            self._preparer.require_running()
            time.sleep(_POLL_SECONDS)

    def _loader(self, step: int) -> tuple[Loader, int]:
        number = self.segment_of(step)
        with self._guard:
            if number not in self._open:
                self._open[number] = Loader(self._segments.stream(number), *self._arguments, first_epoch=number)
            return self._open[number], self._first_steps[number]


class Preparer:
    """The helper process that prepares segments from ``first`` on; it runs within a ``with`` block."""

    def __init__(self, segments: SegmentStore, first: int) -> None:
        self._arguments = [str(segments.folder), str(first), str(segments.max_disk or 0)]
        self._log = segments.folder / "preparer.log"

    def __enter__(self) -> Self:
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]  # the same source as this file's
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gpt2lab.data.segments", *self._arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
                start_new_session=True,  # Ctrl-C is handled by training
            )
        assert self._process.stdin is not None
        self._input = self._process.stdin
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # an unfinished segment is written again
        self._process.wait()
        with contextlib.suppress(OSError):  # unread input
            self._input.close()

    def keep_from(self, first: int) -> None:
        """Have the segments before ``first`` deleted."""
        with contextlib.suppress(OSError):  # it has ended, which `require_running` reports
            self._input.write(f"{first}\n".encode())
            self._input.flush()

    def require_running(self) -> None:
        """Raise `InputError` with the last line of output if the process has ended."""
        if (code := self._process.poll()) is None:
            return
        said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if code == 2 and said:
            raise InputError(f"preparing ahead: {said[-1]} (training is saved: resume with --resume)")
        why = said[-1] if said else f"exit status {code}"
        raise InputError(f"the process that prepares the data ended ({why}); see {self._log}, and resume with --resume")
