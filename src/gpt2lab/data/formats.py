"""The documents of a file: text, JSON, CSV or Parquet, plain, compressed or in an archive.

    a.jsonl.gz -> open_bytes -> {"text": ...} -> Document, Document, ...

A column is a key or the name of a column; with dots, a path into nested objects or structs: ``meta.text``.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain, count, islice
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, Self, TypeAlias

from gpt2lab.data.documents import (
    BLOCK,
    PIECE,
    Document,
    FileDocument,
    TextDocument,
    decoded,
    decoded_text,
    explaining_damage,
    is_compressed,
    is_direct,
    needed,
    open_bytes,
)
from gpt2lab.errors import InputError, TemporaryError, did_you_mean
from gpt2lab.tokenizer.tokenizer import END_OF_TEXT

ERRORS = ("strict", "replace")
"""What to do with bytes that are not UTF-8: reject the file, or replace them by U+FFFD."""
DEFAULT_COLUMN = "text"
_BOM = codecs.BOM_UTF8
_HELD = 1 << 26
"""Bytes up to which a document of a compressed file is held: reading it again decompresses everything before it."""
_ROWS = 256
"""Rows of Parquet that are decoded at once."""
_LONGEST_FIELD = (1 << 31) - 1
"""Characters that a field of CSV may have."""
_OPENING = re.compile(r"\s*\[\s*(?P<end>\])?")
_FOLLOWING = re.compile(r"\s*(?:,\s*|(?P<end>\]))")
_DECODER = json.JSONDecoder()
_LONGEST_ATOM = 16
"""Characters before the end where the error of a cut atom may be, such as ``-Infinity`` or two escapes."""
_SHOWN = 60
"""Characters of a column's name that an error shows."""
_ALIASES = {".json": ".jsonl", ".tgz": ".tar", ".tbz2": ".tar", ".txz": ".tar"}


def format_of(path: Path) -> str:
    """Return a key of the readers: ``.txt``, ``.jsonl``, ``.parquet``, ...; a file of any other suffix is text."""
    suffix = (path.with_suffix("") if is_compressed(path) else path).suffix.lower()
    suffix = _ALIASES.get(suffix, suffix)
    return suffix if suffix in (*_READERS, *_ARCHIVES) else ".txt"


Parser: TypeAlias = Callable[[Any, str, str], Document]
"""Makes a document of a JSON value; the other arguments are its place, for messages, and one of `ERRORS`."""


def read_documents(
    path: Path,
    column: str = DEFAULT_COLUMN,
    errors: str = "strict",
    skip: Container[str] = (),
    parse: Parser | None = None,
) -> Iterator[Document]:
    """Yield the documents of a file, or of each file in an archive, that are not blank.

    Args:
        path: The file. Read each document of an archive before the next: what it is unpacked to is deleted.
        column: The key or column of the text, for JSON, CSV and Parquet.
        errors: What to do with bytes that are not UTF-8; one of `ERRORS`.
        skip: Names of files to leave out, as `unreadable` returns them.
        parse: Makes the documents, in place of ``column``; every file must then hold JSON.

    Raises:
        InputError: The file cannot be read or is damaged, has no such column (lists those it has), holds a line that
            is not a JSON object or not CSV (with its number) or bytes that are not text (with their offset), or is
            blank.
    """
    if str(path) in skip:
        return
    with closing(_members(path)) as members:
        for name, file in members:
            if name not in skip:
                yield from _documents(name, file, column, errors, parse)


def unreadable(path: Path, column: str, errors: str, parse: Parser | None = None) -> dict[str, str]:
    """Return why a file, or which files of an archive, cannot be read; everything is read to find out."""
    reasons: dict[str, str] = {}
    with _noting(reasons, str(path)), closing(_members(path)) as members:
        for name, file in members:
            with _noting(reasons, name):
                for document in _documents(name, file, column, errors, parse):
                    for _ in document.pieces():
                        pass
    return reasons


@contextmanager
def _noting(reasons: dict[str, str], name: str) -> Iterator[None]:
    """Note the error of a file instead of raising it, unless it is not the file's fault."""
    try:
        yield
    except TemporaryError:
        raise
    except InputError as error:
        reasons[name] = str(error).removeprefix(f"{name}: ")


