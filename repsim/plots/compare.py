"""Pictures of many networks at once: matrices with dendrograms, a map, and layers of chosen pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.stats import f

from repsim.errors import UsageError, one_of
from repsim.plots.matrices import panels
from repsim.plots.style import (
    LITERAL,
    SIMILARITY_CMAP,
    UNDEFINED,
    Figure,
    entitle,
    inches_of,
    label,
    legend,
    literal,
    look,
    named,
    room,
    tick_names,
)

INCHES = 2.6
TREE = 0.22
"""Height of a dendrogram, as a share of the height of its matrix."""
MOST = 4
"""Pairs of networks whose layers are drawn, unless they are chosen."""


def networks_matrix(networks: pd.DataFrame) -> Figure:
    """Values of the last layers of all pairs of networks: for each measure a matrix, in the order of a dendrogram.

    Args:
        networks: `networks.csv`, or `compare(...).networks`.

    Returns:
        The figure. Networks are joined by average linkage of 1 - value, of both directions their mean; a measure that
        is undefined for some pair keeps the order of the table and has no dendrogram. Numbers stand in cells of up to
        ten networks.
    """
    measures, models = list(dict.fromkeys(networks["measure"])), list(dict.fromkeys(named(networks)["model_a"]))
    side = max(INCHES, 0.36 * len(models)) + room(models)
    columns = min(3, len(measures))
    rows = -(-len(measures) // columns)
    with look():
        figure = Figure(figsize=(side * columns + 0.6, side * (1 + TREE) * rows + 0.5), layout="constrained")
        subfigures = np.atleast_1d(figure.subfigures(rows, columns, squeeze=False).flatten())
        for part, measure in zip(subfigures, measures):
            tree, cells = part.subplots(2, 1, height_ratios=[TREE, 1])
            chosen = networks[networks["measure"] == measure]
            _matrix(chosen.pivot(index="model_a", columns="model_b", values="last").loc[models, models], tree, cells)
            tree.set_title(f"{measure}", fontsize=9)
        entitle(figure, "Similarity of last layers")
    return figure


def _matrix(values: pd.DataFrame, tree: Axes, cells: Axes) -> None:
    both = values.to_numpy(copy=True)
    np.fill_diagonal(both, 1.0)
    tree.set_axis_off()
    if len(both) > 2 and not np.isnan(both).any():
        apart = np.clip(1 - (both + both.T) / 2, 0, None)
        joined = linkage(apart[np.triu_indices(len(apart), 1)], "average", optimal_ordering=True)
        order = dendrogram(joined, ax=tree, no_labels=True, color_threshold=0, above_threshold_color="0.3")["leaves"]
        both, names = both[np.ix_(order, order)], [values.index[k] for k in order]
    else:
        names = list(values.index)
    off_diagonal = both[~np.eye(len(both), dtype=bool)]
    low = float(np.nanmin(off_diagonal)) if np.isfinite(off_diagonal).any() else 0.0
    cells.set_facecolor(UNDEFINED)
    options: dict[str, Any] = {"cbar": False, "xticklabels": False, "yticklabels": False, "square": False}
    if len(names) <= 10:
        options |= {"annot": True, "fmt": ".2f", "annot_kws": {"fontsize": 6}}
    sns.heatmap(both, ax=cells, vmin=min(low, 0.99), vmax=1.0, cmap=SIMILARITY_CMAP, **options)
    for axis in (cells.xaxis, cells.yaxis):
        tick_names(axis, [k + 0.5 for k in range(len(names))], names)
    cells.tick_params(axis="x", rotation=90)
    cells.tick_params(axis="y", rotation=0)


def networks_map(table: pd.DataFrame) -> Figure:
    """Where networks are on a map of the angles between their last layers, with 95 % ellipses.

    Args:
        table: `networks_map.csv`, or `compare(...).networks_map`.

    Returns:
        The figure: a panel for each measure whose values are all defined. Only distances mean something: a map may
        be turned and mirrored. Its stress says how much of them it cannot show (0.05 good, 0.2 poor).
    """
    known = named(table).dropna(subset=["x", "y"])
    measures = list(dict.fromkeys(known["measure"]))
    if not measures:
        raise UsageError("no measure is defined for all pairs of networks, so there is nothing to map")
    columns = min(3, len(measures))
    rows = -(-len(measures) // columns)
    with look():
        figure = Figure(figsize=((INCHES + 0.6) * columns, (INCHES + 0.5) * rows + 0.4), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for ax in axes[len(measures) :]:
            ax.set_axis_off()
        colours = dict(zip(dict.fromkeys(table["model"]), sns.color_palette("husl", table["model"].nunique())))
        has_room = all(inches_of(literal(model), 7) <= INCHES / 2 for model in colours)
        for ax, measure in zip(axes, measures):
            chosen = known[known["measure"] == measure]
            for row in chosen.itertuples():
                ax.plot(row.x, row.y, "o", color=colours[row.model], markersize=4)
                if (ellipse := _ellipse(row)) is not None:
                    ax.add_patch(ellipse)
                    ellipse.set_facecolor((*colours[row.model], 0.25))
                if not has_room:
                    continue
                right = row.x > chosen["x"].mean()  # towards the middle, where there is room
                alignment = {"xytext": (-4 if right else 4, 4), "ha": "right" if right else "left"}
                ax.annotate(row.model, (row.x, row.y), textcoords="offset points", fontsize=7, **alignment, **LITERAL)
            ax.set_aspect("equal", adjustable="datalim")
            ax.margins(0.25)
            label(ax, title=f"{measure}, stress {chosen['stress'].iloc[0]:.2f}", x="radians", inches=INCHES)
        if not has_room:  # long names would lie over each other
            points = (
                Line2D([], [], marker="o", linestyle="", markersize=4, color=colour) for colour in colours.values()
            )
            legend(figure, zip(points, colours), loc="outside lower center")
        entitle(figure, "Map of networks: angles between last layers")
    return figure


def _ellipse(row: Any) -> Ellipse | None:
    """The 95 % region of a position; None where its error is not known."""
    covariance = np.array([[row.x_se**2, row.xy_cov], [row.xy_cov, row.y_se**2]])
    if not np.isfinite(covariance).all() or row.df < 2:
        return None
    values, vectors = np.linalg.eigh(covariance)
    scale = 2 * row.df / (row.df - 1) * f.ppf(0.95, 2, row.df - 1)  # Hotelling's
    width, height = 2 * np.sqrt(np.clip(values, 0, None) * scale)
    angle = np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0]))
    return Ellipse((row.x, row.y), width, height, angle=angle, edgecolor="0.3", linewidth=0.5)


def layer_matrices(table: pd.DataFrame, pairs: Sequence[tuple[str, str]] | None = None) -> dict[str, Figure]:
    """Values of all pairs of layers, for each measure a row of panels.

    Args:
        table: `compare.csv`, or the table of `compare`.
        pairs: of networks; None: the first with each of the next ones.

    Returns:
        Name of a measure -> its figure.
    """
    models = list(dict.fromkeys(named(table)["model_a"]))
    for name in (model for pair in pairs or () for model in pair):
        if name not in models:
            raise one_of("network of this table", name, models)
    chosen = list(pairs) if pairs else [(models[0], other) for other in models[1 : MOST + 1]] or [(models[0],) * 2]
    figures = {}
    for measure, rows in table.groupby("measure", sort=False):
        drawn = rows[[pair in chosen for pair in zip(rows["model_a"], rows["model_b"])]]["value"]
        low = min(float(drawn.min()), 0.99) if drawn.notna().any() else 0.0
        rows = rows.rename(columns={"value": "cka"})
        figures[measure] = panels(rows, chosen, title=f"Layers by {measure}", quantity=measure, vmin=low, vmax=1.0)
    return figures
