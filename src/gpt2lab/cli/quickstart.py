"""What ``gpt2lab quickstart`` does: from text to a trained GPT-2 and its report, on any machine.

text -> tokenizer -> token shards -> training -> test perplexity -> samples of each decoding strategy -> report.html
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from gpt2lab import console, runtime
from gpt2lab.console import log
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.prepare import prepare
from gpt2lab.data.sources import texts
from gpt2lab.errors import InputError
from gpt2lab.evaluation.measure import LoadedRun, Measurement
from gpt2lab.evaluation.perplexity import perplexity_of
from gpt2lab.evaluation.text_metrics import judge_stories
from gpt2lab.files import free_path
from gpt2lab.generation import STRATEGIES, generate_texts
from gpt2lab.lab.train import train
from gpt2lab.model.config import GPTConfig
from gpt2lab.report.write import write_report
from gpt2lab.runs import Run
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.config import OptimConfig, TrainConfig, saved_config
from gpt2lab.training.distributed import Interrupted

DEFAULT_OUT, SEED = Path("runs/quickstart"), 1337
VOCABULARY = 2_048
DOCUMENTS = 20_000
TOKENIZER_DOCUMENTS = 2_000
"""A tenth of the stories contains every word."""
MODEL = GPTConfig(n_layer=2, n_head=4, n_embd=128, n_ctx=256, dropout=0.0)
TRAINING = TrainConfig(
    model=MODEL,
    optim=OptimConfig(name="muon", lr=4e-3, min_lr=4e-5, warmup_steps=50),
    steps=1_500,
    batch_tokens=2_048,
    log_every=25,
    eval_every=250,
    sample_every=500,
    checkpoint_every=500,
)
STRIDE = 64
"""Stride of the test windows: small, so that nearly every token is predicted from its whole story."""
JUDGED_STORIES = 100
SAMPLE_TOKENS = 300


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
        if text is not None or seed != SEED:
            raise InputError("--resume continues with the original text and seed; leave out --text and --seed")
        out = out or DEFAULT_OUT
        config = replace(saved_config(Run.open(out)), out=out, resume="last")
    else:
        out = free_path(DEFAULT_OUT) if out is None else out
        Run.require_new(out)
        dataset = _prepare(text, free_path(out.with_name(f"{out.name}-data")))
        config = replace(TRAINING, data=dataset.directory, out=out, seed=seed)
    run = LoadedRun.load(_train(config).path, "best", "auto", "auto")
    figures = [_perplexity(run)]
    _write_samples(run, config.seed)
    if TokenDataset(config.data).manifest.source.names == ("stories",):
        figures.append(_judge(run, config.seed))
    report = write_report([run.run], run.run.path / "report.html")
    _summary(run.run, figures, time.perf_counter() - begin, report)
    return run.run


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
    for split, info in dataset.manifest.splits.items():  # before training, and leaving nothing behind
        if info.tokens <= MODEL.n_ctx:
            shutil.rmtree(dataset.directory)
            raise InputError(
                f"the text is too short: its {split} split has {info.tokens} tokens, fewer than one window of "
                f"{MODEL.n_ctx + 1}; give more text (about 50 kB)"
            )
    part = dataset.manifest.splits["train"]
    log.info("%s training tokens, %.2f bytes per token", f"{part.tokens:,}", part.bytes / part.tokens)
    return dataset


def _train(config: TrainConfig) -> Run:
    log.info("3. training a GPT-2 of %d layers, width %d, in %s", MODEL.n_layer, MODEL.n_embd, config.out)
    try:
        with console.training_bar() as on_step:
            return train(config, on_step)
    except Interrupted as stop:
        raise Interrupted(stop.signal, stop.run, stop.step, "quickstart") from stop


def _perplexity(run: LoadedRun) -> Measurement:
    log.info("4. measuring perplexity on the test split")
    with run.held_out(None, "test", None) as test, console.bar("tokens") as progress, run.runtime.autocast():
        found = perplexity_of(run.model, test, MODEL.n_ctx, STRIDE, progress=progress)
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
    console.console.print(f"next   gpt2lab sample {run.path} --prompt 'One day'", markup=False)
