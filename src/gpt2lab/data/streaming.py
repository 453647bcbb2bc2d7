"""A corpus as rounds that come and go, for a disk that does not hold it: each is prepared, read once, and deleted.

    round    0         1         2         3                 a round is a chunk of the corpus (see `chunks`):
             deleted   in use    ready     being written     a file of a hub, files of this machine, 10,000 stories

    STREAM/preparing/plan.json      every chunk, at the hub's commit of the day: what a round holds never changes
          /preparing/00002/         round 2, kept as `journal` keeps a chunk
          /ledger.json              tokens and SHA-256 of each chunk that was ever written to be trained on
          /held-out/                what the first round holds out, or comes held out: prepared data, kept for good

After the last chunk comes the first again; the stories never end. A round that is needed again, because training went
back, is prepared again, and must give the bytes of the ledger. Where there is but one chunk, every round is the same:
it is prepared once, and kept. One process at a time writes here.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
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
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from gpt2lab.data.dataset import HELD_OUT, TOKENIZER, TokenDataset
from gpt2lab.data.download import DiskBudget, DiskFull, Unreachable, bytes_below, explaining_full_disk
from gpt2lab.data.loader import Batch, Loader, micro_steps
from gpt2lab.data.prepare import PrepareConfig, finish, make_plan, output_bytes, source_info, write_chunk
from gpt2lab.data.selection import Cleaner, SplitRule
from gpt2lab.data.shards import MANIFEST, DataManifest, TokenizerInfo, TokenStream, checked_sha256, open_shard
from gpt2lab.data.sources import Chunk
from gpt2lab.data.writing import Journal, Plan, Record, Writing
from gpt2lab.errors import InputError
from gpt2lab.files import read_json, remove_temporary, write_json
from gpt2lab.tokenizer.tokenizer import END_OF_TEXT, Tokenizer

AHEAD = 2
"""SegmentStore that may lie prepared behind the one in use."""


class SegmentStore:
    """The folder of a corpus that is prepared round by round; its plan stands in it already."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, max_disk: int | None = None) -> None:
        """Open ``folder``, whose downloads and token files may take ``max_disk`` bytes at any moment."""
        self.folder, self.max_disk = folder, max_disk
        self._tokenizer = tokenizer
        self._journal = Journal(folder)
        self._plan = self._journal.load()
        self._trained = trained_on(self._plan)
        self._always_the_same = len(self._trained) == 1 and self._trained[0].cut != "stories"
        self._oldest = self._current = 0  # the first round that is still needed, and the one that is written
        self._room = _Room(max_disk, lambda: self._oldest < self._current)

    @classmethod
    def reopen(cls, folder: Path, max_disk: int | None = None) -> SegmentStore:
        """Open a folder whose first round was prepared, with the tokenizer that lies there."""
        return cls(folder, Tokenizer.load(folder / HELD_OUT / TOKENIZER), max_disk)

    def is_ready(self, number: int) -> bool:
        """Return whether a round can be read."""
        return self._journal.is_complete(self._place(number))

    def tokens(self, number: int) -> int | None:
        """Return the tokens of a round; None where that is not known, as its chunk was never prepared."""
        entry = self._ledger().get(self._key(number))
        return None if entry is None else entry["tokens"]

    def stream(self, number: int) -> TokenStream:
        """Return the tokens of a round that is ready, after checking every byte of its files.

        Raises:
            InputError: One is missing or was changed.
        """
        place = self._place(number)
        folder = self._journal.of(place)
        shards = [open_shard(folder / info.name) for info in self._journal.record(place).shards]
        found = [checked_sha256(shard, self._tokenizer.n_vocab) for shard in shards]
        if found != self._ledger()[self._key(number)]["sha256"]:
            raise InputError(f"{folder}: changed since it was written; delete the folder and go on with --resume")
        return TokenStream(str(folder), shards)

    def prepare_first(self, config: PrepareConfig) -> None:
        """Prepare the first round and what is held out, unless that was done. Raises what `prepare` does."""
        if not (self.folder / HELD_OUT / MANIFEST).exists():
            apart = Journal(self.folder / HELD_OUT)
            given = {p.split: p for p in reversed(self._plan.chunks) if p.split in ("test", "val")}  # the first ones
            chunks = tuple(given.values())
            plan = Plan(self._plan.arguments, SplitRule("given", 0.0, 0.0), chunks or (self._chunk(0),))
            apart.plan(plan.arguments, lambda: plan)
            for index, chunk in enumerate(chunks):
                apart.complete(index, self._write(chunk, apart, index))
            if not chunks:
                self._divide_first(apart)
            finish(plan, apart, self._tokenizer, config, self.folder / HELD_OUT)
        self.prepare(0)

    def prepare(self, number: int) -> None:
        """Write a round, unless it is ready; wait for room where earlier ones will make some.

        Raises:
            DiskFull: It does not fit.
            Unreachable: A download failed again and again.
            InputError: A source cannot be read, or gives other bytes than the first time.
        """
        if not self.is_ready(number):
            self._current = number
            self._complete(number, self._write(self._chunk(number), self._journal, self._place(number)))

    def prepare_ahead(self) -> None:
        """Prepare rounds for ever, at most `AHEAD` beyond the oldest that `keep_from` keeps."""
        number = self._oldest
        while True:
            with self._room.changed:
                self._room.changed.wait_for(lambda wanted=number: wanted <= self._oldest + AHEAD)
                number = max(number, self._oldest)
                missing = not self.is_ready(number)  # then nobody can be past it, and it is not deleted meanwhile
            if missing:
                self.prepare(number)
            number += 1

    def keep_from(self, first: int) -> None:
        """Delete the rounds before ``first``."""
        with self._room.changed:
            self._oldest = max(self._oldest, first)
            for number in self._numbers():
                if number < self._place(first):
                    self._delete(number)
            self._room.changed.notify_all()

    def remove_all(self) -> None:
        """Delete every round; the plan, the ledger and what is held out stay."""
        for number in self._numbers():
            self._delete(number)

    def tidy(self, first: int) -> None:
        """Begin with ``first``: delete what a stop left, and rounds not next to those in use, which need their room."""
        remove_temporary(self.folder)
        self._oldest = first
        if self._always_the_same:
            return
        wanted = next(number for number in itertools.count(first) if not self.is_ready(number))
        for number in self._numbers():
            if not first <= number <= wanted:
                self._delete(number)

    def _numbers(self) -> list[int]:
        return [int(path.name) for path in self._journal.folder.iterdir() if path.name.isdigit()]

    def _delete(self, number: int) -> None:
        folder = self._journal.of(number)
        size = bytes_below(folder)
        (folder / "record.json").unlink(missing_ok=True)  # first, so that it is not ready half
        shutil.rmtree(folder, ignore_errors=True)
        self._room.release(size)

    def _place(self, number: int) -> int:
        """Return the number of the folder of the journal that a round lies in."""
        return 0 if self._always_the_same else number

    def _chunk(self, number: int) -> Chunk:
        first = self._trained[0]
        if first.cut == "stories":
            return replace(first, start=number * first.stop, stop=(number + 1) * first.stop)
        return self._trained[number % len(self._trained)]

    def _key(self, number: int) -> str:
        """Return what the ledger calls a round: the number of its chunk."""
        return str(number if self._trained[0].cut == "stories" else number % len(self._trained))

    def _ledger(self) -> dict[str, Any]:
        path = self.folder / "ledger.json"
        return read_json(path) if path.exists() else {}

    def _write(self, chunk: Chunk, journal: Journal, index: int) -> Record:
        """Write a chunk's token files to its folder of a journal."""
        folder = journal.begin(index)
        with self._room.changed:
            self._room.used = bytes_below(self.folder)
        arguments = self._plan.arguments
        writing = Writing(
            folder=folder,
            tokenizer=self._tokenizer,
            rule=self._plan.rule,
            split=chunk.split,
            shard_tokens=arguments["shard_tokens"],
            reserve=self._room.reserve,
            advance=lambda documents, size, tokens: None,
            cleaner=Cleaner(0, deduplicate=False, seen=np.empty(0, dtype=np.uint64)),
            keeps_hashes=False,
        )
        with explaining_full_disk(self.folder, chunk.download + output_bytes([chunk], self._tokenizer)):
            return write_chunk(chunk, writing, self._room)

    def _divide_first(self, apart: Journal) -> None:
        """Write the first round, and move what is held out of it to the journal that keeps it."""
        record = self._write(self._chunk(0), self._journal, 0)
        folder = apart.begin(0)
        held_out = tuple(shard for shard in record.shards if shard.split != "train")
        for shard in held_out:
            (self._journal.of(0) / shard.name).replace(folder / shard.name)
        splits = {name: split for name, split in record.splits.items() if name != "train"}
        apart.complete(0, replace(record, splits=splits, shards=held_out))
        self._complete(0, record)

    def _complete(self, number: int, record: Record) -> None:
        """Enter a round in the ledger, and keep of it what is to be trained on.

        Raises:
            InputError: The ledger has other bytes for it, or there is nothing to train on.
        """
        shards = tuple(shard for shard in record.shards if shard.split == "train")
        if not shards:
            raise InputError(f"{self._named(number)}: holds no text to train on; take another corpus")
        entry = {"tokens": sum(shard.tokens for shard in shards), "sha256": [shard.sha256 for shard in shards]}
        ledger = self._ledger()
        if (before := ledger.setdefault(self._key(number), entry)) != entry:
            raise InputError(
                f"{self._named(number)}: gives {entry['tokens']:,} tokens that are not the {before['tokens']:,} of "
                "the first time: the source was changed, and the run cannot go on exactly"
            )
        write_json(self.folder / "ledger.json", ledger)
        for shard in record.shards:
            if shard not in shards:
                (self._journal.of(self._place(number)) / shard.name).unlink(missing_ok=True)
        self._journal.complete(
            self._place(number), replace(record, splits={"train": record.splits["train"]}, shards=shards)
        )

    def _named(self, number: int) -> str:
        files = ", ".join(file.name for file in self._chunk(number).files[:3])
        return f"round {number} of {', '.join(self._plan.arguments['sources'])} ({files or 'written here'})"


