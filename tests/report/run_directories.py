"""Run directories as training, evaluation and sampling leave them, for the tests of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from gpt2lab.evaluation.perplexity import PositionCurve, save_positions
from gpt2lab.files import read_checked_json, write_checked_json
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
        loss, lr = 0.9 + 6 * math.exp(-step / 60), 3e-3 * (1 - step / steps / 2)
        val = loss + 0.05 if step % 100 == 0 else None
        row = (step, step * 4096, step / 200, loss, val, lr, 1 + 1 / step, 40_000 + step, 0.3, 700.0, step / 2)
        run.add_metrics(dict(zip(METRICS_COLUMNS, row, strict=True)))


def save_checkpoint(run: Run, step: int, finished: str | None) -> None:
    """Write what the report reads of a checkpoint: 1,000 entries padded to 1,024 rows, 32 wide, and 256 positions."""
    folder = run.checkpoints / f"step_{step:08d}"
    folder.mkdir()
    weights = {"wte.weight": np.zeros((1024, 32), np.float32), "wpe.weight": np.zeros((256, 32), np.float32)}
    save_file(weights, folder / "model.safetensors")
    fingerprints = {"data": "d" * 64, "tokenizer": "e" * 64}
    write_checked_json(folder / "state.json", {"step": step, "finished": finished, "fingerprints": fingerprints})
    write_checked_json(folder / "manifest.json", {"step": step})


def update_state(run: Run, **values: object) -> None:
    """Change what the state of the checkpoint says."""
    path = run.checkpoints / "step_00000300" / "state.json"
    write_checked_json(path, {**read_checked_json(path), **values})


def save_texts(run: Run, rows: list[dict[str, object]], examples: Sequence[dict[str, object]] = ()) -> None:
    """Write the quality of texts as it is saved."""
    saved = {"step": 300, "split": "test", "rows": rows, "examples": examples, "protocol": "100 prompts."}
    write_checked_json(run.evaluations(300) / "text.json", saved)


def save_curve(run: Run, losses: Sequence[float]) -> None:
    """Write the loss by position as it is saved; where it is not finite, no token was scored."""
    tokens = tuple(5 if math.isfinite(loss) else 0 for loss in losses)
    save_positions(
        run,
        300,
        PositionCurve("test", "", tuple(loss if n else None for loss, n in zip(losses, tokens, strict=True)), tokens),
    )


def make_run(path: Path, steps: int = 300, finished: str | None = "300 steps done") -> Run:
    run = Run.create(path, {**CONFIG, "out": str(path)}, ENVIRONMENT)
    log_steps(run, steps)
    for metric, value in FIGURES.items():
        run.add_eval(300, "perplexity", "test", PROTOCOL, metric, value)
    run.add_eval(300, "stories", "samples", "100 stories at nucleus 0.9", "grammatical", 0.93)
    run.add_sample(100, "nucleus 0.9", "One day", "One day the the cat")
    for strategy in ("greedy", "temperature 0.8", "top-k 50", "nucleus 0.9"):
        text = f"One day Lily saw a boat.\nShe & Tom <b>{strategy}</b>"
        run.add_sample(300, strategy, "One day", text, verdict="consistent")
    save_checkpoint(run, 300, finished)
    return run
