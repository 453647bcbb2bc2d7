"""Training on a corpus that the disk cannot hold: an endless sequence of segments, prepared on the fly.

    segment    0          1         2         3                 each is prepared, trained on once, and deleted
               deleted    in use    ready     being written

    training process    StreamingDataset -> StreamLoader        reads segment 1
                                              |  "keep_from 1"
    helper process                          Preparer            deletes segment 0, writes segments 2 and 3

Segment n is chunk n mod N of the corpus (a file of the Hub, local files, or 10,000 stories), so after the last chunk
comes the first again; stories never repeat.

    STREAM/preparing/plan.json      every chunk, pinned to a commit of the Hub: what a segment holds never changes
          /preparing/00002/         segment 2, kept as `Journal` keeps a chunk
          /ledger.json              tokens and SHA-256 of each chunk that was ever prepared for training
          /held-out/                the validation and test splits, given or held out of segment 0: kept for good

A segment that is needed again, because training resumes from an earlier step, is prepared again and must give the bytes
in the ledger. A corpus of one chunk is prepared once and kept. Only one process at a time writes here. During training
that is the helper, ``python -m gpt2lab.data.streaming STREAM FIRST MAX_DISK``, which does not import torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from gpt2lab.data.dataset import HELD_OUT, MANIFEST, TOKENIZER, DataManifest, TokenDataset, TokenizerInfo
from gpt2lab.data.documents import SplitRule
from gpt2lab.data.prepare import PrepareConfig, finish, make_plan, output_bytes, source_info
from gpt2lab.data.shards import TokenStream, checked_sha256, open_shard
from gpt2lab.data.sources import Chunk
from gpt2lab.data.writing import (
    ChunkRecord,
    ChunkWriter,
    DiskBudget,
    DiskFull,
    Journal,
    PreparePlan,
    explaining_full_disk,
)
from gpt2lab.errors import InputError, TemporaryError
from gpt2lab.files import bytes_below, read_json, remove_temporary, write_json
from gpt2lab.tokenizer.tokenizer import Tokenizer

LEDGER = "ledger.json"
SEGMENTS_AHEAD = 2
"""Segments that may be ready beyond the one in use."""


def training_chunks(plan: PreparePlan) -> tuple[Chunk, ...]:
    """Return the chunks to train on, whether or not a part of each is held out."""
    return tuple(chunk for chunk in plan.chunks if chunk.split in ("", "train"))


class StreamingDataset:
    """A corpus in segments. It stands in for a `TokenDataset`; ``manifest`` is what is known before any is prepared."""

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        directory: Path,
        max_disk: int | None = None,
        column: str | None = None,
    ) -> None:
        """Stream the corpus ``name`` (any source of `documents`) through ``directory``, which may exist already.

        Downloads and shards may take ``max_disk`` bytes at any moment.

        Raises:
            InputError: The tokenizer has no ``<|endoftext|>``.
        """
        self.directory, self.max_disk = directory, max_disk
        self._tokenizer = tokenizer
        self._config = PrepareConfig((name,), column=column)
        self._journal, self._stories = Journal(directory), name == "stories"
        made_with = TokenizerInfo.of(tokenizer)
        self.manifest = DataManifest(source_info(self._config), made_with, SplitRule("given", 0.0, 0.0), {}, ())
        self._oldest = self._current = 0  # the first segment that is still needed, and the one being written
        self._budget = DiskBudget(max_disk, more_will_come=lambda: self._oldest < self._current)

    @classmethod
    def reopen(cls, directory: Path, max_disk: int | None = None) -> Self:
        """Open a directory whose held-out splits were prepared, with the tokenizer stored there."""
        arguments = Journal(directory).load().arguments
        tokenizer = Tokenizer.load(directory / HELD_OUT / TOKENIZER)
        return cls(arguments["sources"][0], tokenizer, directory, max_disk, arguments["column"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the plan: which chunks there are, at which commit, and how they become tokens.

        Raises:
            InputError: The corpus is unknown or unreachable, or was begun here with another tokenizer.
            DiskFull: No segment of it fits.
        """
        return hashlib.sha256(json.dumps(asdict(self._plan), sort_keys=True).encode()).hexdigest()

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer."""
        return self._tokenizer

    @contextmanager
    def discard_if_refused(self) -> Iterator[None]:
        """Delete a directory created within the block if it raises an error that the same command would raise again."""
        existed = self.directory.exists()
        try:
            yield
        except InputError as error:
            if not existed and not isinstance(error, TemporaryError):
                shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def move_to(self, directory: Path) -> None:
        """Move everything that was prepared."""
        self.directory = self.directory.rename(directory)
        self._journal = Journal(directory)

    @cached_property
    def _plan(self) -> PreparePlan:
        return self._journal.plan(self._config.arguments(self._tokenizer), self._make_plan)

    def _make_plan(self) -> PreparePlan:
        plan, name = make_plan(self._config, self._tokenizer, None, 1), self._config.sources[0]
        if not (chunks := training_chunks(plan)):
            raise InputError(f"{name}: has no split to train on; choose another corpus")
        needed = max(chunk.download + output_bytes([chunk], self._tokenizer) for chunk in chunks)
        if self.max_disk is not None and needed > self.max_disk:
            raise DiskFull(
                f"{name}: about {needed:,} bytes are needed (a download and its shards), but --max-disk allows "
                f"{self.max_disk:,}; allow more, ideally twice as much so that the next segment is ready in time"
            )
        return plan

    @cached_property
    def _chunks(self) -> tuple[Chunk, ...]:
        return training_chunks(self._plan)

    @property
    def _repeats(self) -> bool:
        """Whether every segment is the same."""
        return len(self._chunks) == 1 and not self._stories

    def is_ready(self, number: int) -> bool:
        """Return whether a segment can be read."""
        return self._journal.is_complete(self._index(number))

    def tokens(self, number: int) -> int | None:
        """Return the tokens of a segment; None if its chunk was never prepared."""
        entry = self._entries().get(self._key(number))
        return None if entry is None else entry["tokens"]

    def stream(self, number: int) -> TokenStream:
        """Return the tokens of a segment that is ready, after checking every byte of its files.

        Raises:
            InputError: A file is missing or was changed.
        """
        index = self._index(number)
        folder = self._journal.chunk(index)
        shards = [open_shard(folder / info.name) for info in self._journal.record(index).shards]
        found = [checked_sha256(shard, self._tokenizer.n_vocab) for shard in shards]
        if found != self._entries()[self._key(number)]["sha256"]:
            raise InputError(
                f"{folder}: changed since it was written; delete the directory and run again with --resume"
            )
        return TokenStream(str(folder), shards)

    def require_one_step(self, number: int, batch_tokens: int) -> None:
        """Raise `InputError` if a segment is known to be smaller than one step."""
        tokens = self.tokens(number)
        if tokens is not None and tokens - 1 < batch_tokens:
            raise InputError(
                f"segment {number} of the data has {tokens:,} tokens, fewer than the {batch_tokens:,} of a step; "
                "start again with a smaller --batch-tokens"
            )

    def held_out(self) -> TokenDataset:
        """Return the held-out splits, after preparing them and segment 0. Raises what `prepare` does."""
        folder = self.directory / HELD_OUT
        if not (folder / MANIFEST).exists():
            journal = Journal(folder)
            given = {c.split: c for c in reversed(self._plan.chunks) if c.split in ("test", "val")}  # the first of each
            chunks = tuple(given.values())
            plan = PreparePlan(self._plan.arguments, SplitRule("given", 0.0, 0.0), chunks or (self._chunk(0),))
            journal.plan(plan.arguments, lambda: plan)
            for index, chunk in enumerate(chunks):
                journal.complete(index, self._write(chunk, journal, index))
            if not chunks:
                self._divide_first(journal)
            finish(plan, journal, self._tokenizer, self._config)
        self.prepare(0)
        return TokenDataset(folder)

    def prepare(self, number: int) -> None:
        """Write a segment unless it is ready; wait for disk space that earlier segments will free.

        Raises:
            DiskFull: It does not fit.
            Unreachable: A download failed repeatedly.
            InputError: A source cannot be read, or gives other bytes than the first time.
        """
        if not self.is_ready(number):
            self._current = number
            self._complete(number, self._write(self._chunk(number), self._journal, self._index(number)))

    def prepare_ahead(self) -> None:
        """Prepare segments forever, at most `SEGMENTS_AHEAD` beyond the oldest that `keep_from` keeps."""
        number = self._oldest
        while True:
            with self._budget.changed:
                self._budget.changed.wait_for(lambda wanted=number: wanted <= self._oldest + SEGMENTS_AHEAD)
                number = max(number, self._oldest)
                missing = not self.is_ready(number)  # then training cannot be past it, and it is not deleted meanwhile
            if missing:
                self.prepare(number)
            number += 1

    def keep_from(self, first: int) -> None:
        """Delete the segments before ``first``."""
        with self._budget.changed:
            self._oldest = max(self._oldest, first)
            self._keep(range(self._index(first), sys.maxsize))
            self._budget.changed.notify_all()

    def remove_all(self) -> None:
        """Delete every segment; the plan, the ledger and the held-out splits stay."""
        self._keep(range(0))

    def tidy(self, first: int) -> None:
        """Start from segment ``first``: delete what an interruption left, and segments out of sequence."""
        remove_temporary(self.directory)
        self._oldest = first
        if self._repeats:
            return
        wanted = next(number for number in itertools.count(first) if not self.is_ready(number))
        self._keep(range(first, wanted + 1))

    def _keep(self, indices: range) -> None:
        """Delete all segments except ``indices``."""
        for folder in list(self._journal.folder.iterdir()):
            if folder.name.isdigit() and int(folder.name) not in indices:
                size = bytes_below(folder)
                (folder / "record.json").unlink(missing_ok=True)  # first, so that a half-deleted segment is not ready
                shutil.rmtree(folder, ignore_errors=True)
                self._budget.release(size)

    def _index(self, number: int) -> int:
        """Return the index under which the journal keeps a segment."""
        return 0 if self._repeats else number

    def _chunk(self, number: int) -> Chunk:
        first = self._chunks[0]
        if self._stories:
            return replace(first, start=number * first.stop, stop=(number + 1) * first.stop)
        return self._chunks[number % len(self._chunks)]

    def _key(self, number: int) -> str:
        """Return the key of a segment in the ledger: the number of its chunk."""
        return str(number if self._stories else number % len(self._chunks))

    def _entries(self) -> dict[str, Any]:
        ledger = self.directory / LEDGER
        return read_json(ledger) if ledger.exists() else {}

    def _write(self, chunk: Chunk, journal: Journal, index: int) -> ChunkRecord:
        folder = journal.begin(index)
        with self._budget.changed:
            self._budget.used = bytes_below(self.directory)
        with explaining_full_disk(self.directory, chunk.download + output_bytes([chunk], self._tokenizer)):
            return ChunkWriter(chunk, folder, self._tokenizer, self._plan, self._budget).write()

    def _divide_first(self, journal: Journal) -> None:
        """Write segment 0, and move its held-out shards to ``journal``."""
        record = self._write(self._chunk(0), self._journal, 0)
        folder = journal.begin(0)
        held_out = tuple(shard for shard in record.shards if shard.split != "train")
        for shard in held_out:
            (self._journal.chunk(0) / shard.name).replace(folder / shard.name)
        splits = {name: split for name, split in record.splits.items() if name != "train"}
        journal.complete(0, replace(record, splits=splits, shards=held_out))
        self._complete(0, record)

    def _complete(self, number: int, record: ChunkRecord) -> None:
        """Enter a segment in the ledger, and keep only its training shards.

        Raises:
            InputError: The ledger has other bytes for it, or there is nothing to train on.
        """
        files = ", ".join(file.name for file in self._chunk(number).files[:3])
        name = f"segment {number} of {', '.join(self._plan.arguments['sources'])} ({files or 'generated'})"
        shards = tuple(shard for shard in record.shards if shard.split == "train")
        if not shards:
            raise InputError(f"{name}: holds no text to train on; choose another corpus")
        entry = {"tokens": sum(shard.tokens for shard in shards), "sha256": [shard.sha256 for shard in shards]}
        ledger = self._entries()
        if (before := ledger.setdefault(self._key(number), entry)) != entry:
            raise InputError(
                f"{name}: its {entry['tokens']:,} tokens differ from the {before['tokens']:,} of the first time: "
                "the source has changed, and the run cannot be resumed exactly"
            )
        write_json(self.directory / LEDGER, ledger)
        index = self._index(number)
        for shard in record.shards:
            if shard not in shards:
                (self._journal.chunk(index) / shard.name).unlink(missing_ok=True)
        kept = replace(record, splits={"train": record.splits["train"]}, shards=shards)
        self._journal.complete(index, kept)


class Preparer:
    """The helper process that prepares segments from ``first`` on; it runs within a ``with`` block."""

    def __init__(self, dataset: StreamingDataset, first: int) -> None:
        self._arguments = [str(dataset.directory), str(first), str(dataset.max_disk or 0)]
        self._log = dataset.directory / "preparer.log"

    def __enter__(self) -> Self:
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]  # the same source as this file's
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gpt2lab.data.streaming", *self._arguments],
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


def _prepare_for_training(folder: str, first: str, max_disk: str) -> int:
    """Prepare segments from ``first`` on until standard input ends, whose lines are arguments of `keep_from`."""
    if sys.platform != "win32":
        os.nice(10)  # training takes precedence

    def listen() -> None:
        for line in sys.stdin:
            dataset.keep_from(int(line))
        os._exit(0)  # training has ended

    try:
        dataset = StreamingDataset.reopen(Path(folder), int(max_disk) or None)
        dataset.tidy(int(first))
        threading.Thread(target=listen, daemon=True).start()
        dataset.prepare_ahead()
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_prepare_for_training(*sys.argv[1:]))
