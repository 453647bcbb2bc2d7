"""The runs of a comparison: every combination of the varied options with every seed, as ordinary runs.

    DIR/position=rope,n_kv_head=1/seed_1337/        a run directory
    DIR/position=rope,n_kv_head=1/seed_1338/        ...

Runs of one seed read the same batches in the same order whatever their arm, so that their differences are paired.
Finished runs stay as they are, interrupted runs resume, and a failed run does not stop the rest. Each run can have its
own process, so that its peak memory is its own and an out-of-memory kill ends only that run. If the parent process
ends, the run saves its state and ends too.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import re
import shlex
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt2lab import console, formatting, runtime
from gpt2lab.compare.output import write_comparison
from gpt2lab.compare.results import RECALL_FILE, Comparison, compare_outcomes, option_text, outcome_of, short_names
from gpt2lab.console import log
from gpt2lab.data.dataset import DataManifest, TokenDataset
from gpt2lab.errors import InputError
from gpt2lab.evaluation.likelihood import recall_probe, require_causal_mask
from gpt2lab.evaluation.measure import LoadedRun, Measurement
from gpt2lab.evaluation.perplexity import HeldOut, loss_by_position, perplexity_of, save_positions
from gpt2lab.evaluation.text_quality import TEXT_FILE, choose_prompts, measure_texts, save_text_quality
from gpt2lab.files import free_path, write_checked_json
from gpt2lab.imports import FILES, ImportedFile, run_file
from gpt2lab.lab.train import train
from gpt2lab.runs import Run
from gpt2lab.training.checkpoint import list_checkpoints, newest_valid
from gpt2lab.training.config import ResolvedConfig, TrainConfig, flags, flat, saved_config, value_of, with_options
from gpt2lab.training.distributed import Interrupted
from gpt2lab.training.loop import StepReport
from gpt2lab.training.setup import total_steps

CANNOT_VARY = {
    "out": "give the directory of the comparison with --out",
    "seed": "give the number of seeds with --seeds",
    "resume": "an interrupted comparison resumes by itself",
    "preset": "give a base configuration for each preset",
    "recipe": "give a base configuration for each recipe",
}
"""Options that cannot vary, and what to use instead."""
SAMPLES = 64
"""Texts of each decoding strategy."""

Worker = Callable[[TrainConfig, bool], int | None]
"""Trains and measures a run, its texts too if the second argument is true. Returns the signal that interrupted it, its
state saved; raises `InputError` if it failed."""
ProgressBar = Callable[[], AbstractContextManager[Callable[[StepReport], None] | None]]
"""Opens a progress bar and gives its ``on_step``; see `train`."""


class Job(NamedTuple):
    """One run of an arm."""

    arm: str
    config: TrainConfig
    """Complete, with ``out`` and ``seed``."""
    path: Path
    """The run directory."""

    @property
    def command(self) -> str:
        """The command line that makes this run."""
        return shlex.join(["gpt2lab", "train", *flags(self.config)])


@dataclass(frozen=True)
class ComparisonPlan:
    """The arms and seeds of a comparison; the first arm is the reference."""

    arms: dict[str, TrainConfig]
    """What the runs of each arm have in common, by its name."""
    seeds: tuple[int, ...]
    out: Path

    @property
    def jobs(self) -> list[Job]:
        """The runs, seed by seed, so that an interrupted comparison has complete pairs."""
        jobs = []
        for seed in self.seeds:
            for (arm, config), folder in zip(self.arms.items(), _folders(list(self.arms)), strict=True):
                path = self.out / folder / f"seed_{seed}"
                jobs.append(Job(arm, dataclasses.replace(config, seed=seed, out=path), path))
        return jobs

    @property
    def remarks(self) -> list[str]:
        """What weakens the comparison."""
        configs = self.arms.values()
        essentials = [config.essentials() for config in configs]
        varied = {
            "data": [config.data for config in configs],
            "batch tokens": [each.batch_tokens for each in essentials],
            "growth of the batch": [config.grow_batch for config in configs],
            "sampling": [config.sampling for config in configs],
            "sequence length": [c.seq_len or e.model.n_ctx for c, e in zip(configs, essentials, strict=True)],
        }
        differing = [name for name, values in varied.items() if len(set(values)) > 1]
        remarks = [
            f"The variants differ in {name}: runs of one seed do not read the same batches." for name in differing
        ]
        if len({config.mask_documents for config in configs}) > 1:
            remarks.append(
                "The variants differ in mask documents, and each is measured as it was trained: with the mask, the "
                "first tokens of a document have less context."
            )
        if len(self.seeds) == 1:
            remarks.append("One seed: there is no interval, and a difference may be chance. Use at least three seeds.")
        return remarks


def make_plan(
    bases: TrainConfig | Sequence[TrainConfig],
    vary: Mapping[str, Sequence[Any]],
    seeds: int,
    out: Path,
    named: Mapping[str, Mapping[str, Any]] | None = None,
) -> ComparisonPlan:
    """Combine base configurations (one for each preset and recipe) with every value of the varied options.

    Args:
        bases: What the runs have in common; their seed is the first one.
        vary: Values by the flat names of the options, such as ``{"model.n_kv_head": [4, 1]}``.
        seeds: Runs of each arm: the seed of the base and those that follow it.
        out: Directory of the comparison.
        named: Changes that belong together, by the name of their arm, such as
            ``{"window": {"model.mask": "window", "model.window": 64}}``; each is combined with every varied value.

    Raises:
        InputError: An option does not exist or cannot vary, a value is not allowed, there is nothing to compare, the
            data has no test split, or a mask looks ahead, so that the loss of its run could not be measured.
    """
    bases = [bases] if isinstance(bases, TrainConfig) else bases
    if seeds < 1:
        raise InputError(f"seeds is {seeds}; give at least 1, and 3 or more for an interval")
    named = named or {"": {}}
    _check_options(vary, named)
    named_by = [name for name in ("preset", "recipe") if len({getattr(base, name) for base in bases}) > 1]
    names = short_names(list(vary))
    arms = {}
    for base, (arm_name, own), values in itertools.product(bases, named.items(), itertools.product(*vary.values())):
        changes = dict(zip(vary, values, strict=True))
        label = [f"{name}={getattr(base, name)}" for name in named_by]
        label += [arm_name] if arm_name else []
        label += [f"{names[name]}={option_text(value)}" for name, value in changes.items()]
        arms[", ".join(label)] = with_options(base, {**own, **changes})
    if len(arms) < 2:
        raise InputError("nothing to compare: one combination of options; give --vary OPTION=VALUE,VALUE, or two --arm")
    for config in arms.values():
        require_causal_mask(config.essentials().model)
    for data in {config.data for config in arms.values()}:
        if "test" not in DataManifest.load(data).splits:
            raise InputError(f"{data}: has no test split to compare on; prepare it with a --test-fraction above 0")
    first = bases[0].seed
    return ComparisonPlan(arms, tuple(range(first, first + seeds)), out)


def _check_options(vary: Mapping[str, Sequence[Any]], named: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `InputError` if an option cannot vary, or is varied twice."""
    changed = {name for own in named.values() for name in own}
    for name in [*vary, *changed]:
        if name in CANNOT_VARY:
            raise InputError(f"{name} cannot vary: {CANNOT_VARY[name]}")
    for name, values in vary.items():
        if name in changed:
            raise InputError(f"{name} is in both --vary and --arm; remove it from one of them")
        _require_distinct(name, values)


