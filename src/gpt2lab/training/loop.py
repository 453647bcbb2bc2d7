"""The training loop: batches in, updates out, and everything that happens at an interval.

    for step in range(start, steps):
        gradient = mean over the step's micro-batches of the loss's gradient, clipped to norm 1
        AdamW with the step's learning rate
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

import numpy as np
import torch

from gpt2lab import runtime
from gpt2lab.data import Loader, TokenDataset, TokenStream, count_windows
from gpt2lab.errors import InputError
from gpt2lab.model import GPT, mfu, peak_flops
from gpt2lab.runs import Run
from gpt2lab.training import checkpoint, curves
from gpt2lab.training.interrupt import catch_signals
from gpt2lab.training.optim import adamw, set_learning_rate
from gpt2lab.training.schedule import learning_rate
from gpt2lab.training.setup import Plan, batch_tokens, out_of_memory

log = logging.getLogger("gpt2lab")

VALIDATION_PASS_TOKENS = 4_096
"""Tokens of a validation pass: fixed, so that the loss has the same bits whatever the training batch."""


@dataclass(frozen=True)
class StepReport:
    """What `on_step` is told after each update."""

    step: int
    """Updates done."""
    steps: int
    """Updates of the whole run."""
    loss: float
    """Mean loss of the step's batch, in nats per token."""
    val_loss: float | None
    """The newest validation loss."""
    lr: float
    grad_norm: float
    tokens_per_s: float


@dataclass(frozen=True)
class Hooks:
    """What else happens while a run goes on; the loop itself knows neither sampling nor evaluation."""

    on_step: Callable[[StepReport], None] | None = None
    """Called after each update."""
    sample: Callable[[GPT, int], None] | None = None
    """Called with the model, in evaluation mode, and the step, every ``sample_every`` steps and at the end."""


HooksFor = Callable[[Run], Hooks]
"""Makes the hooks of a run once its directory exists."""


class Interrupted(Exception):
    """A signal ended the run after its state was saved; ``signal`` is its number."""

    def __init__(self, signal: int, run: Run, step: int) -> None:
        super().__init__(f"stopped after step {step} and saved; go on with: gpt2lab train --out {run.path} --resume")
        self.signal, self.run, self.step = signal, run, step


