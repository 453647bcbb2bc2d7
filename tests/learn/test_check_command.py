"""``gpt2lab learn check``: what it prints, its exit codes, and that it leaves nothing behind."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from solving import SOLUTIONS, solve

from gpt2lab.cli.main import main
from gpt2lab.learn import sandbox
from gpt2lab.learn.check import Verdict
from gpt2lab.learn.exercises import PARTS


@pytest.mark.parametrize("style", SOLUTIONS)
def test_right_code_of_any_style_is_right(style: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    solve(tmp_path, SOLUTIONS[style], "modules" if style == "modules" else "functions")
    code = main(["learn", "check", str(tmp_path)])
    said = capsys.readouterr().out
    assert code == 0, said
    assert said.endswith(f"\n{len(PARTS)} of {len(PARTS)} parts right\n")


def _pretend(monkeypatch: pytest.MonkeyPatch, **bad: Verdict) -> None:
    """Let every part be right but these."""

    def check_directory(directory: Path, chapters: tuple[int, ...], seconds: float) -> Iterator[Verdict]:
        for part in PARTS:
            if not chapters or part.chapter in chapters:
                yield bad.get(part.name) or Verdict(part.name, "right")

    monkeypatch.setattr(sandbox, "check_directory", check_directory)


def test_verdicts_are_listed_by_chapter_with_what_to_read_next(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scale = Verdict("attention", "wrong", "Your output is that of [no] scale.", "case 1 of 3: attention(q)", "hello\n")
    _pretend(
        monkeypatch,
        attention=scale,
        **{name: Verdict(name, "missing", "ch06_model.py is missing") for name in ("block", "gpt")},
    )
    assert main(["learn", "check", "."]) == 1
    said = capsys.readouterr().out
    assert "\n1 bytes\n  ✓ byte_order\n" in said
    assert (
        "\n3 attention\n"
        "  ✓ causal_mask\n"
        "  ✗ attention    Your output is that of [no] scale.\n"
        "                 case 1 of 3: attention(q)\n"
        "\n4 heads\n"
    ) in said
    assert "\n6 model\n  – all 2 parts  ch06_model.py is missing\n" in said
    assert f"\n{len(PARTS) - 3} of {len(PARTS)} parts right, 1 wrong, 2 missing\n" in said
    page = said.partition("next: attention in ch03_attention.py; read ")[2].strip()
    assert page.endswith("docs/build/03-attention.md") and Path(page).is_file()


def test_of_the_chapters_that_are_named_it_also_shows_what_wrong_parts_print(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = Verdict("attention", "error", "line 3: x[:x:]", output="q\n" + 24 * "1\n")
    right = Verdict("gelu", "right", output="2")
    _pretend(monkeypatch, attention=bad, gelu=right)
    assert main(["learn", "check", ".", "3", "5"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("\n3 attention\n  ✓ causal_mask\n  ✗ attention    line 3: x[:x:]\n")
    assert f"{'':17}printed: q\n{'':17}printed: 1\n" in said
    assert f"printed: 1\n{'':17}and 5 lines more\n" in said
    assert "printed: 2" not in said
    assert "\n4 of 5 parts right, 1 wrong, 0 missing\n" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing"], "missing is not a directory; create one with: gpt2lab learn start missing"),
        ([".", "3", "11"], "chapter is 11; it must be from 1 to 10"),
        ([".", "--seconds", "0"], "--seconds is 0.0; it must be greater than 0"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["learn", "check", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"gpt2lab: {says}")
    assert error.count("\n") == 1


def test_an_interrupt_ends_the_worker_and_removes_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, workers = tmp_path / "temporary", list[sandbox.Worker]()
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    begin = sandbox.Worker.__enter__
    monkeypatch.setattr(sandbox.Worker, "__enter__", lambda worker: (workers.append(worker), begin(worker))[1])
    beats = tmp_path / "beats"
    child = f"import time\nwhile True:\n    open({str(beats)!r}, 'ab').write(b'.')\n    time.sleep(0.01)"
    (tmp_path / "ch01_bytes.py").write_text(
        f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}])"
    )
    verdicts = sandbox.check_directory(tmp_path, [1])
    assert next(verdicts).says == "ch01_bytes.py does not define byte_order"
    assert any(temporary.iterdir())
    while not beats.exists():
        time.sleep(0.01)
    with pytest.raises(KeyboardInterrupt):
        verdicts.throw(KeyboardInterrupt)
    [worker] = workers
    assert worker.process.returncode is not None
    assert not any(temporary.iterdir())
    if hasattr(os, "killpg"):  # what the student's code started has ended, too
        before = beats.stat().st_size
        time.sleep(0.2)
        assert beats.stat().st_size == before
