"""What a report contains, before it is typeset: a tree of values, from run directories and nothing else.

    Report ─┬─ Comparison                                       of several runs
            └─ RunContent ── KeyFigure, Evaluation, StrategySamples, Picture; and the `facts` of its data

Every text is final; HTML and PDF (`write.py`) only typeset it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from gpt2lab import plots
from gpt2lab.compare.output import draw
from gpt2lab.compare.results import Comparison, Outcome, compare_outcomes, outcomes_by_options, run_names
from gpt2lab.errors import InputError
from gpt2lab.evaluation.measure import EvalRow, RunData, SampleText, attention_map
from gpt2lab.evaluation.text_quality import CAPTION, HELD_OUT, draw_text_quality
from gpt2lab.formatting import count, duration, folded, memory, number, percent, plural, setting, short
from gpt2lab.plots import Picture, Points
from gpt2lab.report import facts
from gpt2lab.report.facts import Fact
from gpt2lab.report.markdown import Markdown, read_markdown
from gpt2lab.report.references import references
from gpt2lab.runs import Run

SHOWN_SAMPLES = 3
"""Samples shown of each decoding strategy."""
SHOWN_STEPS = 6
"""Samples shown of other steps, at most."""
MAX_CHARACTERS = 4_000
"""Characters shown of a sample."""


@dataclass(frozen=True)
class KeyFigure:
    """A number that a reader looks for first; ``value`` is None if it was not measured."""

    label: str
    value: str | None
    note: str
    only_if_known: bool = False
    """Whether it is left out if it has no value: not every text has such a figure."""
    per_token: bool = False
    """Whether it only compares runs with the same tokenizer and data."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of one protocol."""

    title: str
    protocol: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Sample:
    """A text that the model wrote."""

    prompt: str
    continuation: str
    verdict: str
    cut: bool
    """Whether the text is longer than what is shown."""


