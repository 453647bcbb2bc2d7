"""From run directories to what a report says of them; nothing else is read."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median

import gpt2lab
from gpt2lab import formatting
from gpt2lab.compare.output import outcomes_of
from gpt2lab.compare.results import Outcome, compare_outcomes
from gpt2lab.evaluation.text_quality import completions, text_table
from gpt2lab.report.document import Curves, Evaluation, Fact, KeyFigure, Report, RunContent, Sample, Series, Strategy
from gpt2lab.report.facts import (
    deviations,
    environment,
    flatten,
    model_facts,
    published,
    published_losses,
    references,
    strengths,
    summary,
    task,
    training_facts,
    weaknesses,
)
from gpt2lab.report.plots import PositionCurve
from gpt2lab.report.run_data import Evaluated, Record, Written, attention_map, read
from gpt2lab.runs import Run

SHOWN = 3
"""Texts shown of each strategy."""
OTHERS = 6
"""Texts shown of other steps, at most."""
LONGEST = 4_000
"""Characters shown of a text."""


def gather(runs: Sequence[Run], notes: str = "", outcomes: Sequence[Outcome] | None = None) -> Report:
    """Read run directories and return what there is to say of them, in their order, with the author's own notes.

    Args:
        runs: What is reported on.
        notes: Paragraphs that empty lines part.
        outcomes: What is compared; without it, several runs by the options in which they differ.
    """
    names = _names(runs) if outcomes is None else _named(runs, outcomes)
    if outcomes is None and len(runs) > 1:
        outcomes = outcomes_of(runs)
    paths = {str(run.path) for run in runs}
    pictured = paths if outcomes is None else _first_of_each_arm([o for o in outcomes if o.path in paths])
    contents = tuple(
        _run_content(read(run), name, str(run.path) in pictured) for run, name in zip(runs, names, strict=True)
    )
    title = names[0] if len(names) == 1 else f"{len(names)} runs: {', '.join(names)}"
    comparison = None if outcomes is None else compare_outcomes(outcomes)
    paragraphs = tuple(" ".join(part.split()) for part in notes.split("\n\n") if part.strip())
    return Report(title, contents, gpt2lab.__version__, comparison, paragraphs, references(comparison is not None))


def _named(runs: Sequence[Run], outcomes: Sequence[Outcome]) -> list[str]:
    """Return what a comparison calls the runs, or the directories' names where that tells them not apart."""
    called = {o.path: f"{o.arm}, seed {o.seed}" for o in outcomes}
    names = [called[str(run.path)] for run in runs]
    return names if len(set(names)) == len(names) else _names(runs)


def _first_of_each_arm(outcomes: Sequence[Outcome]) -> set[str]:
    """Return the paths of the runs that have pictures of their own: an arm's others differ by their seed only.

    Of an arm without a finished run it is the first one that has begun.
    """
    first: dict[str, str] = {}
    for outcome in sorted(outcomes, key=lambda o: not o.usable):
        first.setdefault(outcome.arm, outcome.path)
    return set(first.values())


def _names(runs: Sequence[Run]) -> list[str]:
    """Return the directories' names, or paths where two have the same name."""
    names = [run.path.resolve().name for run in runs]
    often = Counter(names)
    return [name if often[name] == 1 else str(run.path) for name, run in zip(names, runs, strict=True)]


def _run_content(record: Record, name: str, pictured: bool) -> RunContent:
    return RunContent(
        name=name,
        summary=summary(record),
        remarks=_remarks(record),
        key_figures=_key_figures(record),
        curves=_curves(record),
        evaluations=evaluations(record.evals),
        positions=record.positions if pictured else None,
        positions_caption="" if record.positions is None else _caption(record.positions),
        quality=record.texts if pictured else None,
        texts=None if record.texts is None else text_table(record.texts),
        completions=() if record.texts is None else completions(record.texts),
        strategies=_strategies(record.samples),
        other_steps=_others(record.samples),
        task=task(record),
        model=model_facts(record),
        deviations=deviations(record.options("model")),
        biases=record.options("model").get("bias") is not False,
        cosine=record.options("optim").get("schedule", "cosine") == "cosine",
        training=training_facts(record),
        configuration=flatten(record.config),
        environment=environment(record),
        commands=_commands(record.run),
        strengths=strengths(record),
        weaknesses=weaknesses(record),
        published=tuple(
            Fact(f"{p.who}: {p.what}", formatting.number(p.value), p.difference) for p in published(record)
        ),
        attention=attention_map(record) if pictured else None,
    )


