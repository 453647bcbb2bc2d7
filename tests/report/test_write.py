"""Reports as HTML and PDF: well-formed, self-contained, and with what the run directory holds."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest
from pypdf import PdfReader
from run_directories import CONFIG, ENVIRONMENT, PROTOCOL, log_steps, make_run, save_curve, save_texts, update_state

from gpt2lab.cli.main import main
from gpt2lab.errors import InputError
from gpt2lab.files import with_checksum, write_checked_json
from gpt2lab.report.write import report_on, write_report
from gpt2lab.runs import METRICS_COLUMNS, Run

VOID = re.compile(r"<(meta|br|hr|img|mspace)\b([^>]*)(?<!/)>")


class Page:
    """A page that was written, read as XML: an element that is not closed or an attribute given twice is an error."""

    def __init__(self, html: str) -> None:
        closed = VOID.sub(r"<\1\2/>", html.replace('<details class="more" open>', '<details class="more">'))
        self.root = ElementTree.fromstring(re.sub(r"<!DOCTYPE html>|xlink:|xmlns:xlink=\S+", "", closed))
        for element in self.root.iter():
            element.tag = element.tag.rpartition("}")[2]

    @property
    def tags(self) -> list[str]:
        return [element.tag for element in self.root.iter()]

    def within(self, tag: str) -> list[str]:
        return ["".join(element.itertext()) for element in self.root.iter(tag)]

    @property
    def text(self) -> str:
        shown = "".join(self.within("html"))
        for hidden in (*self.within("style"), *self.within("svg"), *self.within("title")):
            shown = shown.replace(hidden, "", 1)
        return re.sub(r"[ \n]+", " ", shown.replace("\u00a0", " "))


def page_of(runs: list[Run], out: Path) -> Page:
    """Write a page and check what holds for all: it loads nothing, its links work, its headings skip no level."""
    page = Page(write_report(runs, out).read_text(encoding="utf-8"))
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(page.tags)
    attributes = [item for element in page.root.iter() for item in element.items()]
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for name, value in attributes:
        assert name != "src" or value.startswith("data:image/png;base64,")
        assert name not in ("srcset", "action", "onclick", "onload")
        assert name != "href" or (value[0] == "#" and value[1:] in ids)
        assert name != "aria-labelledby" or value in ids
        assert "url(" not in value or value.startswith("url(#")
    style = "".join(page.within("style"))
    assert "@import" not in style and "url(" not in style and "@font-face" not in style
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels))
    return page


def text_of(pdf: Path) -> tuple[str, int]:
    """The words of a PDF as a search finds them, and its number of pages."""
    pages = PdfReader(pdf).pages
    text = " ".join(page.extract_text() for page in pages)
    return re.sub(r"\s+", " ", text.replace("\u00a0", " ")), len(pages)


def test_page_is_well_formed_and_has_the_figures_of_the_run(run: Run) -> None:
    page = page_of([run], run.path / "report.html")
    assert page.root.attrib == {"lang": "en"}
    policy = page.root.find(".//meta[@http-equiv='Content-Security-Policy']")
    assert policy is not None and "default-src 'none'" in policy.attrib["content"]
    assert {"svg", "math", "figure", "table", "details"} <= set(page.tags)
    assert "A GPT-2 with 2 layers, 4 heads and width 32" in page.text
    assert "trained for 300 steps on 1.23 M tokens (work/stories-data) in 2 min 30 s on a processor" in page.text
    assert "test perplexity is 2.490 per token, or 0.3318 bits per byte, 10.0 % above the entropy floor" in page.text
    for figure in (PROTOCOL, "0.9123", "0.3016", "93.0 %", "700 MiB", "40,155", "All options", "2.13.0"):
        assert figure in page.text
    assert f"gpt2lab train --config {run.path.as_posix()}/config.json" in page.text
    assert page.within("mark").count("One day") >= 4
    samples = "".join(page.within("article"))
    assert " Lily saw a boat.\nShe & Tom <b>greedy</b>" in samples
    assert page.root.findall(".//article//b") == []


def test_pdf_can_be_searched_and_has_few_pages(run: Run, tmp_path: Path) -> None:
    for metric, value in (("acc", 0.28), ("acc_norm", 0.295)):
        run.add_eval(300, "hellaswag", "val", "Completion style: 10 items.", metric, value)
    run.add_eval(300, "perplexity", "test", PROTOCOL, "word_perplexity", 31.25)
    notes = tmp_path / "notes.txt"
    notes.write_text("A longer context\nwould help.\n\n#strong[not markup] $ x $ \\ <b>", encoding="utf-8")
    text, pages = text_of(write_report([run], tmp_path / "report.pdf", notes))
    for figure in ("2.490", "0.3318", "10.0 %", "700 MiB", "40,155", "0.9123", "93.0 %", "1.23 M", "2.13.0"):
        assert figure in text, figure
    for title in ("Task and data", "Model", "Training", "Results", "Samples", "Strengths", "References"):
        assert title in text, title
    assert "Perplexity, per word 31.25" in text and "HellaSwag, after step 300" in text
    assert "Accuracy normalized by length, share of the items 0.295" in text
    assert "A longer context would help." in text
    assert "#strong[not markup] $ x $ \\ <b>" in text
    assert re.search(r"Figure 1: Over 1\.23 M tokens", text) and "Table 1:" in text
    assert pages <= 6


def test_page_is_small_however_long_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "long", steps=30_000)
    run.add_sample(300, "long", "", "word " * 200_000)
    page = page_of([run], tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 500_000
    assert "[…]" in page.text and "the mean of up to 8 rows of metrics.csv" in page.text


def test_characters_that_html_cannot_hold_are_replaced(run: Run) -> None:
    run.add_sample(300, "odd", "", "null \x00 escape \x1b \x9f end")
    with (run.path / "samples.jsonl").open("a", encoding="utf-8") as file:
        sample = {"step": 300, "strategy": "half", "prompt": "", "text": "half \ud83d of \U0001f600"}
        file.write(json.dumps(with_checksum(sample)) + "\n")
    page = page_of([run], run.path / "report.html")
    assert "null ␀ escape ␛ � end" in page.text
    assert "half � of 😀" in page.text


def test_unfinished_and_diverged_run_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", finished=None)
    run.add_metrics({name: (math.nan if name == "train_loss" else 310.0) for name in METRICS_COLUMNS})
    page = page_of([run], tmp_path / "report.html")
    assert "The run is unfinished: its newest checkpoint is from step 300." in page.text
    assert "The training loss is not finite at step 310: training diverged." in page.text
    assert "nan" not in "".join(path.attrib["d"] for path in page.root.iter("path")).lower()


def test_what_was_not_measured_or_is_unknown_is_said_or_left_out(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", CONFIG, ENVIRONMENT)
    text = page_of([run], tmp_path / "report.html").text
    assert "No training step was logged." in text and "no complete checkpoint" in text
    assert text.count("not measured") >= 8
    log_steps(run, 100)
    text = page_of([run], tmp_path / "report.html").text
    assert "Above the entropy floor" not in text
    assert re.search("Tokens seen *410 k *0.500 epochs", text)


def test_title_author_and_date_stand_at_the_top(run: Run, tmp_path: Path) -> None:
    options = ["--title", "A & B", "--author", "Ada <ada>", "--date", "May 2026"]
    for name in ("r.html", "r.pdf"):
        assert main(["report", str(run.path), "--out", str(tmp_path / name), *options]) == 0
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert page.within("h1") == ["A & B"] and "Ada <ada>, May 2026" in page.text
    assert text_of(tmp_path / "r.pdf")[0].startswith("GPT2LAB REPORT A & B Ada <ada>, May 2026")


@pytest.mark.parametrize(
    "name", ["config.json", "environment.json", "metrics.csv", "evals.csv", "samples.jsonl", "checkpoints"]
)
def test_missing_part_does_not_stop_the_report(run: Run, tmp_path: Path, name: str) -> None:
    path = run.path / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = page_of([run], tmp_path / "report.html").text
    assert name in text or "no complete checkpoint" in text
    assert "How to reproduce" in text_of(write_report([run], tmp_path / "report.pdf"))[0]


def test_text_quality_and_positions_are_reported_if_they_were_measured(run: Run, tmp_path: Path) -> None:
    assert "Loss by position" not in text_of(write_report([run], tmp_path / "report.pdf"))[0]
    figures = {"perplexity": 3.25, "self_bleu": 41.5, "relevance": 0.5}
    rows = [
        {"name": "held-out text", "strategy": None, "figures": figures},
        {"name": "greedy", "strategy": {"greedy": True}, "figures": {"perplexity": 1.125}},
        {"name": "nucleus 0.9", "strategy": {"top_p": 0.9}, "figures": figures | {"self_bleu": 60.0, "relevance": 0.2}},
    ]
    endings = {"nucleus 0.9": " sank at once.", "top-k 50": " came back.", "top-k 5": "not shown"}
    save_texts(run, rows, [{"prompt": "The boat <b>", "held_out": " sailed home.", "completions": endings}])
    save_curve(run, (3.0, 2.5, 2.0, math.nan))
    page, (text, _) = page_of([run], tmp_path / "report.html"), text_of(write_report([run], tmp_path / "report.pdf"))
    for found in (text, page.text):
        assert "Loss by position, on the test set after step 300." in found
        assert (
            "sailed home." in found and "sank at once." in found and "came back." in found and "not shown" not in found
        )
        assert "texts are less diverse than the held-out text: self-BLEU 60.0 against 41.5" in found
        assert "relevance 0.200 against 0.500" in found
        assert "loss is 3.000 with 1 token of context and 2.000 with about 3" in found
        assert "Diversity of the texts" in found and "100 prompts." in found and "self bleu" in found
        assert "The boat <b>" in found
    assert re.search(r"held-out text *3\.25 *41\.5 *0\.500 greedy *1\.12", text)


def test_several_runs_share_one_table_and_one_figure(tmp_path: Path, run: Run) -> None:
    other = make_run(tmp_path / "other & run", finished=None)
    page = page_of([run, other], tmp_path / "both.html")
    assert "2 runs side by side" in page.text
    drawn = "".join(page.within("svg"))
    assert "stories-tiny" in drawn and other.path.name in drawn
    assert "nats per token, step 300" in page.text
    assert {"stories-tiny", other.path.name} <= set(page.within("h2"))
    assert page.text.count("Feed-forward.") == 1, "the equations are there once"


@pytest.mark.parametrize("finished", ["300 steps done", None])
def test_losses_of_different_tokenizers_are_neither_drawn_nor_listed_together(
    tmp_path: Path, run: Run, finished: str | None
) -> None:
    other = make_run(tmp_path / "other", finished=finished)
    update_state(other, fingerprints={"data": "d" * 64, "tokenizer": "f" * 64})
    page = page_of([run, other], tmp_path / "both.html")
    drawn = "".join(page.within("svg"))
    assert "nats per token" not in drawn and "Gradient norm" in drawn and "stories-tiny" in drawn
    assert "Test bits per byte" in page.within("th")
    assert "nats per token, step 300" not in page.text


def make_variant(path: Path, seed: int, **groups: Mapping[str, object]) -> Run:
    """Make a run with another seed and some options changed."""
    run = make_run(path)
    changed = {group: {**CONFIG[group], **options} for group, options in groups.items()}
    write_checked_json(run.path / "config.json", {**CONFIG, "seed": seed, **changed})
    return run


def test_several_runs_are_compared_by_the_option_that_differs(tmp_path: Path) -> None:
    rates = {"a": 3e-3, "b": 1e-3}
    runs = [make_variant(tmp_path / f"{k}{n}", n, optim={"lr": lr}) for k, lr in rates.items() for n in (1, 2)]
    text, _ = text_of(write_report(runs, tmp_path / "report.pdf"))
    assert "4 runs compared" in text and "lr=0.003" in text and "lr=0.001" in text
    assert "the same" in text
    page = page_of(runs, tmp_path / "report.html")
    assert {"lr=0.003, the referencea1, a2", "lr=0.001b1, b2"} <= set(page.within("th"))
    assert {"a1", "a2", "b1", "b2"} <= set(page.within("h2"))


@pytest.mark.parametrize("many", [2, 7])
def test_runs_of_different_options_are_called_by_their_names_in_tables_that_fit(tmp_path: Path, many: int) -> None:
    runs = [make_variant(tmp_path / f"run-{n}", 1, optim={"lr": n / 1000}) for n in range(1, many + 1)]
    page, (text, _) = page_of(runs, tmp_path / "a.html"), text_of(write_report(runs, tmp_path / "a.pdf"))
    for found in (page.text, text):
        assert "Test loss of run-2 is 0 nats per token against run-1" in found
        assert (
            "optim.lr=0.001" in found and "optim.lr=0.002" in found and "arm" not in found.lower().replace("warm", "")
        )
    tables = [table for table in page.root.iter("table") if "side" in table.attrib.get("class", "")]
    compared = [
        [label for cell in table.iter("th") if (label := cell.text)]
        for table in tables
        if "fixed" in table.attrib["class"]
    ]
    assert len(compared) == (1 if many <= 5 else 2) and all(names[0] == "run-1" for names in compared)
    for table in tables:  # on a phone, each cell stands below its row with the name of its column
        for row in table.iter("tr"):
            assert len(list(row)) <= 11 and all(
                cell.attrib["data-label"] for cell in row.findall("td")[row.find("th") is None or row[0].tag == "td" :]
            )


def test_report_of_a_comparison_keeps_its_arms_and_names_runs_without_results(tmp_path: Path) -> None:
    for arm, seed in itertools.product(("small", "large"), (1, 2)):
        many = {f"option_{n}": arm for n in range(8)}  # too many options for a name
        make_variant(tmp_path / arm / str(seed), seed, model=many)
    statuses = [("small", 1, "finished"), ("small", 2, "finished"), ("large", 1, "finished"), ("large", 2, "finished")]
    statuses += [("large", 3, "not run yet"), ("large", 4, "failed: out of memory")]
    keys = ("path", "arm", "seed", "status")
    recorded = [(f"{arm}/{seed}", f"the {arm} one", seed, status) for arm, seed, status in statuses]
    write_checked_json(tmp_path / "comparison.json", {"runs": [dict(zip(keys, row, strict=True)) for row in recorded]})
    (tmp_path / "small/2/metrics.csv").write_text("broken\n", encoding="utf-8")
    text, _ = text_of(report_on([tmp_path], tmp_path / "report.pdf"))
    html = report_on([tmp_path], tmp_path / "report.html").read_text(encoding="utf-8")
    for found in (text, html):
        assert "the small one" in found and "the large one" in found
        assert "the large one, seed 3: not run yet. Left out." in found
        assert "the large one, seed 4: failed: out of memory. Left out." in found
        assert "the small one, seed 2: damaged" in found
    loose = make_run(tmp_path / "the small one").path
    html = report_on([tmp_path, loose], tmp_path / "report.html").read_text(encoding="utf-8")
    assert f'<th scope="row">{loose}<br><small>the small one</small></th>' in html, "no run is put into another's arm"


@pytest.mark.parametrize("ending", ["html", "pdf"])
def test_earlier_report_is_replaced_by_the_same_bytes_and_other_files_are_kept(
    run: Run, tmp_path: Path, ending: str
) -> None:
    out = write_report([run], tmp_path / f"report.{ending}")
    first = out.read_bytes()
    assert write_report([run], out).read_bytes() == first
    out.write_bytes(b"%PDF-1.7 <html>mine</html>")
    with pytest.raises(InputError, match="exists and is not a report"):
        write_report([run], out)
    assert out.read_bytes() == b"%PDF-1.7 <html>mine</html>"


def comparison_of(*runs: object) -> dict[str, str]:
    return {"comparison.json": json.dumps(with_checksum({"runs": runs}))}


BAD_SEED = {"path": "a", "arm": "a", "seed": "x", "status": "finished"}
REFUSALS: dict[str, tuple[dict[str, str], str, str, str]] = {
    "another kind of file": ({}, "run", "a.txt", r"ends in \.html or \.pdf"),
    "missing folder": ({}, "run", "b/a.html", "there is no folder"),
    "a folder": ({}, "run", "folder.html", "is a folder"),
    "no run": (comparison_of(), "", "a.html", "at least one run"),
    "not a run": ({}, "", "a.html", "holds no run"),
    "missing notes": ({}, "run", "a.html with missing", "missing: cannot be read"),
    "formula with an unknown command": ({"notes": "see $\\foo{x}$"}, "run", "a.html with notes", r"foo is not known"),
    "formula without an end": ({"notes": "$$\\left( a$$"}, "run", "a.pdf with notes", "cannot be typeset"),
    "formula of half a fraction": ({"notes": "$\\frac{a}$"}, "run", "a.pdf with notes", "fraction needs two parts"),
    "formula with a stray sign": ({"notes": "$a & b$"}, "run", "a.html with notes", "& stands outside a table"),
    "length without a unit": ({"notes": "$\\hspace{3}$"}, "run", "a.pdf with notes", "3 is not a length"),
    "notes in another encoding": ({"notes": "caf\xe9"}, "run", "a.html with notes", "not UTF-8 text at byte 3"),
    "comparison without runs": ({"comparison.json": "[]"}, "", "a.html", r"comparison\.json: no object"),
    "comparison with an empty run": (comparison_of({}), "", "a.html", r"comparison\.json: damaged"),
    "comparison with a bad seed": (comparison_of(BAD_SEED), "", "a.html", r"comparison\.json: damaged"),
}
"""The files in a folder, the directory below it that is reported on, the name of the report (with its notes), and what
is said."""


@pytest.mark.parametrize(("files", "reported", "out", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(run: Run, tmp_path: Path, files: dict[str, str], reported: str, out: str, message: str) -> None:
    (tmp_path / "folder.html").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="latin-1")
    name, _, notes = out.partition(" with ")
    path = run.path if reported else tmp_path
    with pytest.raises(InputError, match=message):
        report_on([path], tmp_path / name, tmp_path / notes if notes else None)
