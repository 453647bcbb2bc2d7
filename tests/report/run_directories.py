"""Run directories as training, evaluation and sampling leave them, for the tests of the report."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from gpt2lab.files import write_json
from gpt2lab.runs import METRICS_COLUMNS, Run

CONFIG = {
    "data": "work/stories-data",
    "preset": "tiny",
    "steps": 300,
    "seq_len": None,
    "batch_tokens": 4096,
    "micro_batch": 8,
    "model": {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_ctx": 256, "vocab_size": 1000, "n_inner": None, "bias": True},
    "optim": {"lr": 3e-3, "min_lr": None, "warmup_steps": None, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8},
    "device": "cpu",
    "precision": "bf16",
    "eval_tokens": 65536,
}
ENVIRONMENT = {"gpt2lab": "0.1.0", "torch": "2.13.0", "processor": "a processor", "gpus": "none"}
PROTOCOL = "context 256, stride 128, 51,200 tokens & 203,113 bytes"
FIGURES = {
    "loss": 0.9123,
    "perplexity": math.exp(0.9123),
    "bits_per_byte": 0.33178,
    "entropy_floor": 0.30162,
    "gap_percent": 9.9993,
}


def log_steps(run: Run, steps: int) -> None:
    for step in range(10, steps + 1, 10):
        loss = 0.9 + 6 * math.exp(-step / 60)
        row = {
            "step": step,
            "tokens": step * 4096,
            "epoch": step / 200,
            "train_loss": loss,
            "val_loss": loss + 0.05 if step % 100 == 0 else None,
            "lr": 3e-3 * (1 - step / steps / 2),
            "grad_norm": 1 + 1 / step,
            "tokens_per_s": 40_000 + step,
            "mfu": 0.3,
            "peak_memory_mb": 700.0,
            "seconds": step / 2,
        }
        run.add_metrics({name: row[name] for name in METRICS_COLUMNS})


def save_checkpoint(run: Run, step: int, finished: str | None) -> Path:
    """Write what the report reads of a checkpoint: 1,000 entries padded to 1,024 rows, 32 wide, and 256 positions."""
    folder = run.checkpoints / f"step_{step:08d}"
    folder.mkdir()
    weights = {"wte.weight": np.zeros((1024, 32), np.float32), "wpe.weight": np.zeros((256, 32), np.float32)}
    save_file(weights, folder / "model.safetensors")
    fingerprints = {"data": "d" * 64, "tokenizer": "e" * 64}
    write_json(folder / "state.json", {"step": step, "finished": finished, "fingerprints": fingerprints})
    write_json(folder / "manifest.json", {"step": step})
    return folder


def make_run(path: Path, steps: int = 300, finished: str | None = "300 steps done") -> Run:
    run = Run.create(path, {**CONFIG, "out": str(path)}, ENVIRONMENT)
    log_steps(run, steps)
    for metric, value in FIGURES.items():
        run.add_eval(300, "perplexity", "test", PROTOCOL, metric, value)
    run.add_eval(300, "stories", "samples", "100 stories at nucleus 0.9", "grammatical", 0.93)
    run.add_sample(100, "nucleus 0.9", "One day", "One day the the cat")
    for strategy in ("greedy", "temperature 0.8", "top-k 50", "nucleus 0.9"):
        run.add_sample(
            300, strategy, "One day", f"One day Lily saw a boat.\nShe & Tom <b>{strategy}</b>", verdict="consistent"
        )
    save_checkpoint(run, 300, finished)
    return run
