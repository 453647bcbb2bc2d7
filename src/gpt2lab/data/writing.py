"""A portion of text to token files: documents -> parts of splits -> batches of pieces -> ids -> shards, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice, tee
from pathlib import Path

import numpy as np

from gpt2lab.data.cleaning import Cleaner, write_hashes
from gpt2lab.data.document import Document
from gpt2lab.data.journal import Record
from gpt2lab.data.manifest import ShardInfo, SplitInfo
from gpt2lab.data.shards import HEADER_BYTES, ShardWriter, checked_sha256, format_for, open_shard
from gpt2lab.data.split import SPLITS, Part, SplitRule, hash_of
from gpt2lab.errors import InputError
from gpt2lab.tokenizer import Tokenizer
from gpt2lab.tokenizer.pretokenize import PATTERNS

_BATCH_CHARACTERS = 1 << 17
"""Text that a thread of the encoder takes at once."""
_GPT2 = "7e6b205346b649bbd0f3dc1b6c593f259ffeeca9fa9f0ada295c1438faa431f3"
"""Fingerprint of GPT-2's own tokenizer."""


@dataclass
class Writing:
    """How a portion is written: where, by which rule of splits or to which split, in files of what size."""

    folder: Path
    tokenizer: Tokenizer
    rule: SplitRule
    split: str
    shard_tokens: int
    reserve: Callable[[int], None]
    advance: Callable[[int, int, int], None]
    """Told the documents, bytes of text and tokens of the portion so far."""
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
    """Write the token files of a portion's documents, of at most ``limit``, and return what they hold."""
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
    """Take a token file of GPT-2's ids as it is: count what it holds, and move it to the portion's folder.

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
