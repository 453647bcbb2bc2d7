"""`train`: the training loop together with what happens at its intervals."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack

from gpt2lab import runtime
from gpt2lab.evaluation import HellaSwagItem, encode_items, read_hellaswag
from gpt2lab.generation import STRATEGIES
from gpt2lab.lab import trackers
from gpt2lab.lab.measure import measure_hellaswag
from gpt2lab.lab.writing import write_texts
from gpt2lab.model import GPT
from gpt2lab.runs import Run
from gpt2lab.tokenizer import Tokenizer
from gpt2lab.training import Hooks, StepReport, TrainConfig, resume, start

log = logging.getLogger("gpt2lab")

SAMPLE_TOKENS = 200


def train(config: TrainConfig, on_step: Callable[[StepReport], None] | None = None) -> Run:
    """Train a model as ``config`` says, or go on with it where ``config.resume`` is set; return its run directory.

    The same as ``gpt2lab train``. To go on with a run, start from what it was started with:
    ``train(dataclasses.replace(saved_config(Run.open(path)), out=path, resume="last"))``.

    Args:
        config: Every option.
        on_step: Called after each optimiser step.

    Raises:
        InputError: An option cannot be honoured, the data is damaged, memory ran out or training diverged.
        Interrupted: Ctrl-C or SIGTERM; the state was saved.
    """

    items = None if config.hellaswag is None else read_hellaswag(config.hellaswag)
    trackers.require(config.tracker)
    with ExitStack() as tracked:

        def hooks(run: Run) -> Hooks:
            choose = None if items is None else _chooser(run, config, items)
            on_row = tracked.enter_context(trackers.tracking(config.tracker, run))
            return Hooks(on_step=on_step, on_row=on_row, sample=_sampler(run, config), hellaswag=choose)

        return start(config, hooks) if config.resume is None else resume(config, hooks)


def _sampler(run: Run, config: TrainConfig) -> Callable[[GPT, int], None]:
    """Return the hook that writes a text by nucleus sampling, the same random numbers at every step."""
    tokenizer = Tokenizer.load(run.tokenizer)
    runtime_ = runtime.resolve(config.device, config.precision)

    def sample(model: GPT, step: int) -> None:
        strategy = STRATEGIES["nucleus"]
        (text,) = write_texts(model, tokenizer, config.sample_prompt, 1, SAMPLE_TOKENS, strategy, config.seed, runtime_)
        run.add_sample(step, str(strategy), config.sample_prompt, text)
        log.info("sample at step %d, %s:\n%s", step, strategy, text)

    return sample


def _chooser(run: Run, config: TrainConfig, items: list[HellaSwagItem]) -> Callable[[GPT, int], None]:
    """Return the hook that measures on HellaSwag. Raises `InputError` where an ending is too long for the model."""
    tokenizer = Tokenizer.load(run.tokenizer)
    encode_items(tokenizer, items, "completion", config.model.n_ctx)
    where = runtime.resolve(config.device, config.precision)

    def choose(model: GPT, step: int) -> None:
        measured = measure_hellaswag(model, tokenizer, items, "completion", where)
        measured.record(run, step)
        log.info("hellaswag at step %d: %s", step, "  ".join(f"{k} {v:.4f}" for k, v in measured.figures.items()))

    return choose
