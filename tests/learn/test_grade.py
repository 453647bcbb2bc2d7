"""Grading a class: the table, the pages, that nothing stops it, and what is refused."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Generator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from solving import solve

from gpt2lab.cli.main import main
from gpt2lab.learn import sandbox
from gpt2lab.learn.check import Verdict
from gpt2lab.learn.exercises import PARTS
from gpt2lab.learn.grade import Grade, Gradebook, cell, distribution, grade
from gpt2lab.learn.rubric import load
from gpt2lab.learn.similarity import Pair
from gpt2lab.learn.submissions import Submission

NO_SCALE = "Your output is that of attention without the scale 1/sqrt(D)."


def pretend(directory: Path, chapters: Collection[int] = (), seconds: float = 1.0) -> Generator[Verdict]:
    """Check nothing: a student's chapter 3 says what is to be said of attention, or ends the checker."""
    told = (directory / "ch03_attention.py").read_text(encoding="utf-8")
    for part in PARTS:
        if part.chapter in chapters:
            if part.name == "attention" and told == "crash":
                raise RuntimeError("the process\ndied")
            if part.name == "attention" and told == "interrupt":
                raise KeyboardInterrupt
            wrong = Verdict(part.name, "wrong", told, mistake="no-scale" if told == NO_SCALE else "")
            yield wrong if told and part.name == "attention" else Verdict(part.name, "right")


def _class(folder: Path, told: dict[str, str]) -> Path:
    for student, text in told.items():
        (folder / student).mkdir(parents=True)
        (folder / student / "ch03_attention.py").write_text(text, encoding="utf-8")
    return folder


def _rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


@pytest.fixture
def _no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "check_directory", pretend)


@pytest.mark.usefixtures("_no_worker")
def test_a_class_gets_its_table_and_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _class(tmp_path / "class", {"ann": "", "bob": NO_SCALE, "cyd": "crash", "<b>dan": "<script>x</script>"})
    (folder / "empty").mkdir()
    out = tmp_path / "grades.csv"
    assert main(["learn", "grade", str(folder), "--out", str(out), "--rubric", "transformer", "--jobs", "2"]) == 0
    rows = _rows(out)
    assert list(rows) == ["<b>dan", "ann", "bob", "cyd", "empty"]
    assert [rows[name]["total"] for name in rows] == ["90", "100", "90", "12", "0"]
    assert {row["of"] for row in rows.values()} == {"100"}
    assert (rows["bob"]["attention"], rows["bob"]["mistakes"]) == ("0", f"attention: {NO_SCALE}")
    assert rows["cyd"]["notes"] == "could not be checked to the end: the process died"
    assert rows["empty"]["notes"] == "no chapters found, such as ch01_bytes.py"
    page = (tmp_path / "grades" / "bob.html").read_text(encoding="utf-8")
    assert "90 of 100 points. 20 of 21 parts right, 1 wrong: " in re.sub(r"\s+", " ", page)
    assert NO_SCALE in page
    assert "known mistake" in page
    assert '<meta name="viewport"' in page
    teacher = (tmp_path / "grades" / "index.html").read_text(encoding="utf-8")
    assert teacher.index(">ann<") < teacher.index(">bob<") < teacher.index(">cyd<") < teacher.index(">empty<")
    for file in (tmp_path / "grades").glob("*.html"):
        text = file.read_text(encoding="utf-8")
        HTMLParser().feed(text)
        assert "<script" not in text
        assert "<b>" not in text
        assert "http://" not in text.replace("http-equiv", "")
    assert (tmp_path / "grades" / "b-dan.html").is_file()
    said = capsys.readouterr().out
    assert "bob  90 of 100; wrong: attention\n" in said
    assert said.endswith(f"wrote {out} and {tmp_path / 'grades' / 'index.html'}\n")


@pytest.mark.usefixtures("_no_worker")
def test_what_is_graded_stays_after_an_interruption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _class(tmp_path / "class", {"ann": "", "bob": "interrupt", "cyd": ""})
    assert main(["learn", "grade", str(folder), "--out", str(tmp_path / "g.csv"), "--jobs", "1"]) == 130
    assert list(_rows(tmp_path / "g.csv")) == ["ann"]
    assert sorted(file.name for file in (tmp_path / "g").iterdir()) == ["ann.html", "index.html"]
    assert "graded 1 of 3 before the interruption" in capsys.readouterr().out


def test_the_check_runs_on_a_copy_that_is_removed(tmp_path: Path) -> None:
    seen: list[Path] = []

    def check(directory: Path, chapters: Collection[int]) -> Generator[Verdict]:
        seen.append(directory)
        assert (directory / "utils" / "more.py").read_bytes() == b"y = 2"
        yield Verdict("gelu", "right")

    given = Submission("ann", {"ch05_layers.py": b"x = 1", "utils/more.py": b"y = 2"})
    (got,) = grade([given], load("gpt2"), check)
    assert (got.points["gelu"], got.total, got.notes) == (2, 2, ())
    assert not seen[0].exists()


