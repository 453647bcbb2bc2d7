"""One training on one, two and four processes: the same losses, bit for bit resumed, in any mode's checkpoints."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from ranks import another_meeting, launch, needs_fork, this_rank
from safetensors.torch import load_file
from support import checkpoint as folder_of
from support import go_on, nothing, saved_steps, small, train

from gpt2lab.errors import InputError
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.runs import Run
from gpt2lab.training import checkpoint, loop
from gpt2lab.training.checkpoint import load_model, optimizer_state
from gpt2lab.training.config import OptimConfig, TrainConfig, saved_config
from gpt2lab.training.optim import make_optimiser
from gpt2lab.training.session import resume, start

pytestmark = needs_fork
MODEL = GPTConfig(n_layer=2, n_head=2, n_embd=16, n_ctx=16, dropout=0.0)
ADAMW = OptimConfig(lr=1e-2, warmup_steps=5)
MUON = OptimConfig(name="muon", lr=3e-3, warmup_steps=5)
"""At Muon's own rate. Where a small model learns a short text by heart, any last bit that differs grows beyond 1e-3."""
WIDER = {"model": dataclasses.replace(MODEL, n_head=4, n_embd=64), "batch_tokens": 1024, "micro_batch": 8}


def config(data: Path, out: Path, **changes: object) -> TrainConfig:
    """50 steps of 16 sequences without dropout, logged and saved so that they can be compared."""
    options = {"model": MODEL, "optim": ADAMW, "steps": 50, "batch_tokens": 256, "micro_batch": 2, "log_every": 1}
    options |= {"eval_every": 25, "checkpoint_every": 25, "parallel": "auto"}
    return small(data, out, **(options | changes))


def starts(configs: list[TrainConfig]) -> None:
    """Start runs one after the other."""
    for each in configs:
        start(each, nothing)
        another_meeting()


def starts_and_resumes(configs: list[TrainConfig], resumed: list[TrainConfig]) -> None:
    """Start runs, then go on with copies of them."""
    starts(configs)
    for each in resumed:
        resume(each, nothing)
        another_meeting()


class Worlds:
    """Runs by optimiser, mode and world, such as ``adamw-fsdp-4``, made when they are first asked for."""

    def __init__(self, data: Path, told: Path, folder: Path) -> None:
        self._data, self._told, self._folder = data, told, folder

    def config(self, optimiser: str, out: Path, mode: str = "auto") -> TrainConfig:
        """The configuration of the runs of an optimiser."""
        if optimiser == "muon":
            return config(self._told, out, optim=MUON, parallel=mode, eval_tokens=0, **WIDER)
        return config(self._data, out, parallel=mode)

    def __getitem__(self, name: str) -> Run:
        """Return a run. Read it, do not write to it."""
        run = Run(self._folder / name)
        if not run.path.exists():
            optimiser, mode, world = name.split("-")
            each = self.config(optimiser, run.path, mode)
            if mode == "none":
                train(each)
            else:
                assert launch(int(world), start, each, nothing) == [""] * int(world)
        return run