class _Room(DiskBudget):
    """A budget that waits where what is in the way will be deleted; ``changed`` guards it, and says when to look."""

    def __init__(self, limit: int | None, more_will_come: Callable[[], bool]) -> None:
        super().__init__(limit)
        self.changed = threading.Condition()
        self._more_will_come = more_will_come

    def reserve(self, size: int) -> None:
        with self.changed:
            while self.limit is not None and self.used + size > self.limit:
                if not self._more_will_come():
                    raise DiskFull(
                        f"a round of this corpus and what is held out take {self.used + size:,} bytes or more, "
                        f"--max-disk allows {self.limit:,}; go on with more"
                    )
                self.changed.wait()
            self.used += size

    def release(self, size: int) -> None:
        with self.changed:
            self.used -= size
            self.changed.notify_all()


def trained_on(plan: Plan) -> tuple[Chunk, ...]:
    """Return the chunks of a plan that are to be trained on, wholly or but for what is held out of them."""
    return tuple(chunk for chunk in plan.chunks if chunk.split in ("", "train"))


LOG = "preparer.log"


class Ahead:
    """The process that prepares rounds from ``first`` on, within a ``with`` block."""

    def __init__(self, rounds: SegmentStore, first: int) -> None:
        self._rounds = rounds
        self._first = first
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]  # this very code, wherever it lies
        command = [sys.executable, "-m", "gpt2lab.data.preparer", str(self._rounds.folder), str(self._first)]
        with (self._rounds.folder / LOG).open("wb") as log:
            self._process = subprocess.Popen(
                [*command, str(self._rounds.max_disk or 0)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
                start_new_session=True,  # Ctrl-C is training's to handle
            )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.kill()  # what it has under way is done again
        self._process.wait()
        with contextlib.suppress(OSError):  # it was told something that it no longer read
            self._process.stdin.close()

    def keep_from(self, first: int) -> None:
        """Have the rounds before ``first`` deleted."""
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(OSError):  # it ended, as who waits for it will be told
            self._process.stdin.write(f"{first}\n".encode())
            self._process.stdin.flush()

    def require_running(self) -> None:
        """Raise `InputError` with what the process said last, where it has ended."""
        assert self._process is not None
        if (code := self._process.poll()) is None:
            return
        path = self._rounds.folder / LOG
        said = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if code == 2 and said:
            raise InputError(f"preparing ahead: {said[-1]} (training is saved: go on with --resume)")
        why = said[-1] if said else f"exit status {code}"
        raise InputError(f"the process that prepares ahead ended ({why}); see {path}, and go on with --resume")


class StreamingDataset:
    """Stands where a `TokenDataset` does; what is known before anything is prepared is in its ``manifest``."""

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        directory: Path,
        max_disk: int | None = None,
        column: str | None = None,
    ) -> None:
        """Take the corpus ``name``, any source of `documents`, prepared in ``directory``, where it may be begun.

        ``column`` is that of `documents`.

        Raises:
            InputError: The tokenizer has no ``<|endoftext|>``.
        """
        if tokenizer.eot is None:
            raise InputError(f"the tokenizer has no {END_OF_TEXT}, which stands between documents; train one with it")
        self.directory = directory
        self._tokenizer = tokenizer
        self._max_disk = max_disk
        self._config = PrepareConfig((name,), column=column)
        made_with = TokenizerInfo(tokenizer.fingerprint, tokenizer.n_vocab, tokenizer.eot)
        self.manifest = DataManifest(source_info(self._config), made_with, SplitRule("given", 0.0, 0.0), {}, ())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the plan: which chunks there are, at which commit, and how they become tokens.

        Raises:
            InputError: The corpus is unknown, cannot be reached, or was begun here with another tokenizer.
            DiskFull: No round of it fits.
        """
        return hashlib.sha256(json.dumps(asdict(self._plan()), sort_keys=True).encode()).hexdigest()

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer."""
        return self._tokenizer

    def held_out(self) -> TokenDataset:
        """Return what is held out, with the first round prepared as well. Raises what `prepare` does."""
        self._plan()
        self.segments().prepare_first(self._config)
        return TokenDataset(self.directory / HELD_OUT)

    @contextmanager
    def discard_if_refused(self) -> Iterator[None]:
        """Delete what a block began to prepare, where it ends in an error that the same command would meet again."""
        was_there = self.directory.exists()
        try:
            yield
        except (DiskFull, Unreachable):
            raise
        except InputError:
            if not was_there:
                shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def segments(self) -> SegmentStore:
        """Return what is trained on."""
        return SegmentStore(self.directory, self._tokenizer, self._max_disk)

    def move_to(self, directory: Path) -> None:
        """Move all that was prepared."""
        self.directory = self.directory.rename(directory)

    def _plan(self) -> Plan:
        make = partial(_plan_rounds, self._config, self._tokenizer, self._max_disk)
        return Journal(self.directory).plan(self._config.arguments(self._tokenizer), make)


