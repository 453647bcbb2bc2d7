"""What several runs show together: means by arm, and paired differences with confidence intervals.

    runs ── outcome_of ──> Outcome (arm, seed) ── compare_outcomes ──> Comparison ── MetricRow ── Cell (an arm)

The first arm is the reference. Runs of one seed read the same batches whatever their arm, so that over the n seeds
that two arms share, d_i = other_i - reference_i varies less than either of them. The interval of its mean is

    mean(d) ± t(0.975, n - 1) * s(d) / sqrt(n)          with Student's t, and s the sample standard deviation
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from operator import sub
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

from gpt2lab import formatting
from gpt2lab.errors import InputError
from gpt2lab.evaluation.likelihood import Recall
from gpt2lab.evaluation.measure import RunData
from gpt2lab.files import read_checked_json
from gpt2lab.model.parts import BUILT_IN, REGISTRIES, named_in
from gpt2lab.runs import Run
from gpt2lab.runtime import DTYPES
from gpt2lab.training.config import flatten, saved_model

COMPARISON_FILE, RECALL_FILE = "comparison.json", "recall.json"
LEVEL = 0.95
"""Confidence level of the intervals."""
STRATEGY = "nucleus 0.9"
"""The decoding strategy whose texts are compared, if text quality was measured."""
NOT_COMPARED = {"seed", "out", "resume"}
"""Options in which runs of one arm differ."""
TIMES = {"steps_to_loss", "seconds_to_loss", "seconds", "tokens_per_s"}
"""Metrics that are left out if the interval of a mean includes zero: by the load of the machine, or at a loss that some
runs hardly reach."""
LEAST_VALIDATIONS = 5
"""Validations before the one that reached a loss, for steps and seconds to it to be compared."""
MAX_OPTIONS = 6
"""Runs that differ in more options are not variants of each other, and each is called by its name."""


class Metric(NamedTuple):
    """A figure that is compared."""

    name: str
    title: str
    unit: str
    better: str = ""
    """``lower`` or ``higher``, if one of them is better."""
    per_token: bool = False
    """Whether it only compares models with the same tokenizer and data."""


COMPARED_METRICS = (
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
    Metric("repetition", f"Texts at {STRATEGY} that end in a loop", "share", "lower"),
    Metric("self_bleu", f"Self-BLEU of texts at {STRATEGY}", "0 to 100"),
    Metric("relevance", f"Relevance of texts at {STRATEGY}", "share", "higher"),
    Metric("grammatical", "Grammatical stories", "share", "higher"),
    Metric("consistent", "Consistent stories", "share", "higher"),
    Metric("parameters", "Parameters", ""),
    Metric("cache_bytes", "Key-value cache", "bytes per token", "lower"),
)
"""The rows of a comparison's table, in order."""


@dataclass(frozen=True)
class Validation:
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
    """``finished``, or why its figures are left out."""
    figures: dict[str, float] = field(default_factory=dict)
    """By the names of `COMPARED_METRICS`, without those that depend on a target loss."""
    curve: tuple[Validation, ...] = ()
    fingerprints: tuple[str, str] = ("", "")
    """Of the tokenizer and the data."""
    recall: tuple[tuple[float, float], ...] = ()
    """Distance between two occurrences of a token, and the loss on the second."""
    positions: tuple[tuple[float, float], ...] = ()
    """Position in the context, and the loss there."""
    options: dict[str, Any] = field(default_factory=dict)
    """Its configuration by the names of the flags, such as ``model.n_layer``."""
    own_name: str = ""
    """The name of its directory, if that says more than its arm and seed."""

    @property
    def usable(self) -> bool:
        """Whether its figures are compared."""
        return self.status == "finished"

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.own_name or f"{self.arm}, seed {self.seed}"


def outcome_of(run: Run, arm: str, seed: int, failure: str | None = None) -> Outcome:
    """Read a run; if it is unfinished or damaged, its status says so and it has no figures."""
    path = str(run.path)
    if failure is not None:
        return Outcome(arm, seed, path, f"failed: {failure}", options=_saved_options(run))
    if not (run.path / "config.json").is_file():
        return Outcome(arm, seed, path, "not run yet")
    data = RunData(run)
    fingerprints = data.fingerprints.get("tokenizer", ""), data.fingerprints.get("data", "")
    outcome = Outcome(arm, seed, path, _status(data), options=_options_of(data.config), fingerprints=fingerprints)
    if not outcome.usable:
        return outcome
    try:
        recall = run.saved_evaluation(RECALL_FILE, Recall)
    except InputError as error:
        return dataclasses.replace(outcome, status=f"damaged: {error}")
    curve = _validations(data)
    return dataclasses.replace(
        outcome,
        figures=_figures(data, curve, recall),
        curve=curve,
        recall=tuple(zip(map(float, recall.distances), recall.second, strict=True)) if recall else (),
        positions=data.positions.points if data.positions else (),
    )


