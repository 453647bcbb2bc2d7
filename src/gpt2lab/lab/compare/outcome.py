"""What one run gave, as the numbers that are compared; all of them follow from its directory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from gpt2lab.errors import InputError
from gpt2lab.files import read_json
from gpt2lab.lab.compare.measure import RECALL
from gpt2lab.lab.record import Record, read
from gpt2lab.model import GPTConfig, cache_bytes
from gpt2lab.runs import Run
from gpt2lab.runtime import DTYPES

TEXTS = "nucleus 0.9"
"""The strategy whose texts are compared, where their quality was measured."""


@dataclass(frozen=True)
class Metric:
    """A figure that is compared."""

    name: str
    title: str
    unit: str
    better: str = ""
    """``lower`` or ``higher``, where one of them is."""
    per_token: bool = False
    """Whether it compares models of one tokenizer and text only."""


METRICS = (
    Metric("test_loss", "Test loss", "nats per token", "lower", True),
    Metric("test_perplexity", "Test perplexity", "per token", "lower", True),
    Metric("bits_per_byte", "Test bits per byte", "bits", "lower"),
    Metric("gap_percent", "Above the entropy floor", "%", "lower"),
    Metric("val_loss", "Best validation loss", "nats per token", "lower", True),
    Metric("steps_to_loss", "Steps to the loss", "steps", "lower", True),
    Metric("seconds_to_loss", "Seconds to the loss", "s", "lower", True),
    Metric("seconds", "Training time", "s", "lower"),
    Metric("tokens_per_s", "Speed", "tokens/s", "higher"),
    Metric("peak_memory_mb", "Peak memory", "MiB", "lower"),
    Metric("recall_gain", "Recall: gain on the second occurrence", "nats", "higher", True),
    Metric("repetition", f"Texts at {TEXTS} that end in a loop", "share", "lower"),
    Metric("self_bleu", f"Self-BLEU of texts at {TEXTS}", "0 to 100"),
    Metric("relevance", f"Relevance of texts at {TEXTS}", "share", "higher"),
    Metric("grammatical", "Stories that are grammatical", "share", "higher"),
    Metric("consistent", "Stories that are consistent too", "share", "higher"),
    Metric("parameters", "Parameters", "", ""),
    Metric("cache_bytes", "Key-value cache", "bytes per token", "lower"),
)
"""Every figure of a comparison, in the order of its table."""


@dataclass(frozen=True)
class Validated:
    """A point of the validation curve."""

    step: float
    tokens: float
    seconds: float
    loss: float


@dataclass(frozen=True)
class Outcome:
    """A run of a comparison."""

    arm: str
    seed: int
    path: str
    status: str
    """``finished``, or what is wrong with it."""
    figures: dict[str, float] = field(default_factory=dict)
    """By the names of `METRICS`; those that follow from a target loss are not in it."""
    curve: tuple[Validated, ...] = ()
    marks: tuple[str, str] = ("", "")
    """Fingerprints of tokenizer and data."""
    recall: tuple[tuple[float, float], ...] = ()
    """Distance, and loss on the second occurrence."""
    positions: tuple[tuple[float, float], ...] = ()
    """Tokens before a token in its window, and the loss on it; see `stretches`."""

    @property
    def usable(self) -> bool:
        """Whether its figures take part."""
        return self.status == "finished"


def outcome_of(path: Run, arm: str, seed: int, failure: str | None = None) -> Outcome:
    """Read a run; one that is unfinished or damaged says so in its status and has no figures."""
    where = str(path.path)
    if failure is not None:
        return Outcome(arm, seed, where, f"failed: {failure}")
    if not (path.path / "config.json").is_file():
        return Outcome(arm, seed, where, "not run yet")
    record = read(path)
    fingerprints = record.state.get("fingerprints", {})
    marks = str(fingerprints.get("tokenizer", "")), str(fingerprints.get("data", ""))
    if record.damage:
        return Outcome(arm, seed, where, f"damaged: {record.damage[0]}", marks=marks)
    if record.state.get("finished") is None:
        return Outcome(arm, seed, where, f"unfinished: stands at step {record.state.get('step', 0)}", marks=marks)
    try:
        recall = _recall(path)
    except InputError as error:
        return Outcome(arm, seed, where, f"damaged: {error}", marks=marks)
    return Outcome(
        arm,
        seed,
        where,
        "finished",
        _figures(record, recall),
        _curve(record),
        marks,
        tuple(zip(recall.get("distances", ()), recall.get("second", ()), strict=True)),
        () if record.positions is None else record.positions.points,
    )


def to_loss(outcome: Outcome, target: float) -> tuple[float, float] | None:
    """Return the steps and seconds to a validation loss, in a line between two validations; None if not reached."""
    before: Validated | None = None
    for point in outcome.curve:
        if point.loss <= target:
            if before is None:
                return point.step, point.seconds
            part = (before.loss - target) / (before.loss - point.loss)
            return (
                before.step + part * (point.step - before.step),
                before.seconds + part * (point.seconds - before.seconds),
            )
        before = point
    return None


def _recall(run: Run) -> dict[str, list[float]]:
    path = run.newest_evaluation(RECALL)
    if path is None:
        return {}
    values = read_json(path)
    try:
        return {name: [float(x) for x in values[name]] for name in ("distances", "first", "second")}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a recall curve; measure the run again") from error


def _figures(record: Record, recall: dict[str, list[float]]) -> dict[str, float]:
    test = record.test_figures()
    curve = _curve(record)
    seconds, speeds, memory = (record.column(name) for name in ("seconds", "tokens_per_s", "peak_memory_mb"))
    shares = {e.metric: e.value for e in record.evals if e.task == "stories"}
    texts = {} if record.texts is None else record.texts.figures_of(TEXTS)
    found = {
        "test_loss": test.get("loss"),
        "test_perplexity": test.get("perplexity"),
        "bits_per_byte": test.get("bits_per_byte"),
        "gap_percent": test.get("gap_percent"),
        "val_loss": min((point.loss for point in curve), default=None),
        "seconds": seconds[-1] if seconds else None,
        "tokens_per_s": median(speeds) if speeds else None,
        "peak_memory_mb": max(memory, default=None),
        "recall_gain": _gain(recall),
        "repetition": texts.get("repetition"),
        "self_bleu": texts.get("self_bleu"),
        "relevance": texts.get("relevance"),
        "grammatical": texts.get("grammatical", shares.get("grammatical")),
        "consistent": texts.get("consistent", shares.get("consistent")),
        "parameters": record.parameters,
        "cache_bytes": _cache_bytes(record.config),
    }
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def _gain(recall: dict[str, list[float]]) -> float | None:
    """Return how much less the second occurrence costs than the first, in the mean over the distances."""
    if not recall:
        return None
    gains = [a - b for a, b in zip(recall["first"], recall["second"], strict=True)]
    return sum(gains) / len(gains)


def _cache_bytes(config: dict[str, Any]) -> float | None:
    """Return the bytes that a token of a full context takes in the model's key-value cache, in the run's precision."""
    try:
        model = GPTConfig(**config["model"])
        return cache_bytes(model, model.n_ctx, DTYPES[config["precision"]]) / model.n_ctx
    except (KeyError, TypeError, InputError):
        return None


def _curve(record: Record) -> tuple[Validated, ...]:
    rows = [[row[name] for name in ("step", "tokens", "seconds", "val_loss")] for row in record.metrics]
    return tuple(
        Validated(step, tokens, seconds, loss)
        for step, tokens, seconds, loss in rows
        if step is not None and tokens is not None and seconds is not None and loss is not None and math.isfinite(loss)
    )
