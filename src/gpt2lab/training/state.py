"""What a run reads, and the few numbers that say where it stands."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

from gpt2lab.data import TokenDataset, TokenStream, count_windows
from gpt2lab.errors import InputError
from gpt2lab.training.config import TrainConfig


@dataclass(frozen=True)
class Data:
    """What a run reads, checked; and what it must be again when the run goes on."""

    train: TokenStream
    val: TokenStream | None
    fingerprints: dict[str, str]
    """Of the ``data`` and of its ``tokenizer``."""
    eot: int | None = None
    """The id that documents begin with, where attention stays within them."""

    @classmethod
    def open(cls, dataset: TokenDataset, config: TrainConfig) -> Data:
        """Check and open the splits that training uses.

        Raises:
            InputError: One is damaged or shorter than a window, or patience has no validation split to go by.
        """
        val = dataset.stream("val") if "val" in dataset.manifest.splits else None
        if val is None and config.patience:
            raise InputError(
                f"patience is {config.patience}, but {dataset.directory} has no val split to go by; leave it out, or "
                "prepare the data with a val fraction"
            )
        train = dataset.stream("train")
        for stream in (train, val):
            if stream is not None:
                count_windows(stream, config.window)
        eot = dataset.manifest.tokenizer.eot if config.mask_documents else None
        return cls(train, val, cls.fingerprints_of(dataset), eot)

    @staticmethod
    def fingerprints_of(dataset: TokenDataset) -> dict[str, str]:
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
