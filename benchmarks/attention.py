"""What full, banded and grouped attention cost: the kernels alone, whole training steps, generation, and the cache.

    python benchmarks/attention.py [--parts kernels training generation window] [--threads 2] [--rounds 3] ...

- kernels: time and peak memory, forward and backward, T from 256 to 8,192, of one row of 8 heads of 64 numbers. `full`
  is PyTorch's causal SDPA (a flash kernel, which holds no T x T matrix), `banded` our kernel with a window of 256,
  `grouped` SDPA with 2 key and value heads; `matmul` is what the automatic choice takes for short sequences.
- training: whole steps (forward, backward, AdamW) of a small model in bf16 with a context of 1,024 and of 4,096.
- generation: tokens per second and cache of 8 rows behind a prompt of 960 tokens, in fp32, by key-value heads. This and
  training run in one thread and are timed in its CPU time, so that other work on the machine hardly matters.
- window: a model with a rotary window writes `--decode` tokens; its cache must not grow.

Each cell is a process of its own, kinds by turns, the best of several passes, the median of the rounds; memory is what
the process holds at most beyond what it held before. Writes results/attention.json, .md and .png; a part that is not
measured keeps its earlier results.
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
TRAINED_CONTEXTS = (1024, 4096)
TRAINED_KINDS = {
    "full": {}, "window of 256": {"mask": "window", "window": WINDOW}, "1 key-value head": {"n_kv_head": 1},
    "both": {"mask": "window", "window": WINDOW, "n_kv_head": 1},
}  # fmt: skip
STEP_TOKENS = 4096
PROMPT, GENERATED, ROWS = 960, 32, 8
GENERATING_HEADS = (8, 2, 1)
ONE_THREAD = ("training", "generation")
PARTS = ("kernels", "training", "generation", "window")
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default all)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each cell (default 3)")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="sequence lengths of the kernels")
    parser.add_argument(
        "--decode", type=int, default=10_000, help="tokens that the window model writes (default 10000)"
    )
    parser.add_argument("--keep", action="store_true", help="write the results of the kernels also for other lengths")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        import torch

        from gpt2lab import runtime

        part, *cell = options.child
        torch.set_num_threads(1 if part in ONE_THREAD else options.threads)
        runtime.tune_allocator()
        torch.manual_seed(0)
        print(json.dumps(CHILDREN[part](*cell)))
        return
    found = {part: measure_part(part, options) for part in options.parts}
    report(found, options)


def measure_part(part: str, options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from gpt2lab.runtime import environment

    torch.set_num_threads(options.threads)
    names, cells = {
        "kernels": (("kind", "dtype", "T"), kernel_cells(options.lengths)),
        "training": (("kind", "T"), [(kind, T) for T in TRAINED_CONTEXTS for kind in TRAINED_KINDS]),
        "generation": (("kv_heads",), [(heads,) for heads in GENERATING_HEADS]),
        "window": (("tokens",), [(options.decode,)]),
    }[part]
    return {"environment": environment(), "rows": [best(part, names, cell, options) for cell in cells]}


def kernel_cells(lengths: list[int]) -> list[tuple[str, str, int]]:
    return [
        (kind, dtype, T) for T in lengths for dtype in DTYPES for kind in KINDS if kind != "matmul" or T <= MATMUL_UP_TO
    ]


def best(part: str, names: tuple[str, ...], cell: tuple[Any, ...], options: argparse.Namespace) -> dict[str, Any]:
    """Return the median of a cell's rounds."""
    command = [sys.executable, __file__, "--threads", str(options.threads), "--child", part, *map(str, cell)]
    rounds = []
    for _ in range(1 if part == "window" else options.rounds):
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rounds.append(json.loads(printed.splitlines()[-1]))
    row = dict(zip(names, cell, strict=True))
    for key, value in rounds[0].items():
        row[key] = value if isinstance(value, list) else round(statistics.median(each[key] for each in rounds), 3)
    print(row, flush=True)
    return row


def kernels(kind: str, dtype: str, length: str) -> dict[str, float]:
    """Return milliseconds forward and backward, and MiB at most, of one kind."""
    import torch

    from gpt2lab import runtime
    from gpt2lab.model.attention import AttentionPattern, attend
    from gpt2lab.model.masks import causal, sliding_window

    T, number, cpu = int(length), runtime.DTYPES[dtype], torch.device("cpu")
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


