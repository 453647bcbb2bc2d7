"""Several ranks: what fails on one ends all and is said once, and a run on them is the run of one process."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import PLAIN, Doing, column, flip, go_on, log_of, refusal, saved_steps, small, train, truncate
from support import checkpoint as folder_of
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]

from gpt2lab.data import dataset
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.errors import InputError
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.runs import Run
from gpt2lab.runtime import Runtime
from gpt2lab.training import checkpoint, distributed, loop
from gpt2lab.training import setup as setting_up
from gpt2lab.training.checkpoint import load_model, optimizer_state
from gpt2lab.training.config import OptimConfig, TrainConfig, saved_config
from gpt2lab.training.distributed import MODES, fail_on_all_ranks, process_group
from gpt2lab.training.loop import Hooks
from gpt2lab.training.optim import make_optimizer
from gpt2lab.training.setup import resolve
from ranks import FORKED, launch, launch_each, needs_fork, this_rank

pytestmark = needs_fork


def train_without_reading(each: TrainConfig) -> None:
    """Start or resume a run; rank 1 must not read any file to the end."""

    def read(*_: object) -> None:
        raise AssertionError("this rank reads the files too")

    with pytest.MonkeyPatch.context() as patch:
        if this_rank() == 1:
            patch.setattr(dataset, "checked_sha256", read)
        train(each)


def train_on_two(each: TrainConfig, folder: Path) -> None:
    """Start a run whose rank 1 has its data elsewhere."""
    train(dataclasses.replace(each, data=folder) if this_rank() == 1 else each)


def test_one_rank_of_a_machine_checks_the_files_for_all(data: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(data, tmp_path / "flipped"))
    (shard,) = other.glob("train_*.bin")
    flip(shard, -2)
    each = small(data, tmp_path / "run", steps=4, micro_batch=2)
    flipped = small(data, tmp_path / "flipped_run", steps=4, micro_batch=2)
    said = launch_each(2, [
        partial(train_without_reading, each),
        partial(train_without_reading, dataclasses.replace(each, resume="last", steps=8)),
        partial(train_on_two, dataclasses.replace(flipped, data=other), other),
        partial(train_on_two, flipped, other),
    ])  # fmt: skip
    assert said[:2] == [["", ""]] * 2
    assert saved_steps(Run(tmp_path / "run")) == [4, 8]
    for lines, rank in zip(said[2:], (0, 1), strict=True):
        assert [line.split(": ")[0] for line in lines] == ["InputError", "ReportedElsewhere"]
        assert "changed since it was written" in lines[0] and ("rank 1: " in lines[0]) == (rank == 1)
    assert not (tmp_path / "flipped_run").exists()


def test_two_processes_grow_batch_and_context_as_one_does(data: Path, tmp_path: Path) -> None:
    growing = {
        "grow_batch": "2:4",
        "grow_seq_len": "3",
        "steps": 6,
        "log_every": 1,
        "micro_batch": 2,
        "mask_documents": True,
    }
    alone, two = (small(data, tmp_path / name, model=PLAIN, **growing) for name in ("alone", "two"))
    train(alone)
    assert launch(2, train, two) == ["", ""]
    found, expected = Run(tmp_path / "two"), Run(tmp_path / "alone")
    assert column(found, "tokens") == column(expected, "tokens") == [32, 64, 128, 192, 320, 448]
    assert column(found, "epoch") == column(expected, "epoch")
    for name in ("train_loss", "grad_norm"):
        assert column(found, name) == pytest.approx(column(expected, name), rel=1e-4)


class Defect(Exception):
    """An error that no run expects."""


def after(step: int, act: Callable[[Run], object]) -> Hooks:
    """Do something on rank 0 after a step."""
    runs: list[Run] = []
    return Doing(
        begin=lambda run, where: runs.append(run),
        on_step=lambda report: act(runs[-1]) if report.step == step else None,
    )


def raises(error: Exception) -> Callable[..., Any]:
    def function(*_: object) -> None:
        raise error

    return function


def full(path: Path) -> None:
    """Let every write to a file find no space."""
    path.unlink()
    path.symlink_to("/dev/full")


class FailingSample(Hooks):
    """Samples that cannot be written."""

    def begin(self, run: Run, where: Runtime) -> None:
        (run.path / "samples.jsonl").mkdir()
        self.run = run

    def sample(self, model: LanguageModel, step: int) -> None:
        self.run.add_sample(step, "nucleus", "", "a text")


def in_micro_step(at: tuple[int, int], act: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Accumulate as the trainer does, and do something with the loss of one micro-step."""
    accumulate = loop.Trainer._backward

    def spoiled(self: loop.Trainer, step: int, micro_step: int) -> torch.Tensor:
        loss = accumulate(self, step, micro_step)
        return act(loss) if (step, micro_step) == at else loss

    return spoiled


