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
import functools
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint

from gpt2lab import runtime
from gpt2lab.data.loader import Prefetcher, count_windows, within_documents
from gpt2lab.data.shards import TokenStream
from gpt2lab.data.streaming import StreamLoader
from gpt2lab.model.flops import mfu, peak_flops
from gpt2lab.model.gpt import GPT, evaluating
from gpt2lab.runs import Run
from gpt2lab.training import checkpoint, monitoring
from gpt2lab.training.distributed import SINGLE_PROCESS, Communicator, Interrupted, catch_signals
from gpt2lab.training.monitoring import Profiler
from gpt2lab.training.optim import learning_rate, make_optimiser, set_learning_rate
from gpt2lab.training.parallel import MODES, clip_gradients
from gpt2lab.training.setup import Data, Progress, Setup, Update


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
    """The newest validation loss since the run was started or resumed."""
    lr: float
    """Learning rate of the update."""
    grad_norm: float
    """Norm of the gradient before it was clipped."""
    tokens_per_s: float
    """Speed since the last row of metrics.csv."""


@dataclass(frozen=True)
class Hooks:
    """What else happens while a run goes on."""

    on_step: Callable[[StepReport], None] | None = None
    """Called after each update."""
    on_row: Callable[[Mapping[str, float | None]], None] | None = None
    """Called with each row of metrics.csv, and ``data_wait``, the share of the time that was spent waiting for data."""
    sample: Callable[[GPT, int], None] | None = None
    """Called with the model, in evaluation mode, and the step, every ``sample_every`` steps and at the end."""
    hellaswag: Callable[[GPT, int], None] | None = None
    """Called like ``sample``, every ``hellaswag_every`` steps and at the end."""


HooksFor = Callable[[Run], Hooks]
"""Makes the hooks of a run once its directory exists."""


PASS_TOKENS = 4_096
"""Tokens of a pass: fixed, so that the loss has the same bits whatever the training batch."""


