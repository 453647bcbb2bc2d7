"""What a report contains, before it is typeset."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_directories import CONFIG, ENVIRONMENT, PROTOCOL, make_run

from gpt2lab.compare.results import outcome_of
from gpt2lab.evaluation.perplexity import PositionCurve, save_positions
from gpt2lab.files import write_json
from gpt2lab.report.content import RunContent, gather
from gpt2lab.runs import Run


def content_of(run: Run) -> RunContent:
    (content,) = gather([run]).runs
    return content


def test_best_validation_loss_is_the_lowest_with_its_step(run: Run) -> None:
    best = next(figure for figure in content_of(run).key_figures if figure.label == "Best validation loss")
    losses = {row["step"]: row["val_loss"] for row in run.metrics() if row["val_loss"] is not None}
    step = min(losses, key=lambda step: losses[step] or 0.0)
    assert best.value == f"{losses[step]:.4f}"
    assert best.note.endswith(f"step {step:.0f}")


def test_entropy_floor_in_nats_is_the_loss_less_the_gap(run: Run) -> None:
    assert content_of(run).floor == pytest.approx(0.9123 * 0.30162 / 0.33178, rel=1e-4)


def test_figures_of_different_protocols_are_not_mixed(run: Run) -> None:
    run.add_eval(300, "perplexity", "test", "stride 1", "perplexity", 2.25)
    content = content_of(run)
    assert [figure.value for figure in content.key_figures[:2]] == ["2.250", None]
    assert [e.protocol for e in content.evaluations[:2]] == [PROTOCOL, "100 stories at nucleus 0.9"]
    assert content.evaluations[2].facts[0].value == "2.250"


def test_validation_figures_come_first_if_there_are_none_of_the_test_set(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", CONFIG, ENVIRONMENT)
    run.add_eval(300, "perplexity", "val", PROTOCOL, "perplexity", 5.96)
    content = content_of(run)
    assert (content.key_figures[0].label, content.key_figures[0].value) == ("Validation perplexity", "5.960")
    assert "Its validation perplexity is 5.960 per token" in content.summary
    run.add_eval(300, "perplexity", "test", PROTOCOL, "perplexity", 6.25)
    content = content_of(run)
    assert (content.key_figures[0].label, content.key_figures[0].value) == ("Test perplexity", "6.250")


@pytest.mark.parametrize("finished", ["300 steps done", None])
def test_each_arm_has_the_pictures_of_its_first_finished_run(tmp_path: Path, finished: str | None) -> None:
    runs = [make_run(tmp_path / name, finished=finished) for name in ("a1", "a2", "b1")]
    for run in runs:
        save_positions(run, 300, PositionCurve("test", "", (3.0, 2.0), (5, 5)))
    outcomes = [outcome_of(run, f"arm {run.path.name[0]}", int(run.path.name[1])) for run in runs]
    report = gather(runs, outcomes=outcomes)
    assert [run.name for run in report.runs] == ["arm a, seed 1", "arm a, seed 2", "arm b, seed 1"]
    assert ["positions" in run.pictures for run in report.runs] == [True, False, True]
    not_reported = outcome_of(make_run(tmp_path / "other"), "arm a", 3)
    report = gather(runs, outcomes=[not_reported, *outcomes])
    assert ["positions" in run.pictures for run in report.runs] == [True, False, True]


def test_strategies_are_side_by_side_even_if_training_wrote_a_later_sample(run: Run) -> None:
    run.add_sample(400, "nucleus 0.9", "", "The last.")
    content = content_of(run)
    assert [s.name for s in content.strategies] == ["greedy", "temperature 0.8", "top-k 50", "nucleus 0.9"]
    assert [s.step for s in content.other_steps] == ["100", "400"]


def test_strategies_are_in_the_order_of_their_last_samples(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", CONFIG, ENVIRONMENT)
    for number, strategy in enumerate(("nucleus 0.9", "greedy", "top-k 50", "nucleus 0.9")):
        run.add_sample(300, strategy, "", f"text {number}")
    found = [(s.name, s.total) for s in content_of(run).strategies]
    assert found == [("greedy", 1), ("top-k 50", 1), ("nucleus 0.9", 2)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("config.json", "{", "config.json: not JSON at line 1"),
        ("config.json", "[]", "expected a JSON object"),
        ("config.json", '{"model": 3, "optim": []}', "configuration cannot be read"),
        ("environment.json", "\xff", "environment.json"),
        ("metrics.csv", "step\n1\n", "metrics.csv"),
        ("evals.csv", "step,task,split,protocol,metric,value\n1,a,b,c,d,e\n", "value of d of a is damaged"),
        ("samples.jsonl", '{"step": 1}\n', "samples.jsonl"),
        ("samples.jsonl", "3\n", "samples.jsonl"),
        ("checkpoints/step_00000300/state.json", "", "state.json"),
        ("checkpoints/step_00000300/model.safetensors", "short", "model.safetensors"),
        ("evaluations/step_00000300/text.json", '{"rows": [{}]}', "text.json: damaged"),
        ("evaluations/step_00000300/positions.json", "[]", "positions.json: damaged"),
    ],
)
def test_damaged_file_is_named_and_the_rest_is_reported(run: Run, name: str, content: str, expected: str) -> None:
    run.evaluations(300)
    (run.path / name).write_text(content, encoding="latin-1")
    report = content_of(run)
    assert any(expected in text for text in (*report.remarks, report.summary))
    assert len([part for part in (report.configuration, report.environment, report.strategies) if part]) >= 2


def test_runs_of_the_same_name_are_called_by_their_paths(tmp_path: Path) -> None:
    runs = []
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        runs.append(make_run(tmp_path / parent / "run"))
    assert [content.name for content in gather(runs).runs] == [str(run.path) for run in runs]


def test_texts_without_the_metrics_of_the_plot_have_no_plot(run: Run) -> None:
    rows = [{"name": "held-out text", "strategy": None, "figures": {"perplexity": 3.25}}]
    saved = {"step": 300, "split": "test", "rows": rows, "examples": [], "protocol": "100 prompts."}
    write_json(run.evaluations(300) / "text.json", saved)
    content = content_of(run)
    assert content.texts is not None and "texts" not in content.pictures
