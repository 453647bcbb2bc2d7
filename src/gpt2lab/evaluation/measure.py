"""Figures of a run that are kept with it: measured here, written into its evals.csv."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpt2lab import runtime
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
from gpt2lab.training.checkpoint import Checkpoint, load_model
from gpt2lab.training.config import ResolvedConfig, held_out_data, saved_config


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
def held_out_text(file: Path, tokenizer: Tokenizer, detokenize: str | None) -> Iterator[HeldOut]:
    """Tokenize a text file into a folder that is removed afterwards; ``<|endoftext|>`` in it parts documents.

    Args:
        file: UTF-8 text.
        tokenizer: The model's.
        detokenize: A name of `DETOKENISERS` to undo a corpus's own tokenisation first.

    Raises:
        InputError: The file cannot be read or holds no text, or the name is unknown.
    """
    if detokenize is not None:
        one_of("detokenize", detokenize, DETOKENISERS)
    words = sum(len(piece.split()) for piece in texts([str(file)]))
    name = f"{file.name} ({sha256_of(file)[:16]})"
    with tempfile.TemporaryDirectory() as folder:
        source, done = file, ""
        if detokenize is not None:
            source = Path(folder) / "text.txt"
            source.write_text(DETOKENISERS[detokenize](_text_of(file)), encoding="utf-8", newline="\n")
            done = f"The tokenisation of {detokenize} is undone first; words are counted before. "
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


@dataclass(frozen=True)
class LoadedRun:
    """A run and the weights of one of its checkpoints."""

    run: Run
    config: ResolvedConfig | None
    """None if the model was imported."""
    model: GPT
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    runtime: Runtime

    @classmethod
    def load(cls, path: Path, which: str, device: str, precision: str) -> LoadedRun:
        """Open a run and load the weights of one of its checkpoints.

        Raises:
            InputError: The run, checkpoint, device or precision is missing, or the checkpoint is damaged.
        """
        runtime.tune_allocator()
        resolved = runtime.resolve(device, precision)
        run = Run.open(path)
        model, checkpoint = load_model(run, which, resolved.device)
        config = None if checkpoint.data_fingerprint is None else saved_config(run)
        return cls(run, config, model, checkpoint, Tokenizer.load(run.tokenizer), resolved)

    @property
    def seq_len(self) -> int:
        """Tokens per training sequence; the context of an imported model."""
        return self.model.config.n_ctx if self.config is None else self.config.seq_len

    @property
    def mask_documents(self) -> bool:
        """Whether attention stayed within documents in training."""
        return self.config is not None and self.config.mask_documents

    def split(self, data: Path | None, split: str) -> HeldOut:
        """Open a split of prepared data; its name includes the data unless they are the run's own."""
        if data is None:
            if self.config is None:
                raise InputError(
                    f"{self.run.path} was imported and has no data; give --data DIR, prepared with its tokenizer"
                )
            data = held_out_data(self.run, self.config)
        dataset = TokenDataset(data)
        dataset.require_tokenizer(self.tokenizer)
        held_out = HeldOut.of_split(dataset, split)
        if dataset.fingerprint == self.checkpoint.data_fingerprint:
            return held_out
        return dataclasses.replace(held_out, name=f"{split} of {dataset.directory} ({dataset.fingerprint[:16]})")

    @contextmanager
    def held_out(
        self, data: Path | None, split: str | None, text: Path | None, detokenize: str | None
    ) -> Iterator[HeldOut]:
        """Open a split, or a text file if one is given.

        Raises:
            InputError: Both are given, or what is given cannot be read.
        """
        if text is None:
            if detokenize is not None:
                raise InputError(f"detokenize {detokenize} needs a text file; give --text FILE")
            yield self.split(data, split or "test")
            return
        if data is not None or split is not None:
            raise InputError("--text measures a text file; leave out --data and --split, or --text")
        with held_out_text(text, self.tokenizer, detokenize) as held_out:
            yield held_out

    def print_and_record(self, measured: Measured) -> None:
        """Print figures with their protocol and add them to the run's evals.csv."""
        measured.record(self.run, self.checkpoint.step)
        print(f"{measured.split}, checkpoint of step {self.checkpoint.step}")
        for name, value in measured.figures.items():
            print(f"{name.replace('_', ' '):16}  {value:.4f}")
        print(f"protocol: {measured.protocol}")
