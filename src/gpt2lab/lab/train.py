"""Training with everything that may happen at an interval: samples, HellaSwag, and an experiment tracker.

`train` joins the training loop, which knows neither generation nor evaluation, with both. TensorBoard and Weights &
Biases are extras, imported only if asked for. Weights & Biases writes into the run directory and uploads unless
``WANDB_MODE=offline`` is set; ``wandb sync`` uploads what was written offline later.
"""

from __future__ import annotations

import importlib.util
import logging
import statistics
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from gpt2lab.data.dataset import TokenDataset
from gpt2lab.errors import InputError
from gpt2lab.evaluation.hellaswag import encode_items, hellaswag, read_hellaswag
from gpt2lab.evaluation.likelihood import require_causal_mask
from gpt2lab.evaluation.measure import Measurement
from gpt2lab.files import write_atomically
from gpt2lab.generation import STRATEGIES, generate_texts
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.runs import Run
from gpt2lab.runtime import Runtime
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training import session
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.loop import Hooks, StepReport, Trainer
from gpt2lab.training.setup import Data, explain_out_of_memory, resolve

log = logging.getLogger("gpt2lab")
Row = Mapping[str, float | None]
SAMPLE_TOKENS = 200


def train(
    config: TrainConfig,
    on_step: Callable[[StepReport], None] | None = None,
    on_start: Callable[[Run], None] | None = None,
) -> Run:
    """Train a model as ``config`` says, or resume a run if ``config.resume`` is set; return its run directory.

    The same as ``gpt2lab train``. To resume a run, start from its own configuration:
    ``train(dataclasses.replace(saved_config(Run.open(path)), out=path, resume="last"))``.

    Args:
        config: Every option.
        on_step: Called after each optimizer step.
        on_start: Called once the run directory exists, on rank 0.

    Raises:
        InputError: An option cannot be honored, the data is damaged, memory ran out or training diverged.
        Interrupted: Ctrl-C or SIGTERM; the state was saved.
    """
    hooks = _Laboratory(config, on_step, on_start)
    with hooks.opened:
        return session.train(config, hooks)


class _Laboratory(Hooks):
    """Samples, HellaSwag and the tracker of a run."""

    def __init__(
        self,
        config: TrainConfig,
        on_step: Callable[[StepReport], None] | None,
        on_start: Callable[[Run], None] | None,
    ) -> None:
        self.config, self.told, self.started, self.opened = config, on_step, on_start, ExitStack()
        self.items = [] if config.hellaswag is None else read_hellaswag(config.hellaswag)
        self.write: Callable[[Row], None] | None = None
        tracker = config.tracker
        if tracker != "none" and importlib.util.find_spec(tracker) is None:
            raise InputError(f"tracker {tracker} is not installed; install it with: pip install gpt2lab[{tracker}]")

    def check(self, tokenizer: Tokenizer, model: GPTConfig) -> None:
        """Encode the items; raise `InputError` if HellaSwag is asked for and does not fit the mask or the context."""
        if self.items:
            require_causal_mask(model)
            self.encoded = encode_items(tokenizer, self.items, model.n_ctx)

    def begin(self, run: Run, where: Runtime) -> None:
        """Open the tracker and say that the run exists."""
        self.run, self.where, self.tokenizer = run, where, Tokenizer.load(run.tokenizer)
        if self.started is not None:
            self.started(run)
        if self.config.tracker != "none":
            self.write = TRACKERS[self.config.tracker](run, self.opened)

    def on_step(self, report: StepReport) -> None:
        """Pass the report on."""
        if self.told is not None:
            self.told(report)

    def on_row(self, row: Row) -> None:
        """Pass the row to the tracker."""
        if self.write is not None:
            self.write(row)

    def sample(self, model: LanguageModel, step: int) -> None:
        """Write a text by nucleus sampling, with the same random numbers at every step."""
        strategy, prompt, seed = STRATEGIES["nucleus"], self.config.sample_prompt, self.config.seed
        (text,) = generate_texts(model, self.tokenizer, prompt, 1, SAMPLE_TOKENS, strategy, seed, self.where)
        self.run.add_sample(step, str(strategy), prompt, text)
        log.info("sample at step %d, %s:\n%s", step, strategy, text)

    def hellaswag(self, model: LanguageModel, step: int) -> None:
        """Evaluate on the items."""
        found = hellaswag(model, self.encoded)
        Measurement("hellaswag", "val", found.protocol, found.figures).record(self.run, step)
        figures = "  ".join(f"{name} {value:.4f}" for name, value in found.figures.items())
        log.info("hellaswag at step %d: %s.%s", step, figures, self.encoded.fit)


def step_seconds(config: TrainConfig, warmup_steps: int = 3, seconds: float = 3.0) -> float:
    """Return the median time of an optimizer step of ``config`` here; the model that is trained for it is thrown away.

    Args:
        config: With ``data`` and ``out``; nothing is written there.
        warmup_steps: Steps before the measured ones.
        seconds: Measure for this long, and for two steps at least.
    """
    dataset = TokenDataset(config.data)
    setup = resolve(config, dataset)
    data = Data.open(dataset, setup.config, every_byte=False)
    with explain_out_of_memory(setup.config), setup.runtime.numerics(setup.config.deterministic):
        trainer = Trainer(setup, data, Run(setup.config.out), Hooks())
        with trainer.batches:
            for _ in range(warmup_steps):
                trainer.update()
            times: list[float] = []
            while len(times) < 2 or sum(times) < seconds:
                begin = time.perf_counter()
                trainer.update()
                times.append(time.perf_counter() - begin)
            return statistics.median(times)


def _tensorboard(run: Run, opened: ExitStack) -> Callable[[Row], None]:
    """Write scalars into RUN/tensorboard; those after the step that a run resumes from are hidden."""
    from torch.utils.tensorboard import SummaryWriter

    writer: SummaryWriter | None = None

    def write(row: Row) -> None:
        nonlocal writer
        step, figures = _split(row)
        if writer is None:
            writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=step)
            opened.callback(writer.close)
        for name, value in figures.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return write


def _wandb(run: Run, opened: ExitStack) -> Callable[[Row], None]:
    """Log to the project gpt2lab under the run's name; a resumed run keeps its id."""
    import wandb

    file = run.path / "wandb.id"
    if not file.exists():
        write_atomically(file, uuid.uuid4().hex[:12])
    try:
        logged = wandb.init(
            project="gpt2lab",
            name=run.path.name,
            dir=str(run.path),
            id=file.read_text(encoding="utf-8"),
            resume="allow",
            config=run.config,
            settings=wandb.Settings(silent=True),
        )
    except wandb.Error as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InputError(f"tracker wandb: {reason}; or set WANDB_MODE=offline, or leave out --tracker") from error
    opened.callback(logged.finish)

    def write(row: Row) -> None:
        step, figures = _split(row)
        logged.log(figures, step=step)

    return write


def _split(row: Row) -> tuple[int, dict[str, float]]:
    """Return the step of a row of metrics.csv, and its other values."""
    figures = {name: value for name, value in row.items() if value is not None}
    return int(figures.pop("step")), figures


TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb}
"""Functions that open a tracker until ``opened`` is closed, and return what to call with each row of metrics.csv."""
