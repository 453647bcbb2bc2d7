"""Documents of a file, the split that each belongs to, and which of them are kept.

    file.jsonl.gz -> Document, Document, ... -> Part of train, val or test -> pieces of text

Files are text, JSON lines or Parquet, plain or compressed: ``.gz`` is read by the standard library, ``.zst`` by
pyarrow. Reading is sequential, with bounded memory. A damaged file raises `InputError` wherever it is noticed.

The split is a function of the document. By hash, u = blake2b(text) / 2**64 is uniform in [0, 1), and

    u < val  ->  val        val <= u < val + test  ->  test        else  ->  train

so copies of a document are in the same split, and no test document is in the training text. A few documents would be
split too unevenly, so each is cut in three instead:

    | train: the first 1 - (val + test) of its characters | val | test |

For a single file with val 0.1 and test 0, this is the usual split of Tiny Shakespeare.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import importlib
import io
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, cast

import numpy as np

from gpt2lab.errors import InputError, did_you_mean
from gpt2lab.files import write_atomically
from gpt2lab.tokenizer.tokenizer import END_OF_TEXT

COMPRESSED = (".gz", ".zst")
ERRORS = ("strict", "replace")
"""What to do with bytes that are not UTF-8: reject the file, or replace them by U+FFFD."""
DEFAULT_COLUMN = "text"
PIECE = 1 << 18
"""Characters, or bytes of a file, in a piece of text: enough that the overhead is negligible, and few enough to
distribute over threads. A longer document of a file is not held as text but as its position in the file."""
SPLITS = ("train", "val", "test")
FEW_DOCUMENTS = 100
"""With fewer documents, each is cut in three instead of being assigned whole."""
_BLOCK = 1 << 20
_HELD_COMPRESSED = 1 << 26
"""Bytes up to which a document of a compressed file is held: reading it again decompresses everything before it."""
_ROWS = 256
"""Rows of Parquet that are decoded at once."""
_Decoder = codecs.getincrementaldecoder("utf-8")
_BOM = b"\xef\xbb\xbf"
_BOUNDARY = re.compile(r".*(?:\S(?= )|[0-9A-Za-z](?=\n))", re.DOTALL)
_HASHES = "{split}.hashes"
"""File with a chunk's hashes of a split: 8 bytes per document, in order."""


def is_compressed(path: Path) -> bool:
    """Return whether a file is compressed, by its suffix."""
    return path.suffix.lower() in COMPRESSED


@contextmanager
def open_bytes(path: Path, start: int = 0) -> Iterator[BinaryIO]:
    """Open a file at byte ``start`` of its content, decompressed if its suffix says that it is compressed.

    Raises:
        InputError: The file cannot be read or is damaged, when it is opened or while it is read.
    """
    try:
        with _open(path) as file:
            if is_compressed(path):
                while start and (skipped := file.read(min(_BLOCK, start))):
                    start -= len(skipped)
            else:
                file.seek(start)
            yield file
    except (EOFError, zlib.error, OSError) as error:
        if why := getattr(error, "strerror", None):
            raise InputError(f"{path}: cannot be read ({why}); give a file that you may read") from error
        raise InputError(f"{path}: damaged or truncated ({error}); download or compress it again") from error


def _open(path: Path) -> BinaryIO:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if suffix == ".zst":
        stream = _needed("pyarrow", path).input_stream(str(path), compression="zstd")
        return cast(BinaryIO, io.BufferedReader(stream, _BLOCK))
    return path.open("rb")