@dataclass(frozen=True)
class StrategySamples:
    """Samples of one decoding strategy at one step."""

    name: str
    step: str
    total: int
    """Samples that were written, of which some are shown."""
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class RunContent:
    """What the report says about one run besides its `facts`."""

    name: str
    data: RunData
    pictures: dict[str, Picture]
    """``positions``, ``texts`` and ``attention``, if they were measured."""
    remarks: list[str]
    """What is unfinished, missing or damaged."""

    @cached_property
    def key_figures(self) -> tuple[KeyFigure, ...]:
        """What a reader looks for first."""
        data = self.data
        split, figures = data.held_out_figures()
        speeds, memories, seconds, tokens = map(data.column, ("tokens_per_s", "peak_memory_mb", "seconds", "tokens"))
        device = "on the GPU" if str(data.config.get("device")).startswith("cuda") else "of the process"
        step, best = min(data.curve("step", "val_loss"), key=lambda point: point[1], default=(0, None))
        seen = short(tokens[-1]) if tokens else None
        perplexity, bits, gap = map(figures.get, ("perplexity", "bits_per_byte", "gap_percent"))
        return (
            KeyFigure(f"{split.capitalize()} perplexity", _if_known(perplexity), "per token", per_token=True),
            KeyFigure(f"{split.capitalize()} bits per byte", _if_known(bits), "for any tokenizer"),
            KeyFigure("Above the entropy floor", _if_known(gap, percent), f"bits per byte, {split} set", True),
            KeyFigure("Best validation loss", _if_known(best), f"nats per token, step {count(step)}", per_token=True),
            KeyFigure("Parameters", _if_known(data.parameters, short), "a tied head counted once"),
            KeyFigure("Training time", duration(seconds[-1]) if seconds else None, f"{seen} tokens" if seen else ""),
            KeyFigure("Tokens per second", count(median(speeds)) if speeds else None, "median"),
            KeyFigure("Peak memory", memory(max(memories)) if memories else None, device),
            KeyFigure("Tokens seen", seen, facts.passes(data)),
        )

    @property
    def headline(self) -> list[KeyFigure]:
        """The key figures at the top of the report: two rows of four."""
        return [figure for figure in self.key_figures if figure.value is not None or not figure.only_if_known][:8]

    @cached_property
    def curves(self) -> dict[str, Points]:
        """Columns of metrics.csv over the training tokens."""
        columns = ("train_loss", "val_loss", "lr", "grad_norm", "tokens_per_s")
        return {column: self.data.curve("tokens", column) for column in columns}

    @property
    def floor(self) -> float | None:
        """Entropy of the test set in nats per token: its loss over 1 + gap."""
        figures = self.data.test_figures()
        loss, gap = figures.get("loss", math.nan), figures.get("gap_percent", math.nan)
        return loss / (1 + gap / 100) if math.isfinite(loss) and math.isfinite(gap) else None

    @property
    def description(self) -> str:
        """The curves in words."""
        train, val = self.curves["train_loss"], self.curves["val_loss"]
        if not train:
            return "No loss was logged."
        text = f"Over {short(train[-1][0])} tokens the training loss falls from {number(train[0][1])}"
        if train[-1][1] > train[0][1]:
            text = text.replace("falls", "rises")
        text += f" to {number(train[-1][1])} nats per token"
        if val:
            lowest = min(loss for _, loss in val)
            text += f"; the validation loss ends at {number(val[-1][1])}, its minimum is {number(lowest)}"
        if (floor := self.floor) is not None:
            text += f"; the entropy of the test text, the lowest possible loss, is {number(floor)}"
        return f"{text}."

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """Figures by protocol."""
        return evaluations(self.data.evals)

    @cached_property
    def judgments(self) -> list[Judgment]:
        """Strengths, weaknesses and what to try next, each by a rule over the figures of the run."""
        data = self.data
        found = [*_judge_losses(data), *_judge_context(data), *_judge_texts(data)]
        return sorted(found, key=lambda judged: (STRENGTH, WEAKNESS, NEXT_STEP).index(judged[0]))

    @cached_property
    def main_step(self) -> int:
        """The step with samples of the most strategies (samples during training use only one), else the newest."""
        strategies: dict[int, set[str]] = {}
        for sample in self.data.samples:
            strategies.setdefault(sample.step, set()).add(sample.strategy)
        return max(strategies, key=lambda step: (len(strategies[step]), step), default=0)

    @cached_property
    def strategies(self) -> tuple[StrategySamples, ...]:
        """Samples of the main step by decoding strategy, in the order of the last sample of each."""
        of_step = [s for s in self.data.samples if s.step == self.main_step]
        names = [*dict.fromkeys(s.strategy for s in reversed(of_step))][::-1]
        return tuple(_strategy([s for s in of_step if s.strategy == name], MAX_CHARACTERS) for name in names)

    @property
    def prompted(self) -> bool:
        """Whether any of these samples had a prompt."""
        return any(sample.prompt for strategy in self.strategies for sample in strategy.samples)

    @property
    def other_steps(self) -> tuple[StrategySamples, ...]:
        """The first sample of other steps, to show the progress, evenly spread over them if they are many."""
        first = {s.step: s for s in reversed(self.data.samples) if s.step != self.main_step}
        steps = sorted(first)
        if len(steps) > SHOWN_STEPS:
            steps = [steps[i * (len(steps) - 1) // (SHOWN_STEPS - 1)] for i in range(SHOWN_STEPS)]
        return tuple(_strategy([first[step]], MAX_CHARACTERS // 10) for step in steps)


@dataclass(frozen=True)
class Cover:
    """What the author of a report writes at its top; an empty title is the name of the run."""

    title: str = ""
    author: str = ""
    date: str = ""

    @property
    def byline(self) -> str:
        """Author and date, as far as they are given."""
        return ", ".join(filter(None, (self.author, self.date)))


NO_COVER = Cover()


@dataclass(frozen=True)
class Report:
    """What a report says."""

    title: str
    cover: Cover
    runs: tuple[RunContent, ...]
    comparison: Comparison | None
    """Of several runs."""
    pictures: dict[str, Picture]
    """Those of the comparison."""
    notes: Markdown
    """What the author adds."""
    references: dict[str, str]
    """What it cites, by the name in `references.REFERENCES`, in the order of the numbers."""

    @property
    def cite(self) -> dict[str, str]:
        """The numbers of the references, such as ``[3]``, by name."""
        return {name: f"[{n}]" for n, name in enumerate(self.references, start=1)}

    @property
    def one_scale(self) -> bool:
        """Whether the losses per token of its runs compare."""
        return len(self.runs) == 1 or self.comparison is None or self.comparison.one_scale


def gather(
    runs: Sequence[Run], notes: str = "", outcomes: Sequence[Outcome] | None = None, cover: Cover = NO_COVER
) -> Report:
    """Read run directories and return what a report says about them.

    Args:
        runs: Runs, in the order of the report.
        notes: What the author adds, in Markdown with mathematics.
        outcomes: What is compared; by default several runs, by the options in which they differ.
        cover: Title, author and date.
    """
    if outcomes is None and len(runs) > 1:
        outcomes = outcomes_by_options(runs)
    called = {outcome.path: outcome.name for outcome in outcomes or ()}
    names = [called[str(run.path)] for run in runs] if called else run_names([run.path for run in runs])
    comparison = None if outcomes is None else compare_outcomes(outcomes)
    paths = {str(run.path) for run in runs}
    pictured = paths if outcomes is None else _first_of_each_arm([o for o in outcomes if o.path in paths])
    contents = []
    for run, name in zip(runs, names, strict=True):
        data = RunData(run)
        remarks = _remarks(data)
        contents.append(RunContent(name, data, _pictures(data, remarks) if str(run.path) in pictured else {}, remarks))
    return Report(
        title=cover.title or (names[0] if len(names) == 1 else f"{len(names)} runs: {', '.join(names)}"),
        cover=cover,
        runs=tuple(contents),
        comparison=comparison,
        pictures={} if comparison is None else draw(comparison),
        notes=read_markdown(notes),
        references=references([content.data for content in contents], comparison is not None),
    )


def _first_of_each_arm(outcomes: Sequence[Outcome]) -> set[str]:
    """Return the paths of the runs with pictures: the first finished run of each arm, else the first one."""
    best_first = sorted(outcomes, key=lambda o: not o.usable)
    return set({o.arm: o.path for o in reversed(best_first)}.values())


def _remarks(data: RunData) -> list[str]:
    remarks, step = [*data.damage, *data.refused], data.state.get("step")
    diverged = (row["step"] for row in data.metrics if not math.isfinite(row["train_loss"] or 0.0))
    if (first := next(diverged, None)) is not None:
        remarks.append(f"The training loss is not finite at step {count(first)}: training diverged.")
    if not data.state:
        remarks.append("There is no complete checkpoint: the run is unfinished, or its checkpoints were removed.")
    elif data.state.get("finished") is None:
        remarks.append(f"The run is unfinished: its newest checkpoint is from step {setting(step)}.")
    if not data.metrics:
        remarks.append("No training step was logged.")
    elif data.state.get("finished") and isinstance(step, int) and (last := data.metrics[-1]["step"] or 0) < step:
        text = f"metrics.csv ends at step {count(last)}, before the run's last step, {count(step)}"
        remarks.append(f"{text}: rows were removed.")
    return remarks


def _if_known(value: float | None, text: Callable[[float], str] = number) -> str | None:
    return None if value is None else text(value)


_FIGURES = {
    "loss": ("Loss", "nats per token", 0),
    "perplexity": ("Perplexity", "per token", 0),
    "word_perplexity": ("Perplexity", "per word", 0),
    "bits_per_byte": ("Bits per byte", "", 0),
    "entropy_floor": ("Entropy floor", "bits per byte", 0),
    "gap_percent": ("Above the entropy floor", "", 1),
    "acc": ("Accuracy by the sum", "share of the items", 0),
    "acc_norm": ("Accuracy normalized by length", "share of the items", 0),
    "grammatical": ("Grammatical", "share of the texts", 100),
    "consistent": ("Grammatical and consistent", "share of the texts", 100),
}
"""Label and note of a figure, and the factor that makes it a percentage (0 if it is none)."""
_TITLES = {("stories", "samples"): "Stories written by the model", ("hellaswag", "val"): "HellaSwag"}
_SPLITS = {"test": "the test set", "val": "the validation set", "train": "the training set"}


def evaluations(rows: Iterable[EvalRow]) -> tuple[Evaluation, ...]:
    """Group figures by protocol, and take the newest of each; older ones stay in evals.csv."""
    groups: dict[tuple[str, str, str], dict[str, EvalRow]] = {}
    for row in sorted(rows, key=lambda row: row.step):
        groups.setdefault((row.task, row.split, row.protocol), {})[row.metric] = row
    return tuple(
        Evaluation(_evaluation_title(*key[:2], group.values()), key[2], tuple(map(_figure, group.values())))
        for key, group in groups.items()
    )


def _evaluation_title(task: str, split: str, group: Iterable[EvalRow]) -> str:
    default = f"{task[:1].upper()}{task[1:].replace('_', ' ')}"
    if split in _SPLITS:
        default += f" on {_SPLITS[split]}"
    elif split:
        default += f": {split}"
    return f"{_TITLES.get((task, split), default)}, after step {count(max(row.step for row in group))}"


def _figure(row: EvalRow) -> Fact:
    label, note, factor = _FIGURES.get(row.metric, (row.metric.replace("_", " ").capitalize(), "", 0))
    return Fact(label, percent(row.value * factor) if factor else number(row.value), note)


def _strategy(samples: Sequence[SampleText], longest: int) -> StrategySamples:
    shown = []
    for s in samples[:SHOWN_SAMPLES]:
        rest = folded(s.text.removeprefix(s.prompt))
        cut = len(rest) > longest or len(s.prompt) > longest
        shown.append(Sample(s.prompt[:longest], rest[:longest], s.verdict, cut))
    return StrategySamples(samples[0].strategy, count(samples[0].step), len(samples), tuple(shown))


def _pictures(data: RunData, remarks: list[str]) -> dict[str, Picture]:
    """Draw what was measured; add to the remarks what cannot be drawn."""
    pictures: dict[str, Picture] = {}
    if curve := data.positions:
        split = _SPLITS.get(curve.split, curve.split)
        caption = f"Loss by position, on {split} after step {count(curve.step)}. {curve.protocol}"
        pictures["positions"] = Picture(curve.draw(), caption)
    if data.texts and data.texts.can_be_drawn:
        caption = f"{CAPTION} After figure 6 of Holtzman et al. 2020."
        wide = all("grammatical" in row.figures for row in data.texts.drawn)
        pictures["texts"] = Picture(draw_text_quality(data.texts), caption, wide)
    try:
        found = attention_map(data)
    except InputError as error:
        remarks.append(f"The attention weights are left out: {error}")
        found = None
    if found is not None:
        layers = {f"{title}, mean over its heads": weights for title, weights in found.layers.items()}
        caption = (
            f"Attention over the beginning of the last sample, after step {count(found.step)}: each row is a query, "
            "each column a key. The darker, the larger the weight (on a square-root scale); black is 1."
        )
        pictures["attention"] = Picture(plots.attention(found.tokens, layers), caption, wide=len(layers) > 1)
    return pictures


NEAR_FLOOR, FAR_FROM_FLOOR = 15.0, 50.0
"""Percent above the entropy floor."""
OVERFITTING = 0.05
"""Relative rise of the validation loss above its minimum, or gap between training and validation loss."""
UNDERTRAINED = 0.01
"""Relative fall of the validation loss over the last fifth of the run."""
LEAST_VALIDATIONS = 5
"""Validations that it takes to say that a model generalizes."""
NO_HELP, HELP = 0.01, 0.05
"""Relative fall of the loss from the beginning of a window to its end."""
JUDGED_STRATEGY = "nucleus 0.9"
SAME_DIVERSITY = 3.0
"""Difference of self-BLEU up to which texts are as diverse as others."""
LOST_RELEVANCE = 0.2
"""Relative loss of relevance compared with the held-out text."""
LOOPING = 0.3
"""Share of trigrams that are repeats."""
STRENGTH, WEAKNESS, NEXT_STEP = "Strengths", "Weaknesses", "What to try next"
Judgment = tuple[str, str]
"""One of these three, and a sentence."""


def _judge_losses(data: RunData) -> Iterator[Judgment]:
    gap = data.test_figures().get("gap_percent", math.nan)
    text = f"Test bits per byte are {percent(gap)} above the entropy floor, which no model can beat"
    if gap <= NEAR_FLOOR:
        yield STRENGTH, f"{text}: close to it."
    elif gap >= FAR_FROM_FLOOR:
        yield WEAKNESS, f"{text}: much is left to learn."
    val, train, epochs = data.curve("step", "val_loss"), data.column("train_loss"), data.column("epoch")
    if len(val) < 2 or not train:
        return
    step, lowest = min(val, key=lambda point: point[1])
    end, last = val[-1]
    figures = f"training loss {number(train[-1])}, validation loss {number(last)}"
    if last > (1 + OVERFITTING) * lowest:
        text = f"the validation loss reached its minimum of {number(lowest)} at step {count(step)}"
        risen, stop = f"{text} and rose to {number(last)}", f"stop after {count(step)} steps"
        _, then = min(data.curve("step", "train_loss"), key=lambda point: abs(point[0] - step))
        if train[-1] < then:
            yield WEAKNESS, f"It overfits: {risen}. By default, evaluations use the best checkpoint."
            yield NEXT_STEP, f"Against overfitting: more text, more --model.dropout, or {stop}: {text}."
        else:
            yield WEAKNESS, f"Training diverged: {risen}, and the training loss rose, too."
            yield NEXT_STEP, f"Against divergence: a lower --optim.lr; {text}."
        return
    if last - train[-1] > OVERFITTING * last:
        yield WEAKNESS, f"Its generalization gap is large: {figures}."
        yield NEXT_STEP, f"More text or --model.dropout would narrow the gap ({figures})."
    elif len(val) >= LEAST_VALIDATIONS and epochs and epochs[-1] >= 1 and not data.streamed:
        yield STRENGTH, f"It generalizes: {figures} after {facts.passes(data)} and {len(val)} validations."
    earlier = [loss for step, loss in val if step <= 0.8 * end]
    if earlier and 1 - last / earlier[-1] > UNDERTRAINED:
        fall = percent(100 * (1 - last / earlier[-1]))
        text = f"over the last fifth of the steps the validation loss still fell by {fall}"
        yield WEAKNESS, f"It is undertrained: {text}."
        yield NEXT_STEP, f"Train longer: {text}."


def _judge_context(data: RunData) -> Iterator[Judgment]:
    if data.positions is None or len(data.positions.points) < 2:
        return
    (near, first), *_, (far, last) = data.positions.points
    figures = f"the loss is {number(first)} with {plural(near, 'token')} of context"
    figures += f" and {number(last)} with about {count(far)}"
    if first - last >= HELP * first:
        yield STRENGTH, f"It uses its context: {figures}."
    elif first - last < NO_HELP * first:
        yield WEAKNESS, f"Context hardly helps it: {figures}."


def _judge_texts(data: RunData) -> Iterator[Judgment]:
    shares = {e.metric: e.value for e in data.evals if e.task == "stories"}
    for metric in ("grammatical", "consistent"):
        share = shares.get(metric, 0.7)
        if not 0.5 < share < 0.9:
            yield STRENGTH if share >= 0.9 else WEAKNESS, f"{percent(100 * share)} of its stories are {metric}."
    repeated = max((repeated_trigrams(s.text) for s in data.samples if s.strategy == "greedy"), default=0.0)
    if repeated > LOOPING:
        share = f"{percent(100 * repeated)} of trigrams"
        yield WEAKNESS, f"Greedy decoding loops: {share} are repeats."
        yield NEXT_STEP, f"Sample with --top-p 0.9 instead of --greedy, which repeats itself ({share})."
    if data.texts is None:
        return
    model, human = data.texts.figures_of(JUDGED_STRATEGY), data.texts.figures_of(HELD_OUT)
    both = {name: (model[name], human[name]) for name in model.keys() & human.keys()}
    said = {name: f"{number(ours, 3)} against {number(theirs, 3)}" for name, (ours, theirs) in both.items()}
    relevance, held_out_relevance = both.get("relevance", (0.0, 0.0))
    less_relevant = relevance < (1 - LOST_RELEVANCE) * held_out_relevance
    if less_relevant:
        text = "Its texts refer less to what the prompt mentions than the held-out text does"
        yield WEAKNESS, f"{text}: relevance {said['relevance']}."
    if "self_bleu" in both:
        more_alike = both["self_bleu"][0] - both["self_bleu"][1]
        text = f"With {JUDGED_STRATEGY} its texts are {{}} the held-out text: self-BLEU {said['self_bleu']}"
        if abs(more_alike) > SAME_DIVERSITY:
            yield WEAKNESS, f"{text.format('less diverse than' if more_alike > 0 else 'more diverse than')}."
        elif held_out_relevance > 0 and not less_relevant:
            nearly = "" if relevance >= held_out_relevance else "nearly "
            yield STRENGTH, f"{text.format(f'as diverse and {nearly}as relevant as')}, relevance {said['relevance']}."


def repeated_trigrams(text: str) -> float:
    """Return the share of word trigrams that occurred earlier in the text."""
    words = text.split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0