def training(kind: str, length: str) -> dict[str, float]:
    """Return the speed and the memory of whole training steps: 2 layers of width 128, 4 heads, dropout 0."""
    import torch

    from gpt2lab import runtime
    from gpt2lab.model.config import GPTConfig
    from gpt2lab.model.gpt import GPT
    from gpt2lab.training.config import OptimConfig
    from gpt2lab.training.optim import make_optimizer

    T, options = int(length), TRAINED_KINDS[kind]
    shape: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 128, "n_ctx": T, "vocab_size": 1024, "dropout": 0.0}
    model = GPT(GPTConfig(**shape, **options))
    optimizer, cpu = make_optimizer(model, OptimConfig()), torch.device("cpu")
    tokens = torch.randint(1024, (STEP_TOKENS // T, T + 1))
    before, times = runtime.peak_memory_mb(cpu), []
    for _ in range(6):
        begin = time.process_time()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(tokens[:, :-1], tokens[:, 1:]).loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.process_time() - begin)
    return {"tokens_per_s": STEP_TOKENS / min(times), "memory_mb": runtime.peak_memory_mb(cpu) - before}


def generation(kv_heads: str) -> dict[str, float]:
    """Return the speed behind a long prompt and the cache: 2 layers of 8 heads of 64, context 1,024, fp32."""
    import torch

    from gpt2lab.generation import next_logits
    from gpt2lab.model.cache import KVCache
    from gpt2lab.model.config import GPTConfig
    from gpt2lab.model.gpt import GPT

    shape: dict[str, Any] = {"n_layer": 2, "n_head": 8, "n_embd": 512, "n_ctx": 1024, "vocab_size": 256}
    config = GPTConfig(**shape, n_kv_head=int(kv_heads))
    model, cache = GPT(config).eval(), KVCache(config, ROWS, torch.device("cpu"), torch.float32)
    times = []
    token = next_logits(model, torch.randint(256, (ROWS, PROMPT)), cache).argmax(-1, keepdim=True)
    for _ in range(GENERATED):
        begin = time.process_time()
        token = next_logits(model, token, cache).argmax(-1, keepdim=True)
        times.append(time.process_time() - begin)
    return {"tokens_per_s": ROWS / min(times), "cache_mb": cache.nbytes / 2**20}


def window(tokens: str) -> dict[str, Any]:
    """Return the cache of a model with a rotary window while it writes, and its speed, quarter by quarter."""
    import torch

    from gpt2lab.generation import next_logits
    from gpt2lab.model.cache import KVCache
    from gpt2lab.model.config import GPTConfig
    from gpt2lab.model.gpt import GPT

    cpu, each = torch.device("cpu"), int(tokens) // 4
    shape: dict[str, Any] = {"n_layer": 2, "n_head": 8, "n_embd": 128, "n_ctx": 1024, "vocab_size": 256}
    config = GPTConfig(**shape, position="rope", mask="window", window=WINDOW)
    model, cache = GPT(config).eval(), KVCache(config, 1, cpu, torch.float32)
    token, sizes, rates = torch.zeros(1, 1, dtype=torch.long), [], []
    for _ in range(4):
        begin = time.perf_counter()
        for _ in range(each):
            token = next_logits(model, token, cache).argmax(-1, keepdim=True)
        rates.append(round(each / (time.perf_counter() - begin)))
        sizes.append(sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values)))
    full = KVCache(GPTConfig(**shape), 1, cpu, torch.float32).nbytes
    return {"cache_bytes": sizes, "tokens_per_s": rates, "full_cache_bytes": full}


CHILDREN = {"kernels": kernels, "training": training, "generation": generation, "window": window}


def report(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the tables; write them, the figures and the picture, beside earlier results of other parts."""
    file = RESULTS / "attention.json"
    if "kernels" in found and tuple(options.lengths) != LENGTHS and not options.keep:
        print(table(found.pop("kernels")["rows"]))  # a part does not replace the whole
    results = (json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}) | found
    tables = {"kernels": table, "training": training_table, "generation": generation_table, "window": window_lines}
    texts = []
    for part in filter(results.__contains__, PARTS):
        where = ", ".join(f"{name} {value}" for name, value in results[part]["environment"].items())
        texts.append(f"## {part.capitalize()}\n\n{tables[part](results[part]['rows'])}\n{where}\n")
    print("\n".join(texts))
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8", newline="\n")
    page = "# Attention\n\n" + "\n".join(texts)
    (RESULTS / "attention.md").write_text(page, encoding="utf-8", newline="\n")
    if "kernels" in found:
        draw(found["kernels"]["rows"], RESULTS / "attention.png")


def training_table(rows: list[dict[str, Any]]) -> str:
    full = {row["T"]: row["tokens_per_s"] for row in rows if row["kind"] == "full"}
    lines = ["| context | attention | tokens per CPU second | of full | peak MiB |", "|---|---|---|---|---|"]
    for row in rows:
        ratio = row["tokens_per_s"] / full[row["T"]]
        speed = f"{row['tokens_per_s']:,.0f} | {ratio:.2f}"
        lines.append(f"| {row['T']:,} | {row['kind']} | {speed} | {row['memory_mb']:.0f} |")
    return "\n".join(lines) + "\n"


def generation_table(rows: list[dict[str, Any]]) -> str:
    lines = ["| key-value heads | tokens per CPU second | cache, MiB |", "|---|---|---|"]
    lines += [f"| {row['kv_heads']} of 8 | {row['tokens_per_s']:,.0f} | {row['cache_mb']:.1f} |" for row in rows]
    return "\n".join(lines) + "\n"


def window_lines(rows: list[dict[str, Any]]) -> str:
    (row,) = rows
    return (
        f"Cache of a window of {WINDOW} after each quarter of {row['tokens']:,} tokens: "
        f"{', '.join(f'{size:,}' for size in row['cache_bytes'])} bytes, at {row['tokens_per_s']} tokens/s; "
        f"of a full context of 1,024: {row['full_cache_bytes']:,} bytes.\n"
    )


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
