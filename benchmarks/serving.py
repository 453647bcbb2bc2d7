"""The server under load: what clients gain by being answered together, and whether it stays whole.

    python benchmarks/serving.py throughput [--preset gpt2] [--clients 16] [--prompt 32] [--tokens 128] [--threads 2]
    python benchmarks/serving.py soak [--minutes 5] [--clients 64] [--malformed 10000] [--run docs/gallery/stories]

``throughput`` serves random weights of a preset with ``gpt2lab serve``, asks for one greedy text after another, then
for all of them at once, by OpenAI's client, and compares tokens a second and the texts. It needs GPT-2's vocabulary
(``--vocabulary``). ``soak`` lets clients ask for random things and go away at random; every greedy text must be the one
that its prompt had at the beginning, every stream must end, and the server's memory must not grow. Malformed requests
follow: each must be answered in OpenAI's form. A server that writes anything to its standard error has failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai

RESULTS = Path(__file__).parent / "results"
STORIES = Path(__file__).parents[1] / "docs" / "gallery" / "stories"
ODD: list[Any] = [None, True, -1, 0, 1.5, 10**20, math.inf, "", "a", "\ud800", [], [[]], {}, {"a": [1]}, ["a"] * 3]
FIELDS = ["model", "prompt", "n", "temperature", "top_p", "top_k", "stop", "logprobs", "echo", "seed", "stream"]
FIELDS += ["stream_options", "max_tokens", "x"]
WORDS = ["the", "a", "cat", "dog", "said", "once", "upon", "time", "and", "ran", "to", "sea"]
STATUSES = {200, 400, 404, 413, 503}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    fast, long = parts.add_parser("throughput"), parts.add_parser("soak")
    fast.add_argument("--preset", default="gpt2", help="shape of the model (default gpt2, 124M)")
    fast.add_argument("--vocabulary", type=Path, default=Path(os.environ.get("GPT2LAB_DATA", "")) / "gpt2")
    fast.add_argument("--clients", type=int, default=16)
    fast.add_argument("--prompt", type=int, default=32, help="tokens of each prompt (default 32)")
    fast.add_argument("--tokens", type=int, default=128, help="tokens to write (default 128)")
    fast.add_argument("--threads", type=int, default=2)
    fast.add_argument("--precision", default="auto")
    long.add_argument("--minutes", type=float, default=5.0)
    long.add_argument("--clients", type=int, default=64)
    long.add_argument("--malformed", type=int, default=10_000, help="malformed requests (default 10,000)")
    long.add_argument("--run", type=Path, default=STORIES, help="the run to serve (default: the stories model)")
    long.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = throughput(options) if options.part == "throughput" else asyncio.run(soak(options))
    from gpt2lab.files import write_json
    from gpt2lab.runtime import environment

    settings = {name: value.name if isinstance(value, Path) else value for name, value in vars(options).items()}
    write_json(RESULTS / f"serving-{options.part}.json", {"environment": environment(), **settings, **found})
    sys.exit(0 if found["passed"] else 1)


@contextmanager
def serving(run: Path, *arguments: str, threads: int | None = None) -> Iterator[tuple[str, int]]:
    """Run ``gpt2lab serve``; give its address and process. SIGINT must end it with 0, and its errors must be empty."""
    command = [sys.executable, "-m", "gpt2lab", "serve", str(run), "--port", "0", *arguments]
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    with tempfile.TemporaryFile("w+") as complaints:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True, env=environment) as server:
            assert server.stdout is not None
            try:
                yield server.stdout.readline().split(" at ")[1].split(";")[0], server.pid
            finally:
                server.send_signal(signal.SIGINT)
                code = server.wait(30)
        complaints.seek(0)
        said = complaints.read()
    assert (code, said) == (0, ""), f"the server ended with {code} and said: {said[-2000:]}"


# Throughput -----------------------------------------------------------------------------------------------------------


def throughput(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one client, and all together."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "model"
        vocab_size = save_random(run, options.preset, options.vocabulary)
        draw = random.Random(0)
        prompts = [[draw.randrange(vocab_size) for _ in range(options.prompt)] for _ in range(options.clients)]
        precision = ("--precision", options.precision)
        with serving(run, *precision, threads=options.threads) as (address, _):
            return asyncio.run(compare(address, prompts, options.tokens))


def save_random(run: Path, preset: str, vocabulary: Path) -> int:
    """Save random weights as a run; return the size of the vocabulary."""
    import torch

    from gpt2lab.model.config import GPTConfig
    from gpt2lab.model.gpt import GPT
    from gpt2lab.tokenizer.tokenizer import Tokenizer
    from gpt2lab.training.session import save_imported

    torch.manual_seed(0)
    model = GPT(GPTConfig.preset(preset))
    save_imported(model, Tokenizer.gpt2(vocabulary), run, "random weights")
    return model.config.vocab_size


async def compare(address: str, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
    """Ask for each text alone, then for all at once."""
    client = openai.AsyncOpenAI(base_url=address, api_key="none", timeout=3600, max_retries=0)

    async def write(prompt: list[int], length: int = tokens) -> tuple[str, int, float]:
        began = time.perf_counter()
        answer = await client.completions.create(model="model", prompt=prompt, max_tokens=length, temperature=0)
        assert answer.usage is not None
        return answer.choices[0].text, answer.usage.completion_tokens, time.perf_counter() - began

    await write(prompts[0], 8)
    alone = [await write(prompt) for prompt in prompts]
    began = time.perf_counter()
    together = await asyncio.gather(*map(write, prompts))
    seconds = time.perf_counter() - began
    one = statistics.median(count / spent for _, count, spent in alone)
    all_of_them = sum(count for _, count, _ in together) / seconds
    equal = sum(a[:2] == b[:2] for a, b in zip(alone, together, strict=True))
    print(f"one client {one:.1f} tokens/s, {len(prompts)} together {all_of_them:.1f}: {all_of_them / one:.2f} times")
    print(f"{equal} of {len(prompts)} texts are those that their clients get alone")
    return {
        "tokens_per_s_alone": round(one, 1),
        "tokens_per_s_together": round(all_of_them, 1),
        "times": round(all_of_them / one, 2),
        "equal_texts": equal,
        "passed": equal == len(prompts),
    }


# Soak -----------------------------------------------------------------------------------------------------------------


async def soak(options: argparse.Namespace) -> dict[str, Any]:
    """Let clients come and go, then send what is malformed."""
    with serving(options.run) as (address, pid):
        async with httpx.AsyncClient(base_url=address, timeout=300, limits=httpx.Limits(max_connections=None)) as http:
            load = Load(http, options.run.resolve().name, options.seed)
            await load.prepare()
            memory, draws = [], [random.Random(f"{options.seed} {number}") for number in range(options.clients)]
            for _ in range(10):  # at the end of each round the server has nothing to do
                end = time.monotonic() + 6 * options.minutes
                await asyncio.gather(*(load.client(draw, end) for draw in draws))
                memory.append(resident(pid))
            await load.malformed(options.malformed)
            memory.append(resident(pid))
            await load.check(0)
    print(f"{dict(load.seen)}\nserver's memory in MB after each round and at the end: {memory}")
    flat = memory[-1] <= 1.1 * max(memory[:3])  # oneDNN keeps the kernel of each new number of rows, up to a bound
    print("memory is flat" if flat else "memory grows", *load.problems[:10], sep="\n")
    passed = flat and not load.problems
    return {"requests": dict(load.seen), "memory_mb": memory, "problems": load.problems[:100], "passed": passed}


def resident(pid: int) -> int:
    """Return the resident memory of a process in MB (Linux)."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024


