"""What ``gpt2lab quickstart`` does: from text to a trained GPT-2 and its report, on any machine.

text -> tokenizer -> token shards -> training -> test perplexity -> samples of each decoding strategy -> report.html

It ends after a promised number of minutes: once the data is there, the speed of a few steps is measured, and `choose`
takes the size of the model and the number of steps that fill what is left.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from gpt2lab import console, runtime
from gpt2lab.cli.train import Quickstart
from gpt2lab.console import log
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.prepare import prepare
from gpt2lab.data.sources import texts
from gpt2lab.errors import InputError, require
from gpt2lab.evaluation.measure import LoadedRun, Measurement
from gpt2lab.evaluation.perplexity import perplexity_of
from gpt2lab.evaluation.text_quality import judge_stories
from gpt2lab.files import free_path
from gpt2lab.generation import STRATEGIES, generate_texts
from gpt2lab.lab.train import step_seconds, train
from gpt2lab.model.config import GPTConfig
from gpt2lab.report.write import write_report
from gpt2lab.runs import Run
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.config import OptimConfig, TrainConfig, saved_config
from gpt2lab.training.distributed import Interrupted

DEFAULT_OUT = Path("runs/quickstart")
VOCABULARY = 2_048
DOCUMENTS = 20_000
TOKENIZER_DOCUMENTS = 2_000
"""A tenth of the stories contains every word."""


class Size(NamedTuple):
    """A model, and AdamW's learning rate for its width."""

    model: GPTConfig
    lr: float


SIZES = {
    "small": Size(GPTConfig(n_layer=2, n_head=4, n_embd=128, n_ctx=256, dropout=0.0), 4e-3),
    "medium": Size(GPTConfig(n_layer=4, n_head=4, n_embd=192, n_ctx=256, dropout=0.0), 3e-3),
    "large": Size(GPTConfig(n_layer=6, n_head=6, n_embd=384, n_ctx=256, dropout=0.0), 2e-3),
}
"""From small to large, with the same context; two cores train the small one."""
BATCH_TOKENS = 2_048
MINUTES = 3.0
LEAST_STEPS = 400
"""With fewer, the small model does not learn to write sentences."""
LEAST_STEPS_OF_LARGER = 1_000
MANY_STEPS = 4_500
"""A model that gets more is replaced by a larger one, which learns more in the same time."""
VALIDATIONS, VALIDATION_TOKENS = 6, 65_536
OTHER_SECONDS = 20.0
"""Of what does not depend on the speed of a step: importing torch, plots, checkpoints, samples, report. They take
about 13 on two idle cores; the rest is for other work on the machine."""
STRIDE = 64
"""Stride of the test windows: small, so that nearly every token is predicted from its whole story."""
JUDGED_STORIES = 100
SAMPLE_TOKENS = 300


def run_quickstart(asked: Quickstart) -> None:
    """Run every stage, printing progress.

    Raises:
        InputError: The text cannot be read or is too short; ``out`` exists or, to resume, does not; options contradict
            each other.
        Interrupted: Ctrl-C; the state was saved.
    """
    begin = time.perf_counter()
    minutes, steps, out = asked.minutes, asked.steps, asked.out
    require(minutes is None or 0 < minutes < math.inf, "minutes", minutes, "above 0 and finite")
    require(steps is None or steps >= 1, "steps", steps, "at least 1")
    if minutes is not None and steps is not None:
        raise InputError(f"the length is given twice: minutes {minutes:g} and steps {steps}; give one of them")
    runtime.tune_allocator()
    console.log_to_console()
    if asked.resume:
        if asked != Quickstart(out=out, resume=True):
            raise InputError(
                "--resume continues with the original text, seed and steps; leave out --text, --seed, --minutes and "
                "--steps"
            )
        out = out or DEFAULT_OUT
        config = replace(saved_config(Run.open(out)), out=out, resume="last")
    else:
        out = free_path(DEFAULT_OUT) if out is None else out
        Run.require_new(out)
        dataset = _prepare(asked.text, free_path(out.with_name(f"{out.name}-data")))
        shared = TrainConfig(data=dataset.directory, out=out, seed=asked.seed)
        end = begin + 60 * (MINUTES if minutes is None else minutes)
        config = _fill(end, shared, dataset) if steps is None else training("small", steps, shared)
    run = LoadedRun(_train(config).path, "best", "auto", "auto")
    figures = [_perplexity(run)]
    _write_samples(run, config.seed)
    if TokenDataset(config.data).manifest.source.names == ("stories",):
        figures.append(_judge(run, config.seed))
    report = write_report([run.run], run.run.path / "report.html")
    _summary(run.run, figures, time.perf_counter() - begin, report)


