"""Where text comes from: files, folders, patterns of names, corpora of the catalogue, data sets of the hub.

sources ["stories", "wikitext2", "a.txt", "more/*.jsonl.zst", "hub:OWNER/NAME"]
    ->  chunks  ->  Document, Document, ...  ->  pieces of text
"""

from __future__ import annotations

import contextlib
import glob
import logging
import re
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from gpt2lab.data.corpora import CORPORA, Corpus, Cut
from gpt2lab.data.documents import (
    COMPRESSED,
    DEFAULT_COLUMN,
    ERRORS,
    Document,
    TextDocument,
    format_of,
    open_bytes,
    read_documents,
    read_rows,
)
from gpt2lab.data.download import HubFile, any_dataset, endpoint, fetch, matching, token_header
from gpt2lab.errors import InputError, did_you_mean, one_of
from gpt2lab.stories.corpus import stories

_TOGETHER = 1 << 28
"""Bytes up to which files of this machine make one chunk."""
_STORIES = 100_000
"""Stories in a chunk."""
_STORY_BYTES = 800
_EXPANSION = {".txt": 1.0, ".jsonl": 1.0, ".parquet": 1.7}
"""Bytes of text in a byte of a file; Parquet's is that of OpenWebText, Wikipedia and FineWeb."""
_COMPRESSED = 3.0
_HEADING = re.compile(r" = (?!= ).* = \n")


@dataclass(frozen=True)
class SourceFile:
    """A file to read: here, or with a ``url`` to fetch it from; ``version`` is its time of change, or its SHA-256."""

    name: str
    size: int
    version: str
    url: str = ""


@dataclass(frozen=True)
class Chunk:
    """What is prepared together. ``split`` is given where the corpus comes in splits; stories have seed and range."""

    files: tuple[SourceFile, ...] = ()
    cut: Cut = "file"
    split: str = ""
    column: str = DEFAULT_COLUMN
    errors: str = "strict"
    seed: int = 0
    start: int = 0
    stop: int = 0

    @property
    def download(self) -> int:
        """Bytes to fetch."""
        return sum(file.size for file in self.files if file.url)

    @property
    def fetched_only(self) -> int:
        """Bytes that are fetched and deleted again; files of tokens are kept as they are."""
        return 0 if self.cut == "tokens" else self.download

    @property
    def text_bytes(self) -> int:
        """About how many bytes of text it holds."""
        return (self.stop - self.start) * _STORY_BYTES + sum(map(_text_bytes, self.files))

    @classmethod
    def parse(cls, tree: dict[str, Any]) -> Chunk:
        """Return what `dataclasses.asdict` made of a chunk."""
        return cls(**{**tree, "files": tuple(SourceFile(**file) for file in tree["files"])})


def _text_bytes(file: SourceFile) -> int:
    path = Path(file.name)
    compressed = _COMPRESSED if path.suffix in (".gz", ".zst") else 1.0
    return int(file.size * compressed * _EXPANSION[format_of(path)])


def story_chunks(seed: int, count: int) -> list[Chunk]:
    """Return the chunks of the first ``count`` stories of a seed."""
    starts = range(0, count, _STORIES)
    return [Chunk(cut="stories", seed=seed, start=n, stop=min(n + _STORIES, count)) for n in starts]


def grouped(chunks: Iterable[Chunk]) -> list[Chunk]:
    """Return the same with neighbouring files of this machine put together, up to `_TOGETHER` bytes."""
    groups: list[Chunk] = []
    for chunk in chunks:
        last = groups[-1] if groups else None
        if last is not None and _fit(last, chunk):
            groups[-1] = replace(last, files=last.files + chunk.files)
        else:
            groups.append(chunk)
    return groups


def _fit(one: Chunk, other: Chunk) -> bool:
    if one.download or not one.files or replace(one, files=()) != replace(other, files=()):
        return False
    return sum(file.size for file in one.files + other.files) <= _TOGETHER and not other.download


