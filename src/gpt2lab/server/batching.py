"""Continuous batching: texts join the running batch between two steps, and leave it when they end (Yu et al. 2022).

A step of decoding reads all weights, however many rows it continues, so 16 rows cost little more than one. One thread
owns the model. Between two steps it takes up what has been asked for meanwhile:

    waiting ──> reading: a chunk of one prompt per step ──> the batch: one token of every row per step ──> ended
                   ^                                              │
                   └──────── the window slid: half of it is read again

A chunk is bounded, so a long prompt delays the other rows by little. A row is what it would be alone: chunks depend on
its own length, its random numbers come from its own generator, and its text equals that of `generation.stream`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch

from gpt2lab.errors import InputError
from gpt2lab.generation import DecodingStrategy, probabilities, sample_next, seeded
from gpt2lab.model.cache import BatchCache, KVCache
from gpt2lab.model.gpt import GPT
from gpt2lab.runtime import Runtime

T = TypeVar("T")
ROWS = 32
"""Most rows of the batch."""
QUEUE = 256
"""Most texts that wait."""
CHUNK = 128
"""Tokens of a prompt that are read between two steps."""
log = logging.getLogger(__name__)


class Overloaded(Exception):
    """Too many texts wait."""


class Stopped(Exception):
    """The server stops."""


@dataclass(frozen=True)
class Request:
    """A text to continue."""

    prompt: Sequence[int]
    """Ids, at least one."""
    max_tokens: int
    strategy: DecodingStrategy
    seed: int
    eot: int | None = None
    """The text ends with this token."""
    candidates: int | None = None
    """Number of most probable tokens to return with each token; None: no probabilities."""
    score_prompt: bool = False
    """Return the tokens of the prompt first, from the second on, with their probabilities."""


class Candidate(NamedTuple):
    """A token that could have been chosen."""

    id: int
    logprob: float
    """Of the model, before the strategy, in nats."""
    kept: float
    """Probability under the strategy; 0 if it was cut."""


class Token(NamedTuple):
    """A token of a text; its probability is None if the request asked for none."""

    id: int
    logprob: float | None = None
    candidates: tuple[Candidate, ...] = ()
    """The most probable tokens first; the token itself comes last if it is not among them."""


Event = tuple[int, Token | Exception | None]
"""The number of a request among those submitted together, and its next token; at the end None, or what went wrong."""


class _Row:
    """A text on its way."""

    def __init__(self, request: Request, deliver: Callable[[Token | Exception | None], None]) -> None:
        self.request, self.deliver = request, deliver
        self.cancelled = False
        self.written = 0
        self.window = list(request.prompt)
        """What the model reads: the prompt and what was written, from the last slide of the window on."""
        self.generator: torch.Generator | None = None
        self.cache: KVCache | None = None
        """Holds the part of the window that has been read; None in the batch."""
        self.unscored = len(request.prompt) - 1 if request.score_prompt else 0


class Generation:
    """Texts that were submitted together: iterate over their events. Leaving the ``with`` block cancels the rest."""

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        loop, self._events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def deliver(index: int) -> Callable[[Token | Exception | None], None]:
            return lambda event: _call(loop, self._events.put_nowait, (index, event))

        self._rows = [_Row(request, deliver(index)) for index, request in enumerate(requests)]
        engine.enqueue(self._rows)

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        for index in range(len(self._rows)):
            self.cancel(index)

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield events until every text has ended or was cancelled."""
        running = set(range(len(self._rows)))
        while running := {index for index in running if not self._rows[index].cancelled}:
            index, event = await self._events.get()
            if index in running:
                running -= set() if isinstance(event, Token) else {index}
                yield index, event

    def cancel(self, index: int) -> None:
        """End a text; it leaves the batch before the next step."""
        self._rows[index].cancelled = True


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:  # the loop is closed: nobody listens any more
        log.debug("an event came after the end of its loop")


