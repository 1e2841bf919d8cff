"""Heatmaps, read back from their axes."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import repsim as rs
from repsim.plots.matrices import paper_range, ticks


def made_up(models: dict[str, int]) -> pd.DataFrame:
    """A table whose value is 0.1 * index_a + 0.01 * index_b."""
    sides = [(name, f"{name}.{i}", "block", i, i / (count - 1)) for name, count in models.items() for i in range(count)]
    rows = [(*a, *b, 0.1 * a[3] + 0.01 * b[3], 0.01, 0) for a in sides for b in sides]
    from repsim.tables import SIMILARITY

    return pd.DataFrame(rows, columns=SIMILARITY)


def test_three_panels_on_one_scale():
    figure = rs.plots.heatmap(made_up({"vit": 4, "resnet": 6}))
    assert isinstance(figure, Figure)
    *panels, bar = figure.axes
    assert [ax.get_title() for ax in panels] == ["within vit", "within resnet", "vit against resnet"]
    assert len({ax.collections[0].get_clim() for ax in panels}) == 1 and bar.get_ylabel() == "CKA, fitted: 0.00 to 0.55"
    across = panels[2]
    values = across.collections[0].get_array().reshape(4, 6)
    assert np.allclose(values, 0.1 * np.arange(4)[:, None] + 0.01 * np.arange(6))
    assert across.get_ylabel() == "layers of vit" and across.get_xlabel() == "layers of resnet"


def test_the_origin_is_low_and_ticks_name_layers():
    ax = rs.plots.panel(made_up({"vit": 4}), "vit", "vit")
    low, high = ax.get_ylim()
    assert low < high
    assert [label.get_text() for label in ax.get_yticklabels()] == ["vit.0", "vit.1", "vit.2", "vit.3"]
    assert ax.get_yticks()[0] == 0.5


def test_many_layers_have_few_ticks():
    assert ticks(["norm"] * 145)[:3] == [0, 11, 22] and len(ticks(["norm"] * 145)) == 14
    assert ticks(["norm"] * 3) == [0, 1, 2]
    within_blocks = ["stem", *["norm", "mlp", "block"] * 6]
    assert ticks(within_blocks) == [0, 3, 6, 9, 12, 15, 18]


def test_negative_and_undefined_values():
    table = made_up({"vit": 3})
    table.loc[0, "cka"], table.loc[1, "cka"] = -0.05, np.nan
    ax = rs.plots.heatmap(table).axes[0]
    assert ax.collections[0].get_clim() == (-0.05, pytest.approx(0.22)) and paper_range(table) == (-0.05, 1)
    assert ax.collections[0].get_array().reshape(-1).mask[1]


def test_unknown_model():
    with pytest.raises(rs.UsageError, match="unknown model of this table 'vut'; did you mean 'vit'"):
        rs.plots.panel(made_up({"vit": 3}), "vut", "vit")


def test_some_rows_draw_the_pairs_that_are_there():
    table = made_up({"vit": 4, "resnet": 6, "mixer": 3})
    titles = lambda figure: [ax.get_title() for ax in figure.axes[:-1]]  # noqa: E731
    across = rs.plots.heatmap(table[table["model_a"] != table["model_b"]])
    assert titles(across) == ["vit against resnet", "vit against mixer", "resnet against mixer"]
    assert titles(rs.plots.heatmap(table[table["model_a"] == "mixer"])) == [
        "within mixer",
        "mixer against vit",
        "mixer against resnet",
    ]
    with pytest.raises(rs.UsageError, match="the table has no rows"):
        rs.plots.heatmap(table[:0])


def test_one_pair_and_its_colours():
    table = made_up({"vit": 4, "resnet": 6})
    figure = rs.plots.heatmap(table, pair=("resnet", "vit"))
    ax, bar = figure.axes
    assert ax.get_title() == "resnet against vit" and ax.collections[0].get_clim() == (0, pytest.approx(0.53))
    assert bar.get_ylabel() == "CKA, fitted: 0.00 to 0.53"
    assert bar.get_yticks()[[0, -1]].tolist() == [0, pytest.approx(0.53)]
    within, bar = rs.plots.heatmap(table, pair=("vit", "vit"), vmin=0, vmax=1, cmap="viridis").axes
    assert within.collections[0].get_clim() == (0, 1) and within.collections[0].get_cmap().name == "viridis"
    assert bar.get_ylabel() == "CKA"
    with pytest.raises(rs.UsageError, match="begin below where they end, got vmin=0.9 and vmax=0.33"):
        rs.plots.heatmap(table, pair=("vit", "vit"), vmin=0.9)
    with pytest.raises(rs.UsageError, match="unknown model of this table 'vut'"):
        rs.plots.heatmap(table, pair=("vut", "vit"))


def test_the_picture_says_its_images():
    images = rs.ImageSet("sample", images=100, split="train")
    figure = rs.layer_cka("vit_mini", images, layers=["blocks.0", "blocks.5"], batch_size=50).plot()
    assert figure.get_supxlabel() == "100 images of sample, train"
    assert made_up_result().plot().get_supxlabel() == ""


def made_up_result():
    """A result without a record."""
    return rs.Result("cka", made_up({"vit": 4}))


def test_titles_end_before_the_colour_bar():
    figure = rs.plots.heatmap(made_up({"efficientnet_lite0.ra_in1k": 9, "vit_small_patch14_dinov2.lvd142m": 9}))
    figure.draw_without_rendering()
    *panels, bar = figure.axes
    for ax, other in zip(panels, figure.axes[1:]):
        assert ax.title.get_window_extent().x1 < other.get_window_extent().x0
