"""Rounds prepared by another process while this one trains: started, told what is no longer needed, and ended.

    training --- "the oldest round needed is 7" --->  preparer          its folder says which rounds are ready
             <-- its last line, where it failed ----                     the end of its input ends it

A process of its own, because encoding holds the interpreter that training needs. It reads what it is told from a pipe,
which closes however training ends, so it never outlives it, not even a kill.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Self

from gpt2lab.data.rounds import Rounds
from gpt2lab.errors import InputError

LOG = "preparer.log"


class Ahead:
    """The process that prepares rounds from ``first`` on, within a ``with`` block."""

    def __init__(self, rounds: Rounds, first: int) -> None:
        self._rounds = rounds
        self._first = first
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]  # this very code, wherever it lies
        command = [sys.executable, "-m", "gpt2lab.data.preparer", str(self._rounds.folder), str(self._first)]
        with (self._rounds.folder / LOG).open("wb") as log:
            self._process = subprocess.Popen(
                [*command, str(self._rounds.max_disk or 0)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
                start_new_session=True,  # Ctrl-C is training's to handle
            )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.kill()  # what it has under way is done again
        self._process.wait()
        with contextlib.suppress(OSError):  # it was told something that it no longer read
            self._process.stdin.close()

    def keep_from(self, first: int) -> None:
        """Have the rounds before ``first`` deleted."""
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(OSError):  # it ended, as who waits for it will be told
            self._process.stdin.write(f"{first}\n".encode())
            self._process.stdin.flush()

    def require_running(self) -> None:
        """Raise `InputError` with what the process said last, where it has ended."""
        assert self._process is not None
        if (code := self._process.poll()) is None:
            return
        path = self._rounds.folder / LOG
        said = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if code == 2 and said:
            raise InputError(f"preparing ahead: {said[-1]} (training is saved: go on with --resume)")
        why = said[-1] if said else f"exit status {code}"
        raise InputError(f"the process that prepares ahead ended ({why}); see {path}, and go on with --resume")