@pytest.fixture(scope="module")
def runs(data: Path, told: Path, tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    """The runs that are compared: of AdamW on the short text, of Muon on stories."""
    return Worlds(data, told, tmp_path_factory.mktemp("worlds"))


def column(run: Run, name: str) -> list[float]:
    """The values of a column of metrics.csv, where there are any."""
    with (run.path / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


SLOW = ["adamw-ddp-4", "adamw-fsdp-4", "muon-ddp-2", "muon-fsdp-2", "muon-ddp-4", "muon-fsdp-4"]


@pytest.mark.parametrize(
    "name", ["adamw-ddp-2", "adamw-fsdp-2", *(pytest.param(name, marks=pytest.mark.fault) for name in SLOW)]
)
def test_losses_are_those_of_one_process(runs: Worlds, name: str) -> None:
    optimiser, mode, _ = name.split("-")
    alone, shared = runs[f"{optimiser}-none-1"], runs[name]
    tolerance = {"adamw": 1e-5, "muon": 1e-3}[optimiser]
    for figure, count in (("train_loss", 50), ("val_loss", 2)):
        expected = column(alone, figure)
        assert len(expected) == count
        assert column(shared, figure) == pytest.approx(expected, abs=tolerance, rel=0)
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


def test_two_processes_resume_bit_for_bit(data: Path, tmp_path: Path) -> None:
    with_dropout = dataclasses.replace(MODEL, dropout=0.1)
    options = {"model": with_dropout, "steps": 12, "checkpoint_every": 6, "eval_every": 6}
    configs = [config(data, tmp_path / mode, parallel=mode, **options) for mode in ("ddp", "fsdp")]
    resumed = [dataclasses.replace(each, resume="6") for each in configs]
    assert launch(2, starts_and_resumes, configs, resumed) == ["", ""]
    for mode in ("ddp", "fsdp"):
        run = Run(tmp_path / mode)
        unbroken = run.checkpoints / "step_00000012.before_resume_at_6"
        assert_same_tensors(tensors(folder_of(run, 12)), tensors(unbroken))
        assert len(column(run, "train_loss")) == 12


def rewrite(source: Run, target: Run, each: TrainConfig, mode: str) -> None:
    """Load a checkpoint's state at this world size and save it again."""
    from gpt2lab.data.dataset import TokenDataset
    from gpt2lab.training.distributed import process_group
    from gpt2lab.training.parallel import MODES
    from gpt2lab.training.setup import resolve

    with process_group("cpu") as comm:
        plan = resolve(dataclasses.replace(each, parallel=mode), TokenDataset(each.data), comm)
        model = GPT(plan.config.model)
        MODES[mode](model, plan.runtime)
        optimiser = make_optimiser(model, plan.config.optim)
        found = checkpoint.find(source, "last")
        checkpoint.verify(found)
        checkpoint.load_into(found, model, optimiser)
        checkpoint.save(target, model, optimiser, found.state, comm)


def whole_state(run: Run, each: TrainConfig) -> dict[str, torch.Tensor]:
    """Weights and the optimiser's state of a run's last checkpoint, read by one process."""
    from gpt2lab.data.dataset import TokenDataset
    from gpt2lab.training.setup import resolve

    plan = resolve(dataclasses.replace(each, parallel="auto"), TokenDataset(each.data))
    model = GPT(plan.config.model)
    optimiser = make_optimiser(model, plan.config.optim)
    checkpoint.load_into(checkpoint.find(run, "last"), model, optimiser)
    return model.state_dict() | optimizer_state(model, optimiser)


@pytest.mark.parametrize("optimiser", ["adamw", pytest.param("muon", marks=pytest.mark.fault)])
def test_state_is_the_same_at_every_world_size(runs: Worlds, tmp_path: Path, optimiser: str) -> None:
    each = runs.config(optimiser, tmp_path / "unused")
    first = runs[f"{optimiser}-fsdp-2"]
    one, four, copies = (Run(tmp_path / name) for name in ("one", "four", "copies"))
    for run in (one, four, copies):
        run.checkpoints.mkdir(parents=True)
    rewrite(first, one, each, "none")
    assert launch(4, rewrite, one, four, each, "fsdp") == [""] * 4
    assert launch(2, rewrite, four, copies, each, "ddp") == [""] * 2
    assert (folder_of(one, 50) / "optimizer.safetensors").is_file()
    assert len(list((folder_of(four, 50) / "optimizer").iterdir())) == 4
    expected = whole_state(first, each)
    assert len(expected) > 50
    for run in (one, four, copies):
        assert_same_tensors(whole_state(run, each), expected)


def test_a_sharded_run_goes_on_in_one_process(
    runs: Worlds, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(runs["adamw-fsdp-2"].path, tmp_path / "run")
    run = go_on(config(data, tmp_path / "run", parallel="fsdp"), 25)
    assert "parallel was fsdp and is none, processes were 2 and are 1" in caplog.text
    assert column(run, "train_loss") == pytest.approx(column(runs["adamw-none-1"], "train_loss"), abs=1e-5)
    assert load_model(run)[0].n_params > 0


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_share_is_named_and_passed_over(
    runs: Worlds, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    shutil.copytree(runs["adamw-fsdp-2"].path, tmp_path / "run")
    run, each = Run(tmp_path / "run"), config(data, tmp_path / "run", parallel="fsdp")
    share = next((folder_of(run, 50) / "optimizer").glob("shard-00002-*"))
    DAMAGE[damage](share)
    for read in (lambda: go_on(each, 50), lambda: load_model(run, "50")):
        with pytest.raises(InputError, match=share.name):
            read()
    go_on(each)
    assert "skipped a damaged checkpoint" in caplog.text
    assert share.name in caplog.text
    assert saved_steps(run) == [25, 50]


def test_a_stray_file_among_the_shares_is_refused(runs: Worlds, tmp_path: Path) -> None:
    shutil.copytree(runs["adamw-fsdp-2"].path, tmp_path / "run")
    found = checkpoint.find(Run(tmp_path / "run"), "50")
    shares = sorted((found.path / "optimizer").iterdir())
    shutil.copy(shares[0], shares[0].with_name("shard-00003-model-00001-of-00001.safetensors"))
    with pytest.raises(InputError, match=r"shard-00003-.* is not listed in the manifest; move it elsewhere"):
        checkpoint.verify(found)


def go_wrong(data: Path, other: Path, folder: Path, what: str) -> None:
    """Start a run in which rank 1 differs from rank 0, or something happens to it."""
    each, rank = config(data, folder / "run", steps=20, checkpoint_every=100, eval_every=100), this_rank()
    if rank == 1 and what == "options":
        each = dataclasses.replace(each, optim=dataclasses.replace(ADAMW, lr=2e-2))
    if rank == 1 and what == "data":
        each = dataclasses.replace(each, data=other)
    if rank == 1 and what == "no data":
        each = dataclasses.replace(each, data=folder / "none")
    if rank == 1 and what == "nan":
        _patch_losses()
    if rank == 1 and what == "signal":
        _patch_batches()
    if rank == 0 and what == "disk":
        _patch_saving()
    start(each, nothing)


def _patch_losses() -> None:
    accumulate = loop.Trainer._accumulate

    def broken(self: loop.Trainer, step: int, micro_step: int) -> torch.Tensor:
        part = accumulate(self, step, micro_step)
        return part * float("nan") if (step, micro_step) == (2, 3) else part

    loop.Trainer._accumulate = broken


def _patch_batches() -> None:
    accumulate = loop.Trainer._accumulate

    def signalled(self: loop.Trainer, step: int, micro_step: int) -> torch.Tensor:
        if (step, micro_step) == (4, 2):
            os.kill(os.getpid(), signal.SIGTERM)
        return accumulate(self, step, micro_step)

    loop.Trainer._accumulate = signalled


def _patch_saving() -> None:
    def full(tensors: object, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    checkpoint.save_file = full


def test_what_goes_wrong_on_one_rank_ends_all(data: Path, other_data: Path, tmp_path: Path) -> None:
    said = {}
    for what in ("options", "data", "no data", "nan", "signal", "disk"):
        (tmp_path / what).mkdir()
        said[what] = launch(2, go_wrong, data, other_data, tmp_path / what, what)
    for what in ("options", "data", "no data", "nan", "disk"):
        assert [line.split(": ")[0] for line in said[what]] == ["InputError", "ReportedElsewhere"]
    assert "the configuration of rank 1 differs from that of rank 0: " in said["options"][0]
    assert "optim.lr is 0.02, on rank 0 0.01 (fingerprints " in said["options"][0]
    assert "the data set of rank 1 differs from that of rank 0: " in said["data"][0]
    assert "rank 1: " in said["no data"][0]
    assert not [path for what in ("options", "data", "no data") for path in (tmp_path / what).iterdir()]
    assert "step 3: loss nan" in said["nan"][0]
    assert "on rank 1 in micro-step 4, windows" in said["nan"][0]
    assert saved_steps(Run(tmp_path / "nan" / "run")) == []
    run = Run(tmp_path / "signal" / "run")
    stopped = f"Interrupted: stopped after step 5, state saved; resume with: gpt2lab train --out {run.path} --resume"
    assert said["signal"] == [stopped, stopped]
    assert saved_steps(run) == [5]
    assert "No space left on device" in said["disk"][0]
    assert not list((tmp_path / "disk" / "run" / "checkpoints").iterdir())
