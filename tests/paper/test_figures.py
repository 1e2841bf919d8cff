"""All figures of the preset `mini` from few images: files, passes, pictures; and the plan of each preset."""

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import repsim as rs
from repsim.aliases import ALIASES
from repsim.claims import CLAIMS, matches
from repsim.cli import main
from repsim.minis import ARCHITECTURES, bundled
from repsim.paper.exhibits import NUMBERS, numbers
from repsim.paper.figures import FIGURES, PRESETS
from repsim.paper.files import load_figure
from repsim.paper.run import Plan

SOME = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "D.4", "G.1", "H.2"]
"""One or more of each kind."""
IMAGES = 16


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run of what the bundled networks allow."""
    out = tmp_path_factory.mktemp("figures")
    few = ["--images", str(IMAGES), "--batch-size", "8", "--out", str(out)]
    result = CliRunner().invoke(main, ["figures", *SOME, *few])
    assert result.exit_code == 0, result.output
    return out, result.output


@pytest.fixture(scope="module")
def plan():
    return Plan.of([FIGURES[number] for number in SOME], "mini", bundled())


def test_every_figure_has_tables_numbers_a_record_and_pictures(run, plan):
    out, _ = run
    for exhibit in plan.exhibits:
        where = out / f"figure-{exhibit.number}"
        names = {path.name for path in where.iterdir()}
        assert {"run.json", f"figure-{exhibit.number}.png", f"figure-{exhibit.number}.pdf"} <= names
        assert len([name for name in names if name.endswith(".csv")]) >= 2
        of = pd.read_csv(where / "numbers.csv")
        assert list(of) == NUMBERS and of["value"].notna().all()
        assert (of["low"].isna() | (of["low"] <= of["value"] + 1e-9)).all()
        record = json.loads((where / "run.json").read_text())
        assert record["number"] == exhibit.number and record["preset"] == "mini"


def test_every_network_sees_every_image_once(run, plan):
    record = json.loads((run[0] / "run.json").read_text())
    passes = record["protocol"]["forward_passes"]
    # Receptive fields are gradients, and have passes of their own.
    swept = {name for exhibit in plan.exhibits if exhibit.sweeps for name in exhibit.names("mini")}
    assert set(passes) == swept
    for name, of in passes.items():
        assert of["test"] == record["images"]["used"] == IMAGES, name
        assert of.get("train", 0) <= record["protocol"]["probes"]["training_images"]["used"]


def test_what_is_left_out_is_said(run, plan):
    for number in plan.left_out:
        assert f"figure {number} is left out: not trained" in run[1]


def test_pictures_are_drawn_again_from_the_tables(run):
    out, _ = run
    picture = out / "figure-1" / "figure-1.png"
    picture.unlink()
    result = CliRunner().invoke(main, ["figures", "1", "--redraw", str(out)])
    assert result.exit_code == 0 and picture.exists()
    assert CliRunner().invoke(main, ["figures", "1", "--redraw", str(out / "figure-1")]).exit_code == 2


def test_every_claim_has_its_number(run, plan):
    made = {exhibit.number for exhibit in plan.exhibits}
    for claim in CLAIMS:
        assert claim.figure in FIGURES
        if claim.figure in made:
            of = pd.read_csv(run[0] / f"figure-{claim.figure}" / "numbers.csv")
            assert any(matches(claim.number, name) for name in of["number"]), claim


def test_claims_of_a_run(run):
    result = CliRunner().invoke(main, ["claims", str(run[0])])
    assert result.exit_code == 0 and "**agrees**" in result.output
    assert {path.name for path in run[0].iterdir()} >= {"claims.csv", "claims.md"}


def test_a_figure_is_what_its_function_gives(run):
    images = rs.ImageSet("sample", images=IMAGES)
    expected = rs.layer_cka("vit_mini", "resnet_mini", images, batch_size=8)
    cka = load_figure(FIGURES["2"], run[0]).tables["cka"]
    across = expected[(expected.model_a == "vit_mini") & (expected.model_b == "resnet_mini")]
    np.testing.assert_allclose(cka["cka"], across["cka"], atol=1e-9)
    distances = load_figure(FIGURES["3"], run[0]).tables["attention"]
    expected = rs.attention_distance("vit_mini", images, batch_size=8)
    np.testing.assert_allclose(distances["distance_px"], expected["distance_px"], atol=1e-6)


def test_all_figures_of_the_paper_are_there():
    main_figures = [str(number) for number in range(1, 14)]
    assert [number for number in FIGURES if number.isdigit()] == main_figures
    assert {number.split(".")[0] for number in FIGURES if not number.isdigit()} == set("BCDEFGH")


@pytest.mark.parametrize("preset", PRESETS)
def test_networks_of_a_preset_are_known(preset):
    for exhibit in FIGURES.values():
        for name in exhibit.names(preset):
            known = ALIASES if preset == "paper" else [*ARCHITECTURES, *bundled()]
            assert name in known or name.startswith("vit_mini_"), (exhibit.number, name)
        assert exhibit.names(preset) or exhibit.stand_in


def test_bad_input():
    for arguments, message in (
        (["figures", "14"], "unknown figure '14'"),
        (["figures", "8", "--preset", "paper"], "figure 8 cannot be made: no public checkpoints"),
        (["figures", "--redraw", "nowhere"], "there are no figures in nowhere"),
        (["claims", "nowhere"], "there are no numbers in nowhere"),
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2 and message in result.output, result.output


def test_intervals():
    row = numbers([("x", 1.0, 0.5)]).iloc[0]
    assert (row["low"], row["high"]) == (pytest.approx(0.02), pytest.approx(1.98))
