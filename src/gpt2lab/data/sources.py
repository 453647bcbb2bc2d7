"""Where text comes from: files, directories, patterns of names, built-in corpora, datasets of the Hub.

["stories", "wikitext2", "a.txt", "more/*.jsonl.zst", "hub:OWNER/NAME"]
    -> chunks -> downloads -> Document, Document, ... -> pieces of text

`CORPORA`, at the end, says where each corpus comes from, how it is split, and how it is divided into documents. Sizes
are those of the download; documents and GPT-2 tokens are totals over all splits, as published. Preparing counts them
anew. A corpus that comes in several sizes has the number of tokens in its name.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import re
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import partial
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from gpt2lab.data.chat import conversation
from gpt2lab.data.documents import COMPRESSED, Document, TextDocument, is_compressed, open_bytes
from gpt2lab.data.formats import DEFAULT_COLUMN, ERRORS, format_of, read_documents, read_rows, unreadable
from gpt2lab.errors import InputError, did_you_mean, one_of
from gpt2lab.files import neighbors
from gpt2lab.hub import DEFAULT_RETRY, NAME, PREFIX, RetryPolicy, SourceFile, endpoint, fetch, list_files
from gpt2lab.stories.corpus import stories

log = logging.getLogger("gpt2lab")
CONVERTED = "refs/convert/parquet"
"""The branch where the Hub keeps datasets of other formats as Parquet."""
_TOGETHER = 1 << 28
"""Bytes up to which local files form one chunk."""
_STORIES = 100_000
"""Stories in a chunk."""
_STORY_BYTES = 800
_EXPANSION = {".txt": 1.0, ".jsonl": 1.0, ".csv": 1.0, ".tsv": 1.0, ".parquet": 1.7, ".tar": 1.0, ".zip": 3.0}
"""Bytes of text per byte of a file; Parquet's as in OpenWebText, Wikipedia and FineWeb."""
_COMPRESSED = 3.0
_IN_DIRECTORIES = (
    tuple(plain + packed for plain in (".txt", ".jsonl", ".parquet") for packed in ("", ".gz", ".zst")),
    (*(plain + packed for plain in _EXPANSION for packed in ("", *COMPRESSED)), ".tgz", ".tbz2", ".txz"),
)
"""Suffixes of the files that are read in a directory; the second set where there are none of the first."""
_HEADING = re.compile(r" = (?!= ).* = \n")
_SPLIT_WORDS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}


@dataclass(frozen=True)
class SourceConfig:
    """What is read: the fields are the options of `documents`."""

    sources: tuple[str, ...]
    """Files (.txt .jsonl .csv .parquet .gz ...), directories, patterns, corpora (see data list), hub:OWNER/NAME."""
    seed: int = 0
    """Seed of "stories"."""
    max_documents: int | None = None
    """Use only the first N documents (of each split, for a corpus that comes in splits)."""
    column: str | None = None
    """Name of the text column of JSON, CSV and Parquet files; meta.text is inside meta. Default: "text"."""
    errors: Literal["strict", "replace"] = "strict"
    """Bytes that are not valid UTF-8: reject the file ("strict") or replace each of them ("replace")."""
    on_error: Literal["stop", "skip"] = "stop"
    """A file that cannot be read: stop, or skip it and list it at the end."""
    format: Literal["text", "chat"] = "text"
    """chat: JSON objects of messages, or of prompt and completion; the loss counts the assistant's text only."""


@dataclass(frozen=True)
class Chunk:
    """What is prepared together. ``split`` is set if the corpus comes in splits; stories have a seed and a range."""

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
        """Bytes to download."""
        return sum(file.size for file in self.files if file.url)

    @property
    def text_bytes(self) -> int:
        """Estimated bytes of text."""
        return (self.stop - self.start) * _STORY_BYTES + sum(map(_text_bytes, self.files))


def _text_bytes(file: SourceFile) -> int:
    path = Path(file.name)
    return int(file.size * (_COMPRESSED if is_compressed(path) else 1.0) * _EXPANSION[format_of(path)])


def documents(sources: Sequence[str], **options: Any) -> Iterator[Document]:
    """Return the documents of all sources, in the order of the sources; those of a directory in the order of paths.

    Files of the Hub are downloaded one at a time to a temporary directory and deleted after they are read.

    Args:
        sources: Files of text, JSON, CSV or Parquet, or archives of them (see `read_documents`), directories (every
            ``.txt``, ``.jsonl`` and ``.parquet`` below them is read, also as ``.gz`` or ``.zst``; other formats only if
            there are none of these), patterns such as ``logs/*.jsonl.gz``, names of
            `CORPORA`, and datasets of the Hub as ``hub:OWNER/NAME``. A file named like a corpus is ``./stories``.
        options: Other fields of `SourceConfig`. ``max_documents`` is 10,000 by default for the endless stories.

    Raises:
        InputError: At once if a source is missing, empty, unreachable or unknown, or a column is given and no source
            has columns; during reading for what `read_documents` and `fetch` refuse.
    """
    config = SourceConfig(tuple(sources), **options)
    return _read(resolve(config), config, {})


