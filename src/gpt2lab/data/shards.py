"""Token files, and several of them as one stream.

Files are written in llm.c's format: a header of 256 int32, then one unsigned integer per token, little-endian.

    header[0] magic    header[1] version    header[2] number of tokens    header[3:] zero

    vocabulary up to 65,536    magic 20240520, version 1, uint16   (GPT-2; also modded-nanogpt)
    larger                     magic 20240801, version 7, uint32   (Llama 3)

Source: karpathy/llm.c, dev/data/data_common.py and llmc/dataloader.h. Files written by llm.c are read unchanged, and
llm.c reads ours. Files of two other formats can be read: ``.npy`` (build-nanogpt) and plain uint16 (nanoGPT).

If only some tokens count in the loss, a file ``.mask`` beside each token file says which: one bit per token, set if it
counts, beginning with the lowest bit of the first byte. The bits after the last token are 0.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gpt2lab.errors import InputError
from gpt2lab.files import write_atomically

HEADER_BYTES = 1024
BLOCK = 1 << 20
"""Tokens read at once when a whole file or stream is scanned."""


@dataclass(frozen=True)
class ShardFormat:
    """A variant of llm.c's format."""

    magic: int
    version: int
    dtype: np.dtype[np.unsignedinteger]


UINT16 = ShardFormat(20240520, 1, np.dtype("<u2"))
UINT32 = ShardFormat(20240801, 7, np.dtype("<u4"))
_BY_MAGIC = {variant.magic: variant for variant in (UINT16, UINT32)}


def format_for(n_vocab: int) -> ShardFormat:
    """Return the smaller variant that holds every id below ``n_vocab``."""
    return UINT16 if n_vocab <= 1 << 16 else UINT32


@dataclass(frozen=True)
class Shard:
    """A token file whose header agrees with its size; its tokens begin at byte ``offset``."""

    path: Path
    tokens: int
    dtype: np.dtype[np.unsignedinteger]
    offset: int = HEADER_BYTES
    masked: bool = False
    """Whether the file `mask_of` its path says which tokens count in the loss."""


def mask_of(path: Path) -> Path:
    """Return the path of the mask of a token file."""
    return path.with_suffix(".mask")