def _status(data: RunData) -> str:
    if data.damage:
        return f"damaged: {data.damage[0]}"
    if data.state.get("finished") is None:
        return f"unfinished: stopped at step {data.state.get('step', 0)}"
    return "finished"


def _validations(data: RunData) -> tuple[Validation, ...]:
    rows = [[row[name] for name in ("step", "tokens", "seconds", "val_loss")] for row in data.metrics]
    complete = [[x for x in row if x is not None] for row in rows if None not in row]
    return tuple(Validation(*row) for row in complete if math.isfinite(row[-1]))


def _figures(data: RunData, curve: Sequence[Validation], recall: Recall | None) -> dict[str, float]:
    """Return the figures of a run that are known and finite."""
    test, seconds, speeds = data.test_figures(), data.column("seconds"), data.column("tokens_per_s")
    stories = {e.metric: e.value for e in data.evals if e.task == "stories"}
    texts = data.texts.figures_of(STRATEGY) if data.texts else {}
    found = {
        **stories,
        **texts,
        **test,
        "test_loss": test.get("loss"),
        "test_perplexity": test.get("perplexity"),
        "val_loss": min((point.loss for point in curve), default=None),
        "seconds": seconds[-1] if seconds else None,
        "tokens_per_s": median(speeds) if speeds else None,
        "peak_memory_mb": max(data.column("peak_memory_mb"), default=None),
        "recall_gain": fmean(map(sub, recall.first, recall.second)) if recall else None,
        "parameters": data.parameters,
        "cache_bytes": _cache_bytes_per_token(data),
    }
    figures = {metric.name: found.get(metric.name) for metric in COMPARED_METRICS}
    return {name: float(x) for name, x in figures.items() if x is not None and math.isfinite(x)}


def _cache_bytes_per_token(data: RunData) -> float | None:
    """Return the size of the key-value cache of a full context, in the precision of the run, over its tokens."""
    try:
        model = saved_model(data.run)
        if model.network is not None:  # it has no cache
            return None
        return model.cache_bytes(model.n_ctx, DTYPES[data.config["precision"]]) / model.n_ctx
    except (KeyError, TypeError, InputError):
        return None


def outcomes_by_options(runs: Sequence[Run]) -> list[Outcome]:
    """Read runs and group those that differ in the seed only; a group is called by the options that differ.

    If each run is alone in its group, a seed comes twice, or they are no variants of each other, each run is a group
    and is called by its name.
    """
    names = run_names([run.path for run in runs])
    options = [{name: str(value) for name, value in _saved_options(run).items()} for run in runs]
    every = dict.fromkeys(name for saved in options for name in saved if name not in NOT_COMPARED)
    varied = [name for name in every if len({saved.get(name, "") for saved in options if saved}) > 1]
    labels = short_names(varied)
    arms = [", ".join(f"{labels[name]}={saved.get(name, 'not set')}" for name in varied) for saved in options]
    seeds = [int(seed) if (seed := saved.get("seed", "0")).isdecimal() else 0 for saved in options]
    alone, distinct = len(set(arms)) == len(arms), len(set(zip(arms, seeds, strict=True))) == len(arms)
    grouped = not alone and distinct and len(varied) <= MAX_OPTIONS
    outcomes = []
    for run, name, saved, arm, seed in zip(runs, names, options, arms, seeds, strict=True):
        outcome = outcome_of(run, (arm or "every run") if grouped and saved else name, seed)
        outcomes.append(dataclasses.replace(outcome, own_name=name))
    return outcomes


def run_names(paths: Sequence[Path]) -> list[str]:
    """Return the names of run directories, with as many of their parents as it takes to tell them apart.

    A run of a comparison is in the folder of its arm: ``rotary/seed_1337``.
    """
    parts = [path.resolve().parts for path in paths]
    shortest = 2 if any(part[-1].startswith("seed_") for part in parts) else 1
    for length in range(shortest, max(map(len, parts), default=0)):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(map(str, paths))


