"""OpenAI's own client talks to the server, and malformed requests get errors in OpenAI's form."""

from __future__ import annotations

import json
import math
import random
import time
from typing import Any

import httpx
import openai
import pytest
import torch
from small_server import Server, load_benchmark

from gpt2lab.generation import DecodingStrategy, generate_texts
from gpt2lab.server import batching


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def model(server: Server) -> Any:
    """The model of random texts, as it is served."""
    return server.models.get("random")


def sampled(model: Any, prompt: str, tokens: int, strategy: DecodingStrategy, seed: int) -> str:
    """What ``gpt2lab sample`` writes after the prompt."""
    texts = generate_texts(model.model, model.tokenizer, prompt, 1, tokens, strategy, seed, model.engine.runtime)
    return texts[0].removeprefix(prompt)


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["random", "fixed"]
    one = client.models.retrieve("fixed")
    assert (one.id, one.object, one.owned_by) == ("fixed", "model", "gpt2lab")
    with pytest.raises(openai.NotFoundError, match=r'the model .fixd. does not exist \(did you mean "fixed"') as error:
        client.models.retrieve("fixd")
    assert (error.value.code, error.value.type) == ("model_not_found", "invalid_request_error")


@pytest.mark.parametrize(
    ("options", "strategy"),
    [
        ({"temperature": 0}, DecodingStrategy(greedy=True)),
        ({"temperature": 1e-9, "top_p": 0.5}, DecodingStrategy(greedy=True)),
        ({"top_p": 0.0}, DecodingStrategy(greedy=True)),
        ({}, DecodingStrategy()),
        ({"temperature": 0.7, "top_p": 0.8}, DecodingStrategy(0.7, None, 0.8)),
        ({"extra_body": {"top_k": 5}}, DecodingStrategy(top_k=5)),
    ],
)
@pytest.mark.parametrize("prompt", ["the cat", ""])
def test_a_completion_is_what_sample_writes(
    client: openai.OpenAI, model: Any, options: dict[str, Any], strategy: DecodingStrategy, prompt: str
) -> None:
    answer = client.completions.create(model="random", prompt=prompt, max_tokens=30, seed=7, **options)
    expected = sampled(model, prompt, 30, strategy, 7)
    assert answer.choices[0].text == expected
    assert (answer.object, answer.model, answer.id[:5]) == ("text_completion", "random", "cmpl-")
    usage = answer.usage
    assert usage is not None
    assert usage.prompt_tokens == 1 + len(model.tokenizer.encode(prompt))
    assert (
        usage.completion_tokens == 30 if answer.choices[0].finish_reason == "length" else usage.completion_tokens < 30
    )
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_the_window_slides_as_in_sample(client: openai.OpenAI, model: Any) -> None:
    answer = client.completions.create(model="random", prompt="the dog", max_tokens=150, temperature=0)
    assert answer.choices[0].text == sampled(model, "the dog", 150, DecodingStrategy(greedy=True), 0)


def test_a_stream_has_the_same_text_in_parts(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "random", "prompt": ["the cat", "one"], "n": 2, "max_tokens": 40, "seed": 3}
    whole = client.completions.create(**asked, logprobs=2, echo=True)
    parts = list(client.completions.create(**asked, logprobs=2, echo=True, stream=True))
    assert len(parts) > 100
    for choice in whole.choices:
        own = [part.choices[0] for part in parts if part.choices[0].index == choice.index]
        assert "".join(part.text for part in own) == choice.text
        assert [part.finish_reason for part in own] == [None] * (len(own) - 1) + [choice.finish_reason]
        assert choice.logprobs is not None
        for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            joined = [value for part in own for value in getattr(part.logprobs, field)]
            assert joined == getattr(choice.logprobs, field)


def test_the_usage_of_a_stream_comes_last(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "random", "prompt": "one two", "max_tokens": 9, "temperature": 0}
    *parts, last = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert not last.choices
    assert last.usage == client.completions.create(**asked).usage
    assert all(part.usage is None for part in parts)


def test_several_prompts_are_continued_each_as_alone(client: openai.OpenAI, model: Any) -> None:
    texts = ["the cat", "one two three", "", "dog"]
    asked: dict[str, Any] = {"model": "random", "max_tokens": 25, "seed": 11}
    together = client.completions.create(prompt=texts, n=3, **asked).choices
    assert [choice.index for choice in together] == list(range(12))
    for number, text in enumerate(texts):
        own = [choice.text for choice in together[3 * number : 3 * number + 3]]
        assert own == [choice.text for choice in client.completions.create(prompt=text, n=3, **asked).choices]
        assert len(set(own)) == 3
        assert own[0] == sampled(model, text, 25, DecodingStrategy(), 11)
    ids = [[model.tokenizer.eot, *model.tokenizer.encode(text)] for text in texts]
    by_ids = client.completions.create(prompt=ids, n=3, **asked).choices
    assert [choice.text for choice in by_ids] == [choice.text for choice in together]
    assert client.completions.create(prompt=ids[1], **asked).choices[0].text == together[3].text


