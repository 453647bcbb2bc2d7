"""A chunk of text to token files: documents -> parts of splits -> batches of pieces -> ids -> shards, in one pass."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice, tee
from pathlib import Path
from typing import Any

import numpy as np

from gpt2lab.data.documents import Document
from gpt2lab.data.selection import SPLITS, Cleaner, Part, SplitRule, hash_of, write_hashes
from gpt2lab.data.shards import (
    HEADER_BYTES,
    WORK,
    ShardInfo,
    ShardWriter,
    SplitInfo,
    checked_sha256,
    format_for,
    open_shard,
)
from gpt2lab.data.sources import Chunk
from gpt2lab.errors import InputError
from gpt2lab.files import read_json, temporary_name, write_json
from gpt2lab.tokenizer.pretokenize import PATTERNS
from gpt2lab.tokenizer.tokenizer import Tokenizer

SOURCE = "source"


@dataclass(frozen=True)
class Plan:
    """What is prepared: the arguments that decide every byte, how documents are split, and the chunks."""

    arguments: dict[str, Any]
    rule: SplitRule
    chunks: tuple[Chunk, ...]

    @property
    def keeps_hashes(self) -> bool:
        """Whether hashes are needed: to leave out duplicates, or because splits were made by others."""
        return bool(self.arguments["deduplicate"]) or any(chunk.split for chunk in self.chunks)


@dataclass(frozen=True)
class Record:
    """What a complete chunk holds. ``documents`` counts those read, also the short and the repeated left out."""

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
        return Plan(tree["arguments"], SplitRule(**tree["rule"]), tuple(map(Chunk.parse, tree["chunks"])))

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
        """Return the folder of a chunk."""
        return self.folder / f"{index:05d}"

    def is_complete(self, index: int) -> bool:
        """Return whether a chunk is done."""
        return (self.of(index) / "record.json").exists()

    def begin(self, index: int) -> Path:
        """Return the empty folder of a chunk, where only what was fetched is left."""
        folder = self.of(index)
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            if path.name != SOURCE:
                path.unlink()
        return folder

    def complete(self, index: int, record: Record) -> None:
        """Write that a chunk is done, and delete what was fetched of it."""
        write_json(self.of(index) / "record.json", asdict(record))
        self.delete_fetched(index)

    def delete_fetched(self, index: int) -> None:
        """Delete what was fetched of a chunk, if it is still there."""
        shutil.rmtree(self.of(index) / SOURCE, ignore_errors=True)

    def record(self, index: int) -> Record:
        """Return what a complete chunk holds."""
        tree = read_json(self.of(index) / "record.json")
        splits = {name: SplitInfo(**split) for name, split in tree["splits"].items()}
        return Record(**{**tree, "splits": splits, "shards": tuple(ShardInfo(**shard) for shard in tree["shards"])})

    def finish(self, index: int, info: ShardInfo, name: str) -> ShardInfo:
        """Give a token file of a chunk its name in the folder that is prepared."""
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


_BATCH_CHARACTERS = 1 << 17
"""Text that a thread of the encoder takes at once."""
_GPT2 = "7e6b205346b649bbd0f3dc1b6c593f259ffeeca9fa9f0ada295c1438faa431f3"
"""Fingerprint of GPT-2's own tokenizer."""


