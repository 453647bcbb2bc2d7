"""Where text comes from: files, folders and the embedded corpus, as one stream of documents.

    sources ["stories"] or ["a.txt", "folder"]  ->  Document, Document, ...  ->  pieces of text

A text file is one document, unless it holds ``<|endoftext|>``, which then separates documents (what is only white space
between two of them is no document). Nothing is held but the current document, and of a long one only its place in the
file: memory stays the same however large the files are.

A document is read in pieces cut before a space that follows a visible character, or a newline that follows a letter.
Neither GPT-2's nor GPT-4's splitting pattern has a word across such a place, so the pieces' tokens, joined, are those
of the whole text.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, TypeAlias

from gpt2lab.data.stories import stories
from gpt2lab.errors import InputError, did_you_mean, one_of
from gpt2lab.tokenizer import END_OF_TEXT

DEFAULT_STORIES = 10_000
"""Documents taken of the endless corpus where no number is given: about 1.5 million words."""

ERRORS = ("strict", "replace")
"""What to do with bytes of a file that are not UTF-8: refuse the file, or put U+FFFD for them and go on."""

_PIECE = 1 << 18
"""Characters, or bytes of a file, in a piece: many enough that reading costs nothing, few enough to share out to
threads. A document of a file that is longer is not kept as text but as its place."""
_BLOCK = 1 << 20
"""Bytes in which a file is searched for separators."""
_BOUNDARY = re.compile(r".*(?:\S(?= )|[0-9A-Za-z](?=\n))", re.DOTALL)
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class TextDocument:
    """A document in memory; ``bits`` is its exact -log2 probability where that is known."""

    text: str
    bits: float | None = None

    def pieces(self) -> Iterator[str]:
        """Yield the text in order, cut where no token reaches across."""
        starts = range(0, len(self.text), _PIECE)
        return _cut_at_boundaries(self.text[start : start + _PIECE] for start in starts)


@dataclass(frozen=True)
class FileDocument:
    """A long document that stays in its file: the bytes from ``start`` to ``stop``."""

    path: Path
    start: int
    stop: int
    bits: float | None = None
    errors: str = "strict"

    def pieces(self) -> Iterator[str]:
        """Yield the text in order, cut where no token reaches across. Raises `InputError` where it is not UTF-8."""
        with self.path.open("rb") as file:
            yield from _cut_at_boundaries(_decoded(file, self.path, self.start, self.stop, self.errors))


Document: TypeAlias = TextDocument | FileDocument


def documents(
    sources: Sequence[str], *, seed: int = 0, max_documents: int | None = None, errors: str = "strict"
) -> Iterator[Document]:
    """Return the documents of all sources, in the order of the sources; those of a folder in the order of their paths.

    Args:
        sources: Text files, folders (every ``.txt`` below them is read) and names of `CORPORA`.
        seed: Seed of the embedded corpus.
        max_documents: Take only the first so many. Without it, an endless corpus gives `DEFAULT_STORIES`.
        errors: What to do with a file that is not UTF-8 text; one of `ERRORS`.

    Raises:
        InputError: At once for a source that is missing, empty, or an unknown name; while reading for one that is not
            UTF-8 text (with its file and byte offset).
    """
    if not sources:
        raise InputError(f"no source given: name text files, folders or a corpus ({', '.join(CORPORA)})")
    if max_documents is not None and max_documents < 1:
        raise InputError(f"max_documents is {max_documents}; it must be 1 or more")
    one_of("way with errors", errors, ERRORS)
    readers = [_reader(source, seed, max_documents or DEFAULT_STORIES, errors) for source in sources]
    return islice(chain.from_iterable(readers), max_documents)


def texts(
    sources: Sequence[str], *, seed: int = 0, max_documents: int | None = None, errors: str = "strict"
) -> Iterator[str]:
    """Return the same documents' text as a stream of pieces: what a tokenizer is trained on."""
    found = documents(sources, seed=seed, max_documents=max_documents, errors=errors)
    return chain.from_iterable(document.pieces() for document in found)


def _stories(seed: int, count: int) -> Iterator[Document]:
    return (TextDocument(story.text, story.bits) for story in islice(stories(seed), count))


CORPORA: dict[str, Callable[[int, int], Iterator[Document]]] = {"stories": _stories}
"""Corpora known by name: (seed, documents) -> the documents. A file of that name is given as ``./stories``."""


def _reader(source: str, seed: int, count: int, errors: str) -> Iterator[Document]:
    if source in CORPORA:
        return CORPORA[source](seed, count)
    files = _text_files(source)
    for file in files:
        _require_readable(file)
    return chain.from_iterable(_documents_of(file, errors) for file in files)


def _text_files(source: str) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        files = sorted((p for p in path.rglob("*.txt") if p.is_file()), key=lambda p: p.relative_to(path).parts)
        if not files:
            raise InputError(
                f"{source}: the folder holds no .txt file; name a folder that does, or the files themselves"
            )
        return files
    if path.is_file():
        return [path]
    if path.exists():
        raise InputError(f"{source}: not a regular file; save the text to a file and name that")
    beside = [str(path.with_name(p.name)) for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(source, [*CORPORA, *beside])
    raise InputError(f'"{source}" is no file, folder or corpus{hint}; corpora: {", ".join(CORPORA)}')


def _require_readable(path: Path) -> None:
    try:
        with path.open("rb") as file:
            empty = not file.read(len(_BOM) + 1).removeprefix(_BOM)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a file that you may read") from error
    if empty:
        raise InputError(f"{path}: the file is empty; give a file that holds text, or leave it out")


def _documents_of(path: Path, errors: str) -> Iterator[Document]:
    found = False
    with path.open("rb") as file:
        for start, stop in _spans(file):
            if stop - start > _PIECE:
                document: Document = FileDocument(path, start, stop, errors=errors)
            else:
                document = TextDocument("".join(_decoded(file, path, start, stop, errors)))
            if any(piece.strip() for piece in document.pieces()):
                found = True
                yield document
    if not found:
        raise InputError(f"{path}: the file holds nothing but white space; give a file that holds text")


def _spans(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yield the byte ranges between separators (a byte order mark is no text). Leaves the file's position free."""
    separator = END_OF_TEXT.encode()
    start = position = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
    tail = b""  # the end of what was read, which may hold the first bytes of a separator
    while True:
        file.seek(position)
        if not (block := file.read(_BLOCK)):
            break
        data, base = tail + block, position - len(tail)
        position += len(block)
        searched = 0
        while (found := data.find(separator, searched)) >= 0:
            yield start, base + found
            searched = found + len(separator)
            start = base + searched
        tail = data[max(searched, len(data) - len(separator) + 1) :]
    yield start, position


def _decoded(file: BinaryIO, path: Path, start: int, stop: int, errors: str) -> Iterator[str]:
    """Yield a byte range of a file as text, exactly (no line end is changed)."""
    file.seek(start)
    pending = b""
    position = start
    while position < stop:
        block = file.read(min(_PIECE, stop - position))
        if not block:
            raise InputError(f"{path}: the file became shorter while it was read; leave it alone and try again")
        data, base = pending + block, position - len(pending)
        position += len(block)
        last = position == stop
        text, pending = _replace(data, last) if errors == "replace" else _decode(data, path, base, last)
        yield text


def _decode(data: bytes, path: Path, base: int, last: bool) -> tuple[str, bytes]:
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


def _replace(data: bytes, last: bool) -> tuple[str, bytes]:
    """Return the same with U+FFFD for what is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return decoder.decode(data, last), decoder.getstate()[0]


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
