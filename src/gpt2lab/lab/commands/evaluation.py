"""What ``gpt2lab eval ...`` does."""

from __future__ import annotations

from pathlib import Path

from gpt2lab.errors import InputError
from gpt2lab.evaluation.hellaswag import HellaSwagItem, hellaswag_item, read_hellaswag
from gpt2lab.evaluation.measure import measure_held_out, measure_hellaswag, measure_positions
from gpt2lab.evaluation.text_quality import choose_prompts, measure_texts
from gpt2lab.hub import fetch_data
from gpt2lab.lab import console
from gpt2lab.lab.commands.subject import Subject
from gpt2lab.report.plots import save_positions, save_text_quality, table_of

HELLASWAG_REVISION = "218ec52e09a7e7462a5400043bb9a69a41d06b76"
"""Of the author's copy on the Hub: the same items for everyone."""

TABLE_WIDTH = 130
"""Columns that the table of texts takes in a file; a narrower terminal wraps its lines."""


def print_perplexity(
    subject: Subject,
    data: Path | None,
    split: str | None,
    text: Path | None,
    detokenise: str | None,
    context: int | None,
    stride: int | None,
    by_document: bool,
) -> None:
    """Measure a run's perplexity, print it with its protocol and add it to the run's evals.csv."""
    context = subject.config.window if context is None and text is None else context
    by_document = by_document or subject.config.mask_documents  # it never saw two documents at once
    with subject.held_out(data, split, text, detokenise) as held_out, console.bar("tokens") as progress:
        measured = measure_held_out(subject.model, held_out, context, stride, subject.where, progress, by_document)
    subject.print_and_record(measured)


def print_positions(
    subject: Subject, data: Path | None, split: str | None, text: Path | None, context: int | None, by_document: bool
) -> None:
    """Measure the loss by position, print some of it, and keep all of it with its picture in the run directory."""
    by_document = by_document or subject.config.mask_documents
    with subject.held_out(data, split, text, None) as held_out, console.bar("tokens") as progress:
        curve = measure_positions(subject.model, held_out, context, subject.where, progress, by_document)
    print(f"{held_out.name}, checkpoint of step {subject.checkpoint.step}\nposition  loss, nats per token")
    for position in _powers_of_two(len(curve.losses)):
        print(f"{position:8,}  {curve.losses[position - 1]:.4f}")
    print(f"protocol: {curve.protocol}")
    for path in save_positions(subject.run, subject.checkpoint.step, held_out.name, curve):
        print(path)


def print_hellaswag(subject: Subject, file: Path | None, style: str, limit: int | None) -> None:
    """Measure a run on HellaSwag, print the figures with their protocol and add them to the run's evals.csv."""
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; give at least 1, or leave it out for all items")
    items = (hellaswag_from_hub() if file is None else read_hellaswag(file))[:limit]
    with console.bar("endings") as progress:
        measured = measure_hellaswag(subject.model, subject.tokenizer, items, style, subject.where, progress)
    subject.print_and_record(measured)


def hellaswag_from_hub() -> list[HellaSwagItem]:
    """Return the 10,042 validation items from Hugging Face's Hub.

    Raises:
        InputError: The extra ``hub`` is not installed, or the Hub cannot be reached.
    """
    file = fetch_data("Rowan/hellaswag", "data/validation-00000-of-00001.parquet", HELLASWAG_REVISION)
    from pyarrow import parquet

    rows = parquet.read_table(file).to_pylist()
    return [hellaswag_item(row, f"Rowan/hellaswag, item {n}", n) for n, row in enumerate(rows)]


def print_harness(
    subject: Subject, tasks: tuple[str, ...], tasks_dir: Path | None, limit: int | None, shots: int | None
) -> None:
    """Let lm-evaluation-harness measure a run, print its figures and add them to the run's evals.csv.

    Raises:
        InputError: The extra ``harness`` is not installed, or it does not know a task.
    """
    try:
        from gpt2lab.evaluation.harness import HarnessModel, run_harness
    except ImportError as error:
        raise InputError(f'{error}; install lm-evaluation-harness: pip install "gpt2lab[harness]"') from error
    model = HarnessModel(subject.model, subject.tokenizer, subject.where)
    for measured in run_harness(model, tasks, tasks_dir, limit, shots):
        subject.print_and_record(measured)


def print_text_quality(
    subject: Subject,
    data: Path | None,
    split: str,
    samples: int,
    prompt_tokens: int | None,
    max_new_tokens: int | None,
    seed: int,
) -> None:
    """Measure a run's texts by strategy, print the table, and keep it with its picture in the run directory."""
    held_out = subject.split(data, split)
    prompts = choose_prompts(
        held_out.dataset, split, subject.model.config.n_ctx, samples, prompt_tokens, max_new_tokens
    )
    with console.bar("strategies") as progress:
        quality = measure_texts(subject.model, subject.tokenizer, prompts, subject.where, seed, progress)
    table = table_of(quality, f"{held_out.name}, checkpoint of step {subject.checkpoint.step}")
    # the console's own print(width=...) goes no wider than the terminal, where figures end in dots
    console.Console(width=max(console.console.width, TABLE_WIDTH), highlight=False).print(table)
    print(f"protocol: {quality.protocol}")
    for path in save_text_quality(subject.run, subject.checkpoint.step, held_out.name, quality):
        print(path)


def _powers_of_two(last: int) -> list[int]:
    """Return 1, 2, 4, ... below ``last``, and ``last``."""
    return [*(1 << n for n in range(last.bit_length()) if 1 << n < last), last]
