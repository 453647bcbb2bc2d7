"""A failure on one rank ends all of them, wherever each of them is, and its reason is shown once.

    rank 0   ... no space left               leaves the reason in the store that all can read, and fails
    rank 1   ... exchanges with rank 0       the exchange breaks when rank 0 is gone: rank 1 finds the reason there
    rank 2   ... computes, or waits on NCCL, which does not see that rank 0 is gone: a thread of rank 2 finds the reason

What the ranks agree on (`Processes.together`) needs none of this. The rest does: a row that cannot be written, a hook
that raises, memory that ends on one rank in the middle of a step.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from gpt2lab.errors import ReportedElsewhere
from gpt2lab.training.interrupt import Interrupted

REASON = "gpt2lab/reason"
LOOK_SECONDS = 1.0
"""How often the thread looks for another rank's failure."""
GRACE_SECONDS = 5.0
"""How long a rank has to end by itself before its thread ends it."""


@contextmanager
def failing_together(store: Store, rank: int) -> Iterator[None]:
    """Run a rank's part of a run. Where it fails by itself, the other ranks end too.

    Args:
        store: Where the ranks leave reasons: one that only this meeting of them uses.
        rank: The rank.

    Raises:
        ReportedElsewhere: Another rank failed first; this one ends because of it.
    """
    over = threading.Event()
    thread = threading.Thread(target=_look, args=(store, over), name="gpt2lab-failures", daemon=True)
    thread.start()
    try:
        yield
    except (ReportedElsewhere, Interrupted):  # all ranks know
        raise
    except BaseException as error:
        mine = f"rank {rank}: {type(error).__name__}: {error}"
        first = _leave(store, mine)
        if first != mine:
            raise ReportedElsewhere(first) from error
        raise
    finally:
        over.set()
        thread.join()


def _leave(store: Store, reason: str) -> str:
    """Leave a reason unless there is one; return the one that is there then."""
    try:
        return store.compare_set(REASON, "", reason).decode()
    except dist.DistError:  # the store went with the process that kept it; then nobody reads it
        return reason


def _look(store: Store, over: threading.Event) -> None:
    """End this process where another rank has failed and this one stays."""
    while not over.wait(LOOK_SECONDS):
        try:
            failed = store.check([REASON])
        except dist.DistError:  # as in `_leave`
            return
        if failed and not over.wait(GRACE_SECONDS):
            os._exit(2)
