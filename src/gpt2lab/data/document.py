"""A document: its text, in memory or as a place in a file, given in pieces that can be encoded one by one.

A document is read in pieces cut before a space that follows a visible character, or a newline that follows a letter.
Neither GPT-2's nor GPT-4's splitting pattern has a word across such a place, so the pieces' tokens, joined, are those
of the whole text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from gpt2lab.data.decoding import decoded
from gpt2lab.data.opening import open_bytes

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