def texts(
    sources: Sequence[str], *, whole: bool = False, skipped: dict[str, str] | None = None, **options: Any
) -> Iterator[str]:
    """Return the text of the same documents as a stream of pieces, to train a tokenizer on.

    Files that a corpus holds out for validation or test are skipped. Pieces are cut where no word of the splitting
    pattern of GPT-2 or GPT-4 spans the cut; ``whole`` keeps each document in one piece, for other patterns. With
    ``on_error="skip"``, the files that cannot be read are added to ``skipped``, with the reason.
    """
    config = SourceConfig(tuple(sources), **options)
    chunks = [chunk for chunk in resolve(config) if chunk.split in ("", "train")]
    found = _read(chunks, config, {} if skipped is None else skipped)
    if whole:
        return ("".join(document.pieces()) for document in found)
    return chain.from_iterable(document.pieces() for document in found)


def _read(chunks: Iterable[Chunk], config: SourceConfig, skipped: dict[str, str]) -> Iterator[Document]:
    """Yield the documents of some chunks, downloading one at a time to a temporary directory."""
    to_skip = skipped if config.on_error == "skip" else None
    every = chain.from_iterable(_documents_of(chunk, to_skip) for chunk in chunks)
    number = 0
    for document in islice(every, config.max_documents):
        yield document
        number += 1
    require_some(number, skipped)


def require_some(documents: int, skipped: dict[str, str]) -> None:
    """Raise `InputError` if there are no documents because all files were skipped."""
    if skipped and not documents:
        name, why = next(iter(skipped.items()))
        raise InputError(f"none of the files can be read ({len(skipped)} skipped): {name}: {why}")


def _documents_of(chunk: Chunk, skipped: dict[str, str] | None) -> Iterator[Document]:
    temporary = tempfile.TemporaryDirectory(prefix="gpt2lab-") if chunk.download else contextlib.nullcontext("")
    with temporary as folder:
        yield from read_chunk(chunk, files_of(chunk, Path(folder)), skipped)


def files_of(chunk: Chunk, folder: Path) -> list[Path]:
    """Return the paths of a chunk's files, after downloading them to ``folder`` if they are not local.

    Raises:
        InputError: A local file was changed since the chunk was made.
    """
    paths = []
    for file in chunk.files:
        path = folder / Path(file.name).name if file.url else Path(file.name)
        if file.url and not path.exists():
            log.info("downloading %s, %s MB", file.name, f"{file.size / 1e6:,.1f}")
            fetch(file, path)
        elif not file.url and _source_file(path, check=False) != file:
            raise InputError(f"{path}: changed since preparing began; delete the incomplete output and start again")
        paths.append(path)
    return paths


def read_chunk(chunk: Chunk, paths: Iterable[Path], skipped: dict[str, str] | None = None) -> Iterator[Document]:
    """Yield the documents of a chunk, whose files are at ``paths``.

    Args:
        chunk: What to read.
        paths: From `files_of`.
        skipped: If given, files that cannot be read are left out and added to it, with the reason.

    Raises:
        InputError: It holds tokens instead of text, or a file cannot be read (see `read_documents`).
    """
    if chunk.cut == "tokens":
        raise InputError(f"{chunk.files[0].name}: holds tokens, not text; give a corpus of text")
    if chunk.cut == "stories":
        generated = islice(stories(chunk.seed, chunk.start), chunk.stop - chunk.start)
        return (TextDocument(story.text, story.bits) for story in generated)
    if chunk.cut == "articles":
        return chain.from_iterable(_articles(read_rows(path, chunk.column, chunk.errors)) for path in paths)
    files = zip(chunk.files, paths, strict=True)
    return chain.from_iterable(_documents_in(path, file.name, chunk, skipped) for file, path in files)


def _documents_in(path: Path, name: str, chunk: Chunk, skipped: dict[str, str] | None) -> Iterator[Document]:
    bad, parse = {}, conversation if chunk.cut == "chat" else None
    if skipped is not None:
        bad = unreadable(path, chunk.column, chunk.errors, parse)
        skipped |= {file.replace(str(path), name, 1): why for file, why in bad.items()}
    yield from read_documents(path, chunk.column, chunk.errors, bad, parse)


