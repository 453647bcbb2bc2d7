"""What a run reads, and the few numbers that say where it stands."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

from gpt2lab.data import Loader, RollingDataset, RoundLoader, Rounds, TokenDataset, TokenStream, count_windows
from gpt2lab.data.round_loader import require_step
from gpt2lab.errors import InputError
from gpt2lab.runtime import Runtime
from gpt2lab.training.config import TrainConfig


@dataclass(frozen=True)
class Data:
    """What a run reads, checked; and what it must be again when the run goes on."""

    train: TokenStream | Rounds
    val: TokenStream | None
    fingerprints: dict[str, str]
    """Of the ``data`` and of its ``tokenizer``."""
    eot: int | None = None
    """The id that documents begin with, where attention stays within them."""

    @classmethod
    def open(cls, dataset: TokenDataset | RollingDataset, config: TrainConfig, every_byte: bool = True) -> Data:
        """Check and open the splits that training uses; ``every_byte`` is that of `TokenDataset.stream`.

        Raises:
            InputError: One is damaged or shorter than a window, or patience has no validation split to go by; of a
                corpus that is prepared meanwhile, what preparing the first round refuses.
        """
        with dataset.begun_only_if_used() if isinstance(dataset, RollingDataset) else nullcontext():
            return cls._open(dataset, config, every_byte)

    @classmethod
    def _open(cls, dataset: TokenDataset | RollingDataset, config: TrainConfig, every_byte: bool) -> Data:
        held_out = dataset.held_out() if isinstance(dataset, RollingDataset) else dataset
        val = held_out.stream("val", every_byte) if "val" in held_out.manifest.splits else None
        if val is None and config.patience:
            raise InputError(
                f"patience is {config.patience}, but {dataset.directory} has no val split to go by; leave it out, or "
                "prepare the data with a val fraction"
            )
        train = dataset.rounds() if isinstance(dataset, RollingDataset) else dataset.stream("train", every_byte)
        for stream in (train, val):
            if isinstance(stream, Rounds):
                assert config.batch_tokens is not None  # filled in by TrainConfig
                require_step(stream, 0, config.batch_tokens)
            elif stream is not None:
                count_windows(stream, config.window)
        eot = dataset.manifest.tokenizer.eot if config.mask_documents else None
        return cls(train, val, cls.fingerprints_of(dataset), eot)

    def loader(self, config: TrainConfig, where: Runtime) -> Loader | RoundLoader:
        """Return the batches of one process of a resolved run."""
        assert isinstance(config.micro_batch, int) and config.batch_tokens is not None  # resolved
        sequences = config.batch_tokens // config.window
        how = (config.window, sequences, config.micro_batch, config.seed, where.world, where.rank, self.eot)
        return RoundLoader(self.train, *how) if isinstance(self.train, Rounds) else Loader(self.train, *how)

    @staticmethod
    def fingerprints_of(dataset: TokenDataset | RollingDataset) -> dict[str, str]:
        """Return what tells this data and its tokenizer from others, without reading them."""
        return {"data": dataset.fingerprint, "tokenizer": dataset.manifest.tokenizer.fingerprint}


@dataclass
class Progress:
    """The scalars of the training state."""

    step: int = 0
    loss_sum: float = 0.0
    """Sum and count of the steps' losses since the last row of metrics.csv."""
    loss_count: int = 0
    recent_losses: list[float] = dataclasses.field(default_factory=list)
    """Losses of the last steps, which a spike stands out from."""
    val_loss: float | None = None
    """Validation loss at this step; None where it was not taken."""
    best_val_loss: float | None = None
    evals_since_best: int = 0
    seconds: float = 0.0
    finished: str | None = None
    """Why the run is over; None while it is not."""
    scaler: dict[str, float] = dataclasses.field(default_factory=dict)
    """The state of the gradient scaler, where the precision is fp16."""


class Update(NamedTuple):
    """Figures of an optimiser step: its batch's mean loss in nats, its rate, the gradient's norm before clipping."""

    loss: float
    lr: float
    grad_norm: float
