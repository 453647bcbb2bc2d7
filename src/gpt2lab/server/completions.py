"""OpenAI's completions API (platform.openai.com/docs/api-reference/completions), so that its clients work.

    GET  /v1/models               the models
    GET  /v1/models/NAME          one of them
    POST /v1/completions          continue prompts

A text begins a document, as in ``gpt2lab sample``: the model reads <|endoftext|> first, if its tokenizer has it. A list
of ids is read as it is. Beyond the context the window slides, as in `generation.stream`. ``top_k`` is an extension.
What is not supported, and what OpenAI would refuse, is refused by an error that names the parameter.
"""

from __future__ import annotations

import codecs
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gpt2lab.errors import InputError
from gpt2lab.generation import DecodingStrategy, outgrows
from gpt2lab.server.batching import Event, Overloaded, Request, Stopped, Token
from gpt2lab.server.http import APIError, EventStream, json_response, unless_gone
from gpt2lab.server.models import Models, ServedModel
from gpt2lab.tokenizer.tokenizer import Tokenizer

MOST_CHOICES = 128
"""Most texts that one request may ask for: prompts times ``n``."""
MOST_TOKENS = 32_768
"""Longest continuation; also the longest prompt of a model whose cache rolls, where the context is no bound."""
MOST_WORK = 2**18
"""Most tokens of all texts of a request together, prompts included."""
MOST_STOPS, MOST_STOP_LENGTH = 4, 200
MOST_LOGPROBS = 5
LEAST_TEMPERATURE = 1e-5
"""Below it, decoding is greedy: the quotients would leave the range of fp32."""
SEEDS = 2**63
PENALTIES = ("presence_penalty", "frequency_penalty")
PROMPT = "a string, a list of strings, a list of ids, or a list of lists of ids, none of them empty"
STOP = f"a string or a list of at most {MOST_STOPS}, of 1 to {MOST_STOP_LENGTH} characters each"

# What is asked for ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """A request to /v1/completions that can be answered."""

    prompts: list[list[int]]
    """Ids of each."""
    hidden: bool
    """Whether the first id of each was put before the client's text."""
    n: int
    max_tokens: int
    strategy: DecodingStrategy
    seed: int
    stop: tuple[str, ...]
    logprobs: int | None
    echo: bool
    stream: bool
    include_usage: bool


class Fields:
    """The fields of a JSON object, read one by one: null counts as left out, and an error names its field."""

    def __init__(self, body: bytes) -> None:
        try:
            values = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise APIError(400, f"the body is not JSON: {error}"[:200]) from error
        if not isinstance(values, dict):
            raise APIError(400, f"the body is a JSON {type(values).__name__}; it must be an object")
        self._values = {name: value for name, value in values.items() if value is not None}

    def take(self, name: str, allowed: str, *types: type, default: Any = None) -> Any:
        """Return a field and forget it. Raises `APIError` if it is of another type."""
        value = self._values.pop(name, default)
        if value is not default and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
            raise wrong(name, value, allowed)
        return value

    def integer(self, name: str, default: int | None, low: int, high: int) -> Any:
        """Return an integer field."""
        allowed = f"an integer from {low} to {high}"
        value = self.take(name, allowed, int, default=default)
        if value is not default and not low <= value <= high:
            raise wrong(name, value, allowed)
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """Return a number field."""
        allowed = f"a number from {low:g} to {high:g}"
        value = self.take(name, allowed, int, float, default=default)
        if not low <= value <= high:
            raise wrong(name, value, allowed)
        return float(value)

    def boolean(self, name: str) -> bool:
        """Return a boolean field, by default false."""
        return self.take(name, "true or false", bool, default=False)

    def refuse(self, name: str, *harmless: object) -> None:
        """Refuse a field that is not supported, unless its value asks for nothing."""
        if (value := self._values.pop(name, None)) is not None and value not in harmless:
            raise APIError(400, f"{name} is not supported; leave it out", name, "unsupported_parameter")

    def end(self) -> None:
        """Refuse what was not taken."""
        for name in self._values:
            raise APIError(400, f"unrecognized request argument: {name:.100}", name[:100], "unknown_parameter")


