"""The report as a PDF, and what both forms say beyond the run's own figures."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pytest
from pypdf import PdfReader
from run_directories import CONFIG, ENVIRONMENT, PROTOCOL, log_steps, make_run

from gpt2lab.errors import InputError
from gpt2lab.evaluation.perplexity import PositionLosses
from gpt2lab.files import read_json, write_json
from gpt2lab.report.content import gather
from gpt2lab.report.facts import SHAKESPEARE_BY_CHARACTER, repeated
from gpt2lab.report.html import report_on, write_report
from gpt2lab.report.plots import save_positions
from gpt2lab.runs import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "stories-tiny")


def text_of(pdf: Path) -> tuple[str, int]:
    """The words of a PDF as a reader finds them by searching, and its pages."""
    pages = PdfReader(pdf).pages
    said = " ".join(page.extract_text() for page in pages)
    return re.sub(r"\s+", " ", said.replace("\u00a0", " ")), len(pages)


def test_numbers_of_the_run_can_be_searched_in_at_most_five_pages(run: Run, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("A longer context\nwould help.\n\n#strong[not markup] $x$ \\ <b>", encoding="utf-8")
    text, pages = text_of(write_report([run], tmp_path / "report.pdf", notes))
    for figure in ("2.490", "0.3318", "10.0 %", "700 MiB", "40,155", "0.9123", "93.0 %", "1.23 M", "2.13.0"):
        assert figure in text, figure
    for title in ("Task and data", "Model", "Training", "Results", "What it writes", "Strengths", "References"):
        assert title in text, title
    assert "A longer context would help." in text
    assert "#strong[not markup] $x$ \\ <b>" in text
    assert re.search(r"Figure 1: Over 1\.23 M tokens", text) and "Table 1:" in text
    assert pages <= 6


@pytest.mark.parametrize("damage", ["metrics.csv", "evals.csv", "samples.jsonl", "config.json", "checkpoints"])
def test_missing_part_does_not_stop_the_pdf(run: Run, tmp_path: Path, damage: str) -> None:
    path = run.path / damage
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text, _ = text_of(write_report([run], tmp_path / "report.pdf"))
    assert "How to reproduce" in text


def test_figures_of_texts_stand_beside_those_of_the_held_out_text(run: Run, tmp_path: Path) -> None:
    rows = [
        {"name": "held-out text", "strategy": None, "figures": {"perplexity": 3.25, "self_bleu": 41.5}},
        {"name": "greedy", "strategy": {"greedy": True}, "figures": {"perplexity": 1.125}},
    ]
    path = run.evaluations(300) / "text.json"
    write_json(path, {"step": 300, "split": "test", "rows": rows, "examples": [], "protocol": "100 beginnings."})
    text, _ = text_of(write_report([run], tmp_path / "report.pdf"))
    assert re.search(r"held-out text *3\.25 *41\.5 greedy *1\.12", text) and "100 beginnings." in text
    html = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "41.5" in html and "self bleu" in html
    write_json(path, {"rows": [{}]})
    assert any("text.json is damaged" in remark for remark in gather([run]).runs[0].remarks)


def test_pictures_and_completions_stand_where_they_were_measured(run: Run, tmp_path: Path) -> None:
    assert "What context brings" not in text_of(write_report([run], tmp_path / "report.pdf"))[0]
    figures = {"perplexity": 3.25, "self_bleu": 41.5, "relevance": 0.5}
    rows = [
        {"name": "held-out text", "strategy": None, "figures": figures},
        {"name": "nucleus 0.9", "strategy": {"top_p": 0.9}, "figures": figures | {"self_bleu": 60.0, "relevance": 0.2}},
    ]
    endings = {"nucleus 0.9": " sank at once.", "top-k 5": "not shown"}
    examples = [{"prompt": "The boat <b>", "held_out": " sailed home.", "completions": endings}]
    kept = {"step": 300, "split": "test", "rows": rows, "examples": examples, "protocol": "100 beginnings."}
    write_json(run.evaluations(300) / "text.json", kept)
    curve = PositionLosses((3.0, 2.5, 2.0, math.nan), (10, 10, 10, 0), by_document=False)
    save_positions(run, 300, "test", curve)
    text, _ = text_of(write_report([run], tmp_path / "report.pdf"))
    html = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    for found in (text, html.replace("\u00a0", " ")):
        assert "What context brings, on the test set after step 300. Mean loss by the tokens before a token" in found
        assert "sailed home." in found and "sank at once." in found and "not shown" not in found
        assert "texts are more alike than held-out ones: self-BLEU 60.0 against 41.5" in found
        assert "relevance 0.200 against 0.500" in found
        assert "loss 3.000 with 1 token before it, 2.000 with some 3" in found
        assert "Diversity of the texts" in found
    assert "The boat <b>" in text and "The boat &lt;b&gt;" in html


def test_several_runs_are_compared_by_the_option_that_differs(tmp_path: Path) -> None:
    runs = []
    for kind, lr in (("a", 3e-3), ("b", 1e-3)):
        for seed in (1, 2):
            run = make_run(tmp_path / f"{kind}{seed}")
            optim = {**CONFIG["optim"], "lr": lr}
            write_json(run.path / "config.json", {**CONFIG, "seed": seed, "optim": optim})
            runs.append(run)
    text, _ = text_of(write_report(runs, tmp_path / "report.pdf"))
    assert "4 runs compared" in text and "lr=0.003" in text and "lr=0.001" in text
    assert "the same" in text


def test_own_pdf_is_replaced_and_no_other(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "report.pdf"
    first = write_report([run], out).read_bytes()
    assert write_report([run], out).read_bytes() == first
    out.write_bytes(b"%PDF-1.7 another")
    with pytest.raises(InputError, match="exists and is not a report"):
        write_report([run], out)


def test_notes_that_cannot_be_read_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"notes\.txt: cannot be read"):
        write_report([run], tmp_path / "report.html", tmp_path / "notes.txt")
    (tmp_path / "notes.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="not UTF-8 at byte 3"):
        write_report([run], tmp_path / "report.html", tmp_path / "notes.txt")


def test_damaged_comparison_is_refused(tmp_path: Path) -> None:
    for content in ({"runs": [{}]}, [], {"runs": [{"path": "a", "arm": "a", "seed": "x", "status": "finished"}]}):
        write_json(tmp_path / "comparison.json", content)
        with pytest.raises(InputError, match=r"comparison\.json: damaged"):
            report_on([tmp_path], tmp_path / "report.html")


def test_comparison_keeps_its_names_and_pairs_and_goes_on_without_a_run(tmp_path: Path) -> None:
    named = []
    for arm in ("small", "large"):
        for seed in (1, 2):
            run = make_run(tmp_path / arm / str(seed))
            model = {**CONFIG["model"], **({f"option_{n}": arm for n in range(8)})}  # too many to be named by them
            write_json(run.path / "config.json", {**CONFIG, "seed": seed, "model": model})
            path = run.path.relative_to(tmp_path).as_posix()
            named.append({"path": path, "arm": f"the {arm} one", "seed": seed, "status": "finished"})
    named.append({"path": "large/3", "arm": "the large one", "seed": 3, "status": "not run yet"})
    named.append({"path": "large/4", "arm": "the large one", "seed": 4, "status": "failed: out of memory"})
    (tmp_path / named[1]["path"] / "metrics.csv").write_text("broken\n", encoding="utf-8")
    write_json(tmp_path / "comparison.json", {"runs": named})
    text, _ = text_of(report_on([tmp_path], tmp_path / "report.pdf"))
    html = report_on([tmp_path], tmp_path / "report.html").read_text(encoding="utf-8")
    for found in (text, html):
        assert "the small one" in found and "the large one" in found
        assert "the large one, seed 3: not run yet. Left out." in found
        assert "the large one, seed 4: failed: out of memory. Left out." in found
        assert "the small one, seed 2: damaged" in found


def losses(run: Run, values: list[tuple[int, float, float]]) -> None:
    """Write rows of (step, training loss, validation loss)."""
    for step, train, val in values:
        row = dict.fromkeys(("lr", "grad_norm", "tokens_per_s", "mfu", "peak_memory_mb", "seconds", "epoch"), 1.0)
        run.add_metrics({**row, "step": step, "tokens": step * 100, "train_loss": train, "val_loss": val})


@pytest.mark.parametrize(
    ("values", "weakness"),
    [
        ([(10, 5.0, 5.0), (50, 3.0, 3.0), (80, 2.9, 2.95), (100, 2.9, 2.95)], None),
        ([(10, 5.0, 5.0), (50, 2.0, 3.0), (80, 1.0, 3.5), (100, 0.5, 4.0)], "lowest, 3.000, at step 50 and rose"),
        ([(10, 5.0, 5.0), (80, 1.0, 3.0), (100, 0.9, 3.0)], "fits its training text better"),
        ([(10, 5.0, 5.0), (80, 4.0, 4.0), (100, 3.6, 3.6)], "validation loss still fell by 10.0\u00a0%"),
    ],
)
def test_weaknesses_follow_from_the_losses(
    tmp_path: Path, values: list[tuple[int, float, float]], weakness: str | None
) -> None:
    run = Run.create(tmp_path / "run", CONFIG, ENVIRONMENT)
    losses(run, values)
    found = gather([run]).runs[0].weaknesses
    assert (not found) if weakness is None else any(weakness in text for text in found)


def test_text_that_goes_in_circles_is_a_weakness(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", CONFIG, ENVIRONMENT)
    log_steps(run, 300)
    run.add_sample(300, "greedy", "", "the cat sat " * 20)
    assert repeated("a b c a b c a") == pytest.approx(1 - 3 / 5)
    assert any("goes round in circles" in text for text in gather([run]).runs[0].weaknesses)


def test_published_figures_stand_only_beside_the_same_text(run: Run) -> None:
    assert gather([run]).runs[0].published == ()
    state = run.checkpoints / "step_00000300" / "state.json"
    fingerprints = {"data": SHAKESPEARE_BY_CHARACTER, "tokenizer": "t"}
    write_json(state, {**read_json(state), "fingerprints": fingerprints})
    (content,) = gather([run]).runs
    assert [fact.value for fact in content.published] == ["1.880", "1.470"]
    assert [loss for _, loss in content.curves.published] == [1.88, 1.4697]


def test_hellaswag_of_gpt2_stands_beside_the_same_style_only(run: Run) -> None:
    run.add_eval(300, "hellaswag", "val", "Worded as by lm-evaluation-harness.", "acc_norm", 0.26)
    assert gather([run]).runs[0].published == ()
    run.add_eval(300, "hellaswag", "val", "Completion style.", "acc_norm", 0.26)
    assert [fact.value for fact in gather([run]).runs[0].published] == ["0.2955"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, ""),
        ({"position": "rope"}, "Positions are rotary"),
        ({"n_kv_head": 1}, "1 head of keys and values serves the 4 heads"),
        ({"mask": "window", "window": 64}, "64 in all"),
        ({"norm": "post"}, "Layer norm follows each sum"),
    ],
)
def test_architecture_that_is_not_gpt2s_is_said(tmp_path: Path, options: dict, said: str) -> None:
    run = Run.create(tmp_path / "run", {**CONFIG, "model": {**CONFIG["model"], **options}}, ENVIRONMENT)
    found = " ".join(gather([run]).runs[0].deviations)
    assert said in found and bool(said) == bool(found)


def test_options_of_other_architectures_are_shown_only_where_they_differ(tmp_path: Path) -> None:
    plain = {"position": "learned", "rope_base": 10000.0, "n_kv_head": None, "mask": "causal", "window": None}

    def labels(name: str, options: dict) -> set[str]:
        model = {**CONFIG["model"], **plain, **options}
        run = Run.create(tmp_path / name, {**CONFIG, "model": model}, ENVIRONMENT)
        return {fact.name for fact in gather([run]).runs[0].model}

    usual = labels("plain", {})
    assert "Layers" in usual and not usual & plain.keys()
    assert labels("rope", {"position": "rope"}) - usual == {"Positions", "Base of the rotary angles"}
    assert labels("window", {"mask": "window", "window": 8}) - usual == {"Mask", "Window of the mask, in tokens"}


def test_hellaswag_and_perplexity_per_word_are_called_by_their_names(run: Run, tmp_path: Path) -> None:
    run.add_eval(300, "perplexity", "test", PROTOCOL, "word_perplexity", 31.25)
    for metric, value in (("acc", 0.28), ("acc_norm", 0.295)):
        run.add_eval(300, "hellaswag", "val", "Completion style: 10 items.", metric, value)
    text, _ = text_of(write_report([run], tmp_path / "report.pdf"))
    assert "Perplexity, per word 31.25" in text and "HellaSwag, after step 300" in text
    assert "Accuracy normalised by length, share of the items 0.295" in text