def _remarks(record: Record) -> tuple[str, ...]:
    remarks = list(record.damage)
    losses = [row for row in record.metrics if row["train_loss"] is not None]
    broken = next((row for row in losses if not math.isfinite(row["train_loss"] or 0.0)), None)
    if broken is not None:
        remarks.append(
            f"The training loss is not finite at step {formatting.count(broken['step'] or 0)}: training diverged."
        )
    if not record.state:
        remarks.append("There is no complete checkpoint: the run is unfinished, or its checkpoints were removed.")
    elif record.state.get("finished") is None:
        remarks.append(
            f"The run is unfinished: its newest checkpoint is of step {formatting.setting(record.state.get('step'))}."
        )
    if not record.metrics:
        remarks.append("No training step is recorded.")
    return tuple(remarks)


def _key_figures(record: Record) -> tuple[KeyFigure, ...]:
    rows = record.metrics
    split, figures = record.held_out_figures()
    perplexity, bits, gap = map(figures.get, ("perplexity", "bits_per_byte", "gap_percent"))
    held_out = [row for row in rows if row["val_loss"] is not None and math.isfinite(row["val_loss"])]
    best = min(held_out, key=lambda row: row["val_loss"] or 0.0, default=None)
    speeds, memory, seconds, tokens = (
        record.column(name) for name in ("tokens_per_s", "peak_memory_mb", "seconds", "tokens")
    )
    of = "on the GPU" if str(record.config.get("device")).startswith("cuda") else "of the process"
    seen = f"{formatting.short(tokens[-1])} tokens" if tokens else ""
    return (
        KeyFigure(f"{split.capitalize()} perplexity", _or_none(perplexity), "per token", per_token=True),
        KeyFigure(f"{split.capitalize()} bits per byte", _or_none(bits), "whatever the tokenizer"),
        KeyFigure("Above the entropy floor", _or_none(gap, formatting.percent), f"bits per byte, {split} set", True),
        KeyFigure(
            "Best validation loss",
            _or_none(best["val_loss"] if best else None),
            f"nats per token, step {formatting.count(best['step'] or 0)}" if best else "",
            per_token=True,
        ),
        KeyFigure("Parameters", _or_none(record.parameters, formatting.short), "the head counted once"),
        KeyFigure("Training time", formatting.duration(seconds[-1]) if seconds else None, seen),
        KeyFigure("Tokens per second", formatting.count(median(speeds)) if speeds else None, "median of the recorded"),
        KeyFigure("Peak memory", formatting.memory(max(memory)) if memory else None, of),
        KeyFigure("Tokens seen", formatting.short(tokens[-1]) if tokens else None, _epochs(record)),
    )


def _or_none(value: float | None, say: Callable[[float], str] = formatting.number) -> str | None:
    return None if value is None else say(value)


def _epochs(record: Record) -> str:
    epochs = record.column("epoch")
    unit = "rounds of the stream" if record.streamed else "epochs"
    return f"{formatting.number(epochs[-1], 3)} {unit}" if epochs else ""


def _curves(record: Record) -> Curves:
    names = ("train_loss", "val_loss", "lr", "grad_norm", "tokens_per_s")
    train, val, lr, norm, speed = (_series(record, name) for name in names)
    floor = _floor(record.test_figures())
    lines = tuple((p.who, p.value) for p in published_losses(record))
    return Curves(train, val, lr, norm, speed, floor, lines, _describe(train, val, floor))


def _floor(figures: Mapping[str, float]) -> float | None:
    loss, gap = figures.get("loss", math.nan), figures.get("gap_percent", math.nan)
    return loss / (1 + gap / 100) if math.isfinite(loss) and math.isfinite(gap) else None


def _series(record: Record, name: str) -> Series:
    points = [
        (tokens, value)
        for row in record.metrics
        if (tokens := row["tokens"]) is not None and (value := row[name]) is not None and math.isfinite(value)
    ]
    return Series(tuple(x for x, _ in points), tuple(y for _, y in points))


def _describe(train: Series, val: Series, floor: float | None) -> str:
    """Say in words what the curves show, for those who do not see them."""
    if not train.y:
        return "No loss is recorded."
    said = (
        f"Over {formatting.short(train.x[-1])} tokens the training loss goes from {formatting.number(train.y[0])} to "
        f"{formatting.number(train.y[-1])} nats per token"
    )
    if val.y:
        said += f"; the validation loss ends at {formatting.number(val.y[-1])}"
        said += f", its lowest is {formatting.number(min(val.y))}"
    if floor is not None:
        said += f"; the entropy of the test text, the lowest loss there can be, is {formatting.number(floor)}"
    return said + "."


