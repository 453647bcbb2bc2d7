"""Training speed on a CPU: tokens per second, MFU and peak memory, beside nanoGPT's, on two types of CPU.

    python benchmarks/train_cpu.py [--nanogpt DIR] [--rounds 3] [--compiled]

Two rows: `small` is nanoGPT's documented CPU recipe (4 layers, 4 heads, width 128, T 64, B 12, 65 characters); `wide`
is half of GPT-2 124M (6 layers, 12 heads, width 768, T 256, B 4, vocabulary 50,304). Each measurement has its own
process. The sides alternate, so that a machine that slows down slows all of them. Our side is `Trainer.update`, as
`gpt2lab train` runs it, eager and, on request, with compiled blocks; nanoGPT's side is its model and the training step
of its train.py on a CPU (fp32, eager, gradient clipping, its own AdamW). The figures are medians over steps, then over
rounds.

The type `avx2` is this machine without what most laptops lack: torch and oneDNN are told to use AVX2 only, where bf16
is slow and our side therefore trains in fp32. MFU is the share of the rate of a large product in the same precision:
what is left to 100 % is all that fewer passes over memory, fused operations or a better compiler could gain.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS: dict[str, dict[str, int]] = {
    "small": {"n_layer": 4, "n_head": 4, "n_embd": 128, "T": 64, "B": 12, "vocab": 65, "steps": 300, "warmup": 20},
    "wide": {"n_layer": 6, "n_head": 12, "n_embd": 768, "T": 256, "B": 4, "vocab": 50304, "steps": 8, "warmup": 2},
}
CPUS = {"native": {}, "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}}
OURS, COMPILED, NANOGPT = "ours", "ours, compiled", "nanoGPT"
RESULTS = Path(__file__).parent / "results" / "train_cpu.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="checkout of nanoGPT, to measure it as well")
    parser.add_argument("--rounds", type=int, default=3, help="measurements per CPU type, row and side (default 3)")
    parser.add_argument("--compiled", action="store_true", help="measure our side with compiled blocks as well")
    parser.add_argument("--cpu", choices=CPUS, help="measure one type of CPU")
    parser.add_argument("--only", choices=ROWS, help="measure one row")
    parser.add_argument("--child", nargs=2, metavar=("SIDE", "ROW"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        side, row = options.child
        print(json.dumps(measure_nanogpt(row, options.nanogpt) if side == NANOGPT else measure_ours(row, side)))
        return
    sides = [OURS, *([COMPILED] if options.compiled else []), *([NANOGPT] if options.nanogpt else [])]
    rows = [options.only] if options.only else list(ROWS)
    results = []
    for cpu in [options.cpu] if options.cpu else CPUS:
        for row in rows:
            found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
            for _ in range(options.rounds):
                for side in sides:
                    found[side].append(run_child(cpu, side, row, options.nanogpt))
                    print(f"{cpu:6} {row:5} {side:14} {found[side][-1]['tokens_per_s']:9,.0f} tokens/s", flush=True)
            results += [summary(cpu, row, side, found) for side in sides]
    if options.nanogpt and len(results) == len(CPUS) * len(ROWS) * len(sides):  # else it does not replace the results
        from gpt2lab.runtime import environment

        text = json.dumps({"environment": environment(), "rows": results}, indent=2)
        RESULTS.write_text(text + "\n", encoding="utf-8")


def run_child(cpu: str, side: str, row: str, nanogpt: Path | None) -> dict[str, Any]:
    """Measure in a new process."""
    command = [sys.executable, __file__, "--child", side, row]
    command += ["--nanogpt", str(nanogpt)] if nanogpt else []
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | CPUS[cpu])
    return json.loads(done.stdout.splitlines()[-1])


def summary(cpu: str, row: str, side: str, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the medians over the rounds, and the ratios to nanoGPT's rate round by round."""
    entry: dict[str, Any] = {"cpu": cpu, "row": row, "side": side, "precision": found[side][0]["precision"]}
    for key in ("tokens_per_s", "ms_per_step", "mfu", "peak_gflops", "peak_memory_mb"):
        entry[key] = round(statistics.median(r[key] for r in found[side]), 4)
    if side != NANOGPT and NANOGPT in found:
        pairs = zip(found[side], found[NANOGPT], strict=True)
        ratios = [round(a["tokens_per_s"] / b["tokens_per_s"], 2) for a, b in pairs]
        entry |= {"times_nanogpt": statistics.median(ratios), "ratios": ratios}
    print(entry, flush=True)
    return entry


