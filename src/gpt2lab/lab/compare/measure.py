"""What is measured on every run of a comparison once it is trained, and kept in its directory."""

from __future__ import annotations

import dataclasses

from gpt2lab import runtime
from gpt2lab.data import TokenDataset
from gpt2lab.evaluation import recall_probe
from gpt2lab.files import write_json
from gpt2lab.lab.measure import HeldOut, measure_held_out, measure_positions
from gpt2lab.lab.pictures import save_positions
from gpt2lab.lab.text_pictures import save_text_quality
from gpt2lab.lab.text_quality import Prompts, choose_prompts, measure_texts
from gpt2lab.model import GPT
from gpt2lab.runs import Run
from gpt2lab.runtime import Runtime
from gpt2lab.training import TrainConfig, load_model, saved_config

RECALL, TEXTS = "recall.json", "text.json"
"""In the folder of the step's evaluations. The first is written last: a run that has it is measured, but for texts."""
SAMPLES = 64
"""Texts of each strategy."""


def is_measured(run: Run, texts: bool) -> bool:
    """Return whether `measure` has been through with a run, with its texts where they are wanted."""
    return run.newest_evaluation(RECALL) is not None and not (texts and run.newest_evaluation(TEXTS) is None)


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
    if run.newest_evaluation(RECALL) is None:
        _measure_losses(run, config, model, checkpoint.step, dataset, where)
    if texts and run.newest_evaluation(TEXTS) is None:
        quality = measure_texts(model, dataset.tokenizer(), text_prompts(config), where, config.seed)
        save_text_quality(run, checkpoint.step, "test", quality)


def text_prompts(config: TrainConfig) -> Prompts:
    """Return the held-out beginnings that a run completes. Raises `InputError` where its test split is too short."""
    return choose_prompts(TokenDataset(config.data), "test", config.model.n_ctx, SAMPLES)


def _measure_losses(
    run: Run, config: TrainConfig, model: GPT, step: int, dataset: TokenDataset, where: Runtime
) -> None:
    test, apart = HeldOut.of_split(dataset, "test"), config.mask_documents  # each run as it was trained
    measure_held_out(model, test, config.window, None, where, by_document=apart).record(run, step)
    positions = measure_positions(model, test, config.window, where, by_document=apart)
    with where.autocast():
        recall = recall_probe(model, avoid=[dataset.manifest.tokenizer.eot])
    values = {"step": step, "protocol": recall.protocol, "chance": recall.chance}
    save_positions(run, step, "test", positions)
    write_json(run.evaluations(step) / RECALL, values | dataclasses.asdict(recall))