def wrong(name: str, value: object, allowed: str) -> APIError:
    """Return the error of a field whose value is not allowed."""
    return APIError(400, f"{name} is {json.dumps(value)[:60]}; it must be {allowed}", name)


def parse(body: bytes, models: Models) -> tuple[ServedModel, Ask]:
    """Return which model a request is for, and what it asks; may block while the model is loaded. Raises `APIError`."""
    fields = Fields(body)
    name = fields.take("model", "the name of a model", str)
    if name is None:
        raise APIError(400, "model is missing; GET /v1/models lists the models", "model")
    served = models.get(name)
    n = fields.integer("n", 1, 1, MOST_CHOICES)
    for unsupported, harmless in (("best_of", n), ("suffix", ""), ("logit_bias", {}), *((p, 0) for p in PENALTIES)):
        fields.refuse(unsupported, harmless)
    fields.take("user", "a string", str)
    prompts, hidden = read_prompts(fields.take("prompt", PROMPT, str, list, default=""), served)
    if len(prompts) * n > MOST_CHOICES:
        raise APIError(400, f"{len(prompts)} prompts times n = {n}; at most {MOST_CHOICES} texts are possible", "n")
    stream = fields.boolean("stream")
    seed = fields.integer("seed", None, -SEEDS, SEEDS - 1)
    ask = Ask(
        prompts=prompts,
        hidden=hidden,
        n=n,
        max_tokens=fields.integer("max_tokens", 16, 0, MOST_TOKENS),
        strategy=read_strategy(fields, served.model.config.vocab_size),
        seed=secrets.randbelow(SEEDS) if seed is None else seed,
        stop=read_stops(fields),
        logprobs=fields.integer("logprobs", None, 0, MOST_LOGPROBS),
        echo=fields.boolean("echo"),
        stream=stream,
        include_usage=read_include_usage(fields, stream),
    )
    fields.end()
    work = n * sum(len(prompt) + ask.max_tokens for prompt in prompts)
    if work > MOST_WORK:
        message = f"the texts may have {work} tokens together; at most {MOST_WORK} are possible: lower max_tokens or n"
        raise APIError(400, message, "max_tokens")
    return served, ask


def read_prompts(given: Any, served: ServedModel) -> tuple[list[list[int]], bool]:
    """Return the ids of each prompt, and whether <|endoftext|> was put before them. Raises `APIError`."""
    tokenizer, config = served.tokenizer, served.model.config
    several: list[Any] = given if isinstance(given, list) and not _are_ids(given) else [given]
    are_texts = all(isinstance(one, str) for one in several)
    if not several or not (are_texts or all(map(_are_ids, several))):
        raise wrong("prompt", given, PROMPT)
    start = [tokenizer.eot] if are_texts and tokenizer.eot is not None else []
    prompts = [[*start, *tokenizer.encode(one)] for one in several] if are_texts else several
    most = config.n_ctx if outgrows(served.model, config.n_ctx + 1) else MOST_TOKENS
    for ids in prompts:
        if not ids:
            raise APIError(400, "the prompt is empty, and this model has no <|endoftext|> to start from", "prompt")
        if len(ids) > most:
            message = f"this model's maximum context length is {most} tokens, and the prompt has {len(ids)}; shorten it"
            raise APIError(400, message, "prompt", "context_length_exceeded")
        if not 0 <= min(ids) <= max(ids) < config.vocab_size:
            raise wrong("prompt", ids, f"made of ids from 0 to {config.vocab_size - 1}")
    return prompts, bool(start)


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(i) is int for i in value)


def read_strategy(fields: Fields, vocab_size: int) -> DecodingStrategy:
    """Return how tokens are chosen; temperature 0 is greedy. Raises `APIError`."""
    temperature = fields.number("temperature", 1.0, 0.0, 2.0)
    top_p, top_k = fields.number("top_p", 1.0, 0.0, 1.0), fields.integer("top_k", None, 1, vocab_size)
    if temperature < LEAST_TEMPERATURE or top_p == 0.0:
        return DecodingStrategy(greedy=True)
    return DecodingStrategy(temperature, top_k, top_p if top_p < 1.0 else None)