class Load:
    """What clients ask for, and what was wrong with the answers."""

    def __init__(self, http: httpx.AsyncClient, model: str, seed: int) -> None:
        self._http, self._model, self._seed = http, model, seed
        self._texts: dict[int, str] = {}
        self.seen: Counter[str] = Counter()
        self.problems: list[str] = []

    async def prepare(self) -> None:
        """Ask for every greedy text once, alone."""
        for number in range(20):
            self._texts[number] = (await self._post(self._greedy(number))).json()["choices"][0]["text"]

    def _greedy(self, number: int) -> dict[str, Any]:
        words = random.Random(number)
        prompt = " ".join(words.choice(WORDS) for _ in range(6))
        return {"model": self._model, "prompt": prompt, "max_tokens": 20 + 10 * number, "temperature": 0}

    async def _post(self, body: dict[str, Any]) -> httpx.Response:
        return await self._http.post("/completions", json=body)

    async def client(self, draw: random.Random, end: float) -> None:
        """Ask for one thing after another until the end."""
        while time.monotonic() < end:
            kind = draw.choice([self.check, self.stream, self.go_away])
            try:
                await kind(draw.randrange(20), draw)
            except Exception as error:
                self.problems.append(f"{kind.__name__}: {type(error).__name__}: {error}")

    async def check(self, number: int, draw: random.Random | None = None) -> None:
        """Ask for a text whose like is known; a busy server may refuse."""
        answer = await self._post(self._greedy(number))
        self.seen[f"whole {answer.status_code}"] += 1
        if answer.status_code != 503 and answer.json()["choices"][0]["text"] != self._texts[number]:
            self.problems.append(f"text {number} is another: {answer.text[:200]}")

    async def stream(self, number: int, draw: random.Random, leave_after: float = math.inf) -> None:
        """Read a stream to its end, or go away after some of its parts."""
        body = self._greedy(number) | {"stream": True, "n": draw.randint(1, 4), "stop": draw.choice([None, "the", "."])}
        body |= draw.choice([{}, {"temperature": 1.0, "top_p": 0.9}, {"temperature": 0.7, "logprobs": 3}])
        ended, last = 0, ""
        async with self._http.stream("POST", "/completions", json=body) as answer:
            if answer.status_code == 503:
                self.seen["stream 503"] += 1
                return
            async for line in answer.aiter_lines():
                last = line or last
                ended += '"finish_reason": "' in line
                leave_after -= bool(line)
                if leave_after < 0:
                    self.seen["left"] += 1
                    return
        self.seen["stream"] += 1
        if (ended, last) != (body["n"], "data: [DONE]"):
            self.problems.append(f"a stream of {body['n']} texts ended after {ended} with {last[:200]}")

    async def go_away(self, number: int, draw: random.Random) -> None:
        """Begin a long text and leave, before the answer or within it."""
        if draw.random() < 0.5:
            await self.stream(19, draw, draw.randint(0, 20))
            return
        body = self._greedy(number) | {"max_tokens": 20_000, "temperature": 1.0, "n": 4}
        try:
            async with asyncio.timeout(draw.random()):
                self.seen[f"whole {(await self._post(body)).status_code}"] += 1
        except TimeoutError:
            self.seen["left"] += 1

    async def malformed(self, number: int) -> None:
        """Send malformed requests; all must be answered in form."""
        draw = random.Random(self._seed)
        for _ in range(number):
            body = mutated(draw, self._model)
            try:
                answer = await self._http.post("/completions", content=body)
            except httpx.HTTPError as error:
                self.problems.append(f"{body[:200]!r}: {type(error).__name__}: {error}")
                continue
            self.seen[f"malformed {answer.status_code}"] += 1
            if problem := out_of_form(answer):
                self.problems.append(f"{body[:200]!r}: {problem}")


def mutated(draw: random.Random, model: str) -> bytes:
    """Return a request that something has happened to."""
    good: dict[str, Any] = {"model": model, "prompt": "the cat", "max_tokens": 3}
    changed = good | {draw.choice(FIELDS): draw.choice(ODD) for _ in range(draw.randint(0, 3))}
    body = bytearray(json.dumps(changed).encode())
    for _ in range(draw.choice([0, 0, 1, 4])):
        at = draw.randrange(len(body))
        body[at : at + draw.randint(0, 3)] = bytes(draw.randrange(256) for _ in range(draw.randint(0, 3)))
    return bytes(body)


def out_of_form(answer: httpx.Response) -> str:
    """Return what is wrong with an answer; nothing if it is a completion or an error in OpenAI's form."""
    if answer.status_code not in STATUSES:
        return f"status {answer.status_code}"
    if answer.status_code == 200:
        return "" if '"text_completion"' in answer.text else f"no completion: {answer.text[:200]}"
    error = answer.json().get("error", {})
    in_form = error.keys() == {"message", "type", "param", "code"} and "\n" not in error["message"]
    return "" if in_form else f"no error in form: {answer.text[:200]}"


if __name__ == "__main__":
    main()
