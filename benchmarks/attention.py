"""Attention alone: time and peak memory, forward and backward, of full, banded and grouped heads, T from 256 to 8,192.

    python benchmarks/attention.py [--threads 2] [--rounds 3] [--lengths 256 512 ...] [--decode 10000]

One row of 8 heads of 64 numbers. `full` is PyTorch's causal SDPA, `banded` our kernel with a window of 256, `grouped`
SDPA with 2 key and value heads; `matmul` is what the automatic choice takes for short sequences. Each cell is a process
of its own, kinds by turns, the best of several passes, the median of the rounds; memory is what the process holds at
most beyond what it held before. Then two models write `--decode` tokens: the cache of one with a rotary window must not
grow; and grouped heads are asked for the size of theirs. Writes results/attention.json, .md and .png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HEADS, KV_HEADS, HEAD_DIM, WINDOW = 8, 2, 64, 256
KINDS = ("full", "banded", "grouped", "matmul")
DTYPES = ("fp32", "bf16")
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
MATMUL_UP_TO = 2048  # its memory is T * T
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each cell (default 3)")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="sequence lengths")
    parser.add_argument("--decode", type=int, default=10_000, help="tokens that the models write (default 10000)")
    parser.add_argument("--keep", action="store_true", help="write the results, also of a part")
    parser.add_argument("--child", nargs=3, metavar=("KIND", "DTYPE", "T"), help=argparse.SUPPRESS)
    parser.add_argument("--child-decode", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child or options.child_decode:
        import torch

        torch.set_num_threads(options.threads)
        kind = (options.child[0], options.child[1], int(options.child[2])) if options.child else None
        print(json.dumps(measure(*kind) if kind else decode(options.decode)))
        return
    rows = [measured for cell in cells(options.lengths) if (measured := best(cell, options))]
    report(rows, run_child(["--child-decode"], options), options)


def cells(lengths: list[int]) -> list[tuple[str, str, int]]:
    return [
        (kind, dtype, T) for T in lengths for dtype in DTYPES for kind in KINDS if kind != "matmul" or T <= MATMUL_UP_TO
    ]


def best(cell: tuple[str, str, int], options: argparse.Namespace) -> dict[str, Any]:
    """Return the median of a cell's rounds."""
    found = [run_child(["--child", *map(str, cell)], options) for _ in range(options.rounds)]
    row = {"kind": cell[0], "dtype": cell[1], "T": cell[2]}
    row |= {key: round(statistics.median(each[key] for each in found), 3) for key in found[0]}
    print(row, flush=True)
    return row