def read_stops(fields: Fields) -> tuple[str, ...]:
    """Return the texts that end a continuation. Raises `APIError`."""
    given = fields.take("stop", STOP, str, list, default=[])
    stops = [given] if isinstance(given, str) else given
    if len(stops) > MOST_STOPS or not all(isinstance(s, str) and 1 <= len(s) <= MOST_STOP_LENGTH for s in stops):
        raise wrong("stop", given, STOP)
    return tuple(stops)


def read_include_usage(fields: Fields, stream: bool) -> bool:
    """Return whether a stream is to end with the usage. Raises `APIError`."""
    options = fields.take("stream_options", "an object", dict, default={})
    if options and not stream:
        raise APIError(400, "stream_options is only allowed when stream is true", "stream_options")
    include = options.pop("include_usage", False)
    if options or not isinstance(include, bool):
        raise wrong("stream_options", options or include, '{"include_usage": true or false}')
    return include


# What is answered -----------------------------------------------------------------------------------------------------


class Choice:
    """One text as it is written: whole characters, up to a stop, with what may become one held back."""

    def __init__(self, ask: Ask, prompt: Sequence[int], tokenizer: Tokenizer) -> None:
        self._ask, self._tokenizer = ask, tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._sent = 0
        """Number of characters that were taken."""
        self._waiting: list[tuple[Token, int, int]] = []
        """Tokens that were not taken yet, with the part of the text that each has made: from, to."""
        self.finish: str | None = None
        self.written = 0
        self._unread = 0
        """Tokens of the prompt that are still to come with their probabilities."""
        if not ask.echo:
            self._decoder.decode(tokenizer.decode_bytes(prompt))  # it may end within a character
        else:
            shown = prompt[int(ask.hidden) :]
            if ask.logprobs is None:
                self._append(map(Token, shown))
            else:
                self._append([] if ask.hidden else [Token(shown[0])])
                self._unread = len(prompt) - 1
        self._start = len(self._text)
        """Where the continuation begins."""

    def add(self, event: Event) -> None:
        """Take the next event of the text. Raises `APIError` if it failed."""
        if isinstance(event, Exception):
            raise failure(event)
        if event is None:
            self._end("length")
        elif self._unread:
            self._unread -= 1
            self._append([event])
            self._start = len(self._text)
        else:
            self.written += 1
            if event.id == self._tokenizer.eot:
                self._end("stop")
            else:
                self._append([event])
                self._cut()

    def _append(self, tokens: Iterable[Token]) -> None:
        for token in tokens:
            start = len(self._text)
            self._text += self._decoder.decode(self._tokenizer.decode_bytes([token.id]))
            self._waiting.append((token, start, len(self._text)))

    def _end(self, reason: str) -> None:
        """End the text, with U+FFFD for a character that was cut off."""
        if self.finish is None:
            self.finish = reason
            self._text += self._decoder.decode(b"", final=True)

    def _cut(self) -> None:
        """End the text before the first stop in it."""
        new = self._waiting[-1][1]
        found = [
            at for stop in self._ask.stop if (at := self._text.find(stop, max(self._start, new - len(stop) + 1))) >= 0
        ]
        if found:
            self.finish, self._text = "stop", self._text[: min(found)]
            self._waiting = [piece for piece in self._waiting if piece[1] < len(self._text)]

    def _held(self) -> int:
        """Return how many characters at the end may be the beginning of a stop."""
        own = self._text[max(self._start, len(self._text) - MOST_STOP_LENGTH) :]
        lengths = (size for stop in self._ask.stop for size in range(1, len(stop)) if own.endswith(stop[:size]))
        return max(lengths, default=0)

    def take(self) -> dict[str, Any] | None:
        """Return what can be shown and was not yet, as a choice of the response without its index; None if nothing."""
        end = len(self._text) - (0 if self.finish else self._held())
        ready = [piece for piece in self._waiting if self.finish or piece[2] <= end]
        if end <= self._sent and not self.finish:
            return None
        text, self._sent = self._text[self._sent : end], end
        self._waiting = self._waiting[len(ready) :]
        logprobs = None if self._ask.logprobs is None else self._listed(ready)
        return {"text": text, "logprobs": logprobs, "finish_reason": self.finish}

    def _listed(self, pieces: Sequence[tuple[Token, int, int]]) -> dict[str, Any]:
        """Return tokens in the form of OpenAI's completions; a part of a character is written as its bytes."""
        name, tokens = self._name, [token for token, _, _ in pieces]
        tops = [{name(i): p for i, p in token.candidates} or None for token in tokens]
        return {
            "tokens": [name(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": tops if self._ask.logprobs else None,
            "text_offset": [start for _, start, _ in pieces],
        }

    def _name(self, token: int) -> str:
        written = self._tokenizer.decode_bytes([token])
        try:
            return written.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in written)


def failure(error: Exception) -> APIError:
    """Return what a client is told of an error in the engine."""
    if isinstance(error, Overloaded | Stopped):
        return APIError(503, str(error), code="overloaded" if isinstance(error, Overloaded) else "stopping")
    return APIError(500, str(error) if isinstance(error, InputError) else "the model failed on this request")


class Answer:
    """The texts of a request, as a response or as a stream of its parts."""

    def __init__(self, served: ServedModel, ask: Ask) -> None:
        self._ask = ask
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.name,
        }
        each = [(prompt, number) for prompt in ask.prompts for number in range(ask.n)]
        self._choices = [Choice(ask, prompt, served.tokenizer) for prompt, _ in each]
        scored = ask.echo and ask.logprobs is not None
        same = (ask.max_tokens, ask.strategy)
        options = (served.tokenizer.eot, ask.logprobs, scored)
        requests = [Request(prompt, *same, (ask.seed + number) % SEEDS, *options) for prompt, number in each]
        try:
            self.generation = served.engine.submit(requests)
        except (Overloaded, Stopped) as error:
            raise failure(error) from error

    async def _changed(self) -> AsyncIterator[tuple[int, Choice]]:
        """Yield each choice, with its index, when it may have more to show."""
        async for index, event in self.generation:
            choice = self._choices[index]
            choice.add(event)
            if choice.finish:
                self.generation.cancel(index)
            yield index, choice

    async def whole(self) -> dict[str, Any]:
        """Return the response."""
        with self.generation:
            async for _ in self._changed():
                pass
        choices = [{"index": index, **(choice.take() or {})} for index, choice in enumerate(self._choices)]
        return {**self._head, "choices": choices, "usage": self._usage()}

    async def parts(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the parts of a stream."""
        usage = {"usage": None} if self._ask.include_usage else {}
        async for index, choice in self._changed():
            if (shown := choice.take()) is not None:
                yield {**self._head, "choices": [{"index": index, **shown}], **usage}
        if usage:
            yield {**self._head, "choices": [], "usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        prompts, written = sum(map(len, self._ask.prompts)), sum(choice.written for choice in self._choices)
        return {"prompt_tokens": prompts, "completion_tokens": written, "total_tokens": prompts + written}


# HTTP -----------------------------------------------------------------------------------------------------------------


def routes(models: Models) -> list[BaseRoute]:
    """Return the routes of the API."""
    started = int(time.time())

    def described(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started, "owned_by": "gpt2lab"}

    def listed(_: HTTPRequest) -> Response:
        return json_response({"object": "list", "data": [described(name) for name in models.names()]})

    def one(request: HTTPRequest) -> Response:
        models.require(name := request.path_params["name"])
        return json_response(described(name))

    async def completions(request: HTTPRequest) -> Response:
        served, ask = await run_in_threadpool(parse, await request.body(), models)
        answer = Answer(served, ask)
        if ask.stream:
            return EventStream(answer.generation, answer.parts())
        return json_response(await unless_gone(request, answer.whole()))

    return [
        Route("/v1/models", listed),
        Route("/v1/models/{name:path}", one),
        Route("/v1/completions", completions, methods=["POST"]),
    ]
