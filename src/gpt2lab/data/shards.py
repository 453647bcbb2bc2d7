"""Token files in llm.c's format: a header of 256 int32, then one unsigned integer per token, little-endian.

    header[0] magic    header[1] version    header[2] tokens    header[3:] zero

    vocabulary up to 65,536    magic 20240520, version 1, uint16   (GPT-2's; modded-nanogpt's are the same)
    larger                     magic 20240801, version 7, uint32   (Llama 3's)

Source: karpathy/llm.c, dev/data/data_common.py and llmc/dataloader.h. Files of theirs are read here as they are, and
they read ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2lab.errors import InputError

HEADER_BYTES = 1024
_BLOCK = 1 << 22
"""Bytes read at once where a whole file is passed over."""


@dataclass(frozen=True)
class ShardFormat:
    """One of the two forms of the file."""

    magic: int
    version: int
    dtype: np.dtype[np.unsignedinteger]


UINT16 = ShardFormat(20240520, 1, np.dtype("<u2"))
UINT32 = ShardFormat(20240801, 7, np.dtype("<u4"))
_FORMATS = {form.magic: form for form in (UINT16, UINT32)}


def format_for(n_vocab: int) -> ShardFormat:
    """Return the smaller form that holds every id below ``n_vocab``."""
    return UINT16 if n_vocab <= 1 << 16 else UINT32


@dataclass(frozen=True)
class Shard:
    """A token file whose header agrees with its size; ``offset`` is the byte at which its tokens begin."""

    path: Path
    tokens: int
    dtype: np.dtype[np.unsignedinteger]
    offset: int = HEADER_BYTES


def open_shard(path: Path) -> Shard:
    """Check a token file's header against its size.

    Raises:
        InputError: Missing, not a token file (magic, version), or longer or shorter than its header says.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = np.frombuffer(file.read(HEADER_BYTES)[: HEADER_BYTES // 4 * 4], dtype="<i4")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); prepare the data again") from error
    if size < HEADER_BYTES:
        raise InputError(f"{path}: {size} bytes, less than the {HEADER_BYTES} of a token file's header; {_AGAIN}")
    magic, version, tokens = (int(value) for value in header[:3])
    if magic not in _FORMATS:
        known = " or ".join(map(str, _FORMATS))
        raise InputError(
            f"{path}: begins with {magic} where a token file has {known}; name a token file "
            "(one of nanoGPT, without header, can be adopted with --raw)"
        )
    form = _FORMATS[magic]
    if version != form.version:
        raise InputError(f"{path}: version {version} of the token file's format; version {form.version} can be read")
    expected = HEADER_BYTES + tokens * form.dtype.itemsize
    if size != expected:
        what = "truncated" if size < expected else "too long"
        raise InputError(f"{path}: {what}: {size} bytes, but its header says {tokens} tokens = {expected}; {_AGAIN}")
    return Shard(path, tokens, form.dtype)


_AGAIN = "copy or prepare it again"


def checked_sha256(shard: Shard, n_vocab: int) -> str:
    """Return the SHA-256 of the whole file, read once, after checking that every id is below ``n_vocab``.

    Raises:
        InputError: An id beyond the vocabulary (with file, byte offset and value).
    """
    digest = hashlib.sha256()
    with shard.path.open("rb") as file:
        digest.update(file.read(shard.offset))
        while block := file.read(_BLOCK):
            ids = np.frombuffer(block[: len(block) // shard.dtype.itemsize * shard.dtype.itemsize], dtype=shard.dtype)
            if ids.size and ids.max() >= n_vocab:
                first = int(np.argmax(ids >= n_vocab))
                offset = file.tell() - len(block) + first * shard.dtype.itemsize
                raise InputError(
                    f"{shard.path}: token id {ids[first]} at byte {offset}; the vocabulary has {n_vocab} ids "
                    f"(0 to {n_vocab - 1}); use the tokenizer that the file was made with"
                )
            digest.update(block)
    return digest.hexdigest()


class ShardWriter:
    """Writes one split's tokens to ``{split}_000000.bin``, ``{split}_000001.bin``, ... of a fixed number of tokens.

    A file has a temporary name until it is complete and on the disk. Nothing but the open file's buffer is in memory.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        form: ShardFormat,
        shard_tokens: int,
        reserve: Callable[[int], None] = lambda size: None,
    ) -> None:
        """Write to ``directory``; ``reserve`` is told how many bytes are about to be written, and may refuse."""
        if not 1 <= shard_tokens < 1 << 31:
            raise InputError(f"shard_tokens is {shard_tokens}; the format holds 1 to {(1 << 31) - 1} tokens in a file")
        self._directory = directory
        self.split = split
        self.form = form
        self._shard_tokens = shard_tokens
        self._reserve = reserve
        self._file = None
        self._in_file = 0
        self.paths: list[Path] = []

    def write(self, ids: np.ndarray) -> None:
        """Append ids (1-d, integers), beginning a new file wherever one is full."""
        while len(ids):
            if self._file is None:
                self._begin()
            assert self._file is not None
            part = ids[: self._shard_tokens - self._in_file]
            self._reserve(len(part) * self.form.dtype.itemsize)
            self._file.write(part.astype(self.form.dtype, copy=False).tobytes())
            self._in_file += len(part)
            ids = ids[len(part) :]
            if self._in_file == self._shard_tokens:
                self.finish()

    def _begin(self) -> None:
        self._reserve(HEADER_BYTES)
        path = self._directory / f"{self.split}_{len(self.paths):06d}.bin"
        self._file = path.with_suffix(".bin.partial").open("wb")
        self._file.write(bytes(HEADER_BYTES))
        self._in_file = 0
        self.paths.append(path)

    def finish(self) -> None:
        """Complete the file being written, if there is one."""
        if self._file is None:
            return
        header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
        header[:3] = self.form.magic, self.form.version, self._in_file
        self._file.seek(0)
        self._file.write(header.tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.abandon()
        self.paths[-1].with_suffix(".bin.partial").replace(self.paths[-1])

    def abandon(self) -> None:
        """Close the file being written without completing it."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk, which was told already, or all is on the disk
                self._file.close()
            self._file = None
