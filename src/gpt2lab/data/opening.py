"""Files of bytes, plain or compressed, opened by their suffix: ``.gz`` by the standard library, ``.zst`` by pyarrow.

Reading is forward, memory bounded. What a damaged file does in the midst of reading becomes one line.
"""

from __future__ import annotations

import gzip
import importlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from gpt2lab.errors import InputError

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
