"""The documents of a file, by its format, which its name tells.

    .txt and others   the whole file is a document, unless it holds ``<|endoftext|>``, which then separates documents
    .jsonl .json      a line is a document: the text under one key of a JSON object
    .parquet          a row is a document: the text of one column

each also as ``.gz`` or ``.zst``. What is only white space is no document. Nothing is held but the current
document, and of a long one only its place in the file: memory stays the same however large the files are.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from gpt2lab.data.decoding import decoded
from gpt2lab.data.document import PIECE, Document, FileDocument, TextDocument
from gpt2lab.data.opening import is_compressed, need, open_bytes
from gpt2lab.errors import InputError, did_you_mean
from gpt2lab.tokenizer import END_OF_TEXT

DEFAULT_COLUMN = "text"
_BLOCK = 1 << 20
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
        with _seekable(path) as whole, parquet.ParquetFile(whole, buffer_size=_BLOCK, pre_buffer=False) as file:
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
            shutil.copyfileobj(packed, copy, _BLOCK)
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
    buffer = bytearray(file.read(_BLOCK))
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
        if not (block := file.read(_BLOCK)):
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
