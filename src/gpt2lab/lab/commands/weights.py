"""What ``gpt2lab import-hf`` and ``gpt2lab export-hf`` do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt2lab.errors import InputError
from gpt2lab.files import new_directory, write_atomically, write_json
from gpt2lab.hub import find_model
from gpt2lab.model.gpt import GPT
from gpt2lab.model.huggingface import FILES, write_hf
from gpt2lab.report.html import model_card
from gpt2lab.runs import Run
from gpt2lab.tokenizer.tokenizer import END_OF_TEXT, Tokenizer
from gpt2lab.training.checkpoint import load_model
from gpt2lab.training.session import save_imported


def import_model(source: str, path: Path, tokenizer: Path | None) -> Run:
    """Make a run of a model in Hugging Face's form, from a directory or the hub, and say what it holds.

    Raises:
        InputError: The run exists, or the model or its tokenizer cannot be had or does not fit.
    """
    if path.exists():
        raise InputError(f"{path} exists; give the run another name")
    folder = find_model(source, FILES)
    model = GPT.from_hf(folder)
    run = save_imported(model, Tokenizer.load(tokenizer or folder), path, source)
    print(f"{path}: {model.n_params:,} parameters, a vocabulary of {model.config.vocab_size:,}, from {source}")
    print(f"next: gpt2lab sample {path}, or gpt2lab train --init {path} --data DIR --out NEW")
    return run


def export_run(path: Path, out: Path, which: str) -> None:
    """Write a run's model, tokenizer and model card into a directory that ``transformers`` loads.

    Raises:
        InputError: The directory exists, there is no such checkpoint, or its architecture is more than GPT-2's.
    """
    run = Run.open(path)
    model, checkpoint = load_model(run, which)
    tokenizer = Tokenizer.load(run.tokenizer)
    eot = None if tokenizer.eot is None else END_OF_TEXT
    with new_directory(out) as folder:
        write_hf(model.config, model.state_dict(), folder, tokenizer.eot)
        tokenizer.export(folder, "huggingface")
        if tokenizer.pattern == "gpt2":  # the only one that this pair of files can mean
            tokenizer.export(folder, "gpt2")
        write_json(folder / "tokenizer_config.json", _tokenizer_config(eot, model.config.n_ctx))
        card = model_card(run, model.config, checkpoint.step, out.resolve().name, eot)
        write_atomically(folder / "README.md", card)
    print(f"{out}: {model.n_params:,} parameters of step {checkpoint.step:,}, with tokenizer and model card")
    print(f'AutoModelForCausalLM.from_pretrained("{out}"); AutoTokenizer.from_pretrained("{out}")')


def _tokenizer_config(eot: str | None, n_ctx: int) -> dict[str, Any]:
    """Return what AutoTokenizer needs besides tokenizer.json, which it then takes as it is."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": n_ctx,
        "clean_up_tokenization_spaces": False,
        "bos_token": eot,
        "eos_token": eot,
    }
