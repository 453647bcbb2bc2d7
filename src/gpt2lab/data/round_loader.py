"""Batches of rounds: within each, those of `Loader`; from one to the next, in order.

    step     0 ... s0 - 1    s0 ... s0 + s1 - 1    ...      round r has  s_r = windows of r // sequences of a step
    round    0               1                     ...      and is read in the permutation of (seed, r)

A step reads one round only, so the windows left over at a round's end, fewer than a step's, are not read. A batch is a
pure function of (seed, step, micro-step, rank, world) and of the rounds' sizes, which the ledger keeps: the sizes of
the rounds up to a step's are known when it is read. A round is no longer needed once the state after its last step is
saved; should an older state be gone on from, the rounds are prepared again, to the same bytes: so they take the room of
what is being read, whatever number of checkpoints is kept.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from gpt2lab.data.ahead import Ahead
from gpt2lab.data.loader import Batch, Loader, micro_steps
from gpt2lab.data.rounds import Rounds
from gpt2lab.errors import InputError

log = logging.getLogger("gpt2lab")
_POLL_SECONDS = 0.05


class RoundLoader:
    """The training batches of a corpus that is prepared round by round; the arguments are those of `Loader`."""

    def __init__(
        self,
        rounds: Rounds,
        seq_len: int,
        sequences_per_step: int,
        micro_batch: int,
        seed: int,
        world: int = 1,
        rank: int = 0,
        eot: int | None = None,
    ) -> None:
        self.micro_steps = micro_steps(sequences_per_step * seq_len, seq_len, micro_batch, world)
        self._rounds = rounds
        self._how = (seq_len, sequences_per_step, micro_batch, seed, world, rank, eot)
        self._begins = [0]  # the first step of each round whose size is known, and of the one after
        self._open: dict[int, Loader] = {}
        self._guard = threading.RLock()  # threads read ahead
        self._ahead: Ahead | None = None
        self._check: Callable[[], None] = lambda: None
        self._over = False

    def batch(self, step: int, micro_step: int) -> Batch:
        """Return the batch of a micro-step; wait until its round is ready.

        Raises:
            InputError: The process that prepares rounds has ended, or the round is smaller than a step.
        """
        if not self.is_ready(step):
            self._wait_for(step)
        loader, begin = self._loader(step)
        return loader.batch(step - begin, micro_step)

    def windows(self, step: int, micro_step: int, rank: int | None = None) -> np.ndarray:
        """Return the numbers of the windows of that batch within its round, (B,)."""
        loader, begin = self._loader(step)
        return loader.windows(step - begin, micro_step, rank)

    def epoch_of(self, step: int) -> float:
        """Return the rounds completed when ``step`` steps are."""
        number = self.round_of(step)
        if number + 1 == len(self._begins):  # at the border to a round not known yet
            return float(number)
        begin, end = self._begins[number : number + 2]
        return number + (step - begin) / (end - begin)

    def round_of(self, step: int) -> int:
        """Return the round that a step reads, or the first whose size is not known, or less than a step."""
        seq_len, sequences = self._how[:2]
        with self._guard:
            while step >= self._begins[-1]:
                number = len(self._begins) - 1
                steps = ((self._rounds.tokens(number) or 1) - 1) // seq_len // sequences
                if not steps:
                    return number
                self._begins.append(self._begins[-1] + steps)
            return bisect_right(self._begins, step) - 1

    def is_ready(self, step: int) -> bool:
        """Return whether the batches of a step can be read now."""
        number = self.round_of(step)
        return number + 1 < len(self._begins) and self._rounds.is_ready(number)

    def begins_round(self, step: int) -> bool:
        """Return whether a step is the first of its round."""
        self.round_of(step)
        return step in self._begins

    @contextmanager
    def prepared_ahead(self, step: int, check: Callable[[], None]) -> Iterator[None]:
        """Have the rounds from that of a step on prepared by another process within the block.

        Args:
            step: The first step that will be read.
            check: Called again and again where a batch must wait for its round; what it raises ends the waiting.
        """
        with Ahead(self._rounds, self.round_of(step)) as ahead:
            self._ahead, self._check = ahead, check
            yield
        if self._over:
            self._rounds.remove_all()

    def release(self, step: int, over: bool) -> None:
        """Have the rounds deleted that are not read from ``step`` on, all where the run is ``over``.

        To be called when the state after ``step`` steps is saved.
        """
        number, self._over = self.round_of(step), over
        with self._guard:
            for old in [n for n in self._open if n < number]:
                del self._open[old]
        assert self._ahead is not None
        self._ahead.keep_from(number)

    def _wait_for(self, step: int) -> None:
        log.info("waiting for round %d of the data to be prepared", self.round_of(step))
        assert self._ahead is not None
        while not self.is_ready(step):
            self._check()
            require_step(self._rounds, self.round_of(step), self._how[0] * self._how[1])
            self._ahead.require_running()
            time.sleep(_POLL_SECONDS)

    def _loader(self, step: int) -> tuple[Loader, int]:
        number = self.round_of(step)
        with self._guard:
            if number not in self._open:
                self._open[number] = Loader(self._rounds.stream(number), *self._how, first_epoch=number)
            return self._open[number], self._begins[number]


def require_step(rounds: Rounds, number: int, batch_tokens: int) -> None:
    """Raise `InputError` where a round is known to be smaller than a step."""
    tokens = rounds.tokens(number)
    if tokens is not None and tokens - 1 < batch_tokens:
        raise InputError(
            f"round {number} of the data has {tokens:,} tokens, less than a step of {batch_tokens:,} takes; "
            "start anew with a smaller --batch-tokens"
        )