def _needed(module: str, path: Path) -> Any:
    """Import an optional module. Raises `InputError` that names the extra if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{path}: needs pyarrow, which is not installed: pip install 'gpt2lab[hub]'") from error


@dataclass(frozen=True)
class TextDocument:
    """A document in memory; ``bits`` is its exact -log2 probability, if known."""

    text: str
    bits: float | None = None

    def pieces(self) -> Iterator[str]:
        """Yield the text in order, cut where no token can span the cut."""
        starts = range(0, len(self.text), PIECE)
        return _cut_at_boundaries(self.text[start : start + PIECE] for start in starts)


@dataclass(frozen=True)
class FileDocument:
    """A long document that stays in its file: bytes ``start`` to ``stop`` of the decompressed content."""

    path: Path
    start: int
    stop: int
    bits: float | None = None
    errors: str = "strict"

    def pieces(self) -> Iterator[str]:
        """Yield the text in order, cut where no token can span the cut. Raises `InputError` if it is not UTF-8."""
        with open_bytes(self.path, self.start) as file:
            blocks = (file.read(min(PIECE, self.stop - at)) for at in range(self.start, self.stop, PIECE))
            yield from _cut_at_boundaries(_decoded(blocks, self.path, self.start, self.stop, self.errors))


Document: TypeAlias = TextDocument | FileDocument


def _decoded(blocks: Iterable[bytes], path: Path, start: int, stop: int, errors: str) -> Iterator[str]:
    """Yield the text of bytes ``start`` to ``stop`` of a file, with its line ends as they are.

    Raises:
        InputError: ``errors`` is strict and a byte is zero or not UTF-8 (with its offset), or the blocks end early.
    """
    decoder = _Decoder(errors)
    for block in blocks:
        if errors == "strict" and (zero := block.find(0)) >= 0:
            raise InputError(f"{path}: not a text file: a zero byte at offset {start + zero}; give UTF-8 text")
        start += len(block)
        try:
            yield decoder.decode(block, final=start == stop)
        except UnicodeDecodeError as error:  # its object is the block and what was left of the one before
            at = start - len(error.object) + error.start
            raise InputError(
                f"{path}: not UTF-8: byte 0x{error.object[error.start]:02x} at offset {at}; "
                "save it as UTF-8, or use --errors replace"
            ) from error
    if start < stop:
        raise InputError(f"{path}: became shorter while it was read; leave it unchanged and try again")


def _cut_at_boundaries(chunks: Iterable[str]) -> Iterator[str]:
    """Regroup text so that each piece but the last ends where no word of the splitting patterns continues."""
    held: list[str] = []
    for chunk in chunks:
        if held and (boundary := _BOUNDARY.match(held[-1])):
            last = held.pop()
            yield "".join([*held, last[: boundary.end()]])
            held = [last[boundary.end() :]]
        held.append(chunk)
    if rest := "".join(held):
        yield rest


def format_of(path: Path) -> str:
    """Return ``.txt``, ``.jsonl`` or ``.parquet``; any other suffix is text."""
    suffix = (path.with_suffix("") if is_compressed(path) else path).suffix.lower()
    return {".json": ".jsonl", ".jsonl": ".jsonl", ".parquet": ".parquet"}.get(suffix, ".txt")


def read_documents(path: Path, column: str = DEFAULT_COLUMN, errors: str = "strict") -> Iterator[Document]:
    """Yield the documents of a file that are not blank.

    Args:
        path: The file.
        column: The key or column of the text, for JSON lines and Parquet.
        errors: What to do with bytes that are not UTF-8; one of `ERRORS`.

    Raises:
        InputError: The file cannot be read or is damaged, has no such column (lists those it has), holds a line that
            is not a JSON object (with its number) or bytes that are not text (with their offset), or is blank.
    """
    found = False
    for document in _READERS[format_of(path)](path, column, errors):
        if any(piece.strip() for piece in document.pieces()):
            found = True
            yield document
    if not found:
        raise InputError(f"{path}: the file holds nothing but white space; give a file that holds text")


def _text_documents(path: Path, column: str, errors: str) -> Iterator[Document]:
    held = _HELD_COMPRESSED if is_compressed(path) else PIECE
    with open_bytes(path) as file:
        for start, stop, data in _between_separators(file, held):
            if data is None:
                yield FileDocument(path, start, stop, errors=errors)
            elif data:
                yield TextDocument("".join(_decoded([data], path, start, stop, errors)))


def _between_separators(file: BinaryIO, held: int) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield start and stop of each document, and its bytes if there are at most ``held``."""
    separator = END_OF_TEXT.encode()
    buffer = bytearray(file.read(_BLOCK))
    start = base = len(_BOM) if buffer.startswith(_BOM) else 0  # base: the offset of the buffer's first byte
    del buffer[:start]

    def document(size: int) -> tuple[int, int, bytes | None]:
        whole = base == start and size <= held
        return start, base + size, bytes(buffer[:size]) if whole else None

    searched = 0
    while True:
        while (found := buffer.find(separator, searched)) >= 0:
            yield document(found)
            del buffer[: found + len(separator)]
            start = base = base + found + len(separator)
            searched = 0
        if (excess := len(buffer) - len(separator) + 1) > held:
            del buffer[:excess]
            base += excess
        searched = max(0, len(buffer) - len(separator) + 1)  # the end may be the beginning of a separator
        if not (block := file.read(_BLOCK)):
            break
        buffer += block
    yield document(len(buffer))


