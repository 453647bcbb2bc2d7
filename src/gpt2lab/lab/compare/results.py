"""From the outcomes of runs to what they say together: a table of means and paired differences.

    outcomes (arm, seed) ── compare_outcomes ──> Comparison ── Row (a metric) ── Cell (an arm)

The first arm is the reference; every other arm's figure is compared with its, over the seeds that both have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gpt2lab.lab import words
from gpt2lab.lab.compare.outcome import METRICS, Metric, Outcome, to_loss
from gpt2lab.lab.compare.statistics import Difference, half_width, paired_difference


@dataclass(frozen=True)
class Cell:
    """A metric of an arm."""

    mean: float | None
    """None where no run of the arm has it."""
    half_width: float | None
    """Of the 95 % interval of the mean; None for a single run."""
    runs: int
    difference: Difference | None
    """To the reference; None in the reference itself."""


@dataclass(frozen=True)
class Row:
    """A metric of every arm."""

    metric: Metric
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Comparison:
    """What a comparison found."""

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    outcomes: tuple[Outcome, ...]
    rows: tuple[Row, ...]
    target_loss: float | None
    """The validation loss that steps and seconds are counted to."""
    per_token: bool
    """Whether losses per token compare: one tokenizer, one text."""
    remarks: tuple[str, ...]

    @property
    def reference(self) -> str:
        """The arm that the others are compared with."""
        return self.arms[0]

    def of(self, arm: str) -> list[Outcome]:
        """Return the runs of an arm that can be used."""
        return [outcome for outcome in self.outcomes if outcome.arm == arm and outcome.usable]

    @property
    def one_scale(self) -> bool:
        """Whether losses per token compare between all runs that have begun, those that are left out among them."""
        return len({o.marks for o in self.outcomes if o.usable or any(o.marks)}) <= 1

    @property
    def findings(self) -> tuple[str, ...]:
        """Return what the test figures say of each arm, in a sentence each."""
        row = next((r for r in self.rows if r.metric.name in ("test_loss", "bits_per_byte")), None)
        if row is None:
            return ()
        pairs = zip(self.arms[1:], row.cells[1:], strict=True)
        return tuple(_finding(row.metric, arm, cell, self.reference) for arm, cell in pairs)


def compare_outcomes(
    outcomes: Sequence[Outcome], target_loss: float | None = None, remarks: Sequence[str] = ()
) -> Comparison:
    """Compare runs by arm, the first arm that comes being the reference.

    Args:
        outcomes: Runs; those that are unfinished or damaged are named in the remarks and left out.
        target_loss: Validation loss to count steps and seconds to; None is the lowest that every run reached.
        remarks: What else is to be said.
    """
    arms = tuple(dict.fromkeys(o.arm for o in outcomes))
    seeds = tuple(sorted({o.seed for o in outcomes}))
    said = [*remarks, *(f"{o.arm}, seed {o.seed}: {o.status}. Left out." for o in outcomes if not o.usable)]
    usable = [o for o in outcomes if o.usable]
    per_token, why = _comparable(usable)
    said += why
    target = target_loss if target_loss is not None else _common_loss(usable) if per_token else None
    rows = []
    for metric in METRICS:
        if metric.per_token and not per_token:
            continue
        by_arm = [_values(usable, arm, metric.name, target) for arm in arms]
        if any(by_arm):
            rows.append(
                Row(
                    metric,
                    tuple(_cell(values, by_arm[0], arm == arms[0]) for arm, values in zip(arms, by_arm, strict=True)),
                )
            )
    if target_loss is not None:
        said += [
            f"{o.arm}, seed {o.seed}: never reached a loss of {target_loss:g}."
            for o in usable
            if not to_loss(o, target_loss)
        ]
    return Comparison(arms, seeds, tuple(outcomes), tuple(rows), target, per_token, tuple(said))


def _comparable(outcomes: Sequence[Outcome]) -> tuple[bool, list[str]]:
    """Return whether figures per token compare, and what is to be said where they do not."""
    tokenizers, data = ({o.marks[i] for o in outcomes} for i in (0, 1))
    if len(tokenizers) > 1:
        return False, [
            "The runs have different tokenizers: losses per token and their pictures are left out; bits "
            "per byte compare."
        ]
    if len(data) > 1:
        return False, [
            "The runs were measured on different data: losses per token and their pictures are left out; bits per "
            "byte compare only as far as the texts are equally hard."
        ]
    return True, []


def _common_loss(outcomes: Sequence[Outcome]) -> float | None:
    """Return the lowest validation loss that every run reached, rounded up to three digits behind the point."""
    lowest = [o.figures["val_loss"] for o in outcomes if "val_loss" in o.figures]
    return math.ceil(max(lowest) * 1000) / 1000 if lowest and len(lowest) == len(outcomes) else None


def _values(outcomes: Sequence[Outcome], arm: str, metric: str, target: float | None) -> dict[int, float]:
    """Return a metric by seed."""
    runs = [o for o in outcomes if o.arm == arm]
    if metric not in ("steps_to_loss", "seconds_to_loss"):
        return {o.seed: o.figures[metric] for o in runs if metric in o.figures}
    if target is None:
        return {}
    index = ("steps_to_loss", "seconds_to_loss").index(metric)
    return {o.seed: reached[index] for o in runs if (reached := to_loss(o, target))}


def _cell(values: dict[int, float], reference: dict[int, float], is_reference: bool) -> Cell:
    mean = sum(values.values()) / len(values) if values else None
    difference = None if is_reference else paired_difference(reference, values)
    return Cell(mean, half_width(list(values.values())), len(values), difference)


def _finding(metric: Metric, arm: str, cell: Cell, reference: str) -> str:
    what = f"{metric.title} of {arm}"
    if cell.difference is None:
        why = "it was not measured" if cell.mean is None else f"no seed of it has one of {reference} beside it"
        return f"{what}: {why}."
    difference, unit = cell.difference, metric.unit
    said = f"{what} is {signed(difference.mean)} {unit} against {reference}"
    if difference.low is None or difference.high is None:
        return f"{said}: one seed, so no interval; this may be chance."
    said += f", 95 % interval {signed(difference.low)} to {signed(difference.high)} over {difference.pairs} seeds"
    verdict = difference.verdict
    if verdict in ("lower", "higher"):
        return f"{said}: {verdict}, which is {'better' if verdict == metric.better else 'worse'}."
    return f"{said}: {'within noise, so no difference is shown' if verdict == 'within noise' else verdict}."


def signed(x: float) -> str:
    """Return a difference with its sign: +0.0123, −4.56."""
    if x == 0:
        return "0"
    size = f"{abs(x):.3g}" if 1e-4 <= abs(x) < 1e-2 else words.number(abs(x), 3)
    return f"{'+' if x > 0 else '−'}{size}"
