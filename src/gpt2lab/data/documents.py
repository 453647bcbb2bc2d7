"""Files of bytes, plain or compressed, opened by their suffix: ``.gz`` by the standard library, ``.zst`` by pyarrow.

Reading is forward, memory bounded. What a damaged file does in the midst of reading becomes one line.
"""

from __future__ import annotations

import codecs
import gzip
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
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

from gpt2lab.errors import InputError, did_you_mean
from gpt2lab.tokenizer.tokenizer import END_OF_TEXT

COMPRESSED = (".gz", ".zst")
_BLOCK = 1 << 17


def need(module: str, what: str) -> Any:
    """Import an optional module.

    Raises:
        InputError: It is not installed; says which extra brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise InputError(f"{what} needs {package}, which is not installed: pip install 'gpt2lab[hub]'") from error


def is_compressed(path: Path) -> bool:
    """Return whether a file is compressed, by its suffix."""
    return path.suffix.lower() in COMPRESSED


@contextmanager
def open_bytes(path: Path, start: int = 0) -> Iterator[BinaryIO]:
    """Open a file at byte ``start``, unpacked where its suffix says that it is compressed.

    Raises:
        InputError: It cannot be read, or is not whole: at once or while it is read.
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
        raise InputError(f"{path}: damaged or cut off ({error}); fetch or compress it again") from error


def _open(path: Path) -> BinaryIO:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(_unpacked(path), _BLOCK))
    return path.open("rb")


def _unpacked(path: Path) -> Any:
    return need("pyarrow", f"{path}: reading it").input_stream(str(path), compression="zstd")


ERRORS = ("strict", "replace")
"""What to do with bytes of a file that are not UTF-8: refuse the file, or put U+FFFD for them and go on."""


