"""Comparisons of real runs of a few steps."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_runs import TEXT, base_config, prepare_text

from gpt2lab.cli.main import main
from gpt2lab.compare import run as run_module
from gpt2lab.compare.plan import make_plan
from gpt2lab.compare.results import outcome_of
from gpt2lab.compare.run import Ended, compare, in_this_process
from gpt2lab.errors import InputError
from gpt2lab.evaluation.run_data import attention_map, read_run
from gpt2lab.report.write import write_report
from gpt2lab.runs import Run
from gpt2lab.training import loop, monitoring
from gpt2lab.training.config import TrainConfig

VARY = {"model.n_inner": [16, 64]}


@pytest.fixture(scope="module", autouse=True)
def without_slow_extras() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "peak_flops", lambda device, precision: (1e12, "not measured"))
        patch.setattr(monitoring, "draw", lambda run: run.path)
        yield


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of two variants with two seeds. Read it, do not write to it."""
    out = tmp_path_factory.mktemp("done") / "out"
    compare(base_config(data), VARY, 2, out)
    return out


def test_every_combination_and_seed_is_an_ordinary_run(done: Path) -> None:
    runs = sorted(path.parent for path in done.glob("*/*/config.json"))
    assert [path.relative_to(done).as_posix() for path in runs] == [
        f"n_inner={n}/seed_{seed}" for n in (16, 64) for seed in (1337, 1338)
    ]
    assert [Run(path).config["model"]["n_inner"] for path in runs] == [16, 16, 64, 64]
    assert all(Run(path).metrics()[-1]["step"] == 6 for path in runs)


