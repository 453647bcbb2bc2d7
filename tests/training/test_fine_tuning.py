"""A run that begins from another's weights begins from just those, and is resumed without going back to them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from support import SMALL, copy_of, go_on, small, train

from gpt2lab.cli.main import main
from gpt2lab.cli.train import Train
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.runs import Run
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.checkpoint import load_model
from gpt2lab.training.config import OptimConfig, TrainConfig, flags, saved_config
from gpt2lab.training.loop import validation_loss
from gpt2lab.training.session import save_imported

STILL = OptimConfig(lr=1e-9, min_lr=0.0, warmup_steps=0, weight_decay=0.0)
"""A step so small that fp32 weights stay what they were, to 1e-8."""


def tuned(finished: Run, data: Path, out: Path, **changes: object) -> TrainConfig:
    """A few steps from the weights of the finished run."""
    return small(data, out, **{"init": finished.path, "model": None, "optim": STILL, "steps": 2, **changes})


def test_training_begins_from_the_best_weights_with_other_dropout(finished: Run, data: Path, tmp_path: Path) -> None:
    model = dataclasses.replace(saved_config(finished).model, dropout=0.3)
    run = train(tuned(finished, data, tmp_path / "run", eval_tokens=0, model=model))
    assert saved_config(run).model.dropout == 0.3
    before, after = (load_model(r)[0].state_dict() for r in (finished, run))
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, atol=1e-7, rtol=0, msg=name)
    loss = validation_loss(load_model(finished)[0], TokenDataset(data).stream("val"), 16, 0)
    assert run.metrics()[-1]["val_loss"] == pytest.approx(loss, abs=1e-6)


def test_a_fine_tuned_run_resumes_from_its_own_checkpoint(finished: Run, data: Path, tmp_path: Path) -> None:
    run = train(tuned(finished, data, tmp_path / "run", optim=OptimConfig(lr=1e-3), checkpoint_every=1))
    assert saved_config(run).init == finished.path.resolve()
    again, config = copy_of(run, tmp_path / "again")
    resumed, whole = (load_model(r)[0].state_dict() for r in (go_on(config, 1), run))
    assert resumed.keys() == whole.keys()
    for name, weight in resumed.items():
        assert torch.equal(weight, whole[name]), name
    assert saved_config(again).init == finished.path.resolve()


def test_an_imported_model_is_fine_tuned(finished: Run, data: Path, tmp_path: Path) -> None:
    model, _ = load_model(finished)
    imported = save_imported(model, Tokenizer.load(finished.tokenizer), tmp_path / "imported", "a friend")
    run = train(tuned(imported, data, tmp_path / "run", optim=OptimConfig(lr=1e-2), steps=10))
    losses = [row["train_loss"] for row in run.metrics()]
    assert losses[-1] is not None and losses[0] is not None and losses[-1] < losses[0] < 4.0  # random weights give 5.5


def test_the_architecture_is_the_runs_and_the_recipe_is_that_of_fine_tuning(finished: Run, data: Path) -> None:
    config = TrainConfig(data=data, init=finished.path, steps=7)
    recipe = config.recipe()
    assert recipe.model == saved_config(finished).model
    assert recipe.model.n_layer == SMALL.n_layer
    assert (recipe.optim.lr, recipe.batch_tokens) == (5e-5, 8_192)
    assert Train.parse(flags(config), "gpt2lab train").train_config == config.filled_in()


def test_the_command_line(finished: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--init", str(finished.path), "--data", str(data), "--out", str(tmp_path / "run")]
    assert main(["train", *files, "--steps", "2", "--batch-tokens", "128", "--model.dropout", "0"]) == 0
    assert "fine-tuning: " in capsys.readouterr().out
    assert Run.open(tmp_path / "run").config["optim"]["lr"] == 5e-5
