"""Portions of a corpus: what is read, encoded and written together, and done again together after a stop.

A portion is one file of a hub, or neighbouring files of this machine up to some size, or a stretch of the endless
stories. It is plain data, so that the list of all portions can be written down and found again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from gpt2lab.data.catalogue import Cut
from gpt2lab.data.document import Document, TextDocument
from gpt2lab.data.readers import DEFAULT_COLUMN, format_of, read_documents, read_rows
from gpt2lab.data.stories import stories
from gpt2lab.errors import InputError

_TOGETHER = 1 << 28
"""Bytes up to which files of this machine make one portion."""
_STORIES = 100_000
"""Stories in a portion."""
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
class Portion:
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
    def parse(cls, tree: dict[str, Any]) -> Portion:
        """Return what `dataclasses.asdict` made of a portion."""
        return cls(**{**tree, "files": tuple(SourceFile(**file) for file in tree["files"])})


def _text_bytes(file: SourceFile) -> int:
    path = Path(file.name)
    compressed = _COMPRESSED if path.suffix in (".gz", ".zst") else 1.0
    return int(file.size * compressed * _EXPANSION[format_of(path)])


def story_portions(seed: int, count: int) -> list[Portion]:
    """Return the portions of the first ``count`` stories of a seed."""
    starts = range(0, count, _STORIES)
    return [Portion(cut="stories", seed=seed, start=n, stop=min(n + _STORIES, count)) for n in starts]


def grouped(portions: Iterable[Portion]) -> list[Portion]:
    """Return the same with neighbouring files of this machine put together, up to `_TOGETHER` bytes."""
    groups: list[Portion] = []
    for portion in portions:
        last = groups[-1] if groups else None
        if last is not None and _fit(last, portion):
            groups[-1] = replace(last, files=last.files + portion.files)
        else:
            groups.append(portion)
    return groups


def _fit(one: Portion, other: Portion) -> bool:
    if one.download or not one.files or replace(one, files=()) != replace(other, files=()):
        return False
    return sum(file.size for file in one.files + other.files) <= _TOGETHER and not other.download


def read_portion(portion: Portion, paths: Iterable[Path]) -> Iterator[Document]:
    """Yield the documents of a portion, whose files lie at ``paths``.

    Raises:
        InputError: It holds tokens instead of text, or a file is none that can be read (see `read_documents`).
    """
    if portion.cut == "tokens":
        raise InputError(f"{portion.files[0].name}: holds tokens, not text; give a corpus of text")
    if portion.cut == "stories":
        told = islice(stories(portion.seed, portion.start), portion.stop - portion.start)
        return (TextDocument(story.text, story.bits) for story in told)
    if portion.cut == "articles":
        return chain.from_iterable(_articles(read_rows(path, portion.column, portion.errors)) for path in paths)
    return chain.from_iterable(read_documents(path, portion.column, portion.errors) for path in paths)


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
