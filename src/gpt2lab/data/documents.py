"""Documents, which may stay in a compressed file, and the split that each belongs to.

    Document -> Part of train, val or test -> pieces of text

Compressed files are read by the standard library, ``.zst`` by pyarrow; UTF-16 with a byte order mark is read as UTF-8.
Reading is sequential, with bounded memory. A damaged file raises `InputError` wherever it is noticed.

The split is a function of the document. By hash, u = blake2b(text) / 2**64 is uniform in [0, 1), and

    u < val  ->  val        val <= u < val + test  ->  test        else  ->  train

so copies of a document are in the same split, and no test document is in the training text. A few documents would be
split too unevenly, so each is cut in three instead:

    | train: the first 1 - (val + test) of its characters | val | test |

For a single file with val 0.1 and test 0, this is the usual split of Tiny Shakespeare.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import hashlib
import importlib
import io
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal, TypeAlias, cast

import numpy as np

from gpt2lab.errors import InputError, TemporaryError
from gpt2lab.files import is_full, write_atomically

COMPRESSED = (".gz", ".zst", ".xz", ".bz2")
BLOCK = 1 << 20
"""Bytes of a file that are read at once."""
PIECE = 1 << 18
"""Characters, or bytes of a file, in a piece of text: enough that the overhead is negligible, and few enough to
distribute over threads. A longer document of a file is not held as text but as its position in the file."""
SPLITS = ("train", "val", "test")
FEW_DOCUMENTS = 100
"""With fewer documents, each is cut in three instead of being assigned whole."""
_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_BOUNDARY = re.compile(r".*(?:\S(?= )|[0-9A-Za-z](?=\n))", re.DOTALL)
_HASHES = "{split}.hashes"
"""File with a chunk's hashes of a split: 8 bytes per document, in order."""


def is_compressed(path: Path) -> bool:
    """Return whether a file is compressed, by its suffix."""
    return path.suffix.lower() in COMPRESSED


@contextmanager
def open_bytes(path: Path, start: int = 0, errors: str = "strict") -> Iterator[BinaryIO]:
    """Open a file at byte ``start`` of its content, which is decompressed and, if it was UTF-16, UTF-8.

    Args:
        path: The file. Its suffix says whether it is compressed, and a byte order mark whether it is UTF-16.
        start: A byte of the content.
        errors: What to do with bytes that are not UTF-16, as for `bytes.decode`.

    Raises:
        InputError: The file cannot be read or is damaged, when it is opened or while it is read.
    """
    with explaining_damage(path), _open(path) as packed:
        encoding = _UTF16.get(packed.peek(2)[:2])
        file = packed
        if encoding:
            text = decoded(iter(partial(packed.read, BLOCK), b""), path, errors, encoding)
            file = io.BufferedReader(_AsUtf8(text), BLOCK)
        if is_direct(file):
            file.seek(start)
        else:
            while start and (skipped := file.read(min(BLOCK, start))):
                start -= len(skipped)
        yield file


@contextmanager
def explaining_damage(path: Path) -> Iterator[None]:
    """Turn the errors of reading a file into `InputError`; that of a full disk is of a copy, and is raised."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and is_full(error):
            raise
        if why := getattr(error, "strerror", None):
            raise InputError(f"{path}: cannot be read ({why}); give a file that you may read") from error
        raise InputError(f"{path}: damaged or truncated ({error}); download or compress it again") from error


def is_direct(file: BinaryIO) -> bool:
    """Return whether any byte of a file that `open_bytes` opened is read without reading those before it."""
    return isinstance(getattr(file, "raw", None), io.FileIO)


def _open(path: Path) -> io.BufferedReader:
    suffix = path.suffix.lower()
    if suffix == ".zst":
        stream = needed("pyarrow", path).input_stream(str(path), compression="zstd")
        return io.BufferedReader(stream, BLOCK)
    opener: Any = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}.get(suffix, Path.open)
    return cast(io.BufferedReader, opener(path, "rb"))


def needed(module: str, path: Path) -> Any:
    """Import an optional module. Raises `TemporaryError` that names the extra if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TemporaryError(f"{path}: needs pyarrow, which is not installed: pip install 'gpt2lab[hub]'") from error


