"""Going on with a run: which options may differ from those it began with, and what must be the same."""

from __future__ import annotations

import dataclasses

from gpt2lab.errors import InputError
from gpt2lab.model.config import PRESETS
from gpt2lab.training.config import LENGTHS, TrainConfig
from gpt2lab.training.options import flat
from gpt2lab.training.processes import ALONE, Processes
from gpt2lab.training.setup import batch_tokens

MAY_CHANGE_ON_RESUME = {
    "data", "out", "resume", "steps", "epochs", "max_tokens", "log_every", "eval_every", "sample_every",
    "sample_prompt", "hellaswag", "hellaswag_every", "checkpoint_every", "keep_last", "patience", "on_spike", "spike_z",
    "tracker", "profile_steps", "loader_workers", "tokenizer", "max_disk",
}  # fmt: skip
"""Options that may differ when a run goes on; every other one would make it another run."""
MAY_MOVE = ("device", "precision", "compile", "micro_batch", "parallel")
"""Options that may differ too, so that a run can move to another machine; its numbers then differ in the last bits."""


def merge_for_resume(asked: TrainConfig, saved: TrainConfig, processes: Processes = ALONE) -> TrainConfig:
    """Return the configuration with which a run goes on: the saved one, with those changes that are allowed.

    An option that was left at ``auto`` keeps what it was resolved to. What nobody changed, but was resolved for another
    number of processes and does not suit this one, is ``auto`` again.

    Raises:
        InputError: An option differs that would make it another run (named, with both values).
    """
    changes = {name: getattr(asked, name) for name in MAY_CHANGE_ON_RESUME}
    changes |= {name: value for name in MAY_MOVE if (value := getattr(asked, name)) != "auto"}
    if asked.given_length is None:
        changes |= {name: getattr(saved, name) for name in LENGTHS}
    merged = dataclasses.replace(saved, **changes)
    if merged.parallel == saved.parallel and (merged.parallel == "none") != (processes.world == 1):
        merged = dataclasses.replace(merged, parallel="auto")
    if merged.micro_batch == saved.micro_batch and not _divides(merged, processes.world):
        merged = dataclasses.replace(merged, micro_batch="auto")
    given, kept = flat(asked), flat(merged)
    for name, value in given.items():
        before = kept[name]
        unset = name in MAY_MOVE or (name in LENGTHS and value is None)
        if value == before or unset or (name == "model.vocab_size" and value == _preset_vocabulary(asked)):
            continue
        raise InputError(f"{name} was {before} when the run began and cannot be {value} when it goes on; leave it out")
    return merged


def _divides(config: TrainConfig, world: int) -> bool:
    """Return whether the micro-batch, where one is given, goes into each process's part of a step."""
    given = config.micro_batch
    return given == "auto" or batch_tokens(config) // config.window % (given * world) == 0


def moved(saved: TrainConfig, now: TrainConfig) -> str:
    """Return what differs of `MAY_MOVE`, such as ``device was cuda and is cpu``; empty where nothing does."""
    before, after = flat(saved), flat(now)
    different = (n for n in MAY_MOVE if before[n] not in (after[n], "auto"))
    return ", ".join(f"{n} was {before[n]} and is {after[n]}" for n in different)


def _preset_vocabulary(config: TrainConfig) -> int:
    return PRESETS[config.preset].vocab_size


def require_same_data(before: dict[str, str], now: dict[str, str]) -> None:
    """Compare the fingerprints of data and tokenizer that a run began with to those it would go on with.

    Raises:
        InputError: They differ (both fingerprints are shown).
    """
    for what in ("tokenizer", "data"):  # the data's fingerprint covers the tokenizer's
        if before[what] != now[what]:
            raise InputError(
                f"the {what} given is not the run's: its fingerprint is {now[what][:16]}, the run began with "
                f"{before[what][:16]}; give the --data that it began with"
            )
