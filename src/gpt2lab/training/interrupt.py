"""Ctrl-C and SIGTERM as a wish to stop after the step, not as an exception in the middle of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from gpt2lab.runs import Run


class Interrupted(Exception):
    """A signal ended the run after its state was saved; ``signal`` is its number, ``verb`` what goes on with it."""

    def __init__(self, signal: int, run: Run, step: int, verb: str = "train") -> None:
        super().__init__(f"stopped after step {step} and saved; go on with: gpt2lab {verb} --out {run.path} --resume")
        self.signal, self.run, self.step = signal, run, step


@contextmanager
def catch_signals() -> Iterator[Callable[[], int | None]]:
    """Yield a function that says which of SIGINT and SIGTERM has come, if any; a second one takes effect at once.

    Outside the main thread signals cannot be caught, and nothing is changed.
    """
    received: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