def test_without_a_seed_texts_differ(client: openai.OpenAI) -> None:
    texts = {client.completions.create(model="random", prompt="a", max_tokens=20).choices[0].text for _ in range(3)}
    assert len(texts) == 3


@pytest.mark.parametrize("as_ids", [False, True])
def test_logprobs_and_echo_are_those_of_a_whole_pass(client: openai.OpenAI, model: Any, as_ids: bool) -> None:
    tokenizer, text = model.tokenizer, "the cat, €5"
    ids = tokenizer.encode(text)
    answer = client.completions.create(
        model="random", prompt=ids if as_ids else text, max_tokens=12, temperature=0, logprobs=3, echo=True
    )
    choice, found = answer.choices[0], answer.choices[0].logprobs
    assert choice.text.startswith(text)
    assert found is not None and found.tokens and found.text_offset and found.top_logprobs and found.token_logprobs
    names = {token: _name(written) for token, written in tokenizer.vocab.items()}
    by_name = {name: token for token, name in names.items()}
    read = [by_name[name] for name in found.tokens]
    assert read[: len(ids)] == ids
    if not as_ids:
        read.insert(0, tokenizer.eot)
    with torch.no_grad():
        logprobs = model.model(torch.tensor([read])).logits[0].log_softmax(-1)
    if as_ids:
        assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    given = [row for row in zip(found.token_logprobs, found.top_logprobs, strict=True) if row[0] is not None]
    assert len(given) == len(read) - 1
    for (logprob, top), token, of_position in zip(given, read[1:], logprobs, strict=False):
        assert logprob == pytest.approx(of_position[token].item(), abs=1e-4)
        best = of_position.topk(3).indices.tolist()
        assert {names[i] for i in {*best, token}} == set(top)
        assert top == pytest.approx({names[i]: of_position[i].item() for i in {*best, token}}, abs=1e-4)
    for name, offset in zip(found.tokens, found.text_offset, strict=True):
        assert name.startswith("bytes:") or choice.text[offset:].startswith(name)


def _name(written: bytes) -> str:
    try:
        return written.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in written)


def test_a_prompt_is_scored_without_writing_anything(client: openai.OpenAI, model: Any) -> None:
    text = "the dog ran after the cat"
    answer = client.completions.create(model="random", prompt=text, max_tokens=0, logprobs=0, echo=True)
    found = answer.choices[0].logprobs
    assert answer.choices[0].text == text and answer.choices[0].finish_reason == "length"
    assert found is not None and found.token_logprobs and found.top_logprobs is None
    ids = torch.tensor([[model.tokenizer.eot, *model.tokenizer.encode(text)]])
    losses = model.model.token_losses(ids[:, :-1], ids[:, 1:])[0]
    assert found.token_logprobs == pytest.approx((-losses).tolist(), abs=1e-4)


def test_stops_end_the_text_wherever_tokens_end(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "random", "prompt": "the cat", "max_tokens": 60, "temperature": 0, "logprobs": 0}
    text = client.completions.create(**asked).choices[0].text
    draw = random.Random(1)
    for _ in range(12):
        stops = []
        for _ in range(draw.randint(1, 4)):
            start = draw.randrange(len(text) - 6)
            stops.append(text[start : start + draw.randint(1, 6)])
        cut = min(text.index(stop) for stop in stops)
        whole = client.completions.create(stop=stops, **asked).choices[0]
        assert (whole.text, whole.finish_reason) == (text[:cut], "stop")
        parts = [part.choices[0].text for part in client.completions.create(stop=stops, stream=True, **asked)]
        assert "".join(parts) == text[:cut]  # nothing of a stop was shown and taken back
        assert whole.logprobs is not None and whole.logprobs.text_offset is not None
        assert all(offset < cut for offset in whole.logprobs.text_offset)
    whole = client.completions.create(stop=["no such text", text[-3:] + "?"], **asked).choices[0]
    assert (whole.text, whole.finish_reason) == (text, "length")  # what was held back comes at the end


