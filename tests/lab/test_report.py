"""The report as a page: well-formed, loads nothing, says what the run directory holds."""

from __future__ import annotations

import itertools
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from run_directories import CONFIG, ENVIRONMENT, PROTOCOL, log_steps, make_run

from gpt2lab.errors import InputError
from gpt2lab.report.html import write_report
from gpt2lab.runs import METRICS_COLUMNS, Run

VOID = {"meta", "br", "hr", "img", "input", "link", "mspace", "path", "use", "circle", "rect"}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "stories-tiny")


class Page(HTMLParser):
    """Reads a page, checking that every element is closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len({name for name, _ in attrs}), f"an attribute of <{tag}> stands twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(self.open), data))

    @property
    def text(self) -> str:
        shown = "".join(data for above, data in self.texts if not {"style", "svg", "title"} & set(above))
        return re.sub(r"[ \n]+", " ", shown.replace("\u00a0", " "))

    def within(self, tag: str) -> list[str]:
        return [data for above, data in self.texts if tag in above]


def page_of(runs: list[Run], out: Path) -> Page:
    return Page(write_report(runs, out).read_text(encoding="utf-8"))


def check_page(page: Page) -> None:
    """What holds of every report: it loads nothing, its links lead somewhere, its headings leave out no level."""
    tags = [tag for tag, _ in page.elements]
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(tags)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.elements:
        for name, value in attrs.items():
            assert name != "src" or (value or "").startswith("data:image/png;base64,")
            assert name not in ("srcset", "action", "onclick", "onload")
            if name in ("href", "xlink:href"):
                assert value is not None and value.startswith("#") and value[1:] in ids
            if name == "aria-labelledby":
                assert value in ids
            assert "url(" not in (value or "") or (value or "").startswith("url(#")
    style = "".join(page.within("style"))
    assert "@import" not in style and "url(" not in style and "@font-face" not in style
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels))


def test_page_is_well_formed_and_loads_nothing(run: Run) -> None:
    page = page_of([run], run.path / "report.html")
    check_page(page)
    assert ("html", {"lang": "en"}) in page.elements
    assert "default-src 'none'" in str(page.elements)
    assert {"svg", "math", "figure", "table", "details"} <= {tag for tag, _ in page.elements}


def test_file_is_small_however_long_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "long", steps=30_000)
    run.add_sample(300, "long", "", "word " * 200_000)
    out = write_report([run], tmp_path / "report.html")
    assert out.stat().st_size < 500_000
    assert "[…]" in Page(out.read_text(encoding="utf-8")).text


def test_numbers_of_the_run_are_in_the_page(run: Run) -> None:
    text = page_of([run], run.path / "report.html").text
    assert "A GPT-2 of 2 layers, 4 heads and width 32" in text
    assert "trained for 300 steps on 1.23 M tokens (work/stories-data) in 2 min 30 s on a processor" in text
    assert "perplexity is 2.490 per token, which is 0.3318 bits per byte, 10.0 % above the entropy" in text
    assert PROTOCOL in text
    for figure in ("0.9123", "0.3016", "93.0 %", "700 MiB", "40,155", "every option".capitalize(), "2.13.0"):
        assert figure in text
    assert f"gpt2lab train --config {run.path.as_posix()}/config.json" in text


def test_prompt_is_set_apart_and_text_is_escaped_with_its_newlines(run: Run) -> None:
    page = page_of([run], run.path / "report.html")
    assert page.within("mark").count("One day") >= 4
    texts = "".join(page.within("article"))
    assert " Lily saw a boat.\nShe & Tom <b>greedy</b>" in texts
    assert "b" not in [tag for above, _ in page.texts for tag in above if "article" in above]


def test_text_that_html_cannot_hold_is_replaced(run: Run) -> None:
    run.add_sample(300, "odd", "", "null \x00 escape \x1b \x9f end")
    with (run.path / "samples.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 300, "strategy": "half", "prompt": "", "text": "half \\ud83d of \\ud83d\\ude00"}\n')
    page = page_of([run], run.path / "report.html")
    check_page(page)
    assert "null ␀ escape ␛ � end" in page.text
    assert "half � of 😀" in page.text


def test_run_that_goes_on_is_called_unfinished(tmp_path: Path) -> None:
    text = page_of([make_run(tmp_path / "run", finished=None)], tmp_path / "report.html").text
    assert "The run is unfinished: its newest checkpoint is of step 300." in text


def test_empty_run_is_reported_as_not_measured(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", CONFIG, ENVIRONMENT)
    page = page_of([run], tmp_path / "report.html")
    check_page(page)
    assert "No training step is recorded." in page.text
    assert "no complete checkpoint" in page.text
    assert page.text.count("not measured") >= 8


@pytest.mark.parametrize("name", ["config.json", "environment.json", "metrics.csv", "evals.csv", "checkpoints"])
def test_missing_part_does_not_stop_the_report(run: Run, name: str) -> None:
    path = run.path / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = page_of([run], run.path / "report.html")
    check_page(page)
    assert name in page.text or "no complete checkpoint" in page.text


def test_loss_that_is_not_finite_is_said_and_not_drawn(run: Run) -> None:
    last = {name: (math.nan if name == "train_loss" else 310.0) for name in METRICS_COLUMNS}
    run.add_metrics(last)
    page = page_of([run], run.path / "report.html")
    assert "The training loss is not finite at step 310: training diverged." in page.text
    assert "nan" not in "".join(str(attrs.get("d", "")) for _, attrs in page.elements).lower()


def test_several_runs_stand_in_one_table_and_one_picture(tmp_path: Path, run: Run) -> None:
    other = make_run(tmp_path / "other & run", finished=None)
    page = page_of([run, other], tmp_path / "both.html")
    check_page(page)
    assert "2 runs, side by side" in page.text
    drawn = "".join(page.within("svg"))
    assert "stories-tiny" in drawn and other.path.name in drawn
    assert "nats per token, step 300" in page.text
    assert [data for above, data in page.texts if "h2" in above and data in ("stories-tiny", other.path.name)]
    assert len([tag for tag, _ in page.elements if tag == "math"]) < 30, "the equations stand once"


@pytest.mark.parametrize("finished", ["300 steps done", None])
def test_losses_of_other_tokenizers_are_neither_drawn_nor_tabled_together(
    tmp_path: Path, run: Run, finished: str | None
) -> None:
    other = make_run(tmp_path / "other", finished=finished)
    state = other.checkpoints / "step_00000300" / "state.json"
    state.write_text(state.read_text(encoding="utf-8").replace("e" * 64, "f" * 64), encoding="utf-8")
    page = page_of([run, other], tmp_path / "both.html")
    check_page(page)
    drawn = "".join(page.within("svg"))
    assert "nats per token" not in drawn and "Gradient norm" in drawn and "stories-tiny" in drawn
    assert "Test bits per byte" in page.within("th")
    assert "nats per token, step 300" not in page.text


def test_entropy_gap_is_left_out_where_the_text_has_no_known_entropy(tmp_path: Path) -> None:
    plain = Run.create(tmp_path / "plain", CONFIG, ENVIRONMENT)
    log_steps(plain, 100)
    text = page_of([plain], tmp_path / "report.html").text
    assert "Above the entropy floor" not in text
    assert re.search("Tokens seen *410 k *0.500 epochs", text)


def test_own_report_is_replaced_and_no_other_file(run: Run, tmp_path: Path) -> None:
    out = write_report([run], tmp_path / "report.html")
    first = out.read_bytes()
    assert write_report([run], out).read_bytes() == first
    out.write_text("<html>mine</html>", encoding="utf-8")
    with pytest.raises(InputError, match="exists and is not a report"):
        write_report([run], out)
    assert out.read_text(encoding="utf-8") == "<html>mine</html>"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("report.txt", "ends in .html or .pdf"),
        ("missing/report.html", "there is no folder"),
        ("folder.html", "is a folder"),
    ],
)
def test_place_that_cannot_be_written_is_refused(run: Run, tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(InputError, match=said):
        write_report([run], tmp_path / name)


def test_report_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one run"):
        write_report([], tmp_path / "report.html")
