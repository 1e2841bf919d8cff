"""Skip connections against branches: heatmaps block x token, and curves over depth (paper, Figures 7, E.1, E.2)."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from repsim.errors import UsageError
from repsim.plots.style import Figure, entitle, look

RATIO_CMAP = "viridis"
NAMES = {"unit": "unit", "mlp": "MLP"}


def residual(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """The norm ratio of every block and token, where blocks share their tokens; ratio and cosine over depth.

    Args:
        table: of `rs.residual_norms`, or `residual.csv`.
        title: above the figure.

    Returns:
        The figure: heatmaps (ratio, logarithmic colours) above, curves below: norm ratio and cos(z, z + f), each
        a mean over the tokens before the grid (CLS; dashed) or over positions.
    """
    table = table.assign(token=table["token"].astype(str))
    shown = list(_heatmaps(table))
    with look():
        figure = Figure(figsize=(7.2, 2.9 + (2.6 if shown else 0)))
        if shown:
            above, below = figure.subfigures(2, 1, height_ratios=[2.6, 2.9])
            _draw_heatmaps(above, shown)
        else:
            below = figure
        left, right = below.subplots(1, 2)
        curves(table, "ratio", ax=left)
        curves(table, "cos_output", ax=right)
        _legend(below, left)
        entitle(figure, title)
    return figure


def norm_ratios(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """The norm ratio of every block and token, a row of panels per network (Figure E.1); see `residual`.

    Raises:
        UsageError: no network's blocks share their tokens.
    """
    table = table.assign(token=table["token"].astype(str))
    shown = list(_heatmaps(table))
    if not shown:
        raise UsageError("the norm ratio of every token is drawn of networks whose blocks all have the same tokens")
    rows = len({title.partition(": ")[0] for title, _ in shown})
    with look():
        figure = Figure(figsize=(7.2, 2.6 * rows + 0.4))
        _draw_heatmaps(figure, shown, rows=rows)
        entitle(figure, title)
    return figure


def cosines(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """The cosine of skip and residual sum over depth (Figure E.2); see `residual`."""
    with look():
        figure = Figure(figsize=(4.2, 3.6))
        _legend(figure, curves(table.assign(token=table["token"].astype(str)), "cos_output", ax=figure.subplots()))
        entitle(figure, title)
    return figure


def _legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    inches = 0.6 + max(map(len, labels), default=0) / 15  # characters of a legend per inch
    columns = max(1, int(figure.bbox.width / figure.dpi / inches))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def _draw_heatmaps(figure: Figure, shown: list[tuple[str, pd.DataFrame]], rows: int = 1) -> None:
    """Side by side on one scale of colours."""
    axes = figure.subplots(rows, -(-len(shown) // rows), squeeze=False).flatten()
    positive = np.concatenate([m.to_numpy().ravel() for _, m in shown])
    positive = positive[np.isfinite(positive) & (positive > 0)]
    norm = LogNorm(positive.min(), positive.max()) if len(positive) else None
    for ax, (title, matrix) in zip(axes, shown):
        heatmap(matrix, ax, title, norm)
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    figure.colorbar(axes[0].collections[0], ax=list(axes), label="‖skip‖ / ‖branch‖", fraction=0.03, pad=0.01)


def _heatmaps(table: pd.DataFrame):
    """(title, block x token matrix) of each sublayer of networks whose blocks all have the same tokens."""
    for (model, sublayer), part in table.groupby(["model", "sublayer"], sort=False):
        tokens = part.groupby("block")["token"].agg(tuple)
        if tokens.nunique() == 1 and len(tokens) > 1:
            matrix = part.pivot(index="block", columns="token", values="ratio")[list(tokens.iloc[0])]
            yield f"{model}: {NAMES.get(sublayer, sublayer)}", matrix


def heatmap(matrix: pd.DataFrame, ax: Axes, title: str, norm: LogNorm | None) -> None:
    """Blocks upwards, tokens to the right, those before the grid first."""
    options = {"cbar": False, "rasterized": True, "xticklabels": False, "yticklabels": False}
    sns.heatmap(matrix, ax=ax, norm=norm, cmap=RATIO_CMAP, **options)
    ax.invert_yaxis()
    step = -(-len(matrix) // 12)
    ax.set_yticks([i + 0.5 for i in range(0, len(matrix), step)], matrix.index[::step])
    step, before = -(-matrix.shape[1] // 8), sum(not str(token).isdigit() for token in matrix.columns)
    shown = [*range(min(before, 1)), *range(before + (step if before and step > 1 else 0), matrix.shape[1], step)]
    ax.set_xticks([i + 0.5 for i in shown], matrix.columns[shown])
    ax.tick_params(axis="both", rotation=0)
    ax.set(xlabel="token", ylabel="block", title=title)


def curves(table: pd.DataFrame, column: Literal["ratio", "cos_output"], *, ax: Axes) -> Axes:
    """A column over relative depth: one line per network, sublayer, and CLS or positions."""
    place = np.where(table["token"].str.fullmatch(r"\d+"), "positions", table["token"])
    groups = table.assign(place=place).query("place in ['positions', 'cls']")
    keys = groups[["model", "sublayer"]].drop_duplicates()
    colours = dict(zip(map(tuple, keys.to_numpy()), sns.color_palette("colorblind", len(keys))))
    markers = dict(zip(dict.fromkeys(keys["model"]), itertools.cycle("os^Dv")))
    for (model, sublayer, where), part in groups.groupby(["model", "sublayer", "place"], sort=False):
        mean = part.groupby("block")[column].mean()
        last = max(table.loc[table["model"] == model, "block"].max(), 1)
        ax.plot(
            mean.index / last,
            mean,
            color=colours[model, sublayer],
            linestyle="--" if where == "cls" else "-",
            marker=markers[model],
            markersize=3,
            linewidth=1,
            label=f"{model}, {NAMES.get(sublayer, sublayer)}" + (", CLS" if where == "cls" else ""),
        )
    ax.set(xlabel="relative depth of the block")
    if column == "ratio":
        ax.set(ylabel="‖skip‖ / ‖branch‖, mean over tokens", yscale="log")
        ax.axhline(1, color="0.6", linewidth=0.8, zorder=0)
    else:
        ax.set(ylabel="cos(skip, skip + branch)")
    return ax