def _json_documents(path: Path, column: str, errors: str) -> Iterator[Document]:
    with open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(_BOM) if number == 1 else line
            if not line.isspace():
                yield TextDocument(_text_of_line(line, f"{path}: line {number}", column, errors))


def _text_of_line(line: bytes, where: str, column: str, errors: str) -> str:
    try:
        value = json.loads(line.decode("utf-8", errors))
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 at byte {error.start}; correct it or use --errors replace") from error
    except (RecursionError, ValueError) as error:
        why = "holds a number with too many digits"
        if isinstance(error, json.JSONDecodeError):
            why = f"not JSON ({error.msg} at character {error.colno})"
        elif isinstance(error, RecursionError):
            why = "nested too deeply"
        raise InputError(f"{where}: {why}; correct or remove it") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: {_kind(value)}, not a JSON object with a key for the text; correct or remove it")
    _require_column(where, column, value)
    text = value[column]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise InputError(f'{where}: "{column}" is {_kind(text)}, not text; name another with --column')
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can escape half a surrogate pair, which UTF-8 cannot encode
        if errors == "replace":
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        raise InputError(
            f"{where}: half a surrogate pair at character {error.start}; correct it or use --errors replace"
        ) from error
    return text


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _require_column(where: str, column: str, columns: Iterable[str]) -> None:
    names = list(columns)
    if column not in names:
        known = ", ".join(names[:20]) or "none"
        raise InputError(f'{where}: has no column "{column}"{did_you_mean(column, names)}; there are: {known}')


def _parquet_documents(path: Path, column: str, errors: str) -> Iterator[Document]:
    return map(TextDocument, read_rows(path, column, errors))


def read_rows(path: Path, column: str, errors: str) -> Iterator[str]:
    """Yield the text of every row of a Parquet file, also of blank ones. Raises `InputError` as `read_documents`."""
    arrow, parquet = _needed("pyarrow", path), _needed("pyarrow.parquet", path)
    try:
        # With a bounded buffer and no read-ahead, memory holds pages of a row group, not the whole group.
        with _seekable(path) as whole, parquet.ParquetFile(whole, buffer_size=_BLOCK, pre_buffer=False) as file:
            schema = file.schema_arrow
            _require_column(str(path), column, schema.names)
            if (kind := str(schema.field(column).type).removeprefix("large_")) not in ("string", "string_view"):
                raise InputError(f'{path}: column "{column}" holds {kind}, not text; name another with --column')
            batches = (batch.column(0) for batch in file.iter_batches(batch_size=_ROWS, columns=[column]))
            values = chain.from_iterable(batch.cast("large_binary").to_pylist() for batch in batches)
            for row, value in enumerate(values):
                yield _text_of_row(value or b"", f"{path}: row {row}", errors)
    except (arrow.ArrowException, OSError) as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: not a complete Parquet file ({why}); download it again") from error


def _text_of_row(value: bytes, where: str, errors: str) -> str:
    try:
        return value.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 at byte {error.start}; correct it or use --errors replace") from error