def _documents(name: str, path: Path, column: str, errors: str, parse: Parser | None) -> Iterator[Document]:
    """Yield the documents of a file that are not blank; errors call it ``name``."""
    found = False
    try:
        if (reader := _READERS.get(format_of(path))) is None:
            raise InputError(f"{name}: an archive in an archive; unpack the outer one and name its directory")
        if parse is not None and format_of(path) != ".jsonl":
            raise InputError(f"{name}: conversations are read from .jsonl and .json files; convert it to JSON lines")
        for document in reader(path, column, errors) if parse is None else _parsed(path, errors, parse):
            blank = (not piece.strip() for piece in document.pieces())
            # Of an archive, a document is read to its end, because only here an error is given the member's name.
            if not all(blank if name == str(path) else list(blank)):
                found = True
                yield document
        if not found:
            raise InputError(f"{name}: the file holds nothing but white space; give a file that holds text")
    except InputError as error:
        raise type(error)(str(error).replace(str(path), name)) from error


def _members(path: Path) -> Generator[tuple[str, Path]]:
    """Yield the name and path of a file, or of each file in an archive, unpacked while it is read.

    What macOS adds to an archive, and other hidden files, are left out.
    """
    if (read := _ARCHIVES.get(format_of(path))) is None:
        yield str(path), path
        return
    is_empty = True
    with tempfile.TemporaryDirectory(prefix="gpt2lab-") as folder, closing(read(path)) as members:
        try:
            for name, packed in members:
                inside = PurePosixPath(name)
                if not any(part.startswith((".", "__MACOSX")) for part in inside.parts):
                    copy = Path(folder) / inside.name
                    with explaining_damage(path), copy.open("wb") as file:
                        shutil.copyfileobj(packed, file, BLOCK)
                    is_empty = False
                    yield f"{path}/{inside}", copy
                    copy.unlink()
        except InputError:
            raise
        except (tarfile.TarError, zipfile.BadZipFile, RuntimeError, ValueError) as error:
            why = str(error)[:_SHOWN]  # damaged, or compressed by an unknown method
            raise InputError(
                f"{path}: cannot be unpacked ({why}); download it again, or unpack it and name the directory"
            ) from error
    if is_empty:
        raise InputError(f"{path}: the archive holds no file; give one that does, or leave it out")


def _zip_members(path: Path) -> Generator[tuple[str, IO[bytes]]]:
    with explaining_damage(path), _seekable(path) as whole, zipfile.ZipFile(whole) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            if member.flag_bits & 1:
                raise InputError(f"{path}: {member.filename} is encrypted; unpack it and name the directory")
            with archive.open(member) as file:
                yield member.filename, file


def _tar_members(path: Path) -> Generator[tuple[str, IO[bytes]]]:
    with open_bytes(path) as whole, tarfile.open(fileobj=whole, mode="r|", tarinfo=_TarMember) as archive:
        for member in archive:
            if member.isfile() and (file := archive.extractfile(member)):
                yield member.name, file


class _TarMember(tarfile.TarInfo):
    """A member of a tar archive whose header must be whole: `tarfile` takes a damaged one for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):  # the end
                raise
            raise tarfile.ReadError(str(error)) from error


_ARCHIVES = {".tar": _tar_members, ".zip": _zip_members}


def _text_documents(path: Path, column: str, errors: str) -> Iterator[Document]:
    with open_bytes(path, errors=errors) as file:
        for start, stop, data in _between_separators(file, PIECE if is_direct(file) else _HELD):
            if data is None:
                yield FileDocument(path, start, stop, errors=errors)
            elif data:
                yield TextDocument("".join(decoded_text([data], path, errors, start, stop)))


def _between_separators(file: BinaryIO, held: int) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield start and stop of each document, and its bytes if there are at most ``held``."""
    separator = END_OF_TEXT.encode()
    buffer = bytearray(file.read(BLOCK))
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
        if not (block := file.read(BLOCK)):
            break
        buffer += block
    yield document(len(buffer))


def _json_documents(path: Path, column: str, errors: str) -> Iterator[Document]:
    return _parsed(path, errors, lambda value, where, errors: _text_of_object(value, where, column, errors))


def _parsed(path: Path, errors: str, parse: Parser) -> Iterator[Document]:
    """Yield what ``parse`` makes of each JSON value of a file."""
    with open_bytes(path, errors=errors) as file:
        is_array = file.read(BLOCK).removeprefix(_BOM).lstrip().startswith(b"[")
    with open_bytes(path, errors=errors) as file:
        values = _array_items(file, path, errors) if is_array else _json_lines(file, path, errors)
        for where, value in values:
            yield parse(value, where, errors)