def _saved_options(run: Run) -> dict[str, Any]:
    """Return the options of a run by name; empty if they cannot be read."""
    try:
        tree = run.config
    except InputError:
        return {}
    return _options_of(tree) if isinstance(tree, dict) else {}


def _options_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a run by name. An imported part is followed by the beginning of its file's SHA-256."""
    options = flatten(config)
    if (sha256 := options.pop("model.import_sha256", None)) is not None:
        named = {kind: options.get(f"model.{kind}") for kind in REGISTRIES}
        for kind in {kind for kind, name in named_in(named) if (kind, name) not in BUILT_IN}:
            options[f"model.{kind}"] = f"{named[kind]} ({str(sha256)[:8]})"
    return options


def short_names(options: Sequence[str]) -> dict[str, str]:
    """Return the last part of each option's name, such as n_head; the full names if those are not unique."""
    short = {name: name.rpartition(".")[2] for name in options}
    return short if len(set(short.values())) == len(short) else {name: name for name in options}


def recorded_outcomes(directory: Path) -> list[Outcome]:
    """Read the runs of a comparison, with the arms and seeds of its comparison.json.

    Raises:
        InputError: The file is damaged. A missing or damaged run does not raise, its status says so.
    """
    file = directory / COMPARISON_FILE
    saved = read_checked_json(file)
    try:
        runs = [(str(run["path"]), str(run["arm"]), int(run["seed"]), str(run["status"])) for run in saved["runs"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file}: damaged ({error!r}); run the comparison again") from error
    return [
        outcome_of(Run(directory / path), arm, seed, status[8:] if status.startswith("failed: ") else None)
        for path, arm, seed, status in runs
    ]


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences and its 95 % interval."""

    mean: float
    low: float | None
    """Ends of the interval; None for a single pair."""
    high: float | None
    pairs: int
    verdict: str
    """What the interval says: ``one seed``, ``the same``, ``within noise``, ``lower`` or ``higher``."""


def paired_difference(reference: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """Return the difference ``other - reference`` over the seeds that both have; None if they share none."""
    differences = [other[seed] - reference[seed] for seed in sorted(reference.keys() & other.keys())]
    if not differences:
        return None
    mean, half = fmean(differences), half_width(differences)
    if half is None:
        return Difference(mean, None, None, 1, "one seed")
    low, high = mean - half, mean + half
    if low <= 0.0 <= high:
        verdict = "the same" if low == high else "within noise"
    else:
        verdict = "lower" if high < 0.0 else "higher"
    return Difference(mean, low, high, len(differences), verdict)


def half_width(values: Sequence[float]) -> float | None:
    """Return half the width of the 95 % interval of the mean of values; None for a single value."""
    n = len(values)
    return t_quantile(0.5 + LEVEL / 2, n - 1) * stdev(values) / math.sqrt(n) if n > 1 else None


@cache
def t_quantile(p: float, df: int) -> float:
    """Return the p quantile of Student's t with ``df`` degrees of freedom, for 0.5 <= p < 1, by bisection."""
    low, high = 0.0, 1.0
    while t_cdf(high, df) < p:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return high


def t_cdf(t: float, df: int) -> float:
    """Return P(T <= t) for t >= 0: the finite series of Abramowitz & Stegun 1964, 26.7.3 and 26.7.4."""
    theta, odd = math.atan(t / math.sqrt(df)), df % 2
    cosine, term = math.cos(theta), math.sin(theta)
    total = 0.0
    if odd:
        term, total = term * cosine, theta
    for power in range(odd, df - 1, 2):  # of the cosine in this term
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    return 0.5 + total / (math.pi if odd else 2)


@dataclass(frozen=True)
class Cell:
    """A metric of an arm."""

    mean: float | None
    """None if no run of the arm has it."""
    half_width: float | None
    """Of the 95 % interval of the mean; None for a single run."""
    runs: int
    difference: Difference | None
    """To the reference; None for the reference itself."""


class MetricRow(NamedTuple):
    """A metric of every arm."""

    metric: Metric
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Comparison:
    """What a comparison found."""

    arms: tuple[str, ...]
    """The first is the reference."""
    seeds: tuple[int, ...]
    outcomes: tuple[Outcome, ...]
    rows: tuple[MetricRow, ...]
    target_loss: float | None
    """The validation loss of "steps to the loss" and "seconds to the loss"."""
    per_token: bool
    """Whether losses per token compare: the same tokenizer and data."""
    options: dict[str, tuple[str, ...]]
    """By the arm, each option that it changes, such as ``model.position=rope``; of the reference, its own values. An
    arm whose options are unknown is missing."""
    findings: tuple[str, ...]
    """What the test figures say about each arm, in a sentence each."""
    remarks: tuple[str, ...]

    @property
    def reference(self) -> str:
        """The arm that the others are compared with."""
        return self.arms[0]

    @property
    def one_scale(self) -> bool:
        """Whether losses per token compare among all runs that have begun, including those that are left out."""
        return len({o.fingerprints for o in self.outcomes if o.usable or any(o.fingerprints)}) <= 1


def compare_outcomes(
    outcomes: Sequence[Outcome], target_loss: float | None = None, remarks: Sequence[str] = ()
) -> Comparison:
    """Compare runs by arm; the first arm is the reference.

    Args:
        outcomes: Runs; those that are unfinished or damaged, or repeat the arm and the seed of another, are named in
            the remarks and left out.
        target_loss: Validation loss for "steps to the loss"; None is the lowest that every run reached.
        remarks: Remarks to begin with.
    """
    outcomes = list(_without_repeated(outcomes))
    arms = tuple(dict.fromkeys(o.arm for o in outcomes))
    usable = [o for o in outcomes if o.usable]
    incomparable = _incomparable(usable)
    target = target_loss if target_loss is not None or incomparable else _common_loss(usable)
    figures = [(o.arm, o.seed, o.figures | to_loss(o, target)) for o in usable]
    rows = []
    for metric in COMPARED_METRICS:
        name = metric.name
        by_arm = [{seed: known[name] for a, seed, known in figures if a == arm and name in known} for arm in arms]
        if any(by_arm) and not (metric.per_token and incomparable):
            rows.append(MetricRow(metric, tuple(_cell(values, by_arm[0]) for values in by_arm)))
    scattered = [row.metric for row in rows if _is_scattered(row)]
    rows = [row for row in rows if row.metric not in scattered]
    left_out = [f"{o.name}: {o.status}. Left out." for o in outcomes if not o.usable]
    too_high = [o for o in usable if target_loss is not None and validations_before(o, target_loss) is None]
    never = [f"{o.name}: never reached a loss of {target_loss:g}." for o in too_high]
    coarse = [o for o in usable if (n := validations_before(o, target)) is not None and n < LEAST_VALIDATIONS]
    too_few = (
        f"Steps and seconds to the loss are left out for {formatting.plural(len(coarse), 'run')} with fewer than "
        f"{LEAST_VALIDATIONS} validations before it; a smaller --eval-every gives more."
    )
    too_wide = (
        f"Left out, since the 95 % interval of a mean includes zero: {', '.join(m.title for m in scattered)}. "
        "More seeds narrow it, and for times and speeds a machine that does nothing else."
    )
    return Comparison(
        arms=arms,
        seeds=tuple(sorted({o.seed for o in outcomes})),
        outcomes=tuple(outcomes),
        rows=tuple(rows),
        target_loss=target,
        per_token=not incomparable,
        options=_changed_options(arms, outcomes),
        findings=tuple(_findings(arms, rows)),
        remarks=(
            *remarks, *left_out, *filter(None, [incomparable]), *never, *([too_few] if coarse else []),
            *([too_wide] if scattered else []),
        ),
    )  # fmt: skip


def _without_repeated(outcomes: Sequence[Outcome]) -> Iterator[Outcome]:
    """Leave out every usable run but the first of an arm and a seed: they would replace each other's figures."""
    first: set[tuple[str, int]] = set()
    for o in outcomes:
        again = o.usable and (o.arm, o.seed) in first
        yield dataclasses.replace(o, status=f"{o.path} is another run of this arm and seed") if again else o
        first |= {(o.arm, o.seed)} if o.usable else set()


def _is_scattered(row: MetricRow) -> bool:
    """Return whether a time or a speed varies so much between seeds that its interval includes zero."""
    widths = [(cell.mean, cell.half_width) for cell in row.cells]
    return row.metric.name in TIMES and any(mean and width and width >= mean for mean, width in widths)


def _changed_options(arms: Sequence[str], outcomes: Sequence[Outcome]) -> dict[str, tuple[str, ...]]:
    options = {o.arm: o.options for o in reversed(outcomes) if o.options}
    known = [arm for arm in arms if arm in options]
    if not known:
        return {}
    reference = options[known[0]]
    changed = {
        arm: [n for n, value in options[arm].items() if n not in NOT_COMPARED and value != reference.get(n)]
        for arm in known
    }
    changed[known[0]] = list(dict.fromkeys(name for names in changed.values() for name in names))
    return {
        arm: tuple(f"{name}={option_text(options[arm].get(name))}" for name in names) for arm, names in changed.items()
    }


def option_text(value: Any) -> str:
    """Return the value of an option as it is given on the command line."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


INCOMPARABLE = (
    "The runs have different tokenizers: losses per token and their plots are left out; bits per byte compare.",
    "The runs were measured on different data: losses per token and their plots are left out; bits per byte "
    "compare only if the texts are equally hard.",
)
"""By the place of the fingerprint that differs."""


def _incomparable(outcomes: Sequence[Outcome]) -> str:
    """Return why figures per token do not compare; an empty string if they do."""
    for index, reason in enumerate(INCOMPARABLE):
        if len({o.fingerprints[index] for o in outcomes}) > 1:
            return reason
    return ""


def _common_loss(outcomes: Sequence[Outcome]) -> float | None:
    """Return the lowest validation loss that every run reached, rounded up to three decimals."""
    lowest = [o.figures["val_loss"] for o in outcomes if "val_loss" in o.figures]
    return math.ceil(max(lowest) * 1000) / 1000 if lowest and len(lowest) == len(outcomes) else None


def validations_before(outcome: Outcome, target: float | None) -> int | None:
    """Return the number of validations before the first that reached a loss; None if none did."""
    return next((n for n, p in enumerate(outcome.curve) if target is not None and p.loss <= target), None)


def to_loss(outcome: Outcome, target: float | None) -> dict[str, float]:
    """Return steps and seconds to a validation loss, linear between two validations.

    Empty if it was not reached, or after fewer than `LEAST_VALIDATIONS` others: the loss falls fastest at first, and a
    straight line between two points far apart says little.
    """
    reached = validations_before(outcome, target)
    if reached is None or target is None or reached < LEAST_VALIDATIONS:
        return {}
    before, point = outcome.curve[reached - 1 : reached + 1]
    part = (before.loss - target) / (before.loss - point.loss)
    return {
        "steps_to_loss": before.step + part * (point.step - before.step),
        "seconds_to_loss": before.seconds + part * (point.seconds - before.seconds),
    }


def _cell(values: dict[int, float], reference: dict[int, float]) -> Cell:
    mean = fmean(values.values()) if values else None
    difference = None if values is reference else paired_difference(reference, values)
    return Cell(mean, half_width(list(values.values())), len(values), difference)


def _findings(arms: Sequence[str], rows: Sequence[MetricRow]) -> list[str]:
    row = next((r for r in rows if r.metric.name in ("test_loss", "bits_per_byte")), None)
    if row is None:
        return []
    return [_finding(row.metric, arm, cell, arms[0]) for arm, cell in zip(arms[1:], row.cells[1:], strict=True)]


def _finding(metric: Metric, arm: str, cell: Cell, reference: str) -> str:
    what, difference = f"{metric.title} of {arm}", cell.difference
    if difference is None:
        why = "not measured" if cell.mean is None else f"it shares no seed with {reference}"
        return f"{what}: {why}."
    text, verdict = f"{what} is {signed(difference.mean)} {metric.unit} against {reference}", difference.verdict
    if difference.low is None or difference.high is None:
        return f"{text}: one seed, so there is no interval; the difference may be chance."
    text += f", 95 % interval {signed(difference.low)} to {signed(difference.high)} over {difference.pairs} seeds"
    if verdict in ("lower", "higher"):
        return f"{text}: {verdict}, which is {'better' if verdict == metric.better else 'worse'}."
    return f"{text}: {'within noise, so no difference is shown' if verdict == 'within noise' else verdict}."


def signed(x: float) -> str:
    """Return a difference with its sign: +0.0123, −4.56."""
    return f"{'+' if x > 0 else '−'}{plain(abs(x), 3)}" if x else "0"


def plain(x: float, digits: int = 4) -> str:
    """Return a number to some significant digits, without an exponent from 0.0001 upwards."""
    return f"{x:.{min(digits, 3)}g}" if 1e-4 <= x < 1e-2 else formatting.number(x, digits)
