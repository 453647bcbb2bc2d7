"""What ``gpt2lab eval ...`` does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gpt2lab import runtime
from gpt2lab.data import TokenDataset
from gpt2lab.lab import console
from gpt2lab.lab.measure import Measured, measure_perplexity
from gpt2lab.runs import Run
from gpt2lab.tokenizer import Tokenizer
from gpt2lab.training import load_model, saved_config


def print_perplexity(
    path: Path,
    data: Path | None,
    split: str,
    context: int | None,
    stride: int | None,
    which: str,
    device: str,
    precision: str,
) -> Measured:
    """Measure a run's perplexity, print it with its protocol and add it to the run's evals.csv."""
    where = runtime.resolve(device, precision)
    run = Run.open(path)
    config = saved_config(run)
    model, checkpoint = load_model(run, which, where.device)
    dataset = TokenDataset(data or config.data)
    dataset.require_tokenizer(Tokenizer.load(run.tokenizer))
    with console.bar("tokens") as progress:
        measured = measure_perplexity(
            model, dataset, split, config.window if context is None else context, stride, where, progress
        )
    if dataset.fingerprint != checkpoint.state["fingerprints"]["data"]:
        measured = dataclasses.replace(measured, split=f"{split} of {dataset.directory} ({dataset.fingerprint[:16]})")
    measured.record(run, checkpoint.step)
    print(f"{measured.split} split, checkpoint of step {checkpoint.step}")
    for name, value in measured.figures.items():
        print(f"{name.replace('_', ' '):16}  {value:.4f}")
    print(f"protocol: {measured.protocol}")
    return measured
