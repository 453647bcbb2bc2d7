"""The quickstart in small: every step of it, on stories and on real text."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpt2lab import console
from gpt2lab.cli import quickstart
from gpt2lab.cli.main import main
from gpt2lab.generation import STRATEGIES
from gpt2lab.model.config import GPTConfig
from gpt2lab.runs import Run
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.loop import StepReport

Output = Callable[..., str]


@pytest.fixture(autouse=True)
def in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make everything a hundredth of its size."""
    model = GPTConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=64, dropout=0.0)
    small = {
        "VOCABULARY": 400,
        "DOCUMENTS": 200,
        "TOKENIZER_DOCUMENTS": 100,
        "MODEL": model,
        "TRAINING": dataclasses.replace(quickstart.TRAINING, model=model, batch_tokens=512, steps=10),
        "STRIDE": 32,
        "JUDGED_STORIES": 4,
        "SAMPLE_TOKENS": 20,
    }
    for name, value in small.items():
        monkeypatch.setattr(quickstart, name, value)


def test_stories_become_a_run_with_figures_samples_and_report_and_again_with_a_number(
    tmp_path: Path, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = output("quickstart")
    run = Run.open(Path("runs/quickstart"))
    figures = {row["metric"]: float(row["value"]) for row in run.evals()}
    assert figures["bits_per_byte"] > figures["entropy_floor"] > 0
    gap = 100 * (figures["bits_per_byte"] / figures["entropy_floor"] - 1)
    assert figures["gap_percent"] == pytest.approx(gap)
    assert 0 <= figures["consistent"] <= figures["grammatical"] <= 1
    assert {str(s) for s in STRATEGIES.values()} <= {sample["strategy"] for sample in run.samples()}
    report = (run.path / "report.html").read_text(encoding="utf-8")
    assert f"{figures['bits_per_byte']:.3f}" in report
    assert str(run.path / "report.html") in said
    assert re.search(r"bits per byte\W+\d", said)
    output("quickstart")
    second = Run.open(Path("runs/quickstart-2"))
    assert [row["train_loss"] for row in second.metrics()] == [row["train_loss"] for row in run.metrics()]
    assert second.samples() == run.samples()  # by the same seed


def test_real_text_goes_the_same_way(tinyshakespeare: Path, tmp_path: Path, output: Output) -> None:
    text = tmp_path / "text.txt"
    text.write_text(tinyshakespeare.read_text(encoding="utf-8")[:60_000], encoding="utf-8")
    output("quickstart", "--text", text, "--out", tmp_path / "run")
    run = Run.open(tmp_path / "run")
    metrics = {row["metric"] for row in run.evals()}
    assert "bits_per_byte" in metrics and not metrics & {"entropy_floor", "grammatical"}
    assert Tokenizer.load(run.tokenizer).decode([0]) == "!"


def test_a_text_too_short_to_be_measured_is_refused_before_training(tmp_path: Path, refused: Output) -> None:
    text = tmp_path / "text.txt"
    text.write_text("One day a fox went to the river. " * 30, encoding="utf-8")
    assert "too short" in refused("quickstart", "--text", text, "--out", tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_a_signal_saves_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def stop_at_step_3() -> Iterator[Callable[[StepReport], None]]:
        yield lambda report: os.kill(os.getpid(), signal.SIGTERM) if report.step == 3 else None

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(console, "training_bar", stop_at_step_3)
        assert main(["quickstart", "--out", str(out)]) == 128 + signal.SIGTERM
    assert f"gpt2lab quickstart --out {out} --resume" in capsys.readouterr().out
    output("quickstart", "--out", out, "--resume")
    run = Run.open(out)
    assert run.metrics()[-1]["step"] == 10
    assert (out / "report.html").is_file()
    evals, samples = run.evals(), run.samples()
    assert {row["metric"] for row in evals} >= {"bits_per_byte", "grammatical"}
    output("quickstart", "--out", out, "--resume")  # once more: nothing is trained or told twice
    assert (run.evals(), run.samples()) == (evals, samples)
