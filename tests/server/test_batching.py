"""Continuous batching: whatever else runs, a text is the one that `generate` writes alone."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab import runtime
from gpt2lab.errors import InputError
from gpt2lab.generation import DecodingStrategy, generate, seeded
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.server import batching
from gpt2lab.server.batching import Engine, Overloaded, Request, Stopped, Token

T = TypeVar("T")
V, N_CTX = 61, 12
CPU = runtime.resolve("cpu", "fp32")
GREEDY = DecodingStrategy(greedy=True)
KINDS: dict[str, dict[str, Any]] = {
    "learned": {},
    "rope, grouped": {"position": "rope", "n_kv_head": 2},
    "alibi": {"position": "alibi"},
    "sinusoidal, window": {"position": "sinusoidal", "mask": "window", "window": 5},
    "endless": {"position": "rope", "mask": "global", "window": 6, "prefix": 2},
    "by layer": {"position": "rope", "mask": "window,causal", "window": 4},
    "looks ahead": {"mask": "prefix", "prefix": 3},
    "bidirectional": {"mask": "bidirectional"},
}


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a thread of its own, since Playwright's loop goes on in the one that tests a browser."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def model_of(**changes: Any) -> GPT:
    """A model with distributions far from uniform, so that greedy texts do not hang on rounding."""
    torch.manual_seed(3)
    shape: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_ctx": N_CTX, "vocab_size": V, "dropout": 0.0}
    model = GPT(GPTConfig(**shape | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3) if parameter.dim() == 2 else parameter.add_(0.1)
    return model.eval()


@contextmanager
def engine_of(model: GPT) -> Iterator[Engine]:
    engine = Engine(model, CPU)
    try:
        yield engine
    finally:
        engine.stop()
        engine.join(10)
        assert not engine._thread.is_alive()


async def write(engine: Engine, request: Request) -> list[int]:
    """The tokens of one request."""
    with engine.submit([request]) as generation:
        events = [event async for _, event in generation]
    assert events.pop() is None
    assert all(isinstance(event, Token) for event in events)
    return [event.id for event in events if isinstance(event, Token)]


def alone(model: GPT, request: Request) -> list[int]:
    """The same by `generate`: up to the end token."""
    prompt = torch.tensor([list(request.prompt)])
    strategy = request.strategy
    settings = (strategy.temperature, strategy.top_k, strategy.top_p, strategy.greedy)
    tokens = generate(model, prompt, request.max_tokens, *settings, seeded(request.seed, CPU.device), request.eot)
    return tokens[0, len(request.prompt) :].tolist()


def random_request(draw: random.Random) -> Request:
    prompt = [draw.randrange(V) for _ in range(draw.randint(1, N_CTX + 4))]
    strategy = draw.choice([GREEDY, GREEDY, DecodingStrategy(0.8, 20), DecodingStrategy(top_p=0.9)])
    eot = draw.choice([None, draw.randrange(V)])
    return Request(prompt, draw.randint(1, 20), strategy, draw.randrange(1000), eot)


@pytest.fixture(scope="module", params=KINDS)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[GPT, Engine]]:
    model = model_of(**KINDS[request.param])
    with engine_of(model) as engine:
        yield model, engine


@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_texts_together_are_the_texts_alone(served: tuple[GPT, Engine], seed: int) -> None:
    model, engine = served
    draw = random.Random(seed)
    requests = [random_request(draw) for _ in range(7)]

    async def one(request: Request) -> list[int]:
        await asyncio.sleep(draw.random() / 50)
        return await write(engine, request)

    async def all_of_them() -> list[list[int]]:
        return await asyncio.gather(*map(one, requests))

    assert run(all_of_them()) == [alone(model, request) for request in requests]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with engine_of(model_of(n_ctx=300)) as engine:
        yield engine


def request_of(prompt: Sequence[int] = (1, 2, 3), max_tokens: int = 10, **changes: Any) -> Request:
    return Request(prompt, max_tokens, **{"strategy": GREEDY, "seed": 0, **changes})


def test_a_prompt_longer_than_a_chunk_is_read_in_parts_that_change_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [request_of([n % V for n in range(length)], 5) for length in (299, 3, 128, 129, 250)]

    async def together() -> list[list[int]]:
        return await asyncio.gather(*(write(engine, request) for request in requests))

    monkeypatch.setattr(batching, "CHUNK", 16)
    assert run(together()) == [alone(engine.model, request) for request in requests]


def test_probabilities_are_those_of_whole_passes(engine: Engine) -> None:
    prompt, strategy = [5, 9, 2, 6, 5, 3], DecodingStrategy(0.7, top_k=4)
    request = request_of(prompt, 6, strategy=strategy, candidates=5, score_prompt=True)

    async def events() -> list[Token]:
        with engine.submit([request]) as generation:
            return [event async for _, event in generation if isinstance(event, Token)]

    tokens = run(events())
    ids = [prompt[0], *(token.id for token in tokens)]
    assert ids == prompt + alone(engine.model, request)
    with torch.no_grad():
        logits = engine.model(torch.tensor([ids])).logits[0]
    for token, of_position in zip(tokens, logits, strict=False):
        logprobs = of_position.log_softmax(-1)
        assert token.logprob == pytest.approx(logprobs[token.id].item(), abs=1e-4)
        best = logprobs.topk(5)
        assert [i for i, _ in token.candidates[:5]] == best.indices.tolist()
        assert [p for _, p in token.candidates[:5]] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert dict(token.candidates)[token.id] == token.logprob


def test_no_token_is_written_where_none_is_asked_for(engine: Engine) -> None:
    assert run(write(engine, request_of(max_tokens=0))) == []
    scored = run(write(engine, request_of([4, 5, 6], 0, score_prompt=True, candidates=0)))
    assert scored == [5, 6]


def until(true: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_text_that_nobody_wants_any_more_leaves_at_the_next_step(engine: Engine) -> None:
    async def go() -> list[int]:
        other = asyncio.create_task(write(engine, request_of([7, 8], 40)))
        with engine.submit([request_of(max_tokens=10**6), request_of([4], max_tokens=10**6)]) as generation:
            seen = 0
            async for index, _ in generation:
                seen += 1
                if seen == 6:
                    generation.cancel(1)
                if seen > 6:
                    assert index == 0
                if seen == 12:
                    break
        return await other

    assert run(go()) == alone(engine.model, request_of([7, 8], 40))
    until(lambda: not engine._rows and not engine._reading and not engine._waiting)


def test_the_queue_is_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "ROWS", 0)
    monkeypatch.setattr(batching, "QUEUE", 2)

    async def go() -> None:
        with (
            engine.submit([request_of()]),
            engine.submit([request_of(), request_of()]),
            pytest.raises(Overloaded, match="3 texts are waiting; try again later"),
        ):
            engine.submit([request_of()])

    run(go())
    monkeypatch.undo()
    assert len(run(write(engine, request_of()))) == 10  # what was cancelled is out of the queue


def test_requests_take_turns(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "ROWS", 1)

    async def go() -> None:
        with engine.submit([request_of()] * 20):
            await write(engine, request_of([4]))
            assert engine._waiting

    run(go())


def test_nan_ends_its_own_text_only() -> None:
    model = model_of()
    with torch.no_grad():
        model.wte.weight[7] = torch.nan
    with engine_of(model) as engine:
        original = model.head
        model.head = lambda x: original(x)[..., :7]  # type: ignore[method-assign]  # the head is tied

        async def go() -> list[object]:
            with engine.submit([request_of([1, 7], 5), request_of([1, 2], 5), request_of([1, 3], 5)]) as generation:
                return [(index, type(event)) async for index, event in generation if not isinstance(event, Token)]

        ended = dict(run(go()))  # type: ignore[arg-type]
    assert ended == {0: InputError, 1: type(None), 2: type(None)}


def test_a_failed_step_ends_its_texts_and_the_engine_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of()
    with engine_of(model) as engine:
        original, engine._step = engine._step, lambda: 1 // 0  # type: ignore[assignment]
        with pytest.raises(AssertionError):
            run(write(engine, request_of()))
        assert "a step failed" in caplog.text
        engine._step = original
        assert run(write(engine, request_of())) == alone(model, request_of())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_without_memory_for_another_batch_ends_its_texts_and_refuses_others() -> None:
    engine = Engine(model_of(), CPU)
    engine._step = engine._new_batch = lambda: 1 // 0  # type: ignore[assignment, return-value]
    with pytest.raises(AssertionError):
        run(write(engine, request_of()))
    engine.join(10)
    with pytest.raises(Stopped):
        run(write(engine, request_of()))


def test_stopping_ends_texts_with_an_error() -> None:
    engine = Engine(model_of(position="rope", mask="window", window=4), CPU)

    async def go() -> object:
        with engine.submit([request_of(max_tokens=10**9)]) as generation:
            events = [(event, engine.stop())[0] async for _, event in generation]
        return events[-1]

    assert isinstance(run(go()), Stopped)
    engine.join(10)
    with pytest.raises(Stopped, match="the server is stopping"):
        run(write(engine, request_of()))


def test_a_retired_engine_ends_its_texts_first() -> None:
    model = model_of()
    engine = Engine(model, CPU)

    async def go() -> list[int]:
        text = asyncio.create_task(write(engine, request_of(max_tokens=40)))
        await asyncio.sleep(0)
        engine.retire()
        return await text

    assert run(go()) == alone(model, request_of(max_tokens=40))
    engine.join(10)
    with pytest.raises(Stopped):
        run(write(engine, request_of()))


def test_a_text_that_fails_while_it_is_read_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of()
    with engine_of(model) as engine:
        original, engine._place = engine._place, lambda row, cache: 1 // 0  # type: ignore[assignment]

        async def go() -> object:
            with engine.submit([request_of()]) as generation:
                return [event async for _, event in generation][-1]

        assert isinstance(run(go()), ZeroDivisionError) and "a text failed" in caplog.text
        engine._place = original
        assert run(write(engine, request_of())) == alone(model, request_of())
