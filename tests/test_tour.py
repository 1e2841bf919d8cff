"""The notebook runs from top to bottom, and is kept without outputs."""

from pathlib import Path

import pytest

TOUR = Path(__file__).parent.parent / "analyses" / "tour.ipynb"


def test_the_tour():
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    notebook = nbformat.read(TOUR, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "strip the outputs before keeping the notebook"
    client.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(TOUR.parent)}}).execute()
    pictures = [
        cell for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 7
