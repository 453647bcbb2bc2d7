"""Bytes to text: strictly, with the file and the byte that is wrong, or with U+FFFD in the place of what is no text."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

from gpt2lab.errors import InputError

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