def terminate(loss: torch.Tensor) -> torch.Tensor:
    """Send SIGTERM to this rank."""
    os.kill(os.getpid(), signal.SIGTERM)
    return loss


HOOKS: dict[str, Hooks] = {
    "row": after(2, lambda run: full(run.path / "metrics.csv")),
    "on_step": after(2, raises(Defect("a defect"))),
    "sample": FailingSample(),
    "hooks": Doing(begin=raises(InputError("an ending is too long"))),
}
NO_SPACE = raises(OSError(28, "No space left on device", "a file"))
PATCHES: dict[str, tuple[int, Any, str, Callable[..., Any]]] = {
    "curves": (0, loop, "draw_curves", NO_SPACE),
    "trace": (0, loop, "temporary_name", NO_SPACE),
    "hash": (1, checkpoint, "sha256_of", NO_SPACE),
    "save": (0, checkpoint, "save_file", NO_SPACE),
    "second resolve": (1, setting_up, "resolve", raises(InputError("memory is gone"))),
    "nan": (1, loop.Trainer, "_backward", in_micro_step((2, 1), lambda loss: loss * float("nan"))),
    "signal": (1, loop.Trainer, "_backward", in_micro_step((4, 1), terminate)),
}
FAILURES = {
    "row": ("ddp", 0, r"metrics\.csv: cannot be written \(No space left on device\); "),
    "sample": ("fsdp", 0, r"samples\.jsonl: cannot be "),
    "cut off": ("ddp", 1, "became shorter during use"),
    "second resolve": ("ddp", 1, "memory is gone"),
    "on_step": ("ddp", 0, "a defect"),
    "hooks": ("ddp", 0, "an ending is too long"),
    "curves": ("fsdp", 0, "No space left on device"),
    "trace": ("ddp", 0, "No space left on device"),
}
"""Mode, the rank on which something fails, and what it says: the other ends with it."""
AGREED = {
    "hash": ("fsdp", 0, r"cannot be written \(rank 1: \[Errno 28\] No space left on device: 'a file'\)"),
    "save": ("ddp", 0, r"step_00000003 cannot be written \(.*No space left on device"),
    "options": ("ddp", 0, "the configuration of rank 1 differs from that of rank 0: optim.lr is 0.02, on rank 0 0.01;"),
    "other data": ("ddp", 0, r"the data set of rank 1 differs from that of rank 0: data is \w+, on rank 0 \w+;"),
    "no data": ("ddp", 0, "rank 1: .*none: no such directory of prepared data"),
    "nan": ("ddp", 0, "step 3: loss nan.* on rank 1 in micro-step 2, windows"),
}
"""The same where the ranks exchange what failed: both know it, and rank 0 says it."""
NOT_STARTED = ("second resolve", "options", "other data", "no data", "hooks")


def fail(each: TrainConfig, changes: dict[str, dict[str, Any]], what: str) -> None:
    """Start a run in which something fails on one rank, or rank 1 has other options."""
    hooks = HOOKS.get(what)
    if this_rank() == 1:
        each = dataclasses.replace(each, **changes.get(what, {}))
    if what == "cut off":
        (shard,) = changes[what]["data"].glob("train_*.bin")
        hooks = after(2, lambda run: shard.write_bytes(shard.read_bytes()[:1100]))
    with pytest.MonkeyPatch.context() as patch:
        if what in PATCHES and PATCHES[what][0] == this_rank():
            patch.setattr(*PATCHES[what][1:])
        try:
            train(each, hooks)
        except (Defect, OSError) as error:
            raise InputError(str(error)) from error


