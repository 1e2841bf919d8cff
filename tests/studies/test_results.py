"""Every study returns the tables of its command, a record of how they were made, and pictures."""

import inspect
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from every_study import STUDIES
from PIL import Image

import repsim as rs
from repsim.cli import main
from repsim.studies import lesion
from repsim.studies.results import hearing
from repsim.tables import TABLES

FEW = {"images": 64, "seed": 1}


@pytest.mark.filterwarnings("ignore::repsim.errors.Notice")
@pytest.mark.parametrize("name", STUDIES)
def test_a_command_and_the_call_of_its_function_write_the_same(name, vit, resnet, tmp_path):
    arguments = [*STUDIES[name].command.split(), *(f"--{option}={value}" for option, value in FEW.items())]
    done = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "command")])
    assert done.exit_code == 0, done.output
    found = STUDIES[name].result(vit, resnet, rs.ImageSet("sample", **FEW))
    assert isinstance(found, rs.Result) and found.record["images"]["batches"] >= 8  # so that there are errors
    assert not any("no standard errors" in notice for notice in found.notices)
    tables = {found.name: found.table, **found.tables}
    assert list(tables) == STUDIES[name].tables.split()
    assert {file: list(table) for file, table in tables.items()} == {file: TABLES[file] for file in tables}
    found.save(tmp_path / "call")
    files = [path.name for path in (tmp_path / "call").iterdir()]
    assert {file for file in files if file.endswith(".csv")} == {f"{file}.csv" for file in tables}
    assert sorted(files) == sorted(path.name for path in (tmp_path / "command").iterdir())
    for file in files:
        one, other = ((tmp_path / place / file) for place in ("command", "call"))
        if file.endswith(".csv"):
            assert one.read_bytes() == other.read_bytes(), file
        elif file.endswith(".npz"):
            with np.load(one) as a, np.load(other) as b:
                assert a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
    record = rs.tables.load_record(tmp_path / "command" / "run.json")
    for key in ("networks", "images", "protocol", "notices", "random", "device"):
        assert record[key] == rs.tables.load_record(tmp_path / "call" / "run.json")[key], key
    assert all(notice in done.stderr for notice in found.notices)


def test_every_table_is_written_by_something():
    by_studies = {file for case in STUDIES.values() for file in case.tables.split()}
    assert by_studies | {"attention_maps"} | {"numbers", "data_scale", "uniformity", "training"} == set(TABLES)


def test_a_layer_has_the_same_depth_in_every_table(vit, resnet):
    images, some = rs.ImageSet("sample", images=16), {"batch_size": 8}
    tables = {
        "blocks": rs.layer_cka(vit, images, **some).table.filter(regex="_a$").rename(columns=lambda c: c[:-2]),
        "paper": rs.layer_cka(vit, images, layers="paper", **some)
        .table.filter(regex="_a$")
        .rename(columns=lambda c: c[:-2]),
        "attention": rs.attention_distance(vit, images, **some).table,
        "residual": rs.residual_norms(vit, images, **some).table,
        "places": rs.token_localization(vit, images, layers=r"blocks\.[369].*", **some).summary,
        "lesion": rs.lesions(vit, images, blocks=[9], layers=["blocks.10", "blocks.11", "norm"], **some).table,
    }
    every = pd.concat(table.assign(table=name) for name, table in tables.items())
    by_layer = every.groupby("layer")
    assert (by_layer["depth"].nunique() == 1).all()
    assert by_layer["table"].nunique()[["blocks.9", "blocks.10", "blocks.3.attn"]].tolist() == [4, 4, 3]
    depth = by_layer["depth"].first()
    expected = {"stem": 0, "blocks.0.attn": 1 / 24, "blocks.0.mlp": 1 / 12, "blocks.0": 1 / 12, "norm": 1}
    assert depth[list(expected)].to_numpy() == pytest.approx(list(expected.values()))
    assert depth["stem"] < depth["blocks.0.norm1"] < depth["blocks.0.attn"] < depth["blocks.0.norm2"] < 1 / 12
    units = rs.head_similarity([vit, resnet], images, **some)
    assert sorted(set(units.table.depth_b)) == pytest.approx([k / 16 for k in range(1, 6)])
    assert list(units.correlation.depth_b) == sorted(set(units.table.depth_b))


