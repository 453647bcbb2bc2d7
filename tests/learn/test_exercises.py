"""`learn start`: the files that a student completes."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from solving import solve

from gpt2lab.cli.main import main
from gpt2lab.learn import gpt2
from gpt2lab.learn.exercises import CLASSES, FILES, GIVEN, OWN_MODEL, PARTS, REFERENCE, Style, start

CONFIG = gpt2.Config(vocab_size=128, n_ctx=16, n_embd=24, n_head=3, n_layer=2)


def own_model(directory: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import `OWN_MODEL` of a directory, with the chapters beside it."""
    monkeypatch.syspath_prepend(directory)
    for name in (OWN_MODEL, *FILES):
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    return importlib.import_module(OWN_MODEL.removesuffix(".py"))


def test_every_function_of_the_reference_is_an_exercise_or_given() -> None:
    defined = {node.name for node in ast.parse(REFERENCE.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)}
    assert {part.name for part in PARTS} == defined - GIVEN
    assert len(PARTS) == 38 and {part.chapter for part in PARTS} == set(range(1, 11))
    causal_mask = next(part for part in PARTS if part.name == "causal_mask")
    assert (causal_mask.signature, causal_mask.file, causal_mask.class_name) == ("causal_mask(T, S)", FILES[2], None)
    assert {part.name: part.class_name for part in PARTS if part.class_name} == CLASSES


@pytest.mark.parametrize("style", ["functions", "modules"])
def test_every_part_is_a_stub_with_its_docstring_and_what_is_given_is_whole(tmp_path: Path, style: Style) -> None:
    start(tmp_path, style=style)
    for part in PARTS:
        name = part.name if style == "functions" else part.class_name or part.name
        tree = ast.parse((tmp_path / part.file).read_text("utf-8"))
        nodes = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert ast.get_docstring(nodes[name], clean=False) == getattr(gpt2, name).__doc__
        for function in ast.walk(nodes[name]):
            if isinstance(function, ast.FunctionDef):
                assert ast.unparse(function.body[-1]) == "raise NotImplementedError"
                assert len(function.body) == 2
        for given in GIVEN & nodes.keys():
            assert "NotImplementedError" not in ast.unparse(nodes[given])


@pytest.mark.parametrize("style", ["functions", "modules"])
def test_stubs_with_the_reference_in_them_are_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, style: Style
) -> None:
    made = own_model(solve(tmp_path, style=style), monkeypatch)
    torch.manual_seed(0)
    model = made.GPT(CONFIG)
    torch.manual_seed(0)
    reference = gpt2.GPT(CONFIG)
    assert model.state_dict().keys() == reference.state_dict().keys()
    reference.load_state_dict(model.state_dict())
    tokens = torch.randint(128, (2, 16))
    torch.testing.assert_close(model(tokens, tokens), reference(tokens, tokens))
    assert model(tokens)[1] is None
    sampling = importlib.import_module("ch09_sampling")
    again = [torch.Generator().manual_seed(0) for _ in range(2)]
    weights = dict(model.state_dict())
    assert sampling.generate([1], weights, 3, 9, again[0]) == gpt2.generate([1], weights, 3, 9, again[1])


def test_some_chapters_take_the_others_from_the_reference(tmp_path: Path) -> None:
    assert [path.name for path in start(tmp_path, [3, 4])] == [FILES[2], FILES[3]]
    assert "from ch03_attention import attention" in (tmp_path / FILES[3]).read_text("utf-8")
    assert [path.name for path in start(tmp_path, [6])] == [FILES[5]]
    model = (tmp_path / FILES[5]).read_text("utf-8")
    assert "from ch04_heads import" in model and "from gpt2lab.learn.gpt2 import" in model
    assert [path.name for path in start(tmp_path, [7])] == [FILES[6], OWN_MODEL]
    scripts = [f"import {path.stem}" for path in sorted(tmp_path.glob("*.py"))]
    subprocess.run([sys.executable, "-c", "\n".join(scripts)], cwd=tmp_path, check=True)


def test_the_command_says_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["learn", "start", str(tmp_path / "new"), "3", "--style", "modules"]) == 0
    said = capsys.readouterr().out
    assert f"gpt2lab learn check {tmp_path / 'new'} 3" in said and "docs/build/03-attention.md" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["FULL"], r"ch03_attention\.py exists and nothing was written"),
        (["FULL", "2", "3"], r"ch03_attention\.py exists and nothing was written"),
        (["FULL", "11"], "chapter is 11; it must be from 1 to 10"),
        (["FULL", "three"], "three"),
        (["FULL/ch03_attention.py"], r"cannot be written \(.*\); give another directory"),
        (["FULL/ch03_attention.py/new"], r"cannot be written \(.*\); give another directory"),
        (["FULL", "1", "--style", "classes"], "classes"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    start(tmp_path, [3])
    (tmp_path / FILES[2]).write_text("my work", encoding="utf-8")
    assert main(["learn", "start", *(a.replace("FULL", str(tmp_path)) for a in arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(says, line)
    assert [(path.name, path.read_text("utf-8")) for path in tmp_path.iterdir()] == [(FILES[2], "my work")]