def _plan_rounds(config: PrepareConfig, tokenizer: Tokenizer, max_disk: int | None) -> Plan:
    plan = make_plan(config, tokenizer, None, 1)
    if not (trained := trained_on(plan)):
        raise InputError(f"{config.sources[0]}: has no split to train on; take another corpus")
    needed = max(chunk.download + output_bytes([chunk], tokenizer) for chunk in trained)
    if max_disk is not None and needed > max_disk:
        raise DiskFull(
            f"{config.sources[0]}: about {needed:,} bytes are needed (a download and its tokens), --max-disk allows "
            f"{max_disk:,}; give more, and twice as much to have the next round ready in time"
        )
    return plan


log = logging.getLogger("gpt2lab")
_POLL_SECONDS = 0.05


class StreamLoader:
    """The training batches of a corpus that is prepared round by round; the arguments are those of `Loader`."""

    def __init__(
        self,
        rounds: SegmentStore,
        seq_len: int,
        sequences_per_step: int,
        micro_batch: int,
        seed: int,
        world: int = 1,
        rank: int = 0,
        eot: int | None = None,
    ) -> None:
        self.micro_steps = micro_steps(sequences_per_step * seq_len, seq_len, micro_batch, world)
        self._rounds = rounds
        self._how = (seq_len, sequences_per_step, micro_batch, seed, world, rank, eot)
        self._begins = [0]  # the first step of each round whose size is known, and of the one after
        self._open: dict[int, Loader] = {}
        self._guard = threading.RLock()  # threads read ahead
        self._ahead: Ahead | None = None
        self._check: Callable[[], None] = lambda: None
        self._over = False

    def batch(self, step: int, micro_step: int) -> Batch:
        """Return the batch of a micro-step; wait until its round is ready.

        Raises:
            InputError: The process that prepares rounds has ended, or the round is smaller than a step.
        """
        if not self.is_ready(step):
            self._wait_for(step)
        loader, begin = self._loader(step)
        return loader.batch(step - begin, micro_step)

    def windows(self, step: int, micro_step: int, rank: int | None = None) -> np.ndarray:
        """Return the numbers of the windows of that batch within its round, (B,)."""
        loader, begin = self._loader(step)
        return loader.windows(step - begin, micro_step, rank)

    def epoch_of(self, step: int) -> float:
        """Return the rounds completed when ``step`` steps are."""
        number = self.segment_of(step)
        if number + 1 == len(self._begins):  # at the border to a round not known yet
            return float(number)
        begin, end = self._begins[number : number + 2]
        return number + (step - begin) / (end - begin)

    def segment_of(self, step: int) -> int:
        """Return the round that a step reads, or the first whose size is not known, or less than a step."""
        seq_len, sequences = self._how[:2]
        with self._guard:
            while step >= self._begins[-1]:
                number = len(self._begins) - 1
                steps = ((self._rounds.tokens(number) or 1) - 1) // seq_len // sequences
                if not steps:
                    return number
                self._begins.append(self._begins[-1] + steps)
            return bisect_right(self._begins, step) - 1

    def is_ready(self, step: int) -> bool:
        """Return whether the batches of a step can be read now."""
        number = self.segment_of(step)
        return number + 1 < len(self._begins) and self._rounds.is_ready(number)

    def begins_segment(self, step: int) -> bool:
        """Return whether a step is the first of its round."""
        self.segment_of(step)
        return step in self._begins

    @contextmanager
    def preparing_ahead(self, step: int, check: Callable[[], None]) -> Iterator[None]:
        """Have the rounds from that of a step on prepared by another process within the block.

        Args:
            step: The first step that will be read.
            check: Called again and again where a batch must wait for its round; what it raises ends the waiting.
        """
        with Ahead(self._rounds, self.segment_of(step)) as ahead:
            self._ahead, self._check = ahead, check
            yield
        if self._over:
            self._rounds.remove_all()

    def release(self, step: int, over: bool) -> None:
        """Have the rounds deleted that are not read from ``step`` on, all where the run is ``over``.

        To be called when the state after ``step`` steps is saved.
        """
        number, self._over = self.segment_of(step), over
        with self._guard:
            for old in [n for n in self._open if n < number]:
                del self._open[old]
        assert self._ahead is not None
        self._ahead.keep_from(number)

    def _wait_for(self, step: int) -> None:
        log.info("waiting for round %d of the data to be prepared", self.segment_of(step))
        assert self._ahead is not None
        while not self.is_ready(step):
            self._check()
            require_one_step(self._rounds, self.segment_of(step), self._how[0] * self._how[1])
            self._ahead.require_running()
            time.sleep(_POLL_SECONDS)

    def _loader(self, step: int) -> tuple[Loader, int]:
        number = self.segment_of(step)
        with self._guard:
            if number not in self._open:
                self._open[number] = Loader(self._rounds.stream(number), *self._how, first_epoch=number)
            return self._open[number], self._begins[number]


def require_one_step(rounds: SegmentStore, number: int, batch_tokens: int) -> None:
    """Raise `InputError` where a round is known to be smaller than a step."""
    tokens = rounds.tokens(number)
    if tokens is not None and tokens - 1 < batch_tokens:
        raise InputError(
            f"round {number} of the data has {tokens:,} tokens, less than a step of {batch_tokens:,} takes; "
            "start anew with a smaller --batch-tokens"
        )