def test_files_agree_with_the_runs(done: Path) -> None:
    found = json.loads((done / "comparison.json").read_text(encoding="utf-8"))
    assert (found["reference"], found["seeds"]) == ("n_inner=16", [1337, 1338])
    assert {run["status"] for run in found["runs"]} == {"finished"}
    assert found["runs"][0]["curve"][0].keys() == {"step", "tokens", "seconds", "loss"}
    rows = {row["metric"]: row["arms"] for row in found["metrics"]}
    runs = [Run(done / "n_inner=64" / f"seed_{seed}") for seed in (1337, 1338)]
    losses = [
        float(next(row["value"] for row in run.evals() if (row["split"], row["metric"]) == ("test", "loss")))
        for run in runs
    ]
    assert found["runs"][1]["figures"]["test_loss"] == losses[0]
    assert rows["test_loss"]["n_inner=64"]["mean"] == pytest.approx(sum(losses) / 2)
    bytes_per_value = 2 if runs[0].config["precision"] == "bf16" else 4
    assert rows["cache_bytes"]["n_inner=16"]["mean"] == 2 * 16 * bytes_per_value
    assert {"steps_to_loss", "seconds_to_loss", "tokens_per_s", "peak_memory_mb", "parameters"} <= rows.keys()
    with (done / "table.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    line = next(row for row in table if (row["metric"], row["arm"]) == ("test_loss", "n_inner=64"))
    assert float(line["difference"]) == rows["test_loss"]["n_inner=64"]["difference"]["mean"]
    assert "| Test loss, nats per token |" in (done / "table.md").read_text(encoding="utf-8")
    for name in ("curves", "parameters", "recall", "positions"):
        assert (done / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    html = (done / "comparison.html").read_text(encoding="utf-8")
    assert "http" not in html.replace("http-equiv", "") and "<script" not in html
    assert html.count("data:image/png;base64,") == 4
    assert "n_inner=64" in html and "95 % interval" in html


def test_finished_runs_are_not_repeated_and_interrupted_ones_resume(
    done: Path, base: TrainConfig, tmp_path: Path
) -> None:
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

    comparison = compare(base, VARY, 2, out, work=work)
    assert worked == [stopped, damaged]
    assert {outcome.status for outcome in comparison.outcomes} == {"finished"}
    assert (damaged.parent / "seed_1338.unusable").is_dir()
    for path, content in before.items():
        if path.parent not in worked:
            assert path.read_bytes() == content
    again = [(o.seed, o.arm, o.figures["test_loss"]) for o in comparison.outcomes]
    first = json.loads((done / "comparison.json").read_text(encoding="utf-8"))["runs"]
    assert again == [(run["seed"], run["arm"], run["figures"]["test_loss"]) for run in first]


def test_texts_are_measured_if_asked_for_and_nothing_else_again(
    done: Path, base: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "SAMPLES", 2)
    shutil.copytree(done, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*/*/*.csv")}
    comparison = compare(base, VARY, 2, tmp_path / "out", texts=True)
    rows = {row.metric.name: row for row in comparison.rows}
    assert [cell.runs for cell in rows["repetition"].cells] == [2, 2]
    assert {path: path.read_bytes() for path in before} == before
    assert "repetition" not in (done / "table.csv").read_text(encoding="utf-8")


def test_runs_are_measured_by_document_if_they_were_trained_so(tmp_path: Path) -> None:
    data = prepare_text(tmp_path, TEXT.replace(". ", ".<|endoftext|>"))
    comparison = compare(base_config(data), {"mask_documents": [False, True]}, 1, tmp_path / "out")
    for outcome in comparison.outcomes:
        by_document = outcome.arm == "mask_documents=true"
        (protocol,) = {row["protocol"] for row in Run(Path(outcome.path)).evals() if row["task"] == "perplexity"}
        (positions,) = Path(outcome.path).glob("evaluations/*/positions.json")
        for text in (protocol, positions.read_text(encoding="utf-8")):
            assert ("across" in text) != by_document
    assert any("differ in mask documents" in remark for remark in comparison.remarks)
    assert any(remark.startswith("One seed") for remark in comparison.remarks)


def test_failed_run_is_named_and_the_others_are_compared(base: TrainConfig, tmp_path: Path) -> None:
    def work(config: TrainConfig, texts: bool) -> Ended:
        return Ended(error="out of memory") if config.seed == 1338 else in_this_process(config, texts)

    comparison = compare(base, VARY, 2, tmp_path / "out", work=work)
    assert "n_inner=64, seed 1338: failed: out of memory. Left out." in comparison.remarks
    assert all(cell.runs == 1 for row in comparison.rows for cell in row.cells)
    assert "one seed, so there is no interval" in comparison.findings[0]


def test_comparison_on_the_command_line_gives_each_run_a_process(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--model.n-embd", "16", "--model.n-ctx", "16", "--batch-tokens", "64", "--steps", "2"]
    where = ["--data", str(data), "--out", str(tmp_path / "out"), "--seeds", "1"]
    assert main(["compare", "--vary", "model.n_head=1,2", *where, *small]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Test loss" in printed and "One seed: there is no interval" in printed
    assert (tmp_path / "out" / "comparison.html").is_file()


def test_report_shows_the_attention_of_the_model(done: Path, tmp_path: Path) -> None:
    run = Run(done / "n_inner=64" / "seed_1337")
    found = attention_map(read_run(run))
    assert found is not None and list(found.layers) == ["Layer 1"] and found.tokens[0] == "start"
    weights = found.layers["Layer 1"]
    assert len(found.tokens) == len(weights) <= 16
    assert [sum(row) for row in weights] == pytest.approx([1.0] * len(weights), abs=1e-5)
    html = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in html and "each row is a query" in html


@pytest.mark.parametrize(
    ("name", "content", "status"),
    [
        ("metrics.csv", "broken\n", "damaged"),
        ("checkpoints/step_00000006/state.json", "{", "damaged"),
        ("evaluations/step_00000006/recall.json", "[]", "damaged"),
        ("evaluations/step_00000006/recall.json", '{"distances": [4], "second": [1.0]}', "damaged"),
        ("config.json", None, "not run yet"),
    ],
)
def test_damaged_run_says_what_is_wrong(
    done: Path, tmp_path: Path, name: str, content: str | None, status: str
) -> None:
    path = tmp_path / "run"
    shutil.copytree(done / "n_inner=16" / "seed_1337", path)
    (path / name).unlink() if content is None else (path / name).write_text(content, encoding="utf-8")
    assert outcome_of(Run(path), "a", 1).status.startswith(status)


def test_refusals(done: Path, base: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="was run with steps 6, this comparison has 7; give another --out"):
        compare(dataclasses.replace(base, steps=7), VARY, 2, done)
    monkeypatch.setattr(run_module, "SAMPLES", 100_000)
    with pytest.raises(InputError, match="too few for 100000"):
        compare(base, VARY, 1, tmp_path / "out", texts=True)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="has no test split to compare on"):
        make_plan(base_config(prepare_text(tmp_path, test_fraction=0.0)), VARY, 3, tmp_path / "out")
