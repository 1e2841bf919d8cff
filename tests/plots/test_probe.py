"""Pictures of probes, read back from their axes."""

import numpy as np
import pandas as pd
import pytest

import repsim as rs
from repsim.tables import NEIGHBOURS, PROBE, PROBE_SUMMARY


def summary(*aggregations, model="vit", shots=10):
    rows = [
        (model, f"blocks.{i}", i, i / 2, aggregation, None, None, shots, 3, 0.1 * i + 0.2, 0.01, 2)
        for aggregation in aggregations
        for i in range(3)
    ]
    return pd.DataFrame(rows, columns=PROBE_SUMMARY)


def tokens(shots=(10,)):
    rows = [
        ("vit", f"blocks.{i}", i, i / 2, "token", row, column, count, seed, 1.0, (row + i) / 10 + seed / 100)
        for count in shots
        for seed in (0, 1)
        for i in range(3)
        for row in range(2)
        for column in range(2)
    ]
    return pd.DataFrame(rows, columns=PROBE)


def test_a_panel_per_model_and_number_of_shots():
    table = pd.concat([summary("cls", "mean"), summary("first", model="resnet"), summary("cls", shots="all")])
    figure = rs.plots.probes(table)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["vit, 10 per class", "resnet, 10 per class", "vit, all images", "resnet, all images"]
    (line, _) = figure.axes[0].get_lines()
    np.testing.assert_allclose(line.get_ydata(), [0.2, 0.3, 0.4])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["CLS", "mean of all tokens", "first token"]


def test_models_compared_in_one_panel():
    (ax,) = rs.plots.compared(pd.concat([summary("cls"), summary("spatial_mean", model="resnet")]), title="t").axes
    assert [line.get_label() for line in ax.get_lines()] == ["vit", "resnet"]


def test_maps_of_single_tokens_are_means_over_seeds_of_the_most_shots():
    figure = rs.plots.probe_tokens(tokens(shots=(1, 25)))
    drawn = [ax for ax in figure.axes if ax.images]
    np.testing.assert_allclose(drawn[1].images[0].get_array(), 100 * np.array([[0.105, 0.105], [0.205, 0.205]]))
    assert drawn[1].get_title() == "vit\nblocks.1\n10.5 to 20.5 %" and "25 per class" in figure.get_suptitle()
    with pytest.raises(rs.UsageError, match="no single tokens"):
        rs.plots.probe_tokens(tokens().assign(aggregation="cls"))


def test_neighbours_above_and_soft_loss_below():
    rows = [("vit", f"blocks.{i}", i, i / 2, "cls", 100, 10, 0.5, 0.01, 1.0 - 0.1 * i, 0.02, 3.0) for i in range(3)]
    figure = rs.plots.neighbours(pd.DataFrame(rows, columns=NEIGHBOURS))
    above, below = figure.axes
    assert above.get_ylabel() == "accuracy of 10 nearest neighbours" and "nats" in below.get_ylabel()
    np.testing.assert_allclose(below.get_lines()[0].get_ydata(), [1.0, 0.9, 0.8])
