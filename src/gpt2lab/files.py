"""Writing files so that a crash at any moment leaves the old file or the new one, never half of it; locking them.

JSON becomes dataclasses by their type hints (`from_json`), and an error names the file and the field.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import json
import logging
import os
import re
import reprlib
import shutil
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

from gpt2lab.errors import InputError, did_you_mean

log = logging.getLogger("gpt2lab")
T = TypeVar("T")
CHECKSUM = "sha256"
"""Name of the entry of a JSON object that holds the SHA-256 of the others."""
_WINDOWS_BYTE = 2**30
"""The byte that stands for a whole file on Windows, whose locks keep others from reading: far beyond the end."""


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write to a temporary file, sync it, and rename it to ``path``. Text is UTF-8, its newlines unchanged."""
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:  # a full disk, or Ctrl-C
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a directory to fill, which gets its name once it is complete and synced; a failure leaves nothing.

    Raises:
        InputError: ``path`` exists and is not an empty directory, or cannot be created.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path} exists; give another name, or delete it first")
    temporary = temporary_name(path)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{path} cannot be created ({error.strerror}); give another directory") from error
    try:
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        if path.exists():
            path.rmdir()  # it is empty, or this fails
        temporary.rename(path)
        sync(path.parent)
    except BaseException:  # a full disk, or Ctrl-C
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk (Windows cannot open directories)."""
    is_directory = path.is_dir()
    if is_directory and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if is_directory else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_name(path: Path) -> Path:
    """Return the hidden name beside ``path`` under which this process prepares its new content."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove_temporary(directory: Path) -> None:
    """Remove what killed processes left in a directory under temporary names."""
    for stray in directory.glob(".*.tmp"):
        shutil.rmtree(stray) if stray.is_dir() else stray.unlink()


def free_path(path: Path) -> Path:
    """Return ``path``, or if it exists the first of ``path-2``, ``path-3``, ... that does not."""
    candidates = chain([path], (path.with_name(f"{path.name}-{number}") for number in count(2)))
    return next(candidate for candidate in candidates if not candidate.exists())


def neighbors(path: Path) -> list[str]:
    """Return the paths in the directory of ``path``, which may have been meant."""
    return [str(path.with_name(other.name)) for other in path.parent.iterdir()] if path.parent.is_dir() else []


def bytes_below(folder: Path) -> int:
    """Return the size of all files below a directory."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def is_full(error: OSError) -> bool:
    """Return whether an error says that a disk, a quota or a limit on the size of files is exhausted."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 20GB, 500 MB or 5GiB. Raises `InputError` if it is not a size."""
    units = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*([KMGT]?I?)B?", text.strip().upper())
    if found is None or found[2] not in units:
        raise InputError(f'"{text}" is not a size; give one such as 20GB, 500MB or 5GiB')
    return int(float(found[1]) * units[found[2]])


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_text(path: Path, newline: str | None = None) -> str:
    """Read a UTF-8 file; ``newline`` is that of `open`.

    Raises:
        InputError: It cannot be read, or is not UTF-8 (with the byte).
    """
    try:
        with path.open(encoding="utf-8", newline=newline) as file:
            return file.read()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 text at byte {error.start}; it is damaged or has another encoding"
        ) from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: It cannot be read, or is not JSON (with the line).
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON at line {error.lineno} ({error.msg}); it is damaged") from error


def write_checked_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as JSON, with its own SHA-256 as the last entry."""
    write_json(path, with_checksum(value))


def read_checked_json(path: Path) -> dict[str, Any]:
    """Read the object that `write_checked_json` wrote, without its checksum.

    Raises:
        InputError: It cannot be read, is not JSON, or has no checksum that it matches.
    """
    return without_checksum(read_json(path), path)


def with_checksum(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its own SHA-256 as the last entry."""
    return {**value, CHECKSUM: _checksum(value)}


def without_checksum(value: Any, where: object) -> dict[str, Any]:
    """Return an object that `with_checksum` made as it was before.

    Raises:
        InputError: It has no checksum, or does not match it; the message names ``where`` it stands.
    """
    if not isinstance(value, dict) or CHECKSUM not in value:
        raise InputError(f'{where}: no object with its checksum, "{CHECKSUM}": damaged, or of another version')
    stated = value.pop(CHECKSUM)
    if stated != _checksum(value):
        raise InputError(f"{where}: does not match its checksum: altered since it was written; restore it from a copy")
    return value


