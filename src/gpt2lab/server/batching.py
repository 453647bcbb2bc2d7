"""Continuous batching: texts join the running batch between two steps, and leave it when they end (Yu et al. 2022).

A step of decoding reads all weights, however many rows it continues, so 16 rows cost little more than one. One thread
owns the model. Between two steps it takes up what has been asked for meanwhile:

    waiting ──> reading: a chunk of a prompt per step ──> the batch: one token of every row per step ──> ended
                   ^                                             │
                   └──── its window slides: half is read again ──┘

A chunk is bounded, so a long prompt delays the other rows by little. A row is what it would be alone: its chunks depend
on its own length, its random numbers come from its own generator, and its text is that of `generation.stream`. Other
work with the model (`Engine.call`) is done in steps, too: one of them between two steps of the batch.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from gpt2lab.errors import InputError
from gpt2lab.generation import DecodingStrategy, sample_next, seeded
from gpt2lab.model.cache import BatchCache, KVCache
from gpt2lab.model.gpt import GPT
from gpt2lab.model.quantized import QuantizedGPT
from gpt2lab.runtime import Runtime

ROWS = 32
"""Most rows that are read or continued at a time."""
QUEUE = 256
"""Nothing more is taken while so many texts wait."""
JOBS = 32
"""Most pieces of other work at a time."""
CHUNK = 128
"""Tokens of prompts that are read between two steps."""
STOPPED = "the model is being unloaded, or the server is stopping"
log = logging.getLogger(__name__)


class Overloaded(Exception):
    """Too many texts are waiting."""


class Stopped(Exception):
    """The engine is stopping."""


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
    """Return the tokens of the prompt first, from the second on."""


class Token(NamedTuple):
    """A token of a text; the rest is there if the request asks for ``candidates``."""

    id: int
    logprob: float | None = None
    """ln p of the model, whatever the strategy."""
    candidates: tuple[tuple[int, float], ...] = ()
    """Id and ln p of the most probable tokens, the likeliest first; the token itself is added if it is not among them.
    """


Event = Token | Exception | None
"""The next token of a text; at the end None, or what went wrong."""


class Work(NamedTuple):
    """What else a model can be asked to do, in steps that take no longer than a few steps of the batch."""

    steps: Iterator[Any]
    """What a step yields is an event, unless it is None."""
    fp32: bool
    """Whether to compute in fp32, whatever the precision of the engine is."""


class _Row:
    """A text on its way."""

    def __init__(self, request: Request, deliver: Callable[[Event], None], device: torch.device) -> None:
        self.request, self.deliver, self.cancelled, self.written = request, deliver, False, 0
        self.window = list(request.prompt)
        """What the model reads: the prompt and what was written, from the last slide of the window on."""
        self.cache: KVCache | None = None
        """Holds the part of the window that has been read, until the row joins the batch."""
        self.generator = seeded(request.seed, device)

    def choose(self, logits: torch.Tensor, largest: float, greedy: int) -> bool:
        """Choose the next token and deliver it; return whether the text goes on.

        Args:
            logits: Those of the next token, (1, V).
            largest: The largest of them, NaN if one is.
            greedy: Its token.

        Raises:
            InputError: The model gives NaN.
        """
        request = self.request
        if self.written < request.max_tokens:
            if not math.isfinite(largest):
                raise InputError(f"the model gives {largest} for the next token; its weights are damaged")
            strategy = request.strategy
            token = greedy if strategy.greedy else int(sample_next(logits, strategy, self.generator))
            self.deliver(*described([token], logits, request.candidates))
            self.window.append(token)
            self.written += 1
            if token != request.eot and self.written < request.max_tokens:
                return True
        self.deliver(None)
        return False


class _Job:
    """Work on its way."""

    def __init__(self, work: Work, deliver: Callable[[Any], None], device: torch.device) -> None:
        self.work, self.deliver, self.cancelled, self._device = work, deliver, False, device

    def step(self) -> bool:
        """Do a step; return whether there are more."""
        try:
            with torch.autocast(self._device.type, enabled=False) if self.work.fp32 else nullcontext():
                if (found := next(self.work.steps)) is not None:
                    self.deliver(found)
        except StopIteration:
            self.deliver(None)
            return False
        return True


def described(tokens: Sequence[int], logits: torch.Tensor, candidates: int | None) -> list[Token]:
    """Return N tokens with their probabilities and ``candidates``, for the logits (N, V) that each was chosen by."""
    if candidates is None:
        return [Token(token) for token in tokens]
    logprobs = F.log_softmax(logits.float(), dim=-1)
    if bool(logprobs.isnan().any()):
        raise InputError("the model gives NaN for the prompt; its weights are damaged")
    best = logprobs.topk(min(candidates, logits.shape[-1]), dim=-1).indices.tolist()
    found = []
    for token, ids, of_row in zip(tokens, best, logprobs, strict=True):
        ids = ids if token in ids else [*ids, token]
        listed = dict(zip(ids, of_row[ids].tolist(), strict=True))
        found.append(Token(token, listed[token], tuple(listed.items())))
    return found


class Generation:
    """Texts that were submitted together: iterate over their events. Leaving the ``with`` block cancels the rest."""

    def __init__(self, engine: Engine, requests: Sequence[Request] | Work) -> None:
        loop, self._events = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Any]]()

        def deliver(index: int) -> Callable[[Any], None]:
            return lambda event: _call_soon(loop, self._events.put_nowait, (index, event))

        device = engine.runtime.device
        self._rows: Sequence[_Row | _Job]
        if isinstance(requests, Work):
            self._rows = [_Job(requests, deliver(0), device)]
        else:
            self._rows = [_Row(request, deliver(index), device) for index, request in enumerate(requests)]
        engine.enqueue(self._rows)

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        for index in range(len(self._rows)):
            self.cancel(index)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Any]]:
        """Yield (number of the request, event) until every text has ended or was cancelled."""
        ended: set[int] = set()
        while any(index not in ended and not row.cancelled for index, row in enumerate(self._rows)):
            index, event = await self._events.get()
            if not self._rows[index].cancelled:
                if event is None or isinstance(event, Exception):
                    ended.add(index)
                yield index, event

    def cancel(self, index: int) -> None:
        """End a text: it leaves the batch before the next step."""
        self._rows[index].cancelled = True


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:  # the loop is closed, so nobody listens
        log.debug("an event came after the end of its loop")


class Engine:
    """The thread that owns a model, and what it is asked to do."""

    def __init__(self, model: GPT, runtime: Runtime) -> None:
        self.model, self.runtime = model.eval(), runtime
        # For a single query a CPU's kernels are several times faster in fp32 than in bf16.
        on_cpu, dtype = runtime.device.type == "cpu", runtime.dtype
        # Products of quantized weights give a row the same bits beside any number of others, those in bf16 only with
        # one more at least.
        alone = dtype != torch.bfloat16 or isinstance(model, QuantizedGPT)
        held, least = (torch.float32, 1 if alone else 2) if on_cpu else (dtype, 1)
        self._new_batch = lambda: BatchCache(model.config, ROWS, runtime.device, held, least)
        self._batch = self._new_batch()
        self._rows: list[_Row] = []
        """Those in the batch, by their number there."""
        self._reading: deque[_Row] = deque()
        self._waiting: deque[deque[_Row]] = deque()
        """Texts that were submitted together; the requests take turns."""
        self._jobs: deque[_Job] = deque()
        self._stopping = self._retired = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # Called by others -------------------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request]) -> Generation:
        """Queue texts; to be called in a coroutine.

        Raises:
            Overloaded: Too many are waiting.
            Stopped: The engine is stopping.
        """
        return Generation(self, requests)

    def call(self, work: Work) -> Generation:
        """Queue other work, whose events have the number 0; otherwise as `submit`."""
        return Generation(self, work)

    def enqueue(self, rows: Sequence[_Row | _Job]) -> None:
        """Queue rows, all or none, or jobs. Raises as `submit`."""
        with self._changed:
            self._require_running()
            if (waiting := sum(map(len, self._waiting))) >= QUEUE:
                raise Overloaded(f"{waiting} texts are waiting; try again later")
            jobs = [row for row in rows if isinstance(row, _Job)]
            if jobs and len(self._jobs) >= JOBS:
                raise Overloaded(f"{len(self._jobs)} questions are being answered; try again later")
            self._jobs.extend(jobs)
            if texts := deque(row for row in rows if isinstance(row, _Row)):
                self._waiting.append(texts)
            self._changed.notify()

    def stop(self) -> None:
        """End all texts with `Stopped`, and the thread, after the step that is running."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def retire(self) -> None:
        """Stop once all texts have ended."""
        with self._changed:
            self._retired = True
            self._changed.notify()

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread, at most ``timeout`` seconds."""
        self._thread.join(timeout)

    def runs(self) -> bool:
        """Return whether the thread has not ended yet."""
        return self._thread.is_alive()

    def _require_running(self) -> None:
        if self._stopping:
            raise Stopped(STOPPED)

    # The thread -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _run(self) -> None:
        try:
            with self.runtime.autocast():  # it keeps the rounded weights for as long as it is entered
                while self._wait():
                    try:
                        self._turn()
                    except Exception as error:  # a defect, or memory is used up: these texts end, the server goes on
                        log.exception("a step failed")
                        self._end_all(error)
                        self._batch = self._new_batch()
        finally:  # even if there is no memory for a new batch
            self._stopping = True
            self._end_all(Stopped(STOPPED))

    def _wait(self) -> bool:
        """Wait for something to do; return False if the engine is to stop."""
        with self._changed:
            while not (self._stopping or self._waiting or self._reading or self._rows or self._jobs):
                self._stopping = self._retired
                if not self._stopping:
                    self._changed.wait()
            return not self._stopping

    def _turn(self) -> None:
        """Let rows come and leave, read a chunk of prompts, and continue every row of the batch by a token."""
        with self._changed:
            wanted = (deque(row for row in rows if not row.cancelled) for rows in self._waiting)
            self._waiting = deque(rows for rows in wanted if rows)
            self._reading = deque(row for row in self._reading if not row.cancelled)
            self._jobs = deque(job for job in self._jobs if not job.cancelled)
            self._leave([number for number, row in enumerate(self._rows) if row.cancelled])
            while self._waiting and len(self._reading) + len(self._rows) < ROWS:
                rows = self._waiting.popleft()
                self._reading.append(rows.popleft())
                if rows:
                    self._waiting.append(rows)
        left = CHUNK
        while self._reading and left > 0:
            row = self._reading.popleft()
            try:
                left -= self._read(row)
            except Exception as error:
                self._fail(row, error)
        if self._rows:
            self._step()
        if self._jobs:
            self._work(self._jobs[0])

    def _work(self, job: _Job) -> None:
        """Do a step of a job; it is then the last to have another."""
        try:
            goes_on = job.step()
        except Exception as error:
            goes_on = False
            self._fail(job, error)
        with self._changed:
            self._jobs.popleft()
            if goes_on:
                self._jobs.append(job)

    def _read(self, row: _Row) -> int:
        """Read the next chunk of a row's window; after the last, choose the first token. Return the chunk's length."""
        config = self.model.config
        cache = row.cache = row.cache or self.model.new_cache(1)
        if not cache.length and not cache.endless:
            row.window = row.window[-config.n_ctx :]
        start = cache.length
        end = None if cache.looks_ahead else start + CHUNK  # a mask that looks ahead reads all at once
        chunk = row.window[start:end]
        x = self.model.hidden(torch.tensor([chunk], device=self.runtime.device), cache=cache)
        if row.request.score_prompt and not row.written:
            following = row.window[start + 1 : start + 1 + len(chunk)]
            for token in described(following, self.model.head(x[0, : len(following)]), row.request.candidates):
                row.deliver(token)
        if cache.length < len(row.window):
            self._reading.appendleft(row)
        elif self._choose([row], self.model.head(x[:, -1])) == [True]:
            self._place(row, cache)
        return len(chunk)

    def _choose(self, rows: Sequence[_Row], logits: torch.Tensor) -> list[bool]:
        """Let each row choose its next token by its logits (B, V); return which go on."""
        largest, greedy = (x.tolist() for x in logits.max(dim=-1))  # of equal logits the first
        going = []
        for number, row in enumerate(rows):
            try:
                going.append(row.choose(logits[number : number + 1], largest[number], greedy[number]))
            except Exception as error:
                self._fail(row, error)
                going.append(False)
        return going

    def _fail(self, row: _Row | _Job, error: Exception) -> None:
        """End one text or job with an error."""
        if not isinstance(error, InputError):
            log.error("a text failed", exc_info=error)
        row.deliver(error)

    def _place(self, row: _Row, cache: KVCache) -> None:
        """Let a row that has read its window, but for the newest token, join the batch, or read once more."""
        if self._is_full(cache.length):
            self._slide(row)
        elif cache.looks_ahead:  # a new token changes the keys of earlier ones
            cache.clear()
            self._reading.append(row)
        else:
            self._batch.join(cache)
            self._rows.append(row)
            row.cache = None

    def _is_full(self, length: int) -> bool:
        return length == self.model.config.n_ctx and not self._batch.endless

    def _slide(self, row: _Row) -> None:
        """Drop the older half of a row's window and let it be read again, as `generation.stream` does."""
        row.window = row.window[-((self.model.config.n_ctx + 1) // 2) :]
        row.cache = None
        self._reading.append(row)

    def _step(self) -> None:
        """Continue each row of the batch by one token."""
        newest = [row.window[-1:] for row in self._rows]
        newest += newest[-1:] * (self._batch.least - len(newest))
        x = self.model.hidden(torch.tensor(newest, device=self.runtime.device), cache=self._batch)
        logits = self.model.head(x[:, -1])[: len(self._rows)]
        leaving = []
        for number, (row, goes_on) in enumerate(zip(self._rows, self._choose(self._rows, logits), strict=True)):
            full = self._is_full(self._batch.lengths[number])
            if goes_on and full:
                self._slide(row)
            if full or not goes_on:
                leaving.append(number)
        self._leave(leaving)

    def _leave(self, numbers: Sequence[int]) -> None:
        for number in reversed(numbers):  # the last row takes the place of one that leaves
            self._batch.leave(number)
            self._rows[number] = self._rows[-1]
            self._rows.pop()

    def _end_all(self, error: Exception) -> None:
        with self._changed:
            rows = [*self._rows, *self._reading, *itertools.chain(*self._waiting), *self._jobs]
            self._rows, self._reading, self._waiting, self._jobs = [], deque(), deque(), deque()
        for row in rows:
            row.deliver(error)
