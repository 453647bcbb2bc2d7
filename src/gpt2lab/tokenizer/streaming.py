"""Text that is longer than memory: cutting a stream into pieces that encode separately to the same ids.

A stream is read into a buffer. Where the splitting pattern knows a place that no word reaches across (``Pattern.cut``),
the buffer is cut at the last such place, the front goes out and the rest waits for more::

    read    "It was the best of ti" | "mes, it was"
    pieces  "It was the best of"  " times, it"  " was"
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator
from typing import TextIO

from gpt2lab.tokenizer.pretokenize import Pattern, special_pattern

_CHARACTERS = 1 << 16


def cut_stream(source: TextIO | Iterable[str], pattern: Pattern, special_tokens: Collection[str] = ()) -> Iterator[str]:
    """Yield pieces that encode to the same ids as the whole text of ``source`` does.

    Memory is that of one piece, unless there is no place to cut: in one endless word, or with a pattern of the user's
    own, of which no such place is known.

    Args:
        source: An open text file, or strings that are parts of one text.
        pattern: How the text will be split.
        special_tokens: Those that will be made of their texts, which are not cut either.
    """
    waiting = ""
    enough = _CHARACTERS
    for part in _read(source):
        waiting += part
        if len(waiting) < enough:
            continue
        place = _last_cut(waiting, pattern, special_tokens)
        if place is None:
            enough = 2 * len(waiting)  # search anew when there is twice as much: no more work than reading it twice
            continue
        yield waiting[:place]
        waiting, enough = waiting[place:], _CHARACTERS
    yield waiting


def _last_cut(text: str, pattern: Pattern, special_tokens: Collection[str]) -> int | None:
    """Return a late place to cut the text that has been read; ``None`` where there is none."""
    if not special_tokens:
        return pattern.last_cut(text, len(text))
    place = pattern.last_cut(text, len(text) - max(map(len, special_tokens)))  # one may begin at the end
    if place is not None:
        for match in special_pattern(special_tokens).finditer(text):
            if match.start() < place < match.end():
                return match.start() or match.end()
    return place


def _read(source: TextIO | Iterable[str]) -> Iterable[str]:
    """Return a file in parts of some size, for its lines may be endless; strings as they are."""
    return iter(lambda: source.read(_CHARACTERS), "") if isinstance(source, io.TextIOBase) else source