def _require_distinct(name: str, values: Sequence[Any]) -> None:
    if len(set(map(str, values))) < len(values):
        raise InputError(f"{name} has a value twice in {', '.join(map(str, values))}; give each value once")


def _folders(names: Sequence[str]) -> list[str]:
    """Return a folder name for each arm that is valid in every file system."""
    plain = [re.sub(r"[^\w.=+,-]+", "-", name.replace(", ", ",")) for name in names]
    return [name if plain.count(name) == 1 else f"{name}-{index}" for index, name in enumerate(plain, start=1)]


def require_same_options(job: Job, saved: ResolvedConfig) -> None:
    """Raise `InputError` if an existing run was started with other options than its job has."""
    config = job.config.filled_in()
    essentials = config.essentials()
    seq_len = essentials.model.n_ctx if config.seq_len is None else config.seq_len
    steps = total_steps(config, essentials.batch_tokens, seq_len, DataManifest.load(config.data))
    chosen = {
        "seq_len": seq_len,
        "steps": steps,
        "epochs": None,
        "max_tokens": None,
        **config.intervals(steps),
        **config.growth(steps),
    }
    asked = dataclasses.replace(config, **chosen)
    before = flat(saved)
    for name, value in flat(asked).items():
        free = name in ("data", "out", "resume", "model.vocab_size") or value == "auto"
        if not free and before[name] != value:
            was, now = formatting.setting(before[name]), formatting.setting(value)
            raise InputError(f"{job.path} was run with {name} {was}, this comparison has {now}; give another --out")


