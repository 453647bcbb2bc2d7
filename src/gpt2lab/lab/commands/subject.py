"""The run that a verb measures or lets write."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpt2lab import runtime
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.errors import InputError
from gpt2lab.evaluation.measure import HeldOut, Measured, held_out_text
from gpt2lab.model.gpt import GPT
from gpt2lab.runs import Run
from gpt2lab.runtime import Runtime
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.checkpoint import Checkpoint, load_model
from gpt2lab.training.config import TrainConfig, held_out_data, saved_config


@dataclass(frozen=True)
class Subject:
    """A run and the weights of one of its checkpoints."""

    run: Run
    config: TrainConfig
    model: GPT
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    where: Runtime

    @classmethod
    def load(cls, path: Path, which: str, device: str, precision: str) -> Subject:
        """Open a run and load the weights of one of its checkpoints.

        Raises:
            InputError: No run, no such checkpoint, a damaged one, or a device or precision that is not there.
        """
        runtime.tune_allocator()
        where = runtime.resolve(device, precision)
        run = Run.open(path)
        model, checkpoint = load_model(run, which, where.device)
        return cls(run, saved_config(run), model, checkpoint, Tokenizer.load(run.tokenizer), where)

    def split(self, data: Path | None, split: str) -> HeldOut:
        """Open a split of prepared data, named with the data where that is not the run's own."""
        if data is None and self.checkpoint.data_fingerprint is None:
            raise InputError(
                f"{self.run.path} was imported and has no data of its own; give --data, prepared with its tokenizer"
            )
        dataset = TokenDataset(data or held_out_data(self.run, self.config))
        dataset.require_tokenizer(self.tokenizer)
        held_out = HeldOut.of_split(dataset, split)
        if dataset.fingerprint == self.checkpoint.data_fingerprint:
            return held_out
        return dataclasses.replace(held_out, name=f"{split} of {dataset.directory} ({dataset.fingerprint[:16]})")

    @contextmanager
    def held_out(
        self, data: Path | None, split: str | None, text: Path | None, detokenise: str | None
    ) -> Iterator[HeldOut]:
        """Open a split, or a text file where one is given.

        Raises:
            InputError: Both are given, or neither can be used.
        """
        if text is None:
            if detokenise is not None:
                raise InputError(f"detokenise {detokenise} is for a text file; give --text FILE with it")
            yield self.split(data, split or "test")
            return
        if data is not None or split is not None:
            raise InputError("--text measures a text file; leave out --data and --split, or --text")
        with held_out_text(text, self.tokenizer, detokenise) as held_out:
            yield held_out

    def print_and_record(self, measured: Measured) -> None:
        """Print figures with their protocol and add them to the run's evals.csv."""
        measured.record(self.run, self.checkpoint.step)
        print(f"{measured.split}, checkpoint of step {self.checkpoint.step}")
        for name, value in measured.figures.items():
            print(f"{name.replace('_', ' '):16}  {value:.4f}")
        print(f"protocol: {measured.protocol}")
