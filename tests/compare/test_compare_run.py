"""Comparisons of real runs of a few steps."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import gpt2lab
from gpt2lab.cli.main import main
from gpt2lab.compare import run as run_module
from gpt2lab.compare.results import outcome_of
from gpt2lab.compare.run import ComparisonPlan, compare, in_this_process, make_plan
from gpt2lab.errors import InputError
from gpt2lab.evaluation.measure import RunData, attention_map
from gpt2lab.files import with_checksum
from gpt2lab.report.write import write_report
from gpt2lab.runs import Run
from gpt2lab.training import loop
from gpt2lab.training.config import TrainConfig, flags, saved_config

VARY = {"model.n_inner": [16, 64]}


@pytest.fixture(scope="module", autouse=True)
def without_slow_extras() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "peak_flops", lambda device, precision: (1e12, "not measured"))
        patch.setattr(loop, "draw_curves", lambda run: None)
        yield


@pytest.fixture(scope="module")
def done(base: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of two variants with two seeds. Read it, do not write to it."""
    out = tmp_path_factory.mktemp("done") / "out"
    compare(make_plan(base, VARY, 2, out))
    return out


@pytest.fixture
def again(done: Path, base: TrainConfig, tmp_path: Path) -> ComparisonPlan:
    """The plan of a copy of the finished comparison."""
    shutil.copytree(done, tmp_path / "again")
    return make_plan(base, VARY, 2, tmp_path / "again")


def contents(folder: Path, pattern: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.glob(pattern)}


def test_every_combination_and_seed_is_an_ordinary_run_and_the_files_agree_with_them(done: Path) -> None:
    found = json.loads((done / "comparison.json").read_text(encoding="utf-8"))
    assert (found["reference"], found["seeds"]) == ("n_inner=16", [1337, 1338])
    assert {run["status"] for run in found["runs"]} == {"finished"}
    assert found["runs"][0]["curve"][0].keys() == {"step", "tokens", "seconds", "loss"}
    paths = sorted(path.parent.relative_to(done).as_posix() for path in done.glob("*/*/config.json"))
    assert paths == [f"n_inner={n}/seed_{seed}" for n in (16, 64) for seed in (1337, 1338)]
    assert paths == sorted(run["path"] for run in found["runs"])
    assert [Run(done / path).config["model"]["n_inner"] for path in paths] == [16, 16, 64, 64]
    assert all(Run(done / path).metrics()[-1]["step"] == 6 for path in paths)
    config, row = saved_config(Run(done / paths[0])), Run(done / paths[0]).metrics()[-1]
    share_of_peak = config.model.flops_per_token(16) * (row["tokens_per_s"] or 0.0) / 1e12
    assert row["mfu"] == pytest.approx(share_of_peak, abs=1e-4)
    rows = {row["metric"]: row["arms"] for row in found["metrics"]}
    runs = [Run(done / "n_inner=64" / f"seed_{seed}") for seed in (1337, 1338)]
    rows_of_runs = [row for run in runs for row in run.evals()]
    losses = [float(row["value"]) for row in rows_of_runs if (row["split"], row["metric"]) == ("test", "loss")]
    assert found["runs"][1]["figures"]["test_loss"] == losses[0]
    assert rows["test_loss"]["n_inner=64"]["mean"] == pytest.approx(sum(losses) / 2)
    bytes_per_value = 2 if runs[0].config["precision"] == "bf16" else 4
    assert rows["cache_bytes"]["n_inner=16"]["mean"] == 2 * 16 * bytes_per_value
    assert {"peak_memory_mb", "parameters"} <= rows.keys()
    assert "steps_to_loss" not in rows and any("left out for 4 runs with fewer" in text for text in found["remarks"])
    with (done / "table.csv").open(encoding="utf-8", newline="") as file:
        line = next(row for row in csv.DictReader(file) if (row["metric"], row["arm"]) == ("test_loss", "n_inner=64"))
    difference = rows["test_loss"]["n_inner=64"]["difference"]
    assert float(line["difference"]) == difference["mean"] and line["verdict"] == difference["verdict"]
    assert "| Test loss, nats per token |" in (done / "table.md").read_text(encoding="utf-8")
    assert {path.stem for path in done.glob("*.png")} == {"curves", "parameters", "recall", "positions"}
    html = (done / "comparison.html").read_text(encoding="utf-8")
    assert "http" not in html.replace("http-equiv", "") and "<script" not in html
    assert html.count("data:image/png;base64,") == 4
    assert "n_inner=64" in html and "95 % interval" in html


def test_finished_runs_are_not_repeated_and_interrupted_ones_resume(done: Path, again: ComparisonPlan) -> None:
    before = contents(again.out, "*/*/metrics.csv")
    stopped, damaged = again.out / "n_inner=64" / "seed_1337", again.out / "n_inner=64" / "seed_1338"
    for step in (4, 6):
        shutil.rmtree(stopped / "checkpoints" / f"step_{step:08d}", ignore_errors=True)
    shutil.rmtree(stopped / "evaluations")
    shutil.rmtree(damaged / "checkpoints")
    worked: list[Path | None] = []

    def work(config: TrainConfig, texts: bool) -> int | None:
        worked.append(config.out)
        return in_this_process(config, texts)

    comparison = compare(again, work=work)
    assert worked == [stopped, damaged]
    assert {outcome.status for outcome in comparison.outcomes} == {"finished"}
    assert (damaged.parent / "seed_1338.unusable").is_dir()
    for path, content in before.items():
        assert path.parent in worked or path.read_bytes() == content
    found = [(o.seed, o.arm, o.figures["test_loss"]) for o in comparison.outcomes]
    first = json.loads((done / "comparison.json").read_text(encoding="utf-8"))["runs"]
    assert found == [(run["seed"], run["arm"], run["figures"]["test_loss"]) for run in first]


