"""Comparisons through the library and the command line: real runs of a few steps."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from gpt2lab.cli.arguments import parse
from gpt2lab.cli.main import main
from gpt2lab.compare import output as comparison_figures
from gpt2lab.compare import results
from gpt2lab.compare.plan import make_plan, parse_arms, parse_variations
from gpt2lab.compare.results import Outcome, Validated, compare_outcomes, outcome_of, to_loss
from gpt2lab.compare.run import Ended, compare, in_this_process
from gpt2lab.data.prepare import prepare
from gpt2lab.errors import InputError
from gpt2lab.model.config import GPTConfig
from gpt2lab.report.content import gather
from gpt2lab.report.html import write_report
from gpt2lab.runs import Run
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training import loop, monitoring
from gpt2lab.training.config import TrainConfig, flags

TEXT = "".join(f"{n} cats and {n + 2} dogs went to the {'sea' if n % 3 else 'hill'}. " for n in range(80))
VARY = {"model.n_inner": [16, 64]}


@pytest.fixture(scope="module", autouse=True)
def without_slow_extras():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "peak_flops", lambda device, precision: (1e12, "not measured"))
        patch.setattr(monitoring, "draw", lambda run: run.path)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    prepare(
        [str(folder / "text.txt")],
        Tokenizer.train([TEXT], 257),
        folder / "data",
        val_fraction=0.2,
        test_fraction=0.2,
    )
    return folder / "data"


def base(data: Path) -> TrainConfig:
    model = GPTConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=16, dropout=0.0)
    return TrainConfig(
        data=data, model=model, steps=6, batch_tokens=64, eval_every=2, log_every=2, checkpoint_every=2, device="cpu"
    )


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of two variants with two seeds. Read it, do not write to it."""
    out = tmp_path_factory.mktemp("done") / "out"
    compare(base(data), VARY, 2, out)
    return out


def test_every_combination_and_seed_is_an_ordinary_run_of_the_same_batches(done: Path) -> None:
    runs = sorted(path.parent for path in done.glob("*/*/config.json"))
    assert [path.relative_to(done).as_posix() for path in runs] == [
        f"n_inner={n}/seed_{seed}" for n in (16, 64) for seed in (1337, 1338)
    ]
    assert [Run(path).config["model"]["n_inner"] for path in runs] == [16, 16, 64, 64]
    assert all(Run(path).metrics()[-1]["step"] == 6 for path in runs)


