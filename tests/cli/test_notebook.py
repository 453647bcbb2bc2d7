"""The notebook runs from its first cell to its last."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from IPython import display

NOTEBOOK = Path(__file__).parents[2] / "docs" / "quickstart.ipynb"
SHORT = "documents, steps, comparison_steps = 150, 2, 2"


@pytest.fixture
def without_curves() -> None:
    """Nothing is left out: the notebook shows them."""


def test_notebook_runs_and_shows_its_curve_map_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    monkeypatch.setattr(display, "display", shown.append)
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook is kept without its results"
    names: dict[str, object] = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
        if "parameters" in cell.metadata.get("tags", []):
            exec(SHORT, names)
    assert sum(isinstance(each, display.Image) for each in shown) == 3
    assert any(isinstance(each, display.Markdown) and "Test loss" in str(each.data) for each in shown)
    assert (tmp_path / "quickstart-notebook" / "report.pdf").read_bytes().startswith(b"%PDF")
