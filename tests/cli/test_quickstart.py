"""The quickstart in small: every step of it, on stories and on real text."""

from __future__ import annotations

import io
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from gpt2lab import console
from gpt2lab.cli import quickstart
from gpt2lab.cli.main import main
from gpt2lab.generation import STRATEGIES
from gpt2lab.model.config import GPTConfig
from gpt2lab.runs import Run
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.config import OptimConfig, TrainConfig, saved_config
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
        "SIZES": {name: size._replace(model=model) for name, size in quickstart.SIZES.items()},
        "BATCH_TOKENS": 512,
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
    said = output("quickstart", "--steps", 10)
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
    output("quickstart", "--steps", 10)
    second = Run.open(Path("runs/quickstart-2"))
    assert [row["train_loss"] for row in second.metrics()] == [row["train_loss"] for row in run.metrics()]
    assert second.samples() == run.samples()  # by the same seed


def test_real_text_goes_the_same_way(tinyshakespeare: Path, tmp_path: Path, output: Output) -> None:
    text = tmp_path / "text.txt"
    text.write_text(tinyshakespeare.read_text(encoding="utf-8")[:60_000], encoding="utf-8")
    output("quickstart", "--text", text, "--out", tmp_path / "run", "--steps", 10)
    run = Run.open(tmp_path / "run")
    metrics = {row["metric"] for row in run.evals()}
    assert "bits_per_byte" in metrics and not metrics & {"entropy_floor", "grammatical"}
    assert Tokenizer.load(run.tokenizer).decode([0]) == "!"


def test_a_signal_saves_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def stop_at_step_3() -> Iterator[Callable[[StepReport], None]]:
        yield lambda report: os.kill(os.getpid(), signal.SIGTERM) if report.step == 3 else None

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(console, "training_bar", stop_at_step_3)
        assert main(["quickstart", "--out", str(out), "--steps", "10"]) == 128 + signal.SIGTERM
    assert f"gpt2lab quickstart --out {out} --resume" in capsys.readouterr().out
    output("quickstart", "--out", out, "--resume")
    run = Run.open(out)
    assert run.metrics()[-1]["step"] == 10
    assert (out / "report.html").is_file()
    evals, samples = run.evals(), run.samples()
    assert {row["metric"] for row in evals} >= {"bits_per_byte", "grammatical"}
    output("quickstart", "--out", out, "--resume")  # once more: nothing is trained or told twice
    assert (run.evals(), run.samples()) == (evals, samples)


def test_minutes_choose_the_steps_which_resume_keeps(
    tmp_path: Path, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "LEAST_STEPS", 12)
    monkeypatch.setattr(quickstart, "step_seconds", partial(quickstart.step_seconds, seconds=0.01))
    out = tmp_path / "run"
    said = output("quickstart", "--out", out, "--minutes", 0.1)
    assert re.search(r"a step of the small model takes \S+ ms here: 12 steps, the fewest allowed", said)
    config = saved_config(Run.open(out))
    assert (config.steps, config.eval_every, config.sample_every) == (12, 2, 4)
    assert Run.open(out).metrics()[-1]["step"] == 12
    output("quickstart", "--out", out, "--resume")
    assert saved_config(Run.open(out)) == config


SIZES: tuple[str, ...] = ("small", "medium", "large")


@pytest.mark.parametrize(
    ("minutes", "milliseconds", "size", "steps"),
    [
        (3, (52, 200, 1000), "small", 2_885),  # two cores with bf16: (180 - 10 - 20) / 0.052
        (3, (90, 350, 2000), "small", 1_667),  # and without
        (3, (900, 3000, 9000), "small", 400),  # the fewest, which takes longer
        (0.2, (52, 200, 1000), "small", 400),
        (3, (30, 100, 600), "medium", 1_500),
        (3, (30, 170, 600), "small", 5_000),  # the medium model would get too few
        (3, (10, 20, 150), "medium", 7_500),
        (3, (6, 10, 15), "large", 10_000),  # a GPU
        (30, (52, 200, 1000), "large", 1_770),
    ],
)
def test_the_choice_fills_the_time_with_the_largest_model_that_gets_enough_steps(
    minutes: float, milliseconds: tuple[float, ...], size: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # in full
    speed = dict(zip(SIZES, milliseconds, strict=True))
    evaluated = 600 * 1024
    found = quickstart.choose(lambda: 60 * minutes - 10, lambda name: speed[name] / 1000, evaluated)
    evaluating = evaluated / (3 * 2_048)  # 100 steps
    expected = steps if steps == 400 else steps - evaluating
    assert (found.size, found.steps) == (size, pytest.approx(expected, abs=1))
    assert found.seconds == pytest.approx((found.steps + evaluating) * speed[size] / 1000)
    if found.steps > 400:
        assert 10 + found.seconds + quickstart.OTHER_SECONDS == pytest.approx(60 * minutes, abs=2)


def test_measuring_takes_time_that_is_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    clock = [0.0]

    def measure(name: str) -> float:
        clock[0] += 20
        return {"small": 0.01, "medium": 0.02, "large": 1.0}[name]

    found = quickstart.choose(lambda: 180 - clock[0], measure, 0)
    assert (found.size, found.steps) == ("medium", int((180 - 40 - quickstart.OTHER_SECONDS) / 0.02))


def test_1500_steps_are_the_published_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    published = TrainConfig(
        model=GPTConfig(n_layer=2, n_head=4, n_embd=128, n_ctx=256, dropout=0.0),
        optim=OptimConfig(name="muon", lr=4e-3, min_lr=4e-5, warmup_steps=50),
        steps=1_500,
        batch_tokens=2_048,
        compile="off",
        log_every=25,
        eval_every=250,
        eval_tokens=65_536,
        sample_every=500,
        checkpoint_every=500,
    )
    assert quickstart.training("small", 1_500, TrainConfig()) == published


def test_the_bar_shows_the_time_left_from_the_second_step(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    terminal = console.Console(file=written, force_terminal=True, width=120)
    monkeypatch.setattr(console, "console", terminal)
    with console.training_bar() as on_step:
        for step in (1, 2):
            on_step(StepReport(step, 100, 5.0, None, 1e-3, 1.0, 1e4))
            time.sleep(0.3)
    assert re.search(r"0:00:[23]\d", written.getvalue())  # 98 steps of 0.3 s