def test_files_hold_what_the_runs_hold(done: Path) -> None:
    found = json.loads((done / "comparison.json").read_text(encoding="utf-8"))
    assert (found["reference"], found["seeds"]) == ("n_inner=16", [1337, 1338])
    assert {run["status"] for run in found["runs"]} == {"finished"}
    rows = {row["metric"]: row["arms"] for row in found["metrics"]}
    run = Run(done / "n_inner=64" / "seed_1337")
    losses = {row["metric"]: float(row["value"]) for row in run.evals() if row["split"] == "test"}
    assert found["runs"][1]["figures"]["test_loss"] == losses["loss"]
    other = Run(done / "n_inner=64" / "seed_1338").evals()
    mean = (losses["loss"] + float(next(row["value"] for row in other if row["metric"] == "loss"))) / 2
    assert rows["test_loss"]["n_inner=64"]["mean"] == pytest.approx(mean)
    assert rows["cache_bytes"]["n_inner=16"]["mean"] == 2 * 16 * 2 if run.config["precision"] == "bf16" else 2 * 16 * 4
    assert {"steps_to_loss", "seconds_to_loss", "tokens_per_s", "peak_memory_mb", "parameters"} <= rows.keys()
    with (done / "table.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    line = next(row for row in table if (row["metric"], row["arm"]) == ("test_loss", "n_inner=64"))
    assert float(line["difference"]) == rows["test_loss"]["n_inner=64"]["difference"]["mean"]
    for name in ("curves", "parameters", "recall", "positions"):
        assert (done / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_page_is_one_file_that_loads_nothing(done: Path) -> None:
    html = (done / "comparison.html").read_text(encoding="utf-8")
    assert "http" not in html.replace("http-equiv", "") and "<script" not in html
    assert html.count("data:image/png;base64,") == 4
    assert "n_inner=64" in html and "95 % interval" in html


def test_what_is_finished_is_not_repeated_and_what_was_stopped_goes_on(done: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(done, out)
    before = {path: path.read_bytes() for path in out.glob("*/*/metrics.csv")}
    stopped, damaged = out / "n_inner=64" / "seed_1337", out / "n_inner=64" / "seed_1338"
    for step in (4, 6):
        shutil.rmtree(stopped / "checkpoints" / f"step_{step:08d}", ignore_errors=True)
    shutil.rmtree(stopped / "evaluations")
    shutil.rmtree(damaged / "checkpoints")
    worked: list[Path | None] = []

    def work(config: TrainConfig, texts: bool) -> Ended:
        worked.append(config.out)
        return in_this_process(config, texts)

    comparison = compare(base(data), VARY, 2, out, work=work)
    assert worked == [stopped, damaged]
    assert {outcome.status for outcome in comparison.outcomes} == {"finished"}
    assert (damaged.parent / "seed_1338.unusable").is_dir()
    for path, content in before.items():
        if path.parent not in worked:
            assert path.read_bytes() == content
    again = [(o.seed, o.arm, o.figures["test_loss"]) for o in comparison.outcomes]
    first = json.loads((done / "comparison.json").read_text(encoding="utf-8"))["runs"]
    assert again == [(run["seed"], run["arm"], run["figures"]["test_loss"]) for run in first]


def test_texts_are_measured_where_they_are_asked_for_and_nothing_else_again(
    done: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "SAMPLES", 2)
    shutil.copytree(done, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*/*/*.csv")}
    comparison = compare(base(data), VARY, 2, tmp_path / "out", texts=True)
    rows = {row.metric.name: row for row in comparison.rows}
    assert [cell.runs for cell in rows["repetition"].cells] == [2, 2]
    assert {path: path.read_bytes() for path in before} == before
    assert "repetition" not in (done / "table.csv").read_text(encoding="utf-8")


def test_runs_are_measured_by_document_where_they_were_trained_so(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT.replace(". ", ".<|endoftext|>"), encoding="utf-8")
    tokenizer = Tokenizer.train([TEXT], 257)
    prepare([str(tmp_path / "text.txt")], tokenizer, tmp_path / "data", val_fraction=0.2, test_fraction=0.2)
    out = tmp_path / "out"
    comparison = compare(base(tmp_path / "data"), {"mask_documents": [False, True]}, 1, out)
    for outcome in comparison.outcomes:
        apart = outcome.arm == "mask_documents=true"
        (protocol,) = {row["protocol"] for row in Run(Path(outcome.path)).evals() if row["task"] == "perplexity"}
        assert ("do not cross the borders of documents" in protocol) == apart
        (positions,) = Path(outcome.path).glob("evaluations/*/positions.json")
        assert ("within documents" in positions.read_text(encoding="utf-8")) == apart
    assert any("differ in mask documents" in remark for remark in comparison.remarks)


def test_test_split_too_short_for_texts_is_refused_before_anything_runs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "SAMPLES", 100_000)
    with pytest.raises(InputError, match="too few for 100000 beginnings"):
        compare(base(data), VARY, 1, tmp_path / "out", texts=True)
    assert not (tmp_path / "out").exists()


def test_report_of_a_run_shows_what_its_model_attends_to(done: Path, tmp_path: Path) -> None:
    run = Run(done / "n_inner=64" / "seed_1337")
    found = gather([run]).runs[0].attention
    assert found is not None and found.layers == 1 and found.tokens[0] == "start"
    assert len(found.tokens) == len(found.first) <= 16
    assert [sum(row) for row in found.first] == pytest.approx([1.0] * len(found.tokens), abs=1e-5)
    assert "data:image/png;base64," in write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")


def test_run_of_other_options_in_the_way_is_refused(done: Path, data: Path) -> None:
    with pytest.raises(InputError, match="was run with steps 6, this comparison says 7; give another --out"):
        compare(dataclasses.replace(base(data), steps=7), VARY, 2, done)


def test_failed_run_is_named_and_the_rest_goes_on(data: Path, tmp_path: Path) -> None:
    def work(config: TrainConfig, texts: bool) -> Ended:
        return Ended(error="out of memory") if config.seed == 1338 else in_this_process(config, texts)

    comparison = compare(base(data), VARY, 2, tmp_path / "out", work=work)
    assert "n_inner=64, seed 1338: failed: out of memory. Left out." in comparison.remarks
    assert all(cell.runs == 1 for row in comparison.rows for cell in row.cells)
    assert "one seed, so no interval" in comparison.findings[0]


def test_dry_run_prints_commands_that_make_the_same_runs(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--base", "tiny", "--vary", "model.n-head=2,4", "--vary", "model.bias=true,false"]
    options = ["--seeds", "2", "--data", str(data), "--out", str(tmp_path / "out"), "--steps", "9", "--seed", "5"]
    assert main([*words, *options, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and not (tmp_path / "out").exists()
    plan = make_plan(
        TrainConfig(preset="tiny", data=data, steps=9, seed=5),
        {"model.n_head": [2, 4], "model.bias": [True, False]},
        2,
        tmp_path / "out",
    )
    assert [job.command for job in plan.jobs] == lines
    for job in plan.jobs:
        words = flags(job.config)
        assert (
            parse(TrainConfig, words[2:], "gpt2lab train", default=TrainConfig(preset=words[1]).filled_in())
            == job.config
        )


def test_sizes_compare_by_preset_each_with_its_own_recipe(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", str(data), "--out", str(tmp_path / "out"), "--seeds", "1", "--optim.lr", "0.003", "--dry-run"]
    assert main(["compare", "--vary", "preset=nano,tiny", *options]) == 0
    nano, tiny = capsys.readouterr().out.splitlines()
    assert "--preset nano" in nano and "preset=nano" in nano and "--optim.lr" not in nano
    assert "--preset tiny" in tiny and "--optim.lr 0.003" in tiny, "an option that was given holds for every preset"


def test_arms_of_several_changes_stand_beside_the_baseline(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = ["--arm", "baseline:", "--arm", "window: model.mask=window model.window=8", "--vary", "model.n_head=2,1"]
    options = ["--data", str(data), "--out", str(tmp_path / "out"), "--seeds", "1", "--dry-run"]
    assert main(["compare", *arms, *options]) == 0
    found = [line.partition("--out ")[2].split("/")[-2] for line in capsys.readouterr().out.splitlines()]
    assert found == [f"{name},n_head={n}" for name in ("baseline", "window") for n in (2, 1)]
    plan = make_plan(base(data), {}, 1, tmp_path / "out", parse_arms(arms[1:4:2]))
    assert [(model.mask, model.window) for arm in plan.arms if (model := arm.config.model)] == [
        ("causal", None),
        ("window", 8),
    ]


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        (["window"], "is not NAME: OPTION=VALUE"),
        (["window: model.window"], "is not NAME: OPTION=VALUE"),
        (["a:", "a: model.n_head=1"], "given before"),
        (["a:", "b: model.window=8"], "mask causal has none"),
        (["a:", "b: model.n_kv=1"], 'no option "model.n_kv" (did you mean'),
        (["a:", "b: seed=3"], "seed cannot vary"),
        (["a:", "b: model.mask=bidirectional"], "mask bidirectional lets a token read what follows it"),
        (["a:", "b: model.n_head=1", "--vary", "model.n_head=1,2"], "leave it out of one"),
        (["a:"], "nothing to compare"),
    ],
)
def test_arm_that_means_nothing_is_refused(
    arms: list[str], said: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for text in arms if "," not in text and text != "--vary" for word in ("--arm", text)]
    words += arms[arms.index("--vary") :] if "--vary" in arms else []
    assert main(["compare", *words, "--data", str(data), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err


def test_comparison_on_the_command_line_gives_each_run_a_process(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--model.n-embd", "16", "--model.n-ctx", "16", "--batch-tokens", "64", "--steps", "2"]
    where = ["--data", str(data), "--out", str(tmp_path / "out"), "--seeds", "1"]
    assert main(["compare", "--vary", "model.n_head=1,2", *where, *small]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Test loss" in said and "One seed: there is no interval" in said
    assert (tmp_path / "out" / "comparison.html").is_file()


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        (["model.n_heads=2,4"], 'no option "model.n_heads" (did you mean "model.n_head"?)'),
        (["model.n_head=2,3"], "model.n_head=3: n_embd 64 is not divisible by n_head 3"),
        (["model.n_head=2,two"], "model.n_head is 'two'; it must be an integer"),
        (["model.n_head"], "is not OPTION=VALUE,VALUE"),
        (["model.n_head=2,2"], "has a value twice"),
        (["model.n_head=2", "model.n-head=4"], "is given twice"),
        (["model.n_head=2"], "nothing to compare"),
        (["seed=1,2"], "seed cannot vary: say how many seeds by --seeds"),
        (["preset=nano,tine"], 'unknown preset "tine" (did you mean "tiny"?)'),
    ],
)
def test_variation_that_means_nothing_is_refused(
    vary: list[str], said: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for text in vary for word in ("--vary", text)]
    assert main(["compare", *words, "--data", str(data), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_data_without_a_test_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    prepare([str(tmp_path / "text.txt")], Tokenizer.train([TEXT], 257), tmp_path / "data", test_fraction=0.0)
    with pytest.raises(InputError, match="has no test split to compare on"):
        make_plan(base(tmp_path / "data"), VARY, 3, tmp_path / "out")


def outcome(arm: str, seed: int, loss: float, tokenizer: str = "t", data: str = "d") -> Outcome:
    figures = {"test_loss": loss, "val_loss": loss, "bits_per_byte": loss / 3}
    curve = (Validated(10, 100, 1.0, 5.0), Validated(20, 200, 3.0, loss))
    return Outcome(arm, seed, f"{arm}/{seed}", "finished", figures, curve, marks=(tokenizer, data))


def test_other_tokenizer_leaves_bits_per_byte() -> None:
    runs = [outcome(arm, seed, 3.0 + seed, tokenizer=arm) for arm in "ab" for seed in (1, 2)]
    comparison = compare_outcomes(runs)
    assert [row.metric.name for row in comparison.rows] == ["bits_per_byte"]
    assert any("different tokenizers" in remark for remark in comparison.remarks)
    assert "Test bits per byte of b" in comparison.findings[0]
    assert comparison_figures.draw(comparison) == {}
    assert "curves" in comparison_figures.draw(compare_outcomes([outcome(arm, 1, 3.0) for arm in "ab"]))


def test_what_was_not_measured_or_has_no_pair_is_said() -> None:
    unmeasured = dataclasses.replace(outcome("b", 1, 3.0), figures={"seconds": 2.0})
    of_b, of_c = compare_outcomes([outcome("a", 1, 3.0), unmeasured, outcome("c", 2, 3.0)]).findings
    assert of_b == "Test loss of b: it was not measured."
    assert of_c == "Test loss of c: no seed of it has one of a beside it."


def test_difference_beyond_noise_is_called_better_or_worse() -> None:
    noise = (0.001, -0.001, 0.0)
    runs = [outcome(arm, seed, level + noise[seed]) for arm, level in (("a", 3.0), ("b", 2.5)) for seed in (0, 1)]
    runs += [outcome("c", seed, 3.5 - noise[seed]) for seed in (0, 1)]
    of_b, of_c = compare_outcomes(runs).findings
    assert of_b.endswith("over 2 seeds: lower, which is better.")
    assert of_c.endswith("over 2 seeds: higher, which is worse.")


def test_other_test_data_is_said() -> None:
    comparison = compare_outcomes([outcome(arm, 1, 3.0, data=arm) for arm in "ab"])
    assert any("measured on different data" in remark for remark in comparison.remarks)
    assert "test_loss" not in {row.metric.name for row in comparison.rows}


def test_steps_to_a_loss_lie_on_the_line_between_two_validations() -> None:
    curve = (Validated(10, 100, 1.0, 5.0), Validated(20, 200, 3.0, 4.0), Validated(30, 300, 5.0, 3.0))
    run = dataclasses.replace(outcome("a", 1, 3.0), curve=curve)
    assert to_loss(run, 3.5) == (25.0, 4.0)
    assert to_loss(run, 6.0) == (10, 1.0)
    assert to_loss(run, 2.0) is None


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics.csv", "broken\n", "damaged"),
        ("checkpoints/step_00000006/state.json", "{", "damaged"),
        ("evaluations/step_00000006/recall.json", "[]", "damaged"),
        ("evaluations/step_00000006/recall.json", '{"distances": [4], "second": [1.0]}', "damaged"),
        ("config.json", None, "not run yet"),
    ],
)
def test_damaged_run_is_named_with_what_is_wrong(
    done: Path, tmp_path: Path, name: str, content: str | None, said: str
) -> None:
    path = tmp_path / "run"
    shutil.copytree(done / "n_inner=16" / "seed_1337", path)
    (path / name).unlink() if content is None else (path / name).write_text(content, encoding="utf-8")
    assert outcome_of(Run(path), "a", 1).status.startswith(said)


def test_values_are_read_as_their_types() -> None:
    given = ["a=1,2.5", "b=true,none", "c=rope,learned", "d=1e-3"]
    expected = {"a": [1, 2.5], "b": [True, None], "c": ["rope", "learned"], "d": [1e-3]}
    assert parse_variations(given) == expected