def parse_variations(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Parse ``OPTION=VALUE,VALUE`` of a command line into values by option; ``-`` and ``_`` are the same.

    Raises:
        InputError: A text has another form, or an option comes twice.
    """
    varied: dict[str, list[Any]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if not name or "" in values.split(","):
            raise InputError(f'--vary "{text}" is not OPTION=VALUE,VALUE, such as model.position=learned,rope')
        if name in varied:
            raise InputError(f"--vary {name} is given twice; give its values once, separated by commas")
        varied[name] = [value_of(value, name) for value in values.split(",")]
        _require_distinct(name, varied[name])
    return varied


def parse_arms(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Parse ``NAME: OPTION=VALUE OPTION=VALUE`` of a command line into changes by the name of the arm.

    Raises:
        InputError: A text has another form, or a name or an option comes twice.
    """
    arms: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, colon, rest = (part.strip() for part in text.partition(":"))
        pairs = [word.partition("=") for word in rest.split()]
        if not (name and colon) or not all(option and value for option, _, value in pairs):
            example = '"window: model.mask=window model.window=64"'
            raise InputError(f'--arm "{text}" is not NAME: OPTION=VALUE ..., such as {example}')
        named = [(option.replace("-", "_"), value) for option, _, value in pairs]
        changes = {option: value_of(value, option) for option, value in named}
        if name in arms or len(changes) < len(pairs):
            raise InputError(f'--arm "{text}" repeats a name or an option; give each once')
        arms[name] = changes
    return arms


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
        choose_prompts(TokenDataset(config.data), "test", config.essentials().model.n_ctx, SAMPLES)
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
        newest_valid(run)
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
    model = config.essentials().model
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        config = dataclasses.replace(config, model=model)  # which says by its SHA-256 whose parts it has
        future = pool.submit(_in_child, config, texts, FILES.get(model.import_sha256 or ""))
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise InputError("its process was killed, perhaps out of memory; try a lower --micro-batch") from error
        except KeyboardInterrupt:  # the terminal signals the process of the run too, which saves its state and ends
            return signal.SIGINT


def _in_child(config: TrainConfig, texts: bool, imported: ImportedFile | None) -> int | None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    runtime.tune_allocator()
    console.log_to_console()
    if imported is not None:
        run_file(imported, None if config.model is None else config.model.network)
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
    loaded = LoadedRun(run.path, "best", config.device, config.precision)
    model, dataset, step = loaded.model, loaded.dataset(None), loaded.checkpoint.step
    if run.latest_evaluation(RECALL_FILE) is None:
        test, by_document = HeldOut.of_split(dataset, "test"), config.mask_documents  # as it was trained
        with loaded.runtime.autocast():
            found = perplexity_of(model, test, config.seq_len, by_document=by_document)
            Measurement("perplexity", "test", found.protocol, found.figures).record(run, step)
            positions = loss_by_position(model, test, config.seq_len, by_document)
            seen = np.unique(next(test.stream.blocks()))  # the embeddings of others are not trained
            recall = recall_probe(model, ids=seen[seen != test.eot].tolist())
        save_positions(run, step, positions)
        saved = {"step": step, "protocol": recall.protocol, "chance": recall.chance} | dataclasses.asdict(recall)
        write_checked_json(run.evaluations(step) / RECALL_FILE, saved)  # last: it says that the others are there
    if texts and run.latest_evaluation(TEXT_FILE) is None:
        prompts = choose_prompts(dataset, "test", model.config.n_ctx, SAMPLES)
        quality = measure_texts(model, loaded.tokenizer, prompts, loaded.runtime, config.seed)
        save_text_quality(run, step, "test", quality)


def _is_measured(run: Run, texts: bool) -> bool:
    files = [RECALL_FILE, TEXT_FILE] if texts else [RECALL_FILE]
    return all(run.latest_evaluation(file) for file in files)
