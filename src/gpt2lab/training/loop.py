"""The training loop: batches in, updates out, and everything that happens at an interval.

    for step in range(start, steps):
        gradient = mean over the step's micro-batches of the loss's gradient, clipped to norm 1
        the optimiser with the step's learning rate
        every so often: a row of metrics.csv, a validation, samples, a checkpoint

The loop's own state is a handful of numbers (`Progress`); with the weights and the optimiser's moments it is all that
a checkpoint holds, because batches and dropout are functions of (seed, step, micro-step, rank).
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch

from gpt2lab import runtime
from gpt2lab.data import Loader, TokenDataset, TokenStream, count_windows
from gpt2lab.errors import InputError
from gpt2lab.model import GPT, evaluating, mfu, peak_flops
from gpt2lab.runs import Run
from gpt2lab.training import checkpoint, curves
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.hooks import Hooks, StepReport
from gpt2lab.training.interrupt import Interrupted, catch_signals
from gpt2lab.training.optim import make_optimiser, set_learning_rate
from gpt2lab.training.schedule import learning_rate
from gpt2lab.training.setup import Plan, batch_tokens
from gpt2lab.training.validation import validation_loss

log = logging.getLogger("gpt2lab")


@dataclass(frozen=True)
class Data:
    """What a run reads, checked; and what it must be again when the run goes on."""

    train: TokenStream
    val: TokenStream | None
    fingerprints: dict[str, str]
    """Of the ``data`` and of its ``tokenizer``."""

    @classmethod
    def open(cls, dataset: TokenDataset, config: TrainConfig) -> Data:
        """Check and open the splits that training uses.

        Raises:
            InputError: One is damaged or shorter than a window, or patience has no validation split to go by.
        """
        val = dataset.stream("val") if "val" in dataset.manifest.splits else None
        if val is None and config.patience:
            raise InputError(
                f"patience is {config.patience}, but {dataset.directory} has no val split to go by; leave it out, or "
                "prepare the data with a val fraction"
            )
        train = dataset.stream("train")
        for stream in (train, val):
            if stream is not None:
                count_windows(stream, config.window)
        return cls(train, val, cls.fingerprints_of(dataset))

    @staticmethod
    def fingerprints_of(dataset: TokenDataset) -> dict[str, str]:
        """Return what tells this data and its tokenizer from others, without reading them."""
        return {"data": dataset.fingerprint, "tokenizer": dataset.manifest.tokenizer.fingerprint}


@dataclass
class Progress:
    """The scalars of the training state."""

    step: int = 0
    loss_sum: float = 0.0
    """Sum and count of the steps' losses since the last row of metrics.csv."""
    loss_count: int = 0
    val_loss: float | None = None
    """Validation loss at this step; None where it was not taken."""
    best_val_loss: float | None = None
    evals_since_best: int = 0
    seconds: float = 0.0
    finished: str | None = None
    """Why the run is over; None while it is not."""
    scaler: dict[str, float] = dataclasses.field(default_factory=dict)
    """The state of the gradient scaler, where the precision is fp16."""


class Update(NamedTuple):
    """Figures of an optimiser step: its batch's mean loss in nats, its rate, the gradient's norm before clipping."""

    loss: float
    lr: float
    grad_norm: float