def decoded(blocks: Iterable[bytes], path: Path, start: int, stop: int, errors: str) -> Iterator[str]:
    """Yield the text of the bytes from ``start`` to ``stop`` of a file, exactly (no line end is changed).

    Raises:
        InputError: ``errors`` is strict and a byte is zero or not UTF-8 (with its offset), or the blocks end early.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace") if errors == "replace" else None
    pending = b""
    position = start
    for block in blocks:
        if not block:
            raise InputError(f"{path}: the file became shorter while it was read; leave it alone and try again")
        position += len(block)
        if decoder is not None:
            yield decoder.decode(block, final=position == stop)
            continue
        data = pending + block
        text, pending = _strictly(data, path, position - len(data), last=position == stop)
        yield text


def _strictly(data: bytes, path: Path, base: int, last: bool) -> tuple[str, bytes]:
    """Return the text of ``data``, which stands at byte ``base``, and the bytes of a character cut off at its end."""
    if (zero := data.find(0)) >= 0:
        raise InputError(f"{path}: not a text file: a zero byte at offset {base + zero}; give UTF-8 text")
    try:
        return data.decode("utf-8"), b""
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and not last:
            return data[: error.start].decode("utf-8"), data[error.start :]
        at = base + error.start
        raise InputError(
            f"{path}: not UTF-8: byte 0x{data[error.start]:02x} at offset {at}; "
            "save it as UTF-8, or go on with --errors replace"
        ) from error


PIECE = 1 << 18
"""Characters, or bytes of a file, in a piece: many enough that reading costs nothing, few enough to share out to
threads. A document of a file that is longer is not kept as text but as its place."""
_BOUNDARY = re.compile(r".*(?:\S(?= )|[0-9A-Za-z](?=\n))", re.DOTALL)


@dataclass(frozen=True)
class TextDocument:
    """A document in memory; ``bits`` is its exact -log2 probability where that is known."""

    text: str
    bits: float | None = None

    def pieces(self) -> Iterator[str]:
        """Yield the text in order, cut where no token reaches across."""
        starts = range(0, len(self.text), PIECE)
        return _cut_at_boundaries(self.text[start : start + PIECE] for start in starts)


@dataclass(frozen=True)
class FileDocument:
    """A long document that stays in its file: the bytes from ``start`` to ``stop``, unpacked where it is compressed."""

    path: Path
    start: int
    stop: int
    bits: float | None = None
    errors: str = "strict"

    def pieces(self) -> Iterator[str]:
        """Yield the text in order, cut where no token reaches across. Raises `InputError` where it is not UTF-8."""
        with open_bytes(self.path, self.start) as file:
            blocks = _blocks(file.read, self.stop - self.start)
            yield from _cut_at_boundaries(decoded(blocks, self.path, self.start, self.stop, self.errors))


Document: TypeAlias = TextDocument | FileDocument


def _blocks(read: Callable[[int], bytes], size: int) -> Iterator[bytes]:
    while size > 0:
        block = read(min(PIECE, size))
        yield block
        size -= len(block)


def _cut_at_boundaries(chunks: Iterable[str]) -> Iterator[str]:
    """Regroup chunks so that each but the last ends where no word of the splitting patterns goes on."""
    held: list[str] = []
    for chunk in chunks:
        if held and (boundary := _BOUNDARY.match(held[-1])):
            last = held.pop()
            yield "".join([*held, last[: boundary.end()]])
            held = [last[boundary.end() :]]
        held.append(chunk)
    if rest := "".join(held):
        yield rest


DEFAULT_COLUMN = "text"
_READ_BLOCK = 1 << 20
"""Bytes in which a file is searched for separators."""
_HELD_COMPRESSED = 1 << 26
"""Bytes up to which a document of a compressed file is held: to read it again means to unpack all before it."""
_ROWS = 256
"""Rows of Parquet turned into text at once."""
_BOM = b"\xef\xbb\xbf"


def format_of(path: Path) -> str:
    """Return ``.txt``, ``.jsonl`` or ``.parquet``; a name that says neither is text."""
    plain = path.with_suffix("") if is_compressed(path) else path
    suffix = plain.suffix.lower()
    return {".json": ".jsonl", ".jsonl": ".jsonl", ".parquet": ".parquet"}.get(suffix, ".txt")


def read_documents(path: Path, column: str = DEFAULT_COLUMN, errors: str = "strict") -> Iterator[Document]:
    """Yield the documents of a file.

    Args:
        path: The file.
        column: The key or column that holds the text, where the format has several.
        errors: What to do with bytes that are not UTF-8.

    Raises:
        InputError: It cannot be read, is damaged, lacks the column (names those it has), holds a line that is no JSON
            object (with its number) or bytes that are no text (with their offset), or has nothing but white space.
    """
    found = False
    for document in _READERS[format_of(path)](path, column, errors):
        if any(piece.strip() for piece in document.pieces()):
            found = True
            yield document
    if not found:
        raise InputError(f"{path}: the file holds nothing but white space; give a file that holds text")


def read_rows(path: Path, column: str, errors: str) -> Iterator[str]:
    """Yield the text of every row of a Parquet file, blank or not. Raises `InputError` as `read_documents`."""
    arrow = need("pyarrow", f"{path}: reading it")
    parquet = need("pyarrow.parquet", f"{path}: reading it")
    try:
        # A bounded buffer and no read-ahead: the pages of a row group pass through memory, not the whole group.
        with _seekable(path) as whole, parquet.ParquetFile(whole, buffer_size=_READ_BLOCK, pre_buffer=False) as file:
            schema = file.schema_arrow
            _require_column(str(path), column, schema.names)
            if (kind := str(schema.field(column).type).removeprefix("large_")) not in ("string", "string_view"):
                raise InputError(f'{path}: column "{column}" holds {kind}, not text; name another with --column')
            row = 0
            for batch in file.iter_batches(batch_size=_ROWS, columns=[column]):
                yield from _texts_of(batch.column(0), path, row, errors)
                row += batch.num_rows
    except (arrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a whole Parquet file ({_first_line(error)}); fetch it again") from error


@contextmanager
def _seekable(path: Path) -> Iterator[Path | BinaryIO]:
    """Yield what can be read from its end, as Parquet is: a file, or the unpacked copy of one in a temporary file."""
    if not is_compressed(path):
        yield path
        return
    with tempfile.TemporaryFile() as copy:
        with open_bytes(path) as packed:
            shutil.copyfileobj(packed, copy, _READ_BLOCK)
        copy.seek(0)
        yield copy


def _text_documents(path: Path, column: str, errors: str) -> Iterator[Document]:
    held = _HELD_COMPRESSED if is_compressed(path) else PIECE
    with open_bytes(path) as file:
        for start, stop, data in _between_separators(file, held):
            if data is None:
                yield FileDocument(path, start, stop, errors=errors)
            elif data:
                yield TextDocument("".join(decoded([data], path, start, stop, errors)))


def _between_separators(file: BinaryIO, held: int) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield start and stop of what stands between separators, and its bytes where they are not more than ``held``."""
    separator = END_OF_TEXT.encode()
    buffer = bytearray(file.read(_READ_BLOCK))
    start = base = len(_BOM) if buffer.startswith(_BOM) else 0  # base: the place of the buffer's first byte
    del buffer[:start]
    searched = 0
    while True:
        while (found := buffer.find(separator, searched)) >= 0:
            yield start, base + found, _if_whole(buffer[:found], base == start, held)
            del buffer[: found + len(separator)]
            start = base = base + found + len(separator)
            searched = 0
        if (excess := len(buffer) - len(separator) + 1) > held:
            del buffer[:excess]
            base += excess
        searched = max(0, len(buffer) - len(separator) + 1)  # where the first bytes of a separator may stand
        if not (block := file.read(_READ_BLOCK)):
            break
        buffer += block
    yield start, base + len(buffer), _if_whole(buffer, base == start, held)


