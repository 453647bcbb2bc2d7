"""What a report contains, before it is typeset: tables, sentences, and the rules of strengths and weaknesses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_directories import CONFIG, ENVIRONMENT, PROTOCOL, log_steps, make_run, save_curve, save_texts, update_state

from gpt2lab.compare.results import outcome_of
from gpt2lab.evaluation.run_data import RunData
from gpt2lab.report import facts
from gpt2lab.report.content import RunContent, gather
from gpt2lab.report.facts import Fact
from gpt2lab.runs import Run


def content_of(run: Run) -> RunContent:
    (content,) = gather([run]).runs
    return content


def named(table: tuple[Fact, ...]) -> dict[str, Fact]:
    return {fact.name: fact for fact in table}


def judgments(run: Run, good: bool) -> list[str]:
    """Strengths, or weaknesses."""
    return [text for kind, text in facts.judgments(RunData(run)) if kind == good]


def test_best_validation_loss_has_its_step_and_the_floor_is_the_loss_less_the_gap(run: Run) -> None:
    content = content_of(run)
    best = next(figure for figure in content.key_figures if figure.label == "Best validation loss")
    loss, step = min((row["val_loss"], row["step"]) for row in run.metrics() if row["val_loss"] is not None)
    assert best.value == f"{loss:.4f}" and best.note.endswith(f"step {step:.0f}")
    assert content.floor == pytest.approx(0.9123 * 0.30162 / 0.33178, rel=1e-4)


def test_figures_of_different_protocols_are_not_mixed(run: Run) -> None:
    run.add_eval(300, "perplexity", "test", "stride 1", "perplexity", 2.25)
    content = content_of(run)
    assert [figure.value for figure in content.key_figures[:2]] == ["2.250", None]
    assert [e.protocol for e in content.evaluations[:2]] == [PROTOCOL, "100 stories at nucleus 0.9"]
    assert content.evaluations[2].facts[0].value == "2.250"


def test_validation_figures_come_first_if_there_are_none_of_the_test_set(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", CONFIG, ENVIRONMENT)
    for split, name, value in (("val", "validation", 5.96), ("test", "test", 6.25)):
        run.add_eval(300, "perplexity", split, PROTOCOL, "perplexity", value)
        content = content_of(run)
        first = content.key_figures[0]
        assert (first.label, first.value) == (f"{name.capitalize()} perplexity", f"{value:.3f}")
        assert f"Its {name} perplexity is {value:.3f} per token" in content.summary


@pytest.mark.parametrize("finished", ["300 steps done", None])
def test_each_arm_has_the_pictures_of_its_first_finished_run(tmp_path: Path, finished: str | None) -> None:
    runs = [make_run(tmp_path / name, finished=finished) for name in ("a1", "a2", "b1")]
    for run in runs:
        save_curve(run, (3.0, 2.0))
    outcomes = [outcome_of(run, f"arm {run.path.name[0]}", int(run.path.name[1])) for run in runs]
    not_reported = outcome_of(make_run(tmp_path / "other"), "arm a", 3)
    for compared in (outcomes, [not_reported, *outcomes]):
        report = gather(runs, outcomes=compared)
        assert [run.name for run in report.runs] == ["arm a, seed 1", "arm a, seed 2", "arm b, seed 1"]
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
        ("evals.csv", "step,task,split,protocol,metric,value,crc32\n1,a,b,c,d,1.5,0\n", "line 2 does not match"),
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


@pytest.mark.parametrize("name", ["run", "seed_1337"])
def test_runs_of_the_same_name_are_called_by_their_folders_too(tmp_path: Path, name: str) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
    runs = [make_run(tmp_path / parent / name, steps=10) for parent in ("a", "b")]
    assert [content.name for content in gather(runs).runs] == [f"a/{name}", f"b/{name}"]


def test_texts_without_the_metrics_of_the_plot_have_no_plot(run: Run) -> None:
    save_texts(run, [{"name": "held-out text", "strategy": None, "figures": {"perplexity": 3.25}}])
    content = content_of(run)
    assert content.texts is not None and "texts" not in content.pictures


def test_every_option_is_shown_as_in_the_configuration_but_paths_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    flat = {name: value for name, value in CONFIG.items() if not isinstance(value, dict)}
    flat |= {f"{group}.{name}": value for group in ("model", "optim") for name, value in CONFIG[group].items()}
    inside, outside = str(tmp_path / "home" / "runs" / "a"), str(tmp_path / "elsewhere")
    shown = {fact.name: fact.value for fact in facts.configuration({**CONFIG, "out": inside, "init": outside})}
    assert shown == {name: json.dumps(value) for name, value in {**flat, "out": "runs/a", "init": outside}.items()}


def test_parameters_are_counted_from_the_weights_without_the_padding(run: Run) -> None:
    assert named(facts.model_facts(RunData(run)))["Parameters"].value == f"{1000 * 32 + 256 * 32:,}"


def test_options_of_other_architectures_are_shown_only_if_they_differ(tmp_path: Path) -> None:
    plain = {"position": "learned", "rope_base": 10000.0, "n_kv_head": None, "mask": "causal", "window": None}

    def labels(name: str, options: dict) -> set[str]:
        model = {**CONFIG["model"], **plain, **options}
        run = Run.create(tmp_path / name, {**CONFIG, "model": model}, ENVIRONMENT)
        return set(named(facts.model_facts(RunData(run))))

    usual = labels("plain", {})
    assert "Layers" in usual and not usual & plain.keys()
    assert labels("rope", {"position": "rope"}) - usual == {"Position encoding", "Base of the rotary angles"}
    window = labels("window", {"mask": "window", "window": 8})
    assert window - usual == {"Attention mask", "Window of the mask, in tokens"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ""),
        ({"position": "rope"}, "Positions are rotary"),
        ({"n_kv_head": 1}, "The 4 query heads share 1 key-value head ("),
        ({"mask": "window", "window": 64}, "64 in all"),
        ({"mask": "checkered"}, "The mask M is checkered."),
        ({"norm": "post"}, "Layer norm follows each sum"),
    ],
)
def test_differences_from_gpt2_are_explained(options: dict, expected: str) -> None:
    found = " ".join(facts.deviations({**CONFIG["model"], **options}))
    assert expected in found and bool(expected) == bool(found)


@pytest.mark.parametrize(
    ("options", "name", "expected"),
    [
        ({}, "Optimizer", "AdamW, β = (0.9, 0.95), ε = 10⁻⁸"),
        ({"name": "muon"}, "Optimizer", "Muon for the matrices of the blocks, for the rest AdamW,"),
        ({"name": "muon"}, "Learning rate of Muon", "0.02 the same schedule"),
        (
            {},
            "Learning rate",
            "peak 0.003 linear warmup over 5 % of the steps (at most 2,000), then cosine decay to",
        ),
        ({"schedule": "linear", "min_lr": 1e-4}, "Learning rate", ", then linear decay to 0.0001"),
        ({"schedule": "constant", "warmup_steps": 1}, "Learning rate", "linear warmup over 1 step, then constant"),
        ({"schedule": "wsd"}, "Learning rate", ", then constant, with a linear decay to 0 at the end"),
    ],
)
def test_optimizer_and_schedule_are_described(tmp_path: Path, options: dict, name: str, expected: str) -> None:
    run = Run.create(tmp_path / "run", {**CONFIG, "optim": {**CONFIG["optim"], **options}}, ENVIRONMENT)
    fact = named(facts.training_facts(RunData(run)))[name]
    assert expected in f"{fact.value} {fact.note}"


def test_batch_is_divided_among_the_processes(run: Run) -> None:
    for world, expected in (
        (1, "2 micro-steps of 8 sequences of 256, accumulated"),
        (2, "8 sequences of 256 on each of 2 processes"),
    ):
        update_state(run, world=world)
        assert named(facts.training_facts(RunData(run)))["Batch"].note == expected


def test_a_stream_counts_segments_instead_of_epochs(run: Run, tmp_path: Path) -> None:
    stream = Run.create(tmp_path / "run", {**CONFIG, "data": "stream:stories"}, ENVIRONMENT)
    log_steps(stream, 300)
    data = RunData(stream)
    assert named(facts.training_facts(data))["Length"].value == "300 steps, 1.50 segments of the stream"
    assert "(stream:stories)" in facts.task(data)[1] and "in segments during training" in facts.task(data)[1]
    assert facts.passes(RunData(run)) == "1.50 epochs"
    assert "Validation and test documents are those of the corpus" in facts.task(RunData(run))[1]


@pytest.mark.parametrize(
    ("losses", "good", "expected"),
    [
        ((3.0, 2.0), True, "It uses its context: the loss is 3.000 with 1 token of context and 2.000 with about 2."),
        ((3.0, 2.999), False, "Context hardly helps it: the loss is 3.000 with 1 token of context and 2.999 "),
        ((2.0, 3.0), False, "Context hardly helps it: the loss is 2.000 with 1 token of context and 3.000 "),
    ],
)
def test_context_helps_if_the_loss_falls_along_the_window(
    run: Run, losses: tuple[float, ...], good: bool, expected: str
) -> None:
    save_curve(run, losses)
    assert any(text.startswith(expected) for text in judgments(run, good))


@pytest.mark.parametrize(
    ("values", "weakness"),
    [
        ([(10, 5.0, 5.0), (50, 3.0, 3.0), (80, 2.9, 2.95), (100, 2.9, 2.95)], None),
        ([(10, 5.0, 5.0), (50, 2.0, 3.0), (80, 1.0, 3.5), (100, 0.5, 4.0)], "minimum of 3.000 at step 50 and rose"),
        ([(10, 5.0, 5.0), (80, 1.0, 3.0), (100, 0.9, 3.0)], "generalization gap is large"),
        ([(10, 5.0, 5.0), (80, 4.0, 4.0), (100, 3.6, 3.6)], "validation loss still fell by 10.0\u00a0%"),
    ],
)
def test_weaknesses_follow_from_the_losses(
    tmp_path: Path, values: list[tuple[int, float, float]], weakness: str | None
) -> None:
    run = Run.create(tmp_path / "run", CONFIG, ENVIRONMENT)
    row = dict.fromkeys(("lr", "grad_norm", "tokens_per_s", "mfu", "peak_memory_mb", "seconds", "epoch"), 1.0)
    for step, train, val in values:
        run.add_metrics({**row, "step": step, "tokens": step * 100, "train_loss": train, "val_loss": val})
    found = judgments(run, good=False)
    assert (not found) if weakness is None else any(weakness in text for text in found)


def test_greedy_decoding_that_loops_is_a_weakness(run: Run) -> None:
    run.add_sample(300, "greedy", "", "the cat sat " * 20)
    assert facts.repeated_trigrams("a b c a b c a") == pytest.approx(1 - 3 / 5)
    assert any(text.startswith("Greedy decoding loops: 94.8\u00a0%") for text in judgments(run, good=False))


def test_published_figures_are_shown_only_for_the_same_text_and_style(run: Run) -> None:
    assert facts.published(RunData(run)) == ()
    run.add_eval(300, "hellaswag", "val", "Worded as by lm-evaluation-harness.", "acc_norm", 0.26)
    assert facts.published(RunData(run)) == ()
    run.add_eval(300, "hellaswag", "val", "Completion style.", "acc_norm", 0.26)
    assert [fact.value for fact in facts.published(RunData(run))] == ["0.2955"]
    update_state(run, fingerprints={"data": facts.SHAKESPEARE_BY_CHARACTER, "tokenizer": "t"})
    assert [fact.value for fact in facts.published(RunData(run))] == ["1.880", "1.470", "0.2955"]
    assert list(facts.published_losses(RunData(run)).values()) == [1.88, 1.4697]


def test_loops_of_line_breaks_are_folded(run: Run) -> None:
    run.add_sample(300, "greedy", "One", "One day" + 96 * "\n" + "he" + 4 * "\n" + "ran")
    texts = [sample.continuation for strategy in content_of(run).strategies for sample in strategy.samples]
    assert " day\n↵ × 96\nhe\n\n\n\nran" in texts


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_only_what_is_used_is_referenced(tmp_path: Path, optimizer: str) -> None:
    run = Run.create(tmp_path / "run", {**CONFIG, "optim": {**CONFIG["optim"], "name": optimizer}}, ENVIRONMENT)
    references = gather([run]).references
    assert any("Muon" in text for text in references) == (optimizer == "muon")
    assert not any("Student" in text for text in references)
    assert optimizer == "adamw" or "Muon" in references[int(facts.CITE["muon"].strip("[]")) - 1]
