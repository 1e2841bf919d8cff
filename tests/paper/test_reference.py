"""The reference run in figures/ has every figure, each with its script, and two figures made anew are the same."""

import ast
import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from repsim.cli import main
from repsim.paper.claims import CLAIMS_COLUMNS, check
from repsim.paper.figures import FIGURES
from repsim.tables import load_table

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "figures"
ANEW = ["3", "D.2"]


@pytest.fixture(scope="module")
def anew(tmp_path_factory):
    out = tmp_path_factory.mktemp("anew")
    result = CliRunner().invoke(main, ["figures", *ANEW, "--out", str(out), "--quiet"])
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.parametrize("number", ANEW)
def test_a_figure_made_anew_has_the_same_tables(anew, number):
    folder = f"figure-{number}"
    tables = sorted(path.name for path in (REFERENCE / folder).glob("*.csv"))
    assert tables == sorted(path.name for path in (anew / folder).glob("*.csv")) and len(tables) > 1
    for name in tables:
        fresh, kept = (pd.read_csv(place / folder / name) for place in (anew, REFERENCE))
        pd.testing.assert_frame_equal(fresh, kept, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("number", FIGURES)
def test_the_reference_run_has_every_figure(number):
    folder = REFERENCE / f"figure-{number}"
    record = json.loads((folder / "run.json").read_text())
    assert record["number"] == number and record["preset"] == "mini" and not record["random"]
    assert (folder / f"figure-{number}.png").exists() and (folder / "numbers.csv").exists()


def test_its_claims_are_those_of_its_numbers():
    kept = load_table(REFERENCE / "claims.csv")
    assert list(kept) == CLAIMS_COLUMNS
    pd.testing.assert_frame_equal(kept, check(REFERENCE), rtol=1e-9)


@pytest.mark.parametrize("number", FIGURES)
def test_every_figure_has_a_script_of_its_own(number):
    stem = f"{int(number):02d}" if number.isdigit() else number.replace(".", "")
    tree = ast.parse((ROOT / "analyses" / f"figure_{stem}.py").read_text())
    said = ast.get_docstring(tree)
    assert said.startswith(f"Figure {number}: ") and f"repsim figures {number}`" in said
    assert "The paper shows" in said and "Expect" in said and "s on 2 cores" in said
    calls = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert f"main(['figures', '{number}', *sys.argv[1:]])" in calls