def test_characters_of_several_tokens_come_whole(client: openai.OpenAI, server: Server) -> None:
    parts = [part.choices[0] for part in client.completions.create(model="fixed", prompt="", logprobs=1, stream=True)]
    assert [part.text for part in parts] == ["a", "€", "ü", "z", "🐈", "!", ""]
    assert parts[-1].finish_reason == "stop"
    assert parts[1].logprobs is not None and parts[1].logprobs.text_offset == [1, 1, 1]
    assert parts[1].logprobs.tokens == ["bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"]
    for length, expected in [(1, "a"), (2, "a�"), (3, "a�"), (4, "a€"), (11, "a€üz🐈"), (12, "a€üz🐈!")]:
        answer = client.completions.create(model="fixed", prompt="", max_tokens=length).choices[0]
        assert (answer.text, answer.finish_reason) == (expected, "length")
    euro = server.models.get("fixed").tokenizer.encode("€")
    assert client.completions.create(model="fixed", prompt=euro[:2]).choices[0].text == "€üz🐈!"
    answer = client.completions.create(model="fixed", prompt="", stop="üz").choices[0]
    assert (answer.text, answer.finish_reason) == ("a€", "stop")
    whole = client.completions.create(model="fixed", prompt="a€", echo=True, logprobs=1).choices[0]
    assert whole.text == "a€üz🐈!"
    assert whole.logprobs is not None and whole.logprobs.text_offset == [0, 1, 1, 1, 2, 2, 3, 4, 4, 4, 4, 5]


GOOD: dict[str, Any] = {"model": "random", "prompt": "the cat", "max_tokens": 3}
MALFORMED: list[tuple[dict[str, Any], str, str | None]] = [
    ({"prompt": []}, "prompt is []; it must be a string, a list of strings, a list of ids", "prompt"),
    ({"prompt": ["a", 1]}, "prompt is", "prompt"),
    ({"prompt": [[1], []]}, "prompt is", "prompt"),
    ({"prompt": [1, True]}, "prompt is", "prompt"),
    ({"prompt": [1, 1.0]}, "prompt is", "prompt"),
    ({"prompt": {"a": 1}}, "prompt is", "prompt"),
    ({"prompt": [300]}, "made of ids from 0 to 298", "prompt"),
    ({"prompt": [-1]}, "made of ids from 0 to 298", "prompt"),
    ({"prompt": [1] * 65}, "this model's maximum context length is 64 tokens, and the prompt has 65", "prompt"),
    ({"prompt": ["a"] * 129}, "129 prompts times n = 1; at most 128 texts are possible", "n"),
    ({"n": 128, "max_tokens": 32_768}, "the texts may have 41", "max_tokens"),
    ({"n": 0}, "n is 0; it must be an integer from 1 to 128", "n"),
    ({"n": 129}, "n is 129", "n"),
    ({"n": True}, "n is true", "n"),
    ({"n": "2"}, 'n is "2"', "n"),
    ({"n": 1.5}, "n is 1.5", "n"),
    ({"best_of": 2}, "best_of is not supported; leave it out", "best_of"),
    ({"max_tokens": -1}, "max_tokens is -1; it must be an integer from 0 to 32768", "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens is 1000", "max_tokens"),
    ({"temperature": 2.1}, "temperature is 2.1; it must be a number from 0 to 2", "temperature"),
    ({"temperature": -0.1}, "temperature is -0.1", "temperature"),
    ({"temperature": math.nan}, "temperature is NaN", "temperature"),
    ({"temperature": "hot"}, 'temperature is "hot"', "temperature"),
    ({"top_p": 1.1}, "top_p is 1.1; it must be a number from 0 to 1", "top_p"),
    ({"top_k": 0}, "top_k is 0; it must be an integer from 1 to 299", "top_k"),
    ({"seed": 2**63}, "seed is 9223372036854775808; it must be an integer from -9223372036854775808", "seed"),
    ({"stop": ["a"] * 5}, "stop is", "stop"),
    ({"stop": ""}, 'stop is ""; it must be a string or a list of at most 4, of 1 to 200 characters each', "stop"),
    ({"stop": ["a", 1]}, "stop is", "stop"),
    ({"stop": "a" * 201}, "stop is", "stop"),
    ({"logprobs": 6}, "logprobs is 6; it must be an integer from 0 to 5", "logprobs"),
    ({"logprobs": True}, "logprobs is true", "logprobs"),
    ({"echo": 1}, "echo is 1; it must be true or false", "echo"),
    ({"stream": "yes"}, 'stream is "yes"', "stream"),
    (
        {"stream_options": {"include_usage": True}},
        "stream_options is only allowed when stream is true",
        "stream_options",
    ),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options is", "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options is", "stream_options"),
    ({"suffix": "end"}, "suffix is not supported", "suffix"),
    ({"logit_bias": {"5": 1}}, "logit_bias is not supported", "logit_bias"),
    ({"presence_penalty": 0.5}, "presence_penalty is not supported", "presence_penalty"),
    ({"frequency_penalty": -1}, "frequency_penalty is not supported", "frequency_penalty"),
    ({"user": 5}, "user is 5", "user"),
    ({"model": 5}, "model is 5", "model"),
    ({"model": None}, "model is missing; GET /v1/models lists the models", "model"),
    ({"messages": []}, "unrecognized request argument: messages", "messages"),
]


