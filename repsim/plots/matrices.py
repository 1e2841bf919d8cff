"""Heatmaps of similarity between layers (paper, Figures 1 and 2)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from repsim.errors import UsageError, one_of
from repsim.plots.style import (
    LOOK,
    SIMILARITY_CMAP,
    UNDEFINED,
    Figure,
    entitle,
    further,
    label,
    look,
    named,
    room,
    tick_names,
)

MOST_TICKS = 14
INCHES = 3.6
"""Of a panel, with what belongs to it."""
SIDE = 2.7
"""Inches of these that its cells take, and so what is written along its sides."""


def heatmap(
    table: pd.DataFrame,
    *,
    pair: tuple[str, str] | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str = SIMILARITY_CMAP,
    title: str | None = None,
) -> Figure:
    """CKA of all pairs of layers: within each model and across each two, side by side on one scale.

    Args:
        table: the table of `layer_cka`, or `cka.csv`, or some of its rows; pairs of models without rows are left out.
        pair: the models of the only panel, upwards and to the right; None: a panel for every pair in the table.
        vmin, vmax: values at the ends of the colours; None: the smallest and the largest value that is drawn.
        cmap: the colours, by a name of matplotlib's.
        title: above all panels; None names the models.

    Returns:
        The figure; its axes are the panels and, last, the colour bar. Layers run from the input at the
        origin, outwards. Grey cells are undefined.

    Raises:
        UsageError: the table has no rows, or none of the pair.
    """
    present = list(dict.fromkeys(zip(named(table)["model_a"], table["model_b"])))
    if not present:
        raise UsageError("the table has no rows, so there is nothing to draw; give one with pairs of layers")
    models = list(dict.fromkeys(name for names in (*zip(*present),) for name in names))
    possible = [*((m, m) for m in models), *itertools.combinations(models, 2)]
    # Each two models stand in the table both ways round, unless rows were taken out.
    pairs = [pair if pair in present else pair[::-1] for pair in possible if {pair, pair[::-1]} & set(present)]
    if pair is not None:
        pairs, models = [tuple(pair)], list(dict.fromkeys(pair))
    title = title if title is not None else f"Layer similarity: {' and '.join(models)}"
    return panels(table, pairs, title=title, vmin=vmin, vmax=vmax, cmap=cmap)


def panels(
    table: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    *,
    title: str,
    quantity: str = "CKA",
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str = SIMILARITY_CMAP,
) -> Figure:
    """Heatmaps of pairs of models (upwards, to the right) side by side, in rows of four, on one scale.

    Args:
        table: as `layer_cka` has it.
        pairs: of its models.
        title: above all panels.
        quantity: the quantity that the colours show.
        vmin, vmax: values at the ends of the colours; None: the smallest and the largest value drawn, as the bar says.
        cmap: the colours.
    """
    low, high = colour_range(named(table)[[pair in pairs for pair in zip(table["model_a"], table["model_b"])]])
    fitted = vmin is None or vmax is None
    low, high = low if vmin is None else vmin, high if vmax is None else vmax
    if not low < high:
        raise UsageError(f"the colours must begin below where they end, got vmin={low:g} and vmax={high:g}")
    heading = f"{quantity}, fitted: {low:.2f} to {high:.2f}" if fitted else quantity
    columns = min(4, len(pairs))
    rows = -(-len(pairs) // columns)
    with look():
        parts = [table[(table["model_a"] == a) & (table["model_b"] == b)] for a, b in pairs]
        width, height = (max(lengths) for lengths in zip(*map(size_of_panel, parts, pairs)))
        width, height = width * columns + 0.7, height * rows + 0.7
        height += further(title, width, LOOK["figure.titlesize"])
        figure = Figure(figsize=(width, height))
        figure.set_layout_engine("compressed", h_pad=0.09)
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for ax in axes[len(pairs) :]:
            ax.set_axis_off()
        for ax, (down, across) in zip(axes, pairs):
            panel(table, down, across, ax=ax, low=low, high=high, cmap=cmap)
        bar = figure.colorbar(
            axes[0].collections[0], ax=list(axes), label=heading, fraction=0.03 if len(pairs) > 1 else 0.05, pad=0.01
        )
        if fitted:  # both ends are read off the bar
            inner = [tick for tick in bar.get_ticks() if low + 0.06 * (high - low) < tick < high - 0.06 * (high - low)]
            bar.set_ticks([low, *inner, high], labels=[f"{tick:.3g}" for tick in (low, *inner, high)])
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
    cmap: str = SIMILARITY_CMAP,
) -> Axes:
    """One heatmap: layers of `model_a` upwards, of `model_b` to the right, both from the input on.

    Args:
        low, high: values at the ends of the colours; None: 0, or a negative smallest value, and 1.
        cmap: the colours.
    """
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
        low, high = paper_range(part)
    with look():
        if ax is None:
            width, height = size_of_panel(part, (model_a, model_b))
            ax = Figure(figsize=(width + 0.7, height + 0.3)).subplots()
        ax.set_facecolor(UNDEFINED)
        options = {"cbar": False, "rasterized": True, "xticklabels": False, "yticklabels": False}
        sns.heatmap(matrix, ax=ax, vmin=low, vmax=high, cmap=cmap, **options)
        ax.set_box_aspect(1)
        ax.invert_yaxis()
        for axis, side in ((ax.xaxis, "b"), (ax.yaxis, "a")):
            positions, names = labelled(part, side)
            tick_names(axis, [i + 0.5 for i in positions], names)
        ax.tick_params(axis="x", rotation=90)
        ax.tick_params(axis="y", rotation=0)
        title, x, y = said_at_panel(model_a, model_b)
        label(ax, title=title, x=x, y=y, inches=SIDE)  # beside the panel there is another, or the colour bar
    return ax


def said_at_panel(model_a: str, model_b: str) -> tuple[str, str, str]:
    """Above a panel, along its foot, and along its side."""
    if model_a == model_b:
        return f"within {model_a}", "layer", "layer"
    return f"{model_a} against {model_b}", f"layers of {model_b}", f"layers of {model_a}"


def size_of_panel(part: pd.DataFrame, pair: tuple[str, str]) -> tuple[float, float]:
    """Width and height of a panel in inches, of which the names of layers and networks take what they need."""
    width, height = (INCHES + room(labelled(part, side)[1]) for side in "ab")
    title, x, y = said_at_panel(*pair)
    size = LOOK["axes.labelsize"]
    return width + further(y, SIDE, size), height + further(title, SIDE, LOOK["axes.titlesize"]) + further(
        x, SIDE, size
    )


def labelled(part: pd.DataFrame, side: str) -> tuple[list[int], list[str]]:
    """Positions and names of the layers of `a` or `b` that are named at a panel."""
    layers = part.drop_duplicates(f"index_{side}").sort_values(f"index_{side}").reset_index()
    positions = ticks(list(layers[f"kind_{side}"]))
    return positions, list(layers[f"layer_{side}"][positions])


def ticks(kinds: list[str], most: int = MOST_TICKS) -> list[int]:
    """Positions of at most `most` labels, evenly spaced; where not all fit, outputs of blocks come first."""
    labelled = list(range(len(kinds)))
    if len(kinds) > most and "block" in kinds:
        labelled = [i for i in labelled if kinds[i] in ("block", "stem")]
    return labelled[:: max(1, -(-len(labelled) // most))]


def colour_range(table: pd.DataFrame) -> tuple[float, float]:
    """The smallest and the largest value; 0 and 1 where there are no values; slightly apart where both are the same."""
    if table["cka"].isna().all():
        return 0.0, 1.0
    low, high = float(table["cka"].min()), float(table["cka"].max())
    return (low, high) if low < high else (low - 0.01, high)


def paper_range(table: pd.DataFrame) -> tuple[float, float]:
    """0 to 1, as figures of the paper have it, and further down where an unbiased value is negative."""
    return min(0.0, colour_range(table)[0]), 1.0
