"""Figures of a run that are kept with it: measured here, written into its evals.csv."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpt2lab.data import TokenDataset
from gpt2lab.evaluation import StoryQuality, judge_stories, perplexity_of
from gpt2lab.model import GPT
from gpt2lab.runs import Run
from gpt2lab.runtime import Runtime


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


def measure_perplexity(
    model: GPT,
    dataset: TokenDataset,
    split: str,
    context: int | None,
    stride: int | None,
    where: Runtime,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Measure perplexity and bits per byte on a split, and the gap to its entropy where that is known.

    Raises:
        InputError: There is no such split, it is damaged, or context or stride do not fit.
    """
    stream = dataset.stream(split)
    info = dataset.manifest.splits[split]
    with where.autocast():
        found = perplexity_of(
            model, stream, info.bytes, context, stride, entropy_bits=info.entropy_bits, progress=progress
        )
    return Measured("perplexity", split, found.protocol, found.figures)


def measure_stories(texts: list[str], strategy: str) -> tuple[Measured, StoryQuality]:
    """Judge stories that a model wrote by a strategy; return the shares, and what broke in those that are wrong."""
    quality = judge_stories(texts)
    return Measured("stories", "samples", f"{strategy}: {quality.protocol}", quality.figures), quality