def training(size: str, steps: int, shared: TrainConfig) -> TrainConfig:
    """Return the training of a model with the data, directory and seed of ``shared``.

    Whatever happens at intervals, happens at fractions of the steps.
    """

    def fraction(parts: int) -> int:
        return -(-steps // parts)

    model, lr = SIZES[size]
    return replace(
        shared,
        model=model,
        optim=OptimConfig(name="muon", lr=lr, min_lr=lr / 100, warmup_steps=fraction(30)),
        steps=steps,
        batch_tokens=BATCH_TOKENS,
        compile="off",  # in a few minutes, compiling would not pay off
        log_every=fraction(60),
        eval_every=fraction(VALIDATIONS),
        eval_tokens=VALIDATION_TOKENS,
        sample_every=fraction(3),
        checkpoint_every=fraction(3),
    )


class Choice(NamedTuple):
    """A size of `SIZES`, its number of steps, and the seconds that training and evaluating them take."""

    size: str
    steps: int
    step_seconds: float
    seconds: float


def choose(seconds_left: Callable[[], float], seconds_per_step: Callable[[str], float], evaluated: int) -> Choice:
    """Choose the model and the number of steps that fill the time.

    Args:
        seconds_left: Returns the time until the promised end, which measuring shortens.
        seconds_per_step: Measures the time of a step of a size.
        evaluated: Tokens of all validations and the test; a forward pass takes a third of the time of a step.
    """
    evaluating = evaluated / (3 * BATCH_TOKENS)
    chosen: Choice | None = None
    for size in SIZES:
        each = seconds_per_step(size)
        steps = int((seconds_left() - OTHER_SECONDS) / each - evaluating)
        if chosen is not None and steps < LEAST_STEPS_OF_LARGER:
            break
        chosen = Choice(size, max(LEAST_STEPS, steps), each, each * (max(LEAST_STEPS, steps) + evaluating))
        if steps <= MANY_STEPS:
            break
    assert chosen is not None  # of the first size
    return chosen


def _fill(end: float, shared: TrainConfig, dataset: TokenDataset) -> TrainConfig:
    """Measure this machine, choose the training with which the command ends at ``end``, and say why."""

    def seconds_left() -> float:
        return end - time.perf_counter()

    evaluated = VALIDATIONS * VALIDATION_TOKENS
    evaluated += dataset.manifest.splits["test"].tokens * SIZES["small"].model.n_ctx // STRIDE
    found = choose(seconds_left, lambda size: step_seconds(training(size, LEAST_STEPS, shared)), evaluated)
    log.info(
        "a step of the %s model takes %.3g ms here: %s steps, %s, take about %.0f s",
        *(found.size, 1000 * found.step_seconds, f"{found.steps:,}"),
        "as many as end in time" if found.steps > LEAST_STEPS else "the fewest allowed",
        found.seconds,
    )
    return training(found.size, found.steps, shared)


def _prepare(text: Path | None, folder: Path) -> TokenDataset:
    sources = ["stories" if text is None else str(text)]
    log.info("1. training a tokenizer of %s entries on %s", f"{VOCABULARY:,}", sources[0])
    corpus = texts(sources, max_documents=TOKENIZER_DOCUMENTS if text is None else None)
    with console.merging_bar() as (_, progress):
        tokenizer = Tokenizer.train(corpus, VOCABULARY, progress=progress)
    log.info("2. writing token shards to %s", folder)
    with console.counting("preparing") as show:
        dataset = prepare(
            sources,
            tokenizer,
            folder,
            max_documents=DOCUMENTS if text is None else None,
            progress=lambda n, size, *_: show(f"{n:,} documents, {size / 1e6:.1f} MB"),
        )
    n_ctx = SIZES["small"].model.n_ctx
    for split, info in dataset.manifest.splits.items():  # before training, and leaving nothing behind
        if info.tokens <= n_ctx:
            shutil.rmtree(dataset.directory)
            raise InputError(
                f"the text is too short: its {split} split has {info.tokens} tokens, fewer than one window of "
                f"{n_ctx + 1}; give more text (about 50 kB)"
            )
    part = dataset.manifest.splits["train"]
    log.info("%s training tokens, %.2f bytes per token", f"{part.tokens:,}", part.bytes / part.tokens)
    return dataset


def _train(config: TrainConfig) -> Run:
    model = config.essentials().model
    log.info("3. training a GPT-2 of %d layers, width %d, in %s", model.n_layer, model.n_embd, config.out)
    try:
        with console.training_bar() as on_step:
            return train(config, on_step)
    except Interrupted as stop:
        raise Interrupted(stop.signal, stop.run, stop.step, "quickstart") from stop


def _perplexity(run: LoadedRun) -> Measurement:
    log.info("4. measuring perplexity on the test split")
    with run.held_out(None, "test", None) as test, console.bar("tokens") as progress, run.runtime.autocast():
        found = perplexity_of(run.model, test, run.model.config.n_ctx, STRIDE, progress=progress)
    measured = Measurement("perplexity", test.name, found.protocol, found.figures)
    measured.record(run.run, run.checkpoint.step)
    log.info("protocol: %s", measured.protocol)
    return measured


def _write_samples(run: LoadedRun, seed: int) -> None:
    log.info("5. sampling with each decoding strategy")
    for name, strategy in STRATEGIES.items():
        for text in _texts(run, name, 1 if strategy.greedy else 2, seed):
            run.run.add_sample(run.checkpoint.step, str(strategy), "", text)
        log.info("[%s]\n%s\n", strategy, run.run.samples()[-1]["text"])


def _judge(run: LoadedRun, seed: int) -> Measurement:
    log.info("6. checking %d of its stories for grammar and consistency", JUDGED_STORIES)
    quality = judge_stories(_texts(run, "nucleus", JUDGED_STORIES, seed))
    measured = Measurement("stories", "samples", f"{STRATEGIES['nucleus']}: {quality.protocol}", quality.figures)
    measured.record(run.run, run.checkpoint.step)
    for broken in quality.errors:
        log.info("%s", broken)
    return measured


def _texts(run: LoadedRun, name: str, samples: int, seed: int) -> list[str]:
    """Return texts of a decoding strategy from an empty prompt; each strategy has its own seed."""
    strategy, seed = STRATEGIES[name], seed + list(STRATEGIES).index(name)
    return generate_texts(run.model, run.tokenizer, "", samples, SAMPLE_TOKENS, strategy, seed, run.runtime)


def _summary(run: Run, figures: list[Measurement], seconds: float, report: Path) -> None:
    table = Table(title="results", show_header=False)
    for measured in figures:
        for name, value in measured.figures.items():
            table.add_row(f"{measured.split} {name.replace('_', ' ')}", f"{value:.3f}")
    table.add_row("peak memory", f"{runtime.peak_memory_mb(runtime.resolve().device):,.0f} MiB")
    table.add_row("time", f"{seconds:.0f} s")
    console.console.print(table)
    console.console.print(f"open   {report}\n       {run.path / 'curves.png'}", markup=False)
    console.console.print(f"next   gpt2lab play {run.path}", markup=False)