def _json_lines(file: BinaryIO, path: Path, errors: str) -> Iterator[tuple[str, Any]]:
    """Yield where each line that is not blank is, and its value."""
    for number, line in enumerate(file, start=1):
        line = line.removeprefix(_BOM) if number == 1 else line
        if not line.isspace():
            where = f"{path}: line {number}"
            text = _decoded_row(line, f"{where}:", errors)
            try:
                value = json.loads(text)
            except (RecursionError, ValueError) as error:
                raise _not_json(error, where) from error
            yield where, value


def _array_items(file: BinaryIO, path: Path, errors: str) -> Iterator[tuple[str, Any]]:
    """Yield where each item of a JSON array is, and its value, holding about a block or an item at a time."""
    blocks, text, at, before = iter(partial(file.read, BLOCK), b""), "", 0, _OPENING
    pieces = decoded(blocks, path, errors, "utf-8-sig")
    for number in count(1):
        where, item = f"{path}: item {number}", None
        while True:
            found = before.match(text, at)
            try:
                if found is None:
                    raise json.JSONDecodeError("Expecting ',' or ']'", text, len(text) - len(text[at:].lstrip()))
                if not found["end"]:
                    item, at = _DECODER.raw_decode(text, found.end())
                break
            except (RecursionError, ValueError) as error:
                left = text[at:]
                more = "".join(islice(pieces, 1 + len(left) // BLOCK)) if _may_be_cut(error) else ""
                if not more:
                    raise _not_json(error, where, at) from error
                text, at = left + more, 0
        if found["end"]:
            if rest := "".join([text[found.end() :], *pieces]).strip():
                raise InputError(f"{path}: {rest[:20]!r} follows the end of the array; correct or remove it")
            return
        yield where, item
        before = _FOLLOWING


def _may_be_cut(error: Exception) -> bool:
    """Return whether more text can make JSON of what failed to parse: the error is an open string or near the end."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos > len(error.doc) - _LONGEST_ATOM


def _not_json(error: Exception, where: str, start: int = 0) -> InputError:
    why = "holds a number with too many digits"
    if isinstance(error, json.JSONDecodeError):
        why = f"not JSON ({error.msg} at character {error.pos - start + 1})"
    elif isinstance(error, RecursionError):
        why = "nested too deeply"
    return InputError(f"{where}: {why}; correct or remove it")


def _text_of_object(value: Any, where: str, column: str, errors: str) -> TextDocument:
    if not isinstance(value, dict):
        raise InputError(f"{where}: {kind_of(value)}, not a JSON object with a key for the text; correct or remove it")
    if column not in value and ("messages" in value or {"prompt", "completion"} <= value.keys()):
        raise InputError(f"{where}: a conversation, not a text; prepare it with gpt2lab data prepare --format chat")
    text = _look_up(value, column, where)
    if text is not None and not isinstance(text, str):
        raise InputError(f'{where}: "{column}" is {kind_of(text)}, not text; name another with --column')
    return TextDocument(as_text(text or "", where, column, errors))


def as_text(text: Any, where: str, name: str, errors: str) -> str:
    """Return a value that is text and can be encoded; errors call it ``name``.

    Raises:
        InputError: It is something else, or holds half a surrogate pair and ``errors`` is strict.
    """
    if not isinstance(text, str):
        raise InputError(f"{where}: {name} is {kind_of(text)}, not text; correct it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can escape half a surrogate pair, which UTF-8 cannot encode
        if errors == "replace":
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        raise InputError(
            f"{where}: half a surrogate pair at character {error.start}; correct it or use --errors replace"
        ) from error
    return text


def kind_of(value: Any) -> str:
    """Return what a JSON value is called in a message."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _look_up(values: Mapping[str, Any], column: str, where: str) -> Any:
    """Return the value of a column, which may be in nested mappings; None if one of these is None.

    Raises:
        InputError: There is no such column (lists those there are).
    """
    found: Any = values
    rest = column
    while isinstance(found, Mapping):
        if rest in found:
            return found[rest]
        head, dot, rest = rest.partition(".")
        if not dot or head not in found:
            break
        found = found[head]
    else:
        if found is None:
            return None
    names = [*chain.from_iterable(_in_full(name, value) for name, value in values.items())]
    known = ", ".join(" ".join(name.split())[:_SHOWN] for name in names[:20]) or "none"
    raise InputError(
        f'{where}: has no column "{column}"{did_you_mean(column, names)}; there are: {known}; name one with --column'
    )


def _in_full(name: str, value: Any) -> list[str]:
    """Return the names under which a column, or what is nested in it, can be looked up."""
    return [f"{name}.{inner}" for inner in value] if isinstance(value, Mapping) else [name]


def _csv_documents(path: Path, column: str, errors: str) -> Iterator[Document]:
    csv.field_size_limit(_LONGEST_FIELD)
    with open_bytes(path, errors=errors) as file:
        delimiter = "\t" if format_of(path) == ".tsv" else ","
        rows = csv.reader(_csv_lines(file, path, errors), delimiter=delimiter, strict=True)
        try:
            names = next(rows, [])
            at = _look_up({name: number for number, name in enumerate(names)}, column, str(path))
            _require_one(names, column, path)
            for row in rows:
                if row and len(row) != len(names):
                    raise InputError(
                        f"{path}: line {rows.line_num}: {len(row)} fields, but the header has {len(names)}; put quotes "
                        "around fields that hold separators"
                    )
                yield TextDocument(row[at] if row else "")
        except csv.Error as error:
            raise InputError(f"{path}: line {rows.line_num}: not CSV ({error}); correct the quotes") from error


def _csv_lines(file: BinaryIO, path: Path, errors: str) -> Iterator[str]:
    """Yield the lines, however they end, with their ends."""
    lines = chain.from_iterable(line.splitlines(keepends=True) for line in file)
    for number, line in enumerate(lines, start=1):
        yield _decoded_row(line.removeprefix(_BOM) if number == 1 else line, f"{path}: line {number}:", errors)


def _require_one(names: Sequence[str], column: str, path: Path) -> None:
    """Raise `InputError` if several columns have the name."""
    if (found := names.count(column)) > 1:
        raise InputError(f'{path}: has {found} columns "{column}"; rename one of them')


def _parquet_documents(path: Path, column: str, errors: str) -> Iterator[Document]:
    return map(TextDocument, read_rows(path, column, errors))


def read_rows(path: Path, column: str, errors: str) -> Iterator[str]:
    """Yield the text of every row of a Parquet file, also of blank ones. Raises `InputError` as `read_documents`."""
    arrow, parquet = needed("pyarrow", path), needed("pyarrow.parquet", path)
    try:
        # With a bounded buffer and no read-ahead, memory holds pages of a row group, not the whole group.
        with _seekable(path) as whole, parquet.ParquetFile(whole, buffer_size=BLOCK, pre_buffer=False) as file:
            kind = _look_up(_type_tree(file.schema_arrow, arrow), column, str(path))
            _require_one([leaf.path for leaf in file.schema], column, path)
            if str(kind).removeprefix("large_") not in ("string", "string_view"):
                kind = "a struct" if isinstance(kind, dict) else kind
                raise InputError(f'{path}: column "{column}" holds {kind}, not text; name another with --column')
            batches = (_only_leaf(batch.column(0)) for batch in file.iter_batches(_ROWS, columns=[column]))
            values = chain.from_iterable(batch.cast("large_binary").to_pylist() for batch in batches)
            for row, value in enumerate(values):
                yield _decoded_row(value or b"", f"{path}: row {row} is", errors)
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: not a complete Parquet file ({why}); download it again") from error


def _type_tree(fields: Iterable[Any], arrow: Any) -> dict[str, Any]:
    """Return the type of each field, of categories that of their values, and of a struct those of its fields."""
    tree = {}
    for field in fields:
        kind = field.type.value_type if arrow.types.is_dictionary(field.type) else field.type
        tree[field.name] = _type_tree(kind, arrow) if arrow.types.is_struct(kind) else kind
    return tree


def _only_leaf(array: Any) -> Any:
    """Return the values in a column of which one leaf was read; null where a struct around it is null."""
    while array.type.num_fields:
        (array,) = array.flatten()
    return array


def _decoded_row(value: bytes, where: str, errors: str) -> str:
    try:
        return value.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise InputError(f"{where} not UTF-8 at byte {error.start}; correct it or use --errors replace") from error


@contextmanager
def _seekable(path: Path) -> Iterator[Path | BinaryIO]:
    """Yield what Parquet can be read from, beginning at its end: a file, or a decompressed temporary copy of it."""
    if not is_compressed(path):
        yield path
        return
    with tempfile.TemporaryFile() as copy:
        with open_bytes(path) as packed:
            shutil.copyfileobj(packed, copy, BLOCK)
        copy.seek(0)
        yield copy


_READERS: dict[str, Callable[[Path, str, str], Iterator[Document]]] = {
    ".txt": _text_documents,
    ".jsonl": _json_documents,
    ".csv": _csv_documents,
    ".tsv": _csv_documents,
    ".parquet": _parquet_documents,
}
