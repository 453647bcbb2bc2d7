"""Keeping to a given amount of disk: every byte is asked for before it is written."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt2lab.errors import InputError

_KEPT = "what is finished is kept: run the same command again"


class DiskFull(InputError):
    """There is no room, on the disk or in what was allowed of it; with more the same command goes on."""


class DiskBudget:
    """Counts the bytes of downloads and token files that are on the disk, and refuses those beyond ``limit``."""

    def __init__(self, limit: int | None, used: int = 0) -> None:
        self.limit = limit
        self.used = used

    def reserve(self, size: int) -> None:
        """Count bytes that are about to be written. Raises `DiskFull` where they are beyond the limit."""
        if self.limit is not None and self.used + size > self.limit:
            raise DiskFull(
                f"{self.used:,} bytes are written and {size:,} more would go beyond the {self.limit:,} of --max-disk; "
                f"{_KEPT} with more"
            )
        self.used += size

    def release(self, size: int) -> None:
        """Count bytes that were deleted."""
        self.used -= size


def is_full(error: OSError) -> bool:
    """Return whether the system says that a disk, a quota or a limit on files is used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def explaining_full_disk(folder: Path, needed: int) -> Iterator[None]:
    """Turn what the system says of a full disk into a line with the bytes needed and free.

    Args:
        folder: Where is written; it need not be there yet.
        needed: About how many bytes are still to be written.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        raise DiskFull(
            f"{folder}: the disk is full ({error.strerror}): about {needed:,} bytes are needed, {free:,} are free; "
            f"{_KEPT} with more room"
        ) from error


def bytes_below(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def size_of(text: str) -> int:
    """Return the bytes of a size such as 20GB, 500 MB or 5GiB.

    Raises:
        InputError: It is no size.
    """
    units = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*([KMGT]?I?)B?", text.strip().upper())
    if found is None or found[2] not in units:
        raise InputError(f'"{text}" is no size; give one such as 20GB, 500MB or 5GiB')
    return int(float(found[1]) * units[found[2]])
