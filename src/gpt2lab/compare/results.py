"""From the outcomes of runs to what they say together: a table of means and paired differences.

    outcomes (arm, seed) ── compare_outcomes ──> Comparison ── Row (a metric) ── Cell (an arm)

The first arm is the reference; every other arm's figure is compared with its, over the seeds that both have.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from gpt2lab import formatting, runtime
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.errors import InputError
from gpt2lab.evaluation.measure import HeldOut, measure_held_out, measure_positions
from gpt2lab.evaluation.recall import recall_probe
from gpt2lab.evaluation.text_quality import Prompts, choose_prompts, measure_texts
from gpt2lab.files import read_json, write_json
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.flops import cache_bytes
from gpt2lab.model.gpt import GPT
from gpt2lab.report.plots import save_positions, save_text_quality
from gpt2lab.report.run_data import Record, read
from gpt2lab.runs import Run
from gpt2lab.runtime import DTYPES, Runtime
from gpt2lab.training.checkpoint import load_model
from gpt2lab.training.config import ResolvedConfig, TrainConfig, saved_config

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences and its 95 % interval."""

    mean: float
    low: float | None
    """Ends of the interval; None where one pair gives none."""
    high: float | None
    pairs: int

    @property
    def verdict(self) -> str:
        """What the interval says: ``one seed``, ``the same``, ``within noise``, ``lower`` or ``higher``."""
        if self.low is None or self.high is None:
            return "one seed"
        if self.low == self.high == 0.0:
            return "the same"
        if self.low <= 0.0 <= self.high:
            return "within noise"
        return "lower" if self.high < 0.0 else "higher"


def paired_difference(reference: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """Return the difference ``other - reference`` over the seeds that both have; None where they share none."""
    differences = [other[seed] - reference[seed] for seed in sorted(reference.keys() & other.keys())]
    if not differences:
        return None
    mean = math.fsum(differences) / len(differences)
    half = half_width(differences)
    if half is None:
        return Difference(mean, None, None, 1)
    return Difference(mean, mean - half, mean + half, len(differences))


def half_width(values: Sequence[float]) -> float | None:
    """Return half the width of the 95 % interval of the values' mean; None for a single value."""
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    return t_quantile(0.5 + LEVEL / 2, n - 1) * math.sqrt(variance / n)


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
    """Return the probability below t >= 0: the finite series of Abramowitz & Stegun 1964, 26.7.3 and 26.7.4."""
    theta = math.atan(t / math.sqrt(df))
    cosine, sine = math.cos(theta), math.sin(theta)
    if df % 2 == 0:
        term = total = sine
        for k in range(1, df // 2):
            term *= cosine**2 * (2 * k - 1) / (2 * k)
            total += term
        return 0.5 + total / 2
    term, total = sine * cosine, theta
    for k in range(1, (df + 1) // 2):
        total += term
        term *= cosine**2 * 2 * k / (2 * k + 1)
    return 0.5 + total / math.pi


RECALL, TEXT_FILE = "recall.json", "text.json"
"""In the folder of the step's evaluations. The first is written last: a run that has it is measured, but for texts."""
SAMPLES = 64
"""Texts of each strategy."""


def is_measured(run: Run, texts: bool) -> bool:
    """Return whether `measure` has been through with a run, with its texts where they are wanted."""
    return run.latest_evaluation(RECALL) is not None and not (texts and run.latest_evaluation(TEXT_FILE) is None)


def measure(run: Run, texts: bool) -> None:
    """Measure a run's best checkpoint and keep the figures with the run; what is there already is not repeated.

    Args:
        run: A run that was trained to its end.
        texts: Whether to measure what its texts are like, besides test perplexity, loss by position and recall.

    Raises:
        InputError: The data has no test split, or something is damaged.
    """
    config = saved_config(run)
    where = runtime.resolve(config.device, config.precision)
    model, checkpoint = load_model(run, "best", where.device)
    dataset = TokenDataset(config.data)
    if run.latest_evaluation(RECALL) is None:
        _measure_losses(run, config, model, checkpoint.step, dataset, where)
    if texts and run.latest_evaluation(TEXT_FILE) is None:
        quality = measure_texts(model, dataset.tokenizer(), text_prompts(config), where, config.seed)
        save_text_quality(run, checkpoint.step, "test", quality)


def text_prompts(config: TrainConfig) -> Prompts:
    """Return the held-out beginnings that a run completes. Raises `InputError` where its test split is too short."""
    return choose_prompts(TokenDataset(config.data), "test", config.recipe().model.n_ctx, SAMPLES)


def _measure_losses(
    run: Run, config: ResolvedConfig, model: GPT, step: int, dataset: TokenDataset, where: Runtime
) -> None:
    test, apart = HeldOut.of_split(dataset, "test"), config.mask_documents  # each run as it was trained
    measure_held_out(model, test, config.seq_len, None, where, by_document=apart).record(run, step)
    positions = measure_positions(model, test, config.seq_len, where, by_document=apart)
    with where.autocast():
        recall = recall_probe(model, avoid=[dataset.manifest.tokenizer.eot])
    values = {"step": step, "protocol": recall.protocol, "chance": recall.chance}
    save_positions(run, step, "test", positions)
    write_json(run.evaluations(step) / RECALL, values | dataclasses.asdict(recall))


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
    path = run.latest_evaluation(RECALL)
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
    size = f"{abs(x):.3g}" if 1e-4 <= abs(x) < 1e-2 else formatting.number(abs(x), 3)
    return f"{'+' if x > 0 else '−'}{size}"
