"""Pictures of norm ratios and cosines, read back from their axes."""

import numpy as np
import pandas as pd
import pytest

import repsim as rs
from repsim.tables import RESIDUAL


def made_up(model: str, sublayers: list[str], tokens: list[list[str]]) -> pd.DataFrame:
    """A table with a row per block, sublayer and token; the ratio is 1 + block + the token's place / 100."""
    rows = [
        (model, f"b.{b}", b / (len(tokens) - 1), b, sublayer, token, 1 + b + place / 100, 0.1, 1.0, 0.9, 0.1, 1.0, 1.0)
        for b, names in enumerate(tokens)
        for sublayer in sublayers
        for place, token in enumerate(names)
    ]
    return pd.DataFrame(rows, columns=RESIDUAL)


@pytest.fixture
def table():
    vit = made_up("vit", ["attention", "mlp"], [["cls", "0", "1", "2", "3"]] * 3)
    resnet = made_up("resnet", ["unit"], [["0", "1", "2", "3"], ["0"]])
    return pd.concat([vit, resnet], ignore_index=True)


def test_heatmaps_hold_the_ratios_with_cls_first(table):
    figure = rs.plots.residual(table)
    attention, mlp, bar, ratio, cosine = figure.axes
    assert [ax.get_title() for ax in (attention, mlp)] == ["vit: attention", "vit: MLP"]
    values = attention.collections[0].get_array().reshape(3, 5)
    np.testing.assert_allclose(values, [[1 + b + t / 100 for t in range(5)] for b in range(3)])
    assert [label.get_text() for label in attention.get_xticklabels()] == ["cls", "0", "1", "2", "3"]
    assert attention.get_ylim() == (0, 3)  # block 0 below


def test_curves_are_means_over_tokens_and_tell_cls_apart(table):
    *_, ratio, cosine = rs.plots.residual(table).axes
    lines = {line.get_label(): line for line in ratio.get_lines()}
    assert {"vit, attention", "vit, attention, CLS", "vit, MLP", "vit, MLP, CLS", "resnet, unit"} < set(lines)
    np.testing.assert_allclose(lines["vit, attention"].get_ydata(), [1.025, 2.025, 3.025])
    np.testing.assert_allclose(lines["vit, attention, CLS"].get_ydata(), [1, 2, 3])
    np.testing.assert_allclose(lines["vit, MLP"].get_xdata(), [0, 0.5, 1])
    np.testing.assert_allclose(lines["resnet, unit"].get_ydata(), [1.015, 2])


def test_a_network_of_maps_has_curves_only():
    figure = rs.plots.residual(made_up("resnet", ["unit"], [["0", "1"], ["0"]]))
    assert len(figure.axes) == 2


def test_an_infinite_ratio_can_be_drawn(table):
    table.loc[0, "ratio"] = np.inf
    rs.plots.residual(table).canvas.draw()


def test_any_number_of_networks():
    many = pd.concat([made_up(f"net{i}", ["unit"], [["0", "1"], ["0"]]) for i in range(7)])
    ratio = rs.plots.residual(many).axes[0]
    assert {f"net{i}, unit" for i in range(7)} <= {line.get_label() for line in ratio.get_lines()}


def test_norm_ratios_have_a_row_of_panels_for_each_network(table):
    other = made_up("deit", ["attention", "mlp"], [["cls", *map(str, range(20))]] * 2)
    figure = rs.plots.norm_ratios(pd.concat([table, other]), title="ratios")
    *panels, bar = figure.axes
    assert [ax.get_title() for ax in panels] == ["vit: attention", "vit: MLP", "deit: attention", "deit: MLP"]
    assert [label.get_text() for label in panels[2].get_xticklabels()] == ["cls", "3", "6", "9", "12", "15", "18"]
    assert figure.get_suptitle() == "ratios"
    with pytest.raises(rs.UsageError, match="blocks all have the same tokens"):
        rs.plots.norm_ratios(table[table["model"] == "resnet"])


def test_cosines_are_curves_alone(table):
    (ax,) = rs.plots.cosines(table).axes
    assert {line.get_label() for line in ax.get_lines()} >= {"vit, attention, CLS", "resnet, unit"}
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), [0.9] * 3)