def _articles(rows: Iterable[str]) -> Iterator[Document]:
    """Join the lines of WikiText, whose blank ones are stored as empty, to articles that begin with a heading."""
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


def resolve(config: SourceConfig) -> list[Chunk]:
    """Return the chunks of all sources, after checking that each exists. Raises what `documents` raises at once."""
    if not config.sources:
        raise InputError(f"no source given: name files, directories or a corpus ({', '.join(CORPORA)})")
    if config.max_documents is not None and config.max_documents < 1:
        raise InputError(f"max_documents is {config.max_documents}; it must be 1 or more")
    one_of("errors", config.errors, ERRORS)
    one_of("on_error", config.on_error, ("stop", "skip"))
    if config.seed and "stories" not in config.sources:
        raise InputError(f"seed {config.seed} is given, but only stories have a seed; leave --seed out")
    one_of("format", config.format, ("text", "chat"))
    if config.format == "chat" and config.column is not None:
        raise InputError(
            f'column "{config.column}" is given, but --format chat reads whole objects; leave --column out'
        )
    groups: list[Chunk] = []
    has_columns = False
    for chunk in chain.from_iterable(_chunks(source, config) for source in config.sources):
        if config.format == "chat":
            chunk = _as_chat(chunk)
        has_columns |= any(format_of(Path(file.name)) != ".txt" for file in chunk.files)
        if groups and _fit(groups[-1], chunk):
            groups[-1] = replace(chunk, files=groups[-1].files + chunk.files)
        else:
            groups.append(chunk)
    if config.column is not None and not has_columns:
        raise InputError(f'column "{config.column}" is given, but no source has columns; leave --column out')
    return groups


def _as_chat(chunk: Chunk) -> Chunk:
    """Return a chunk of conversations. Raises `InputError` if its files cannot hold any."""
    if other := [file.name for file in chunk.files if format_of(Path(file.name)) not in (".jsonl", ".tar", ".zip")]:
        raise InputError(f"{other[0]}: --format chat reads .jsonl and .json files; convert it, or leave out --format")
    if chunk.cut != "file":
        raise InputError(f"{chunk.cut} holds no conversations; leave out --format chat, or name .jsonl files")
    return replace(chunk, cut="chat")


def _fit(one: Chunk, other: Chunk) -> bool:
    """Return whether two chunks of local files make one of at most `_TOGETHER` bytes."""
    if one.download or other.download or not one.files or replace(one, files=()) != replace(other, files=()):
        return False
    return sum(file.size for file in one.files + other.files) <= _TOGETHER


def _chunks(source: str, config: SourceConfig) -> list[Chunk]:
    how: dict[str, Any] = {"column": config.column or DEFAULT_COLUMN, "errors": config.errors}
    if source.startswith(PREFIX):
        return _of_hub(find_dataset(source.removeprefix(PREFIX)), **how)
    corpus = CORPORA.get(source)
    if corpus is None:
        return [Chunk((_source_file(path, check=config.on_error == "stop"),), **how) for path in find_files(source)]
    if corpus.cut == "stories":
        count = config.max_documents or corpus.documents
        starts = range(0, count, _STORIES)
        return [Chunk(cut="stories", seed=config.seed, start=n, stop=min(n + _STORIES, count)) for n in starts]
    if corpus.cut == "pystdlib":
        return [Chunk((_source_file(path),)) for path in _standard_library()]
    if corpus.url:
        return [Chunk((SourceFile(source + ".txt", corpus.size, corpus.sha256, corpus.url),))]
    splits = {}
    for split, pattern in corpus.files.items():
        found = list_files(corpus.repository, str(PurePosixPath(pattern).parent).removeprefix("."))
        splits[split] = [file for file in found if _matches(file.name, pattern)]
        if not splits[split]:
            raise InputError(f"{endpoint()}: {corpus.repository} has no file {pattern} any more; it was changed")
    return _of_hub(splits, cut=corpus.cut, **how)


def _matches(path: str, pattern: str) -> bool:
    """Return whether a path matches a pattern whose ``*`` does not match a slash."""
    return path.count("/") == pattern.count("/") and fnmatch(path, pattern)


def _of_hub(splits: dict[str, list[SourceFile]], **how: Any) -> list[Chunk]:
    if list(splits) == ["train"]:  # nothing is held out, so the split rule decides
        splits = {"": splits["train"]}
    return [
        Chunk((file,), split=split, **how)
        for split in ("test", "val", "train", "")  # held out first, so that its duplicates are dropped from train
        for file in splits.get(split, ())
    ]


