"""Skip connections against branches: heatmaps block x token, and curves over depth (paper, Figures 7, E.1, E.2)."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D

from repsim.errors import UsageError
from repsim.plots.style import LOOK, Figure, entitle, figure_of, inches_of, label, legend, look, named, tick_names

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
    table = named(table).assign(token=table["token"].astype(str))
    shown = list(_heatmaps(table))
    with look():
        figure = Figure(figsize=(7.2, 2.9 + (2.6 if shown else 0)))
        if shown:
            above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[2.6, 2.9])[:, 0]
            _draw_heatmaps(above, shown)
        else:
            below = figure
        left, right = below.subplots(1, 2)
        drawn = curves(table, "ratio", ax=left)
        curves(table, "cos_output", ax=right)
        _legend(below, drawn)
        entitle(figure, title)
    return figure


def share_tokens(table: pd.DataFrame) -> bool:
    """Whether all blocks of at least one network have the same tokens, so that a heatmap can show them."""
    return next(_heatmaps(named(table).assign(token=table["token"].astype(str))), None) is not None


def norm_ratios(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """The norm ratio of every block and token, a row of panels per network (Figure E.1); see `residual`.

    Raises:
        UsageError: no network's blocks share their tokens.
    """
    table = named(table).assign(token=table["token"].astype(str))
    shown = list(_heatmaps(table))
    if not shown:
        raise UsageError(
            "the norm ratio of every token needs a network whose blocks all have the same tokens, and there is none"
        )
    rows = len({model for model, _, _ in shown})
    with look():
        figure = Figure(figsize=(7.2, 2.6 * rows + 0.4))
        _draw_heatmaps(figure, shown, rows=rows)
        entitle(figure, title)
    return figure


def cosines(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """The cosine of skip and residual sum over depth (Figure E.2); see `residual`."""
    table = named(table).assign(token=table["token"].astype(str))
    with look():
        figure = Figure(figsize=(4.2, 3.6))
        _legend(figure, curves(table, "cos_output", ax=figure.subplots()))
        entitle(figure, title)
    return figure


def _legend(figure: Figure | SubFigure, drawn: list[tuple[Line2D, str]]) -> None:
    """Write a legend below the curves; the figure grows by the height of every line beyond six."""
    longest = max((inches_of(name, LOOK["font.size"]) for _, name in drawn), default=0)
    columns = max(1, int(figure.bbox.width / figure.dpi / (0.6 + longest)))
    legend(figure, drawn, loc="outside lower center", ncols=columns)
    whole = figure_of(figure)
    width, height = whole.get_size_inches()
    lines = sum(text.get_text().count("\n") + 1 for box in figure.legends for text in box.get_texts())
    high = -(-lines // columns)
    whole.set_size_inches(width, height + 0.16 * max(high - 6, 0) * whole.bbox.height / figure.bbox.height)


def _draw_heatmaps(figure: Figure, shown: list[tuple[str, str, pd.DataFrame]], rows: int = 1) -> None:
    """Side by side on one scale of colours."""
    columns = -(-len(shown) // rows)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    positive = np.concatenate([matrix.to_numpy().ravel() for *_, matrix in shown])
    positive = positive[np.isfinite(positive) & (positive > 0)]
    norm = LogNorm(positive.min(), positive.max()) if len(positive) else None
    for ax, (model, sublayer, matrix) in zip(axes, shown):
        heatmap(matrix, ax, norm)
        label(ax, title=f"{model}: {sublayer}", inches=5.4 / columns)
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    figure.colorbar(axes[0].collections[0], ax=list(axes), label="‖skip‖ / ‖branch‖", fraction=0.03, pad=0.01)


def _heatmaps(table: pd.DataFrame):
    """(network, sublayer, block x token matrix) of networks whose blocks all have the same tokens."""
    for (model, sublayer), part in table.groupby(["model", "sublayer"], sort=False):
        tokens = part.groupby("block")["token"].agg(tuple)
        if tokens.nunique() == 1 and len(tokens) > 1:
            matrix = part.pivot(index="block", columns="token", values="ratio")[list(tokens.iloc[0])]
            yield model, NAMES.get(sublayer, sublayer), matrix


def heatmap(matrix: pd.DataFrame, ax: Axes, norm: LogNorm | None) -> None:
    """Blocks upwards, tokens to the right, those before the grid first."""
    options = {"cbar": False, "rasterized": True, "xticklabels": False, "yticklabels": False}
    sns.heatmap(matrix, ax=ax, norm=norm, cmap=RATIO_CMAP, **options)
    ax.invert_yaxis()
    step = -(-len(matrix) // 12)
    ax.set_yticks([i + 0.5 for i in range(0, len(matrix), step)], matrix.index[::step])
    step, before = -(-matrix.shape[1] // 8), sum(not str(token).isdigit() for token in matrix.columns)
    shown = [*range(min(before, 1)), *range(before + (step if before and step > 1 else 0), matrix.shape[1], step)]
    tick_names(ax.xaxis, [i + 0.5 for i in shown], matrix.columns[shown])
    ax.tick_params(axis="both", rotation=0)
    ax.set(xlabel="token", ylabel="block")


def curves(table: pd.DataFrame, column: Literal["ratio", "cos_output"], *, ax: Axes) -> list[tuple[Line2D, str]]:
    """A column over depth: one line per network, sublayer, and CLS or positions.

    Returns:
        The lines and their names, for a legend.
    """
    drawn = []
    place = np.where(table["token"].str.fullmatch(r"\d+"), "positions", table["token"])
    groups = table.assign(place=place).query("place in ['positions', 'cls']")
    keys = groups[["model", "sublayer"]].drop_duplicates()
    colours = dict(zip(map(tuple, keys.to_numpy()), sns.color_palette("colorblind", len(keys))))
    markers = dict(zip(dict.fromkeys(keys["model"]), itertools.cycle("os^Dv")))
    for (model, sublayer, token_place), part in groups.groupby(["model", "sublayer", "place"], sort=False):
        mean = part.groupby("depth")[column].mean()
        name = f"{model}, {NAMES.get(sublayer, sublayer)}" + (", CLS" if token_place == "cls" else "")
        (line,) = ax.plot(
            mean.index,
            mean,
            color=colours[model, sublayer],
            linestyle="--" if token_place == "cls" else "-",
            marker=markers[model],
            markersize=3,
            linewidth=1,
            label=name,
        )
        drawn.append((line, name))
    ax.set(xlabel="depth of the block (0 first layer, 1 last)")
    if column == "ratio":
        ax.set(ylabel="‖skip‖ / ‖branch‖, mean over tokens", yscale="log")
        ax.axhline(1, color="0.6", linewidth=0.8, zorder=0)
    else:
        ax.set(ylabel="cos(skip, skip + branch)")
    return drawn