def run_child(arguments: list[str], options: argparse.Namespace) -> dict[str, Any]:
    shared = ["--threads", str(options.threads), "--decode", str(options.decode)]
    command = [sys.executable, __file__, *arguments, *shared]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def measure(kind: str, dtype: str, T: int) -> dict[str, float]:
    """Return milliseconds forward and backward, and MiB at most, of one kind."""
    import torch

    from gpt2lab import runtime
    from gpt2lab.model.attention import AttentionPattern, attend
    from gpt2lab.model.masks import causal, sliding_window

    runtime.tune_allocator()
    torch.manual_seed(0)
    number, cpu = runtime.DTYPES[dtype], torch.device("cpu")
    kernel = {"banded": "banded", "matmul": "matmul"}.get(kind, "sdpa")
    mask = sliding_window(WINDOW) if kind == "banded" else causal()
    q, k, v = (
        torch.randn(1, heads, T, HEAD_DIM).to(number).requires_grad_()
        for heads in (HEADS, *((KV_HEADS,) * 2 if kind == "grouped" else (HEADS,) * 2))
    )
    gradient, places = torch.randn(1, HEADS, T, HEAD_DIM).to(number), torch.arange(T)
    warm = q[:, :, :64].detach()
    torch.nn.functional.scaled_dot_product_attention(warm, warm, warm)
    before = runtime.peak_memory_mb(cpu)
    bias = AttentionPattern(mask, 1, HEADS, places, places).bias(kernel, number, training=True)
    times = []
    for _ in range(max(3, min(20, 20_000 // T))):
        q.grad = k.grad = v.grad = None
        begin = time.perf_counter()
        out = attend(q, k, v, bias, 0.0)
        middle = time.perf_counter()
        out.backward(gradient)
        times.append((middle - begin, time.perf_counter() - middle))
    forward, backward = (1e3 * min(pair[i] for pair in times) for i in (0, 1))
    return {"forward_ms": forward, "backward_ms": backward, "memory_mb": runtime.peak_memory_mb(cpu) - before}


def decode(tokens: int) -> dict[str, Any]:
    """Return cache bytes: of a window model before and after it wrote so many tokens, and of grouped heads."""
    import torch

    from gpt2lab import runtime
    from gpt2lab.generation import next_logits
    from gpt2lab.model.cache import KVCache
    from gpt2lab.model.config import GPTConfig
    from gpt2lab.model.gpt import GPT

    runtime.tune_allocator()
    cpu = torch.device("cpu")
    shape: dict[str, Any] = {"n_layer": 2, "n_head": 8, "n_embd": 128, "n_ctx": 1024, "vocab_size": 256}
    plain = GPTConfig(**shape)
    caches = {n: KVCache(GPTConfig(**shape, n_kv_head=n), 1, cpu, torch.float32).nbytes for n in (8, 2)}
    config = GPTConfig(**shape, position="rope", mask="window", window=WINDOW)
    model, cache = GPT(config).eval(), KVCache(config, 1, cpu, torch.float32)
    token, memory, rates = torch.zeros(1, 1, dtype=torch.long), [], []
    for quarter in range(4):
        begin = time.perf_counter()
        for _ in range(tokens // 4):
            token = next_logits(model, token, cache).argmax(-1, keepdim=True)
        rates.append(round(tokens / 4 / (time.perf_counter() - begin)))
        held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
        memory.append({"tokens": tokens // 4 * (quarter + 1), "cache_bytes": held})
    return {
        "window_cache": memory,
        "window_tokens_per_s": rates,
        "full_cache_bytes": KVCache(plain, 1, cpu, torch.float32).nbytes,
        "multi_head_bytes": caches[8],
        "grouped_bytes": caches[2],
    }


def report(rows: list[dict[str, Any]], decoding: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the table; write it, the figures and the picture where all was measured."""
    import torch

    from gpt2lab.runtime import environment

    torch.set_num_threads(options.threads)
    text = table(rows) + "\n" + decoding_lines(decoding)
    print(text)
    if tuple(options.lengths) != LENGTHS and not options.keep:
        return  # a part does not replace the whole
    figures = {"environment": environment(), "rows": rows, "decoding": decoding}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "attention.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8", newline="\n")
    where = ", ".join(f"{name} {value}" for name, value in figures["environment"].items())
    (RESULTS / "attention.md").write_text(f"# Attention\n\n{text}\n{where}\n", encoding="utf-8", newline="\n")
    draw(rows, RESULTS / "attention.png")


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table with each kind's speed relative to full attention of the same length."""
    full = {(r["dtype"], r["T"]): r["forward_ms"] + r["backward_ms"] for r in rows if r["kind"] == "full"}
    lines = ["| T | | dtype | forward ms | backward ms | full / this | peak MiB |", "|---|---|---|---|---|---|---|"]
    for r in sorted(rows, key=lambda r: (r["dtype"], r["T"], KINDS.index(r["kind"]))):
        ratio = full[r["dtype"], r["T"]] / (r["forward_ms"] + r["backward_ms"])
        lines.append(
            f"| {r['T']:,} | {r['kind']} | {r['dtype']} | {r['forward_ms']:.1f} | {r['backward_ms']:.1f} | "
            f"{ratio:.2f} | {r['memory_mb']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def decoding_lines(found: dict[str, Any]) -> str:
    sizes = ", ".join(f"{row['cache_bytes']:,} after {row['tokens']:,}" for row in found["window_cache"])
    return (
        f"Cache of a window of {WINDOW} while it writes, in bytes: {sizes} tokens "
        f"(tokens/s by quarters: {found['window_tokens_per_s']}); of a full cache: {found['full_cache_bytes']:,}.\n"
        f"Cache of 8 key and value heads: {found['multi_head_bytes']:,} bytes; of 2: {found['grouped_bytes']:,}.\n"
    )


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Draw time and memory over T, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for dtype, style in zip(DTYPES, ("-", "--"), strict=True):
        for kind, color in zip(KINDS, ("C0", "C1", "C2", "C3"), strict=True):
            mine = sorted((r for r in rows if (r["kind"], r["dtype"]) == (kind, dtype)), key=lambda r: r["T"])
            T = [r["T"] for r in mine]
            label = f"{kind}, {dtype}"
            axes[0].loglog(T, [r["forward_ms"] + r["backward_ms"] for r in mine], style, color=color, label=label)
            axes[1].loglog(T, [max(r["memory_mb"], 0.1) for r in mine], style, color=color, label=label)
    for axis, name in zip(axes, ("forward and backward, ms", "peak memory, MiB"), strict=True):
        axis.set_xlabel("T")
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(file, dpi=90)


if __name__ == "__main__":
    main()