TOGETHER = [what for what, (mode, _, _) in (FAILURES | AGREED).items() if mode == "ddp"]
"""Tested in one launch: DDP closes its connections when a rank fails, FSDP when its process ends."""


@pytest.mark.parametrize(
    "failures",
    [
        [*TOGETHER, "signal"],
        ["sample"],
        *(pytest.param([what], marks=pytest.mark.fault) for what in ("curves", "hash")),
    ],
    ids=", ".join,
)
def test_a_failure_on_one_rank_ends_all(data: Path, other_data: Path, tmp_path: Path, failures: list[str]) -> None:
    changes: dict[str, dict[str, Any]] = {
        "cut off": {"data": Path(shutil.copytree(data, tmp_path / "copy"))},
        "options": {"optim": OptimConfig(lr=2e-2, warmup_steps=4)},
        "other data": {"data": other_data},
        "no data": {"data": tmp_path / "none"},
    }
    options = {"steps": 8, "micro_batch": 2, "log_every": 1, "sample_every": 3, "eval_every": 3, "profile_steps": "2:3"}
    options |= {"checkpoint_every": 8, "patience": 0}
    works = []
    for what in failures:
        mode = (FAILURES | AGREED).get(what, ("ddp",))[0]
        works.append(partial(fail, small(data, tmp_path / what, parallel=mode, **options), changes, what))
    for what, said in zip(failures, launch_each(2, works), strict=True):
        if what == "signal":
            run = Run(tmp_path / what)
            stopped = f"stopped after step 5, state saved; resume with: gpt2lab train --out {run.path} --resume"
            assert said == [f"Interrupted: {stopped}"] * 2
            assert saved_steps(run)[-1] == 5
            continue
        _, rank, reason = (FAILURES | AGREED)[what]
        assert [line.split(": ")[0] for line in (said[rank], said[1 - rank])] == ["InputError", "ReportedElsewhere"], (
            what
        )
        assert re.search(reason, said[rank]), said
        assert what in AGREED or re.search(f"rank {rank}: .*{reason}", said[1 - rank]), said
        assert (tmp_path / what).exists() == (what not in NOT_STARTED), what
        assert what in NOT_STARTED or not list((tmp_path / what / "checkpoints").glob(".*"))


def stay(store: Path, tell: Connection) -> None:
    """Be a rank that notices nothing."""
    distributed.POLL_SECONDS = distributed.GRACE_SECONDS = 0.1
    with fail_on_all_ranks(FileStore(str(store)), 1):
        tell.send("started")
        time.sleep(100)


@pytest.mark.fault
def test_a_rank_that_notices_nothing_is_ended(tmp_path: Path) -> None:
    told, tell = FORKED.Pipe(duplex=False)
    rank = FORKED.Process(target=stay, args=(tmp_path / "store", tell))
    rank.start()
    assert told.recv() == "started"
    with pytest.raises(Defect), fail_on_all_ranks(FileStore(str(tmp_path / "store")), 0):
        raise Defect
    rank.join(60)
    assert rank.exitcode == 2


MODEL = GPTConfig(n_layer=2, n_head=2, n_embd=16, n_ctx=16, dropout=0.0)
ADAMW = OptimConfig(lr=1e-2, warmup_steps=5)
MUON = OptimConfig(name="muon", lr=3e-3, warmup_steps=5)
"""At Muon's own rate. If a small model overfits a short text, any last bit that differs grows beyond 1e-3."""
WIDER = {"model": dataclasses.replace(MODEL, n_head=4, n_embd=64), "batch_tokens": 1024, "micro_batch": 8}
TOLERANCE = {"adamw": 1e-5, "muon": 1e-3}


def config(data: Path, out: Path, **changes: object) -> TrainConfig:
    """50 steps of 16 sequences without dropout, logged and saved so that they can be compared."""
    options = {"model": MODEL, "optim": ADAMW, "steps": 50, "batch_tokens": 256, "micro_batch": 2, "log_every": 1}
    options |= {"eval_every": 25, "checkpoint_every": 25, "parallel": "auto"}
    return small(data, out, **(options | changes))


