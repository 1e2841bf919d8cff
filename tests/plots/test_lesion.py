"""Pictures of lesions, read back from their axes."""

import numpy as np
import pandas as pd

import repsim as rs
from repsim.tables import LESION

LAYERS = [("stem", 0, 0.0), ("b.0", 1, 0.5), ("b.1", 2, 1.0)]


def made_up(accuracy: float = 0.5) -> pd.DataFrame:
    rows = [("vit", "nothing", -1, 1.0, 0.0, 0.9, *layer, 1.0, 0.0) for layer in LAYERS]
    for kind, cka in (("block", 0.8), ("mlp skip", -0.1)):
        rows += [("vit", kind, 0, 0.4, 1.0, accuracy, *layer, cka, 0.1) for layer in LAYERS[1:]]
        rows += [("vit", kind, 1, 0.6, 1.0, accuracy, *LAYERS[2], cka, 0.1)]
    return pd.DataFrame(rows, columns=LESION)


def test_curves_and_panels():
    figure = rs.plots.lesion(made_up())
    assert "removed at inference, not trained without" in figure.get_suptitle()
    agreement, accuracy = figure.axes[:2]
    lines = {line.get_label(): list(line.get_ydata()) for line in agreement.get_lines()}
    assert lines["block"] == [0.4, 0.6] and lines["mlp skip"] == [0.4, 0.6]
    assert {line.get_label(): line.get_ydata()[0] for line in accuracy.get_lines()}["untouched"] == 0.9
    panels = {ax.get_title(): ax for ax in figure.axes}
    values = panels["without block"].collections[0].get_array().reshape(2, 2)
    assert values[0, 0] == values[0, 1] == values[1, 1] == 0.8 and np.ma.is_masked(values[1, 0])
    assert panels["without mlp skip"].collections[0].get_clim() == (-0.1, 1)


def test_no_accuracy_is_said():
    figure = rs.plots.lesion(made_up(np.nan).assign(accuracy=np.nan))
    assert [text.get_text() for text in figure.axes[1].texts] == ["not known"]


def test_nothing_removed_can_be_drawn():
    table = made_up()
    assert "nothing was removed" in rs.plots.lesion(table[table.removed == "nothing"]).get_suptitle()
