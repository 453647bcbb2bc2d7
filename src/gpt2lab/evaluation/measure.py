"""Evaluating a run: its model is loaded once, and every result is stored with its protocol in the run's evals.csv.

Text to evaluate on is a split of prepared data, or a text file. WikiText (Merity et al. 2016) is published as separate
tokens: spaces around punctuation, ``@-@`` for a hyphen within a word. GPT-2 was trained on ordinary text, so its paper
(Radford et al. 2019, section 3.1) undoes this with "invertible de-tokenizers", which lowers perplexity by 2.5 to 5.
That code is unpublished. The rules here invert the tokenization of WikiText, except ``<unk>``, which cannot be
restored. Perplexity per word still counts the words of the given text.

    " = = History = = "              == History ==
    1 @,@ 200 km ( 750 mi )          1,200 km (750 mi)
    the " <unk> " , he 'd say        the "<unk>", he'd say
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt2lab import runtime
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.prepare import prepare
from gpt2lab.data.sources import texts
from gpt2lab.errors import InputError, one_of
from gpt2lab.evaluation.perplexity import HeldOut
from gpt2lab.files import read_text, sha256_of
from gpt2lab.runs import Run
from gpt2lab.runtime import Runtime
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.checkpoint import load_model, load_tokenizer
from gpt2lab.training.config import ResolvedConfig, held_out_data, saved_config


@dataclass(frozen=True)
class Measurement:
    """Results that were measured together, under one protocol."""

    task: str
    split: str
    protocol: str
    figures: dict[str, float]
    """Values by the name of their metric."""

    def record(self, run: Run, step: int) -> None:
        """Add each value to the run's evals.csv."""
        for metric, value in self.figures.items():
            run.add_eval(step, self.task, self.split, self.protocol, metric, value)


class LoadedRun:
    """A run with the weights of one of its checkpoints; the precision ``auto`` is that of training, if supported.

    Raises:
        InputError: The run, checkpoint, device or precision does not exist, or the checkpoint is damaged.
    """

    def __init__(self, path: Path, which: str, device: str, precision: str) -> None:
        runtime.tune_allocator()
        self.runtime = runtime.resolve(device, precision)
        self.run = Run.open(path)
        self.model, self.checkpoint = load_model(self.run, which, self.runtime.device)
        self.config = None if self.checkpoint.data_fingerprint is None else saved_config(self.run)
        """None if the model was imported."""
        if precision == "auto" and self.config is not None:
            self.runtime = _as_trained(self.runtime, self.config)
        self.tokenizer = load_tokenizer(self.run, self.checkpoint)

    @property
    def seq_len(self) -> int:
        """Tokens in a training sequence; for an imported model, the context length."""
        return self.model.config.n_ctx if self.config is None else self.config.seq_len

    @property
    def mask_documents(self) -> bool:
        """Whether attention stayed within documents in training."""
        return self.config is not None and self.config.mask_documents

    def dataset(self, data: Path | None) -> TokenDataset:
        """Open prepared data, by default those of the run.

        Raises:
            InputError: The data cannot be read, were prepared with another tokenizer, or are needed but not given.
        """
        if data is None:
            if self.config is None:
                raise InputError(
                    f"{self.run.path} was imported and has no data; give --data DIR, prepared with its tokenizer"
                )
            data = held_out_data(self.run, self.config)
        dataset = TokenDataset(data)
        dataset.require_tokenizer(self.tokenizer)
        return dataset

    def split_name(self, dataset: TokenDataset, split: str) -> str:
        """Return what results call a split: its name, and which data it is of unless the run was trained on them."""
        known = dataset.fingerprint == self.checkpoint.data_fingerprint
        return split if known else f"{split} of {dataset.directory} ({dataset.fingerprint[:16]})"

    @contextmanager
    def held_out(
        self, data: Path | None, split: str | None, text: Path | None, detokenize: str | None = None
    ) -> Iterator[HeldOut]:
        """Open a text file if one is given, else a split.

        Raises:
            InputError: Both are given, or what is given cannot be read.
        """
        if text is None:
            if detokenize is not None:
                raise InputError(f"detokenize {detokenize} needs a text file; give --text FILE")
            dataset, split = self.dataset(data), split or "test"
            yield HeldOut.of_split(dataset, split, self.split_name(dataset, split))
            return
        if data is not None or split is not None:
            raise InputError("--text evaluates on a text file; leave out --data and --split, or --text")
        with held_out_text(text, self.tokenizer, detokenize) as held_out:
            yield held_out

    def print_and_record(self, measured: Measurement) -> None:
        """Print results with their protocol and add them to the run's evals.csv."""
        measured.record(self.run, self.checkpoint.step)
        print(f"{measured.split}, checkpoint of step {self.checkpoint.step}")
        for name, value in measured.figures.items():
            print(f"{name.replace('_', ' '):16}  {value:.4f}")
        print(f"protocol: {measured.protocol}")


