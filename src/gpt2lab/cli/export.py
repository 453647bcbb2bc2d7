"""``gpt2lab report``, ``gpt2lab import-hf`` and ``gpt2lab export-hf``: reports, and models in and out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from gpt2lab.cli.arguments import Checkpoint, Command
from gpt2lab.errors import InputError
from gpt2lab.files import new_directory, write_atomically, write_json
from gpt2lab.hub import find_model
from gpt2lab.runs import Run
from gpt2lab.tokenizer.tokenizer import END_OF_TEXT, Tokenizer


@dataclass(frozen=True)
class Report(Command):
    """Write a report of runs, as a PDF or as one self-contained HTML file."""

    runs: Positional[tuple[Path, ...]]
    """Directories of runs, or of a comparison."""
    out: Path | None = None
    """File to write, .pdf or .html; by default report.html in the first directory."""
    title: str = ""
    """Title of the report; by default the name of the run."""
    author: str = ""
    """Author, shown below the title."""
    date: str = ""
    """Date, shown below the title."""
    notes: Path | None = None
    """A text file with notes of your own, such as what could be improved; empty lines separate paragraphs."""

    def run(self) -> None:
        """Write the report and print its path."""
        from gpt2lab.report.content import Cover
        from gpt2lab.report.write import report_on

        if not self.runs:
            raise InputError("no run given; give the directory of at least one run")
        cover = Cover(self.title, self.author, self.date)
        print(report_on(self.runs, self.out or self.runs[0] / "report.html", self.notes, cover))


@dataclass(frozen=True)
class ImportHF(Command):
    """Import a GPT-2 in Hugging Face's format as a run, to sample, evaluate, fine-tune and report on."""

    source: Positional[str]
    """Directory that save_pretrained wrote, or a name on the Hub: gpt2, gpt2-xl, distilgpt2, hub:user/model."""
    directory: Positional[Path]
    """Directory of the run; it must not exist."""
    tokenizer: Path | None = None
    """Directory of the tokenizer, or a name on the Hub; by default the one beside the model."""

    def run(self) -> None:
        """Import the model and print what the run holds."""
        from gpt2lab.model.gpt import GPT
        from gpt2lab.model.huggingface import FILES
        from gpt2lab.training.session import save_imported

        path = self.directory
        if path.exists():
            raise InputError(f"{path} exists; give another name for the run")
        folder = find_model(self.source, FILES)
        model = GPT.from_hf(folder)
        save_imported(model, Tokenizer.load(self.tokenizer or folder), path, self.source)
        vocabulary = f"a vocabulary of {model.config.vocab_size:,}"
        print(f"{path}: {model.n_params:,} parameters, {vocabulary}, imported from {self.source}")
        print(f"next: gpt2lab sample {path}, or gpt2lab train --init {path} --data DIR --out NEW")


@dataclass(frozen=True)
class ExportHF(Command):
    """Export a run's model, tokenizer and model card for Hugging Face's transformers."""

    directory: Positional[Path]
    """Directory of the run."""
    out: Positional[Path]
    """Directory to write; it must not exist, or be empty."""
    checkpoint: Checkpoint = "best"
    """Checkpoint to export."""

    def run(self) -> None:
        """Write the directory and print how to load it."""
        from gpt2lab.model.huggingface import write_hf
        from gpt2lab.report.write import model_card
        from gpt2lab.training.checkpoint import load_model

        run, out = Run.open(self.directory), self.out
        model, checkpoint = load_model(run, self.checkpoint)
        tokenizer = Tokenizer.load(run.tokenizer)
        eot = None if tokenizer.eot is None else END_OF_TEXT
        with new_directory(out) as folder:
            write_hf(model.config, model.state_dict(), folder, tokenizer.eot)
            tokenizer.export(folder, "huggingface")
            if tokenizer.pattern == "gpt2":  # the only pattern that this pair of files can stand for
                tokenizer.export(folder, "gpt2")
            write_json(folder / "tokenizer_config.json", _tokenizer_config(eot, model.config.n_ctx))
            card = model_card(run, model.config, checkpoint.step, out.resolve().name, eot)
            write_atomically(folder / "README.md", card)
        print(f"{out}: {model.n_params:,} parameters of step {checkpoint.step:,}, with tokenizer and model card")
        print(f'AutoModelForCausalLM.from_pretrained("{out}"); AutoTokenizer.from_pretrained("{out}")')


def _tokenizer_config(eot: str | None, n_ctx: int) -> dict[str, Any]:
    """Return what AutoTokenizer needs besides tokenizer.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": n_ctx,
        "clean_up_tokenization_spaces": False,
        "bos_token": eot,
        "eos_token": eot,
    }
