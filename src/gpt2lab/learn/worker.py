"""The process in which a student's code runs: tries the parts it is given, one after the other, and says what they did.

    python -m gpt2lab.learn.worker        a job (JSON) in the first line of standard input
    -> [TOKEN, "part", name], [TOKEN, "load", module], [TOKEN, "done", name, what it did] as lines of standard output

Standard output and the rest of standard input become private to this module before any code of the student's runs.
What a student's code prints, and how it ends, reaches neither. The process ends when its parent does.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import math
import os
import random
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2lab.learn import cases, gpt2, outcomes
from gpt2lab.learn.exercises import PARTS, Part
from gpt2lab.learn.sandbox import OUT_OF_MEMORY
from gpt2lab.learn.student import Chapters, Missing
from gpt2lab.runtime import peak_memory_mb

PRINTED = 10_000
"""Characters of a part's output that are kept."""
POLL = 0.05


class Printed(io.TextIOBase):
    """Standard output and error of a part: the first 10 kB."""

    def __init__(self) -> None:
        self.text = ""

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Keep the text as far as there is room."""
        if (room := PRINTED - len(self.text)) > 0:
            self.text += text[:room]
        return len(text)


class Untouched:
    """The functions that a student's code may replace, in Python, torch and here, as they were at the start."""

    def __init__(self) -> None:
        classes = [value for value in vars(torch.nn).values() if isinstance(value, type)]
        here = (cases, gpt2, outcomes, sys.modules[Chapters.__module__], Chapters)
        owners = (builtins, math, json, os, torch, torch.linalg, torch.nn.functional, torch.Tensor, *classes, *here)
        self.saved = [(owner, dict(vars(owner))) for owner in owners]

    def restore(self) -> None:
        """Undo what was replaced, and the settings of torch and Python that a part may have changed."""
        for owner, saved in self.saved:
            now = dict(vars(owner))
            for name, value in saved.items():
                if now.get(name) is not value:
                    setattr(owner, name, value)
            for name in now.keys() - saved.keys() if isinstance(owner, type) else ():
                delattr(owner, name)
        torch.set_grad_enabled(True)
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.set_num_threads(1)
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        sys.setrecursionlimit(1000)


def main() -> None:
    """Do the job that standard input describes."""
    job_file, results = os.fdopen(os.dup(0), "rb"), os.dup(1)
    job = json.loads(job_file.readline())
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    threading.Thread(target=_end_with_parent, args=(job_file, job["folder"]), daemon=True).start()
    _limit_memory(job["memory"])

    def send(*message: Any) -> None:
        line = memoryview(f"{json.dumps([job['token'], *message])}\n".encode())
        while line:
            line = line[os.write(results, line) :]

    untouched, threads = Untouched(), threading.active_count()

    def on_load(module: str) -> None:
        untouched.restore()  # what a file sets when it is imported would hold for the next part only
        send("load", module)

    chapters = Chapters(Path(job["directory"]), job["broken"], on_load)
    by_name = {part.name: part for part in PARTS}
    for name in job["parts"]:
        os.chdir(job["folder"])
        send("part", name)
        done = _try(chapters, by_name[name], untouched)
        send("done", name, done)
        if done["status"] == "limit" or threading.active_count() > threads:
            break  # what the part left behind could disturb the next
    os._exit(0)  # without the student's handlers of exit


def _try(chapters: Chapters, part: Part, untouched: Untouched) -> dict[str, Any]:
    """Observe a part; return what it did, or the status and the reason why it did nothing."""
    printed = Printed()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            with chapters.trying(part) as function:
                observed = vars(outcomes.observe(part.name, function))
            untouched.restore()
            json.dumps(observed)
            done = {"status": "ran", "says": "", "observed": observed}
        except BaseException as error:  # whatever a student's code raises
            untouched.restore()
            try:
                is_stub = isinstance(error, NotImplementedError) and not error.args
                says = "not implemented yet" if is_stub else chapters.explain(error)
                done = {"status": _status(error), "says": says}
            except BaseException:  # an exception that cannot even be printed
                done = {"status": "error", "says": f"{part.file}: {type(error).__name__}"}
    return done | {"output": printed.text}


def _status(error: BaseException) -> str:
    if isinstance(error, NotImplementedError | Missing):
        return "missing"
    full = isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    return "limit" if full else "error"


def _end_with_parent(job_file: io.BufferedReader, folder: str) -> None:
    job_file.read()  # returns when the parent closes the pipe or ends
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _limit_memory(limit: int) -> None:
    """Let allocations fail beyond a limit where the system can do that, and end the process beyond it everywhere."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    most = peak_memory_mb(torch.device("cpu")) + limit / 2**20

    def watch() -> None:
        while peak_memory_mb(torch.device("cpu")) < most:
            time.sleep(POLL)
        os._exit(OUT_OF_MEMORY)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
