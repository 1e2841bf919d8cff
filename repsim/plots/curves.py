"""Curves over heads, layers and depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from repsim.errors import UsageError
from repsim.plots.style import Figure, entitle, freedom, half_widths, label, legend, literal, look, named, room

PANEL = 3.2
"""Inches of a panel's width."""
SHARES = {"accuracy": (0, 1), "knn_accuracy": (0, 1)}
"""Columns with bounds, and the bounds: no band is drawn beyond them, though an interval may reach there."""


def ends(blocks: list[int], count: int = 2) -> list[int]:
    """The lowest and the highest few of a list of blocks, as the paper draws them."""
    blocks = sorted(blocks)
    return blocks if len(blocks) <= 2 * count else blocks[:count] + blocks[-count:]


def attention_distance(
    table: pd.DataFrame, *, blocks: list[int] | None = None, groups: int | None = None, ax: Axes | None = None
) -> Axes:
    """Mean attention distance of each head, sorted within its block, with its 95 % interval over images (Figure 3).

    Args:
        table: the table of `rs.attention_distance`, or `attention.csv`.
        blocks: which to draw; None: the two lowest and the two highest.
        groups: of images, over which the intervals are; None: they are over images, which are many, and those of the
            normal distribution.
        ax: where to draw.
    """
    present = sorted(named(table)["block"].unique())
    blocks = ends(present) if blocks is None else blocks
    missing = [block for block in blocks if block not in present]
    if missing:
        raise UsageError(f"there is no block {missing[0]}; attention blocks are {present[0]} to {present[-1]}")
    with look():
        if ax is None:
            ax = Figure(figsize=(4, 3)).subplots()
        drawn = []
        for block, colour in zip(blocks, sns.color_palette("viridis", len(blocks))):
            heads = table[table["block"] == block].sort_values("distance_px").reset_index(drop=True)
            points = ax.errorbar(
                heads.index,
                heads["distance_px"],
                yerr=half_widths(heads["distance_px_se"], freedom(groups)),
                color=colour,
                marker="o",
                markersize=3,
                linewidth=1,
                label=f"block {block}",
            )
            drawn.append((points, f"block {block}"))
        ax.set(xlabel="attention head, sorted by distance", ylabel="mean attention distance (px)")
        ax.set_ylim(0, max(ax.get_ylim()[1], 1.06 * table["distance_px"].max()))  # further panels may share the axis
        label(ax, title=table["model"].iloc[0], inches=PANEL)
        ax.xaxis.get_major_locator().set_params(integer=True)  # pyrefly: ignore [unexpected-keyword]  # it is a MaxNLocator
        legend(ax, drawn, ncols=2 if len(blocks) > 6 else 1)
    return ax


def side_by_side(draw: Callable[..., Axes], tables: Sequence[pd.DataFrame], *, title: str) -> Figure:
    """The same curves of several tables, a panel each on shared axes."""
    with look():
        figure = Figure(figsize=(PANEL * len(tables) + 0.3, 3.2))
        axes = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
        for ax, table in zip(axes, tables):
            draw(table, ax=ax)
            ax.label_outer()
        entitle(figure, title)
    return figure


def head_similarity(table: pd.DataFrame, *, groups: int | None = None, ax: Axes | None = None) -> Axes:
    """CKA of windows of heads with lower layers, with 95 % intervals, over the windows' mean distance (Figure 5).

    Args:
        table: of `rs.head_similarity`, or `heads.csv`.
        groups: of minibatches, whose number tells how wide the intervals are; see `half_widths`.
        ax: where to draw.
    """
    layers = list(dict.fromkeys(named(table)["layer_b"]))
    with look():
        if ax is None:
            ax = Figure(figsize=(4, 3)).subplots()
        drawn = []
        for layer, colour in zip(layers, sns.color_palette("viridis", len(layers))):
            part = table[table["layer_b"] == layer].sort_values("distance_px")
            half = half_widths(part["cka_se"], freedom(groups))
            style = {"color": colour, "marker": "o", "markersize": 3, "linewidth": 1}
            drawn.append((ax.errorbar(part["distance_px"], part["cka"], yerr=half, label=layer, **style), layer))
        ax.set(xlabel="mean attention distance of the heads (px)", ylabel="CKA")
        label(ax, title=f"heads of {table['model_a'].iloc[0]}\nagainst {table['model_b'].iloc[0]}", inches=PANEL)
        position = {} if room(layers) else {"loc": "upper left", "bbox_to_anchor": (1, 1)}  # points may be anywhere
        legend(ax, drawn, **position)
    return ax


