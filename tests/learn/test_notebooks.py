"""docs/build/notebooks: each is its chapter, and runs."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from solving import load, read

from gpt2lab.learn import gpt2
from gpt2lab.learn.exercises import PARTS, REFERENCE

BUILD = Path(__file__).parents[2] / "docs" / "build"


notebooks = load(BUILD / "notebooks.py")


@pytest.mark.parametrize("page", notebooks.CHAPTERS, ids=lambda page: page.stem)
def test_a_notebook_is_its_chapter(page: Path) -> None:
    """Run ``python docs/build/notebooks.py`` after a change of the page or of the exercises."""
    committed = nbformat.read(BUILD / "notebooks" / f"{page.stem}.ipynb", as_version=4)
    nbformat.validate(committed)
    assert committed == notebooks.notebook(page)
    code = [cell.source for cell in committed.cells if cell.cell_type == "code"]
    assert sum(each.startswith("%%writefile my-gpt2/ch") for each in code) == 1
    assert sum(each.startswith("!gpt2lab learn check my-gpt2") for each in code) == 1


@pytest.mark.parametrize("page", notebooks.CHAPTERS, ids=lambda page: page.stem)
def test_a_notebook_takes_the_parts_of_other_chapters_from_the_reference(page: Path) -> None:
    own = {part.file.removesuffix(".py") for part in PARTS if part.chapter == int(page.name[:2])}
    for cell in notebooks.notebook(page).cells:
        if cell.cell_type == "code" and not cell.source.startswith(("%", "!")):
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.ImportFrom) and node.module == "gpt2lab.learn.gpt2":
                    assert all(hasattr(gpt2, alias.name) for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("ch"):
                    assert node.module in own


def test_the_cells_of_a_notebook_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they print is tested with the chapter's page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    _, reference = read(REFERENCE)
    solution = "\n\n".join(reference[part.name] for part in PARTS if part.chapter == 6)
    shell = InteractiveShell()
    for cell in notebooks.notebook(BUILD / "06-model.md").cells:
        if cell.cell_type == "code" and not cell.source.startswith("!"):
            solved = f"\n\n{solution}" if cell.source.startswith("%%writefile") else ""
            shell.run_cell(cell.source + solved).raise_error()
