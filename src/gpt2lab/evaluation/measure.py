"""Evaluating a run: its model is loaded once, and every result is stored with its protocol in the run's evals.csv."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpt2lab import runtime
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.errors import InputError
from gpt2lab.evaluation.held_out import HeldOut, held_out_text
from gpt2lab.evaluation.hellaswag import HellaSwagItem, hellaswag
from gpt2lab.evaluation.perplexity import perplexity_of
from gpt2lab.evaluation.positions import PositionLosses, loss_by_position
from gpt2lab.evaluation.text_metrics import StoryQuality, judge_stories
from gpt2lab.model.gpt import GPT
from gpt2lab.runs import Run
from gpt2lab.runtime import Runtime
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.checkpoint import Checkpoint, load_model
from gpt2lab.training.config import ResolvedConfig, held_out_data, saved_config

Progress = Callable[[int, int], None]
"""Called with the number of units done and their total."""


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


@dataclass(frozen=True)
class LoadedRun:
    """A run with the weights of one of its checkpoints."""

    run: Run
    config: ResolvedConfig | None
    """None if the model was imported."""
    model: GPT
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    runtime: Runtime

    @classmethod
    def load(cls, path: Path, which: str, device: str, precision: str) -> LoadedRun:
        """Open a run and load the weights of a checkpoint.

        Raises:
            InputError: The run, checkpoint, device or precision does not exist, or the checkpoint is damaged.
        """
        runtime.tune_allocator()
        resolved = runtime.resolve(device, precision)
        run = Run.open(path)
        model, checkpoint = load_model(run, which, resolved.device)
        config = None if checkpoint.data_fingerprint is None else saved_config(run)
        return cls(run, config, model, checkpoint, Tokenizer.load(run.tokenizer), resolved)

    @property
    def seq_len(self) -> int:
        """Tokens in a training sequence; for an imported model, the context length."""
        return self.model.config.n_ctx if self.config is None else self.config.seq_len

    @property
    def mask_documents(self) -> bool:
        """Whether attention stayed within documents in training."""
        return self.config is not None and self.config.mask_documents

    def split(self, data: Path | None, split: str) -> HeldOut:
        """Open a split of prepared data; its name includes the data unless the run was trained on them.

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
        held_out = HeldOut.of_split(dataset, split)
        if dataset.fingerprint == self.checkpoint.data_fingerprint:
            return held_out
        return dataclasses.replace(held_out, name=f"{split} of {dataset.directory} ({dataset.fingerprint[:16]})")

    @contextmanager
    def held_out(
        self, data: Path | None, split: str | None, text: Path | None, detokenize: str | None
    ) -> Iterator[HeldOut]:
        """Open a text file if one is given, else a split.

        Raises:
            InputError: Both are given, or what is given cannot be read.
        """
        if text is None:
            if detokenize is not None:
                raise InputError(f"detokenize {detokenize} needs a text file; give --text FILE")
            yield self.split(data, split or "test")
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


def measure_perplexity(
    model: GPT,
    held_out: HeldOut,
    context: int | None,
    stride: int | None,
    where: Runtime,
    progress: Progress | None = None,
    by_document: bool = False,
) -> Measurement:
    """Measure perplexity and bits per byte, and their gap to the entropy where it is known.

    Raises what `perplexity_of` does.
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
    return Measurement("perplexity", held_out.name, held_out.preparation + found.protocol, found.figures)


def measure_positions(
    model: GPT,
    held_out: HeldOut,
    context: int | None,
    where: Runtime,
    progress: Progress | None = None,
    by_document: bool = False,
) -> PositionLosses:
    """Measure the loss by position. Raises what `loss_by_position` does."""
    eot = held_out.eot if by_document else None
    with where.autocast():
        return loss_by_position(model, held_out.stream, context, eot=eot, progress=progress)


def measure_hellaswag(
    model: GPT,
    tokenizer: Tokenizer,
    items: Sequence[HellaSwagItem],
    style: str,
    where: Runtime,
    progress: Progress | None = None,
) -> Measurement:
    """Measure the accuracy on HellaSwag. Raises what `hellaswag` does."""
    with where.autocast():
        found = hellaswag(model, tokenizer, items, style, progress)
    return Measurement("hellaswag", "val", found.protocol, found.figures)


def measure_stories(texts: list[str], strategy: str) -> tuple[Measurement, StoryQuality]:
    """Judge generated stories by the grammar. Return the shares, and the errors in those that are wrong."""
    quality = judge_stories(texts)
    return Measurement("stories", "samples", f"{strategy}: {quality.protocol}", quality.figures), quality
