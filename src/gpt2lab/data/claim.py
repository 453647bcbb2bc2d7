"""One process a portion at a time: whoever works on portion i holds a lock on byte i of one file.

    OUT/preparing/claims     r0 r1 r2 r3 r0 r1 ...       torchrun's ranks share them out; a second command gets none

The operating system holds a lock for the process, so it ends with it, however that ended. Two processes on one portion
would each delete what the other is writing.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gpt2lab.errors import InputError

CLAIMS = "claims"
log = logging.getLogger("gpt2lab")


class Claimed(InputError):
    """Another process works on what was asked for."""


@contextmanager
def claimed(folder: Path, portions: Sequence[int]) -> Iterator[None]:
    """Keep other processes from some portions of the journal in ``folder``.

    Raises:
        Claimed: Another process works on one of them.
    """
    if not portions:  # whoever completes the others may already be deleting the folder
        yield
        return
    with (folder / CLAIMS).open("ab") as file:
        try:
            for portion in portions:
                _lock(file, portion)
        except (BlockingIOError, PermissionError) as error:
            raise Claimed(f"{folder.parent} is being prepared by another process; wait for it, or end it") from error
        except OSError as error:  # some network file systems
            log.warning(
                "%s cannot be locked (%s): see that no other process prepares it", folder.parent, error.strerror
            )
        yield


def _lock(file: BinaryIO, byte: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        file.seek(byte)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        # Not flock, which locks whole files only.
        fcntl.lockf(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