class _AsUtf8(io.RawIOBase):
    """Text, given in pieces that are not empty, as a file of UTF-8."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = memoryview(next(self._pieces, "").encode("utf-8"))
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size


@dataclass(frozen=True)
class TextDocument:
    """A document in memory; ``bits`` is its exact -log2 probability, if known."""

    text: str
    bits: float | None = None
    counts: ClassVar[tuple[bool, ...]] = ()

    def pieces(self) -> Iterator[str]:
        """Yield the text in order, cut where no token can span the cut."""
        starts = range(0, len(self.text), PIECE)
        return _cut_at_boundaries(self.text[start : start + PIECE] for start in starts)


@dataclass(frozen=True)
class FileDocument:
    """A long document that stays in its file: bytes ``start`` to ``stop`` of the content."""

    path: Path
    start: int
    stop: int
    bits: float | None = None
    errors: str = "strict"
    counts: ClassVar[tuple[bool, ...]] = ()

    def pieces(self) -> Iterator[str]:
        """Yield the text in order, cut where no token can span the cut. Raises `InputError` if it is not UTF-8."""
        with open_bytes(self.path, self.start, self.errors) as file:
            blocks = (file.read(min(PIECE, self.stop - at)) for at in range(self.start, self.stop, PIECE))
            yield from _cut_at_boundaries(decoded_text(blocks, self.path, self.errors, self.start, self.stop))


@dataclass(frozen=True)
class Conversation:
    """A document in memory of which only some spans count in the loss; see chat.py."""

    spans: tuple[tuple[str, bool], ...]
    """Each text, which is encoded by itself, and whether it counts."""
    bits: ClassVar[None] = None

    def pieces(self) -> Iterator[str]:
        """Yield the text of each span."""
        return (text for text, _ in self.spans)

    @property
    def counts(self) -> tuple[bool, ...]:
        """Whether each piece counts; empty for the other documents, all of which counts."""
        return tuple(counts for _, counts in self.spans)


Document: TypeAlias = TextDocument | FileDocument | Conversation


def decoded_text(blocks: Iterable[bytes], path: Path, errors: str, start: int, stop: int) -> Iterator[str]:
    """Yield the text of bytes ``start`` to ``stop`` of a file, with its line ends as they are.

    Raises:
        InputError: ``errors`` is strict and a byte is zero or not UTF-8 (with its offset), or the blocks end early.
    """

    def checked() -> Iterator[bytes]:
        at = start
        for block in blocks:
            if errors == "strict" and (zero := block.find(0)) >= 0:
                raise InputError(f"{path}: not a text file: a zero byte at offset {at + zero}; give UTF-8 text")
            if block:  # an empty one would end the text for the decoder
                yield block
            at += len(block)
        if at < stop:
            raise InputError(f"{path}: became shorter while it was read; leave it unchanged and try again")

    return decoded(checked(), path, errors, start=start)


def decoded(blocks: Iterable[bytes], path: Path, errors: str, encoding: str = "utf-8", start: int = 0) -> Iterator[str]:
    """Yield the text of the blocks that begin at byte ``start`` of a file, in pieces that are not empty.

    Raises:
        InputError: ``errors`` is strict and a byte is not of the encoding (with its offset).
    """
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    for block in chain(blocks, [b""]):
        start += len(block)
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:  # its object is the block and what was left of the one before
            at, byte = start - len(error.object) + error.start, error.object[error.start]
            name = "UTF-8" if encoding.startswith("utf-8") else "UTF-16, as its byte order mark says"
            raise InputError(
                f"{path}: not {name}: byte 0x{byte:02x} at offset {at}; save it as UTF-8, or use --errors replace"
            ) from error
        if text:
            yield text


def _cut_at_boundaries(chunks: Iterable[str]) -> Iterator[str]:
    """Regroup text so that each piece but the last ends where no word of the splitting patterns continues."""
    held: list[str] = []
    for chunk in chunks:
        if held and (boundary := _BOUNDARY.match(held[-1])):
            last = held.pop()
            yield "".join([*held, last[: boundary.end()]])
            held = [last[boundary.end() :]]
        held.append(chunk)
    if rest := "".join(held):
        yield rest


@dataclass(frozen=True)
class Part:
    """A document, or a section of one, that belongs to one split."""

    split: str
    pieces: Iterator[str]
    bits: float | None
    counts: tuple[bool, ...] = ()
    """Whether each piece counts in the loss; empty if all do."""


@dataclass(frozen=True)
class SplitRule:
    """How documents are split: whole by ``"hash"``, each cut in three by ``"position"``, or as ``"given"``."""

    by: Literal["hash", "position", "given"]
    val_fraction: float
    test_fraction: float

    def __post_init__(self) -> None:
        for name, fraction in (("val", self.val_fraction), ("test", self.test_fraction)):
            if not 0.0 <= fraction < 1.0:
                raise InputError(f"the {name} fraction is {fraction}; it must be 0 or more and less than 1")
        if self.val_fraction + self.test_fraction >= 1.0:
            raise InputError(
                f"the val and test fractions {self.val_fraction} and {self.test_fraction} leave nothing to train on; "
                "their sum must be less than 1"
            )

    def parts(self, document: Document, hashed: int | None = None) -> Iterator[Part]:
        """Yield the parts of a document; read each before the next.

        Args:
            document: A document.
            hashed: Its hash, if it is known already.
        """
        held_out = self.val_fraction + self.test_fraction
        if self.by == "hash":
            u = (hash_of(document) if hashed is None else hashed) / 2**64
            split = "val" if u < self.val_fraction else "test" if u < held_out else "train"
            yield Part(split, document.pieces(), document.bits, document.counts)
            return
        n = sum(map(len, document.pieces()))
        edges = (0, int(n * (1.0 - held_out)), int(n * (1.0 - self.test_fraction)), n)
        for split, start, stop in zip(SPLITS, edges[:-1], edges[1:], strict=True):
            if start < stop:
                yield Part(split, _section(document.pieces(), start, stop), None)


def hash_of(document: Document) -> int:
    """Return 64 bits of BLAKE2b of a document's text."""
    digest = hashlib.blake2b(digest_size=8)
    for piece in document.pieces():
        digest.update(piece.encode("utf-8"))
    return int.from_bytes(digest.digest(), "big")


