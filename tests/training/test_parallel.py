"""One run on one, two and four ranks: the same losses, exact resume, and checkpoints that any mode can read."""

from __future__ import annotations

import dataclasses
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import launch, launch_each, needs_fork
from safetensors.torch import load_file
from support import checkpoint as folder_of
from support import column, flip, go_on, log_of, refusal, saved_steps, small, train, truncate

from gpt2lab.data.dataset import TokenDataset
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.runs import Run
from gpt2lab.training import checkpoint
from gpt2lab.training.checkpoint import load_model, optimizer_state
from gpt2lab.training.config import OptimConfig, TrainConfig, saved_config
from gpt2lab.training.distributed import process_group
from gpt2lab.training.optim import make_optimizer
from gpt2lab.training.parallel import MODES
from gpt2lab.training.setup import resolve

pytestmark = needs_fork
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
    with_dropout = dataclasses.replace(MODEL, dropout=0.1)
    options = {"model": with_dropout, "steps": 12, "checkpoint_every": 6, "eval_every": 6}
    configs = [config(data, tmp_path / mode, parallel=mode, **options) for mode in ("ddp", "fsdp")]
    works = [partial(train, each) for each in configs]
    works += [partial(go_on, each, 6) for each in configs]
    assert launch_each(2, works) == [["", ""]] * 4
    for mode in ("ddp", "fsdp"):
        run = Run(tmp_path / mode)
        unbroken = run.checkpoints / "step_00000012.before_resume_at_6"
        assert_same_tensors(tensors(folder_of(run, 12)), tensors(unbroken))
        assert len(column(run, "train_loss")) == 12


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


def test_a_sharded_run_resumes_in_one_process(
    runs: Runs, sharded: Run, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
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
