"""What each part that came after GPT-2 costs: parameters, operations and time of a training step, beside GPT-2's own.

    python benchmarks/parts.py [--rounds 15] [--precision bf16]

A step is forward, backward and AdamW, without a compiler, of 4 layers of width 256 (8 heads of 32 numbers), 4 sequences
of 256 tokens and a vocabulary of 4,096. It runs in one thread and is timed in its CPU time, so that other work on the
machine hardly matters. In each round every variant does one step, one after another; the figure is the median over the
rounds of its time over that of the baseline in the same round. Writes results/parts.json and prints the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.runtime import DTYPES, device_name
from gpt2lab.training.config import OptimConfig
from gpt2lab.training.optim import make_optimizer

RESULTS = Path(__file__).parent / "results" / "parts.json"
BASELINE = GPTConfig(n_layer=4, n_head=8, n_embd=256, n_ctx=256, vocab_size=4096, dropout=0.0)
ROPE: dict[str, Any] = {"position": "rope"}
MODERN: dict[str, Any] = {**ROPE, "norm": "rmsnorm", "activation": "swiglu", "qk_norm": True, "bias": False}
PARTS: dict[str, dict[str, Any]] = {
    "GPT-2": {},
    "norm rmsnorm": {"norm": "rmsnorm"},
    "norm_placement post": {"norm_placement": "post"},
    "norm_placement sandwich": {"norm_placement": "sandwich"},
    "qk_norm": {"qk_norm": True},
    "activation gelu": {"activation": "gelu"},
    "activation relu2": {"activation": "relu2"},
    "activation swiglu": {"activation": "swiglu"},
    "parallel_blocks": {"parallel_blocks": True},
    "tied_head off": {"tied_head": False},
    "logit_softcap 30": {"logit_softcap": 30.0},
    "z_loss 1e-4": {"z_loss": 1e-4},
    "mtp_depth 1": {"mtp_depth": 1},
    "embedding_norm": {"embedding_norm": True},
    "bias off": {"bias": False},
    "position rope": ROPE,
    "position alibi": {"position": "alibi"},
    "n_kv_head 2": {"n_kv_head": 2},
    "attention_softcap 50": {"attention_softcap": 50.0},
    "attention_sinks": {"attention_sinks": True},
    "attention_gate": {"attention_gate": True},
    "value_residual": {"value_residual": True},
    "differential_attention": {"differential_attention": True},
    "latent_dim 128, position rope": {"latent_dim": 128, **ROPE},
    "mask window,causal, window 64": {"mask": "window,causal", "window": 64},
    "as in gpt2-modern": {**MODERN, "tied_head": False},
}


class Variant:
    """A model with its optimizer, and the CPU seconds of its steps."""

    def __init__(self, options: dict[str, Any], dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.config = dataclasses.replace(BASELINE, **options)
        self.model, self.dtype = GPT(self.config), dtype
        self.optimizer = make_optimizer(self.model, OptimConfig())
        self.seconds: list[float] = []

    def step(self, tokens: torch.Tensor) -> None:
        """Do one training step."""
        begin = time.process_time()
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            loss = self.model(tokens, tokens).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds.append(time.process_time() - begin)


def measure(rounds: int, precision: str) -> dict[str, dict[str, float]]:
    """Return parameters, operations and time of each variant, the last two relative to the baseline."""
    variants = {name: Variant(options, DTYPES[precision]) for name, options in PARTS.items()}
    tokens = torch.randint(BASELINE.vocab_size, (4, BASELINE.n_ctx))
    for number in range(rounds + 2):  # the first two warm up
        for variant in variants.values():
            variant.step(tokens)
        print(f"round {number + 1} of {rounds + 2}", flush=True)
    baseline = variants["GPT-2"]
    operations = baseline.config.flops_per_token(BASELINE.n_ctx)
    return {
        name: {
            "parameters": variant.model.n_params,
            "operations": variant.config.flops_per_token(BASELINE.n_ctx) / operations,
            "time": statistics.median(a / b for a, b in zip(variant.seconds[2:], baseline.seconds[2:], strict=True)),
        }
        for name, variant in variants.items()
    }


def main() -> None:
    """Measure one precision, keep the results of the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="steps of each variant (default 15)")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16", help="of the products (default bf16)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(args.rounds, args.precision)
    machine = {
        "processor": device_name(torch.device("cpu")),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    machine["capability"] = torch.backends.cpu.get_cpu_capability()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results[f"{args.precision}, {machine['capability']}"] = {**machine, "rounds": args.rounds, "parts": found}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("| part | parameters | operations | time of a step |\n|---|---|---|---|")
    for name, row in found.items():
        print(f"| {name} | {row['parameters']:,} | {row['operations']:.2f} | {row['time']:.2f} |")


if __name__ == "__main__":
    main()
