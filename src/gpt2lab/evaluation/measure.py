"""Figures of a run that are kept with it: measured here, written into its evals.csv."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.prepare import prepare
from gpt2lab.data.shards import TokenStream
from gpt2lab.data.sources import texts
from gpt2lab.errors import InputError, one_of
from gpt2lab.evaluation.hellaswag import HellaSwagItem, hellaswag
from gpt2lab.evaluation.perplexity import DETOKENISERS, PositionLosses, loss_by_position, perplexity_of
from gpt2lab.evaluation.text_metrics import StoryQuality, judge_stories
from gpt2lab.files import sha256_of
from gpt2lab.model.gpt import GPT
from gpt2lab.runs import Run
from gpt2lab.runtime import Runtime
from gpt2lab.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Measured:
    """Figures that were taken together, by one protocol."""

    task: str
    split: str
    protocol: str
    figures: dict[str, float]

    def record(self, run: Run, step: int) -> None:
        """Add each figure to the run's evals.csv."""
        for metric, value in self.figures.items():
            run.add_eval(step, self.task, self.split, self.protocol, metric, value)


@dataclass(frozen=True)
class HeldOut:
    """Text to measure a model on: a split of prepared data, what it is called, and its words."""

    dataset: TokenDataset
    split: str
    name: str
    words: int
    """Parted by white space, in the text as it was given."""
    preparation: str = ""
    """What was done to the text first, as a sentence that its protocol begins with."""

    @classmethod
    def of_split(cls, dataset: TokenDataset, split: str) -> HeldOut:
        """Take a split; its words are counted in what its tokens decode to. Raises what `TokenDataset.stream` does."""
        return cls(dataset, split, split, sum(len(text.split()) for text in dataset.documents(split)))

    @property
    def stream(self) -> TokenStream:
        """Its tokens."""
        return self.dataset.stream(self.split)

    @property
    def eot(self) -> int:
        """The token that begins a document."""
        return self.dataset.manifest.tokenizer.eot


@contextmanager
def held_out_text(file: Path, tokenizer: Tokenizer, detokenise: str | None) -> Iterator[HeldOut]:
    """Tokenize a text file into a folder that is removed afterwards; ``<|endoftext|>`` in it parts documents.

    Args:
        file: UTF-8 text.
        tokenizer: The model's.
        detokenise: A name of `DETOKENISERS` to undo a corpus's own tokenisation first.

    Raises:
        InputError: The file cannot be read or holds no text, or the name is unknown.
    """
    if detokenise is not None:
        one_of("detokenise", detokenise, DETOKENISERS)
    words = sum(len(piece.split()) for piece in texts([str(file)]))
    name = f"{file.name} ({sha256_of(file)[:16]})"
    with tempfile.TemporaryDirectory() as folder:
        source, done = file, ""
        if detokenise is not None:
            source = Path(folder) / "text.txt"
            source.write_text(DETOKENISERS[detokenise](_text_of(file)), encoding="utf-8", newline="\n")
            done = f"The tokenisation of {detokenise} is undone first; words are counted before. "
        dataset = prepare([str(source)], tokenizer, Path(folder) / "data", val_fraction=0.0, test_fraction=0.0)
        yield HeldOut(dataset, "train", name, words, done)


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8") from error


def measure_held_out(
    model: GPT,
    held_out: HeldOut,
    context: int | None,
    stride: int | None,
    where: Runtime,
    progress: Callable[[int, int], None] | None = None,
    by_document: bool = False,
) -> Measured:
    """Measure perplexity and bits per byte on held-out text, and the gap to its entropy where that is known.

    Raises:
        InputError: The text is damaged or too short, or context or stride do not fit.
    """
    info = held_out.dataset.manifest.splits[held_out.split]
    with where.autocast():
        found = perplexity_of(
            model,
            held_out.stream,
            info.bytes,
            context,
            stride,
            entropy_bits=info.entropy_bits,
            progress=progress,
            words=held_out.words,
            eot=held_out.eot if by_document else None,
        )
    return Measured("perplexity", held_out.name, held_out.preparation + found.protocol, found.figures)


def measure_positions(
    model: GPT,
    held_out: HeldOut,
    context: int | None,
    where: Runtime,
    progress: Callable[[int, int], None] | None = None,
    by_document: bool = False,
) -> PositionLosses:
    """Measure the loss by position on held-out text. Raises what `loss_by_position` does."""
    eot = held_out.eot if by_document else None
    with where.autocast():
        return loss_by_position(model, held_out.stream, context, eot=eot, progress=progress)


def measure_hellaswag(
    model: GPT,
    tokenizer: Tokenizer,
    items: Sequence[HellaSwagItem],
    style: str,
    where: Runtime,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Let a model choose the endings of HellaSwag's items. Raises what `hellaswag` does."""
    with where.autocast():
        found = hellaswag(model, tokenizer, items, style, progress)
    return Measured("hellaswag", "val", found.protocol, found.figures)


def measure_stories(texts: list[str], strategy: str) -> tuple[Measured, StoryQuality]:
    """Judge stories that a model wrote by a strategy; return the shares, and what broke in those that are wrong."""
    quality = judge_stories(texts)
    return Measured("stories", "samples", f"{strategy}: {quality.protocol}", quality.figures), quality
