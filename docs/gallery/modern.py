"""Fill in the tables of modern/README.md and draw its pictures from the comparisons that make.sh has run.

    python docs/gallery/modern.py WORK

WORK holds the comparisons `alone`, `more` and `budgets` of each corpus (`stories-alone`), and those of long contexts
(`context-1024`). A part has two figures on a corpus, each paired by seed with GPT-2's: the difference in test loss
after equally many steps, and after equally much time. For the second, GPT-2 was also trained for more and for fewer
steps, each with its own schedule. If a step with the part takes r times as long, its loss after 300 steps is compared
with GPT-2's after 300 r, which is interpolated between those lengths. r is the median over rounds in which every
variant does a step, in CPU time of one thread. What is measured here is kept in costs.json and contexts.json, and
measured again if it is not there.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch

from gpt2lab.compare.results import Difference, Outcome, paired_difference, recorded_outcomes
from gpt2lab.evaluation.measure import LoadedRun
from gpt2lab.evaluation.perplexity import HeldOut, perplexity_of
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.plots import LINES, MARKERS, RULE, TRAIN, VAL, write_png
from gpt2lab.runs import Run
from gpt2lab.training.config import OptimConfig, saved_model
from gpt2lab.training.optim import make_optimizer

FOLDER = Path(__file__).parent / "modern"
STEPS, ROUNDS = 300, 15
REFERENCE, WIDER = "GPT-2", "wider GPT-2 (152)"
CORPORA = {"stories": "the stories", "shakespeare": "Tiny Shakespeare"}
TRAINED = (1024, 2048)
"""Contexts in training."""
CONTEXTS = (256, 512, 1024, 2048, 4096)
"""Contexts in which the test text is read."""

Losses = dict[int, float]
"""Test loss by seed, in nats per token."""


class Row(NamedTuple):
    """What one variant did to GPT-2 on one corpus."""

    name: str
    outcomes: list[Outcome]
    steps: Difference
    """Difference in test loss after equally many steps."""
    time: Difference
    """The same after equally much time."""
    cost: float
    """Time of a step over that of GPT-2's."""

    @property
    def added(self) -> bool:
        """Whether its part was added to others."""
        return self.name[0].isdigit()


class Study(NamedTuple):
    """The comparisons on one corpus."""

    rows: dict[str, Row]
    budgets: dict[int, Losses]
    """GPT-2's losses by the number of its steps."""


def losses(outcomes: list[Outcome]) -> Losses:
    """Return the test losses of the runs of one arm."""
    return {outcome.seed: outcome.figures["test_loss"] for outcome in outcomes}


def arms_of(work: Path, *names: str) -> dict[str, list[Outcome]]:
    """Return the finished runs of comparisons by their arms."""
    arms: dict[str, list[Outcome]] = {}
    for name in names:
        for outcome in recorded_outcomes(work / name):
            if not outcome.usable:
                raise SystemExit(f"{outcome.path}: {outcome.status}")
            arms.setdefault(outcome.arm, []).append(outcome)
    return arms


def costs(models: dict[str, GPTConfig]) -> dict[str, float]:
    """Return the CPU time of a training step in bf16, of 2,048 tokens, relative to GPT-2's."""
    torch.set_num_threads(1)
    built = {name: GPT(config) for name, config in models.items()}
    optimizers = {name: make_optimizer(model, OptimConfig(name="muon")) for name, model in built.items()}
    seconds: dict[str, list[float]] = {name: [] for name in built}
    tokens = torch.randint(models[REFERENCE].vocab_size, (8, 256))
    for _ in range(ROUNDS + 2):  # the first two warm up
        for name, model in built.items():
            begin = time.process_time()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(tokens, tokens).loss
            loss.backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            seconds[name].append(time.process_time() - begin)
    first = seconds[REFERENCE][2:]
    return {name: statistics.median(a / b for a, b in zip(s[2:], first, strict=True)) for name, s in seconds.items()}


def losses_after(count: float, budgets: dict[int, Losses]) -> Losses:
    """Return GPT-2's losses after a number of steps: straight lines over its logarithm, continued beyond the ends."""
    steps, at = np.log(sorted(budgets)), np.log(count)
    low = int(np.clip(np.searchsorted(steps, at) - 1, 0, len(steps) - 2))
    share = (at - steps[low]) / (steps[low + 1] - steps[low])
    before, after = (budgets[sorted(budgets)[place]] for place in (low, low + 1))
    return {seed: (1 - share) * before[seed] + share * after[seed] for seed in before.keys() & after.keys()}