def _checksum(value: Mapping[str, Any]) -> str:
    content = json.dumps(json.loads(json.dumps(value)), sort_keys=True, separators=(",", ":"))  # as it will be read
    return hashlib.sha256(content.encode("utf-8")).hexdigest()


def from_json(kind: type[T], value: Any, where: object, name: str = "", *, others: bool = False) -> T:
    """Return what a JSON value stands for: a dataclass from the object of its fields, whose types are checked.

    Args:
        kind: The dataclass.
        value: From `read_json`; fields that are left out have their defaults.
        where: The file it comes from, for messages.
        name: The field of the file that holds it.
        others: Leave out fields that the dataclass does not have.

    Raises:
        InputError: A field is unknown (the nearest is suggested), missing, or of another type than its hint allows.
    """
    if others:
        value = {field: value[field] for field in _type_hints(kind) if field in value}
    try:
        return _parse(kind, value, name)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _parse(hint: Any, value: Any, name: str) -> Any:
    """Return a value as its type hint wants it; JSON knows neither paths nor tuples nor the difference of 1 and 1.0."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        origin, inner = typing.get_origin(option), typing.get_args(option)
        if option is Any or (origin is Literal and value in inner) or (type(value) is option and value == value):
            return value  # NaN does not equal itself
        if dataclasses.is_dataclass(option) and isinstance(value, dict):
            return _build(option, value, f"{name}." if name else "")
        if origin is dict and isinstance(value, dict):
            return {key: _parse(inner[1], item, f"{name}.{key}") for key, item in value.items()}
        if origin is tuple and isinstance(value, list):
            return tuple(_parse(inner[0], item, f"{name}[{index}]") for index, item in enumerate(value))
        if option is Path and isinstance(value, str):
            return Path(value)
        if option is float and type(value) is int and abs(value) < 2**53:
            return float(value)
    found = reprlib.repr(value) if isinstance(value, dict | list | str) else json.dumps(value)
    raise InputError(f"{name or 'the content'} is {found}; it must be {' or '.join(map(_type_name, options))}")


def _build(kind: Any, values: dict[str, Any], prefix: str) -> Any:
    hints = _type_hints(kind)
    for name in values:
        if name not in hints:
            raise InputError(f'unknown field "{prefix}{name}"{did_you_mean(name, hints)}')
    given = {name: _parse(hints[name], value, prefix + name) for name, value in values.items()}
    required = {f.name for f in dataclasses.fields(kind) if f.default is f.default_factory}  # both MISSING
    if missing := sorted(required - given.keys()):
        raise InputError(f"{prefix}{missing[0]} is missing; the file was written by another version of gpt2lab")
    return kind(**given)


_type_hints = functools.cache(typing.get_type_hints)


def _type_name(option: Any) -> str:
    """Return what a type is called in a message."""
    if typing.get_origin(option) is Literal:
        return ", ".join(map(str, typing.get_args(option)))
    names = {int: "an integer", float: "a number", str: "text", bool: "true or false", Path: "a path"}
    names |= {type(None): "null", tuple: "a list"}
    return names.get(typing.get_origin(option) or option, "an object")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal, reading it in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path, taken: InputError, offsets: Sequence[int] = ()) -> Iterator[None]:
    """Hold a lock against other processes during a block; it is also released when this process ends, however it ends.

    Some network file systems have no locks; a warning says so.

    Args:
        path: The file to lock, created if missing.
        taken: Raised if another process holds the lock.
        offsets: The bytes to lock, each on its own; the whole file by default.
    """
    with path.open("ab") as file:
        try:
            _lock(file, offsets)
        except (BlockingIOError, PermissionError) as error:
            raise taken from error
        except OSError as error:
            log.warning("%s cannot be locked (%s): make sure that no other process uses it", path, error.strerror)
        yield


def _lock(file: BinaryIO, offsets: Sequence[int]) -> None:
    if sys.platform == "win32":
        import msvcrt

        for offset in offsets or (_WINDOWS_BYTE,):
            file.seek(offset)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        if not offsets:  # not lockf, whose lock is lost when anything in this process opens the file and closes it
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        for offset in offsets:  # not flock, which locks whole files only
            fcntl.lockf(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