class Engine:
    """The thread that owns a model, and what it is asked to do."""

    def __init__(self, model: GPT, runtime: Runtime) -> None:
        self.model, self.runtime = model.eval(), runtime
        config, device = model.config, runtime.device
        self._n_ctx = config.n_ctx
        # CPU kernels of one query are several times slower in bf16 than in fp32.
        dtype = torch.float32 if device.type == "cpu" else runtime.dtype
        self._new_batch = lambda: BatchCache(config, ROWS, device, dtype)
        self._batch = self._new_batch()
        self._waiting: deque[_Row] = deque()
        self._reading: deque[_Row] = deque()
        self._rows: list[_Row] = []
        """Those in the batch, by their number there."""
        self._calls: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # Called by others -------------------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request]) -> Generation:
        """Queue texts, from a coroutine.

        Raises:
            Overloaded: Too many wait.
            Stopped: The engine stops.
        """
        return Generation(self, requests)

    def enqueue(self, rows: Sequence[_Row]) -> None:
        """Queue rows, all or none."""
        with self._changed:
            if self._stopping:
                raise Stopped("the server is stopping")
            if len(self._waiting) >= QUEUE:
                raise Overloaded(f"{len(self._waiting)} texts are waiting already")
            self._waiting.extend(rows)
            self._changed.notify()

    async def call(self, function: Callable[[], T]) -> T:
        """Run a function on the engine's thread between two steps, without gradients and in its autocast."""
        future: Future[T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except Exception as error:
                    future.set_exception(error)

        with self._changed:
            if self._stopping:
                raise Stopped("the server is stopping")
            self._calls.append(run)
            self._changed.notify()
        return await asyncio.wrap_future(future)

    def stop(self) -> None:
        """End all texts with `Stopped` after the step that runs."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread."""
        self._thread.join(timeout)

    # The thread -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _run(self) -> None:
        with self.runtime.numerics(), self.runtime.autocast():  # autocast keeps the rounded weights while it is entered
            while self._wait():
                try:
                    self._turn()
                except Exception as error:  # a defect, or no memory: these texts end, the server goes on
                    log.exception("the step failed")
                    self._end_all(error)
        self._end_all(Stopped("the server is stopping"))

    def _wait(self) -> bool:
        """Wait for something to do; return whether to go on."""
        with self._changed:
            while not (self._stopping or self._calls or self._waiting or self._reading or self._rows):
                self._changed.wait()
            return not self._stopping

    def _turn(self) -> None:
        """Do what was called for, then read a chunk, then continue every row of the batch by one token."""
        with self._changed:
            calls = [self._calls.popleft() for _ in range(len(self._calls))]
            while self._waiting and len(self._reading) + len(self._rows) < ROWS:
                self._reading.append(self._waiting.popleft())
        for call in calls:
            call()
        self._reading = deque(row for row in self._reading if not row.cancelled)
        for number in reversed(range(len(self._rows))):
            if self._rows[number].cancelled:
                self._leave(number)
        self._read()
        if self._rows:
            self._step()

    def _read(self) -> None:
        """Read prompts in the order of their coming, until that was a chunk in all."""
        left = CHUNK
        while self._reading and left > 0:
            row = self._reading[0]
            try:
                logits, read = self._read_chunk(row)
            except InputError as error:
                self._reading.popleft().deliver(error)
                continue
            left -= read
            if logits is not None:
                self._reading.popleft()
                self._choose([row], logits)

    def _read_chunk(self, row: _Row) -> tuple[torch.Tensor | None, int]:
        """Read the next chunk of a row's window; return the logits (1, V) after the last, and the length."""
        if row.cache is None:
            row.cache = self.model.new_cache(1)
            if not row.cache.endless:
                row.window = row.window[-self._n_ctx :]
        cache = row.cache
        start, T = cache.length, len(row.window)
        end = T if cache.looks_ahead else min(start + CHUNK, T)
        tokens = torch.tensor([row.window[start:end]], device=self.runtime.device)
        x = self.model.hidden(tokens, cache=cache)
        if row.unscored:
            self._score(row, self.model.head(x[0]), start)
        return (self.model.head(x[:, -1]) if end == T else None), end - start

    def _score(self, row: _Row, logits: torch.Tensor, start: int) -> None:
        """Deliver the probabilities of the prompt's tokens after the position ``start``, for logits (T, V)."""
        following = row.window[start + 1 : start + 1 + len(logits)][: row.unscored]
        for token, of_position in zip(following, logits, strict=False):
            row.deliver(_described(token, of_position[None], row.request))
        row.unscored -= len(following)

    def _step(self) -> None:
        tokens = torch.tensor([[row.window[-1]] for row in self._rows], device=self.runtime.device)
        logits = self.model.head(self.model.hidden(tokens, cache=self._batch)[:, -1])
        self._choose(self._rows, logits)

    def _choose(self, rows: list[_Row], logits: torch.Tensor) -> None:
        """Choose the next token of each row by its logits (B, V), and where the row goes from there."""
        largest, greedy = (x.tolist() for x in logits.max(dim=-1))
        for number, row in reversed(list(enumerate(rows))):  # a row that leaves is replaced by one that is done
            in_batch = rows is self._rows
            if not math.isfinite(largest[number]):  # NaN counts as the largest
                event: Token | Exception | None = InputError(
                    "the model gives NaN for the next token; its weights are damaged or overflow this precision"
                )
            elif row.written == row.request.max_tokens:
                event = None
            else:
                event = self._next(row, logits[number : number + 1], greedy[number])
            row.deliver(event)
            goes_on = isinstance(event, Token)
            if goes_on and event.id == row.request.eot or row.written == row.request.max_tokens:
                goes_on = False
                row.deliver(None)
            self._place(number if in_batch else None, row, goes_on)
