"""The notebook runs from its first cell to its last."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import gpt2lab

NOTEBOOK = Path(__file__).parents[2] / "docs" / "quickstart.ipynb"
SHORT = "documents, steps, comparison_steps = 150, 6, 2"


def test_notebook_runs_and_shows_its_curve_map_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(Path(gpt2lab.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook is kept without its results"
    place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(SHORT))
    client = NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    kernel = client.create_kernel_manager().kernel_spec
    assert kernel is not None
    kernel.argv[0] = sys.executable
    done = client.execute()
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert any("Test loss" in output.get("data", {}).get("text/markdown", "") for output in outputs)
    assert (tmp_path / "quickstart-notebook" / "report.pdf").read_bytes().startswith(b"%PDF")