class Trainer:
    """One run: a model, its optimiser, its data, and where they stand."""

    def __init__(self, plan: Plan, data: Data, run: Run, hooks: Hooks) -> None:
        self.plan, self.config, self.runtime = plan, plan.config, plan.runtime
        self.data, self.run, self.hooks = data, run, hooks
        assert isinstance(self.config.micro_batch, int)  # resolved
        self.loader = Loader(
            data.train,
            self.config.window,
            batch_tokens(self.config) // self.config.window,
            self.config.micro_batch,
            self.config.seed,
            self.runtime.world,
            self.runtime.rank,
        )
        runtime.seed_step(self.config.seed)
        self.model = GPT(self.config.model).to(self.runtime.device)
        self.optimiser = make_optimiser(self.model, self.config.optim)
        self.scaler = torch.amp.GradScaler(self.runtime.device.type, enabled=self.runtime.precision == "fp16")
        self.peak, self.peak_source = peak_flops(self.runtime.device, self.runtime.precision)
        self.progress = Progress()
        self._newest_val: float | None = None
        if self.config.compile == "on":
            for block in self.model.h:
                block.compile()

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Take up the state of a checkpoint that was verified, to train on from it."""
        state = saved.state
        checkpoint.load_into(saved, self.model, self.optimiser)
        self.progress = Progress(**{field.name: state[field.name] for field in dataclasses.fields(Progress)})
        self.progress.finished = None
        if self.progress.scaler:
            self.scaler.load_state_dict(self.progress.scaler)

    def fit(self) -> None:
        """Train to the end, or until a signal or patience ends it.

        Raises:
            Interrupted: A signal came; the state was saved.
            InputError: The loss or gradient is not finite, or the disk is full.
        """
        with catch_signals() as signals:
            self._fit(signals)
        log.info("finished: %s", self.progress.finished)

    def _fit(self, signals: Callable[[], int | None]) -> None:
        progress, config = self.progress, self.config
        clock = row_clock = time.perf_counter()
        row_step = progress.step
        while progress.finished is None:
            update = self.update()
            step, now = progress.step, time.perf_counter()
            progress.seconds, clock = progress.seconds + now - clock, now
            tokens_per_s = batch_tokens(config) * (step - row_step) / (now - row_clock)
            last = step == self.plan.steps
            eval_due = last or step % config.eval_every == 0
            self._validate(eval_due)
            self._stop_early(last)
            over, signal = progress.finished is not None, signals()
            if step % config.log_every == 0 or progress.val_loss is not None or over:
                self._write_row(update, tokens_per_s)
            if over or (config.sample_every and step % config.sample_every == 0):
                self._sample()
            improved = progress.val_loss is not None and progress.evals_since_best == 0
            if step % config.checkpoint_every == 0 or improved or over or signal is not None:
                self.save()
            if eval_due or over or signal is not None:
                curves.draw(self.run)
            self._tell(update, tokens_per_s)
            if progress.loss_count == 0:  # a row was written: its rate leaves out what else was done since
                row_clock, row_step = time.perf_counter(), step
            if signal is not None and not over:
                raise Interrupted(signal, self.run, step)

    def _tell(self, update: Update, tokens_per_s: float) -> None:
        if self.hooks.on_step is not None:
            step, steps = self.progress.step, self.plan.steps
            self.hooks.on_step(
                StepReport(step, steps, update.loss, self._newest_val, update.lr, update.grad_norm, tokens_per_s)
            )

    def update(self) -> Update:
        """Do one optimiser step.

        Raises:
            InputError: The loss or the gradient is not finite; nothing was changed.
        """
        step, config = self.progress.step, self.config
        self.model.train()
        total = torch.zeros((), device=self.runtime.device)
        for micro_step in range(self.loader.micro_steps):
            total += self._accumulate(step, micro_step)
        self.scaler.unscale_(self.optimiser)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.grad_clip).item()
        loss = total.item()
        self._require_finite(loss, grad_norm, step)
        lr = learning_rate(config.optim, step, self.plan.steps)
        set_learning_rate(self.optimiser, lr)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.loss_sum += loss
        self.progress.loss_count += 1
        return Update(loss, lr, grad_norm)

    def _accumulate(self, step: int, micro_step: int) -> torch.Tensor:
        """Add a micro-batch's part to the gradients; return its part of the step's loss, shape ()."""
        batch = self.loader.batch(step, micro_step)
        tokens = batch.tokens.to(self.runtime.device, non_blocking=True)
        targets = batch.targets.to(self.runtime.device, non_blocking=True)
        runtime.seed_step(self.config.seed, step + 1, micro_step, self.runtime.rank)  # dropout
        with self.runtime.autocast():
            mean = self.model(tokens, targets).loss
        assert mean is not None  # targets were given
        part = mean / self.loader.micro_steps
        self.scaler.scale(part).backward()
        return part.detach()

    def _require_finite(self, loss: float, grad_norm: float, step: int) -> None:
        """Stop before a broken update. In fp16 an overflowing gradient is the scaler's to skip."""
        if math.isfinite(loss) and (math.isfinite(grad_norm) or self.scaler.is_enabled()):
            return
        raise InputError(
            f"step {step + 1}: loss {loss}, gradient norm {grad_norm}: training diverged and the update was not made; "
            f"start anew with a lower --optim.lr (now {self.config.optim.lr}), or see docs/troubleshooting.md"
        )

    def _validate(self, due: bool) -> None:
        progress = self.progress
        progress.val_loss = None
        if not due or self.data.val is None:
            return
        with self._evaluating():
            loss = validation_loss(self.model, self.data.val, self.config.window, self.config.eval_tokens)
        progress.val_loss = self._newest_val = loss
        if progress.best_val_loss is None or loss < progress.best_val_loss:
            progress.best_val_loss, progress.evals_since_best = loss, 0
        else:
            progress.evals_since_best += 1

    def _stop_early(self, last: bool) -> None:
        if last:
            self.progress.finished = f"{self.plan.steps:,} steps done"
        elif self.config.patience and self.progress.evals_since_best >= self.config.patience:
            self.progress.finished = f"no better validation loss in {self.config.patience} validations"

    def _write_row(self, update: Update, tokens_per_s: float) -> None:
        progress, config = self.progress, self.config
        row = {
            "step": progress.step,
            "tokens": progress.step * batch_tokens(config),
            "epoch": round(self.loader.epoch_of(progress.step), 4),
            "train_loss": progress.loss_sum / progress.loss_count,
            "val_loss": progress.val_loss,
            "lr": update.lr,
            "grad_norm": update.grad_norm,
            "tokens_per_s": round(tokens_per_s, 1),
            "mfu": round(mfu(config.model, config.window, tokens_per_s, self.peak), 4),
            "peak_memory_mb": round(runtime.peak_memory_mb(self.runtime.device), 1),
            "seconds": round(progress.seconds, 3),
        }
        self.run.add_metrics(row)
        progress.loss_sum, progress.loss_count = 0.0, 0
        val = "" if progress.val_loss is None else f"  val {progress.val_loss:.4f}"
        log.info(
            "step %d/%d  loss %.4f%s  lr %.2e  norm %.2f  %s tokens/s",
            *(progress.step, self.plan.steps, row["train_loss"], val, update.lr, update.grad_norm),
            f"{tokens_per_s:,.0f}",
            extra={"in_bar": progress.val_loss is None},  # a terminal shows these in its progress bar
        )

    def _sample(self) -> None:
        if self.hooks.sample is not None:
            with self._evaluating():
                self.hooks.sample(self.model, self.progress.step)

    def save(self) -> None:
        """Write a checkpoint, then drop those that are no longer kept."""
        if self.scaler.is_enabled():
            self.progress.scaler = self.scaler.state_dict()
        state = dataclasses.asdict(self.progress) | {"fingerprints": self.data.fingerprints}
        checkpoint.save(self.run, self.model, self.optimiser, state)
        checkpoint.prune(self.run, self.config.keep_last)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode, in the run's precision, uncompiled."""
        uncompiled = runtime.eager() if self.config.compile == "on" else nullcontext()
        with evaluating(self.model), uncompiled, self.runtime.autocast():
            yield
