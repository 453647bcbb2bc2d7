"""How far preparing is, so that it can go on after any stop: a folder inside the one that is prepared.

    OUT/preparing/plan.json                    what was asked for, how it is split, all portions in their order
        .../claims                             locked where a process works; see `claim`
        .../00012/record.json                  portion 12 is complete: what its files hold
        .../00012/train_000000.bin ...         its token files
        .../00012/source/                      what is fetched of it, until it is written

A portion without a record is done again from its beginning, on what was fetched already. When all have one, the token
files get their names in OUT and the manifest is written; then the folder goes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2lab.data.manifest import WORK, ShardInfo, SplitInfo
from gpt2lab.data.portions import Portion
from gpt2lab.data.split import SplitRule
from gpt2lab.errors import InputError
from gpt2lab.files import read_json, temporary_name, write_json

SOURCE = "source"


@dataclass(frozen=True)
class Plan:
    """What is prepared: the arguments that decide every byte, how documents are split, and the portions."""

    arguments: dict[str, Any]
    rule: SplitRule
    portions: tuple[Portion, ...]

    @property
    def keeps_hashes(self) -> bool:
        """Whether hashes are needed: to leave out duplicates, or because splits were made by others."""
        return bool(self.arguments["deduplicate"]) or any(portion.split for portion in self.portions)


@dataclass(frozen=True)
class Record:
    """What a complete portion holds. ``documents`` counts those read, also the short and the repeated left out."""

    documents: int
    short: int
    duplicates: int
    splits: dict[str, SplitInfo]
    shards: tuple[ShardInfo, ...]


class Journal:
    """The folder of a preparation under way in ``out``."""

    def __init__(self, out: Path) -> None:
        self.folder = out / WORK

    def plan(self, arguments: dict[str, Any], make: Callable[[], Plan]) -> Plan:
        """Return the plan that was begun with these arguments, or begin with a new one.

        Raises:
            InputError: Another was begun here; says in what it differs.
        """
        if not self._plan.exists():
            plan = make()
            self._make_folder()
            self._write_first(asdict(plan))
        plan = self.load()
        for name, value in arguments.items():
            if (begun := plan.arguments.get(name)) != value:
                raise InputError(
                    f"{self.folder.parent}: half-written with {name} {begun}, now {value}; go on with the same "
                    "arguments, or delete the folder"
                )
        return plan

    def load(self) -> Plan:
        """Return the plan that was begun. Raises `InputError` where there is none."""
        tree = read_json(self._plan)
        return Plan(tree["arguments"], SplitRule(**tree["rule"]), tuple(map(Portion.parse, tree["portions"])))

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.folder.parent}: the folder cannot be made ({error.strerror}); choose another"
            ) from error

    @property
    def _plan(self) -> Path:
        return self.folder / "plan.json"

    def _write_first(self, tree: dict[str, Any]) -> None:
        """Write the plan unless another process was quicker, whose plan then counts."""
        beside = temporary_name(self._plan)
        write_json(beside, tree)
        try:
            os.link(beside, self._plan)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            beside.replace(self._plan)
        finally:
            beside.unlink(missing_ok=True)

    def of(self, index: int) -> Path:
        """Return the folder of a portion."""
        return self.folder / f"{index:05d}"

    def is_complete(self, index: int) -> bool:
        """Return whether a portion is done."""
        return (self.of(index) / "record.json").exists()

    def begin(self, index: int) -> Path:
        """Return the empty folder of a portion, where only what was fetched is left."""
        folder = self.of(index)
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            if path.name != SOURCE:
                path.unlink()
        return folder

    def complete(self, index: int, record: Record) -> None:
        """Write that a portion is done, and delete what was fetched of it."""
        write_json(self.of(index) / "record.json", asdict(record))
        self.delete_fetched(index)

    def delete_fetched(self, index: int) -> None:
        """Delete what was fetched of a portion, if it is still there."""
        shutil.rmtree(self.of(index) / SOURCE, ignore_errors=True)

    def record(self, index: int) -> Record:
        """Return what a complete portion holds."""
        tree = read_json(self.of(index) / "record.json")
        splits = {name: SplitInfo(**split) for name, split in tree["splits"].items()}
        return Record(**{**tree, "splits": splits, "shards": tuple(ShardInfo(**shard) for shard in tree["shards"])})

    def finish(self, index: int, info: ShardInfo, name: str) -> ShardInfo:
        """Give a token file of a portion its name in the folder that is prepared."""
        target = self.folder.parent / name
        try:
            (self.of(index) / info.name).replace(target)
        except FileNotFoundError:
            if not target.exists():  # an earlier call, or another process, was quicker
                raise
        return ShardInfo(name, info.split, info.tokens, info.sha256)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
