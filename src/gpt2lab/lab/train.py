"""Where the figures of a run go besides metrics.csv: TensorBoard's event files, or Weights & Biases.

Both are extras that are imported only where they are asked for. Weights & Biases writes under the run directory and
sends to its server unless ``WANDB_MODE=offline`` is set; ``wandb sync`` sends what was written offline later.
"""

from __future__ import annotations

import importlib.util
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from gpt2lab import runtime
from gpt2lab.errors import InputError
from gpt2lab.evaluation.hellaswag import HellaSwagItem, encode_items, read_hellaswag
from gpt2lab.evaluation.measure import measure_hellaswag
from gpt2lab.files import write_atomically
from gpt2lab.generation import STRATEGIES, generate_texts
from gpt2lab.model.gpt import GPT
from gpt2lab.runs import Run
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.config import TrainConfig, saved_model
from gpt2lab.training.loop import Hooks, StepReport
from gpt2lab.training.session import resume, start

Row = Mapping[str, float | None]


def require(tracker: str) -> None:
    """Raise `InputError` where the library that a tracker needs is missing."""
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise InputError(f"tracker {tracker} is not installed; install it with: pip install gpt2lab[{tracker}]")


@contextmanager
def tracking(tracker: str, run: Run) -> Iterator[Callable[[Row], None] | None]:
    """Yield what to call with each row of metrics.csv; None where nothing is tracked."""
    if tracker == "none":
        yield None
        return
    with {"tensorboard": _tensorboard, "wandb": _wandb}[tracker](run) as write:
        yield write


def _figures(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.items() if value is not None and name != "step"}


def _step(row: Row) -> int:
    return int(row["step"] or 0)


@contextmanager
def _tensorboard(run: Run) -> Iterator[Callable[[Row], None]]:
    """Write scalars into RUN/tensorboard; what a resumed run went back over is hidden."""
    from torch.utils.tensorboard import SummaryWriter

    with ExitStack() as opened:
        writer: SummaryWriter | None = None

        def write(row: Row) -> None:
            nonlocal writer
            if writer is None:
                writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=_step(row))
                opened.callback(writer.close)
            for name, value in _figures(row).items():
                writer.add_scalar(name, value, _step(row))
            writer.flush()

        yield write


@contextmanager
def _wandb(run: Run) -> Iterator[Callable[[Row], None]]:
    """Log to the project gpt2lab under the run's name; a run that goes on keeps its id."""
    import wandb

    file = run.path / "wandb.id"
    if not file.exists():
        write_atomically(file, uuid.uuid4().hex[:12])
    session = wandb.init(
        project="gpt2lab",
        name=run.path.name,
        dir=str(run.path),
        id=file.read_text(encoding="utf-8"),
        resume="allow",
        config=run.config,
        settings=wandb.Settings(silent=True),
    )
    try:
        yield lambda row: session.log(_figures(row), step=_step(row))
    finally:
        session.finish()


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
    require(config.tracker)
    with ExitStack() as tracked:

        def hooks(run: Run) -> Hooks:
            choose = None if items is None else _chooser(run, config, items)
            on_row = tracked.enter_context(tracking(config.tracker, run))
            return Hooks(on_step=on_step, on_row=on_row, sample=_sampler(run, config), hellaswag=choose)

        return start(config, hooks) if config.resume is None else resume(config, hooks)


def _sampler(run: Run, config: TrainConfig) -> Callable[[GPT, int], None]:
    """Return the hook that writes a text by nucleus sampling, the same random numbers at every step."""
    tokenizer = Tokenizer.load(run.tokenizer)
    runtime_ = runtime.resolve(config.device, config.precision)

    def sample(model: GPT, step: int) -> None:
        strategy = STRATEGIES["nucleus"]
        (text,) = generate_texts(
            model, tokenizer, config.sample_prompt, 1, SAMPLE_TOKENS, strategy, config.seed, runtime_
        )
        run.add_sample(step, str(strategy), config.sample_prompt, text)
        log.info("sample at step %d, %s:\n%s", step, strategy, text)

    return sample


def _chooser(run: Run, config: TrainConfig, items: list[HellaSwagItem]) -> Callable[[GPT, int], None]:
    """Return the hook that measures on HellaSwag. Raises `InputError` where an ending is too long for the model."""
    tokenizer = Tokenizer.load(run.tokenizer)
    encode_items(tokenizer, items, "completion", saved_model(run).n_ctx)
    where = runtime.resolve(config.device, config.precision)

    def choose(model: GPT, step: int) -> None:
        measured = measure_hellaswag(model, tokenizer, items, "completion", where)
        measured.record(run, step)
        log.info("hellaswag at step %d: %s", step, "  ".join(f"{k} {v:.4f}" for k, v in measured.figures.items()))

    return choose