def find_dataset(name: str, retry: RetryPolicy = DEFAULT_RETRY) -> dict[str, list[SourceFile]]:
    """Return the Parquet files of ``OWNER/NAME`` or ``OWNER/NAME/FOLDER`` by split ("" if their names do not tell it).

    Raises:
        InputError: It is not a name, holds no Parquet, or holds several subsets of which one must be named.
    """
    owner, _, rest = name.partition("/")
    repository, _, folder = rest.partition("/")
    repository, folder = f"{owner}/{repository}", folder.strip("/")
    if not NAME.fullmatch(repository):
        raise InputError(f'"hub:{name}" names no dataset; give hub:OWNER/NAME or hub:OWNER/NAME/FOLDER')
    for revision in ("main",) if folder else ("main", CONVERTED):
        found = [file for file in list_files(repository, folder, revision, retry) if file.name.endswith(".parquet")]
        if found:
            return _by_split(name, found)
    raise InputError(
        f"hub:{name} holds no Parquet, and the Hub has not converted it; download its files and name those"
    )


def _by_split(name: str, files: list[SourceFile]) -> dict[str, list[SourceFile]]:
    subsets, splits = set(), {}
    for file in files:
        path = PurePosixPath(file.name)
        folders = [part.removeprefix("partial-") for part in path.parent.parts]
        words = [re.split(r"[-_.\d]", path.name)[0], *reversed(folders)]
        split = next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), "")  # the rule of the Hub
        splits.setdefault(split, []).append(file)
        in_split = folders and folders[-1] in _SPLIT_WORDS
        subsets.add("/".join(path.parent.parts[:-1] if in_split else path.parent.parts))
    if len(subsets) > 1:
        first, *others = sorted(subsets)[:12]
        listed = ", ".join([first, *others]) + (", ..." if len(subsets) > 12 else "")
        raise InputError(f"hub:{name} holds several subsets: {listed}; name one: hub:{name}/{first}")
    return splits


def _source_file(path: Path, check: bool = True) -> SourceFile:
    if check:
        with open_bytes(path, errors="replace") as file:
            if not file.read(4).removeprefix(b"\xef\xbb\xbf"):
                raise InputError(f"{path}: the file is empty; give a file that holds text, or leave it out")
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a file that you may read") from error
    return SourceFile(str(path), found.st_size, str(found.st_mtime_ns))


def find_files(source: str) -> list[Path]:
    """Return the files that a source names, in order.

    Raises:
        InputError: It does not exist (suggests the nearest name), is a directory or pattern without a file of text, or
            is not a regular file.
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
    hint = did_you_mean(source, [*CORPORA, *neighbors(path)])
    raise InputError(
        f'"{source}" is not a file, directory or corpus{hint}; corpora: {", ".join(CORPORA)}, {PREFIX}OWNER/NAME'
    )


def _files_below(folder: Path) -> list[Path]:
    """Return the files of text in a directory, in the order of their paths; say which of the formats are left out."""
    usual, all_of_them = (
        [file for file in folder.rglob("*") if file.name.lower().endswith(suffixes) and file.is_file()]
        for suffixes in _IN_DIRECTORIES
    )
    if not all_of_them:
        raise InputError(
            f"{folder}: the directory holds no {', '.join(_EXPANSION)} file; name one that does, or a pattern such as "
            f"'{folder}/*.md'"
        )
    if left_out := len(all_of_them) - len(usual) if usual else 0:
        log.warning(
            "%s: left out %d files of other formats, because it holds .txt, .jsonl or .parquet; name them by a pattern",
            *(folder, left_out),
        )
    return sorted(usual or all_of_them, key=lambda file: file.relative_to(folder).parts)


def _standard_library() -> Iterator[Path]:
    """Yield the source files of Python's standard library that are text: a few are not UTF-8 on purpose."""
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        with contextlib.suppress(UnicodeDecodeError):
            if "\0" not in (text := path.read_bytes().decode("utf-8")) and text.strip():
                yield path


Cut = Literal["file", "articles", "tokens", "stories", "pystdlib", "chat"]
"""How a corpus is divided into documents: by the file's format or at headings; or it is tokens, or generated here."""


@dataclass(frozen=True)
class Corpus:
    """One corpus.

    ``files`` maps each split to the pattern of its paths in ``repository``. The empty name stands for a corpus without
    splits, of which ``held_out`` goes to validation and as much to the test. ``url`` is the address of a single file.
    """

    about: str
    license: str
    size: int = 0
    documents: int = 0
    tokens: int = 0
    repository: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    url: str = ""
    sha256: str = ""
    cut: Cut = "file"
    held_out: float = 0.05
    fall_back: str = ""


