"""Figures in TensorBoard's files and in Weights & Biases' offline ones equal those of metrics.csv."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from gpt2lab import Tokenizer, TrainConfig, train
from gpt2lab.data.prepare import prepare
from gpt2lab.errors import InputError
from gpt2lab.lab import train as train_module
from gpt2lab.model.config import GPTConfig
from gpt2lab.runs import Run

Tracker = Literal["none", "tensorboard", "wandb"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tracked")
    text = folder / "text.txt"
    text.write_text("one two three four five six seven " * 60, encoding="utf-8")
    prepare([str(text)], Tokenizer.train([], 257), folder / "data", val_fraction=0.2)
    return folder / "data"


def config(data: Path, out: Path, tracker: Tracker = "none") -> TrainConfig:
    model = GPTConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=16, dropout=0.0)
    config = TrainConfig(data, out, model=model, steps=6, batch_tokens=64, device="cpu", tracker=tracker)
    return dataclasses.replace(config, log_every=2, eval_every=6, checkpoint_every=4)


@pytest.mark.filterwarnings("ignore")  # of the trackers' own imports
def test_tensorboard_holds_the_rows_and_hides_what_a_resumed_run_went_back_over(data: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracked = config(data, tmp_path / "run", tracker="tensorboard")
    train(tracked)
    run = train(dataclasses.replace(tracked, resume="4", steps=8))
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    rows = run.metrics()
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    for name in ("train_loss", "lr", "grad_norm", "tokens_per_s", "mfu", "peak_memory_mb"):
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == pytest.approx({row["step"]: row[name] for row in rows}, rel=1e-6)
    assert len(events.Scalars("data_wait")) == 4
    assert [event.step for event in events.Scalars("val_loss")] == [6, 8]


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_holds_the_rows_and_touches_no_network(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # were it to send anything, nobody answers here
    run = train(config(data, tmp_path / "run", tracker="wandb"))
    wandb.teardown()  # its own process has written all then
    (written,) = run.path.glob("wandb/offline-run-*/*.wandb")
    identity = (run.path / "wandb.id").read_text(encoding="utf-8")
    assert written.name == f"run-{identity}.wandb"
    logged = written.read_bytes()
    for row in run.metrics():
        assert repr(row["grad_norm"]).encode() in logged


def test_a_tracker_that_is_not_installed_names_what_to_install(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"tracker wandb is not installed; .*pip install gpt2lab\[wandb\]"):
        train(config(data, tmp_path / "run", tracker="wandb"))
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_tracker_that_does_not_start_leaves_no_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def init(**settings: object) -> None:
        raise wandb.Error("No API key configured. Use `wandb login` to log in.\nMore.")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(
        InputError, match=r"tracker wandb: No API key configured.* to log in; or set WANDB_MODE=offline"
    ):
        train(config(data, tmp_path / "run", tracker="wandb"))
    assert not (tmp_path / "run").exists()


def test_nothing_is_tracked_unless_asked_for(data: Path, tmp_path: Path) -> None:
    run: Run = train(config(data, tmp_path / "run"))
    assert not (run.path / "tensorboard").exists() and not (run.path / "wandb").exists()
