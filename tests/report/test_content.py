"""What a report contains, before it is typeset: tables, sentences, and the rules of strengths and weaknesses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_directories import CONFIG, ENVIRONMENT, PROTOCOL, log_steps, make_run, save_curve, save_texts, update_state

from gpt2lab.compare.results import outcome_of
from gpt2lab.data.prepare import prepare
from gpt2lab.evaluation.measure import RunData
from gpt2lab.files import with_checksum, write_checked_json
from gpt2lab.report import equations, facts
from gpt2lab.report.content import Judgment, RunContent, gather, repeated_trigrams
from gpt2lab.report.facts import Fact
from gpt2lab.report.markdown import read_markdown
from gpt2lab.report.references import CITE
from gpt2lab.report.write import render_html
from gpt2lab.runs import Run
from gpt2lab.tokenizer.tokenizer import Tokenizer


def content_of(run: Run) -> RunContent:
    (content,) = gather([run]).runs
    return content


def named(table: tuple[Fact, ...]) -> dict[str, Fact]:
    return {fact.name: fact for fact in table}


def judgments(run: Run, kind: str) -> list[str]:
    """Strengths, weaknesses, or what to try next."""
    return [text for found, text in all_judgments(run) if found == kind]


def all_judgments(run: Run) -> list[Judgment]:
    return RunContent(run.path.name, RunData(run), {}, []).judgments


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
        assert f"Its {name} perplexity is {value:.3f} per token" in facts.summary(content.data)


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
        ("config.json", "[]", "no object with its checksum"),
        ("config.json", json.dumps(with_checksum({"model": 3, "optim": []})), "configuration cannot be read"),
        ("environment.json", "\xff", "environment.json"),
        ("metrics.csv", "step\n1\n", "metrics.csv"),
        ("evals.csv", "step,task,split,protocol,metric,value,crc32\n1,a,b,c,d,1.5,0\n", "line 2 does not match"),
        ("samples.jsonl", '{"step": 1}\n', "samples.jsonl"),
        ("samples.jsonl", "3\n", "samples.jsonl"),
        ("checkpoints/step_00000300/state.json", "", "state.json"),
        ("checkpoints/step_00000300/model.safetensors", "short", "model.safetensors"),
        (
            "evaluations/step_00000300/text.json",
            json.dumps(with_checksum({"rows": [{}]})),
            "text.json: rows[0].figures",
        ),
        ("evaluations/step_00000300/positions.json", "[]", "positions.json: no object with"),
    ],
)
def test_damaged_file_is_named_and_the_rest_is_reported(run: Run, name: str, content: str, expected: str) -> None:
    run.evaluations(300)
    (run.path / name).write_text(content, encoding="latin-1")
    report = content_of(run)
    assert any(expected in text for text in (*report.remarks, facts.summary(report.data)))
    tables = facts.configuration(report.data.config), facts.environment(report.data), report.strategies
    assert len([part for part in tables if part]) >= 2


def test_run_whose_code_was_not_run_keeps_its_figures(run: Run) -> None:
    write_checked_json(run.path / "config.json", {**CONFIG, "model": {**CONFIG["model"], "import_sha256": "0" * 64}})
    outcome = outcome_of(run, "a", 1)
    assert outcome.usable and "test_loss" in outcome.figures and "cache_bytes" not in outcome.figures
    assert any("holds no readable file" in remark for remark in content_of(run).remarks)
    assert outcome_of(run, "a", 1, "out of memory").options["model.n_layer"] == 2


@pytest.mark.parametrize("name", ["run", "seed_1337"])
def test_runs_of_the_same_name_are_called_by_their_folders_too(tmp_path: Path, name: str) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
    runs = [make_run(tmp_path / parent / name, steps=10) for parent in ("a", "b")]
    assert [content.name for content in gather(runs).runs] == [f"a/{name}", f"b/{name}"]
    assert gather(runs[:1]).title == ("run" if name == "run" else f"a/{name}"), "a seed alone is no name"


def test_texts_without_the_metrics_of_the_plot_have_no_plot(run: Run) -> None:
    save_texts(run, [{"name": "held-out text", "strategy": None, "figures": {"perplexity": 3.25}}])
    content = content_of(run)
    assert content.data.texts is not None and "texts" not in content.pictures


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
    ("options", "expected", "reference"),
    [
        ({}, [], ""),
        ({"n_kv_head": 1}, ["The 4 query heads share 1 key-value head ("], "Shazeer 2019"),
        ({"mask": "window", "window": 64}, ["64 in all"], "Longformer"),
        ({"mask": "strided", "window": 2}, ["at a distance that is a multiple of 2 ("], "Sparse Transformers"),
        ({"mask": "checkered {0}"}, ["is the mask <code>checkered {0}</code>."], ""),
        ({"norm_placement": "post"}, ["normalizes each sum", "no norm"], ""),
        ({"norm_placement": "sandwich"}, ["between two norms"], "CogView"),
        ({"norm": "rmsnorm"}, ["RMSNorm", "root mean square"], "Root Mean Square"),
        ({"norm": "rmsnorm", "norm_affine": False}, ["RMSNorm", "no weight"], "Root Mean Square"),
        ({"qk_norm": True}, ["Queries and keys are normalized"], "Query-Key"),
        ({"parallel_blocks": True}, ["of the same normalized input"], "GPT-J"),
        (
            {"mask": "window,causal", "window": 64},
            ["window, causal in turn", "Under window: A position"],
            "Longformer",
        ),
        ({"attention_sinks": True}, ["its sink", "∑"], "gpt-oss"),
        ({"attention_softcap": 50.0}, ["Scores are bounded by", "<mn>50</mn>"], "Gemma 2"),
        ({"attention_gate": True}, ["A gate multiplies"], "Qiu et al. 2025"),
        ({"value_residual": True}, ["mixed with those of the first"], "Value Residual Learning"),
        ({"differential_attention": True}, ["subtracts its maps", "0.8"], "Differential Transformer"),
        ({"latent_dim": 16}, ["a latent", "of 16 numbers"], "DeepSeek-V2"),
        ({"activation": "swiglu"}, ["Three linear layers", "SiLU as the gate"], "GLU Variants"),
        ({"activation": "relu2"}, ["ReLU squared"], "Primer"),
        ({"activation": "gelu"}, ["GELU [5]."], ""),
        ({"tied_head": False}, ["a matrix of its own"], ""),
        ({"logit_softcap": 30.0}, ["bounded by", "<mn>30</mn>", "tanh"], "Gemma 2"),
        ({"z_loss": 1e-4}, ["0.0001 times the mean"], "PaLM"),
        ({"mtp_depth": 2}, ["each of 2 heads"], "Multi-token Prediction"),
        ({"bias": False}, ["Layer norm", "no bias"], ""),
    ],
    ids=str,
)
def test_what_differs_from_gpt2_is_explained_with_its_source(
    tmp_path: Path, options: dict, expected: list[str], reference: str
) -> None:
    plain, run = (
        Run.create(tmp_path / name, {**CONFIG, "model": {**CONFIG["model"], **changes}}, ENVIRONMENT)
        for name, changes in (("plain", {}), ("run", options))
    )
    gpt2 = " ".join(text.html for text in facts.deviations(RunData(plain))[1:])
    found = " ".join(text.html for text in facts.deviations(RunData(run))[1:])
    words = {"no norm": "N(x_t^L)", "no weight": "γ", "no bias": "β"}
    for part in expected:
        assert words[part] not in found if part in words else part in found and part not in gpt2
    assert bool(expected) == bool(found)
    added = set(gather([run]).references.values()) - set(gather([plain]).references.values())
    assert [reference in text for text in added] == ([True] if reference else [])


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


def test_recipe_and_growth_are_told(run: Run, tmp_path: Path) -> None:
    growing = Run.create(tmp_path / "run", {**CONFIG, "recipe": "fast", "grow_batch": "250:500"}, ENVIRONMENT)
    found, plain = (named(facts.training_facts(RunData(each))) for each in (growing, run))
    assert (found["Recipe"].value, found["Steps at which the batch doubles"].value) == ("fast", "250:500")
    assert not {"Steps at which the batch doubles", "Steps at which sequences double"} & plain.keys()


def test_the_way_in_which_sequences_are_drawn_is_told(run: Run, tmp_path: Path) -> None:
    drawn = Run.create(tmp_path / "run", {**CONFIG, "sampling": "random"}, ENVIRONMENT)
    assert "visited once per epoch" in facts.task(RunData(run))[1]
    assert "each begins at a token that is drawn at random" in facts.task(RunData(drawn))[1]


def test_a_stream_counts_segments_instead_of_epochs(run: Run, tmp_path: Path) -> None:
    stream = Run.create(tmp_path / "run", {**CONFIG, "data": "stream:stories"}, ENVIRONMENT)
    log_steps(stream, 300)
    data = RunData(stream)
    assert named(facts.training_facts(data))["Length"].value == "300 steps, 1.50 segments of the stream"
    assert "(stream:stories)" in facts.task(data)[1] and "in segments during training" in facts.task(data)[1]
    assert facts.passes(RunData(run)) == "1.50 epochs"
    assert "The manifest of stories-data cannot be read here" in facts.task(RunData(run))[1]


@pytest.mark.parametrize(
    ("losses", "kind", "expected"),
    [
        (
            (3.0, 2.0),
            "Strengths",
            "It uses its context: the loss is 3.000 with 1 token of context and 2.000 with about 2.",
        ),
        ((3.0, 2.9), None, ""),
        ((3.0, 2.999), "Weaknesses", "Context hardly helps it: the loss is 3.000 with 1 token of context and 2.999 "),
        ((2.0, 3.0), "Weaknesses", "Context hardly helps it: the loss is 2.000 with 1 token of context and 3.000 "),
    ],
)
def test_context_helps_if_the_loss_falls_along_the_window(
    run: Run, losses: tuple[float, ...], kind: str | None, expected: str
) -> None:
    save_curve(run, losses)
    said = {found: text for found, text in all_judgments(run) if "ontext" in text}
    assert set(said) == ({kind} if kind else set()) and said.get(kind or "", "").startswith(expected)


@pytest.mark.parametrize(
    ("values", "epochs", "weakness", "next_step", "strength"),
    [
        ([(10, 5.0, 5.0), (80, 2.9, 2.95), (100, 2.9, 2.95)], 1, "", "", ""),
        ([(10, 5.0, 5.0), (20, 4, 4), (50, 3.0, 3.0), (80, 2.9, 2.95), (100, 2.9, 2.95)], 0.5, "", "", ""),
        (
            [(10, 5.0, 5.0), (20, 4, 4), (50, 3.0, 3.0), (80, 2.9, 2.95), (100, 2.9, 2.95)], 2.5, "", "",
            "training loss 2.900, validation loss 2.950 after 2.50 epochs and 5 validations.",
        ),
        (
            [(10, 5.0, 5.0), (50, 2.0, 3.0), (80, 1.0, 3.5), (100, 0.5, 4.0)], 1,
            "minimum of 3.000 at step 50 and rose",
            "or stop after 50 steps: the validation loss reached its minimum of 3.000 at step 50.", "",
        ),
        (
            [(10, 5.0, 5.0), (50, 3.0, 3.0), (60, 6.0, 6.0), (80, 5.0, 5.0), (100, 4.0, 4.0)], 1,
            "Training diverged: the validation loss reached its minimum of 3.000 at step 50", "a lower --optim.lr", "",
        ),
        (
            [(10, 5.0, 5.0), (80, 1.0, 3.0), (100, 0.9, 3.0)], 1, "generalization gap is large",
            "would narrow the gap (training loss 0.9000, validation loss 3.000).", "",
        ),
        (
            [(10, 5.0, 5.0), (80, 4.0, 4.0), (100, 3.6, 3.6)], 1, "validation loss still fell by 10.0\u00a0%",
            "Train longer: over the last fifth of the steps the validation loss still fell by 10.0\u00a0%.", "",
        ),
    ],
)  # fmt: skip
def test_judgments_follow_from_the_losses_if_they_bear_them(
    tmp_path: Path, values: list[tuple[int, float, float]], epochs: float, weakness: str, next_step: str, strength: str
) -> None:
    run = Run.create(tmp_path / "run", CONFIG, ENVIRONMENT)
    row = dict.fromkeys(("lr", "grad_norm", "tokens_per_s", "mfu", "peak_memory_mb", "seconds"), 1.0)
    for step, train, val in values:
        losses = {"train_loss": train, "val_loss": val}
        run.add_metrics({**row, **losses, "step": step, "tokens": step * 100, "epoch": epochs})
    for kind, expected in (("Weaknesses", weakness), ("What to try next", next_step), ("Strengths", strength)):
        found = judgments(run, kind)
        assert len(found) == bool(expected) and all(expected in text for text in found), kind


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (0.1, 0.31, "refer less to"), (0.25, 0.31, "as diverse and nearly as relevant as"), (0.1, 0.0, ""),
        (0.4, 0.31, "as diverse and as relevant as"),
    ],
)  # fmt: skip
def test_texts_are_judged_by_their_relevance(run: Run, ours: float, theirs: float, said: str) -> None:
    rows = [("held-out text", None, theirs), ("nucleus 0.9", {"top_p": 0.9}, ours)]
    saved = [{"name": n, "strategy": s, "figures": {"self_bleu": 40.0, "relevance": x}} for n, s, x in rows]
    save_texts(run, saved)
    found = [text for _, text in all_judgments(run) if "relevan" in text]
    assert len(found) == bool(said) and all(said in text for text in found)


def test_greedy_decoding_that_loops_is_a_weakness(run: Run) -> None:
    run.add_sample(300, "greedy", "", "the cat sat " * 20)
    assert repeated_trigrams("a b c a b c a") == pytest.approx(1 - 3 / 5)
    assert any(text.startswith("Greedy decoding loops: 94.8\u00a0%") for text in judgments(run, "Weaknesses"))
    assert any("--top-p 0.9" in text and "94.8\u00a0%" in text for text in judgments(run, "What to try next"))


@pytest.mark.parametrize(
    ("position", "expected", "reference"),
    [
        ("learned", ["trained like the embedding", "<msub><mi>P</mi><mi>t</mi></msub>"], "Radford, Narasimhan"),
        ("sinusoidal", ["Vaswani et al. 2017", "sin", "0.02", "10000"], "Attention Is All You Need"),
        ("rope", ["Su et al. 2021", "cos", "<mn>1000000</mn>", "<mtable"], "RoFormer"),
        (
            "alibi",
            ["Press et al. 2022", "<msub><mi>E</mi>", "<msub><mi>m</mi><mi>h</mi></msub>"],
            "Press, Smith & Lewis",
        ),
        ("none", ["Haviv et al. 2022", "<msub><mi>E</mi>"], "Haviv, Ram, Press"),
    ],
)
def test_positions_have_their_equation_and_its_source(
    tmp_path: Path, position: str, expected: list[str], reference: str
) -> None:
    model = {**CONFIG["model"], "position": position, "rope_base": 1e6}
    run = Run.create(tmp_path / "run", {**CONFIG, "model": model}, ENVIRONMENT)
    report = gather([run])
    html = read_markdown(equations.position(report.runs[0].data.options("model"))).html
    assert all(part in html for part in (*expected, "<math")), html
    assert html in render_html(report)
    sources = ("Radford, Narasimhan", "RoFormer", "Press, Smith & Lewis", "Haviv, Ram, Press")
    for source in (reference, *sources):
        assert any(source in text for text in report.references.values()) == (source == reference), source


@pytest.mark.parametrize(
    ("options", "expected", "reference"),
    [
        ({"rope_pairing": "interleaved"}, "<mn>2</mn><mi>i</mi><mo>+</mo><mn>1</mn>", "RoFormer"),
        ({"rope_fraction": 0.25}, "is the fraction 0.25 of the head width", "RoFormer"),
        ({"rope_scaling": "linear", "rope_factor": 4.0}, "all angles are divided by", "Chen, Wong"),
        ({"rope_scaling": "ntk", "rope_factor": 4.0}, "the base grows", "bloc97"),
        ({"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_ctx": 64}, "that turn 32 times", "YaRN"),
        ({"nope_every": 4}, "Layers 4, 2 · 4, .. have no positions", "Rope to Nope"),
        ({"position": "alibi", "n_head": 8}, "<mo>/</mo><mn>8</mn>", "Press, Smith"),
        ({"position": "alibi", "n_head": 6}, "<mo>&gt;</mo><mn>4</mn>", "Press, Smith"),
    ],
    ids=str,
)
def test_forms_of_positions_have_their_equation_and_its_source(
    tmp_path: Path, options: dict, expected: str, reference: str
) -> None:
    model = {**CONFIG["model"], "position": "rope", **options}
    run = Run.create(tmp_path / "run", {**CONFIG, "model": model}, ENVIRONMENT)
    report = gather([run])
    html = read_markdown(equations.position(report.runs[0].data.options("model"))).html
    assert expected in html, html
    assert any(reference in text for text in report.references.values())
    shown = named(facts.model_facts(report.runs[0].data))
    for name in options.keys() & facts._MODEL.keys():
        assert facts._MODEL[name][0] in shown


@pytest.mark.parametrize(
    ("asked", "seq_len", "expected"),
    [("auto", 256, "matmul (auto: plain products"), ("auto", 2048, "sdpa (auto: "), ("banded", 256, "banded")],
)
def test_kernel_is_the_one_that_auto_chose(run: Run, asked: str, seq_len: int, expected: str) -> None:
    model = {**CONFIG["model"], "kernel": asked, "n_ctx": 2048}
    write_checked_json(run.path / "config.json", {**CONFIG, "model": model, "seq_len": seq_len})
    assert named(facts.model_facts(RunData(run)))["Attention kernel"].value.startswith(expected)


@pytest.mark.parametrize(
    ("rule", "documents", "expected"),
    [
        (
            "hash",
            300,
            "A hash of its text decides to which split a document belongs (10.0\u00a0% for validation and 10.",
        ),
        ("position", 1, "Each document is cut: its first part is for training, followed by 10.0\u00a0% for validation"),
    ],
)
def test_splits_are_those_of_the_manifest_with_their_sizes(
    run: Run, tmp_path: Path, rule: str, documents: int, expected: str
) -> None:
    text = "<|endoftext|>".join(f"Text {n} is about a cat, a dog and {n} more." * 5 for n in range(documents))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    out = tmp_path / "prepared"
    dataset = prepare(
        [str(tmp_path / "text.txt")], Tokenizer.train([text], 257), out, val_fraction=0.1, test_fraction=0.1
    )
    write_checked_json(run.path / "config.json", {**CONFIG, "data": str(out)})
    assert "holds other data now" in facts.splits(RunData(run))
    update_state(run, fingerprints={"data": dataset.fingerprint})
    found = facts.splits(RunData(run))
    assert dataset.manifest.split_rule.by == rule and expected in found
    for split, name in (("train", "training"), ("val", "validation"), ("test", "testing")):
        size = dataset.manifest.splits[split]
        noun = "document" if size.documents == 1 else "documents"
        assert f"{size.documents} {noun} ({size.tokens:,} tokens) for {name}" in found


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
    report = gather([run])
    references = list(report.references.values())
    assert any("Muon" in text for text in references) == (optimizer == "muon")
    assert not any(source in text for text in references for source in ("Student", "Holtzman", "RoFormer", "Zoology"))
    assert all(report.cite[name] == number for name, number in CITE.items())
    assert optimizer == "adamw" or "Muon" in references[int(report.cite["muon"].strip("[]")) - 1]
