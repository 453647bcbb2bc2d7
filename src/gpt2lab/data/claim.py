"""One process a portion at a time: whoever works on portion i holds a lock on byte i of one file.

    OUT/preparing/claims     r0 r1 r2 r3 r0 r1 ...       torchrun's ranks share them out; a second command gets none

Two processes on one portion would each delete what the other is writing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gpt2lab.errors import InputError
from gpt2lab.files import locked

CLAIMS = "claims"


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
    taken = Claimed(f"{folder.parent} is being prepared by another process; wait for it, or end it")
    with locked(folder / CLAIMS, taken, portions):
        yield
