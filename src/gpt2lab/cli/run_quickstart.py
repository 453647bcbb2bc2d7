"""What ``gpt2lab quickstart`` does: from text to a trained GPT-2 and its report, on any machine.

text -> tokenizer -> token shards -> training -> test perplexity -> samples of each decoding strategy -> report.html
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from gpt2lab import console, runtime
from gpt2lab.console import log
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.prepare import prepare
from gpt2lab.data.sources import texts
from gpt2lab.errors import InputError
from gpt2lab.evaluation.held_out import HeldOut
from gpt2lab.evaluation.measure import Measurement, measure_perplexity, measure_stories
from gpt2lab.files import free_path
from gpt2lab.generation import STRATEGIES, generate_texts
from gpt2lab.lab.train import train
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.report.write import write_report
from gpt2lab.runs import Run
from gpt2lab.runtime import Runtime
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.checkpoint import load_model
from gpt2lab.training.config import OptimConfig, TrainConfig, saved_config
from gpt2lab.training.distributed import Interrupted

DEFAULT_OUT, SEED = Path("runs/quickstart"), 1337
VOCABULARY = 2_048
DOCUMENTS = 20_000
TOKENIZER_DOCUMENTS = 2_000
"""A tenth of the stories contains every word."""
MODEL = GPTConfig(n_layer=2, n_head=4, n_embd=128, n_ctx=256, dropout=0.0)
OPTIM = OptimConfig(name="muon", lr=4e-3, min_lr=4e-5, warmup_steps=50)
BATCH_TOKENS, STEPS = 2_048, 1_500
STRIDE = 64
"""Stride of the test windows: small, so that nearly every token is predicted from its whole story."""
JUDGED_STORIES = 100
SAMPLE_TOKENS = 300


@dataclass(frozen=True)
class Context:
    """What the stages after training share."""

    run: Run
    model: GPT
    tokenizer: Tokenizer
    step: int
    runtime: Runtime
    seed: int

    def write(self, strategy: str, samples: int) -> list[str]:
        """Return texts of a named strategy from an empty prompt; each strategy has its own seed."""
        chosen, seed = STRATEGIES[strategy], self.seed + list(STRATEGIES).index(strategy)
        return generate_texts(self.model, self.tokenizer, "", samples, SAMPLE_TOKENS, chosen, seed, self.runtime)


def run_quickstart(text: Path | None, out: Path | None, seed: int, resume: bool = False) -> Run:
    """Run every stage, printing progress, and return the run.

    Args:
        text: Training text; None is "stories".
        out: Run directory; None is runs/quickstart, numbered if that exists.
        seed: Random seed of the weights, the data order and the samples.
        resume: Resume the training in ``out``, then run the stages after it.

    Raises:
        InputError: The text cannot be read or is too short; ``out`` exists or, to resume, does not.
        Interrupted: Ctrl-C; the state was saved.
    """
    begin = time.perf_counter()
    runtime.tune_allocator()
    console.log_to_console()
    if resume:
        config = _interrupted(out or DEFAULT_OUT, text, seed)
    else:
        out = free_path(DEFAULT_OUT) if out is None else out
        if out.exists():
            raise InputError(f"{out} exists; give another --out, or --resume to continue it")
        dataset = _prepare(text, free_path(out.with_name(f"{out.name}-data")))
        config = _config(dataset, out, seed)
    run = _train(config)
    dataset, seed = TokenDataset(config.data), config.seed
    resolved = runtime.resolve()
    model, checkpoint = load_model(run, "best", resolved.device)
    context = Context(run, model, dataset.tokenizer(), checkpoint.step, resolved, seed)
    figures = [_perplexity(context, dataset)]
    _write_samples(context)
    if dataset.manifest.source.names == ("stories",):
        figures.append(_judge(context))
    report = write_report([run], run.path / "report.html")
    _summary(run, figures, time.perf_counter() - begin, report)
    return run


def _prepare(text: Path | None, folder: Path) -> TokenDataset:
    sources = ["stories" if text is None else str(text)]
    documents = DOCUMENTS if text is None else None
    _step(1, f"training a tokenizer of {VOCABULARY:,} entries on {sources[0]}")
    corpus = texts(sources, max_documents=TOKENIZER_DOCUMENTS if text is None else None)
    with console.merging_bar() as (_, progress):
        tokenizer = Tokenizer.train(corpus, VOCABULARY, progress=progress)
    _step(2, f"writing token shards to {folder}")
    with console.counting("preparing") as show:
        dataset = prepare(
            sources,
            tokenizer,
            folder,
            max_documents=documents,
            progress=lambda n, size, *_: show(f"{n:,} documents, {size / 1e6:.1f} MB"),
        )
    _require_windows(dataset)
    part = dataset.manifest.splits["train"]
    log.info("%s training tokens, %.2f bytes per token", f"{part.tokens:,}", part.bytes / part.tokens)
    return dataset


def _require_windows(dataset: TokenDataset) -> None:
    """Check before training that no split is too short to evaluate; leave nothing behind otherwise."""
    for split, info in dataset.manifest.splits.items():
        if info.tokens <= MODEL.n_ctx:
            shutil.rmtree(dataset.directory)
            raise InputError(
                f"the text is too short: its {split} split has {info.tokens} tokens, fewer than one window of "
                f"{MODEL.n_ctx + 1}; give more text (about 50 kB)"
            )


def _interrupted(out: Path, text: Path | None, seed: int) -> TrainConfig:
    """Return the configuration that resumes the quickstart in a directory."""
    if text is not None or seed != SEED:
        raise InputError("--resume continues with the original text and seed; leave out --text and --seed")
    return dataclasses.replace(saved_config(Run.open(out)), out=out, resume="last")


def _config(dataset: TokenDataset, out: Path, seed: int) -> TrainConfig:
    return TrainConfig(
        data=dataset.directory,
        out=out,
        model=MODEL,
        optim=OPTIM,
        steps=STEPS,
        batch_tokens=BATCH_TOKENS,
        seed=seed,
        log_every=25,
        eval_every=250,
        sample_every=500,
        checkpoint_every=500,
    )


def _train(config: TrainConfig) -> Run:
    _step(3, f"training a GPT-2 of {MODEL.n_layer} layers, width {MODEL.n_embd}, in {config.out}")
    try:
        with console.training_bar() as on_step:
            return train(config, on_step)
    except Interrupted as stop:
        raise Interrupted(stop.signal, stop.run, stop.step, "quickstart") from stop


def _perplexity(context: Context, dataset: TokenDataset) -> Measurement:
    _step(4, "measuring perplexity on the test split")
    test = HeldOut.of_split(dataset, "test")
    with console.bar("tokens") as progress:
        measured = measure_perplexity(context.model, test, MODEL.n_ctx, STRIDE, context.runtime, progress)
    measured.record(context.run, context.step)
    log.info("protocol: %s", measured.protocol)
    return measured


def _write_samples(context: Context) -> None:
    _step(5, "sampling with each decoding strategy")
    for name, strategy in STRATEGIES.items():
        for text in context.write(name, 1 if strategy.greedy else 2):
            context.run.add_sample(context.step, str(strategy), "", text)
        log.info("[%s]\n%s\n", strategy, context.run.samples()[-1]["text"])


def _judge(context: Context) -> Measurement:
    _step(6, f"checking {JUDGED_STORIES} of its stories for grammar and consistency")
    measured, quality = measure_stories(context.write("nucleus", JUDGED_STORIES), str(STRATEGIES["nucleus"]))
    measured.record(context.run, context.step)
    for broken in quality.errors:
        log.info("%s", broken)
    return measured


def _summary(run: Run, figures: list[Measurement], seconds: float, report: Path) -> None:
    table = Table(title="results", show_header=False)
    for measured in figures:
        for name, value in measured.figures.items():
            table.add_row(f"{measured.split} {name.replace('_', ' ')}", f"{value:.3f}")
    table.add_row("peak memory", f"{runtime.peak_memory_mb(runtime.resolve().device):,.0f} MiB")
    table.add_row("time", f"{seconds:.0f} s")
    console.console.print(table)
    console.console.print(f"open   {report}\n       {run.path / 'curves.png'}", markup=False)
    console.console.print(f"next   gpt2lab sample {run.path} --prompt 'One day'", markup=False)


def _step(number: int, text: str) -> None:
    log.info("%d. %s", number, text)
