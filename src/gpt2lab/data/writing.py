"""One chunk of text to token files within a bound on disk space, and the journal of the chunks that are finished.

    documents -> the part for each split -> batches of text -> ids -> shards, in one pass

    OUT/preparing/plan.json             the arguments, the split rule and all chunks, fixed when preparing begins
       /preparing/00002/source/         what was downloaded for chunk 2, deleted once the chunk is finished
       /preparing/00002/*.bin           its shards
       /preparing/00002/record.json     what they hold; a chunk is finished when this file exists

So preparing can be stopped at any moment: chunks without a record are written again, and nothing else.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice, repeat, tee
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt2lab.data.dataset import JOURNAL, NOTHING, ShardInfo, SplitInfo, text_bytes
from gpt2lab.data.documents import SPLITS, Document, Part, SplitRule, hash_of, write_hashes
from gpt2lab.data.shards import ShardWriter, TokenStream, checked_sha256, format_for, mask_of, open_shard
from gpt2lab.data.sources import Chunk, files_of, read_chunk
from gpt2lab.errors import InputError, TemporaryError
from gpt2lab.files import bytes_below, from_json, is_full, read_json, sha256_of, temporary_name, write_json
from gpt2lab.tokenizer.pretokenize import PATTERNS
from gpt2lab.tokenizer.tokenizer import END_OF_TEXT, Tokenizer

SOURCE = "source"
_KEPT = "completed files are kept: run the same command again"
_BATCH_CHARACTERS = 1 << 17
"""Text that one thread of the encoder processes at once."""
_GPT2 = "7e6b205346b649bbd0f3dc1b6c593f259ffeeca9fa9f0ada295c1438faa431f3"
"""Fingerprint of GPT-2's tokenizer."""


class DiskFull(TemporaryError):
    """The disk, or the part of it that may be used, is full; with more space the same command resumes."""


class DiskBudget:
    """Limits the bytes of downloads and token files on the disk. ``changed`` guards it and is notified of deletions."""

    def __init__(self, limit: int | None, used: int = 0, more_will_come: Callable[[], bool] = lambda: False) -> None:
        """Allow ``limit`` bytes, and beyond it wait for deletions while ``more_will_come`` is true."""
        self.limit, self.used = limit, used
        self.changed = threading.Condition()
        self._more_will_come = more_will_come

    def reserve(self, size: int) -> None:
        """Count bytes that are about to be written. Raises `DiskFull` if they exceed the limit."""
        with self.changed:
            while self.limit is not None and self.used + size > self.limit:
                if not self._more_will_come():
                    raise DiskFull(
                        f"downloads and shards take {self.used + size:,} bytes or more, but --max-disk allows "
                        f"{self.limit:,}; {_KEPT} with more"
                    )
                self.changed.wait()
            self.used += size

    def release(self, size: int) -> None:
        """Count bytes that were deleted."""
        with self.changed:
            self.used -= size
            self.changed.notify_all()