def study_of(work: Path, corpus: str) -> Study:
    """Compare every arm with GPT-2 on one corpus."""
    lengths = arms_of(work, f"{corpus}-budgets")
    wider = {WIDER: lengths.pop("wider")}
    arms = arms_of(work, f"{corpus}-alone", f"{corpus}-more") | wider
    models = {name: saved_model(Run(Path(outcomes[0].path))) for name, outcomes in arms.items()}
    cost = kept("costs", corpus, lambda: costs(models))
    budgets = {int(steps): losses(outcomes) for steps, outcomes in lengths.items()} | {STEPS: losses(arms[REFERENCE])}
    rows = {}
    for name, outcomes in arms.items():
        own, at_equal_time = losses(outcomes), losses_after(STEPS * cost[name], budgets)
        steps, equal_time = difference(budgets[STEPS], own), difference(at_equal_time, own)
        rows[name] = Row(name, outcomes, steps, equal_time, cost[name])
    return Study(rows, budgets)


def difference(reference: Losses, other: Losses) -> Difference:
    """Return the paired difference of two arms, which share their seeds."""
    found = paired_difference(reference, other)
    assert found is not None
    return found


def kept(file: str, key: str, measure: Callable[[], Any]) -> Any:
    """Return what a file beside the page has under a key, after measuring it if it has nothing."""
    path = FOLDER / f"{file}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if key not in found:
        found[key] = measure()
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found[key]


def signed(difference: Difference) -> str:
    """Return a difference with its interval, and a word if the interval leaves out 0."""
    low, high = difference.low, difference.high
    assert low is not None
    assert high is not None
    verdict = {"lower": " **better**", "higher": " *worse*"}.get(difference.verdict, "")
    return f"{difference.mean:+.4f} [{low:+.4f}, {high:+.4f}]{verdict}".replace("-", "−")


def table(rows: list[Row]) -> str:
    """Return the rows as a table of Markdown."""
    lines = [
        "| | parameters | cache, bytes a token | memory, MiB | test loss | equal steps | cost of a step | equal time |",
        "|---|---:|---:|---:|---:|---|---:|---|",
    ]
    for row in rows:
        figures = row.outcomes[0].figures
        loss = statistics.fmean(losses(row.outcomes).values())
        memory = statistics.fmean(outcome.figures["peak_memory_mb"] for outcome in row.outcomes)
        is_reference = row.name == REFERENCE
        compared = ["", "1.00", ""] if is_reference else [signed(row.steps), f"{row.cost:.2f}", signed(row.time)]
        sizes = [figures["parameters"], figures["cache_bytes"], memory]
        cells = [row.name, *(f"{size:,.0f}" for size in sizes), f"{loss:.4f}"]
        lines.append("| " + " | ".join([*cells, *compared]) + " |")
    return "\n".join(lines)


def agreement(studies: dict[str, Study]) -> str:
    """Return on how many parts the two corpora agree, as a table of Markdown."""
    first, second = (study.rows for study in studies.values())
    parts = [name for name, row in first.items() if not row.added and name not in (REFERENCE, WIDER)]
    steps = counts_of([(first[name].steps, second[name].steps) for name in parts])
    equal_time = counts_of([(first[name].time, second[name].time) for name in parts])
    lines = [f"| of {len(parts)} parts | equal steps | equal time |", "|---|---:|---:|"]
    return "\n".join([*lines, *(f"| {row} | {steps[row]} | {equal_time[row]} |" for row in steps)])


def counts_of(pairs: list[tuple[Difference, Difference]]) -> dict[str, str]:
    """Return how the differences on two corpora agree."""
    clear = [(a, b) for a, b in pairs if {a.verdict, b.verdict} <= {"lower", "higher"}]
    same = sum(a.verdict == b.verdict for a, b in clear)
    ranks = [np.argsort(np.argsort([pair[corpus].mean for pair in pairs])).tolist() for corpus in (0, 1)]
    return {
        "better on both or worse on both": str(same),
        "better on one, worse on the other": str(len(clear) - same),
        "no difference shown on at least one": str(len(pairs) - len(clear)),
        "Spearman's rank correlation of the differences": f"{statistics.correlation(*ranks):.2f}".replace("-", "−"),
    }


