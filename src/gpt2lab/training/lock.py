"""One training of a run at a time: rank 0 holds a lock on the run's train.log while it works on the run.

Two trainings of one run would each remove what the other has not finished writing, and mix their rows in metrics.csv.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from gpt2lab.errors import InputError
from gpt2lab.files import locked
from gpt2lab.runs import Run
from gpt2lab.training.processes import Processes


@contextmanager
def held(run: Run, processes: Processes) -> Iterator[None]:
    """Keep other processes from training a run. Every rank must call it.

    Raises:
        InputError: Another process trains it.
    """
    taken = InputError(f"{run.path} is being trained by another process; wait for it, or end it")
    with ExitStack() as stack:
        processes.on_main(lambda: stack.enter_context(locked(run.path / "train.log", taken)))
        yield