def with_mask(shard: Shard) -> Shard:
    """Return a shard with its mask. Raises `InputError` if the mask cannot be read or is of another size."""
    path, expected = mask_of(shard.path), -(-shard.tokens // 8)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy or prepare it again") from error
    if size != expected:
        raise InputError(f"{path}: {size} bytes, but {shard.tokens} tokens need {expected}; copy or prepare it again")
    return replace(shard, masked=True)


def open_shard(path: Path, form: str = "llm.c") -> Shard:
    """Check the header of a token file against the file's size; ``form`` is a key of `FORMS`.

    Raises:
        InputError: The file cannot be read, is not of that format, or is longer or shorter than its header says.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            shard = FORMS[form](path, file, size)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy or prepare it again") from error
    expected = shard.offset + shard.tokens * shard.dtype.itemsize
    if size != expected:
        raise InputError(
            f"{path}: {'truncated' if size < expected else 'too long'}: {size} bytes, but its header says "
            f"{shard.tokens} tokens = {expected}; copy or prepare it again"
        )
    return shard


def _open_llmc(path: Path, file: BinaryIO, size: int) -> Shard:
    if size < HEADER_BYTES:
        raise InputError(
            f"{path}: {size} bytes, less than the {HEADER_BYTES}-byte header of a token file; copy or prepare it again"
        )
    magic, version, tokens = struct.unpack("<3i", file.read(12))
    if (variant := _BY_MAGIC.get(magic)) is None:
        raise InputError(
            f"{path}: starts with {magic}, but token files start with {' or '.join(map(str, _BY_MAGIC))}; name a token "
            "file (nanoGPT's, which have no header, can be imported with --raw)"
        )
    if version != variant.version:
        raise InputError(f"{path}: version {version} of the token file format; only version {variant.version} is known")
    return Shard(path, tokens, variant.dtype)


def _open_npy(path: Path, file: BinaryIO, size: int) -> Shard:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except ValueError as error:
        raise InputError(f"{path}: not a NumPy array file ({error}); copy it again") from None
    if len(shape) != 1 or dtype not in (UINT16.dtype, UINT32.dtype):
        raise InputError(f"{path}: holds {dtype} of shape {shape}; token files hold one row of uint16 or uint32")
    return Shard(path, shape[0], dtype, file.tell())


def _open_raw(path: Path, file: BinaryIO, size: int) -> Shard:
    if int.from_bytes(file.read(4), "little") in _BY_MAGIC:
        raise InputError(f"{path}: starts with llm.c's header; leave out --raw")
    if size % 2 or not size:
        raise InputError(f"{path}: {size} bytes; uint16 tokens need an even, positive number of bytes")
    return Shard(path, size // 2, UINT16.dtype, 0)


FORMS: dict[str, Callable[[Path, BinaryIO, int], Shard]] = {"llm.c": _open_llmc, "npy": _open_npy, "raw": _open_raw}
"""How the header of each format of token file is read."""


def checked_sha256(shard: Shard, n_vocab: int) -> str:
    """Return the SHA-256 of the whole file, read once, after checking that every id is below ``n_vocab``.

    Raises:
        InputError: An id is not in the vocabulary (with file, byte offset and value).
    """
    digest = hashlib.sha256()
    with shard.path.open("rb") as file:
        digest.update(file.read(shard.offset))
        while (ids := np.fromfile(file, shard.dtype, BLOCK)).size:
            if ids.max() >= n_vocab:
                first = int(np.argmax(ids >= n_vocab))
                raise InputError(
                    f"{shard.path}: token id {ids[first]} at byte {file.tell() - (len(ids) - first) * ids.itemsize}; "
                    f"the vocabulary has {n_vocab} ids (0 to {n_vocab - 1}); use the tokenizer the file was made with"
                )
            digest.update(ids.data)
    return digest.hexdigest()


@dataclass(eq=False)
class ShardWriter:
    """Writes the tokens of a split to ``{split}_000000.bin``, ``{split}_000001.bin``, ... of a fixed number of tokens.

    A file has a temporary name until it is complete and on disk. Only the buffer of the open file is in memory.
    ``reserve`` is called with the number of bytes before each write, and may raise.
    """

    directory: Path
    split: str
    variant: ShardFormat
    shard_tokens: int
    reserve: Callable[[int], None] = lambda size: None
    masked: bool = False
    """Whether to write masks, too."""

    def __post_init__(self) -> None:
        if not 1 <= self.shard_tokens < 1 << 31:
            raise InputError(f"shard_tokens is {self.shard_tokens}; a file holds 1 to {(1 << 31) - 1} tokens")
        self._file: BinaryIO | None = None
        self._in_file = 0
        self._mask = bytearray()  # of the open file
        self.paths: list[Path] = []

    def write(self, ids: np.ndarray, counted: bool | np.ndarray = True) -> None:
        """Append ids (1-d, integers), and to the mask which of them count; start a new file when one is full."""
        counted = np.broadcast_to(counted, len(ids)) if self.masked else np.empty(0)
        while len(ids):
            file = self._file or self._begin()
            part = ids[: self.shard_tokens - self._in_file]
            self.reserve(len(part) * self.variant.dtype.itemsize)
            file.write(part.astype(self.variant.dtype, copy=False).tobytes())
            if self.masked:
                self._append_to_mask(counted[: len(part)])
            self._in_file += len(part)
            ids, counted = ids[len(part) :], counted[len(part) :]
            if self._in_file == self.shard_tokens:
                self.finish()

    def _append_to_mask(self, counted: np.ndarray) -> None:
        before = len(self._mask)
        if used := self._in_file % 8:  # bits of the last byte
            last = np.array([self._mask.pop()], dtype=np.uint8)
            counted = np.concatenate([np.unpackbits(last, count=used, bitorder="little"), counted])
        self._mask += np.packbits(counted, bitorder="little").tobytes()
        self.reserve(len(self._mask) - before)

    def _begin(self) -> BinaryIO:
        self.reserve(HEADER_BYTES)
        path = self.directory / f"{self.split}_{len(self.paths):06d}.bin"
        self._file = path.with_suffix(".bin.partial").open("wb")
        self._file.write(bytes(HEADER_BYTES))
        self._in_file = 0
        self.paths.append(path)
        return self._file

    def finish(self) -> None:
        """Complete the file that is open, if there is one."""
        if self._file is None:
            return
        header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
        header[:3] = self.variant.magic, self.variant.version, self._in_file
        self._file.seek(0)
        self._file.write(header.tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.abandon()
        if self.masked:
            write_atomically(mask_of(self.paths[-1]), bytes(self._mask))
            self._mask.clear()
        self.paths[-1].with_suffix(".bin.partial").replace(self.paths[-1])

    def abandon(self) -> None:
        """Close the file that is open without completing it."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # the disk is full, which was reported already, or everything is written
                self._file.close()
            self._file = None


class TokenStream:
    """The tokens of several shards, in order, as one sequence of ``len(stream)`` tokens."""

    def __init__(self, name: str, shards: Sequence[Shard]) -> None:
        """Join ``shards``, which must have one dtype. ``name`` identifies the stream in messages."""
        dtypes = {shard.dtype for shard in shards}
        if len(dtypes) != 1:
            raise InputError(
                f"{name}: {len(shards)} token files with {len(dtypes)} dtypes; give at least one, all alike"
            )
        self.masked = all(shard.masked for shard in shards)
        """Whether only some of the tokens count in the loss."""
        if self.masked != any(shard.masked for shard in shards):
            raise InputError(f"{name}: some token files have a .mask and others have none; give one to each, or none")
        self.name = name
        self.shards = tuple(shards)
        self.dtype = dtypes.pop()
        self._ends = np.cumsum([shard.tokens for shard in shards])  # (shards,): where each shard ends in the sequence

    def __len__(self) -> int:
        return int(self._ends[-1])

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the whole sequence as arrays of at most `BLOCK` tokens."""
        for start in range(0, len(self), BLOCK):
            yield self.read(np.array([start]), min(BLOCK, len(self) - start))[0]

    def require_counted(self) -> None:
        """Raise `InputError` if none of the tokens counts in the loss."""
        if self.masked and not any(block.any() for block in self.counted_blocks()):
            raise InputError(f"{self.name}: none of its tokens counts in the loss; prepare or import the data again")

    def counted_blocks(self) -> Iterator[np.ndarray]:
        """Yield for each array of `blocks` which of its tokens count in the loss."""
        for start in range(0, len(self), BLOCK):
            yield self.counted(np.array([start]), min(BLOCK, len(self) - start))[0]

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Return the spans of ``length`` tokens that begin at ``starts``.

        Args:
            starts: (n,) positions in the sequence, 0 <= start <= len(self) - length, in any order.
            length: Tokens in each span.

        Returns:
            (n, length) array with the dtype of the files.

        Raises:
            InputError: A file can no longer be read, or became shorter.
        """
        rows = np.empty((len(starts), length), dtype=self.dtype)
        for shard, parts in self._parts(starts, length):
            with _opened(shard.path) as fill:
                for row, start in parts:
                    target = rows[row, max(0, -start) : shard.tokens - start]
                    fill(target, shard.offset + max(0, start) * shard.dtype.itemsize)
        return rows

    def counted(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Return which tokens of such spans count in the loss, (n, length), bool. Arguments and errors as in `read`."""
        rows = np.ones((len(starts), length), dtype=bool)
        for shard, parts in self._parts(starts, length) if self.masked else ():
            with _opened(mask_of(shard.path)) as fill:
                for row, start in parts:
                    target = rows[row, max(0, -start) : shard.tokens - start]
                    byte, bit = divmod(max(0, start), 8)
                    packed = np.empty(-(-(bit + len(target)) // 8), dtype=np.uint8)
                    fill(packed, byte)
                    target[:] = np.unpackbits(packed, bitorder="little")[bit : bit + len(target)]
        return rows

    def _parts(self, starts: np.ndarray, length: int) -> Iterator[tuple[Shard, Iterable[tuple[int, int]]]]:
        """Yield each shard that spans lie in, with their rows and where in the shard they begin, or how far before."""
        starts = np.asarray(starts, dtype=np.int64)
        if length < 1 or (starts.size and (starts.min() < 0 or starts.max() + length > len(self))):
            raise IndexError(f"spans of {length} tokens must lie within the {len(self)} of {self.name}")
        first = np.searchsorted(self._ends, starts, side="right")
        last = np.searchsorted(self._ends, starts + length - 1, side="right")
        for index in range(int(first.min(initial=0)), int(last.max(initial=-1)) + 1):
            rows = np.flatnonzero((first <= index) & (index <= last))
            if rows.size:
                shard = self.shards[index]
                begins = int(self._ends[index]) - shard.tokens
                yield shard, zip(rows.tolist(), (starts[rows] - begins).tolist(), strict=True)


@contextmanager
def _opened(path: Path) -> Iterator[Callable[[np.ndarray, int], None]]:
    """Open a file; yield a function that fills an array with its bytes from a position on."""
    try:
        with path.open("rb", buffering=0) as file:  # a buffer would read 8 KiB for every row

            def fill(target: np.ndarray, at: int) -> None:
                file.seek(at)
                if file.readinto(target.data) != target.nbytes:
                    raise InputError(f"{path}: became shorter during use; copy or prepare it again")

            yield fill
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy or prepare it again") from error
