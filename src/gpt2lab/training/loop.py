"""The training loop.

    for step in range(steps):
        for micro_batch in step's batch:                    # `Trainer.update`: one optimizer step
            (loss(micro_batch) / micro_steps).backward()        gradients add up
        clip the gradient's norm to grad_clip
        optimizer.step() at this step's learning rate
        every so often: validate, log, sample, save          # `Trainer.fit`: the loop

`Progress` and the state of weights and optimizer are all that a checkpoint holds: batches and dropout are functions of
(seed, step, micro-step, rank), so a resumed run repeats the bits of one that never stopped.

A loss is a spike if it is far above the losses of the last steps:

    z = (loss - mean) / standard deviation        over the last 100 steps; a spike has z > spike_z

Chowdhery et al. 2022 (PaLM, section 5.1) skipped the updates around spikes by hand. A spike is added to the window like
any other loss, so a loss that stays high counts as a spike for a few steps only.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.utils.checkpoint

from gpt2lab import plots, runtime
from gpt2lab.data.loader import Prefetcher, read_windows, spread_windows, within_documents
from gpt2lab.data.shards import TokenStream
from gpt2lab.files import free_path, temporary_name
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import make_model
from gpt2lab.model.language_model import LanguageModel, OwnModel, evaluating
from gpt2lab.runs import Run
from gpt2lab.runtime import Runtime, peak_flops
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training import checkpoint
from gpt2lab.training.distributed import (
    MODES,
    SINGLE_PROCESS,
    Communicator,
    Interrupted,
    catch_signals,
    clip_gradients,
)
from gpt2lab.training.optim import learning_rate, make_optimizer, set_learning_rate
from gpt2lab.training.setup import Data, Setup

log = logging.getLogger("gpt2lab")
SPIKE_WINDOW = 100
"""Steps to which a loss is compared."""
SPIKE_FROM = 20
"""Losses needed before any can be a spike."""
LEAST_DEVIATION = 0.01
"""Lower bound of the standard deviation as a fraction of the mean: on a plateau, every rise is many deviations."""
NAMED_WINDOWS = 8


@dataclass(frozen=True)
class StepReport:
    """What `Hooks.on_step` receives after each update."""

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
    """Norm of the gradient before clipping."""
    tokens_per_s: float
    """Speed since the last row of metrics.csv."""


class Hooks:
    """What a run does besides training. A subclass overrides methods; except for `check`, only rank 0 calls them.

    So the training loop depends neither on sampling nor on evaluation.
    """

    def check(self, tokenizer: Tokenizer, model: GPTConfig) -> None:
        """Raise `InputError` if the methods below cannot work with these; called before the run directory exists."""

    def begin(self, run: Run, where: Runtime) -> None:
        """Called once when the run directory exists, before training."""

    def on_step(self, report: StepReport) -> None:
        """Called after each update."""

    def on_row(self, row: Mapping[str, float | None]) -> None:
        """Called with each row of metrics.csv, and ``data_wait``, the fraction of time spent waiting for data."""

    def sample(self, model: LanguageModel, step: int) -> None:
        """Called with the model, in evaluation mode, every ``sample_every`` steps and at the end."""

    def hellaswag(self, model: LanguageModel, step: int) -> None:
        """Called like `sample`, every ``hellaswag_every`` steps and at the end, if ``hellaswag`` is given."""


@dataclass
class Progress:
    """The scalars of the training state."""

    step: int = 0
    loss_sum: float = 0.0
    """Sum and count of the losses since the last row of metrics.csv."""
    loss_count: int = 0
    recent_losses: list[float] = dataclasses.field(default_factory=list)
    """Losses of the last steps, to which a spike is compared."""
    val_loss: float | None = None
    """Validation loss at this step; None if it was not evaluated."""
    best_val_loss: float | None = None
    evals_since_best: int = 0
    seconds: float = 0.0
    finished: str | None = None
    """Why the run is finished; None while it is not."""
    scaler: dict[str, float] = dataclasses.field(default_factory=dict)
    """State of the gradient scaler, if the precision is fp16."""


class Update(NamedTuple):
    """One optimizer step: mean loss of the batch in nats, learning rate, and gradient norm before clipping."""

    loss: float
    lr: float
    grad_norm: float


class Trainer:
    """The model, optimizer, data and progress of one run."""

    def __init__(self, setup: Setup, data: Data, run: Run, hooks: Hooks) -> None:
        self.setup, self.config, self.runtime, self.comm = setup, setup.config, setup.runtime, setup.comm
        self.data, self.run, self.hooks = data, run, hooks
        self.loader = data.loader(self.config, self.comm)
        self.batches = Prefetcher(self.loader, self.config.loader_workers)
        own = self.config.model.network is not None
        runtime.seed_step(self.config.seed, every=own)
        self.model = make_model(self.config.model).to(self.runtime.device)
        if isinstance(self.model, OwnModel) and isinstance(data.train, TokenStream) and data.train.masked:
            self.model.require_ignored_targets()
        self.scaler = torch.amp.GradScaler(self.runtime.device.type, enabled=self.runtime.precision == "fp16")
        self.peak, self.peak_source = peak_flops(self.runtime.device, self.runtime.precision)
        self.progress = Progress()
        self._newest_val_loss: float | None = None
        self._data_wait = 0.0
        if self.config.activation_checkpointing:
            checkpoint_blocks(self.model)
        if self.config.compile == "on":
            runtime.key_compiled_code()
            if self.config.activation_checkpointing and self.model.config.value_residual:
                # A first layer that is recomputed keeps its values once, in the forward pass.
                torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True
            self.model.compile_parts(dynamic=False if self.config.grows else None)  # a few shapes, each for itself
        self.parallel = MODES[self.config.parallel](self.model, self.runtime)
        # After sharding: of this rank's shards. Muon's products run in bf16 only if those of the model do.
        dtype = torch.bfloat16 if self.runtime.dtype == torch.bfloat16 else torch.float32
        self.optimizer = make_optimizer(self.model, self.config.optim, dtype)

    def update(self) -> Update:
        """Do one optimizer step.

        Raises:
            InputError: The loss or the gradient is not finite; nothing was changed.
        """
        step, config = self.progress.step, self.config
        self.model.train()
        counts = self.loader.counted(step) != 0
        if not counts:
            log.warning("step %d: none of its tokens counts, no update; larger --batch-tokens avoid this", step + 1)
        parts = [self._backward(step, micro_step) for micro_step in range(self.loader.passes(step)[0])]
        self.scaler.unscale_(self.optimizer)
        grad_norm = clip_gradients(self.model, config.optim.grad_clip)
        losses: list[list[float]] = self.comm.all_gather(torch.stack(parts)).tolist()  # (rank, micro-step)
        loss = math.fsum(itertools.chain(*losses)) / len(losses)
        self._require_finite(loss, losses, grad_norm, step)
        skip = not counts or (self._is_spike(loss, losses, step) and config.on_spike == "skip")
        lr = learning_rate(config.optim, step, config.steps, config.batch_tokens)
        set_learning_rate(self.optimizer, lr)
        if not skip:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.loss_sum += loss
        self.progress.loss_count += 1
        return Update(loss, lr, grad_norm)

    def _backward(self, step: int, micro_step: int) -> torch.Tensor:
        """Add the gradient of a micro-batch; return its part of this rank's cross-entropy, shape ()."""
        micro_steps, _ = self.loader.passes(step)
        self.parallel.sync_gradients(micro_step == micro_steps - 1)
        begin = time.perf_counter()
        batch = self.batches.batch(step, micro_step)
        self._data_wait += time.perf_counter() - begin
        batch = batch.to(self.runtime.device)
        own = self.config.model.network is not None
        runtime.seed_step(self.config.seed, step + 1, micro_step, self.comm.rank, every=own)  # dropout
        with self.runtime.autocast():
            mean = self.parallel.network(batch.tokens, batch.targets, None, batch.documents, batch.positions).loss
        assert mean is not None  # targets were given

        def share(loss: torch.Tensor) -> torch.Tensor:
            return loss / micro_steps if batch.weight is None else loss * batch.weight

        self.scaler.scale(share(mean)).backward()
        return share(mean.detach() - self.model.added_loss)

    def fit(self) -> None:
        """Train to the end, or until a signal or patience ends it.

        Raises:
            Interrupted: A signal came; the state was saved.
            InputError: The loss or gradient is not finite, or the disk is full.
        """
        with catch_signals() as received, ExitStack() as trace, self._preparing_ahead(received), self.batches:
            self._loop(received, trace)
        log.info("finished: %s", self.progress.finished)

    def _loop(self, received: Callable[[], int | None], trace: ExitStack) -> None:
        progress, config = self.progress, self.config
        clock = row_clock = time.perf_counter()
        row_step = progress.step  # the step of the last row of metrics.csv
        while progress.finished is None:
            update = self._traced_update(trace)
            step, now = progress.step, time.perf_counter()
            progress.seconds, clock = progress.seconds + now - clock, now
            read = self.loader.tokens_before(step) - self.loader.tokens_before(row_step)
            tokens_per_s = read / (now - row_clock)

            validated = step % config.eval_every == 0 or step == config.steps
            self._validate(validated)
            self._finish_if_over()
            over = progress.finished is not None
            signal = self.comm.all_reduce_max(received() or 0)  # a signal may reach some ranks only
            logged = step % config.log_every == 0 or progress.val_loss is not None or over
            if logged:
                self._log(update, tokens_per_s)
            self._run_hook(self.hooks.sample, config.sample_every, over)
            if config.hellaswag is not None:
                self._run_hook(self.hooks.hellaswag, config.hellaswag_every, over)
            if over or signal or self._checkpoint_is_due():
                self.save()
            if self.comm.is_main and (validated or over or signal):
                draw_curves(self.run)
            figures = (update.loss, self._newest_val_loss, update.lr, update.grad_norm, tokens_per_s)
            self.hooks.on_step(StepReport(step, config.steps, *figures))
            if logged:  # the speed of the next row leaves out what was done besides training
                row_clock, row_step = time.perf_counter(), step
            if signal and not over:
                raise Interrupted(signal, self.run, step)

    def _traced_update(self, trace: ExitStack) -> Update:
        """Update; ``trace`` is open from the first of the steps to profile to the last."""
        steps = self.config.profiled if self.comm.is_main else None
        if steps is not None and self.progress.step + 1 == steps[0]:
            trace.enter_context(traced(steps, self.run.path, self.runtime.device))
        update = self.update()
        if steps is not None and self.progress.step == steps[-1]:
            trace.close()
        return update

    def _validate(self, due: bool) -> None:
        """Measure the validation loss if it is due and there is a validation split."""
        progress, config = self.progress, self.config
        progress.val_loss = None
        if not due or self.data.val is None:
            return
        with self._evaluating():
            loss = validation_loss(
                self.model, self.data.val, config.seq_len, config.eval_tokens, self.data.eot, self.comm
            )
        progress.val_loss = self._newest_val_loss = loss
        if progress.best_val_loss is None or loss < progress.best_val_loss:
            progress.best_val_loss, progress.evals_since_best = loss, 0
        else:
            progress.evals_since_best += 1

    def _finish_if_over(self) -> None:
        """Set ``progress.finished`` after the last step, or if patience has run out."""
        progress, config = self.progress, self.config
        if progress.step == config.steps:
            progress.finished = f"{config.steps:,} steps done"
        elif config.patience and progress.evals_since_best >= config.patience:
            progress.finished = f"no better validation loss in {config.patience} validations"

    def _log(self, update: Update, tokens_per_s: float) -> None:
        """Write a row of metrics.csv and a line of the log."""
        progress, config = self.progress, self.config
        steps = range(progress.step - progress.loss_count, progress.step)
        lengths = Counter(map(self.loader.length_at, steps))
        flops = sum(n * config.model.flops_per_token(T) for T, n in lengths.items()) / lengths.total()
        tokens = self.loader.tokens_before(progress.step)
        row = {
            "step": progress.step,
            "tokens": tokens,
            "epoch": round(self.loader.epoch_of(progress.step), 4),
            "train_loss": progress.loss_sum / progress.loss_count,
            "val_loss": progress.val_loss,
            "lr": update.lr,
            "grad_norm": update.grad_norm,
            "tokens_per_s": round(tokens_per_s, 1),
            "mfu": round(flops * tokens_per_s / (self.peak * self.comm.world_size), 4),
            "peak_memory_mb": round(runtime.peak_memory_mb(self.runtime.device), 1),
            "seconds": round(progress.seconds, 3),
        }
        if self.comm.is_main:
            self.run.add_metrics(row)
        seconds = (tokens - self.loader.tokens_before(steps.start)) / tokens_per_s
        data_wait, self._data_wait = self._data_wait / seconds, 0.0
        self.hooks.on_row(row | {"data_wait": data_wait})
        progress.loss_sum, progress.loss_count = 0.0, 0
        val = "" if progress.val_loss is None else f"  val {progress.val_loss:.4f}"
        log.info(
            "step %d/%d  loss %.4f%s  lr %.2e  norm %.2f  data %.1f %%  %s tokens/s",
            *(progress.step, config.steps, row["train_loss"], val, update.lr, update.grad_norm),
            *(100 * data_wait, f"{tokens_per_s:,.0f}"),
            extra={"in_bar": progress.val_loss is None},  # a terminal shows these in its progress bar
        )

    def _run_hook(self, hook: Callable[[LanguageModel, int], None], every: int, over: bool) -> None:
        """Call a hook with the full model if it is due: on rank 0, for which all ranks gather the weights."""
        if not over and (not every or self.progress.step % every):
            return
        does_something = getattr(hook, "__func__", None) not in (Hooks.sample, Hooks.hellaswag)
        if not self.comm.all_reduce_max(does_something):
            return
        with self._evaluating():
            model = self.parallel.full_model(keep=self.comm.is_main)
            if model is not None:
                hook(model, self.progress.step)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode, in the run's precision, without the compiler."""
        uncompiled = runtime.eager() if self.config.compile == "on" else nullcontext()
        with evaluating(self.model), uncompiled, self.runtime.autocast():
            yield
        self.parallel.reshard()

    def _checkpoint_is_due(self) -> bool:
        progress = self.progress
        improved = progress.val_loss is not None and progress.evals_since_best == 0
        # A segment of a stream may only be deleted once no resumed run can need it again.
        segment_ends = self.loader.begins_section(progress.step)
        return progress.step % self.config.checkpoint_every == 0 or improved or segment_ends

    def save(self) -> None:
        """Write a checkpoint, then delete those that are no longer kept."""
        if self.scaler.is_enabled():
            self.progress.scaler = self.scaler.state_dict()
        state = dataclasses.asdict(self.progress)
        state |= {"fingerprints": self.data.fingerprints, "world": self.comm.world_size}
        if isinstance(self.model, OwnModel):  # whose weights have buffers beside them, for all that is known
            state |= {"parameters": self.model.n_params}
        checkpoint.save(self.run, self.model, self.optimizer, state, self.comm)
        self.comm.run_on_main(lambda: checkpoint.prune(self.run, self.config.keep_last))
        self.loader.release(self.progress.step, over=self.progress.finished is not None)

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Load the state of a verified checkpoint."""
        state = saved.state
        checkpoint.load_into(saved, self.model, self.optimizer)
        self.progress = Progress(**{f.name: state[f.name] for f in dataclasses.fields(Progress) if f.name in state})
        self.progress.finished = None
        if self.progress.scaler:
            self.scaler.load_state_dict(self.progress.scaler)

    def _preparing_ahead(self, received: Callable[[], int | None]) -> AbstractContextManager[None]:
        """Prepare the next segments of a stream in the background; a signal ends a wait for them."""

        def stop_if_interrupted() -> None:
            if signal := received():
                raise Interrupted(signal, self.run, self.progress.step)  # saved when the segment began

        return self.loader.preparing_ahead(self.progress.step, stop_if_interrupted)

    def _require_finite(self, loss: float, losses: list[list[float]], grad_norm: float, step: int) -> None:
        """Stop before a broken update. In fp16 the scaler skips updates whose gradient overflows."""
        every = ((rank, n, loss) for rank, row in enumerate(losses) for n, loss in enumerate(row))
        broken = next(((rank, n) for rank, n, loss in every if not math.isfinite(loss)), None)
        if broken is None and (math.isfinite(grad_norm) or self.scaler.is_enabled()):
            return
        rank, micro_step = broken or (None, None)  # a gradient is the mean over ranks, and of no single one
        raise self.comm.error(
            f"step {step + 1}: loss {loss}, gradient norm {grad_norm}, {self._where(step, rank, micro_step)}: training "
            f"diverged and the update was not made; start again with a lower --optim.lr (now {self.config.optim.lr}), "
            "or see docs/troubleshooting.md"
        )

    def _is_spike(self, loss: float, losses: list[list[float]], step: int) -> bool:
        """Return whether a loss stands out from those before it, and warn of it."""
        recent, config = self.progress.recent_losses, self.config
        if config.on_spike == "off":
            return False
        spike = find_spike(loss, recent, config.spike_z)
        if spike is None:
            return False
        worst_rank = max(range(len(losses)), key=lambda rank: sum(losses[rank]))
        log.warning(
            "step %d: loss %.4f is %.1f deviations above the mean of the last steps, %.4f (highest %s)%s",
            *(step + 1, loss, spike.z, spike.mean, self._where(step, worst_rank, None)),
            ": its update is skipped" if config.on_spike == "skip" else "",
        )
        return True

    def _where(self, step: int, rank: int | None, micro_step: int | None) -> str:
        """Return the windows that a step read, for a message: on one rank or all, in one micro-step or all."""
        ranks = range(self.comm.world_size) if rank is None else [rank]
        micro_steps = range(self.loader.passes(step)[0]) if micro_step is None else [micro_step]
        windows = np.concatenate([self.loader.windows(step, m, r) for r in ranks for m in micro_steps])
        where = "on every rank" if len(ranks) > 1 else f"on rank {ranks[0]}"
        where += "" if micro_step is None else f" in micro-step {micro_step + 1}"
        named = ", ".join(map(str, windows[:NAMED_WINDOWS]))
        more = f" and {len(windows) - NAMED_WINDOWS} more" if len(windows) > NAMED_WINDOWS else ""
        return f"{where}, window{'s' if len(windows) > 1 else ''} {named}{more}"


class Spike(NamedTuple):
    """A loss far above the mean of those before it: ``z`` standard deviations."""

    mean: float
    z: float


def find_spike(loss: float, recent: list[float], threshold: float) -> Spike | None:
    """Return the spike if a loss is one, and append the loss to the window in place, whose oldest it drops.

    None also if too few losses came before it.
    """
    before = recent[:]
    recent.append(loss)
    del recent[:-SPIKE_WINDOW]
    if len(before) < SPIKE_FROM:
        return None
    mean = statistics.fmean(before)
    z = (loss - mean) / max(statistics.pstdev(before, mean), LEAST_DEVIATION * abs(mean))
    return Spike(mean, z) if z > threshold else None


VALIDATION_PASS_TOKENS = 4_096
"""Tokens per forward pass: fixed, so that the loss has the same bits whatever the training batch."""


def validation_loss(
    model: LanguageModel,
    stream: TokenStream,
    seq_len: int,
    max_tokens: int,
    eot: int | None = None,
    comm: Communicator = SINGLE_PROCESS,
) -> float:
    """Return the mean loss in nats per token over windows spread evenly over a stream: the same ones at every call.

    Of a masked stream, it is the mean over the tokens that count.

    Args:
        model: In evaluation mode.
        stream: The validation split.
        seq_len: Tokens per window.
        max_tokens: Use at most this many; 0 uses every whole window.
        eot: The id that documents start with, if attention is to stay within them.
        comm: The processes that share the windows; all of them must call this.
    """
    starts = spread_windows(stream, seq_len, max_tokens)
    rows = max(1, VALIDATION_PASS_TOKENS // seq_len)
    device = model.device
    parts = np.array_split(starts, -(-len(starts) // rows))
    totals = torch.zeros(-(-len(parts) // comm.world_size), dtype=torch.float64)
    for turn in range(len(totals)):
        index = turn * comm.world_size + comm.rank
        # A rank without a part repeats the last one: under FSDP every forward pass gathers weights from all ranks.
        part = parts[min(index, len(parts) - 1)]
        tokens, targets = (half.to(device) for half in read_windows(stream, part, seq_len))
        documents = (None, None) if eot is None else within_documents(tokens, eot)
        losses = model.token_losses(tokens, targets, *documents)
        if index < len(parts):
            totals[turn] = losses.double().sum()
    in_order = comm.all_gather(totals).T.flatten().tolist()  # as one process would add them up
    counted = int(stream.counted(starts + 1, seq_len).sum()) if stream.masked else len(starts) * seq_len
    return sum(in_order) / counted


def checkpoint_blocks(model: LanguageModel) -> None:
    """Let every block of a model recompute its activations in the backward pass. Call before compiling."""

    def recompute(forward: Callable[..., torch.Tensor], *inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs)
        return torch.utils.checkpoint.checkpoint(forward, *inputs, use_reentrant=False)

    for block in model.blocks:
        block.forward = functools.partial(recompute, block.forward)


def draw_curves(run: Run) -> None:
    """Draw ``curves.png`` from ``metrics.csv``, atomically."""
    rows = run.metrics()
    curves = {
        name: [(step, y) for row in rows if (step := row["step"]) is not None and (y := row[name]) is not None]
        for name in ("train_loss", "val_loss", "lr")
    }
    plots.write_png(run.path / "curves.png", plots.losses({"": curves}, x_label="step"))


@contextmanager
def traced(steps: range, folder: Path, device: torch.device) -> Iterator[None]:
    """Trace a block that runs ``steps`` with torch.profiler; the trace is written even if the block is interrupted."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    profiler = torch.profiler.profile(activities=activities, acc_events=True)
    profiler.start()
    try:
        yield
    finally:
        profiler.stop()
        path = free_path(folder / f"trace_{steps[0]}-{steps[-1]}.json")
        temporary = temporary_name(path)
        profiler.export_chrome_trace(str(temporary))
        temporary.replace(path)
        log.info("trace of steps %d to %d: %s", steps[0], steps[-1], path)
