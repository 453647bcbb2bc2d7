"""Fill in the tables of modern/README.md and draw its pictures from the comparisons that make.sh has run.

    python docs/gallery/modern.py WORK

WORK holds the comparisons `alone`, `more`, `budgets` and `context-1024`. A part has two figures,
each paired by seed with GPT-2's: the difference in test loss after equally many steps, and after equally much time. For
the second, GPT-2 was also trained for more and for fewer steps, each with its own schedule. If a step with the part
takes r times as long, its loss after 300 steps is compared with GPT-2's after 300 r, which is interpolated between
those lengths. r is the median over rounds in which every variant does a step, in CPU time of one thread.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch

from gpt2lab.compare.results import Difference, Outcome, paired_difference, recorded_outcomes
from gpt2lab.evaluation.measure import LoadedRun
from gpt2lab.evaluation.perplexity import HeldOut, perplexity_of
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.plots import LINES, MARKERS, TRAIN, VAL, write_png
from gpt2lab.runs import Run
from gpt2lab.training.config import OptimConfig, saved_model
from gpt2lab.training.optim import make_optimizer

FOLDER = Path(__file__).parent / "modern"
STEPS, ROUNDS = 300, 15
REFERENCE = "GPT-2"
BUDGETS = {"270": 270, REFERENCE: STEPS, "330": 330, "420": 420}
CONTEXTS = (256, 512, 1024, 2048, 4096)

Losses = dict[int, float]
"""Test loss by seed, in nats per token."""


class Row(NamedTuple):
    """What one variant did to GPT-2."""

    name: str
    outcomes: list[Outcome]
    steps: Difference
    """Difference in test loss after equally many steps."""
    time: Difference
    """The same after equally much time."""
    cost: float
    """Time of a step over that of GPT-2's."""


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


def at_equal_time(budgets: dict[int, Losses], cost: float) -> Losses:
    """Return GPT-2's losses after 300 steps times ``cost``: straight lines over the logarithm of the steps."""
    steps = np.log(sorted(budgets))
    at = np.log(STEPS * cost)
    low = int(np.clip(np.searchsorted(steps, at) - 1, 0, len(steps) - 2))
    share = (at - steps[low]) / (steps[low + 1] - steps[low])
    before, after = (budgets[sorted(budgets)[place]] for place in (low, low + 1))
    return {seed: (1 - share) * before[seed] + share * after[seed] for seed in before}


def rows_of(arms: dict[str, list[Outcome]], lengths: dict[str, list[Outcome]]) -> list[Row]:
    """Compare every arm with GPT-2."""
    cost = cached_costs({name: saved_model(Run(Path(outcomes[0].path))) for name, outcomes in arms.items()})
    budgets = {steps: losses((arms if name == REFERENCE else lengths)[name]) for name, steps in BUDGETS.items()}
    rows = []
    for name, outcomes in arms.items():
        own = losses(outcomes)
        steps = paired_difference(budgets[STEPS], own)
        equal_time = paired_difference(at_equal_time(budgets, cost[name]), own)
        assert steps is not None
        assert equal_time is not None
        rows.append(Row(name, outcomes, steps, equal_time, cost[name]))
    return rows


def cached_costs(models: dict[str, GPTConfig]) -> dict[str, float]:
    """Return the costs of a step, measured at the first call and kept beside the page."""
    file = FOLDER / "costs.json"
    if not file.exists():
        file.write_text(json.dumps(costs(models), indent=1) + "\n", encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


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


def draw_parts(rows: list[Row]) -> None:
    """Draw the differences of all parts with their intervals, best first."""
    rows = sorted((row for row in rows if row.name != REFERENCE), key=lambda row: -row.steps.mean)
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(rows) + 1.2), layout="constrained")
    steps = (0.14, TRAIN, "after equally many steps", [row.steps for row in rows])
    equal_time = (-0.14, VAL, "after equally much time", [row.time for row in rows])
    for offset, color, label, differences in (steps, equal_time):
        means = [difference.mean for difference in differences]
        half = [(difference.high or 0.0) - difference.mean for difference in differences]
        places = [place + offset for place in range(len(rows))]
        axes.errorbar(means, places, xerr=half, fmt="o", ms=4, color=color, label=label, lw=1.3)
    axes.axvline(0, color="gray", lw=0.8)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_xlabel("difference in test loss to GPT-2, nats per token (left is better), 95 % interval")
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    write_png(FOLDER / "parts.png", figure)