def budget_table(studies: dict[str, Study]) -> str:
    """Return what GPT-2 gains by more steps and loses by fewer, as a table of Markdown."""
    lengths = sorted({steps for study in studies.values() for steps in study.budgets} - {STEPS})
    lines = ["| | " + " | ".join(f"{steps} steps" for steps in lengths) + " |", "|---|" + "---|" * len(lengths)]
    for corpus, (_, budgets) in studies.items():
        cells = [signed(difference(budgets[STEPS], budgets[n])) if n in budgets else "not trained" for n in lengths]
        lines.append(f"| {CORPORA[corpus]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_parts(studies: dict[str, Study]) -> None:
    """Draw the differences of all parts with their intervals: a panel per corpus, best first on the first corpus."""
    first = next(iter(studies.values())).rows
    names = sorted(
        (name for name, row in first.items() if not row.added and name != REFERENCE),
        key=lambda name: -first[name].steps.mean,
    )
    figure, panels = plt.subplots(1, 2, figsize=(10, 0.3 * len(names) + 1.4), sharey=True, layout="constrained")
    for axes, (corpus, study) in zip(panels, studies.items(), strict=True):
        rows = [study.rows[name] for name in names]
        steps = (0.14, TRAIN, "o", "after equally many steps", [row.steps for row in rows])
        equal_time = (-0.14, VAL, "s", "after equally much time", [row.time for row in rows])
        for offset, color, marker, label, differences in (steps, equal_time):
            means = [difference.mean for difference in differences]
            half = [(difference.high or 0.0) - difference.mean for difference in differences]
            places = [place + offset for place in range(len(rows))]
            axes.errorbar(means, places, xerr=half, fmt=marker, ms=4, color=color, label=label, lw=1.3)
        axes.axvline(0, color="gray", lw=0.8)
        axes.grid(axis="y", color=RULE, lw=0.5)
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.locator_params(axis="x", nbins=6)
        axes.set_title(f"on {CORPORA[corpus]}", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    label = "difference in test loss to GPT-2, nats per token (left is better), 95 % interval; the two scales differ"
    figure.supxlabel(label, fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    write_png(FOLDER / "parts.png", figure)


Contexts = dict[str, dict[str, list[float]]]
"""Test losses of the seeds, by the arm and by the context in which the text is read."""


def contexts_of(work: Path, trained: int) -> Contexts:
    """Return the losses of the arms that were trained at one context."""
    arms = arms_of(work, f"context-{trained}")
    return kept("contexts", str(trained), lambda: {name: losses_by_context(runs) for name, runs in arms.items()})


def losses_by_context(outcomes: list[Outcome]) -> dict[str, list[float]]:
    """Return the test losses of the runs of an arm in windows of each length, with half of it as stride.

    Positions that are not a table let the same weights read more than they were trained on.
    """
    found: dict[str, list[float]] = {}
    for outcome in outcomes:
        loaded = LoadedRun(Path(outcome.path), "last", "cpu", "fp32")
        held_out = HeldOut.of_split(loaded.dataset(None), "test", words=1)
        config = loaded.gpt.config
        for length in CONTEXTS:
            if length > config.n_ctx and config.position == "learned":
                continue
            model = GPT(dataclasses.replace(config, n_ctx=max(length, config.n_ctx))).eval()
            model.load_state_dict(loaded.gpt.state_dict())
            found.setdefault(str(length), []).append(perplexity_of(model, held_out, length, length // 2).loss)
    return found


def context_table(contexts: dict[int, Contexts]) -> str:
    """Return mean losses by context, as a table of Markdown."""
    lines = [
        "| trained at | | " + " | ".join(f"{c:,}" for c in CONTEXTS) + " |",
        "|---:|---|" + "---:|" * len(CONTEXTS),
    ]
    for trained, arms in contexts.items():
        for name, by_length in arms.items():
            values = [by_length.get(str(length)) for length in CONTEXTS]
            cells = [f"{statistics.fmean(v):.3f}" if v else "not possible" for v in values]
            lines.append(f"| {trained:,} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_contexts(contexts: dict[int, Contexts]) -> None:
    """Draw the loss of each arm by the context in which it was measured: a panel per context in training."""
    figure, panels = plt.subplots(1, len(contexts), figsize=(10, 4.4), sharey=True, layout="constrained")
    styles = list(contexts[TRAINED[0]])
    for axes, (trained, arms) in zip(panels, contexts.items(), strict=True):
        for name, by_length in arms.items():
            means = {int(length): statistics.fmean(values) for length, values in by_length.items()}
            style = styles.index(name)
            axes.plot(
                *zip(*means.items(), strict=True), marker=MARKERS[style], color=LINES[style], lw=1.3, ms=5, label=name
            )
        axes.axvline(trained, color="gray", lw=0.8, ls=":")
        axes.set_xscale("log", base=2)
        axes.set_xticks(CONTEXTS, [f"{c:,}" for c in CONTEXTS])
        axes.set_title(f"trained at {trained:,} tokens", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test loss, nats per token")
    figure.supxlabel("context in which the test text is read", fontsize=10)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=9
    )
    write_png(FOLDER / "contexts.png", figure)


def fill_in(page: str, name: str, text: str) -> str:
    """Replace what stands between the two comments of a name."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


def main() -> None:
    """Read the comparisons, and write the page and its pictures."""
    work = Path(sys.argv[1])
    studies = {corpus: study_of(work, corpus) for corpus in CORPORA}
    tables = {"agreement": agreement(studies), "budgets": budget_table(studies)}
    for corpus, (rows, _) in studies.items():
        alone = [row for row in rows.values() if not row.added]
        tables[f"alone, {corpus}"] = table(sorted(alone, key=lambda row: row.steps.mean))
        added = [row for row in rows.values() if row.added]
        tables[f"together, {corpus}"] = table([rows[REFERENCE], rows["rotary"], *added])
    contexts = {trained: contexts_of(work, trained) for trained in TRAINED}
    tables["contexts"] = context_table(contexts)
    draw_parts(studies)
    draw_contexts(contexts)
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name, text in tables.items():
        page = fill_in(page, name, text)
    (FOLDER / "README.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