def read_chunk(chunk: Chunk, paths: Iterable[Path]) -> Iterator[Document]:
    """Yield the documents of a chunk, whose files lie at ``paths``.

    Raises:
        InputError: It holds tokens instead of text, or a file is none that can be read (see `read_documents`).
    """
    if chunk.cut == "tokens":
        raise InputError(f"{chunk.files[0].name}: holds tokens, not text; give a corpus of text")
    if chunk.cut == "stories":
        told = islice(stories(chunk.seed, chunk.start), chunk.stop - chunk.start)
        return (TextDocument(story.text, story.bits) for story in told)
    if chunk.cut == "articles":
        return chain.from_iterable(_articles(read_rows(path, chunk.column, chunk.errors)) for path in paths)
    return chain.from_iterable(read_documents(path, chunk.column, chunk.errors) for path in paths)


def _articles(rows: Iterable[str]) -> Iterator[Document]:
    """Join the lines of WikiText, whose empty ones lost their blank, to articles: each begins with its heading."""
    article: list[str] = []
    blank = True
    for row in rows:
        line = row or " \n"
        if blank and _HEADING.fullmatch(line) and any(held.strip() for held in article):
            yield TextDocument("".join(article))
            article = []
        blank = not line.strip()
        article.append(line)
    if any(line.strip() for line in article):
        yield TextDocument("".join(article))