FUNCTIONS = {
    "cka": rs.layer_cka,
    "attention": rs.attention_distance,
    "heads": rs.head_similarity,
    "residual": rs.residual_norms,
    "receptive": rs.receptive_fields,
    "localize": rs.token_localization,
    "lesion": rs.lesions,
    "probe": rs.linear_probes,
}
OF_MANY = {
    ("attention", "maps"): ((), 0),
    ("lesion", "remove"): ((), lesion.REMOVE),  # all kinds, where none is given
    ("probe", "shots"): (("10",), 10),
}
"""Defaults of options that may be given several times, beside those of the arguments."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_command_has_the_defaults_of_its_function(name):
    function = FUNCTIONS[name]
    options = {option.name: option.default for option in main.commands[name].params}
    given = main.commands[name].make_context(name, []).params
    asked = inspect.signature(function).parameters
    shared = (given.keys() & asked.keys()) - {"images"}
    assert "batch_size" in shared
    for option in shared:
        defaults = given[option], asked[option].default
        assert defaults == OF_MANY.get((name, option), (asked[option].default,) * 2), option
    module = inspect.getmodule(inspect.unwrap(function))
    assert options["images"] == module.MOST
    help_of = next(option.help for option in main.commands[name].params if option.name == "batch_size")
    assert f"[default: {module.BATCH}; fewer if images are few" in help_of


def test_a_batch_size_that_was_given_is_kept_and_what_it_costs_is_said(vit):
    images = rs.ImageSet("sample", images=40)
    of_few = rs.layer_cka(vit, images, layers=["blocks.0", "blocks.5"])
    assert of_few.table.se.notna().all() and of_few.protocol["batch_size"] == 8
    with pytest.warns(rs.Notice, match="40 images make one batch of 32, .* a batch size of 20 or less gives them"):
        asked = rs.layer_cka(vit, images, layers=["blocks.0", "blocks.5"], batch_size=32)
    assert asked.protocol["batch_size"] == 32 and asked.table.se.isna().all()
    with pytest.warns(rs.Notice, match="7 images make one batch of 7, .* they take 8 images at least"):
        rs.layer_cka(vit, rs.ImageSet("sample", images=7), layers=["blocks.0"])
    grouped = rs.ImageSet("sample", images=40, groups="class")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rs.Notice)
        assert rs.layer_cka(vit, grouped, layers=["blocks.0"]).table.se.notna().all()
        assert rs.layer_cka(vit, images, layers=["blocks.0"], batch_size=40, repeats=2).table.se.notna().all()


def test_any_number_of_networks_is_compared(vit, resnet):
    other = rs.load_model("vit_micro")
    images = rs.ImageSet("sample", images=64)
    result = rs.layer_cka([vit, resnet, other], images, batch_size=32)
    pair = rs.layer_cka([vit, resnet], images, batch_size=32).table
    assert list(result.table.model_a.unique()) == ["vit_mini", "resnet_mini", "vit_micro"]
    both = result.table[result.table.model_a.isin(pair.model_a) & result.table.model_b.isin(pair.model_b)]
    np.testing.assert_allclose(both.cka.to_numpy(), pair.cka.to_numpy(), atol=1e-12)
    assert result.plot().axes


def test_each_notice_is_a_warning_at_the_call_once_or_is_heard(vit):
    images = torch.randn(20, 1, 28, 28)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = rs.layer_cka(vit, images, layers=["blocks.0"], batch_size=16)
    assert (
        [str(warning.message) for warning in caught]
        == found.notices
        == [
            "20 images make one batch of 16, so there are no standard errors; a batch size of 10 or less gives them",
            "16 images were used; 4 were left out with a short last batch",
        ]
    )
    assert {(warning.category, warning.filename) for warning in caught} == {(rs.Notice, __file__)}
    heard = []
    with warnings.catch_warnings(), hearing(heard.append):
        warnings.simplefilter("error")
        rs.layer_cka(vit, images, layers=["blocks.0"], batch_size=16)
    assert heard == found.notices


def test_attention_maps_of_one_photograph(vit, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    picture.save(tmp_path / "mine.png")
    by_file, by_list = rs.attention_maps(vit, tmp_path / "mine.png"), rs.attention_maps(vit, [picture])
    assert by_file.maps["names"].tolist() == ["mine.png"] and len(by_file.table) == len(by_list.table) == 1
    np.testing.assert_array_equal(by_file.maps["rollout"], by_list.maps["rollout"])
    beside = rs.attention_distance(vit, rs.ImageSet("sample", images=16), maps=tmp_path / "mine.png")
    np.testing.assert_array_equal(by_file.maps["cls"], beside.maps["cls"])
    *panels, bar = by_file.plot().axes
    titles = [ax.get_title().replace("\n", " ") for ax in panels]
    assert titles[0] == "mine.png" and "blocks.11.attn head 3" in titles and bar.get_ylabel().startswith("attention")
    sample = rs.attention_maps(vit, rs.ImageSet("sample", images=8), count=2)
    assert sample.maps["names"].tolist() == rs.ImageSet("sample", images=8).ids[:2]


def test_a_result_shows_its_picture_and_names_its_tables(vit, resnet):
    found = rs.residual_norms([vit, resnet], rs.ImageSet("sample", images=64))
    assert found._repr_png_().startswith(b"\x89PNG") and found._repr_html_() is None
    assert found.outliers is found.tables["residual_outliers"]
    assert "64 images" in repr(found)
    with pytest.raises(AttributeError, match="its tables are table, outliers"):
        found.inliers  # noqa: B018


@pytest.mark.filterwarnings("ignore::repsim.errors.Notice")
def test_attention_maps_are_a_result(vit, tmp_path):
    result = rs.attention_maps(vit, rs.ImageSet("sample", images=8), count=3)
    assert list(result.table) == TABLES["attention_maps"]
    assert len(result.table) == 3 and result.maps["rollout"].shape == (3, 7, 7)
    result.save(tmp_path)
    assert (tmp_path / "attention_maps.png").exists() and (tmp_path / "attention_maps.npz").exists()


@pytest.mark.filterwarnings("ignore::repsim.errors.Notice")
def test_a_record_says_what_its_intervals_mean(vit):
    """The sentence on intervals differs for some of the images, for all images, for repeats and for groups."""
    some = rs.ImageSet("sample", images=64)
    everything = rs.ImageSet(some.source.images[:64])
    grouped = rs.ImageSet(some.source.images[:64], groups=np.arange(64) % 32)
    said = {
        "some": rs.layer_cka(vit, some, layers="stem", batch_size=16),
        "all": rs.layer_cka(vit, everything, layers="stem", batch_size=16),
        "repeats": rs.layer_cka(vit, some, layers="stem", batch_size=16, repeats=2),
        "groups": rs.layer_cka(vit, grouped, layers="stem", batch_size=16),
    }
    said = {kind: result.record["intervals"] for kind, result in said.items()}
    of_images = (
        "Standard errors and intervals are over images: they say what other images, drawn as these were, would give."
    )
    assert said["some"] == of_images
    assert said["all"].startswith(of_images) and "All images were used" in said["all"]
    assert (
        said["repeats"].startswith("Standard errors are over repeats") and "nothing of other images" in said["repeats"]
    )
    assert said["groups"].startswith(
        "Standard errors and intervals are over 32 groups of images (given): the jackknife"
    )