def by_context(arms: dict[str, list[Outcome]]) -> dict[str, dict[str, list[float]]]:
    """Return the test losses of each arm by the length of the windows; measured at the first call and kept."""
    file = FOLDER / "contexts.json"
    if not file.exists():
        found: dict[str, dict[str, list[float]]] = {}
        for name, outcomes in arms.items():
            for outcome in outcomes:
                for length, loss in losses_by_context(Path(outcome.path)).items():
                    found.setdefault(name, {}).setdefault(str(length), []).append(loss)
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def losses_by_context(run: Path) -> dict[int, float]:
    """Return the test loss of a run in windows of each length, with half of it as stride.

    Positions that are not a table let the same weights read more than they were trained on.
    """
    loaded = LoadedRun(run, "last", "cpu", "fp32")
    held_out = HeldOut.of_split(loaded.dataset(None), "test", words=1)
    config = loaded.gpt.config
    lengths = [length for length in CONTEXTS if length <= config.n_ctx or config.position != "learned"]
    found = {}
    for length in lengths:
        model = GPT(dataclasses.replace(config, n_ctx=max(length, config.n_ctx))).eval()
        model.load_state_dict(loaded.gpt.state_dict())
        found[length] = perplexity_of(model, held_out, length, length // 2).loss
    return found


def context_table(arms: dict[str, list[Outcome]]) -> str:
    """Return mean losses by context, as a table of Markdown."""
    lines = ["| | " + " | ".join(f"{c:,}" for c in CONTEXTS) + " |", "|---|" + "---:|" * len(CONTEXTS)]
    for name, by_length in by_context(arms).items():
        cells = []
        for length in CONTEXTS:
            values = by_length.get(str(length))
            cells.append(f"{statistics.fmean(values):.3f}" if values else "not possible")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_contexts(arms: dict[str, list[Outcome]]) -> None:
    """Draw the loss of each arm by the context in which it was measured."""
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for index, (name, by_length) in enumerate(by_context(arms).items()):
        lengths = sorted(map(int, by_length))
        means = [statistics.fmean(by_length[str(length)]) for length in lengths]
        axes.plot(lengths, means, marker=MARKERS[index], color=LINES[index % len(LINES)], lw=1.3, ms=5, label=name)
    axes.axvline(1024, color="gray", lw=0.8, ls=":")
    axes.set_xscale("log", base=2)
    axes.set_xticks(CONTEXTS, [f"{c:,}" for c in CONTEXTS])
    axes.set_xlabel("context in which the test text is read; trained at 1,024")
    axes.set_ylabel("test loss, nats per token")
    axes.legend(frameon=False, fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    write_png(FOLDER / "contexts.png", figure)


def fill_in(page: str, name: str, text: str) -> str:
    """Replace what stands between the two comments of a name."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


def main() -> None:
    """Read the comparisons, and write the page and its pictures."""
    work = Path(sys.argv[1])
    lengths = arms_of(work, "budgets")
    wider = {"wider GPT-2 (152)": lengths.pop("wider")}
    rows = {row.name: row for row in rows_of(arms_of(work, "alone", "more") | wider, lengths)}
    alone = [row for row in rows.values() if not row.name[0].isdigit()]
    draw_parts(alone)
    alone.sort(key=lambda row: row.steps.mean)
    steps = [rows[REFERENCE], rows["rotary"], *(row for row in rows.values() if row.name[0].isdigit())]
    contexts = arms_of(work, "context-1024")
    draw_contexts(contexts)
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    tables = {"alone": table(alone), "together": table(steps), "contexts": context_table(contexts)}
    for name, text in tables.items():
        page = fill_in(page, name, text)
    (FOLDER / "README.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
