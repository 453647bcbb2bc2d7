"""Token files of other projects, read as they are.

    llm.c, modded-nanogpt    NAME_train_000001.bin    our own format, see `shards`
    build-nanogpt            NAME_train_000001.npy    numpy's format: one array of uint16 (or uint32)
    nanoGPT                  train.bin  val.bin       uint16 and nothing else, so that any file of even size is one

What a file holds its name and first bytes say, except in the last case: that must be told.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from gpt2lab.data.shards import UINT16, UINT32, Shard, open_shard
from gpt2lab.errors import InputError


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