def over_depth(
    ax: Axes, part: pd.DataFrame, column: str, colour: tuple[float, ...], name: str, df: int | pd.Series | None = None
) -> tuple[Line2D, str]:
    """A column over depth, with a band of 95 % intervals where there are standard errors.

    Args:
        ax: where to draw.
        part: with depth, the column and perhaps se and df, its degrees of freedom.
        column, colour, name: the column that is drawn, its colour, and its name in the legend.
        df: degrees of freedom of all values, where there is no such column; see `half_widths`.

    Returns:
        The line and its name, for a legend.
    """
    part = part.sort_values("depth")
    depth, value = part["depth"], part[column]
    (line,) = ax.plot(depth, value, color=colour, marker="o", markersize=3, linewidth=1, label=name)
    if "se" in part:
        half = half_widths(part["se"], part.get("df", df))
        low, high = ((value + sign * half).clip(*SHARES.get(column, ())) for sign in (-1, 1))
        ax.fill_between(depth, low, high, color=colour, alpha=0.25, linewidth=0)
    ax.set_xlabel("depth (0 first layer, 1 last)")
    return line, name


def _each_over_depth(
    ax: Axes, table: pd.DataFrame, by: str, names: Sequence[str], column: str, groups: int | None
) -> list[tuple[Line2D, str]]:
    """A curve for each network, in a colour of its own; see `over_depth`."""
    colours = zip(names, sns.color_palette("colorblind", len(names)))
    return [over_depth(ax, table[table[by] == name], column, colour, name, freedom(groups)) for name, colour in colours]


def matched(table: pd.DataFrame, *, groups: int | None = None, ax: Axes | None = None) -> Axes:
    """CKA of each layer of a reference with the same layer of other networks, with 95 % intervals (Figure 12).

    Args:
        table: of `rs.matched_cka`, or `matched.csv`.
        groups: of minibatches, whose number tells how wide the intervals are; see `half_widths`.
        ax: where to draw.
    """
    compared = list(dict.fromkeys(named(table)["model_b"]))
    with look():
        if ax is None:
            ax = Figure(figsize=(4, 3)).subplots()
        drawn = _each_over_depth(ax, table, "model_b", compared, "cka", groups)
        ax.set(ylabel="CKA of the same layer", ylim=(min(0, table["cka"].min()), 1.02))
        label(ax, title=f"compared with {table['model_a'].iloc[0]}", inches=PANEL)
        legend(ax, drawn)
    return ax


def each_layer(table: pd.DataFrame, *, groups: int | None = None, ax: Axes | None = None) -> Axes:
    """The first value of a table of layers over depth, a curve per network: for studies without a picture of their own.

    Args:
        table: with columns model, depth, a value and perhaps se, its standard error.
        groups: of batches, whose number tells how wide 95 % intervals are; see `half_widths`.
        ax: where to draw.
    """
    models, value = list(dict.fromkeys(named(table)["model"])), values_of(table)[0]
    with look():
        if ax is None:
            ax = Figure(figsize=(4, 3)).subplots()
        drawn = _each_over_depth(ax, table, "model", models, value, groups)
        ax.set_ylabel(literal(value))
        legend(ax, drawn)
    return ax


def values_of(table: pd.DataFrame) -> list[str]:
    """The columns of a table of layers that hold numbers found of them; none of a table of something else."""
    if not {"model", "depth"} <= set(table):
        return []
    numbers = table.select_dtypes("number").columns
    return [name for name in numbers if name not in ("index", "depth") and name.rpartition("_")[2] != "se"]


def localization_summary(summary: pd.DataFrame, *, groups: int | None = None) -> Figure:
    """How far tokens stand out at their own patch, over depth: interior, edge and corner tokens side by side.

    Args:
        summary: of `rs.token_localization`, or `localization_summary.csv`.
        groups: of minibatches, whose number tells how wide the intervals are; see `half_widths`.

    Returns:
        A panel for each, with a line per model and a band of 95 % intervals.
    """
    present = list(dict.fromkeys(named(summary)["where"]))
    models = list(dict.fromkeys(summary["model"]))
    with look():
        figure = Figure(figsize=(2.4 * len(present) + 0.6, 3))
        axes = figure.subplots(1, len(present), sharey=True, squeeze=False)[0]
        for ax, zone in zip(axes, present):
            ax.axhline(0, color="0.6", linewidth=0.8, linestyle=":")
            rows = summary[summary["where"] == zone]
            drawn = _each_over_depth(ax, rows, "model", models, "own_minus_rest", groups)
            label(ax, title=f"{zone} tokens", inches=PANEL)
            if ax is axes[0]:
                legend(ax, drawn)
        label(axes[0], y="CKA with own patch minus mean of the others", inches=2)
    return figure