def _as_trained(found: Runtime, config: ResolvedConfig) -> Runtime:
    """Return the runtime with the precision of training, so that evaluations of a run agree: ``auto`` may go by timing.

    What was trained in bf16 on a GPU may be slow in it on a CPU, so on another kind of device only fp32 is kept.
    """
    if config.precision != "fp32" and torch.device(config.device).type != found.device.type:
        return found
    try:
        kept = runtime.resolve(str(found.device), config.precision)
    except InputError:  # tf32 on an older GPU
        return found
    return dataclasses.replace(kept, precision_reason="as in training")


@contextmanager
def held_out_text(file: Path, tokenizer: Tokenizer, detokenize: str | None) -> Iterator[HeldOut]:
    """Tokenize a text file into a temporary directory; ``<|endoftext|>`` in the text separates documents.

    Args:
        file: UTF-8 text.
        tokenizer: The tokenizer of the model.
        detokenize: A name in `DETOKENIZERS`: undo this tokenization of the corpus first.

    Raises:
        InputError: The file cannot be read or holds no text, or the name is unknown.
    """
    if detokenize is not None:
        one_of("detokenize", detokenize, DETOKENIZERS)
    words = sum(len(piece.split()) for piece in texts([str(file)]))
    name = f"{file.name} ({sha256_of(file)[:16]})"
    with tempfile.TemporaryDirectory() as folder:
        source, preparation = file, ""
        if detokenize is not None:
            source = Path(folder) / "text.txt"
            source.write_text(DETOKENIZERS[detokenize](read_text(file)), encoding="utf-8", newline="\n")
            preparation = f"The tokenization of {detokenize} is undone first; words are counted before that. "
        dataset = prepare([str(source)], tokenizer, Path(folder) / "data", val_fraction=0.0, test_fraction=0.0)
        yield HeldOut.of_split(dataset, "train", name, words, preparation)


_WIKITEXT = (
    (r" @([-,.])@ ", r"\1"),
    (r"(?<==) (?==)", ""),  # a heading
    (r'" ([^"\n]*?) "', r'"\1"'),
    (r"(?<=s) '(?= )", "'"),
    (r"(?<= )' ([^'\n]*?) '(?= )", r"'\1'"),
    (r" '(?=(?:s|m|d|t|ll|re|ve)\b)", "'"),
    (r"(?<=\d) ([–‑/]) (?=\d)", r"\1"),
    (r"([$£€]) (?=\d)", r"\1"),
    (r"([(\[{]) ", r"\1"),
    (r" (?=[,.;:!?%)\]}](?:[ ,.;:!?%)\]}\"']|$))", ""),
    (r"^ | $", ""),
)
"""Patterns and what replaces them, in this order."""


def wikitext(text: str) -> str:
    """Undo the tokenization of WikiText, line by line.

    >>> wikitext(" It weighs 0 @.@ 7 – 2 @.@ 2 kg ( 1 @.@ 5 – 4 @.@ 9 lb ) . ")
    'It weighs 0.7–2.2 kg (1.5–4.9 lb).'
    """
    for pattern, replacement in _WIKITEXT:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text


DETOKENIZERS: dict[str, Callable[[str], str]] = {"wikitext": wikitext}
"""Functions of whole lines, by their names for ``--detokenize``."""