HUB = "hub:"
log = logging.getLogger("gpt2lab")
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

    Files of the hub are fetched one by one to a temporary folder and removed when they have been read.

    Args:
        sources: Files of text, JSON lines or Parquet (see `read_documents`), folders (every ``.txt``, ``.jsonl`` and
            ``.parquet`` below them is read, compressed or not), patterns such as ``logs/*.jsonl.gz``, names of
            `CORPORA`, and data sets of the hub as ``hub:OWNER/NAME``. A file of such a name is given as ``./stories``.
        seed: Seed of the stories.
        max_documents: Take only the first so many. Without it, the endless stories give 10,000.
        column: Where the text of JSON lines and Parquet stands; ``text`` by default.
        errors: What to do with bytes that are not UTF-8; one of `ERRORS`.

    Raises:
        InputError: At once for a source that is missing, empty, not to be reached or an unknown name, or a column
            where no source has columns; while reading for what `read_documents` and `fetch` refuse.
    """
    chunks = resolve(sources, seed=seed, max_documents=max_documents, column=column, errors=errors)
    return _first(chunks, max_documents)


def _first(chunks: Sequence[Chunk], max_documents: int | None) -> Iterator[Document]:
    return islice(chain.from_iterable(map(_documents_of, chunks)), max_documents)


def texts(
    sources: Sequence[str],
    *,
    seed: int = 0,
    max_documents: int | None = None,
    column: str | None = None,
    errors: str = "strict",
    whole: bool = False,
) -> Iterator[str]:
    """Return the same documents' text as a stream of pieces: what a tokenizer is trained on.

    The files that a corpus itself holds out, to validate and to test, are left out. Pieces are cut where no word of
    GPT-2's or GPT-4's splitting pattern reaches across; ``whole`` gives each document in one piece, for a pattern of
    one's own.
    """
    chunks = resolve(sources, seed=seed, max_documents=max_documents, column=column, errors=errors)
    found = _first([chunk for chunk in chunks if chunk.split in ("", "train")], max_documents)
    if whole:
        return ("".join(document.pieces()) for document in found)
    return chain.from_iterable(document.pieces() for document in found)


def _documents_of(chunk: Chunk) -> Iterator[Document]:
    if not chunk.download:
        yield from read_chunk(chunk, here(chunk))
        return
    with tempfile.TemporaryDirectory(prefix="gpt2lab-") as folder:
        yield from read_chunk(chunk, fetched(chunk, Path(folder)))


def here(chunk: Chunk) -> list[Path]:
    """Return where the files of a chunk of this machine lie. Raises `InputError` where one was changed since."""
    for file in chunk.files:
        if _source_file(Path(file.name)) != file:
            raise InputError(f"{file.name}: changed since preparing began; delete what is half-written and begin anew")
    return [Path(file.name) for file in chunk.files]


def fetched(chunk: Chunk, folder: Path) -> list[Path]:
    """Fetch the files of a chunk to a folder, and return where they lie."""
    paths = []
    for file in chunk.files:
        path = folder / Path(file.name).name
        if not path.exists():
            log.info("fetching %s, %s MB", file.name, f"{file.size / 1e6:,.1f}")
            fetch(file.url, path, file.size, file.version or None, _headers(file.url))
        paths.append(path)
    return paths


def _headers(url: str) -> dict[str, str]:
    return token_header() if url.startswith(endpoint()) else {}


def resolve(
    sources: Sequence[str],
    *,
    seed: int = 0,
    max_documents: int | None = None,
    column: str | None = None,
    errors: str = "strict",
) -> list[Chunk]:
    """Return the chunks of all sources, after looking that each is there. The arguments are those of `documents`."""
    if not sources:
        raise InputError(f"no source given: name files, folders or a corpus ({', '.join(CORPORA)})")
    if max_documents is not None and max_documents < 1:
        raise InputError(f"max_documents is {max_documents}; it must be 1 or more")
    one_of("way with errors", errors, ERRORS)
    if seed and "stories" not in sources:
        raise InputError(f"seed {seed} is given, but only stories have a seed; leave --seed out")
    chunks = []
    for source in sources:
        chunks += _chunks(source, seed, max_documents, column, errors)
    has_columns = any(format_of(Path(file.name)) != ".txt" for chunk in chunks for file in chunk.files)
    if column is not None and not has_columns:
        raise InputError(f'column "{column}" is given, but no source has columns; leave --column out')
    return grouped(chunks)


def _chunks(source: str, seed: int, max_documents: int | None, column: str | None, errors: str) -> list[Chunk]:
    if source.startswith(HUB):
        return _of_hub(any_dataset(source.removeprefix(HUB)), column=column or DEFAULT_COLUMN, errors=errors)
    corpus = CORPORA.get(source)
    if corpus is None:
        files = map(_source_file, find_files(source))
        return [Chunk((file,), column=column or DEFAULT_COLUMN, errors=errors) for file in files]
    if corpus.cut == "stories":
        return story_chunks(seed, max_documents or corpus.documents)
    if corpus.cut == "pystdlib":
        return [Chunk((_source_file(path),)) for path in _standard_library()]
    if corpus.url:
        return [Chunk((SourceFile(source + ".txt", corpus.size, corpus.sha256, corpus.url),))]
    return _of_corpus(corpus, column, errors)


def _of_corpus(corpus: Corpus, column: str | None, errors: str) -> list[Chunk]:
    found = matching(corpus.repository, corpus.files)
    return _of_hub(found, cut=corpus.cut, column=column or corpus.column, errors=errors)


def _of_hub(splits: dict[str, list[HubFile]], **how: str) -> list[Chunk]:
    if list(splits) == ["train"]:  # nothing is held out, so the rule decides
        splits = {"": splits["train"]}
    return [
        Chunk((SourceFile(file.path, file.size, file.sha256 or "", file.url),), split=split, **how)  # type: ignore[arg-type]
        for split in sorted(splits, key=_held_out_first)
        for file in splits[split]
    ]


def _held_out_first(split: str) -> int:
    """Order splits so that a document that comes twice can be left out of the one to train on."""
    return ["test", "val", "train", ""].index(split)


def _source_file(path: Path) -> SourceFile:
    with open_bytes(path) as file:
        if not file.read(4).removeprefix(b"\xef\xbb\xbf"):
            raise InputError(f"{path}: the file is empty; give a file that holds text, or leave it out")
    found = path.stat()
    return SourceFile(str(path), found.st_size, str(found.st_mtime_ns))


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
    raise InputError(f'"{source}" is no file, folder or corpus{hint}; corpora: {", ".join(CORPORA)}, {HUB}OWNER/NAME')


def _files_below(folder: Path) -> list[Path]:
    suffixes = tuple(plain + packed for plain in _IN_FOLDERS for packed in ("", *COMPRESSED))
    files = (path for path in folder.rglob("*") if path.name.lower().endswith(suffixes) and path.is_file())
    if not (ordered := sorted(files, key=lambda path: path.relative_to(folder).parts)):
        raise InputError(f"{folder}: the folder holds no {' or '.join(_IN_FOLDERS)} file; name one that does")
    return ordered


def _standard_library() -> Iterator[Path]:
    """Yield the sources of this Python's library that are text: a few are not UTF-8 on purpose."""
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        with contextlib.suppress(UnicodeDecodeError):
            if "\0" not in (text := path.read_bytes().decode("utf-8")) and text.strip():
                yield path
