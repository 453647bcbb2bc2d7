"""Run a comparison: finished runs stay as they are, interrupted runs resume, and a failed run does not stop the rest.

Each run can have its own process, so that its peak memory is its own and an out-of-memory kill ends only that run.
If the parent process ends, the run saves its state and ends too.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.process import BaseProcess

from gpt2lab import console, runtime
from gpt2lab.compare.output import write_comparison
from gpt2lab.compare.plan import ComparisonPlan, Job, require_same_options
from gpt2lab.compare.results import RECALL_FILE, Comparison, compare_outcomes, outcome_of
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.errors import InputError
from gpt2lab.evaluation.measure import Measurement
from gpt2lab.evaluation.perplexity import HeldOut, loss_by_position, perplexity_of, save_positions
from gpt2lab.evaluation.recall import recall_probe
from gpt2lab.evaluation.text_quality import FILE as TEXT_FILE
from gpt2lab.evaluation.text_quality import choose_prompts, measure_texts, save_text_quality
from gpt2lab.files import free_path, write_json
from gpt2lab.lab.train import train
from gpt2lab.runs import Run
from gpt2lab.training.checkpoint import list_checkpoints, load_model, newest_valid
from gpt2lab.training.config import TrainConfig, saved_config
from gpt2lab.training.distributed import Interrupted
from gpt2lab.training.loop import StepReport

SAMPLES = 64
"""Texts of each decoding strategy."""

log = logging.getLogger("gpt2lab")


Worker = Callable[[TrainConfig, bool], int | None]
"""Trains and measures a run, its texts too if the second argument is true. Returns the signal that interrupted it, its
state saved; raises `InputError` if it failed."""
ProgressBar = Callable[[], AbstractContextManager[Callable[[StepReport], None] | None]]
"""Opens a progress bar and gives its ``on_step``; see `train`."""


def compare(
    plan: ComparisonPlan, target_loss: float | None = None, texts: bool = False, work: Worker | None = None
) -> Comparison:
    """Finish every run of a plan, compare the runs, and write the results into its directory.

    The same as ``gpt2lab compare``, which gives each run its own process (``work=in_own_process``). Without it, the
    peak memory of a run includes that of the runs before it. Finished runs are not repeated.

    Args:
        plan: What to run; see `make_plan`.
        target_loss: Validation loss for "steps to the loss"; None is the lowest that every run reached.
        texts: Whether to measure the texts of each run by decoding strategy, which takes time.
        work: Trains and measures a run; by default `in_this_process`.

    Raises:
        InputError: A test split is too short for texts, or a run with other options is in the way; nothing was run. A
            failed run does not raise, it is named in the remarks.
        Interrupted: A signal came; finished runs stay, and the same call resumes.
    """
    jobs = plan.jobs
    for config in plan.arms.values() if texts else ():
        choose_prompts(TokenDataset(config.data), "test", config.recipe().model.n_ctx, SAMPLES)
    for job in jobs:
        if _has_checkpoint(Run(job.path)):
            require_same_options(job, saved_config(Run(job.path)))
    outcomes = []
    for number, job in enumerate(jobs, start=1):
        title = f"run {number} of {len(jobs)}: {job.arm}, seed {job.config.seed}"
        failure = _finish(job, title, texts, work or in_this_process)
        outcomes.append(outcome_of(Run(job.path), job.arm, job.config.seed, failure))
    comparison = compare_outcomes(outcomes, target_loss, plan.remarks)
    write_comparison(comparison, plan.out)
    return comparison


def _finish(job: Job, title: str, texts: bool, work: Worker) -> str | None:
    """Train and measure a run unless that is done; return the error in one line if it failed."""
    run = Run(job.path)
    checkpoints = list_checkpoints(run) if (run.path / "config.json").is_file() else []
    if checkpoints and checkpoints[-1].state["finished"] is not None and _is_measured(run, texts):
        log.info("%s: already done", title)
        return None
    log.info("%s", title)
    try:
        stopped_by = work(job.config, texts)
    except InputError as error:
        log.error("%s: %s", title, error)
        return str(error)
    if stopped_by is not None:
        checkpoints = list_checkpoints(run)
        raise Interrupted(stopped_by, run, checkpoints[-1].step if checkpoints else 0)
    return None


def _has_checkpoint(run: Run) -> bool:
    """Return whether there is a run that can be resumed."""
    if not (run.path / "config.json").is_file():
        return False
    try:
        newest_valid(run, lambda _: None)
    except InputError:
        return False
    return True


def in_this_process(config: TrainConfig, texts: bool = False, bar: ProgressBar = nullcontext) -> int | None:
    """Train a run, or resume it, and measure it; see `Worker`."""
    assert config.out is not None
    run = Run(config.out)
    if _has_checkpoint(run):
        config = dataclasses.replace(config, resume="last")
    elif run.path.exists():
        aside = run.path.rename(free_path(run.path.with_name(f"{run.path.name}.unusable")))
        log.warning("%s has no sound checkpoint to resume from: moved to %s, starting again", run.path, aside.name)
    try:
        with bar() as on_step:
            train(config, on_step)
        measure(run, texts)
    except Interrupted as stop:
        return stop.signal
    return None


def in_own_process(config: TrainConfig, texts: bool = False) -> int | None:
    """Do the same in a new process, which logs to the console and draws a progress bar there."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        future = pool.submit(_in_child, config, texts)
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise InputError("its process was killed, perhaps out of memory; try a lower --micro-batch") from error
        except KeyboardInterrupt:  # the terminal signals the process of the run too, which saves its state and ends
            return signal.SIGINT


