"""Check a student's directory in a process of its own, part by part, whatever the code in it does.

One worker (worker.py) goes through the parts; this process judges what it reports. If the worker dies, hangs or breaks
the protocol, the part that it was at gets the blame and a new worker goes on with the next one. This protects against
mistakes, not against attacks: the code runs with the rights of the user (docs/teaching.md).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Collection, Generator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from gpt2lab.errors import InputError, require
from gpt2lab.formatting import duration, printable, size
from gpt2lab.learn.exercises import FILES, PARTS, Part

if TYPE_CHECKING:
    from gpt2lab.learn.check import Status, Verdict

SECONDS, MEMORY = 10.0, 2 * 2**30
"""How long a part may take, and how much memory."""
STARTUP = 120.0
"""Seconds that a worker may take to import torch."""
LONGEST_LINE, LONGEST_MESSAGE = 64 * 2**20, 400
"""Bytes of a line from the worker; characters of a message of a student's code."""
OUT_OF_MEMORY = 77
"""The exit code of a worker that used more memory than it may."""
JUDGING = threading.Lock()
"""The variants of the reference may draw from torch's generator, which all threads share."""


def check_directory(
    directory: Path, chapters: Collection[int] = (), seconds: float = SECONDS, memory: int = MEMORY
) -> Generator[Verdict]:
    """Check the parts of a student's directory, of some chapters or of all; yield a verdict on each, in their order.

    Args:
        directory: Holds a file for each chapter.
        chapters: Chapters from 1 to 10; all by default.
        seconds: Time limit of a part, and of importing a file.
        memory: Memory limit of the worker, in bytes.

    Raises:
        InputError: The directory does not exist, or a chapter.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory; create one with: gpt2lab learn start {directory}")
    for chapter in chapters:
        require(1 <= chapter <= len(FILES), "chapter", chapter, f"from 1 to {len(FILES)}")
    parts = [part for part in PARTS if not chapters or part.chapter in chapters]
    return _verdicts(parts, {"directory": str(directory.resolve()), "memory": memory}, seconds)


def _verdicts(parts: list[Part], job: dict[str, Any], seconds: float) -> Generator[Verdict]:
    todo, broken = deque(part.name for part in parts), dict[str, str]()
    while todo:
        part = module = ""  # where the worker is now
        fresh = True
        with Worker({**job, "parts": list(todo), "broken": broken}) as worker:
            from gpt2lab.learn.check import Verdict  # torch loads here while it loads in the worker

            try:
                while todo:
                    kind, name, *rest = worker.message(seconds)
                    if kind == "load":
                        module = name
                    elif name != todo[0]:
                        raise _Forged
                    elif kind == "part":
                        part = name
                    else:
                        verdict = _judged(part, rest[0], job["memory"])
                        if verdict.status == "limit" and not fresh:
                            break  # parts before it may have filled the memory; it gets a worker of its own
                        part, fresh = "", False
                        todo.popleft()
                        yield verdict
            except _Ended as ended:
                if not part and fresh:
                    raise RuntimeError(f"the process that runs the parts {ended} before it began") from ended
                if not part or not (fresh or ended.certain):
                    continue  # what a part left behind may be the reason; the next worker tries it alone
                if module:
                    broken[module] = f"{module}.py {ended}"
                else:
                    todo.popleft()
                    yield Verdict(part, ended.status, f"It {ended}.")


def _judged(part: str, done: Any, memory: int) -> Verdict:
    """Return the verdict on what a worker reports of a part."""
    from gpt2lab.learn.check import Verdict, judge
    from gpt2lab.learn.outcomes import Observation, decoded

    try:
        status, says, output = done["status"], _line(done["says"]), printable(done["output"])
        if status == "ran":
            with JUDGING:
                return replace(judge(part, decoded(Observation(**done["observed"]))), output=output)
        if status == "limit":
            says = f"It needs more than {size(memory)} of memory: {says}"
        if status in ("missing", "error", "limit"):
            return Verdict(part, status, says, output=output)
    except (ArithmeticError, AssertionError, RecursionError) as error:
        return Verdict(part, "error", f"What it returns cannot be compared ({type(error).__name__}).")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _Forged from error
    raise _Forged


def _line(text: str) -> str:
    """Return a message of a student's code in one line that a terminal can show."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]} ..."


class _Ended(Exception):
    """The worker cannot go on. ``certain``: whatever ran before in this worker is not the reason."""

    def __init__(self, why: str, status: Status = "error", certain: bool = False) -> None:
        super().__init__(why)
        self.status: Status = status
        self.certain = certain


class _Forged(_Ended):
    """The worker sent what no worker sends."""

    def __init__(self) -> None:
        super().__init__("wrote into the pipe of the checker")


class Worker:
    """A worker process and the messages that it sends. Leaving the context ends it and everything that it started."""

    def __init__(self, job: dict[str, Any]) -> None:
        token = secrets.token_hex()
        self.memory, self.begin = job["memory"], f'["{token}"'.encode()
        self.folder = tempfile.TemporaryDirectory(prefix="gpt2lab-learn-", ignore_cleanup_errors=True)
        environment = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), self.folder.name) | {
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gpt2lab.learn.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | environment,
            start_new_session=True,  # Ctrl-C reaches this process only; a group of its own that can be killed
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        assert self.process.stdin is not None and self.process.stdout is not None  # pipes
        self._stdin, self._stdout = self.process.stdin, self.process.stdout
        self.lines = queue.SimpleQueue[tuple[float, bytes]]()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.deadline = time.monotonic() + STARTUP
        with contextlib.suppress(BrokenPipeError):  # it has ended, which the first message will say
            self._stdin.write(json.dumps({**job, "token": token, "folder": self.folder.name}).encode() + b"\n")
            self._stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the group is gone
            os.killpg(self.process.pid, signal.SIGKILL) if hasattr(os, "killpg") else self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            self._stdin.close()
        self.reader.join(timeout=1)
        if not self.reader.is_alive():  # else a process that left the group holds the pipe
            self._stdout.close()
        self.folder.cleanup()

    def _read(self) -> None:
        """Put the lines of the worker into the queue, with their time, up to the first that is not its own."""
        line = self.begin
        while line.startswith(self.begin):
            line = self._stdout.readline(LONGEST_LINE)
            self.lines.put((time.monotonic(), line))

    def message(self, seconds: float) -> list[Any]:
        """Return the next message. Raises `_Ended` if there is none within some seconds after the last."""
        try:
            arrived, line = self.lines.get(timeout=max(0.0, self.deadline - time.monotonic()))
        except queue.Empty:
            raise _Ended(f"did not end within {duration(seconds)}", "limit", certain=True) from None
        self.deadline = arrived + seconds
        if not line:
            raise self._ended()
        try:
            _, kind, name, *rest = json.loads(line if line.startswith(self.begin) else b"")
        except (ValueError, RecursionError):
            raise _Forged from None
        return [kind, name, *rest]

    def _ended(self) -> _Ended:
        """Return how the process ended, whose pipe is closed."""
        try:
            code = self.process.wait(timeout=max(1.0, self.deadline - time.monotonic()))  # much memory is freed slowly
        except subprocess.TimeoutExpired:
            return _Ended("closed the pipe of the checker")
        if code == OUT_OF_MEMORY:
            return _Ended(f"needs more than {size(self.memory)} of memory", "limit")
        if code < 0:
            return _Ended(f"crashed the process: {signal.strsignal(-code) or -code}")
        return _Ended(f"ended the process with exit code {code}; it must return")