_METRICS = {
    "loss": ("Loss", "nats per token"),
    "perplexity": ("Perplexity", "per token"),
    "word_perplexity": ("Perplexity", "per word"),
    "bits_per_byte": ("Bits per byte", ""),
    "entropy_floor": ("Entropy of the text, which no model can go below", "bits per byte"),
    "gap_percent": ("Above that entropy", ""),
    "acc": ("Accuracy by the sum", "share of the items"),
    "acc_norm": ("Accuracy normalised by length", "share of the items"),
    "grammatical": ("Grammatical", "share of the texts"),
    "consistent": ("Grammatical and consistent", "share of the texts"),
}
_PERCENT = {"gap_percent": 1, "grammatical": 100, "consistent": 100}
_TITLES = {("stories", "samples"): "The stories that it writes", ("hellaswag", "val"): "HellaSwag"}
_SPLITS = {"test": "the test set", "val": "the validation set", "train": "the training set"}


def evaluations(rows: Iterable[Evaluated]) -> tuple[Evaluation, ...]:
    """Group figures by protocol, newest step first of each; figures of older steps stay in evals.csv."""
    groups: dict[tuple[str, str, str], dict[str, Evaluated]] = {}
    for row in sorted(rows, key=lambda row: row.step):
        groups.setdefault((row.task, row.split, row.protocol), {})[row.metric] = row
    return tuple(
        Evaluation(_evaluation_title(task, split, group.values()), protocol, tuple(_metric(e) for e in group.values()))
        for (task, split, protocol), group in groups.items()
    )


def _evaluation_title(task: str, split: str, group: Iterable[Evaluated]) -> str:
    step = formatting.count(max(e.step for e in group))
    if (task, split) in _TITLES:
        return f"{_TITLES[task, split]}, after step {step}"
    where = f" on {_SPLITS.get(split, split)}" if split in _SPLITS else f": {split}" if split else ""
    return f"{task[:1].upper()}{task[1:].replace('_', ' ')}{where}, after step {step}"


def _metric(e: Evaluated) -> Fact:
    name, unit = _METRICS.get(e.metric, (e.metric.replace("_", " ").capitalize(), ""))
    value = formatting.percent(e.value * _PERCENT[e.metric]) if e.metric in _PERCENT else formatting.number(e.value)
    return Fact(name, value, unit)


def _caption(curve: PositionCurve) -> str:
    where = _SPLITS.get(curve.split, curve.split)
    return f"What context brings, on {where} after step {formatting.count(curve.step)}. {curve.protocol}"


def _main_step(samples: Sequence[Written]) -> int:
    """Return the step with the most strategies, the newest of equals: what is written on the way uses one only."""
    steps = {s.step for s in samples}
    return max(steps, key=lambda step: (len({s.strategy for s in samples if s.step == step}), step), default=0)


def _strategies(samples: Sequence[Written]) -> tuple[Strategy, ...]:
    """Group the texts of the main step by strategy, in the order of each one's last text: training's come first."""
    step = _main_step(samples)
    there = [s for s in samples if s.step == step]
    names = [*dict.fromkeys(s.strategy for s in reversed(there))][::-1]
    return tuple(_strategy([s for s in there if s.strategy == name], LONGEST) for name in names)


def _others(samples: Sequence[Written]) -> tuple[Strategy, ...]:
    """Return the first text of each other step; of some of them, evenly spread, where they are many."""
    main = _main_step(samples)
    steps = sorted({s.step for s in samples if s.step != main})
    picked = steps if len(steps) <= OTHERS else [steps[i * (len(steps) - 1) // (OTHERS - 1)] for i in range(OTHERS)]
    return tuple(_strategy([s for s in samples if s.step == step][:1], LONGEST // 10) for step in picked)


def _strategy(written: Sequence[Written], longest: int) -> Strategy:
    shown = tuple(_sample(s, longest) for s in written[:SHOWN])
    return Strategy(written[0].strategy, formatting.count(written[0].step), len(written), shown)


def _sample(written: Written, longest: int) -> Sample:
    prompt = written.prompt[:longest]
    rest = written.text.removeprefix(written.prompt)
    return Sample(prompt, rest[:longest], written.verdict, cut=len(rest) > longest or len(written.prompt) > longest)


def _commands(run: Run) -> tuple[Fact, ...]:
    path = shlex.quote(run.path.as_posix())
    config, again = shlex.quote((run.path / "config.json").as_posix()), shlex.quote(f"{run.path.as_posix()}-again")
    return (
        Fact("Train it again", f"gpt2lab train --config {config} --out {again}"),
        Fact("Measure it", f"gpt2lab eval perplexity {path}"),
        Fact("Let it write", f'gpt2lab sample {path} --prompt "Once upon a time"'),
        Fact("Make this report", f"gpt2lab report {path} --out report.pdf"),
    )