def test_intervals_that_follow_from_the_length_do_not_change_when_it_runs_again(
    base: TrainConfig, tmp_path: Path
) -> None:
    plan = make_plan(replace(base, log_every=None, eval_every=None, checkpoint_every=None), VARY, 1, tmp_path / "out")
    before = compare(plan)
    assert [len(outcome.curve) for outcome in before.outcomes] == [6, 6]
    assert compare(plan).outcomes == before.outcomes


def test_texts_are_measured_if_asked_for_and_nothing_else_again(
    again: ComparisonPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "SAMPLES", 2)
    assert "repetition" not in (again.out / "table.csv").read_text(encoding="utf-8")
    before = contents(again.out, "*/*/*.csv")
    rows = {row.metric.name: row for row in compare(again, texts=True).rows}
    assert [cell.runs for cell in rows["repetition"].cells] == [2, 2]
    assert contents(again.out, "*/*/*.csv") == before


def test_runs_are_measured_by_document_if_they_were_trained_so(
    base: TrainConfig, prepare_text: Callable[..., Path], tmp_path: Path
) -> None:
    documents = replace(base, data=prepare_text(".<|endoftext|>"))
    comparison = compare(make_plan(documents, {"mask_documents": [False, True]}, 1, tmp_path / "out"))
    for outcome in comparison.outcomes:
        by_document = outcome.arm == "mask_documents=true"
        (protocol,) = {row["protocol"] for row in Run(Path(outcome.path)).evals() if row["task"] == "perplexity"}
        (positions,) = Path(outcome.path).glob("evaluations/*/positions.json")
        for text in (protocol, positions.read_text(encoding="utf-8")):
            assert ("across" in text) != by_document
    assert any("differ in mask documents" in remark for remark in comparison.remarks)
    assert any(remark.startswith("One seed") for remark in comparison.remarks)


def test_failed_run_is_named_and_the_others_are_compared(again: ComparisonPlan) -> None:
    for path in again.out.glob("*/seed_1338"):
        shutil.rmtree(path)

    def work(config: TrainConfig, texts: bool) -> None:
        raise InputError("out of memory")

    comparison = compare(again, work=work)
    assert "n_inner=64, seed 1338: failed: out of memory. Left out." in comparison.remarks
    assert all(cell.runs == 1 for row in comparison.rows for cell in row.cells)
    assert "one seed, so there is no interval" in comparison.findings[0]


def test_command_line_gives_each_run_a_process_and_prints_the_table(
    again: ComparisonPlan, base: TrainConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(again.out / "n_inner=64" / "seed_1338")
    words = ["compare", "--vary", "model.n_inner=16,64", "--seeds", "2", "--out", str(again.out), *flags(base)[2:]]
    assert main(words) == 0
    printed = capfd.readouterr().out
    assert "finished: 6 steps done" in printed, "the process of the run logs to the console"
    assert "Test loss" in printed and "95 % interval" in printed and "comparison.html" in printed


def test_report_shows_the_attention_of_the_model(done: Path, tmp_path: Path) -> None:
    run = Run(done / "n_inner=64" / "seed_1337")
    found = attention_map(RunData(run))
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
        ("evaluations/step_00000006/recall.json", json.dumps(with_checksum({"distances": [4]})), "damaged"),
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


def test_refusals(
    done: Path,
    base: TrainConfig,
    prepare_text: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(InputError, match="was run with steps 6, this comparison has 7; give another --out"):
        compare(make_plan(replace(base, steps=7), VARY, 2, done))
    monkeypatch.setattr(run_module, "SAMPLES", 100_000)
    with pytest.raises(InputError, match="too few for 100000"):
        compare(make_plan(base, VARY, 1, tmp_path / "out"), texts=True)
    assert not (tmp_path / "out").exists()
    untested = replace(base, data=prepare_text(test_fraction=0.0))
    with pytest.raises(InputError, match="has no test split to compare on"):
        make_plan(untested, VARY, 3, tmp_path / "out")


def rows_of(path: Path) -> int:
    return len(Run(path).metrics()) if (path / "config.json").is_file() else 0


def wait_until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.1)


@pytest.mark.fault
@pytest.mark.skipif(os.name == "nt", reason="kills by a signal")
def test_killed_comparison_repeats_no_finished_run(data: Path, tmp_path: Path) -> None:
    script = "import sys; from gpt2lab.cli.main import main; sys.exit(main())"
    small = ["--model.n-embd", "16", "--model.n-ctx", "16", "--batch-tokens", "64", "--log-every", "5"]
    length = ["--steps", "600", "--eval-every", "300", "--seeds", "1"]
    where = ["--data", str(data), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-c", script, "compare", "--vary", "model.n_head=1,2", *where, *small, *length]
    environment = {**os.environ, "PYTHONPATH": str(Path(gpt2lab.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    first, second = (tmp_path / "out" / f"n_head={n}" / "seed_1337" for n in (1, 2))
    killed = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    wait_until(lambda: rows_of(second) > 10)
    finished = contents(first, "*.csv")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    wait_until(lambda: any((second / "checkpoints").glob("step_*/manifest.json")))
    before = rows_of(second)
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert contents(first, "*.csv") == finished
    assert [row["step"] for row in Run(second).metrics()] == [float(n) for n in range(5, 601, 5)]
    assert "resumed" in (second / "train.log").read_text(encoding="utf-8") and before < rows_of(second)
    found = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert [run["status"] for run in found["runs"]] == ["finished", "finished"]
