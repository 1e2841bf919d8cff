"""The notebooks run from top to bottom offline, show the pictures that they announce, and are kept without outputs."""

import re
from pathlib import Path

import pytest

ANALYSES = Path(__file__).parent.parent / "analyses"


def run(name, monkeypatch):
    """The notebook with the outputs of its cells."""
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    notebook = nbformat.read(ANALYSES / name, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "strip the outputs before keeping the notebook"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    client.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ANALYSES)}}).execute()
    return notebook


def shown(cell, kind):
    """The outputs of a cell that are of one kind, such as `image/png`."""
    return [output["data"][kind] for output in cell.get("outputs", []) if kind in output.get("data", {})]


def test_the_tour_shows_six_findings_in_twelve_cells(monkeypatch):
    notebook = run("tour.ipynb", monkeypatch)
    assert len(notebook.cells) == 12
    findings = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(findings) == 6
    for cell in findings:
        assert len(shown(cell, "image/png")) == 2
        (told,) = [text for text in shown(cell, "text/markdown") if "Here:" in text]
        assert re.search(r"\*\*Here: (seen|seen in part|not seen|undecided)\.\*\* .*\(-?[\d.]+ to -?[\d.]+\)", told)


def test_your_networks(monkeypatch):
    notebook = run("your-networks.ipynb", monkeypatch)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(len(shown(cell, "image/png")) for cell in code) == 3, "a CKA map, attention distance, residual ratio"
    claims = [table for cell in code for table in shown(cell, "text/html") if "verdict" in table]
    assert len(claims) == 2
    assert all("# <- yours" in cell.source for cell in code if "rs.load_model" in cell.source)
    assert "# <- yours" not in code[0].source, "the first cell makes stand-ins, and goes"