def timed(step: Callable[[], object], row: dict[str, int]) -> float:
    """Return the median duration of a step in seconds."""
    times = []
    for index in range(row["warmup"] + row["steps"]):
        begin = time.perf_counter()
        step()
        if index >= row["warmup"]:
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def figures(name: str, seconds: float, precision: str) -> dict[str, Any]:
    """Return the figures that follow from the median duration of a step."""
    import torch

    from gpt2lab import runtime
    from gpt2lab.model.config import GPTConfig

    row, cpu = ROWS[name], torch.device("cpu")
    memory = runtime.peak_memory_mb(cpu)  # before measuring the peak rate, which needs memory itself
    config = GPTConfig(row["n_layer"], row["n_head"], row["n_embd"], row["T"], row["vocab"])
    rate = row["B"] * row["T"] / seconds
    peak = max(runtime.peak_flops(cpu, precision)[0] for _ in range(3))
    return {
        "precision": precision,
        "tokens_per_s": rate,
        "ms_per_step": 1e3 * seconds,
        "mfu": config.flops_per_token(row["T"]) * rate / peak,
        "peak_gflops": peak / 1e9,
        "peak_memory_mb": memory,
    }


def measure_ours(name: str, side: str) -> dict[str, Any]:
    """Time `Trainer.update` on random tokens, eager or with compiled blocks."""
    from gpt2lab import runtime

    runtime.tune_allocator()
    import numpy as np

    from gpt2lab.model.config import GPTConfig
    from gpt2lab.runs import Run
    from gpt2lab.training.config import OptimConfig, ResolvedConfig
    from gpt2lab.training.loop import Hooks, Trainer
    from gpt2lab.training.setup import Data, Setup

    row = ROWS[name]

    class RandomStream:
        """Random tokens in place of shards."""

        masked = False

        def __init__(self) -> None:
            self.tokens = np.random.default_rng(0).integers(0, row["vocab"], 1_000_000, dtype=np.uint16)

        def __len__(self) -> int:
            return len(self.tokens)

        def read(self, starts: np.ndarray, length: int) -> np.ndarray:
            return np.stack([self.tokens[start : start + length] for start in starts])

    where = runtime.resolve("cpu")
    shape = (row["n_layer"], row["n_head"], row["n_embd"], row["T"], row["vocab"])
    model = GPTConfig(*shape, dropout=0.0, bias=False)  # as in nanoGPT's recipe
    steps = row["warmup"] + row["steps"]
    config = ResolvedConfig(
        out=Path(),
        steps=steps,
        seq_len=row["T"],
        model=model,
        optim=OptimConfig(lr=1e-3),
        batch_tokens=row["B"] * row["T"],
        micro_batch=row["B"],
        device="cpu",
        precision=where.precision,  # type: ignore[arg-type]
        compile="on" if side == COMPILED else "off",
        parallel="none",
        log_every=steps,
        eval_every=steps,
        checkpoint_every=steps,
    )
    data = Data(RandomStream(), None, {})  # type: ignore[arg-type]
    trainer = Trainer(Setup(config, where, ()), data, Run(Path()), Hooks())
    return figures(name, timed(trainer.update, row), where.precision)


def measure_nanogpt(name: str, checkout: Path) -> dict[str, Any]:
    """Time nanoGPT's model and training step."""
    sys.path.insert(0, str(checkout))
    import torch

    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    row = ROWS[name]
    torch.manual_seed(0)
    shape = {"n_layer": row["n_layer"], "n_head": row["n_head"], "n_embd": row["n_embd"], "vocab_size": row["vocab"]}
    model = GPT(GPTConfig(block_size=row["T"], dropout=0.0, bias=False, **shape))
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    tokens = torch.randint(row["vocab"], (1_000_000,))

    def step() -> float:
        starts = torch.randint(len(tokens) - row["T"], (row["B"],)).tolist()
        x = torch.stack([tokens[i : i + row["T"]] for i in starts])
        y = torch.stack([tokens[i + 1 : i + 1 + row["T"]] for i in starts])
        _, loss = model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return figures(name, timed(step, row), "fp32")


if __name__ == "__main__":
    main()
