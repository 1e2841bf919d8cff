"""Heatmaps of similarity between layers (paper, Figures 1 and 2)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from repsim.errors import UsageError, one_of
from repsim.plots.style import SIMILARITY_CMAP, UNDEFINED, Figure, entitle, label, look, named, room, tick_names

MOST_TICKS = 14
INCHES = 3.6


def heatmap(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """CKA of all pairs of layers: within each model and across each two, side by side on one scale.

    Args:
        table: what `layer_cka` returns, or `cka.csv`.
        title: above all panels; None names the models.

    Returns:
        The figure; its axes are the panels and, last, the colour bar. Layers run from the input at the
        origin, outwards. Grey cells are undefined.
    """
    models = list(dict.fromkeys(named(table)["model_a"]))
    pairs = [*((m, m) for m in models), *itertools.combinations(models, 2)]
    return panels(table, pairs, title=title if title is not None else f"Layer similarity: {' and '.join(models)}")


def panels(
    table: pd.DataFrame, pairs: Sequence[tuple[str, str]], *, title: str, quantity: str = "CKA", fitted: bool = False
) -> Figure:
    """Heatmaps of pairs of models (upwards, to the right) side by side, in rows of four, on one scale.

    Args:
        table: as `layer_cka` has it.
        pairs: of its models.
        title: above all panels.
        quantity: what the colours show.
        fitted: the scale begins at the smallest value that is drawn, instead of 0.
    """
    low, high = colour_range(named(table))
    if fitted:
        drawn = table[[pair in pairs for pair in zip(table["model_a"], table["model_b"])]]["cka"]
        low = min(float(drawn.min()), 0.99) if drawn.notna().any() else low
    columns = min(4, len(pairs))
    rows = -(-len(pairs) // columns)
    with look():
        parts = [table[(table["model_a"] == a) & (table["model_b"] == b)] for a, b in pairs]
        width, height = (INCHES + max(room(labelled(part, side)[1]) for part in parts) for side in "ab")
        figure = Figure(figsize=(width * columns + 0.7, height * rows + 0.7), layout="compressed")
        figure.get_layout_engine().set(h_pad=0.09)
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for ax in axes[len(pairs) :]:
            ax.set_axis_off()
        for ax, (down, across) in zip(axes, pairs):
            panel(table, down, across, ax=ax, low=low, high=high)
        figure.colorbar(
            axes[0].collections[0], ax=list(axes), label=quantity, fraction=0.03 if len(pairs) > 1 else 0.05, pad=0.01
        )
        entitle(figure, title)
    return figure


def panel(
    table: pd.DataFrame,
    model_a: str,
    model_b: str,
    *,
    ax: Axes | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Axes:
    """One heatmap: layers of `model_a` upwards, of `model_b` to the right, both from the input on."""
    named(table)
    for model in (model_a, model_b):
        known = dict.fromkeys([*table["model_a"], *table["model_b"]])
        if model not in known:
            raise one_of("model of this table", model, known)
    part = table[(table["model_a"] == model_a) & (table["model_b"] == model_b)]
    if part.empty:
        raise UsageError(f"the table does not compare {model_a} with {model_b}")
    matrix = part.pivot(index="index_a", columns="index_b", values="cka").sort_index().sort_index(axis=1)
    if low is None or high is None:
        low, high = colour_range(part)
    with look():
        if ax is None:
            width, height = (INCHES + room(labelled(part, side)[1]) for side in "ab")
            ax = Figure(figsize=(width + 0.7, height + 0.3)).subplots()
        ax.set_facecolor(UNDEFINED)
        options = {"cbar": False, "rasterized": True, "xticklabels": False, "yticklabels": False}
        sns.heatmap(matrix, ax=ax, vmin=low, vmax=high, cmap=SIMILARITY_CMAP, **options)
        ax.set_box_aspect(1)
        ax.invert_yaxis()
        for axis, side in ((ax.xaxis, "b"), (ax.yaxis, "a")):
            where, names = labelled(part, side)
            tick_names(axis, [i + 0.5 for i in where], names)
        ax.tick_params(axis="x", rotation=90)
        ax.tick_params(axis="y", rotation=0)
        if model_a == model_b:
            title, x, y = f"within {model_a}", "layer", "layer"
        else:
            title, x, y = f"{model_a} against {model_b}", f"layers of {model_b}", f"layers of {model_a}"
        label(ax, title=title, x=x, y=y, inches=INCHES)
    return ax


def labelled(part: pd.DataFrame, side: str) -> tuple[list[int], list[str]]:
    """Positions and names of the layers of `a` or `b` that are named at a panel."""
    layers = part.drop_duplicates(f"index_{side}").sort_values(f"index_{side}").reset_index()
    where = ticks(list(layers[f"kind_{side}"]))
    return where, list(layers[f"layer_{side}"][where])


def ticks(kinds: list[str], most: int = MOST_TICKS) -> list[int]:
    """Positions of at most `most` labels, evenly spaced; where not all fit, outputs of blocks come first."""
    labelled = list(range(len(kinds)))
    if len(kinds) > most and "block" in kinds:
        labelled = [i for i in labelled if kinds[i] in ("block", "stem")]
    return labelled[:: max(1, -(-len(labelled) // most))]


def colour_range(table: pd.DataFrame) -> tuple[float, float]:
    """0 to 1, and further down where an unbiased value is negative."""
    return min(0.0, float(np.nanmin(table["cka"]))) if table["cka"].notna().any() else 0.0, 1.0
