"""The notebook of examples/: it runs from top to bottom, in a kernel of this checkout, and ends with the table."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

NOTEBOOK = Path("examples", "first_expert.ipynb")


def test_the_notebook_runs(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(root / "t2eval" / "bridge")]))
    monkeypatch.setenv("T2EVAL_CACHE", str(tmp_path / "cache"))
    notebook = nbformat.read(root / NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = {cell["id"]: cell["outputs"] for cell in notebook.cells if cell["cell_type"] == "code"}
    assert "3584 numbers in z" in outputs["attach"][0]["text"]
    assert "3584 parameters, 4 steps" in outputs["train"][0]["text"]
    table = outputs["table"][0]["data"]["text/markdown"]
    assert "| expert |" in table and "(n=60" not in table
    assert "| expert | embedded_code_seen |" in table  # what it gains over the base


def test_the_notebook_is_kept_without_outputs(root: Path) -> None:
    """What a run prints differs from machine to machine, and would be in every diff."""
    notebook = json.loads((root / NOTEBOOK).read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
