"""From text to a folder of token files: read, assign to a split, encode, write, and describe in a manifest.

    documents -> parts of splits -> batches of pieces -> ids -> shards          one pass, bounded memory

Every document begins with ``<|endoftext|>``, as in llm.c's files:

    eot d d d d eot d d eot d d d ...

so what is predicted of a document has a context that begins where it does, and a split of D documents has D tokens more
than its text. All but the first token are predicted: every token of the text once, and D - 1 ends. By the chain rule
their loss is on average at least the documents' -log2 probabilities (an end that is certain costs nothing).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias

import numpy as np

from gpt2lab.data.dataset import TOKENIZER, TokenDataset
from gpt2lab.data.document import Document
from gpt2lab.data.manifest import DataManifest, ShardInfo, SourceInfo, SplitInfo, TokenizerInfo, is_half_written
from gpt2lab.data.shards import ShardWriter, checked_sha256, format_for, open_shard
from gpt2lab.data.sources import documents
from gpt2lab.data.split import FEW_DOCUMENTS, SplitRule
from gpt2lab.errors import InputError
from gpt2lab.tokenizer import END_OF_TEXT, Tokenizer
from gpt2lab.tokenizer.pretokenize import PATTERNS

Progress: TypeAlias = Callable[[int, int, int], None]
"""Called with the documents, bytes of text and tokens written so far."""

_BATCH_CHARACTERS = 1 << 21
"""Text encoded at once: enough to keep every thread of the encoder busy."""


def prepare(
    sources: Sequence[str],
    tokenizer: Tokenizer,
    out: Path,
    *,
    seed: int = 0,
    max_documents: int | None = None,
    column: str | None = None,
    errors: str = "strict",
    val_fraction: float = 0.05,
    test_fraction: float = 0.05,
    shard_tokens: int = 100_000_000,
    progress: Progress | None = None,
) -> TokenDataset:
    """Write the sources' tokens to the new folder ``out`` and open it. The same arguments give the same bytes.

    Args:
        sources: Files, folders, patterns, names of corpora; see `documents`.
        tokenizer: Encodes the text; saved with the data.
        out: Folder to make; it must not exist. Removed again if preparing fails.
        seed: Seed of the embedded corpus.
        max_documents: Take only the first so many documents.
        column: Where the text of JSON lines and Parquet stands; ``text`` by default.
        errors: What to do with files that are not UTF-8: ``"strict"`` or ``"replace"``.
        val_fraction: Share held out for validation; 0 for none. See `split` for how.
        test_fraction: Share held out for the test; 0 for none.
        shard_tokens: Tokens in a file.
        progress: Told how far it is after each batch.

    Raises:
        InputError: ``out`` exists, a source cannot be read, an argument is out of range, or a split would be
            empty, or the tokenizer has no ``<|endoftext|>``.
    """
    eot = _end_of_text(tokenizer)
    found = documents(sources, seed=seed, max_documents=max_documents, column=column, errors=errors)
    first = list(islice(found, FEW_DOCUMENTS))
    rule = SplitRule("position" if len(first) < FEW_DOCUMENTS else "hash", val_fraction, test_fraction)
    form = format_for(tokenizer.n_vocab)
    outputs = {split: _Output(ShardWriter(out, split, form, shard_tokens), eot) for split in rule.wanted()}
    _make_folder(out)
    try:
        tokenizer.save(out / TOKENIZER)
        _write(chain(first, found), rule, tokenizer, outputs, progress)
        _require_all(outputs, rule)
        DataManifest(
            source=SourceInfo(tuple(sources), seed, max_documents, column, errors),
            tokenizer=TokenizerInfo(tokenizer.fingerprint, tokenizer.n_vocab, eot),
            split_rule=rule,
            splits={split: output.info() for split, output in outputs.items()},
            shards=tuple(
                _describe(path, output, tokenizer) for output in outputs.values() for path in output.writer.paths
            ),
        ).save(out)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)  # it is ours: it did not exist before
        raise
    return TokenDataset(out)


def _end_of_text(tokenizer: Tokenizer) -> int:
    if tokenizer.eot is None:
        raise InputError(f"the tokenizer has no {END_OF_TEXT}, which stands between documents; train one with it")
    return tokenizer.eot


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True)
    except FileExistsError as error:
        raise InputError(f"{out}: {_what_exists(out)}") from error
    except OSError as error:
        raise InputError(f"{out}: the folder cannot be made ({error.strerror}); choose another") from error


def _what_exists(out: Path) -> str:
    if is_half_written(out):
        return "half-written, as preparing it was stopped; delete the folder and try again"
    return "exists already and is left as it is; choose a folder that does not exist"


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

    def add(self, piece: _Piece, ids: list[int]) -> None:
        if piece.begins:
            ids = [self._eot, *ids]
            self.documents += 1
            self._bits = None if self._bits is None or piece.bits is None else self._bits + piece.bits
        self.bytes += len(piece.text.encode("utf-8"))
        self.tokens += len(ids)
        self.writer.write(np.array(ids, dtype=self.writer.form.dtype))

    def info(self) -> SplitInfo:
        return SplitInfo(self.documents, self.tokens, self.bytes, self._bits)


def _write(
    found: Iterable[Document],
    rule: SplitRule,
    tokenizer: Tokenizer,
    outputs: dict[str, _Output],
    progress: Progress | None,
) -> None:
    try:
        whole = tokenizer.pattern not in PATTERNS  # words of one's own pattern may go on where pieces are cut
        for batch in _batches(_pieces(found, rule, whole)):
            encoded = tokenizer.encode_batch([piece.text for piece in batch])
            for piece, ids in zip(batch, encoded, strict=True):
                outputs[piece.split].add(piece, ids)
            if progress is not None:
                done = outputs.values()
                progress(sum(o.documents for o in done), sum(o.bytes for o in done), sum(o.tokens for o in done))
        for output in outputs.values():
            output.writer.finish()
    finally:
        for output in outputs.values():
            output.writer.abandon()


def _pieces(found: Iterable[Document], rule: SplitRule, whole: bool) -> Iterator[_Piece]:
    for document in found:
        for part in rule.parts(document):
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


def _require_all(outputs: dict[str, _Output], rule: SplitRule) -> None:
    empty = [split for split, output in outputs.items() if not output.documents]
    if empty:
        total = sum(output.documents for output in outputs.values())
        raise InputError(
            f"no text is left for the {' and '.join(empty)} split: {total} parts of documents, val fraction "
            f"{rule.val_fraction}, test fraction {rule.test_fraction}; give more text, a larger fraction, or 0 for none"
        )


def _describe(path: Path, output: _Output, tokenizer: Tokenizer) -> ShardInfo:
    shard = open_shard(path)
    return ShardInfo(path.name, output.writer.split, shard.tokens, checked_sha256(shard, tokenizer.n_vocab))
