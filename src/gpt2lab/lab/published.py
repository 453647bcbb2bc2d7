"""Published figures to hold a run against, each only where it was taken by the same protocol on the same text."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2lab.lab.record import Record

SHAKESPEARE_BY_CHARACTER = "333f749b4571300043e02025556b66bb1e50d858561445ea7b40312e99c4c6eb"
"""Fingerprint of Tiny Shakespeare with the byte tokenizer, its first 90 % to train on and the rest to validate."""


@dataclass(frozen=True)
class Published:
    """A figure that others published."""

    who: str
    what: str
    value: float
    difference: str
    """How their protocol is not quite ours."""


NANOGPT = (
    Published(
        "nanoGPT, its CPU recipe (0.8 M parameters)",
        "validation loss, nats per character",
        1.88,
        "estimated on 20 batches of the validation split",
    ),
    Published(
        "nanoGPT, its GPU recipe (10.7 M parameters)",
        "validation loss, nats per character",
        1.4697,
        "estimated on 200 batches of the validation split",
    ),
)
HELLASWAG = Published("GPT-2 124M", "HellaSwag acc_norm, completion style", 0.2955, "on all 10,042 items")


def published_losses(record: Record) -> tuple[Published, ...]:
    """Return validation losses that others reached on a run's data."""
    prints = record.state.get("fingerprints")
    known = isinstance(prints, dict) and prints.get("data") == SHAKESPEARE_BY_CHARACTER
    return NANOGPT if known else ()


def published(record: Record) -> tuple[Published, ...]:
    """Return every published figure that a run can be held against."""
    style = any(e.task == "hellaswag" and "completion" in e.protocol.lower() for e in record.evals)
    return (*published_losses(record), *([HELLASWAG] if style else []))