def _in_child(config: TrainConfig, texts: bool) -> int | None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    runtime.tune_allocator()
    console.log_to_console()
    threading.Thread(target=_end_with, args=[parent], daemon=True).start()
    try:
        return in_this_process(config, texts, console.training_bar)
    finally:
        if not parent.is_alive():
            os._exit(1)  # nobody is left to get the result, and the pool would wait for more work forever


def _end_with(parent: BaseProcess) -> None:
    """Ask this process to save its state and end when its parent has ended."""
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def measure(run: Run, texts: bool) -> None:
    """Measure the best checkpoint of a finished run, and save the results with it; nothing is measured twice.

    Args:
        run: The run.
        texts: Whether to measure its texts, besides test perplexity, loss by position and recall.

    Raises:
        InputError: The data has no test split, or something is damaged.
    """
    if _is_measured(run, texts):
        return
    config = saved_config(run)
    where = runtime.resolve(config.device, config.precision)
    model, checkpoint = load_model(run, "best", where.device)
    dataset, step = TokenDataset(config.data), checkpoint.step
    if run.latest_evaluation(RECALL_FILE) is None:
        test, by_document = HeldOut.of_split(dataset, "test"), config.mask_documents  # as it was trained
        with where.autocast():
            found = perplexity_of(model, test, config.seq_len, by_document=by_document)
            Measurement("perplexity", "test", found.protocol, found.figures).record(run, step)
            positions = loss_by_position(model, test, config.seq_len, by_document)
            recall = recall_probe(model, avoid=[dataset.manifest.tokenizer.eot])
        save_positions(run, step, positions)
        saved = {"step": step, "protocol": recall.protocol, "chance": recall.chance} | dataclasses.asdict(recall)
        write_json(run.evaluations(step) / RECALL_FILE, saved)  # last: its presence says that the others are there
    if texts and run.latest_evaluation(TEXT_FILE) is None:
        prompts = choose_prompts(dataset, "test", model.config.n_ctx, SAMPLES)
        quality = measure_texts(model, dataset.tokenizer(), prompts, where, config.seed)
        save_text_quality(run, step, "test", quality)


def _is_measured(run: Run, texts: bool) -> bool:
    files = [RECALL_FILE, TEXT_FILE] if texts else [RECALL_FILE]
    return all(run.latest_evaluation(file) for file in files)
