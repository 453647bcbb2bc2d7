"""Weights that were made elsewhere, as a run: one that stands at step 0, with a tokenizer and without data."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from gpt2lab import runtime
from gpt2lab.errors import InputError
from gpt2lab.model import GPT
from gpt2lab.runs import Run
from gpt2lab.tokenizer import Tokenizer
from gpt2lab.training import checkpoint
from gpt2lab.training.optim import make_optimiser
from gpt2lab.training.recipes import OptimConfig
from gpt2lab.training.state import Progress


def save_imported(model: GPT, tokenizer: Tokenizer, path: Path, origin: str) -> Run:
    """Make the directory of a run whose only checkpoint holds the model; return the run.

    Its configuration says what is known, the architecture, and nothing of a training.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        path: Where; it must not exist.
        origin: Where the weights are from, in words.

    Raises:
        InputError: Something of that name exists, the tokenizer is another model's, or the disk is full.
    """
    V = model.config.vocab_size
    if tokenizer.n_vocab != V:
        raise InputError(
            f"the model of {origin} has a vocabulary of {V:,}, its tokenizer one of {tokenizer.n_vocab:,}; give the "
            "right --tokenizer, or fit the model to it with transformers' resize_token_embeddings"
        )
    run = Run.create(path, {"model": dataclasses.asdict(model.config)}, runtime.environment())
    state = dataclasses.asdict(Progress(finished=f"imported from {origin}"))
    try:
        tokenizer.save(run.tokenizer)
        optimiser = make_optimiser(model, OptimConfig())  # one that has not stepped has no state
        checkpoint.save(run, model, optimiser, state | {"fingerprints": {"tokenizer": tokenizer.fingerprint}})
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return run