class Runs:
    """Runs by optimizer, mode and world size, such as ``adamw-fsdp-4``, made when first used."""

    def __init__(self, data: Path, told: Path, folder: Path) -> None:
        self._data, self._told, self._folder = data, told, folder

    def config(self, optimizer: str, out: Path, mode: str = "auto") -> TrainConfig:
        """Return the configuration of the runs of an optimizer."""
        if optimizer == "muon":
            return config(self._told, out, optim=MUON, parallel=mode, eval_tokens=0, **WIDER)
        return config(self._data, out, parallel=mode)

    def __getitem__(self, name: str) -> Run:
        """Return a run. Read it, do not write to it."""
        optimizer, mode, world_size = name.split("-")
        if mode == "none" and not (self._folder / name).exists():
            train(self.config(optimizer, self._folder / name, mode))
        elif not (self._folder / name).exists():  # both modes in one launch
            paths = {mode: self._folder / f"{optimizer}-{mode}-{world_size}" for mode in ("ddp", "fsdp")}
            works = [partial(train, self.config(optimizer, path, mode)) for mode, path in paths.items()]
            assert launch_each(int(world_size), works) == [[""] * int(world_size)] * 2
        return Run(self._folder / name)


@pytest.fixture(scope="module")
def runs(data: Path, told: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The runs that are compared: AdamW on the short text, Muon on stories."""
    return Runs(data, told, tmp_path_factory.mktemp("runs"))


SLOW = ["adamw-ddp-4", "adamw-fsdp-4", "muon-ddp-2", "muon-fsdp-2", "muon-ddp-4", "muon-fsdp-4"]


@pytest.mark.parametrize(
    "name", ["adamw-ddp-2", "adamw-fsdp-2", *(pytest.param(name, marks=pytest.mark.fault) for name in SLOW)]
)
def test_losses_are_those_of_one_process(runs: Runs, name: str) -> None:
    optimizer, mode, _ = name.split("-")
    alone, shared = runs[f"{optimizer}-none-1"], runs[name]
    for figure, count in (("train_loss", 50), ("val_loss", 2)):
        expected = column(alone, figure)
        assert len(expected) == count
        assert column(shared, figure) == pytest.approx(expected, abs=TOLERANCE[optimizer], rel=0)
    assert saved_config(shared).parallel == mode
    assert column(shared, "tokens") == column(alone, "tokens")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint by file and name."""
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{path.relative_to(folder)} {name}": value for path in files for name, value in load_file(path).items()}


def assert_same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Names and bits are equal."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def test_two_ranks_resume_bit_for_bit(data: Path, tmp_path: Path) -> None:
    later_parts = {"value_residual": True, "differential_attention": True, "mtp_depth": 1}
    model = dataclasses.replace(MODEL, dropout=0.1, **later_parts)
    options = {"model": model, "steps": 12, "checkpoint_every": 6, "eval_every": 6}
    configs = [config(data, tmp_path / mode, parallel=mode, **options) for mode in ("ddp", "fsdp")]
    works = [partial(train, each) for each in configs]
    works += [partial(go_on, each, 6) for each in configs]
    assert launch_each(2, works) == [["", ""]] * 4
    for mode in ("ddp", "fsdp"):
        run = Run(tmp_path / mode)
        unbroken = run.checkpoints / "step_00000012.before_resume_at_6"
        assert_same_tensors(tensors(folder_of(run, 12)), tensors(unbroken))
        assert len(column(run, "train_loss")) == 12


def test_heads_of_multi_token_prediction_train_on_two_ranks_as_on_one(data: Path, tmp_path: Path) -> None:
    options = {"model": dataclasses.replace(MODEL, mtp_depth=2), "steps": 6, "checkpoint_every": 6, "eval_every": 6}
    alone = train(config(data, tmp_path / "none", **options))
    configs = [config(data, tmp_path / mode, parallel=mode, **options) for mode in ("ddp", "fsdp")]
    assert launch_each(2, [partial(train, each) for each in configs]) == [["", ""]] * 2
    for mode, figure in itertools.product(("ddp", "fsdp"), ("train_loss", "val_loss")):
        assert column(Run(tmp_path / mode), figure) == pytest.approx(column(alone, figure), abs=1e-5, rel=0)
    assert column(alone, "train_loss")[-1] == pytest.approx(column(alone, "val_loss")[-1], rel=0.2)  # without the heads


def rewrite(source: Run, target: Run, each: TrainConfig, mode: str) -> None:
    """Load a checkpoint's state at this world size and save it again."""
    with process_group("cpu") as comm:
        setup = resolve(dataclasses.replace(each, parallel=mode), TokenDataset(each.data), comm)
        model = GPT(setup.config.model)
        MODES[mode](model, setup.runtime)
        optimizer = make_optimizer(model, setup.config.optim)
        found = checkpoint.find(source, "last")
        checkpoint.verify(found)
        checkpoint.load_into(found, model, optimizer)
        checkpoint.save(target, model, optimizer, found.state, comm)


def full_state(run: Run, each: TrainConfig) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of a run's last checkpoint, read by one process."""
    resolved = resolve(dataclasses.replace(each, parallel="auto"), TokenDataset(each.data)).config
    model = GPT(resolved.model)
    optimizer = make_optimizer(model, resolved.optim)
    checkpoint.load_into(checkpoint.find(run, "last"), model, optimizer)
    return model.state_dict() | optimizer_state(model, optimizer)


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.fault)])
def test_a_checkpoint_is_the_same_at_every_world_size(runs: Runs, tmp_path: Path, optimizer: str) -> None:
    each = runs.config(optimizer, tmp_path / "unused")
    first = runs[f"{optimizer}-fsdp-2"]
    one, four, copies = (Run(tmp_path / name) for name in ("one", "four", "copies"))
    for run in (one, four, copies):
        run.checkpoints.mkdir(parents=True)
    rewrite(first, one, each, "none")
    assert launch(4, rewrite, one, four, each, "fsdp") == [""] * 4
    assert launch(2, rewrite, four, copies, each, "ddp") == [""] * 2
    assert (folder_of(one, 50) / "optimizer.safetensors").is_file()
    assert len(list((folder_of(four, 50) / "optimizer").iterdir())) == 4
    expected = full_state(first, each)
    assert len(expected) > 50
    for run in (one, four, copies):
        assert_same_tensors(full_state(run, each), expected)