def test_parts_that_are_imported_from_gpt2lab_are_noted() -> None:
    def check(directory: Path, chapters: Collection[int]) -> Generator[Verdict]:
        yield Verdict("attention", "right")

    ours = "from gpt2lab.learn.gpt2 import attention, within\n"
    files = {
        "ch03_attention.py": f"def f():\n    {ours}".encode(),
        "ch04_heads.py": ours.encode(),  # as learn start writes it
        "ch05_layers.py": b"import torch, gpt2lab.model.layers as layers\n",
    }
    (got,) = grade([Submission("ann", files)], load("gpt2"), check)
    assert got.notes == (
        "ch03_attention.py imports from gpt2lab: attention",
        "ch05_layers.py imports from gpt2lab: gpt2lab.model.layers",
    )
    assert got.points["attention"] == 5  # the teacher decides


def test_no_cell_is_a_formula() -> None:
    for text in ("=1+1", "+1", "-1", "@x", "\t=1", "\n=cmd|' /C calc'!A0", "＝1"):
        assert cell(text).startswith("'")
    assert cell("ann") == "ann"


def test_pages_get_names_that_every_system_allows(tmp_path: Path) -> None:
    book = Gradebook(tmp_path / "g.csv", load("gpt2"))
    for student in ("../../etc", "Index", "a" * 200, "ann", "ANN", "日本", "???", "=x"):
        book.add(Grade(student, {"gelu": 1}))
    names = [
        "etc.html",
        "Index-2.html",
        f"{'a' * 60}.html",
        "ann.html",
        "ANN-2.html",
        "日本.html",
        "student.html",
        "x.html",
    ]
    assert list(book.pages.values()) == names
    book.finish([])
    assert "'=x" in _rows(tmp_path / "g.csv")


def test_pairs_that_are_alike_are_in_the_table_and_on_the_page(tmp_path: Path) -> None:
    book = Gradebook(tmp_path / "g.csv", load("gpt2"))
    same = (Verdict("adamw", "wrong", "Differs."), Verdict("gelu", "missing"))
    for student in ("ann", "bob", "cyd"):
        book.add(Grade(student, dict.fromkeys(book.rubric.points, 1), same))
    book.finish([Pair(("ann", "bob"), 0.912, 420, {"adamw": 0.97})])
    rows = _rows(tmp_path / "g.csv")
    named = [rows[student]["near-identical to"] for student in rows]
    assert named == ["bob (91 %; adamw)", "ann (91 %; adamw)", ""]
    page = (tmp_path / "g" / "index.html").read_text(encoding="utf-8")
    assert "ann and bob" in page
    assert "The same wrong result: adamw." in page
    assert "alike by nature" in page


def test_the_highest_total_is_in_the_last_bar() -> None:
    bars = distribution([0, 9.9, 10, 99, 100], 100)
    assert [number for _, number in bars] == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert bars[0][0] == "0 to 10"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--out", "{tmp}/grades.txt"], "it must end in .csv"),
        (["--out", "{tmp}/taken.csv"], "taken.csv exists and nothing was graded; give another --out"),
        (["--out", "{tmp}/other.csv"], "other exists and nothing was graded; give another --out"),
        (["--out", "{tmp}/class/g.csv"], "among the submissions; give a path outside of"),
        (["--out", "{tmp}/g.csv", "--rubric", "gpt3"], 'there is no rubric "gpt3"'),
        (["--out", "{tmp}/g.csv", "--jobs", "0"], "--jobs is 0; it must be 1 or more"),
        (["--out", "{tmp}/g.csv", "--seconds", "nan"], "--seconds is nan; it must be greater than 0"),
        (["--out", "{tmp}/taken.csv/g.csv"], "cannot be created"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_written(
    options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _class(tmp_path / "class", {"ann": ""})
    (tmp_path / "taken.csv").write_text("mine")
    (tmp_path / "other").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert main(["learn", "grade", str(folder), *(option.format(tmp=tmp_path) for option in options)]) == 2
    assert says in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "taken.csv").read_text() == "mine"


def test_real_submissions_are_graded_whatever_one_of_them_does(tmp_path: Path) -> None:
    rubric = tmp_path / "short.toml"
    rubric.write_text('title = "Attention"\nknown_mistake = 0.25\n[points]\ncausal_mask = 2\nattention = 4\n')
    text = (solve(tmp_path / "right") / "ch03_attention.py").read_text(encoding="utf-8")
    folder = _class(tmp_path / "class", {"ann": text.replace(" / math.sqrt(D)", ""), "bob": "import os\nos._exit(3)\n"})
    out = tmp_path / "grades.csv"
    assert main(["learn", "grade", str(folder), "--out", str(out), "--rubric", str(rubric), "--jobs", "1"]) == 0
    ann, bob = _rows(out).values()
    assert (ann["total"], ann["causal_mask"]) == ("3", "2")
    assert ann["mistakes"].startswith(f"attention: {NO_SCALE[:-1]}")
    assert bob["total"] == "0"
    assert "ended the process with exit code 3" in bob["mistakes"]