def validation_loss(
    model: GPT,
    stream: TokenStream,
    seq_len: int,
    max_tokens: int,
    eot: int | None = None,
    comm: Communicator = SINGLE_PROCESS,
) -> float:
    """Return the mean loss in nats over whole windows spread evenly over a stream: the same ones at every call.

    Args:
        model: In evaluation mode.
        stream: The validation split.
        seq_len: Tokens of a window.
        max_tokens: Use at most so many; 0 uses every whole window.
        eot: The id that documents begin with, where attention is to stay within them.
        comm: Those that share the windows; every one of them must call it.
    """
    windows = count_windows(stream, seq_len)
    used = min(windows, max(1, max_tokens // seq_len)) if max_tokens else windows
    starts = np.arange(used) * windows // used * seq_len
    rows = max(1, PASS_TOKENS // seq_len)
    device = model.wte.weight.device
    parts = np.array_split(starts, -(-used // rows))
    totals = torch.zeros(-(-len(parts) // comm.world_size), dtype=torch.float64)
    for turn in range(len(totals)):
        index = turn * comm.world_size + comm.rank
        # A rank that has no part left takes part all the same: under fsdp each pass gathers weights from all ranks.
        part = parts[min(index, len(parts) - 1)]
        read = torch.from_numpy(stream.read(part, seq_len + 1).astype(np.int64)).to(device)
        tokens, targets = read[:, :-1], read[:, 1:]
        apart = (None, None) if eot is None else within_documents(tokens, eot)
        losses = model.token_losses(tokens, targets, *apart)
        if index < len(parts):
            totals[turn] = losses.double().sum()
    in_order = comm.all_gather(totals).T.flatten().tolist()  # as one process would add them up
    return sum(in_order) / (used * seq_len)


def checkpoint_blocks(model: GPT) -> None:
    """Let every block of a model recompute its activations in the backward pass. Call before compiling."""
    for block in model.h:
        block.forward = _recomputed(block.forward)


def _recomputed(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(forward)
    def run(*inputs: Any) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return forward(*inputs)
        return torch.utils.checkpoint.checkpoint(forward, *inputs, use_reentrant=False)  # type: ignore[no-any-return]

    return run


log = logging.getLogger("gpt2lab")


class Trainer:
    """One run: a model, its optimiser, its data, and where they stand."""

    def __init__(self, setup: Setup, data: Data, run: Run, hooks: Hooks, comm: Communicator = SINGLE_PROCESS) -> None:
        self.setup, self.config, self.runtime, self.comm = setup, setup.config, setup.runtime, comm
        self.data, self.run, self.hooks = data, run, hooks
        self.loader = data.loader(self.config, self.runtime)
        self.rounds = self.loader if isinstance(self.loader, StreamLoader) else None
        self.batches = Prefetcher(self.loader, self.config.loader_workers)
        runtime.seed_step(self.config.seed)
        self.model = GPT(self.config.model).to(self.runtime.device)
        self.scaler = torch.amp.GradScaler(self.runtime.device.type, enabled=self.runtime.precision == "fp16")
        self.peak, self.peak_source = peak_flops(self.runtime.device, self.runtime.precision)
        self.progress = Progress()
        self._newest_val: float | None = None
        self._data_wait = 0.0
        if self.config.activation_checkpointing:
            checkpoint_blocks(self.model)
        if self.config.compile == "on":
            for block in self.model.h:
                block.compile()
        self.parallel = MODES[self.config.parallel](self.model, self.runtime)
        self.optimiser = make_optimiser(self.model, self.config.optim)  # of what this rank keeps of each parameter

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Take up the state of a checkpoint that was verified, to train on from it."""
        state = saved.state
        checkpoint.load_into(saved, self.model, self.optimiser)
        self.progress = Progress(**{f.name: state[f.name] for f in dataclasses.fields(Progress) if f.name in state})
        self.progress.finished = None
        if self.progress.scaler:
            self.scaler.load_state_dict(self.progress.scaler)

    def fit(self) -> None:
        """Train to the end, or until a signal or patience ends it.

        Raises:
            Interrupted: A signal came; the state was saved.
            InputError: The loss or gradient is not finite, or the disk is full.
        """
        tracing = Profiler(self.config.profiled if self.comm.is_main else None, self.run.path, self.runtime.device)
        with catch_signals() as signals, tracing as profiler, self._prepared_ahead(signals), self.batches:
            self._fit(signals, profiler)
        log.info("finished: %s", self.progress.finished)

    def _prepared_ahead(self, signals: Callable[[], int | None]) -> AbstractContextManager[None]:
        """Have data prepared meanwhile, where it comes in rounds; a signal ends waiting for it, with all saved."""

        def check() -> None:
            if signal := signals():
                raise Interrupted(signal, self.run, self.progress.step)

        return nullcontext() if self.rounds is None else self.rounds.preparing_ahead(self.progress.step, check)

    def _fit(self, signals: Callable[[], int | None], profiler: Profiler) -> None:
        progress, config = self.progress, self.config
        clock = row_clock = time.perf_counter()
        row_step = progress.step
        while progress.finished is None:
            profiler.before(progress.step + 1)
            update = self.update()
            profiler.after(progress.step)
            step, now = progress.step, time.perf_counter()
            progress.seconds, clock = progress.seconds + now - clock, now
            tokens_per_s = config.batch_tokens * (step - row_step) / (now - row_clock)
            last = step == self.config.steps
            eval_due = last or step % config.eval_every == 0
            self._validate(eval_due)
            self._stop_early(last)
            over, signal = progress.finished is not None, self.comm.all_reduce_max(signals() or 0)
            if step % config.log_every == 0 or progress.val_loss is not None or over:
                self._write_row(update, tokens_per_s)
            for hook, every in (
                (self.hooks.sample, config.sample_every),
                (self.hooks.hellaswag, config.hellaswag_every),
            ):
                due = over or (every and step % every == 0)
                if due and self.comm.all_reduce_max(hook is not None):  # rank 0 has the hooks
                    self._show(hook)
            improved = progress.val_loss is not None and progress.evals_since_best == 0
            round_ends = self.rounds is not None and self.rounds.begins_segment(step)  # so that it can be deleted
            if step % config.checkpoint_every == 0 or improved or over or signal or round_ends:
                self.save()
            if self.comm.is_main and (eval_due or over or signal):
                monitoring.draw(self.run)
            self._tell(update, tokens_per_s)
            if progress.loss_count == 0:  # a row was written: its rate leaves out what else was done since
                row_clock, row_step = time.perf_counter(), step
            if signal and not over:
                raise Interrupted(signal, self.run, step)

    def _tell(self, update: Update, tokens_per_s: float) -> None:
        if self.hooks.on_step is not None:
            step, steps = self.progress.step, self.config.steps
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
        parts = [self._accumulate(step, micro_step) for micro_step in range(self.loader.micro_steps)]
        self.scaler.unscale_(self.optimiser)
        grad_norm = clip_gradients(self.model, config.optim.grad_clip)
        losses: list[list[float]] = self.comm.all_gather(torch.stack(parts)).tolist()  # of each rank's micro-steps
        loss = math.fsum(itertools.chain(*losses)) / len(losses)
        self._require_finite(losses, grad_norm, step)
        skip = self._spikes(loss, losses, step)
        lr = learning_rate(config.optim, step, self.config.steps, config.batch_tokens)
        set_learning_rate(self.optimiser, lr)
        if not skip:
            self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.loss_sum += loss
        self.progress.loss_count += 1
        return Update(loss, lr, grad_norm)

    def _accumulate(self, step: int, micro_step: int) -> torch.Tensor:
        """Add a micro-batch's part to the gradients; return its part of the rank's loss, shape ()."""
        self.parallel.sync_gradients(micro_step == self.loader.micro_steps - 1)
        begin = time.perf_counter()
        batch = self.batches.batch(step, micro_step)
        self._data_wait += time.perf_counter() - begin
        batch = batch.to(self.runtime.device)
        runtime.seed_step(self.config.seed, step + 1, micro_step, self.runtime.rank)  # dropout
        with self.runtime.autocast():
            mean = self.parallel.network(batch.tokens, batch.targets, None, batch.documents, batch.positions).loss
        assert mean is not None  # targets were given
        part = mean / self.loader.micro_steps
        self.scaler.scale(part).backward()
        return part.detach()

    def _require_finite(self, losses: list[list[float]], grad_norm: float, step: int) -> None:
        """Stop before a broken update. In fp16 an overflowing gradient is the scaler's to skip."""
        broken = monitoring.first_broken(losses)
        if broken is None and (math.isfinite(grad_norm) or self.scaler.is_enabled()):
            return
        rank, micro_step = broken or (None, None)  # a gradient is the ranks' mean, and no longer one rank's
        raise self.comm.error(
            f"step {step + 1}: loss {math.fsum(itertools.chain(*losses)) / len(losses)}, gradient norm {grad_norm}, "
            f"{self._where(step, rank, micro_step)}: training diverged and the update was not made; "
            f"start anew with a lower --optim.lr (now {self.config.optim.lr}), or see docs/troubleshooting.md"
        )

    def _where(self, step: int, rank: int | None, micro_step: int | None) -> str:
        """Return the windows that a step read, for a message: on one rank or all, in one micro-step or all."""
        ranks = range(self.runtime.world) if rank is None else [rank]
        micro_steps = range(self.loader.micro_steps) if micro_step is None else [micro_step]
        windows = [self.loader.windows(step, m, r) for r in ranks for m in micro_steps]
        where = "on every rank" if len(ranks) > 1 else f"on rank {ranks[0]}"
        where += "" if micro_step is None else f" in micro-step {micro_step + 1}"
        return f"{where}, {monitoring.name_windows(np.concatenate(windows))}"

    def _spikes(self, loss: float, losses: list[list[float]], step: int) -> bool:
        """Say where a loss stands out from those before it; return whether its update is to be skipped."""
        recent, config = self.progress.recent_losses, self.config
        if config.on_spike == "off":
            return False
        spike = monitoring.find_spike(loss, recent, config.spike_z)
        monitoring.remember(loss, recent)
        if spike is None:
            return False
        highest = max(range(len(losses)), key=lambda rank: sum(losses[rank]))
        log.warning(
            "step %d: loss %.4f is %.1f deviations above the mean of the last steps, %.4f (highest %s)%s",
            *(step + 1, loss, spike.z, spike.mean, self._where(step, highest, None)),
            ": its update is skipped" if config.on_spike == "skip" else "",
        )
        return config.on_spike == "skip"

    def _validate(self, due: bool) -> None:
        progress = self.progress
        progress.val_loss = None
        if not due or self.data.val is None:
            return
        with self._evaluating():
            loss = validation_loss(
                *(self.model, self.data.val, self.config.seq_len, self.config.eval_tokens, self.data.eot),
                self.comm,
            )
        progress.val_loss = self._newest_val = loss
        if progress.best_val_loss is None or loss < progress.best_val_loss:
            progress.best_val_loss, progress.evals_since_best = loss, 0
        else:
            progress.evals_since_best += 1

    def _stop_early(self, last: bool) -> None:
        if last:
            self.progress.finished = f"{self.config.steps:,} steps done"
        elif self.config.patience and self.progress.evals_since_best >= self.config.patience:
            self.progress.finished = f"no better validation loss in {self.config.patience} validations"

    def _write_row(self, update: Update, tokens_per_s: float) -> None:
        progress, config = self.progress, self.config
        row = {
            "step": progress.step,
            "tokens": progress.step * config.batch_tokens,
            "epoch": round(self.loader.epoch_of(progress.step), 4),
            "train_loss": progress.loss_sum / progress.loss_count,
            "val_loss": progress.val_loss,
            "lr": update.lr,
            "grad_norm": update.grad_norm,
            "tokens_per_s": round(tokens_per_s, 1),
            "mfu": round(mfu(config.model, config.seq_len, tokens_per_s, self.peak * self.runtime.world), 4),
            "peak_memory_mb": round(runtime.peak_memory_mb(self.runtime.device), 1),
            "seconds": round(progress.seconds, 3),
        }
        if self.comm.is_main:
            self.run.add_metrics(row)
        seconds = config.batch_tokens / tokens_per_s * progress.loss_count
        data_wait, self._data_wait = self._data_wait / seconds, 0.0
        if self.hooks.on_row is not None:
            self.hooks.on_row(row | {"data_wait": data_wait})
        progress.loss_sum, progress.loss_count = 0.0, 0
        val = "" if progress.val_loss is None else f"  val {progress.val_loss:.4f}"
        log.info(
            "step %d/%d  loss %.4f%s  lr %.2e  norm %.2f  data %.1f %%  %s tokens/s",
            *(progress.step, self.config.steps, row["train_loss"], val, update.lr, update.grad_norm),
            *(100 * data_wait, f"{tokens_per_s:,.0f}"),
            extra={"in_bar": progress.val_loss is None},  # a terminal shows these in its progress bar
        )

    def _show(self, hook: Callable[[GPT, int], None] | None) -> None:
        """Let rank 0 show its hook the model, with all weights; every rank must call it."""
        with self._evaluating():
            model = self.parallel.full_model(keep=self.comm.is_main)
            if model is not None and hook is not None:
                hook(model, self.progress.step)

    def save(self) -> None:
        """Write a checkpoint, then drop those that are no longer kept."""
        if self.scaler.is_enabled():
            self.progress.scaler = self.scaler.state_dict()
        state = dataclasses.asdict(self.progress)
        state |= {"fingerprints": self.data.fingerprints, "world": self.runtime.world}
        checkpoint.save(self.run, self.model, self.optimiser, state, self.comm)
        self.comm.run_on_main(lambda: checkpoint.prune(self.run, self.config.keep_last))
        if self.rounds is not None:
            self.rounds.release(self.progress.step, over=self.progress.finished is not None)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode, in the run's precision, uncompiled."""
        uncompiled = runtime.eager() if self.config.compile == "on" else nullcontext()
        with evaluating(self.model), uncompiled, self.runtime.autocast():
            yield
        self.parallel.reshard()