def _if_whole(data: bytearray, whole: bool, held: int) -> bytes | None:
    return bytes(data) if whole and len(data) <= held else None


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
        raise InputError(f"{where}: not UTF-8 at its byte {error.start}; mend it, or take --errors replace") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg} at character {error.colno}); mend or remove it") from error
    except (RecursionError, ValueError) as error:
        what = "is nested too deeply" if isinstance(error, RecursionError) else "holds a number of too many digits"
        raise InputError(f"{where}: JSON that {what}; mend or remove it") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: {_kind(value)}, not a JSON object with a text under a key; mend or remove it")
    _require_column(where, column, value)
    if not isinstance(text := value[column], str):
        if text is None:
            return ""
        raise InputError(f'{where}: "{column}" is {_kind(text)}, not a text; name another with --column')
    return _without_halves(text, where, errors) if b"\\u" in line else text


def _without_halves(text: str, where: str, errors: str) -> str:
    """Return a text without halves of surrogate pairs, which JSON can write and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        if errors == "strict":
            raise InputError(
                f"{where}: half a surrogate pair at character {error.start}; mend it, or take --errors replace"
            ) from error
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _require_column(where: str, column: str, held: Iterable[str]) -> None:
    names = list(held)
    if column not in names:
        there = ", ".join(names[:20]) or "none"
        raise InputError(f'{where}: has no column "{column}"{did_you_mean(column, names)}; there are: {there}')


def _parquet_documents(path: Path, column: str, errors: str) -> Iterator[Document]:
    return map(TextDocument, read_rows(path, column, errors))


def _texts_of(values: Any, path: Path, first: int, errors: str) -> list[str]:
    try:
        return [text or "" for text in values.to_pylist()]
    except UnicodeDecodeError:
        raw = values.cast("large_binary").to_pylist()
    found = []
    for row, data in enumerate(raw, start=first):
        try:
            found.append((data or b"").decode("utf-8", errors))
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: row {row} is not UTF-8 at its byte {error.start}; mend it, or take --errors replace"
            ) from error
    return found


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


_READERS: dict[str, Callable[[Path, str, str], Iterator[Document]]] = {
    ".txt": _text_documents,
    ".jsonl": _json_documents,
    ".parquet": _parquet_documents,
}
