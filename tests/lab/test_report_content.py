"""What a report says, before it is set in type."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from run_directories import CONFIG, ENVIRONMENT, PROTOCOL, log_steps, make_run

from gpt2lab.compare.results import outcome_of
from gpt2lab.evaluation.perplexity import PositionLosses
from gpt2lab.report import figures
from gpt2lab.report.content import gather
from gpt2lab.report.document import Series
from gpt2lab.report.plots import save_positions
from gpt2lab.runs import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "stories-tiny")


def test_every_option_is_shown_as_the_configuration_has_it(run: Run) -> None:
    (content,) = gather([run]).runs
    shown = {fact.name: fact.value for fact in content.configuration}
    flat = {name: value for name, value in CONFIG.items() if not isinstance(value, dict)} | {"out": str(run.path)}
    flat |= {f"{group}.{name}": value for group in ("model", "optim") for name, value in CONFIG[group].items()}
    assert shown == {name: json.dumps(value) for name, value in flat.items()}


def test_path_below_the_working_directory_is_shown_as_it_would_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"data": str(tmp_path / "home" / "data"), "init": str(tmp_path / "elsewhere")}
    run = Run.create(tmp_path / "run", {**CONFIG, **data}, ENVIRONMENT)
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    shown = {fact.name: json.loads(fact.value) for fact in gather([run]).runs[0].configuration}
    assert (shown["data"], shown["init"]) == ("data", data["init"])


def test_parameters_are_counted_from_the_weights_without_the_padding(run: Run) -> None:
    facts = {fact.name: fact.value for fact in gather([run]).runs[0].model}
    assert facts["Parameters"] == f"{1000 * 32 + 256 * 32:,}"


def test_best_validation_loss_is_the_lowest_with_its_step(run: Run) -> None:
    (content,) = gather([run]).runs
    best = next(figure for figure in content.key_figures if figure.label == "Best validation loss")
    losses = {row["step"]: row["val_loss"] for row in run.metrics() if row["val_loss"] is not None}
    step = min(losses, key=lambda step: losses[step] or 0.0)
    assert best.value == f"{losses[step]:.4f}"
    assert best.note.endswith(f"step {step:.0f}")


def test_entropy_floor_in_nats_is_the_loss_less_the_gap(run: Run) -> None:
    floor = gather([run]).runs[0].curves.floor
    assert floor == pytest.approx(0.9123 * 0.30162 / 0.33178, rel=1e-4)


def test_figures_of_another_protocol_are_not_mixed(run: Run) -> None:
    run.add_eval(300, "perplexity", "test", "stride 1", "perplexity", 2.25)
    (content,) = gather([run]).runs
    assert content.key_figures[0].value == "2.250"
    assert content.key_figures[1].value is None
    assert [e.protocol for e in content.evaluations[:2]] == [PROTOCOL, "100 stories at nucleus 0.9"]
    assert content.evaluations[2].facts[0].value == "2.250"


def test_without_a_test_set_the_validation_figures_stand_at_the_head_and_say_so(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", CONFIG, ENVIRONMENT)
    run.add_eval(300, "perplexity", "val", PROTOCOL, "perplexity", 5.96)
    (content,) = gather([run]).runs
    assert (content.key_figures[0].label, content.key_figures[0].value) == ("Validation perplexity", "5.960")
    assert "On the validation set its perplexity is 5.960" in content.summary
    run.add_eval(300, "perplexity", "test", PROTOCOL, "perplexity", 6.25)
    (content,) = gather([run]).runs
    assert (content.key_figures[0].label, content.key_figures[0].value) == ("Test perplexity", "6.250")


def test_runs_of_an_arm_share_its_pictures_and_are_named_by_arm_and_seed(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(seed)) for seed in (1, 2)]
    for run in runs:
        save_positions(run, 300, "test", PositionLosses((3.0, 2.0), (5, 5), by_document=False))
    outcomes = [outcome_of(run, "baseline", int(run.path.name)) for run in runs]
    report = gather(runs, outcomes=outcomes)
    assert [run.name for run in report.runs] == ["baseline, seed 1", "baseline, seed 2"]
    assert [run.positions is not None for run in report.runs] == [True, False]


def test_unfinished_runs_have_their_pictures_too(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, finished=None) for name in ("a", "b")]
    for run in runs:
        save_positions(run, 300, "test", PositionLosses((3.0, 2.0), (5, 5), by_document=False))
    outcomes = [outcome_of(run, run.path.name, 1) for run in runs]
    assert [run.positions is not None for run in gather(runs, outcomes=outcomes).runs] == [True, True]
    done = outcome_of(make_run(tmp_path / "c"), "a", 2)
    assert [run.positions is not None for run in gather(runs, outcomes=[*outcomes, done]).runs] == [True, True]


@pytest.mark.parametrize(
    ("losses", "good", "said"),
    [
        ((3.0, 2.0), True, "It uses its context: loss 3.000 with 1 token before it, 2.000 with some 2."),
        ((3.0, 2.999), False, "Context hardly helps it, or not at all: loss 3.000 with 1 token before it, 2.999 "),
        ((2.0, 3.0), False, "Context hardly helps it, or not at all: loss 2.000 with 1 token before it, 3.000 "),
    ],
)
def test_context_helps_only_where_the_loss_falls_along_the_window(
    run: Run, losses: tuple[float, ...], good: bool, said: str
) -> None:
    save_positions(run, 300, "test", PositionLosses(losses, (5, 5), by_document=False))
    (content,) = gather([run]).runs
    assert any(text.startswith(said) for text in (content.strengths if good else content.weaknesses))


def test_epochs_of_a_stream_are_called_rounds(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {**CONFIG, "data": "stream:stories"}, ENVIRONMENT)
    log_steps(run, 300)
    (content,) = gather([run]).runs
    assert next(f.note for f in content.key_figures if f.label == "Tokens seen") == "1.50 rounds of the stream"
    assert next(f.value for f in content.training if f.name == "Length") == "300 steps, 1.50 rounds of the stream"
    assert "(stream:stories)" in content.task[1] and "in rounds while training goes on" in content.task[1]
    assert (
        "held out for validation and test as the corpus comes divided"
        in gather([make_run(tmp_path / "plain")]).runs[0].task[1]
    )


def test_batch_is_shared_out_among_the_processes(run: Run) -> None:
    def batch() -> str:
        return next(fact.note for fact in gather([run]).runs[0].training if fact.name == "Batch")

    assert batch() == "2 passes of 8 sequences of 256, accumulated"
    state = run.checkpoints / "step_00000300" / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_bytes()), "world": 2}), encoding="utf-8")
    assert batch() == "8 sequences of 256 on each of 2 processes"


def test_strategies_stand_beside_each_other_though_training_wrote_a_later_sample(run: Run) -> None:
    run.add_sample(400, "nucleus 0.9", "", "The last.")
    (content,) = gather([run]).runs
    assert [s.name for s in content.strategies] == ["greedy", "temperature 0.8", "top-k 50", "nucleus 0.9"]
    assert [s.step for s in content.other_steps] == ["100", "400"]


def test_strategies_stand_in_the_order_of_the_study_not_of_training(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", CONFIG, ENVIRONMENT)
    for number, strategy in enumerate(("nucleus 0.9", "greedy", "top-k 50", "nucleus 0.9")):
        run.add_sample(300, strategy, "", f"text {number}")
    (content,) = gather([run]).runs
    assert [(s.name, s.written) for s in content.strategies] == [("greedy", 1), ("top-k 50", 1), ("nucleus 0.9", 2)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "{", "config.json: not JSON at line 1"),
        ("config.json", "[]", "expected named values"),
        ("config.json", '{"model": 3, "optim": []}', "configuration cannot be read"),
        ("environment.json", "\xff", "environment.json"),
        ("metrics.csv", "step\n1\n", "metrics.csv"),
        ("evals.csv", "step,task,split,protocol,metric,value\n1,a,b,c,d,e\n", "d of a has no number"),
        ("samples.jsonl", '{"step": 1}\n', "samples.jsonl"),
        ("samples.jsonl", "3\n", "samples.jsonl"),
        ("checkpoints/step_00000300/state.json", "", "state.json"),
        ("checkpoints/step_00000300/model.safetensors", "short", "model.safetensors"),
    ],
)
def test_damaged_file_is_named_and_the_rest_goes_on(run: Run, name: str, content: str, said: str) -> None:
    (run.path / name).write_text(content, encoding="latin-1")
    (report,) = gather([run]).runs
    assert any(said in text for text in (*report.remarks, report.summary))
    assert len([part for part in (report.configuration, report.environment, report.strategies) if part]) >= 2


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    runs = []
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        runs.append(make_run(tmp_path / parent / "run"))
    assert [content.name for content in gather(runs).runs] == [str(run.path) for run in runs]


def test_thinned_curve_keeps_its_mean_and_ends() -> None:
    x = tuple(float(n) for n in range(1, 4001))
    thinned = figures.thin(Series(x, tuple(math.sin(n) for n in x)))
    assert len(thinned.x) == figures.POINTS
    assert sum(thinned.x) / len(thinned.x) == pytest.approx(sum(x) / len(x))
    assert figures.thin(Series(x[:5], x[:5])) == Series(x[:5], x[:5])
