"""Pictures of localization, read back from their axes."""

import numpy as np
import pandas as pd
import pytest

import repsim as rs
from repsim.studies.token_tables import PAPER_TOKENS, paper_tokens
from repsim.tables import LOCALIZATION, LOCALIZATION_SUMMARY


def made_up(models: dict[str, int], side: int) -> pd.DataFrame:
    """A table of CKA 0.01 * token + 0.001 * patch, with tokens at twice the patch's row and column plus one."""
    rows = [
        (model, f"blocks.{i}", i, i / (layers - 1), 2 * r + 1, 2 * c + 1, *divmod(patch, side), value, 0.01, 0)
        for model, layers in models.items()
        for i in range(layers)
        for r in range(side)
        for c in range(side)
        for patch in range(side**2)
        for value in [0.01 * (r * side + c) + 0.001 * patch - 0.05 * i]
    ]
    return pd.DataFrame(rows, columns=LOCALIZATION)


def test_the_papers_tokens_of_the_last_layer():
    figure = rs.plots.localization(made_up({"vit": 3, "resnet": 2}, 7))
    *panels, bar = figure.axes
    assert len(panels) == 8 and bar.get_ylabel() == "CKA"
    assert [ax.get_ylabel() for ax in panels[::4]] == ["vit\nblocks.2", "resnet\nblocks.1"]
    for ax, (row, column) in zip(panels[:4], [(0, 0), (2, 1), (4, 2), (4, 4)]):
        token = row * 7 + column
        expected = 0.01 * token + 0.001 * np.arange(49).reshape(7, 7) - 0.1
        assert np.allclose(ax.images[0].get_array(), expected)
        assert ax.get_title() == f"token ({2 * row + 1}, {2 * column + 1}): {expected[row, column]:.2f}"
        (outline,) = ax.patches
        assert outline.get_xy() == (column - 0.5, row - 0.5) and not outline.get_fill()


def test_one_scale_that_clips_nothing():
    table = made_up({"vit": 2, "resnet": 2}, 7)
    panels = rs.plots.localization(table).axes[:-1]
    values = np.array([ax.images[0].get_array() for ax in panels])
    assert {ax.images[0].get_clim() for ax in panels} == {(values.min(), values.max())} and values.min() < 0


def test_tokens_and_layer_of_choice():
    figure = rs.plots.localization(made_up({"vit": 3, "resnet": 2}, 4), tokens=[(3, 1)], layer="blocks.2")
    ax, _ = figure.axes
    assert ax.get_ylabel() == "vit\nblocks.2" and ax.images[0].get_array()[0, 0] == pytest.approx(0.13 - 0.1)


def test_undefined_patches_are_left_grey():
    table = made_up({"vit": 2}, 7)
    table.loc[table.patch_row == 0, "cka"] = np.nan
    ax = rs.plots.localization(table).axes[0]
    assert ax.images[0].get_array().mask[0].all() and not ax.images[0].get_array().mask[1:].any()
    table["cka"] = np.nan
    rs.plots.localization(table)


def test_grids_of_the_paper_and_others():
    assert paper_tokens(14, 14) == PAPER_TOKENS[14] == [(0, 0), (2, 3), (2, 7), (4, 5)]
    assert paper_tokens(16, 16) == [(0, 0), (2, 5), (5, 10), (5, 11)]
    assert paper_tokens(28, 28) == [(2, 2), (10, 6), (18, 10), (18, 18)]
    assert paper_tokens(1, 2) == [(0, 0), (0, 1)]


def test_bad_choices():
    table = made_up({"vit": 2}, 3)
    with pytest.raises(rs.UsageError, match="unknown layer of this table 'blocks.7'; did you mean 'blocks"):
        rs.plots.localization(table, layer="blocks.7")
    with pytest.raises(rs.UsageError, match=r"there is no token \(3, 0\): vit has 3 x 3"):
        rs.plots.localization(table, tokens=[(3, 0)])


def test_summary_has_a_panel_per_place_and_a_line_per_model():
    rows = [
        (model, f"blocks.{i}", i, i / 3, place, 0.1 * i - shift, 0.02)
        for model, shift in (("vit", 0), ("resnet", 0.2))
        for i in range(4)
        for place in ("interior", "edge", "corner")
    ]
    axes = rs.plots.localization_summary(pd.DataFrame(rows, columns=LOCALIZATION_SUMMARY)).axes
    assert [ax.get_title() for ax in axes] == ["interior tokens", "edge tokens", "corner tokens"]
    zero, vit, resnet = axes[0].lines
    assert list(zero.get_ydata()) == [0, 0] and [vit.get_label(), resnet.get_label()] == ["vit", "resnet"]
    assert np.allclose(resnet.get_xdata(), np.arange(4) / 3) and np.allclose(resnet.get_ydata(), [-0.2, -0.1, 0, 0.1])
    band = axes[0].collections[1].get_paths()[0].vertices
    half = 1.959964 * 0.02
    assert band[:, 1].min() == pytest.approx(-0.2 - half) and band[:, 1].max() == pytest.approx(0.1 + half)
    assert "own patch" in axes[0].get_ylabel() and "depth" in axes[0].get_xlabel()
