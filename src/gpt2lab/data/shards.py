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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt2lab.data.selection import SPLITS, SplitRule
from gpt2lab.errors import InputError
from gpt2lab.files import read_json, sync_directory, write_json

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
            "(one of nanoGPT, without header, can be imported with --raw)"
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


class TokenStream:
    """The tokens of several shards, in their order, as one sequence; ``len(stream)`` is their number."""

    def __init__(self, name: str, shards: Sequence[Shard]) -> None:
        """Join ``shards``, which must have one dtype. ``name`` is how messages call the stream."""
        dtypes = {shard.dtype for shard in shards}
        if len(dtypes) != 1:
            raise InputError(
                f"{name}: {len(shards)} token files of {len(dtypes)} formats; give one or more of one format"
            )
        self.name = name
        self.shards = tuple(shards)
        self.dtype = dtypes.pop()
        self._ends = np.cumsum([shard.tokens for shard in shards])  # (shards,): where each shard ends in the sequence

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Return the stretches of ``length`` tokens that begin at ``starts``.

        Args:
            starts: (n,) positions in the sequence, 0 <= start <= len(self) - length, in any order.
            length: Tokens of each stretch.

        Returns:
            (n, length) array of the files' dtype.

        Raises:
            InputError: A file can no longer be read, or became shorter.
        """
        starts = np.asarray(starts, dtype=np.int64)
        if length < 1 or (starts.size and (starts.min() < 0 or starts.max() + length > len(self))):
            raise IndexError(f"stretches of {length} tokens must lie within the {len(self)} of {self.name}")
        rows = np.empty((len(starts), length), dtype=self.dtype)
        first = np.searchsorted(self._ends, starts, side="right")
        last = np.searchsorted(self._ends, starts + length - 1, side="right")
        for index in range(int(first.min(initial=0)), int(last.max(initial=-1)) + 1):
            touched = np.flatnonzero((first <= index) & (index <= last))
            if touched.size:
                self._fill(rows, touched, starts, index)
        return rows

    def _fill(self, rows: np.ndarray, touched: np.ndarray, starts: np.ndarray, index: int) -> None:
        """Read what shard ``index`` holds of the ``touched`` rows."""
        shard = self.shards[index]
        begins = int(self._ends[index]) - shard.tokens
        try:
            # Unbuffered: a buffer would read 8 KiB ahead of every row.
            with shard.path.open("rb", buffering=0) as file:
                for row, start in zip(touched.tolist(), (starts[touched] - begins).tolist(), strict=True):
                    target = rows[row, max(0, -start) : shard.tokens - start]
                    file.seek(shard.offset + max(0, start) * shard.dtype.itemsize)
                    if file.readinto(target.data) != target.nbytes:
                        raise InputError(f"{shard.path}: became shorter while in use; copy or prepare it again")
        except OSError as error:
            raise InputError(f"{shard.path}: cannot be read ({error.strerror}); prepare the data again") from error


def open_npy(path: Path) -> Shard:
    """Check a file of numpy's format: its header against its size.

    Raises:
        InputError: It cannot be read, is damaged, or holds anything but a row of uint16 or uint32.
    """
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            offset, size = file.tell(), path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy it again") from error
    except ValueError as error:
        raise InputError(f"{path}: not an array in numpy's format ({error}); copy it again") from None
    if len(shape) != 1 or dtype not in (UINT16.dtype, UINT32.dtype):
        raise InputError(f"{path}: holds {dtype} of shape {shape}; token files hold a row of uint16 or uint32")
    if size != offset + shape[0] * dtype.itemsize:
        raise InputError(f"{path}: {size} bytes, but its header says {shape[0]} tokens; copy it again")
    return Shard(path, shape[0], dtype, offset)


def open_raw(path: Path) -> Shard:
    """Check a file of nothing but uint16.

    Raises:
        InputError: It cannot be read, is empty, of odd size, or begins as a file with a header does.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = int.from_bytes(file.read(4), "little")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy it again") from error
    if first in (UINT16.magic, UINT32.magic):
        raise InputError(f"{path}: begins with the header of llm.c's files; leave --raw out")
    if size % 2 or not size:
        raise InputError(f"{path}: {size} bytes; uint16 tokens take an even number of bytes, and there must be some")
    return Shard(path, size // 2, UINT16.dtype, 0)


OPENERS: dict[str, Callable[[Path], Shard]] = {"llm.c": open_shard, "npy": open_npy, "raw": open_raw}
"""How each form of a token file is opened and checked."""


FORMAT = 1
MANIFEST = "manifest.json"
WORK = "preparing"
"""The folder in which an unfinished preparation keeps its journal; see `journal`."""


@dataclass(frozen=True)
class SourceInfo:
    """Where the text came from and how it was taken: the arguments of `prepare`."""

    names: tuple[str, ...]
    seed: int
    max_documents: int | None
    column: str | None = None
    errors: str = "strict"
    min_length: int = 0
    deduplicate: bool = False
    shard_tokens: int | None = None
    """None where files came as they are."""


@dataclass(frozen=True)
class TokenizerInfo:
    """The tokenizer that the ids belong to."""

    fingerprint: str
    n_vocab: int
    eot: int


@dataclass(frozen=True)
class SplitInfo:
    """What one split holds.

    ``bytes`` are those of the text in UTF-8 (the tokens between documents have none). ``entropy_bits`` is the sum of
    the documents' exact -log2 probabilities, where every document has one: no model can do better on average.
    """

    documents: int
    tokens: int
    bytes: int
    entropy_bits: float | None


@dataclass(frozen=True)
class ShardInfo:
    """One token file."""

    name: str
    split: str
    tokens: int
    sha256: str
    form: str = "llm.c"
    """One of `foreign.OPENERS`."""


@dataclass(frozen=True)
class LeftOut:
    """Documents left out on request, and those of validation and test that stand in train as well."""

    short: int = 0
    duplicates: int = 0
    held_out_in_train: int = 0


@dataclass(frozen=True)
class DataManifest:
    """The contents of ``manifest.json``."""

    source: SourceInfo
    tokenizer: TokenizerInfo
    split_rule: SplitRule
    splits: dict[str, SplitInfo]
    shards: tuple[ShardInfo, ...]
    left_out: LeftOut = LeftOut()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the tokenizer's fingerprint and every shard's: two folders with the same hold the same data."""
        lines = [self.tokenizer.fingerprint, *(f"{shard.split} {shard.sha256}" for shard in self.shards)]
        return hashlib.sha256("\n".join(lines).encode("utf-8")).hexdigest()

    def save(self, directory: Path) -> None:
        """Write ``manifest.json``."""
        write_json(directory / MANIFEST, {"format": FORMAT, **asdict(self)})
        sync_directory(directory)

    @classmethod
    def load(cls, directory: Path) -> DataManifest:
        """Read ``manifest.json``.

        Raises:
            InputError: The folder is missing or half-written, or its manifest is damaged or of another format.
        """
        path = directory / MANIFEST
        if not path.is_file():
            raise InputError(_why_no_manifest(directory))
        tree = read_json(path)
        try:
            return _parse(tree)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: damaged ({type(error).__name__}: {error}); prepare the data again") from error


def is_incomplete(directory: Path) -> bool:
    """Return whether preparing this folder was stopped before it was complete."""
    return not (directory / MANIFEST).exists() and (directory / WORK).is_dir()


def _why_no_manifest(directory: Path) -> str:
    if directory.is_file():
        return (
            f"{directory}: a file, not a folder of prepared data; make one of it with: "
            f"gpt2lab data prepare {directory} --tokenizer TOKENIZER --out FOLDER"
        )
    if not directory.is_dir():
        return f"{directory}: no such folder of prepared data; make it with: gpt2lab data prepare"
    if is_incomplete(directory):
        return f"{directory}: half-written, as preparing it was stopped; run the same command again to go on"
    if any(directory.glob("*.bin")) or any(directory.glob("*.npy")):
        return (
            f"{directory}: holds token files, but no {MANIFEST} that says whose tokens they are; say it with: "
            f"gpt2lab data import {directory} --tokenizer TOKENIZER"
        )
    return f"{directory}: holds no prepared data (no {MANIFEST}); make it with: gpt2lab data prepare"


def _parse(tree: dict[str, Any]) -> DataManifest:
    if tree["format"] != FORMAT:
        raise InputError(f"format {tree['format']}; this version reads format {FORMAT}: prepare the data again")
    source = {**tree["source"], "names": tuple(tree["source"]["names"])}
    manifest = DataManifest(
        source=SourceInfo(**source),
        tokenizer=TokenizerInfo(**tree["tokenizer"]),
        split_rule=SplitRule(**tree["split_rule"]),
        splits={name: SplitInfo(**tree["splits"][name]) for name in SPLITS if name in tree["splits"]},
        shards=tuple(ShardInfo(**shard) for shard in tree["shards"]),
        left_out=LeftOut(**tree.get("left_out", {})),
    )
    for name, split in manifest.splits.items():
        held = sum(shard.tokens for shard in manifest.shards if shard.split == name)
        if held != split.tokens:
            raise InputError(f"{split.tokens} tokens of {name}, but {held} in its files; prepare the data again")
    return manifest