def _section(pieces: Iterator[str], start: int, stop: int) -> Iterator[str]:
    """Yield the characters from ``start`` to ``stop`` of a text given in pieces."""
    position = 0
    for piece in pieces:
        if text := piece[max(0, start - position) : max(0, stop - position)]:
            yield text
        position += len(piece)
        if position >= stop:
            return


def write_hashes(folder: Path, hashes: dict[str, list[int]]) -> None:
    """Write the hashes of each split's documents to the directory of a chunk."""
    for split, values in hashes.items():
        write_atomically(folder / _HASHES.format(split=split), np.array(values, dtype="<u8").tobytes())


def read_hashes(folders: list[Path], splits: tuple[str, ...]) -> np.ndarray:
    """Return the hashes of some splits of some chunks, sorted."""
    files = [folder / _HASHES.format(split=split) for folder in folders for split in splits]
    hashes = [np.fromfile(file, dtype="<u8") for file in files if file.exists()]
    return np.sort(np.concatenate(hashes)) if hashes else np.empty(0, dtype="<u8")


def overlap(folders: list[Path]) -> int:
    """Return how many documents of validation and test are also in train."""
    held_out = read_hashes(folders, ("val", "test"))
    in_train = np.zeros(len(held_out), dtype=bool)
    for folder in folders:  # one chunk at a time, so that memory holds only the held-out hashes
        in_train |= np.isin(held_out, read_hashes([folder], ("train",)))
    return int(in_train.sum())
