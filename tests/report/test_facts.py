"""Sentences about a run, and the rules behind its strengths and weaknesses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_directories import CONFIG, ENVIRONMENT, log_steps, make_run

from gpt2lab.evaluation.perplexity import PositionCurve, save_positions
from gpt2lab.evaluation.run_data import read_run
from gpt2lab.files import read_json, write_json
from gpt2lab.report import facts
from gpt2lab.runs import Run


def judgments(run: Run) -> tuple[list[str], list[str]]:
    """Strengths and weaknesses."""
    found = list(facts.judgments(read_run(run)))
    return [text for good, text in found if good], [text for good, text in found if not good]


def update_state(run: Run, **values: object) -> None:
    path = run.checkpoints / "step_00000300" / "state.json"
    write_json(path, {**read_json(path), **values})


def test_every_option_is_shown_as_in_the_configuration(run: Run) -> None:
    shown = {fact.name: fact.value for fact in facts.configuration(run.config)}
    flat = {name: value for name, value in CONFIG.items() if not isinstance(value, dict)} | {"out": str(run.path)}
    flat |= {f"{group}.{name}": value for group in ("model", "optim") for name, value in CONFIG[group].items()}
    assert shown == {name: json.dumps(value) for name, value in flat.items()}


def test_paths_below_the_working_directory_are_shown_relative_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    data, init = (str(tmp_path / name) for name in ("home/data", "elsewhere"))
    shown = {fact.name: json.loads(fact.value) for fact in facts.configuration({"data": data, "init": init})}
    assert shown == {"data": "data", "init": init}


def test_parameters_are_counted_from_the_weights_without_the_padding(run: Run) -> None:
    assert {f.name: f.value for f in facts.model_facts(read_run(run))}["Parameters"] == f"{1000 * 32 + 256 * 32:,}"


def test_options_of_other_architectures_are_shown_only_if_they_differ(tmp_path: Path) -> None:
    plain = {"position": "learned", "rope_base": 10000.0, "n_kv_head": None, "mask": "causal", "window": None}

    def labels(name: str, options: dict) -> set[str]:
        model = {**CONFIG["model"], **plain, **options}
        run = Run.create(tmp_path / name, {**CONFIG, "model": model}, ENVIRONMENT)
        return {fact.name for fact in facts.model_facts(read_run(run))}

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


def test_batch_is_divided_among_the_processes(run: Run) -> None:
    def batch() -> str:
        return next(fact.note for fact in facts.training_facts(read_run(run)) if fact.name == "Batch")

    assert batch() == "2 micro-steps of 8 sequences of 256, accumulated"
    update_state(run, world=2)
    assert batch() == "8 sequences of 256 on each of 2 processes"


def test_a_stream_counts_shards_instead_of_epochs(run: Run, tmp_path: Path) -> None:
    stream = Run.create(tmp_path / "run", {**CONFIG, "data": "stream:stories"}, ENVIRONMENT)
    log_steps(stream, 300)
    data = read_run(stream)
    length = next(fact.value for fact in facts.training_facts(data) if fact.name == "Length")
    assert length == "300 steps, 1.50 shards of the stream"
    assert "(stream:stories)" in facts.task(data)[1] and "in shards during training" in facts.task(data)[1]
    assert facts.passes(read_run(run)) == "1.50 epochs"
    assert "Validation and test documents are those of the corpus" in facts.task(read_run(run))[1]


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
    save_positions(run, 300, PositionCurve("test", "", losses, (5, 5)))
    assert any(text.startswith(expected) for text in judgments(run)[not good])


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
    found = judgments(run)[1]
    assert (not found) if weakness is None else any(weakness in text for text in found)


def test_greedy_decoding_that_loops_is_a_weakness(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.add_sample(300, "greedy", "", "the cat sat " * 20)
    assert facts.repeated_trigrams("a b c a b c a") == pytest.approx(1 - 3 / 5)
    assert any(text.startswith("Greedy decoding loops: 94.8\u00a0%") for text in judgments(run)[1])


def test_published_figures_are_shown_only_for_the_same_text_and_style(run: Run) -> None:
    assert facts.published(read_run(run)) == ()
    run.add_eval(300, "hellaswag", "val", "Worded as by lm-evaluation-harness.", "acc_norm", 0.26)
    assert facts.published(read_run(run)) == ()
    run.add_eval(300, "hellaswag", "val", "Completion style.", "acc_norm", 0.26)
    assert [fact.value for fact in facts.published(read_run(run))] == ["0.2955"]
    update_state(run, fingerprints={"data": facts.SHAKESPEARE_BY_CHARACTER, "tokenizer": "t"})
    assert [fact.value for fact in facts.published(read_run(run))] == ["1.880", "1.470", "0.2955"]
    assert list(facts.published_losses(read_run(run)).values()) == [1.88, 1.4697]
