"""One training of a run at a time: rank 0 holds a lock on the run's train.log while it works on the run.

The operating system holds it for the open file, so it ends with the process, however that ended. Two trainings of one
run would each remove what the other has not finished writing, and mix their rows in metrics.csv.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from gpt2lab.errors import InputError
from gpt2lab.runs import Run
from gpt2lab.training.processes import Processes

log = logging.getLogger("gpt2lab")
WINDOWS_BYTE = 2**30
"""The byte that is locked on Windows, where nobody else could read or write it: far behind the end."""


@contextmanager
def held(run: Run, processes: Processes) -> Iterator[None]:
    """Keep other processes from training a run. Every rank must call it.

    Raises:
        InputError: Another process trains it.
    """
    with ExitStack() as stack:
        processes.on_main(lambda: stack.enter_context(_locked(run.path / "train.log")))
        yield


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        try:
            _lock(file)
        except (BlockingIOError, PermissionError) as error:
            raise InputError(f"{path.parent} is being trained by another process; wait for it, or end it") from error
        except OSError as error:  # some network file systems
            log.warning("%s cannot be locked (%s): see that no other process trains this run", path, error.strerror)
        yield


def _lock(file: BinaryIO) -> None:
    if sys.platform == "win32":
        import msvcrt

        file.seek(WINDOWS_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        # Not lockf: its lock would be gone when anything in this process reads train.log and closes it.
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
