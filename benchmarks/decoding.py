"""Decoding speed on a CPU: tokens a second of GPT-2 124M, one text at a time, beside transformers and llama.cpp.

    pip install llama-cpp-python        # compiled from source for this CPU: some minutes
    python benchmarks/decoding.py --vocabulary DIR [--rounds 3] [--tokens 200] [--threads 2] [--sides NAME ...]

Random weights of GPT-2 124M, the same on all sides (llama.cpp reads what ``gpt2lab export-gguf`` writes: it needs the
directory of GPT-2's encoder.json and vocab.bpe); greedy, a prompt of 32 tokens, the cache on. Each measurement is a
process of its own; the sides take turns, so that a machine that slows down slows all. The median over the tokens after
the first, which reads the prompt. Ours runs as ``gpt2lab sample`` does, in bf16 under autocast from fp32 weights;
llama.cpp rounds what q8_0 and q4_0 are multiplied by to 8 bits, ours stays bf16. With ONEDNN_MAX_CPU_ISA=AVX2 and
ATEN_CPU_CAPABILITY=avx2 ours uses AVX2 only; compare it with a llama.cpp that was compiled so.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SIDES = (
    *("gpt2lab bf16", "llama.cpp bf16", "llama.cpp f16", "transformers bf16"),
    *("gpt2lab int8", "llama.cpp q8_0", "gpt2lab int4", "llama.cpp q4_0"),
    *("gpt2lab fp32", "transformers fp32"),
)
RATIOS = (
    ("gpt2lab bf16", "llama.cpp bf16"),
    ("gpt2lab bf16", "llama.cpp f16"),
    ("gpt2lab int8", "llama.cpp q8_0"),
    ("gpt2lab int4", "llama.cpp q4_0"),
    ("gpt2lab bf16", "transformers bf16"),
    ("gpt2lab fp32", "transformers fp32"),
)
PROMPT = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each (default 3)")
    parser.add_argument("--tokens", type=int, default=200, help="tokens to write (default 200)")
    parser.add_argument("--threads", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="what to measure (default all)")
    parser.add_argument(
        "--vocabulary", type=Path, help="directory of GPT-2's encoder.json and vocab.bpe, for llama.cpp"
    )
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--files", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.files = Path(folder)
        write_files(options)
        found: dict[str, list[float]] = {side: [] for side in options.sides}
        for _ in range(options.rounds):
            for side in options.sides:
                command = [sys.executable, __file__, "--child", side, "--files", folder]
                command += ["--tokens", str(options.tokens), "--threads", str(options.threads)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found[side].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{side:18} {found[side][-1]:6.1f} tokens/s", flush=True)
    report(found, options)


def write_files(options: argparse.Namespace) -> None:
    """Write the model as the GGUF files that the sides of llama.cpp read."""
    from gpt2lab import Tokenizer
    from gpt2lab.llama_cpp import write_gguf

    theirs = [side.split()[1] for side in options.sides if side.startswith("llama.cpp")]
    if theirs and options.vocabulary is None:
        sys.exit("llama.cpp's files need GPT-2's vocabulary: give --vocabulary DIR, or --sides without llama.cpp")
    for form in theirs:
        write_gguf(model(), Tokenizer.gpt2(options.vocabulary), "gpt2", options.files / f"{form}.gguf", form)


def model() -> Any:
    """Return GPT-2 124M with random weights, the same each time."""
    import torch

    from gpt2lab import GPT, GPTConfig

    torch.manual_seed(0)
    return GPT(GPTConfig.preset("gpt2")).eval()


def report(found: dict[str, list[float]], options: argparse.Namespace) -> None:
    """Print medians and ratios, and write them with machine and versions."""
    import torch

    from gpt2lab.files import write_json
    from gpt2lab.runtime import environment

    rows: list[dict[str, Any]] = [
        {"side": side, "tokens_per_s": round(statistics.median(rates), 1), "rounds": [round(rate, 1) for rate in rates]}
        for side, rates in found.items()
    ]
    for ours, other in RATIOS:
        if {ours, other} <= found.keys():
            pairs = zip(found[ours], found[other], strict=True)
            rows.append({"side": ours, "of": other, "times": round(statistics.median(a / b for a, b in pairs), 2)})
    for row in rows:
        print(row)
    settings = {"prompt": PROMPT, "tokens": options.tokens, "threads": options.threads, "batch": 1}
    avx2 = "-avx2" if torch.backends.cpu.get_cpu_capability() == "AVX2" else ""
    write_json(RESULTS / f"decoding{avx2}.json", {"environment": environment(), "settings": settings, "rows": rows})


def measure(options: argparse.Namespace) -> float:
    """Return the tokens a second of one side."""
    import torch

    torch.set_num_threads(options.threads)
    library, width = options.child.split()
    prompt = torch.randint(50257, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    sides = {"gpt2lab": ours, "transformers": transformers, "llama.cpp": llama_cpp}
    times = sides[library](prompt, width, options)
    return 1.0 / statistics.median(after - before for before, after in itertools.pairwise(times[1:]))


def ours(prompt: Any, width: str, options: argparse.Namespace) -> list[float]:
    """Return the moments at which tokens came."""
    from gpt2lab import runtime
    from gpt2lab.generation import STRATEGIES, stream
    from gpt2lab.model.quantized import quantized

    runtime.tune_allocator()
    rounded = quantized(model(), width) if width.startswith("int") else model()  # type: ignore[arg-type]
    with runtime.resolve("cpu", "fp32" if width == "fp32" else "bf16").autocast():
        return [time.perf_counter() for _ in stream(rounded, prompt, options.tokens, STRATEGIES["greedy"])]


def llama_cpp(prompt: Any, form: str, options: argparse.Namespace) -> list[float]:
    """Return the moments at which tokens came from llama.cpp, chosen by numpy's argmax."""
    import numpy as np

    library: Any = importlib.import_module("llama_cpp")  # not a dependency
    threads = {"n_threads": options.threads, "n_threads_batch": options.threads}
    loaded = library.Llama(str(options.files / f"{form}.gguf"), n_ctx=1024, verbose=False, **threads)
    tokens, times = prompt[0].tolist(), []
    for _ in range(options.tokens):
        loaded.eval(tokens)
        logits = np.ctypeslib.as_array(library.llama_get_logits(loaded.ctx), shape=(loaded.n_vocab(),))
        tokens = [int(logits.argmax())]
        times.append(time.perf_counter())
    return times


def transformers(prompt: Any, precision: str, options: argparse.Namespace) -> list[float]:
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

    theirs: Any = GPT2LMHeadModel(GPT2Config()).eval()
    theirs = theirs.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    ones = torch.ones_like(prompt)
    length = {"max_new_tokens": options.tokens, "min_new_tokens": options.tokens}
    theirs.generate(prompt, attention_mask=ones, do_sample=False, pad_token_id=0, streamer=Clock(), **length)
    return times[1:]  # the first is the prompt itself


if __name__ == "__main__":
    main()