@contextmanager
def _seekable(path: Path) -> Iterator[Path | BinaryIO]:
    """Yield what Parquet can be read from, beginning at its end: a file, or a decompressed temporary copy of it."""
    if not is_compressed(path):
        yield path
        return
    with tempfile.TemporaryFile() as copy:
        with open_bytes(path) as packed:
            shutil.copyfileobj(packed, copy, _BLOCK)
        copy.seek(0)
        yield copy


_READERS: dict[str, Callable[[Path, str, str], Iterator[Document]]] = {
    ".txt": _text_documents,
    ".jsonl": _json_documents,
    ".parquet": _parquet_documents,
}


@dataclass(frozen=True)
class Part:
    """A document, or a section of one, that belongs to one split."""

    split: str
    pieces: Iterator[str]
    bits: float | None


@dataclass(frozen=True)
class SplitRule:
    """How documents are split: whole by ``"hash"``, each cut in three by ``"position"``, or as ``"given"``."""

    by: Literal["hash", "position", "given"]
    val_fraction: float
    test_fraction: float

    def __post_init__(self) -> None:
        for name, fraction in (("val", self.val_fraction), ("test", self.test_fraction)):
            if not 0.0 <= fraction < 1.0:
                raise InputError(f"the {name} fraction is {fraction}; it must be 0 or more and less than 1")
        if self.val_fraction + self.test_fraction >= 1.0:
            raise InputError(
                f"the val and test fractions {self.val_fraction} and {self.test_fraction} leave nothing to train on; "
                "their sum must be less than 1"
            )

    def parts(self, document: Document, hashed: int | None = None) -> Iterator[Part]:
        """Yield the parts of a document; read each before the next.

        Args:
            document: A document.
            hashed: Its hash, if it is known already.
        """
        held_out = self.val_fraction + self.test_fraction
        if self.by == "hash":
            u = (hash_of(document) if hashed is None else hashed) / 2**64
            split = "val" if u < self.val_fraction else "test" if u < held_out else "train"
            yield Part(split, document.pieces(), document.bits)
            return
        n = sum(map(len, document.pieces()))
        edges = (0, int(n * (1.0 - held_out)), int(n * (1.0 - self.test_fraction)), n)
        for split, start, stop in zip(SPLITS, edges[:-1], edges[1:], strict=True):
            if start < stop:
                yield Part(split, _section(document.pieces(), start, stop), None)


def hash_of(document: Document) -> int:
    """Return 64 bits of BLAKE2b of a document's text."""
    digest = hashlib.blake2b(digest_size=8)
    for piece in document.pieces():
        digest.update(piece.encode("utf-8"))
    return int.from_bytes(digest.digest(), "big")


def _section(pieces: Iterator[str], start: int, stop: int) -> Iterator[str]:
    """Yield the characters from ``start`` to ``stop`` of a text given in pieces."""
    position = 0
    for piece in pieces:
        if text := piece[max(0, start - position) : max(0, stop - position)]:
            yield text
        position += len(piece)
        if position >= stop:
            return


def write_hashes(folder: Path, hashes: dict[str, list[int]]) -> None:
    """Write the hashes of each split's documents to the directory of a chunk."""
    for split, values in hashes.items():
        write_atomically(folder / _HASHES.format(split=split), np.array(values, dtype="<u8").tobytes())


def read_hashes(folders: list[Path], splits: tuple[str, ...]) -> np.ndarray:
    """Return the hashes of some splits of some chunks, sorted."""
    files = [folder / _HASHES.format(split=split) for folder in folders for split in splits]
    hashes = [np.fromfile(file, dtype="<u8") for file in files if file.exists()]
    return np.sort(np.concatenate(hashes)) if hashes else np.empty(0, dtype="<u8")


def overlap(folders: list[Path]) -> int:
    """Return how many documents of validation and test are also in train."""
    held_out = read_hashes(folders, ("val", "test"))
    in_train = np.zeros(len(held_out), dtype=bool)
    for folder in folders:  # one chunk at a time, so that memory holds only the held-out hashes
        in_train |= np.isin(held_out, read_hashes([folder], ("train",)))
    return int(in_train.sum())