@contextmanager
def explaining_full_disk(folder: Path, needed: int) -> Iterator[None]:
    """Turn the error of a full disk into `DiskFull`, with the bytes needed and free.

    Args:
        folder: The directory that is written, which need not exist yet.
        needed: Estimated bytes that are still to be written.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        raise DiskFull(
            f"{folder}: the disk is full ({error.strerror}): about {needed:,} bytes are needed, {free:,} are free; "
            f"{_KEPT} with more space"
        ) from error


@dataclass(frozen=True)
class PreparePlan:
    """What is prepared: the arguments that decide every byte, the split rule, and the chunks."""

    arguments: dict[str, Any]
    rule: SplitRule
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class ChunkRecord:
    """What a finished chunk holds. ``documents`` counts those read, including the dropped; ``skipped`` are files."""

    documents: int
    short: int
    duplicates: int
    splits: dict[str, SplitInfo]
    shards: tuple[ShardInfo, ...]
    skipped: dict[str, str] = field(default_factory=dict)


class _Piece(NamedTuple):
    """A piece of a document's text for one split; ``first`` marks the first one, with which ``bits`` are counted.

    ``counts`` says whether it counts in the loss.
    """

    split: str
    text: str
    first: bool
    bits: float | None
    counts: bool


@dataclass
class ChunkWriter:
    """Writes the shards of one chunk.

    Attributes:
        folder: Where they are written; downloads go to its subdirectory `SOURCE`, which the caller deletes.
        budget: Limits the bytes of downloads and shards.
        skip: Whether to skip files that cannot be read.
        keep_hashes: Whether to also write the hashes of the documents.
        seen: Hashes of earlier documents, sorted, of which no copies are kept.
        advance: Called with what is written so far.
    """

    chunk: Chunk
    folder: Path
    tokenizer: Tokenizer
    plan: PreparePlan
    budget: DiskBudget
    skip: bool = False
    keep_hashes: bool = False
    seen: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    advance: Callable[[SplitInfo], None] = lambda written: None

    def write(self, limit: int | None = None) -> ChunkRecord:
        """Write the chunk, or its first ``limit`` documents, and return what the shards hold."""
        if limit == 0:
            return ChunkRecord(0, 0, 0, {}, ())
        source, arguments = self.folder / SOURCE, self.plan.arguments
        if self.chunk.download:
            source.mkdir(exist_ok=True)
            self.budget.reserve(self.chunk.download - bytes_below(source))
        paths = files_of(self.chunk, source)
        if self.chunk.cut == "tokens":
            return self._take_tokens(paths[0])
        self._read = self._short = self._duplicates = 0
        self._hashes: dict[str, list[int]] = {split: [] for split in SPLITS}
        self._written: dict[str, SplitInfo] = dict.fromkeys(SPLITS, NOTHING)
        variant, size = format_for(self.tokenizer.n_vocab), arguments["shard_tokens"]
        self._masked = self.chunk.cut == "chat"
        special = self.tokenizer.special_tokens.keys() - {END_OF_TEXT}
        self._special = frozenset(special if arguments.get("special_tokens") else ())
        how = (variant, size, self.budget.reserve, self._masked)
        shards = {split: ShardWriter(self.folder, split, *how) for split in SPLITS}
        skipped: dict[str, str] = {}
        documents = read_chunk(self.chunk, paths, skipped if self.skip else None)
        try:
            self._write_documents(islice(documents, limit), shards)
        finally:
            for writer in shards.values():
                writer.abandon()
        if self.keep_hashes:
            write_hashes(self.folder, self._hashes)
        infos = [self._describe(path, split) for split, writer in shards.items() for path in writer.paths]
        self.budget.release(self.chunk.download)  # the caller deletes it
        splits = {split: info for split, info in self._written.items() if info.documents}
        return ChunkRecord(self._read, self._short, self._duplicates, splits, tuple(infos), skipped)

    def _write_documents(self, documents: Iterable[Document], shards: dict[str, ShardWriter]) -> None:
        batches, texts = tee(self._batches(documents))
        eot = np.array([self.tokenizer.eot], dtype=np.int64)
        ends_reply: dict[str, bool] = dict.fromkeys(SPLITS, False)
        encoded = self.tokenizer.encode_arrays(([piece.text for piece in batch] for batch in texts), self._special)
        for batch, ids_of_batch in zip(batches, encoded, strict=True):
            for (split, text, first, bits, counts), ids in zip(batch, ids_of_batch, strict=True):
                if first:
                    ids = np.concatenate([eot, ids])
                counted = np.full(len(ids), counts)
                if first:  # the end of text ends the document before
                    counted[0] = ends_reply[split]
                ends_reply[split] = counts
                shards[split].write(ids, counted)
                self._written[split] += SplitInfo(
                    int(first), len(ids), len(text.encode("utf-8")), bits if first else 0.0
                )
            self.advance(sum(self._written.values(), NOTHING))
        for writer in shards.values():
            writer.finish()

    def _batches(self, documents: Iterable[Document]) -> Iterator[list[_Piece]]:
        """Yield the text of the documents that are kept, in batches of about `_BATCH_CHARACTERS`."""
        # A pre-token of a custom pattern, or a special token, may span the boundary of two pieces of a document.
        whole = (self.tokenizer.pattern not in PATTERNS or self._special) and not self._masked
        batch: list[_Piece] = []
        characters = 0
        for part in self._parts(documents):
            pieces = zip(["".join(part.pieces)] if whole else part.pieces, part.counts or repeat(True), strict=False)
            for index, (text, counts) in enumerate(pieces):
                batch.append(_Piece(part.split, text, index == 0, part.bits, counts))
                characters += len(text)
                if characters >= _BATCH_CHARACTERS:
                    yield batch
                    batch, characters = [], 0
        if batch:
            yield batch

    def _parts(self, documents: Iterable[Document]) -> Iterator[Part]:
        """Yield the part for each split of every document that is kept."""
        split, rule, new = self.chunk.split, self.plan.rule, set[int]()
        for document in documents:
            self._read += 1
            if (least := self.plan.arguments["min_length"]) and sum(map(len, document.pieces())) < least:
                self._short += 1
                continue
            hashed = hash_of(document) if self.keep_hashes or rule.by == "hash" else 0
            if self.plan.arguments["deduplicate"]:
                at = np.searchsorted(self.seen, np.uint64(hashed))
                if hashed in new or hashed in self.seen[at : at + 1]:
                    self._duplicates += 1
                    continue
                new.add(hashed)
            whole = Part(split, document.pieces(), document.bits, document.counts)
            parts = [whole] if split else rule.parts(document, hashed)
            for number, part in enumerate(parts):
                if self.keep_hashes and number == 0:
                    self._hashes[part.split].append(hashed)
                yield part

    def _describe(self, path: Path, split: str) -> ShardInfo:
        shard = open_shard(path)
        mask_sha256 = sha256_of(mask_of(path)) if mask_of(path).exists() else None
        sha256 = checked_sha256(shard, self.tokenizer.n_vocab)
        return ShardInfo(path.name, split, shard.tokens, sha256, mask_sha256=mask_sha256)

    def _take_tokens(self, source: Path) -> ChunkRecord:
        """Move a file of GPT-2 ids to the chunk's directory unchanged, and count what it holds.

        Raises:
            InputError: The tokenizer is not GPT-2's, or the file is damaged or holds an id beyond the vocabulary.
        """
        tokenizer, split = self.tokenizer, self.chunk.split
        if tokenizer.fingerprint != _GPT2:
            raise InputError(f"{source.name}: holds ids of GPT-2's own tokenizer; give that one with --tokenizer")
        path = self.folder / f"{split}_000000.bin"
        source.replace(path)
        shard = self._describe(path, split)
        counts = np.zeros(tokenizer.n_vocab, dtype=np.int64)
        for ids in TokenStream(str(path), [open_shard(path)]).blocks():
            counts += np.bincount(ids, minlength=len(counts))
        info = SplitInfo(int(counts[tokenizer.eot]), shard.tokens, text_bytes(counts, tokenizer), None)
        self.advance(info)
        return ChunkRecord(info.documents, 0, 0, {split: info}, (shard,))


class Journal:
    """The plan and the chunks of an unfinished preparation of the directory ``out``."""

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out / JOURNAL
        self._plan = self.folder / "plan.json"

    def plan(self, arguments: dict[str, Any], make: Callable[[], PreparePlan]) -> PreparePlan:
        """Return the plan that is already there, or write the one that ``make`` returns.

        Raises:
            InputError: The existing plan was made with other arguments; the message names one that differs.
        """
        if not self._plan.exists():
            plan = make()
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(
                    f"{self.out}: cannot be created ({error.strerror}); choose another directory"
                ) from error
            self._write_unless_there(asdict(plan))
        plan = self.load()
        for name in plan.arguments | arguments:
            if (begun := plan.arguments.get(name)) != (value := arguments.get(name)):
                raise InputError(
                    f"{self.out}: incomplete and begun with {name} {begun}, now {value}; resume with the "
                    "same arguments, or delete the directory"
                )
        return plan

    def load(self) -> PreparePlan:
        """Return the plan. Raises `InputError` if there is none."""
        return from_json(PreparePlan, read_json(self._plan), self._plan)

    def _write_unless_there(self, tree: dict[str, Any]) -> None:
        """Write the plan, unless another process writes one first, which then applies to both."""
        beside = temporary_name(self._plan)
        write_json(beside, tree)
        try:
            os.link(beside, self._plan)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            beside.replace(self._plan)
        finally:
            beside.unlink(missing_ok=True)

    def chunk(self, index: int) -> Path:
        """Return the directory of a chunk."""
        return self.folder / f"{index:05d}"

    def is_complete(self, index: int) -> bool:
        """Return whether a chunk is finished."""
        return self._record(index).exists()

    def begin(self, index: int) -> Path:
        """Create the directory of a chunk, or delete everything in it but downloads; return it."""
        folder = self.chunk(index)
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            if path.name != SOURCE:
                path.unlink()
        return folder

    def complete(self, index: int, record: ChunkRecord) -> None:
        """Record that a chunk is finished, and delete its downloads."""
        write_json(self._record(index), asdict(record))
        self.delete_downloads(index)

    def delete_downloads(self, index: int) -> None:
        """Delete what was downloaded for a chunk, if it is still there."""
        shutil.rmtree(self.chunk(index) / SOURCE, ignore_errors=True)

    def record(self, index: int) -> ChunkRecord:
        """Return what a finished chunk holds."""
        return from_json(ChunkRecord, read_json(self._record(index)), self._record(index))

    def _record(self, index: int) -> Path:
        return self.chunk(index) / "record.json"

    def remove(self) -> None:
        """Delete the journal."""
        shutil.rmtree(self.folder, ignore_errors=True)
