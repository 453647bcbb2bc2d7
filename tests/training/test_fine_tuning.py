"""A run that begins from another's weights: it must begin from just those, and only where they fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from support import SMALL, nothing, small

from gpt2lab.cli.main import main
from gpt2lab.cli.train import Train
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.errors import InputError
from gpt2lab.runs import Run
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.checkpoint import load_model
from gpt2lab.training.config import OptimConfig, TrainConfig, flags, saved_config
from gpt2lab.training.loop import validation_loss
from gpt2lab.training.session import resume, save_imported, start

STILL = OptimConfig(lr=1e-9, min_lr=0.0, warmup_steps=0, weight_decay=0.0)
"""A step so small that fp32 weights stay what they were, to 1e-8."""


def tuned(finished: Run, data: Path, out: Path, **changes: object) -> TrainConfig:
    """A few steps from the weights of the finished run."""
    return small(data, out, **{"init": finished.path, "model": None, "optim": STILL, "steps": 2, **changes})


def refusal(config: TrainConfig) -> str:
    assert config.out is not None
    with pytest.raises(InputError) as caught:
        start(config, nothing)
    assert not config.out.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_training_begins_from_the_best_weights_of_the_run(finished: Run, data: Path, tmp_path: Path) -> None:
    run = start(tuned(finished, data, tmp_path / "run", eval_tokens=0), nothing)
    before, after = (load_model(r)[0].state_dict() for r in (finished, run))
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, atol=1e-7, rtol=0, msg=name)
    loss = validation_loss(load_model(finished)[0], TokenDataset(data).stream("val"), 16, 0)
    assert run.metrics()[-1]["val_loss"] == pytest.approx(loss, abs=1e-6)


def test_the_architecture_is_the_runs_and_the_recipe_is_that_of_fine_tuning(finished: Run, data: Path) -> None:
    recipe = TrainConfig(data=data, init=finished.path).recipe()
    assert recipe.model == saved_config(finished).model
    assert recipe.model.n_layer == SMALL.n_layer
    assert recipe.optim.lr == 5e-5 and recipe.batch_tokens == 8_192


def test_dropout_may_be_another(finished: Run, data: Path, tmp_path: Path) -> None:
    model = dataclasses.replace(saved_config(finished).model, dropout=0.3)
    run = start(tuned(finished, data, tmp_path / "run", model=model), nothing)
    assert saved_config(run).model.dropout == 0.3


def test_a_fine_tuned_run_says_where_it_began_and_resumes_without_going_back_there(
    finished: Run, data: Path, tmp_path: Path
) -> None:
    config = tuned(finished, data, tmp_path / "run", optim=OptimConfig(lr=1e-3), checkpoint_every=1)
    run = start(config, nothing)
    assert saved_config(run).init == finished.path.resolve()
    whole = load_model(run)[0].state_dict()
    again = dataclasses.replace(saved_config(run), out=run.path, resume="1")
    assert load_model(resume(again, nothing))[0].state_dict().keys() == whole.keys()
    for name, weight in load_model(run)[0].state_dict().items():
        assert torch.equal(weight, whole[name]), name


def test_an_imported_model_is_fine_tuned(finished: Run, data: Path, tmp_path: Path) -> None:
    model, _ = load_model(finished)
    imported = save_imported(model, Tokenizer.load(finished.tokenizer), tmp_path / "imported", "a friend")
    run = start(tuned(imported, data, tmp_path / "run", optim=OptimConfig(lr=1e-2), steps=10), nothing)
    losses = [row["train_loss"] for row in run.metrics()]
    assert losses[-1] is not None and losses[0] is not None and losses[-1] < losses[0] < 4.0  # random weights give 5.5


def test_another_architecture_is_listed_in_one_line(finished: Run, data: Path, tmp_path: Path) -> None:
    model = dataclasses.replace(saved_config(finished).model, n_layer=1, n_embd=32, dropout=0.0)
    said = refusal(tuned(finished, data, tmp_path / "run", model=model))
    assert "n_layer 1 (there 2), n_embd 32 (there 16)" in said and "dropout" not in said


def test_data_of_another_tokenizer_is_refused(finished: Run, other_tokenizer: Path, tmp_path: Path) -> None:
    said = refusal(tuned(finished, other_tokenizer, tmp_path / "run"))
    assert f"prepare the data with --tokenizer {finished.path}" in said


def test_a_run_without_a_checkpoint_gives_no_weights(
    copied: tuple[Run, TrainConfig], data: Path, tmp_path: Path
) -> None:
    run, _ = copied
    for folder in run.checkpoints.iterdir():
        (folder / "model.safetensors").write_bytes(b"")
    assert "model.safetensors has 0 bytes" in refusal(tuned(run, data, tmp_path / "tuned"))


def test_a_preset_beside_it_would_be_ignored_and_is_refused(finished: Run, data: Path) -> None:
    with pytest.raises(InputError, match="both determine the model"):
        TrainConfig(data=data, init=finished.path, preset="gpt2")


def test_the_flags_of_a_fine_tuning_make_it_again(finished: Run, data: Path) -> None:
    config = TrainConfig(data=data, init=finished.path, steps=7)
    words = flags(config)
    assert Train.parse(words, "gpt2lab train").train_config == config.filled_in()


def test_the_command_line_fine_tunes(
    finished: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = ["--data", str(data), "--out", str(out), "--steps", "2", "--batch-tokens", "128", "--model.dropout", "0"]
    assert main(["train", "--init", str(finished.path), *flags]) == 0
    assert "fine-tuning: " in capsys.readouterr().out
    assert Run.open(out).config["optim"]["lr"] == 5e-5
    for bad, said in (
        (["--init", str(finished.path), "--preset", "nano"], "both determine the model"),
        (["--init", "nowhere"], "nowhere does not exist"),
        (["--init", str(finished.path), "--model.n-layer", "3"], "n_layer 3 (there 2)"),
    ):
        assert main(["train", *bad, "--data", str(data), "--out", str(tmp_path / "x")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
