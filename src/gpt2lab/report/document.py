"""What a report says, before it is set in type: one tree of values that an HTML page or a PDF is made from.

    Report ── RunContent ── KeyFigure, Curves ── Series, Evaluation ── Fact, Strategy ── Sample

Every text in it is final, and every number is one that stands in a run directory, rounded, or follows from such
numbers by a rule that stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt2lab.compare.results import Comparison
from gpt2lab.evaluation.text_quality import Completion, TextQuality, TextTable
from gpt2lab.report.plots import PositionCurve
from gpt2lab.report.run_data import AttentionMap


@dataclass(frozen=True)
class Fact:
    """A name and its value; ``note`` says a unit, a symbol or a condition."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class KeyFigure:
    """A number that a reader looks for first; ``value`` is None where it was not measured."""

    label: str
    value: str | None
    note: str
    only_where_known: bool = False
    """Whether it is left out where it has no value: not every text has such a figure."""
    per_token: bool = False
    """Whether it compares only between runs of one tokenizer and data."""


@dataclass(frozen=True)
class Series:
    """Points of a curve; ``x`` counts training tokens."""

    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Curves:
    """What metrics.csv records, as curves over training tokens."""

    train_loss: Series
    val_loss: Series
    lr: Series
    grad_norm: Series
    tokens_per_s: Series
    floor: float | None
    """The test set's entropy in nats per token: its loss over 1 + gap."""
    published: tuple[tuple[str, float], ...]
    """Validation losses that others published for this text, as reference lines."""
    described: str


@dataclass(frozen=True)
class Evaluation:
    """The figures that were taken under one protocol."""

    title: str
    protocol: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Sample:
    """A text that the model wrote: what it was given, and how it went on."""

    prompt: str
    continuation: str
    verdict: str
    cut: bool
    """Whether the text is longer than what is shown."""


@dataclass(frozen=True)
class Strategy:
    """Texts written by one way of sampling at one step."""

    name: str
    step: str
    written: int
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class RunContent:
    """What the report says of one run."""

    name: str
    summary: str
    task: tuple[str, ...]
    """The task, the data and what was done to it, in paragraphs."""
    remarks: tuple[str, ...]
    """What is unfinished, missing or damaged."""
    key_figures: tuple[KeyFigure, ...]
    curves: Curves
    evaluations: tuple[Evaluation, ...]
    positions: PositionCurve | None
    """Loss by position in the context, where it was measured."""
    positions_caption: str
    quality: TextQuality | None
    """What the texts of each strategy are like, where it was measured: for the picture."""
    texts: TextTable | None
    """The same as a table."""
    completions: tuple[Completion, ...]
    """Held-out beginnings, with their true endings and the model's."""
    strategies: tuple[Strategy, ...]
    other_steps: tuple[Strategy, ...]
    """A text of each of some other steps, which show how the writing changed."""
    model: tuple[Fact, ...]
    deviations: tuple[str, ...]
    """Where the model differs from the equations of GPT-2."""
    biases: bool
    cosine: bool
    """Whether the learning rate falls along a cosine, as in the equations."""
    training: tuple[Fact, ...]
    configuration: tuple[Fact, ...]
    environment: tuple[Fact, ...]
    commands: tuple[Fact, ...]
    strengths: tuple[str, ...]
    weaknesses: tuple[str, ...]
    published: tuple[Fact, ...]
    """Figures that others published by the same protocol."""
    attention: AttentionMap | None

    @property
    def strip(self) -> list[KeyFigure]:
        """The figures that stand at its head: two rows of four."""
        return [figure for figure in self.key_figures if figure.value is not None or not figure.only_where_known][:8]

    @property
    def prompted(self) -> bool:
        """Whether any of its texts was begun for it."""
        return any(sample.prompt for strategy in self.strategies for sample in strategy.samples)


@dataclass(frozen=True)
class Report:
    """What a report says."""

    title: str
    runs: tuple[RunContent, ...]
    version: str
    comparison: Comparison | None
    """Of several runs."""
    notes: tuple[str, ...]
    """Paragraphs that the author adds."""
    references: tuple[str, ...]
