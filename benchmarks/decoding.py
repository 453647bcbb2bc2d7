"""Decoding speed on a CPU: tokens a second of GPT-2 124M, one text at a time, ours and Hugging Face's generate.

    python benchmarks/decoding.py [--rounds 3] [--tokens 200] [--threads 2]

Random weights of GPT-2 124M, the same on both sides; greedy, a prompt of 32 tokens, the cache on. Each measurement is a
process of its own; the sides take turns, so that a machine that slows down slows all. The median over the tokens after
the first, which reads the prompt. In bf16 ours runs as ``gpt2lab sample`` does, under autocast from fp32 weights;
Hugging Face's model is loaded in bf16.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "decoding.json"
SIDES = ("gpt2lab bf16", "transformers bf16", "gpt2lab fp32", "transformers fp32")
PROMPT = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each (default 3)")
    parser.add_argument("--tokens", type=int, default=200, help="tokens to write (default 200)")
    parser.add_argument("--threads", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.tokens, options.threads)))
        return
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side in SIDES:
            command = [sys.executable, __file__, "--child", side]
            command += ["--tokens", str(options.tokens), "--threads", str(options.threads)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{side:18} {found[side][-1]:6.1f} tokens/s", flush=True)
    report(found, options)


def report(found: dict[str, list[float]], options: argparse.Namespace) -> None:
    """Print medians and ratios, and write them with machine and versions."""
    from gpt2lab.files import write_json
    from gpt2lab.runtime import environment

    rows: list[dict[str, Any]] = [
        {"side": side, "tokens_per_s": round(statistics.median(rates), 1), "rounds": [round(rate, 1) for rate in rates]}
        for side, rates in found.items()
    ]
    for precision in ("bf16", "fp32"):
        pairs = zip(found[f"gpt2lab {precision}"], found[f"transformers {precision}"], strict=True)
        rows.append({"ratio": precision, "times_transformers": round(statistics.median(a / b for a, b in pairs), 2)})
    for row in rows:
        print(row)
    settings = {"prompt": PROMPT, "tokens": options.tokens, "threads": options.threads, "batch": 1}
    write_json(RESULTS, {"environment": environment(), "settings": settings, "rows": rows})


def measure(side: str, tokens: int, threads: int) -> float:
    """Return the tokens a second of one side."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    library, precision = side.split()
    prompt = torch.randint(50257, (1, PROMPT))
    times = ours(prompt, tokens, precision) if library == "gpt2lab" else theirs(prompt, tokens, precision)
    return 1.0 / statistics.median(after - before for before, after in itertools.pairwise(times[1:]))


def ours(prompt: Any, tokens: int, precision: str) -> list[float]:
    """Return the moments at which tokens came."""
    from gpt2lab import runtime
    from gpt2lab.generation import STRATEGIES, stream
    from gpt2lab.model.config import GPTConfig
    from gpt2lab.model.gpt import GPT

    where = runtime.resolve("cpu", precision)
    model = GPT(GPTConfig.preset("gpt2")).eval()
    with where.autocast():
        return [time.perf_counter() for _ in stream(model, prompt, tokens, STRATEGIES["greedy"])]


def theirs(prompt: Any, tokens: int, precision: str) -> list[float]:
    """Return the moments at which tokens came from ``generate``, by the streamer that it calls for each."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.generation.streamers import BaseStreamer

    times: list[float] = []

    class Clock(BaseStreamer):
        def put(self, value: Any) -> None:
            times.append(time.perf_counter())

        def end(self) -> None:
            """Nothing is held back."""

    model: Any = GPT2LMHeadModel(GPT2Config()).eval()
    model = model.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    ones = torch.ones_like(prompt)
    length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    model.generate(prompt, attention_mask=ones, do_sample=False, pad_token_id=0, streamer=Clock(), **length)
    return times[1:]  # the first is the prompt itself


if __name__ == "__main__":
    main()