@pytest.mark.parametrize(("changes", "message", "param"), MALFORMED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_answered_is_refused_by_name(
    http: httpx.Client, server: Server, changes: dict[str, Any], message: str, param: str | None
) -> None:
    answer = http.post(f"{server.address}/v1/completions", content=json.dumps(GOOD | changes))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert message in error["message"] and "\n" not in error["message"]


def test_the_client_raises_what_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="n is 200; it must be an integer from 1 to 128") as error:
        client.completions.create(**GOOD, n=200)
    assert (error.value.param, error.value.type) == ("n", "invalid_request_error")


def test_what_asks_for_nothing_is_accepted(client: openai.OpenAI) -> None:
    nothing: dict[str, Any] = {"best_of": 2, "n": 2, "suffix": "", "logit_bias": {}, "presence_penalty": 0, "stop": []}
    null = dict.fromkeys(("top_p", "temperature", "seed", "logprobs", "echo", "stream", "stream_options"))
    answer = client.post("/completions", body=GOOD | nothing | null | {"user": "me"}, cast_to=object)
    assert len(answer["choices"]) == 2  # type: ignore[index]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 2_000, b'{"n": 1' + b"0" * 5_000 + b"}"]
)
def test_a_body_that_is_no_json_object_is_refused(http: httpx.Client, server: Server, body: bytes) -> None:
    answer = http.post(f"{server.address}/v1/completions", content=body)
    assert answer.status_code == 400 and "the body is" in answer.json()["error"]["message"]


def test_half_a_surrogate_pair_is_read_and_shown(http: httpx.Client, client: openai.OpenAI) -> None:
    answer = http.post(f"{client.base_url}completions", content=json.dumps(GOOD | {"prompt": "a\ud800", "echo": True}))
    assert answer.status_code == 200 and answer.json()["choices"][0]["text"].startswith("a�")
    answer = http.post(f"{client.base_url}completions", content=json.dumps(GOOD | {"model": "a\ud800"}))
    assert answer.status_code == 404


def test_malformed_requests_are_answered_in_form(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    serving = load_benchmark("serving")
    draw, statuses = random.Random(4), set()
    with httpx.Client(base_url=server.address) as client:
        for _ in range(200):
            body = serving.mutated(draw, "random")
            answer = client.post("/v1/completions", content=body)
            statuses.add(answer.status_code)
            assert not serving.out_of_form(answer), body
        assert statuses == {200, 400, 404}
        assert client.post("/v1/completions", json=GOOD).status_code == 200
    assert not caplog.records


def idle(model: Any) -> bool:
    """Wait until the engine has nothing left to do."""
    deadline = time.monotonic() + 10
    while model.engine._rows or model.engine._reading or model.engine._waiting:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_texts_of_clients_that_have_gone_are_cancelled(client: openai.OpenAI, model: Any) -> None:
    endless: dict[str, Any] = {"model": "random", "prompt": "the", "max_tokens": 30_000, "stop": None}
    stream = client.completions.create(stream=True, n=4, **endless)
    next(stream)
    stream.close()
    assert idle(model)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).completions.create(**endless)
    assert idle(model)


def test_a_full_queue_is_an_error_that_clients_retry(
    client: openai.OpenAI, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "QUEUE", 0)
    with pytest.raises(openai.InternalServerError, match="0 texts are waiting; try again later") as error:
        client.completions.create(**GOOD)
    assert (error.value.status_code, error.value.code) == (503, "overloaded")
    assert error.value.response.headers["retry-after"] == "1"


def test_an_error_of_the_model_is_one_of_its_request(client: openai.OpenAI, model: Any) -> None:
    token = model.tokenizer.encode("Q")[0]
    with torch.no_grad():
        row = model.model.wte.weight[token].clone()
        model.model.wte.weight[token] = math.nan
    try:
        with pytest.raises(openai.InternalServerError, match="the model gives nan for the next token"):
            client.completions.create(**GOOD)
        scored: dict[str, Any] = GOOD | {"max_tokens": 0, "echo": True, "logprobs": 1}
        with pytest.raises(openai.InternalServerError, match="the model gives NaN for the prompt"):
            client.completions.create(**scored)
        with pytest.raises(openai.APIError, match="the model gives nan for the next token"):
            list(client.completions.create(**GOOD, stream=True))
    finally:
        model.model.wte.weight.data[token] = row
    assert len(client.completions.create(**GOOD).choices) == 1