@dataclass
class Writing:
    """How a chunk is written: where, by which rule of splits or to which split, in files of what size."""

    folder: Path
    tokenizer: Tokenizer
    rule: SplitRule
    split: str
    shard_tokens: int
    reserve: Callable[[int], None]
    advance: Callable[[int, int, int], None]
    """Told the documents, bytes of text and tokens of the chunk so far."""
    cleaner: Cleaner
    keeps_hashes: bool
    hashes: dict[str, list[int]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    read: int = 0


@dataclass(frozen=True)
class _Piece:
    """A stretch of a document's text; ``begins`` marks the first, which carries the document's bits."""

    split: str
    text: str
    begins: bool
    bits: float | None


class _Output:
    """One split while it is written: its files and what they hold so far."""

    def __init__(self, writer: ShardWriter, eot: int) -> None:
        self.writer = writer
        self._eot = eot
        self.documents = self.bytes = self.tokens = 0
        self._bits: float | None = 0.0

    def add(self, piece: _Piece, ids: np.ndarray) -> None:
        if piece.begins:
            ids = np.concatenate([[self._eot], ids])
            self.documents += 1
            self._bits = None if self._bits is None or piece.bits is None else self._bits + piece.bits
        self.bytes += len(piece.text.encode("utf-8"))
        self.tokens += len(ids)
        self.writer.write(ids)

    def info(self) -> SplitInfo:
        return SplitInfo(self.documents, self.tokens, self.bytes, self._bits)


def write_documents(found: Iterable[Document], how: Writing, limit: int | None) -> Record:
    """Write the token files of a chunk's documents, of at most ``limit``, and return what they hold."""
    eot = how.tokenizer.eot
    assert eot is not None
    form = format_for(how.tokenizer.n_vocab)
    outputs = {s: _Output(ShardWriter(how.folder, s, form, how.shard_tokens, how.reserve), eot) for s in SPLITS}
    try:
        whole = how.tokenizer.pattern not in PATTERNS  # words of one's own pattern may go on where pieces are cut
        batches, texts = tee(_batches(_pieces(_parts(islice(found, limit), how), whole)))
        encoded = how.tokenizer.encode_arrays([piece.text for piece in batch] for batch in texts)
        for batch, ids_of_batch in zip(batches, encoded, strict=True):
            for piece, ids in zip(batch, ids_of_batch, strict=True):
                outputs[piece.split].add(piece, ids)
            done = outputs.values()
            how.advance(sum(o.documents for o in done), sum(o.bytes for o in done), sum(o.tokens for o in done))
        for output in outputs.values():
            output.writer.finish()
    finally:
        for output in outputs.values():
            output.writer.abandon()
    if how.keeps_hashes:
        write_hashes(how.folder, how.hashes)
    shards = [_describe(path, split, how.tokenizer) for split, o in outputs.items() for path in o.writer.paths]
    splits = {split: output.info() for split, output in outputs.items() if output.documents}
    return Record(how.read, how.cleaner.short, how.cleaner.duplicates, splits, tuple(shards))


def _parts(found: Iterable[Document], how: Writing) -> Iterator[Part]:
    """Yield what goes to which split of the documents that are kept."""
    for document in found:
        how.read += 1
        hashed = hash_of(document) if how.keeps_hashes or how.rule.by == "hash" else None
        if not how.cleaner.keeps(document, hashed):
            continue
        parts = [Part(how.split, document.pieces(), document.bits)] if how.split else how.rule.parts(document, hashed)
        for number, part in enumerate(parts):
            if how.keeps_hashes and hashed is not None and number == 0:
                how.hashes[part.split].append(hashed)
            yield part


def _pieces(parts: Iterable[Part], whole: bool) -> Iterator[_Piece]:
    for part in parts:
        for index, text in enumerate(["".join(part.pieces)] if whole else part.pieces):
            yield _Piece(part.split, text, index == 0, part.bits if index == 0 else None)


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _describe(path: Path, split: str, tokenizer: Tokenizer) -> ShardInfo:
    shard = open_shard(path)
    return ShardInfo(path.name, split, shard.tokens, checked_sha256(shard, tokenizer.n_vocab))


def take_tokens(source: Path, how: Writing) -> Record:
    """Take a token file of GPT-2's ids as it is: count what it holds, and move it to the chunk's folder.

    Raises:
        InputError: The tokenizer is not GPT-2's, or the file is damaged or holds an id that is none.
    """
    if how.tokenizer.fingerprint != _GPT2:
        raise InputError(f"{source.name}: holds ids of GPT-2's own tokenizer; give that with --tokenizer")
    path = how.folder / f"{how.split}_000000.bin"
    source.replace(path)
    info = _describe(path, how.split, how.tokenizer)
    lengths = np.zeros(how.tokenizer.n_vocab, dtype=np.int64)
    for number, token in how.tokenizer.vocab.items():
        lengths[number] = 0 if number == how.tokenizer.eot else len(token)
    counts = _counts(path, how.tokenizer.n_vocab)
    documents = int(counts[how.tokenizer.eot])
    how.advance(documents, int(counts @ lengths), info.tokens)
    split = SplitInfo(documents, info.tokens, int(counts @ lengths), None)
    return Record(documents, 0, 0, {how.split: split}, (info,))


def _counts(path: Path, n_vocab: int) -> np.ndarray:
    """Return how often each id comes."""
    shard = open_shard(path)
    counts = np.zeros(n_vocab, dtype=np.int64)
    with path.open("rb") as file:
        file.seek(HEADER_BYTES)
        while block := file.read(1 << 22):
            counts += np.bincount(np.frombuffer(block, dtype=shard.dtype), minlength=n_vocab)
    return counts
