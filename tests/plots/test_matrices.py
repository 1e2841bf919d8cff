"""Heatmaps, read back from their axes."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import repsim as rs
from repsim.plots.matrices import ticks


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
    assert len({ax.collections[0].get_clim() for ax in panels}) == 1 and bar.get_ylabel() == "CKA"
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
    assert ax.collections[0].get_clim() == (-0.05, 1)
    assert ax.collections[0].get_array().reshape(-1).mask[1]


def test_unknown_model():
    with pytest.raises(rs.UsageError, match="unknown model of this table 'vut'; did you mean 'vit'"):
        rs.plots.panel(made_up({"vit": 3}), "vut", "vit")