@pytest.fixture
def sharded(runs: Runs, tmp_path: Path) -> Run:
    """A copy of a run whose checkpoints are sharded over two ranks."""
    return Run(Path(shutil.copytree(runs["adamw-fsdp-2"].path, tmp_path / "run")))


def test_a_sharded_run_resumes_alone(runs: Runs, sharded: Run, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = go_on(config(data, sharded.path, parallel="fsdp"), 25)
    assert "parallel was fsdp and is none, processes were 2 and are 1" in caplog.text
    assert column(run, "train_loss") == pytest.approx(column(runs["adamw-none-1"], "train_loss"), abs=1e-5)
    assert load_model(run)[0].n_params > 0


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_a_damaged_shard_is_named_and_its_checkpoint_skipped(sharded: Run, data: Path, damage: Any) -> None:
    each = config(data, sharded.path, parallel="fsdp")
    shard = next((folder_of(sharded, 50) / "optimizer").glob("shard-00002-*"))
    damage(shard)
    for read in (lambda: go_on(each, 50), lambda: load_model(sharded, "50")):
        refusal(read, shard.name)
    go_on(each)
    assert f"skipped a damaged checkpoint: {shard}" in log_of(sharded)
    assert saved_steps(sharded) == [25, 50]


def test_a_stray_file_among_the_shards_is_refused(sharded: Run) -> None:
    found = checkpoint.find(sharded, "50")
    shards = sorted((found.path / "optimizer").iterdir())
    shutil.copy(shards[0], shards[0].with_name("shard-00003-model-00001-of-00001.safetensors"))
    refusal(lambda: checkpoint.verify(found), r"shard-00003-.* is not listed in the manifest; move it elsewhere")
