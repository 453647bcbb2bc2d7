"""Where text comes from: files, folders, patterns of names and the embedded corpus, as one stream of documents.

sources ["stories"] or ["a.txt", "folder", "more/*.jsonl.zst"]  ->  Document, Document, ...  ->  pieces of text
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from gpt2lab.data.decoding import ERRORS
from gpt2lab.data.document import Document, TextDocument
from gpt2lab.data.opening import COMPRESSED, open_bytes
from gpt2lab.data.readers import DEFAULT_COLUMN, format_of, read_documents
from gpt2lab.data.stories import stories
from gpt2lab.errors import InputError, did_you_mean, one_of

DEFAULT_STORIES = 10_000
"""Documents taken of the endless corpus where no number is given: about 1.5 million words."""
_IN_FOLDERS = (".txt", ".jsonl", ".parquet")


def documents(
    sources: Sequence[str],
    *,
    seed: int = 0,
    max_documents: int | None = None,
    column: str | None = None,
    errors: str = "strict",
) -> Iterator[Document]:
    """Return the documents of all sources, in the order of the sources; those of a folder in the order of their paths.

    Args:
        sources: Files of text, JSON lines or Parquet (see `read_documents`), folders (every ``.txt``, ``.jsonl`` and
            ``.parquet`` below them is read, compressed or not), patterns such as ``logs/*.jsonl.gz``, and names of
            `CORPORA`.
        seed: Seed of the embedded corpus.
        max_documents: Take only the first so many. Without it, an endless corpus gives `DEFAULT_STORIES`.
        column: Where the text of JSON lines and Parquet stands; ``text`` by default.
        errors: What to do with bytes that are not UTF-8; one of `ERRORS`.

    Raises:
        InputError: At once for a source that is missing, empty, or an unknown name, or a column where no source has
            columns; while reading for what `read_documents` refuses.
    """
    if not sources:
        raise InputError(f"no source given: name files, folders or a corpus ({', '.join(CORPORA)})")
    if max_documents is not None and max_documents < 1:
        raise InputError(f"max_documents is {max_documents}; it must be 1 or more")
    one_of("way with errors", errors, ERRORS)
    files = {source: [] if source in CORPORA else find_files(source) for source in sources}
    for file in chain.from_iterable(files.values()):
        _require_content(file)
    if column is not None and all(format_of(file) == ".txt" for file in chain.from_iterable(files.values())):
        raise InputError(f'column "{column}" is given, but no source has columns; leave --column out')
    taken = max_documents or DEFAULT_STORIES
    readers = [
        CORPORA[source](seed, taken) if source in CORPORA else _documents_of(files[source], column, errors)
        for source in sources
    ]
    return islice(chain.from_iterable(readers), max_documents)


def texts(
    sources: Sequence[str],
    *,
    seed: int = 0,
    max_documents: int | None = None,
    column: str | None = None,
    errors: str = "strict",
) -> Iterator[str]:
    """Return the same documents' text as a stream of pieces: what a tokenizer is trained on."""
    found = documents(sources, seed=seed, max_documents=max_documents, column=column, errors=errors)
    return chain.from_iterable(document.pieces() for document in found)


def _stories(seed: int, count: int) -> Iterator[Document]:
    return (TextDocument(story.text, story.bits) for story in islice(stories(seed), count))


CORPORA: dict[str, Callable[[int, int], Iterator[Document]]] = {"stories": _stories}
"""Corpora known by name: (seed, documents) -> the documents. A file of that name is given as ``./stories``."""


def _documents_of(files: list[Path], column: str | None, errors: str) -> Iterator[Document]:
    return chain.from_iterable(read_documents(file, column or DEFAULT_COLUMN, errors) for file in files)


def find_files(source: str) -> list[Path]:
    """Return the files that a source names, in order.

    Raises:
        InputError: It is nothing that exists (with the nearest name), a folder or pattern without a file of text, or
            something that is not a regular file.
    """
    path = Path(source)
    if path.is_dir():
        return _files_below(path)
    if path.is_file():
        return [path]
    if path.exists():
        raise InputError(f"{source}: not a regular file; save the text to a file and name that")
    if glob.has_magic(source):
        files = sorted(Path(name) for name in glob.glob(source, recursive=True) if Path(name).is_file())  # noqa: PTH207 - takes absolute patterns
        if not files:
            raise InputError(f"{source}: no file has such a name; correct the pattern")
        return files
    beside = [str(path.with_name(p.name)) for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(source, [*CORPORA, *beside])
    raise InputError(f'"{source}" is no file, folder or corpus{hint}; corpora: {", ".join(CORPORA)}')


def _files_below(folder: Path) -> list[Path]:
    suffixes = tuple(plain + packed for plain in _IN_FOLDERS for packed in ("", *COMPRESSED))
    files = (path for path in folder.rglob("*") if path.name.lower().endswith(suffixes) and path.is_file())
    if not (ordered := sorted(files, key=lambda path: path.relative_to(folder).parts)):
        raise InputError(f"{folder}: the folder holds no {' or '.join(_IN_FOLDERS)} file; name one that does")
    return ordered


def _require_content(path: Path) -> None:
    with open_bytes(path) as file:
        if not file.read(4).removeprefix(b"\xef\xbb\xbf"):
            raise InputError(f"{path}: the file is empty; give a file that holds text, or leave it out")
