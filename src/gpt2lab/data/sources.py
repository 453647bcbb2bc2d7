"""Where text comes from: files, folders, patterns of names, corpora of the catalogue, data sets of the hub.

sources ["stories", "wikitext2", "a.txt", "more/*.jsonl.zst", "hub:OWNER/NAME"]
    ->  portions  ->  Document, Document, ...  ->  pieces of text
"""

from __future__ import annotations

import contextlib
import glob
import logging
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from gpt2lab.data.catalogue import CORPORA, Corpus
from gpt2lab.data.decoding import ERRORS
from gpt2lab.data.document import Document
from gpt2lab.data.download import fetch, token_header
from gpt2lab.data.hub import HubFile, any_dataset, endpoint, matching
from gpt2lab.data.opening import COMPRESSED, open_bytes
from gpt2lab.data.portions import Portion, SourceFile, grouped, read_portion, story_portions
from gpt2lab.data.readers import DEFAULT_COLUMN, format_of
from gpt2lab.errors import InputError, did_you_mean, one_of

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
    portions = resolve(sources, seed=seed, max_documents=max_documents, column=column, errors=errors)
    return _first(portions, max_documents)


def _first(portions: Sequence[Portion], max_documents: int | None) -> Iterator[Document]:
    return islice(chain.from_iterable(map(_documents_of, portions)), max_documents)


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
    portions = resolve(sources, seed=seed, max_documents=max_documents, column=column, errors=errors)
    found = _first([portion for portion in portions if portion.split in ("", "train")], max_documents)
    if whole:
        return ("".join(document.pieces()) for document in found)
    return chain.from_iterable(document.pieces() for document in found)


def _documents_of(portion: Portion) -> Iterator[Document]:
    if not portion.download:
        yield from read_portion(portion, here(portion))
        return
    with tempfile.TemporaryDirectory(prefix="gpt2lab-") as folder:
        yield from read_portion(portion, fetched(portion, Path(folder)))


def here(portion: Portion) -> list[Path]:
    """Return where the files of a portion of this machine lie. Raises `InputError` where one was changed since."""
    for file in portion.files:
        if _source_file(Path(file.name)) != file:
            raise InputError(f"{file.name}: changed since preparing began; delete what is half-written and begin anew")
    return [Path(file.name) for file in portion.files]


def fetched(portion: Portion, folder: Path) -> list[Path]:
    """Fetch the files of a portion to a folder, and return where they lie."""
    paths = []
    for file in portion.files:
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
) -> list[Portion]:
    """Return the portions of all sources, after looking that each is there. The arguments are those of `documents`."""
    if not sources:
        raise InputError(f"no source given: name files, folders or a corpus ({', '.join(CORPORA)})")
    if max_documents is not None and max_documents < 1:
        raise InputError(f"max_documents is {max_documents}; it must be 1 or more")
    one_of("way with errors", errors, ERRORS)
    if seed and "stories" not in sources:
        raise InputError(f"seed {seed} is given, but only stories have a seed; leave --seed out")
    portions = []
    for source in sources:
        portions += _portions(source, seed, max_documents, column, errors)
    has_columns = any(format_of(Path(file.name)) != ".txt" for portion in portions for file in portion.files)
    if column is not None and not has_columns:
        raise InputError(f'column "{column}" is given, but no source has columns; leave --column out')
    return grouped(portions)


def _portions(source: str, seed: int, max_documents: int | None, column: str | None, errors: str) -> list[Portion]:
    if source.startswith(HUB):
        return _of_hub(any_dataset(source.removeprefix(HUB)), column=column or DEFAULT_COLUMN, errors=errors)
    corpus = CORPORA.get(source)
    if corpus is None:
        files = map(_source_file, find_files(source))
        return [Portion((file,), column=column or DEFAULT_COLUMN, errors=errors) for file in files]
    if corpus.cut == "stories":
        return story_portions(seed, max_documents or corpus.documents)
    if corpus.cut == "pystdlib":
        return [Portion((_source_file(path),)) for path in _standard_library()]
    if corpus.url:
        return [Portion((SourceFile(source + ".txt", corpus.size, corpus.sha256, corpus.url),))]
    return _of_corpus(corpus, column, errors)


def _of_corpus(corpus: Corpus, column: str | None, errors: str) -> list[Portion]:
    found = matching(corpus.repository, corpus.files)
    return _of_hub(found, cut=corpus.cut, column=column or corpus.column, errors=errors)


def _of_hub(splits: dict[str, list[HubFile]], **how: str) -> list[Portion]:
    if list(splits) == ["train"]:  # nothing is held out, so the rule decides
        splits = {"": splits["train"]}
    return [
        Portion((SourceFile(file.path, file.size, file.sha256 or "", file.url),), split=split, **how)  # type: ignore[arg-type]
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
