"""A corpus as rounds that come and go, for a disk that does not hold it: each is prepared, read once, and deleted.

    round    0         1         2         3                 a round is a portion of the corpus (see `portions`):
             deleted   in use    ready     being written     a file of a hub, files of this machine, 10,000 stories

    STREAM/preparing/plan.json      every portion, at the hub's commit of the day: what a round holds never changes
          /preparing/00002/         round 2, kept as `journal` keeps a portion
          /ledger.json              tokens and SHA-256 of each portion that was ever written to be trained on
          /held-out/                what the first round holds out, or comes held out: prepared data, kept for good

After the last portion comes the first again; the stories never end. A round that is needed again, because training went
back, is prepared again, and must give the bytes of the ledger. Where there is but one portion, every round is the same:
it is prepared once, and kept. One process at a time writes here.
"""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gpt2lab.data.cleaning import Cleaner
from gpt2lab.data.dataset import TOKENIZER
from gpt2lab.data.disk import DiskBudget, DiskFull, bytes_below, explaining_full_disk
from gpt2lab.data.finishing import finish
from gpt2lab.data.journal import Journal, Plan, Record
from gpt2lab.data.manifest import MANIFEST
from gpt2lab.data.planning import Recipe, output_bytes
from gpt2lab.data.portions import Portion
from gpt2lab.data.prepare import write_portion
from gpt2lab.data.shards import checked_sha256, open_shard
from gpt2lab.data.split import SplitRule
from gpt2lab.data.stream import TokenStream
from gpt2lab.data.writing import Writing
from gpt2lab.errors import InputError
from gpt2lab.files import read_json, remove_temporary, write_json
from gpt2lab.tokenizer import Tokenizer

HELD_OUT = "held-out"
AHEAD = 2
"""Rounds that may lie prepared behind the one in use."""


class Rounds:
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
    def reopen(cls, folder: Path, max_disk: int | None = None) -> Rounds:
        """Open a folder whose first round was prepared, with the tokenizer that lies there."""
        return cls(folder, Tokenizer.load(folder / HELD_OUT / TOKENIZER), max_disk)

    def is_ready(self, number: int) -> bool:
        """Return whether a round can be read."""
        return self._journal.is_complete(self._place(number))

    def tokens(self, number: int) -> int | None:
        """Return the tokens of a round; None where that is not known, as its portion was never prepared."""
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

    def prepare_first(self, recipe: Recipe) -> None:
        """Prepare the first round and what is held out, unless that was done. Raises what `prepare` does."""
        if not (self.folder / HELD_OUT / MANIFEST).exists():
            apart = Journal(self.folder / HELD_OUT)
            given = {p.split: p for p in reversed(self._plan.portions) if p.split in ("test", "val")}  # the first ones
            portions = tuple(given.values())
            plan = Plan(self._plan.arguments, SplitRule("given", 0.0, 0.0), portions or (self._portion(0),))
            apart.plan(plan.arguments, lambda: plan)
            for index, portion in enumerate(portions):
                apart.complete(index, self._write(portion, apart, index))
            if not portions:
                self._divide_first(apart)
            finish(plan, apart, self._tokenizer, recipe, self.folder / HELD_OUT)
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
            self._complete(number, self._write(self._portion(number), self._journal, self._place(number)))

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

    def _portion(self, number: int) -> Portion:
        first = self._trained[0]
        if first.cut == "stories":
            return replace(first, start=number * first.stop, stop=(number + 1) * first.stop)
        return self._trained[number % len(self._trained)]

    def _key(self, number: int) -> str:
        """Return what the ledger calls a round: the number of its portion."""
        return str(number if self._trained[0].cut == "stories" else number % len(self._trained))

    def _ledger(self) -> dict[str, Any]:
        path = self.folder / "ledger.json"
        return read_json(path) if path.exists() else {}

    def _write(self, portion: Portion, journal: Journal, index: int) -> Record:
        """Write a portion's token files to its folder of a journal."""
        folder = journal.begin(index)
        with self._room.changed:
            self._room.used = bytes_below(self.folder)
        arguments = self._plan.arguments
        writing = Writing(
            folder=folder,
            tokenizer=self._tokenizer,
            rule=self._plan.rule,
            split=portion.split,
            shard_tokens=arguments["shard_tokens"],
            reserve=self._room.reserve,
            advance=lambda documents, size, tokens: None,
            cleaner=Cleaner(0, deduplicate=False, seen=np.empty(0, dtype=np.uint64)),
            keeps_hashes=False,
        )
        with explaining_full_disk(self.folder, portion.download + output_bytes([portion], self._tokenizer)):
            return write_portion(portion, writing, self._room)

    def _divide_first(self, apart: Journal) -> None:
        """Write the first round, and move what is held out of it to the journal that keeps it."""
        record = self._write(self._portion(0), self._journal, 0)
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
        files = ", ".join(file.name for file in self._portion(number).files[:3])
        return f"round {number} of {', '.join(self._plan.arguments['names'])} ({files or 'written here'})"


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


def trained_on(plan: Plan) -> tuple[Portion, ...]:
    """Return the portions of a plan that are to be trained on, wholly or but for what is held out of them."""
    return tuple(portion for portion in plan.portions if portion.split in ("", "train"))