@dataclass(frozen=True)
class Data:
    """What a run reads, checked; and what it must be again when the run goes on."""

    train: TokenStream
    val: TokenStream | None
    fingerprints: dict[str, str]
    """Of the ``data`` and of its ``tokenizer``."""

    @classmethod
    def open(cls, dataset: TokenDataset) -> Data:
        """Check and open the splits that training uses."""
        val = dataset.stream("val") if "val" in dataset.manifest.splits else None
        fingerprints = {"data": dataset.fingerprint, "tokenizer": dataset.manifest.tokenizer.fingerprint}
        return cls(dataset.stream("train"), val, fingerprints)


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
        self.optimiser = adamw(self.model, self.config.optim)
        self.scaler = torch.amp.GradScaler(self.runtime.device.type, enabled=self.runtime.precision == "fp16")
        self.peak, self.peak_source = peak_flops(self.runtime.device, self.runtime.precision)
        self.progress = Progress()
        self._newest_val = self.progress.val_loss
        self._tokens_per_s = 0.0
        if self.config.compile == "on":
            for block in self.model.h:
                block.compile()

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Take up the state of a checkpoint that was verified."""
        state = saved.state
        checkpoint.load_into(saved, self.model, self.optimiser)
        self.progress = Progress(**{field.name: state[field.name] for field in dataclasses.fields(Progress)})
        if self.progress.scaler:
            self.scaler.load_state_dict(self.progress.scaler)

    def fit(self) -> None:
        """Train to the end, or until a signal or patience ends it.

        Raises:
            Interrupted: A signal came; the state was saved.
            InputError: Memory ran out, or the loss or gradient is not finite.
        """
        try:
            with catch_signals() as signals:
                self._fit(signals)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            advice = out_of_memory(error, self.config)
            if advice is None:
                raise
            raise advice from error

    def _fit(self, signals: Callable[[], int | None]) -> None:
        progress, config = self.progress, self.config
        clock = row_clock = time.perf_counter()
        row_step = progress.step
        while progress.finished is None:
            report = self.update()
            step, now = progress.step, time.perf_counter()
            progress.seconds, clock = progress.seconds + now - clock, now
            self._tokens_per_s = batch_tokens(config) * (step - row_step) / (now - row_clock)
            last = step == self.plan.steps
            self._validate(due=step % config.eval_every == 0 or last)
            self._stop_early(last)
            over, signal = progress.finished is not None, signals()
            if step % config.log_every == 0 or progress.val_loss is not None or over:
                self._write_row(report)
            if over or (config.sample_every and step % config.sample_every == 0):
                self._sample()
            improved = progress.val_loss is not None and progress.evals_since_best == 0
            if step % config.checkpoint_every == 0 or improved or over or signal is not None:
                self.save()
            if progress.val_loss is not None or over or signal is not None:
                curves.draw(self.run)
            self._tell(report)
            if progress.loss_count == 0:  # a row was written: its rate leaves out what else was done since
                row_clock, row_step = time.perf_counter(), step
            if signal is not None and not over:
                raise Interrupted(signal, self.run, step)
        log.info("finished: %s", progress.finished)

    def _tell(self, report: StepReport) -> None:
        if self.hooks.on_step is not None:
            told = dataclasses.replace(report, val_loss=self._newest_val, tokens_per_s=self._tokens_per_s)
            self.hooks.on_step(told)

    def update(self) -> StepReport:
        """Do one optimiser step."""
        step, config = self.progress.step, self.config
        self.model.train()
        total = torch.zeros((), device=self.runtime.device)
        for micro_step in range(self.loader.micro_steps):
            batch = self.loader.batch(step, micro_step)
            tokens = batch.tokens.to(self.runtime.device, non_blocking=True)
            targets = batch.targets.to(self.runtime.device, non_blocking=True)
            runtime.seed_step(config.seed, step + 1, micro_step, self.runtime.rank)
            with self.runtime.autocast():
                mean = self.model(tokens, targets).loss
            assert mean is not None  # targets were given
            part = mean / self.loader.micro_steps
            self.scaler.scale(part).backward()
            total += part.detach()
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
        return StepReport(self.progress.step, self.plan.steps, loss, None, lr, grad_norm, self._tokens_per_s)

    def _require_finite(self, loss: float, grad_norm: float, step: int) -> None:
        """Stop before a broken update. In fp16 an overflowing gradient is the scaler's to skip."""
        if math.isfinite(loss) and (math.isfinite(grad_norm) or self.scaler.is_enabled()):
            return
        raise InputError(
            f"step {step + 1}: loss {loss}, gradient norm {grad_norm}: training diverged and the update was not made; "
            f"lower --optim.lr (now {self.config.optim.lr}) and --resume, or see docs/troubleshooting.md"
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

    def _write_row(self, report: StepReport) -> None:
        progress, config = self.progress, self.config
        row = {
            "step": progress.step,
            "tokens": progress.step * batch_tokens(config),
            "epoch": round(self.loader.epoch_of(progress.step), 4),
            "train_loss": progress.loss_sum / progress.loss_count,
            "val_loss": progress.val_loss,
            "lr": report.lr,
            "grad_norm": report.grad_norm,
            "tokens_per_s": round(self._tokens_per_s, 1),
            "mfu": round(mfu(config.model, config.window, self._tokens_per_s, self.peak), 4),
            "peak_memory_mb": round(runtime.peak_memory_mb(self.runtime.device), 1),
            "seconds": round(progress.seconds, 3),
        }
        self.run.add_metrics(row)
        progress.loss_sum, progress.loss_count = 0.0, 0
        val = "" if progress.val_loss is None else f"  val {progress.val_loss:.4f}"
        log.info(
            "step %d/%d  loss %.4f%s  lr %.2e  norm %.2f  %s tokens/s",
            *(progress.step, self.plan.steps, row["train_loss"], val, report.lr, report.grad_norm),
            f"{self._tokens_per_s:,.0f}",
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
        self.model.eval()
        with runtime.eager() if self.config.compile == "on" else nullcontext(), self.runtime.autocast():
            yield
        self.model.train()


def validation_loss(model: GPT, stream: TokenStream, seq_len: int, max_tokens: int) -> float:
    """Return the mean loss in nats over whole windows spread evenly over a stream: the same ones at every call.

    Args:
        model: In evaluation mode.
        stream: The validation split.
        seq_len: Tokens of a window.
        max_tokens: Use at most so many; 0 uses every whole window.
    """
    windows = count_windows(stream, seq_len)
    used = min(windows, max(1, max_tokens // seq_len)) if max_tokens else windows
    starts = np.arange(used) * windows // used * seq_len
    rows = max(1, VALIDATION_PASS_TOKENS // seq_len)
    device = model.wte.weight.device
    total = 0.0
    for part in np.array_split(starts, -(-used // rows)):
        tokens = torch.from_numpy(stream.read(part, seq_len + 1).astype(np.int64)).to(device)
        total += model.token_losses(tokens[:, :-1], tokens[:, 1:]).double().sum().item()
    return total / (used * seq_len)
