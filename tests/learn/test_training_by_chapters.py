"""A GPT-2 that is built by the chapters trains as ours does, and its report is made."""

from __future__ import annotations

from pathlib import Path

import pytest
from solving import solve
from torch import nn

from gpt2lab.cli.main import main
from gpt2lab.learn.exercises import OWN_MODEL
from gpt2lab.runs import Run

RECIPE = (
    "--model.n-layer 1 --model.n-head 2 --model.n-embd 32 --model.n-ctx 32 --model.dropout 0 --batch-tokens 256 "
    "--optim.lr 1e-2 --steps 60 --eval-every 60 --checkpoint-every 60 --eval-tokens 8192 --log-every 60 "
    "--precision fp32 --device cpu"
)


def test_from_the_same_weights_it_reaches_the_same_loss_and_is_reported(
    tmp_path: Path, tinyshakespeare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT2LAB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("gpt2lab.training.loop.draw_curves", lambda run: None)
    for layer in (nn.Linear, nn.Embedding):  # then both draw the same initial weights
        monkeypatch.setattr(layer, "reset_parameters", lambda self: None)
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(tinyshakespeare.read_text("utf-8")[:100_000], encoding="utf-8")
    solve(tmp_path / "student")
    for command in (
        "tokenizer train --input text.txt --vocab-size 384 --out tokenizer",
        "data prepare text.txt --tokenizer tokenizer --out data --val-fraction 0.1 --test-fraction 0",
        f"train --data data --out ours {RECIPE}",
        f"train --data data --out theirs {RECIPE} --model student/{OWN_MODEL}:GPT",
        "report theirs --out report.html",
    ):
        assert main(command.split()) == 0
    ours, theirs = (Run.open(Path(name)).metrics()[-1]["val_loss"] for name in ("ours", "theirs"))
    assert ours is not None and ours < 5.5  # from ln 384 = 5.95
    assert theirs == pytest.approx(ours, rel=1e-3)
    assert OWN_MODEL in Path("report.html").read_text("utf-8")