def _wikitext(version: str, size: int, documents: int) -> Corpus:
    names = {"test": "test", "val": "validation", "train": "train"}
    return Corpus(
        "Wikipedia articles rated good or featured; the classic benchmark of perplexity",
        "CC BY-SA 3.0",
        repository="Salesforce/wikitext",
        files={split: f"{version}/{name}-*.parquet" for split, name in names.items()},
        cut="articles",
        size=size,
        documents=documents,
    )


def _web(repository: str, sample: str, about: str, tokens: int, size: int = 0, documents: int = 0) -> Corpus:
    files = {"": f"sample/{sample}/*.parquet"}
    return Corpus(about, "ODC-By 1.0", size, documents, tokens, repository, files, held_out=0.001)


_fineweb = partial(_web, "HuggingFaceFW/fineweb")
_fineweb_edu = partial(_web, "HuggingFaceFW/fineweb-edu")
CORPORA: dict[str, Corpus] = {
    "stories": Corpus(
        "children's stories from a grammar of known entropy, any number; generated, no download",
        "MIT",
        documents=10_000,
        cut="stories",
    ),
    "pystdlib": Corpus(
        "this machine's Python standard library, one document per file; no download", "PSF", cut="pystdlib"
    ),
    "shakespeare": Corpus(
        "Tiny Shakespeare, a single text; a first model in a minute",
        "public domain",
        size=1_115_394,
        documents=1,
        tokens=338_025,
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "wikitext2": _wikitext("wikitext-2-raw-v1", size=7_747_362, documents=720),
    "wikitext103": _wikitext("wikitext-103-raw-v1", size=315_466_397, documents=28_592),
    "tinystories": Corpus(
        "short stories in the vocabulary of small children; fluent from a few million parameters",
        "CDLA-Sharing 1.0",
        size=1_000_775_442,
        documents=2_141_709,
        tokens=478_758_154,
        repository="roneneldan/TinyStories",
        files={"val": "data/validation-*.parquet", "train": "data/train-*.parquet"},
    ),
    "wikipedia": Corpus(
        "the English Wikipedia of November 2023",
        "CC BY-SA 3.0, GFDL",
        size=11_630_929_031,
        documents=6_407_814,
        tokens=4_620_000_000,
        repository="wikimedia/wikipedia",
        files={"": "20231101.en/*.parquet"},
        held_out=0.001,
        fall_back="wikitext2",
    ),
    "openwebtext": Corpus(
        "web pages linked from Reddit; an open reproduction of GPT-2's training data",
        "CC0 (the collection)",
        size=24_193_092_408,
        documents=8_013_769,
        tokens=9_040_000_000,
        repository="Skylion007/openwebtext",
        files={"": "plain_text/train-*.parquet"},
        held_out=0.0005,
    ),
    "fineweb": _fineweb("10BT", "filtered web pages; 10 billion tokens", 10_371_489_838, 30_639_384_917, 14_868_862),
    "fineweb-100bt": _fineweb("100BT", "the same, 100 billion tokens", 100_000_000_000),
    "fineweb-350bt": _fineweb("350BT", "the same, 350 billion tokens", 350_000_000_000),
    "fineweb-edu": _fineweb_edu(
        "10BT",
        "educational web pages; 10 billion tokens, GPT-2's quality with fewer of them",
        tokens=9_972_918_177,
        size=28_518_193_415,
        documents=9_672_101,
    ),
    "fineweb-edu-100bt": _fineweb_edu(
        "100BT", "the same, 100 billion tokens", 100_000_000_000, 286_000_000_000, 97_300_000
    ),
    "fineweb-edu-350bt": _fineweb_edu("350BT", "the same, 350 billion tokens", 350_000_000_000),
    "fineweb-gpt2": Corpus(
        "FineWeb as GPT-2 tokens, as used by modded-nanogpt: 103 files of 100 million tokens, one for validation",
        "MIT",
        size=20_700_000_000,
        tokens=10_350_000_000,
        repository="kjj0/fineweb10B-gpt2",
        files={"val": "fineweb_val_*.bin", "train": "fineweb_train_*.bin"},
        cut="tokens",
    ),
    "fineweb-edu-gpt2": Corpus(
        "FineWeb-Edu as GPT-2 tokens, by the author of llm.c: about 1,000 files of 100 million tokens",
        "ODC-By 1.0",
        size=200_000_000_000,
        tokens=100_000_000_000,
        repository="karpathy/fineweb-edu-100B-gpt2-token-shards",
        files={"val": "edu_fineweb_val_*.bin", "train": "edu_fineweb_train_*.bin"},
        cut="tokens",
    ),
}
