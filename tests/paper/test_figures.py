"""All figures of the preset `mini` from few images: files, passes, pictures; and the plan of each preset."""

import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image
from scipy.stats import t

import repsim as rs
from repsim.cli import main
from repsim.cli.paper import figures
from repsim.networks.aliases import ALIASES
from repsim.networks.minis import ARCHITECTURES, bundled
from repsim.paper.claims import CLAIMS, check
from repsim.paper.exhibits import Compared, Exhibit, Receptive
from repsim.paper.figures import FIGURES, PRESETS
from repsim.paper.files import load_figure
from repsim.paper.measurements import Measurements
from repsim.paper.measuring import measure
from repsim.paper.numbers import Number, numbers
from repsim.paper.run import Cast
from repsim.tables import NUMBERS, TABLES, load_table

SOME = ["1", "2", "3", "5", "7", "9", "12", "D.2", "E.2", "F.3"]
"""Figures of which there are one or more of each kind."""
IMAGES = 16


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run of the figures that the bundled networks allow."""
    out = tmp_path_factory.mktemp("figures")
    few = ["--images", str(IMAGES), "--batch-size", "8", "--out", str(out)]
    result = CliRunner().invoke(main, ["figures", *SOME, *few])
    assert result.exit_code == 0, result.output
    return out, result.output


MINI = PRESETS["mini"]


def players(number, roles=MINI):
    """The networks that play the roles of a figure."""
    return FIGURES[number].players(roles.cases(FIGURES[number]))


def test_every_figure_has_tables_numbers_a_record_and_pictures(run):
    out, _ = run
    for exhibit in map(FIGURES.__getitem__, SOME):
        folder = out / f"figure-{exhibit.number}"
        names = {path.name for path in folder.iterdir()}
        assert {"run.json", f"figure-{exhibit.number}.png", f"figure-{exhibit.number}.pdf"} <= names
        tables = [path for path in folder.iterdir() if path.suffix == ".csv"]
        assert len(tables) >= 2 and all(list(load_table(path)) == TABLES[path.stem] for path in tables)
        table = pd.read_csv(folder / "numbers.csv")
        assert list(table) == NUMBERS and table["value"].notna().all()
        assert (table["low"].isna() | (table["low"] <= table["value"] + 1e-9)).all()
        assert not table.duplicated(["key", "models"]).any()
        for models, label in zip(table["models"].map(json.loads), table["label"]):
            assert models and set(models) <= set(players(exhibit.number)), label
        record = json.loads((folder / "run.json").read_text())
        assert record["number"] == exhibit.number and record["preset"] == "mini"


def test_every_network_sees_every_image_once(run):
    record = json.loads((run[0] / "run.json").read_text())
    passes = record["protocol"]["forward_passes"]
    # Receptive fields are gradients, and have passes of their own.
    swept = {name for number in SOME if not isinstance(FIGURES[number], Receptive) for name in players(number)}
    assert set(passes) == swept
    for name, counts in passes.items():
        assert counts["test"] == record["images"]["used"] == IMAGES, name
        assert counts.get("train", 0) in {
            0,
            *(probe["training_images"]["used"] for probe in record["protocol"]["probes"]),
        }


def test_what_is_left_out_is_said():
    cast = Cast.of([FIGURES[number] for number in ("1", "8")], MINI, {"vit_mini", "resnet_mini", "vit_mini_noskip1"})
    assert [exhibit.number for exhibit in cast.exhibits] == ["1"]
    assert cast.left_out.sentences() == [
        "figure 8 is left out: not trained: vit_mini_noskip5, vit_mini_noskip9 (analyses/train_minis.py)"
    ]


def test_pictures_are_drawn_again_from_the_tables(run):
    out, _ = run
    picture = out / "figure-1" / "figure-1.png"
    picture.unlink()
    result = CliRunner().invoke(main, ["figures", "1", "--redraw", str(out)])
    assert result.exit_code == 0 and picture.exists()
    assert CliRunner().invoke(main, ["figures", "1", "--redraw", str(out / "figure-1")]).exit_code == 2


def test_every_claim_has_its_number(run):
    for claim in CLAIMS:
        assert claim.figure in FIGURES
        if claim.figure in SOME:
            table = pd.read_csv(run[0] / f"figure-{claim.figure}" / "numbers.csv")
            assert claim.key in set(table["key"]), claim


def test_claims_of_blocks_without_skips():
    keys = [claim.key for claim in CLAIMS if claim.figure == "8"]
    assert keys == [f"across_block_{block}_difference" for block in FIGURES["8"].without_skips]


def test_claims_of_a_run(run):
    result = CliRunner().invoke(main, ["claims", str(run[0])])
    assert result.exit_code == 0 and "**agrees**" in result.output
    assert {path.name for path in run[0].iterdir()} >= {"claims.csv", "claims.md"}


def test_all_figures_of_the_paper_are_there():
    appendix = {"B": 1, "C": 6, "D": 4, "E": 2, "F": 3, "G": 2, "H": 2}
    parts = [f"{letter}.{number}" for letter, count in appendix.items() for number in range(1, count + 1)]
    assert list(FIGURES) == [*map(str, range(1, 14)), *parts]


@pytest.mark.parametrize("preset", PRESETS)
def test_networks_of_a_preset_are_known(preset):
    roles = PRESETS[preset]
    for number, exhibit in FIGURES.items():
        for name in players(number, roles):
            known = ALIASES if preset == "paper" else [*ARCHITECTURES, *bundled()]
            assert name in known, (number, name)
        assert exhibit.note(preset) if roles.lacking(exhibit) else players(number, roles)


def test_bad_input():
    for arguments, message in (
        (["figures", "14"], "unknown figure '14'"),
        (["figures", "8", "--preset", "paper"], "figure 8 cannot be made: no public checkpoints"),
        (["figures", "--redraw", "nowhere"], "there are no figures in nowhere"),
        (["claims", "nowhere"], "there are no numbers in nowhere"),
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2 and message in result.output, result.output


def test_numbers_of_receptive_fields_are_of_mean_maps(vit, resnet):
    """Numbers are those of the maps of `receptive_fields`, and standard errors those of leaving images out."""
    images = rs.ImageSet("sample", images=8)
    m = Measurements({"vit": vit, "resnet": resnet}.__getitem__, images, None, channels=2)
    figure = measure(FIGURES["6"], m, ("vit", "resnet"), [Compared("", "", 0, 1)])()
    rows = figure.tables["numbers"].set_index(["key", "models"])
    whole = [rs.receptive_fields(net, images, channels=2, batch_size=4) for net in (vit, resnet)]
    pd.testing.assert_frame_equal(
        figure.tables["receptive"], pd.concat([fields.table for fields in whole], ignore_index=True)
    )
    np.testing.assert_array_equal(figure.arrays["vit_mini/stem"], whole[0].maps["stem"])

    def lowest(table):
        return table["radius50_px"].iloc[: round(len(table) / 3)].mean()

    row = rows.loc["radius_lowest_third_difference", '["vit_mini", "resnet_mini"]']
    assert row["value"] == pytest.approx(lowest(whole[0].table) - lowest(whole[1].table)) and row["df"] == 7
    rest = []
    for left in range(8):
        some = images.only(np.delete(np.arange(8), left))
        rest.append([lowest(rs.receptive_fields(net, some, channels=2).table) for net in (vit, resnet)])
    apart = np.array(rest) @ [1, -1]
    se = (7 / 8 * ((apart - apart.mean()) ** 2).sum()) ** 0.5
    assert row["high"] - row["value"] == pytest.approx(t.ppf(0.975, 7) * se, rel=1e-3)
    branches = measure(FIGURES["C.4"], m, ("vit",))().tables["numbers"].set_index("key")
    share = [
        rs.receptive_fields(vit, images, channels=2, batch_size=4, branch=branch).table["centre_share"].mean()
        for branch in (False, True)
    ]
    assert branches.loc["own_patch_sum_minus_branch", "value"] == pytest.approx(share[0] - share[1])
    assert len(FIGURES["6"].draw(figure, "title").axes) >= 4


def test_intervals():
    cases = {"batches": (0.5, 19), "draws": (0.5, 2), "no spread": (0.0, 19), "rounding": (1e-8, 19), "one": (0.5, 0)}
    table = numbers([Number(name, ("a",), name, 1.0, *error) for name, error in cases.items()])
    half = (table["high"] - table["low"]) / 2
    assert half[0] == pytest.approx(0.5 * 2.0930, abs=1e-4) and half[1] == pytest.approx(0.5 * 4.3027, abs=1e-4)
    assert half[2:].isna().all() and table["df"].tolist() == [19, 2, 19, 19, 0]


def test_a_folder_without_training_images_leaves_probes_out(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for split, names in (("val", "ab"), ("train", "a")):
        for name in names:
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(8):
                pixels = rng.integers(0, 255, (28, 28)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    few = ["figures", "1", "13", "11", "--batch-size", "8", "--weights", "random", "--json", "--quiet"]
    result = CliRunner().invoke(main, [*few, "--data", "data"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["directory"] == "runs/figures-mini-random"
    assert any(notice.startswith("figures 13, 11 are left out: probes need") for notice in said["notices"])
    assert "runs/figures-mini-random/figure-1/figure-1-random.png" in said["files"]
    record = json.loads((tmp_path / "runs/figures-mini-random/figure-1/run.json").read_text())
    assert record["random"] and record["images"]["used"] == 16  # the images of val alone
    claims = CliRunner().invoke(main, ["claims", "runs/figures-mini-random"])
    assert "(random weights)" in claims.output


def test_the_caption_says_what_is_not_the_papers():
    figure = FIGURES["1"]
    assert figure.caption({"preset": "mini", "random": False}) == "Figure 1. Similarity of layers within networks"
    assert "(here: ImageNet-21k weights for JFT-300M ones)" in figure.caption({"preset": "paper", "random": False})
    assert "(here: untrained networks, random weights)" in figure.caption({"preset": "paper", "random": True})
    assert "two thirds of the untouched" in FIGURES["8"].caption({"preset": "mini", "random": False})


def test_a_dry_run_on_noise_probes_made_up_classes(tmp_path):
    few = ["--images", "8", "--batch-size", "8", "--channels", "1", "--weights", "random", "--data", "noise"]
    result = CliRunner().invoke(main, ["figures", "6", "F.3", *few, "--out", str(tmp_path)])
    assert result.exit_code == 0 and "two classes are made up" in result.output, result.output
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["protocol"]["channels"] == 1 and record["protocol"]["probes"]
    fields = load_figure(FIGURES["6"], tmp_path)
    assert len(fields.tables["receptive"]) == len(fields.arrays)


NAMES = {
    "vit_mini": "my net 2",
    "resnet_mini": "my net",
    "vit_mini_gap": "my net 2 - my net",
    "vit_mini_100pct_seed1": "with high layers, untouched",
    "vit_mini_3pct": 'a "quoted", b',
}
"""Names that users may give their networks; one begins as another does, and one is a difference of two others."""


def test_names_of_networks_change_nothing_else(run, tmp_path):
    chosen = ["1", "2", "3", "5", "7", "9", "12", "F.3"]
    networks = {old: dataclasses.replace(rs.load_model(old), name=new) for old, new in NAMES.items()}
    images, train = rs.ImageSet("sample", images=IMAGES), rs.ImageSet("sample", split="train")
    roles = dataclasses.replace(MINI.played_by(networks), bundled=False)
    replication = rs.paper.replicate(roles, images, train, chosen, batch_size=8)
    replication.save(tmp_path)
    for number in chosen:
        table, expected = (load_figure(FIGURES[number], place).tables["numbers"] for place in (tmp_path, run[0]))
        numbers = [column for column in NUMBERS if column not in ("models", "label")]
        pd.testing.assert_frame_equal(table[numbers], expected[numbers], rtol=1e-9)
        models = [[NAMES[name] for name in json.loads(listed)] for listed in expected["models"]]
        assert table["models"].map(json.loads).tolist() == models
        assert all(name in label for label, names in zip(table["label"], models) for name in names[:1])
    assert all((tmp_path / f"figure-{number}" / f"figure-{number}.png").exists() for number in chosen)
    claims, expected = check(tmp_path), check(run[0])
    expected = expected[expected["claim"].isin(claims["claim"])].reset_index(drop=True)
    assert len(claims) >= 10 and any(source.endswith(", my net 2 - my net") for source in claims["source"])
    pd.testing.assert_frame_equal(claims.drop(columns="source"), expected.drop(columns="source"), rtol=1e-9)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "low with high layers, my net 2 - my net" in page and "my net 2 (up) and my net (right)" in page


def test_presets_are_those_of_the_command():
    (preset,) = (option for option in figures.params if option.name == "preset")
    assert list(preset.type.choices) == list(PRESETS)
    assert all(set(PRESETS) >= set(exhibit.notes) for exhibit in FIGURES.values())
    assert all(set(roles.figures) <= set(FIGURES) for roles in PRESETS.values())


def test_what_draws_reads_tables_alone():
    code = "import repsim.paper.report, repsim.paper.files, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    for module in ("exhibits", "figures", "roles", "claims", "findings", "files"):
        tree = ast.parse((Path(rs.__file__).parent / "paper" / f"{module}.py").read_text())
        inner = [
            node for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)
        ]
        assert not any(isinstance(node, ast.Import | ast.ImportFrom) for node in inner), module


def test_every_kind_of_exhibit_is_measured():
    for exhibit in FIGURES.values():
        assert measure.dispatch(type(exhibit)) is not measure.dispatch(Exhibit), exhibit.number
