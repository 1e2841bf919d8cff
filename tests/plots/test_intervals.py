"""Bars and bands on pictures have the right width, and there is none where no error is known."""

import numpy as np
import pandas as pd
import pytest

import repsim as rs
from repsim.measures import running
from repsim.plots import style
from repsim.plots.curves import each_layer
from repsim.tables import ATTENTION, HEADS, PROBE_SUMMARY


def bars(ax):
    """Half of the height of each bar."""
    return [np.ptp(segment[:, 1]) / 2 if len(segment) else np.nan for segment in ax.containers[0][2][0].get_segments()]


def band(ax):
    """Half of the width of a band, for each depth at which there is a band."""
    return {
        depth: np.ptp(part[part[:, 0] == depth, 1]) / 2
        for path in ax.collections[0].get_paths()
        for part in [path.vertices]
        for depth in np.unique(part[:, 0])
    }


def test_pictures_know_how_many_groups_sums_have():
    assert style.GROUPS == running.GROUPS
    assert style.groups_of({"images": {"batches": 20}}) == 20 and style.groups_of({"images": {"batches": 99}}) == 32
    assert style.groups_of({}) is None
    assert style.groups_of({"images": {"batches": 20}, "protocol": {"repeats": 3}}) == 3


def test_distances_have_normal_intervals_over_images():
    rows = [("vit", "blocks.0", 0, 0, head, 5.0 + head, se, 1, 0, 0) for head, se in enumerate([0.1, 0.2])]
    ax = rs.plots.attention_distance(pd.DataFrame(rows, columns=ATTENTION))
    assert bars(ax) == pytest.approx([0.1 * 1.959964, 0.2 * 1.959964])


@pytest.mark.parametrize("groups, quantile", [(20, 2.093024), (2, 12.706205), (None, 1.959964)])
def test_similarities_have_students_intervals_over_batches(groups, quantile):
    rows = [("vit", "0 1", 5.0 + i, "resnet", "stem", 0, 0, 0.5, se) for i, se in enumerate([0.01, 0.02])]
    ax = rs.plots.head_similarity(pd.DataFrame(rows, columns=HEADS), groups=groups)
    assert bars(ax) == pytest.approx([0.01 * quantile, 0.02 * quantile], rel=1e-5)


@pytest.mark.parametrize("nothing", [np.nan, 0.0])
def test_no_bar_and_no_band_where_nothing_is_known(nothing):
    rows = [("vit", "0 1", 5.0 + i, "resnet", "stem", 0, 0, 0.5, se) for i, se in enumerate([nothing, 0.02])]
    drawn = bars(rs.plots.head_similarity(pd.DataFrame(rows, columns=HEADS), groups=20))
    assert [half for half in drawn if np.isfinite(half)] == pytest.approx([0.02 * 2.093024], rel=1e-5)
    table = pd.DataFrame({"model": "vit", "depth": [0.0, 0.5, 1.0], "found": 1.0, "se": [nothing, 0.1, 0.1]})
    assert band(each_layer(table, groups=3)) == pytest.approx({0.5: 0.43027, 1.0: 0.43027}, rel=1e-4)
    assert band(each_layer(table, groups=1)) == {}


def test_probes_have_students_intervals_with_their_own_degrees_of_freedom():
    rows = [
        ("vit", f"blocks.{i}", i, i / 2, "cls", None, None, 10, 3, 0.5, 0.01, df) for i, df in enumerate([2, 2, 19])
    ]
    halves = band(rs.plots.probes(pd.DataFrame(rows, columns=PROBE_SUMMARY)).axes[0])
    assert list(halves.values()) == pytest.approx([0.043027, 0.043027, 0.0209302], rel=1e-4)


def test_a_result_knows_its_batches(vit, resnet, tmp_path):
    result = rs.head_similarity([vit, resnet], rs.ImageSet(images=32), batch_size=8, layers="layer1.0")
    assert result.record["images"]["batches"] == 4
    ax = result.plot().axes[0]
    half = 3.182446 * result.table.sort_values("distance_px")["cka_se"]
    assert bars(ax) == pytest.approx(half.tolist(), rel=1e-5)
