"""Maps over the image: attention, receptive fields, localization of tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from repsim.errors import UsageError, one_of
from repsim.plots.style import UNDEFINED, Figure, entitle, label, look, named
from repsim.studies.token_tables import paper_tokens

PANEL = 1.5
"""Inches of a panel's width and height, about."""
SMALL = 1.1
"""The same, of attention maps of more than `FEW` images."""
FEW, ACROSS = 4, 7
"""Images whose attention maps are drawn large, and maps in a line beside each, at most."""
MAP_CMAP = "inferno"
SEEN = 0.65
"""How far a map covers the image that it lies over."""
TOKEN_CMAP = "viridis"
"""Colours that are light at the low end, because most of a token's CKA with patches lie far below the highest."""


def attention_maps(
    images: np.ndarray,
    cls: np.ndarray,
    rollout: np.ndarray,
    *,
    names: Sequence[str] | np.ndarray | None = None,
    block: str | np.ndarray = "",
    title: str = "",
) -> Figure:
    """Each image, its attention rollout, and where each head of the last block looks from the CLS token.

    Args:
        images: (n, height, width, 1 or 3) in 0..1.
        cls: (n, h, g, g); h may be 0.
        rollout: (n, g, g).
        names: of the images.
        block: what the last block is called.
        title: above the figure.

    Returns:
        The figure: each image with its maps beside it, in lines; its last axes are the colour bar.
    """
    maps = np.concatenate([rollout[:, None], cls], 1)
    titles = ["rollout of all blocks", *(f"{block} head {head}".strip() for head in range(cls.shape[1]))]
    lines = -(-len(titles) // ACROSS)
    across = -(-len(titles) // lines)
    side = PANEL if len(images) <= FEW else SMALL
    with look():
        figure = Figure(figsize=(side * (1 + across) + 0.7, (side + 0.25) * lines * len(images) + 0.4))
        axes = figure.subplots(len(images) * lines, 1 + across, squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        for image, image_maps, panels in zip(images, maps, axes.reshape(len(images), lines, 1 + across)):
            over(panels[0, 0], image, None)
            for ax, weights, name in zip(panels[:, 1:].flat, image_maps, titles):
                over(ax, image.mean(-1), weights)
                label(ax, title=name, size=7, inches=side)
        for name, ax in zip(["image"] * len(images) if names is None else names, axes[::lines, 0]):
            label(ax, title=str(name), size=7, inches=side)
        shades = ScalarMappable(Normalize(0, 1), MAP_CMAP)
        bar = figure.colorbar(
            shades, ax=axes, label="attention, of each map's most", fraction=0.02, pad=0.01, alpha=SEEN
        )
        bar.ax.set_facecolor("0.5")  # as the maps lie over an image
        entitle(figure, title)
    return figure


def over(ax: Axes, image: np.ndarray, weights: np.ndarray | None) -> None:
    """An image with a map laid over it, scaled to its own maximum."""
    height, width = image.shape[:2]
    extent = (0, width, height, 0)
    ax.imshow(image if image.ndim == 2 or image.shape[2] == 3 else image[..., 0], cmap="gray", extent=extent)
    if weights is not None:
        ax.imshow(
            weights, cmap=MAP_CMAP, alpha=SEEN, vmin=0, vmax=weights.max(), extent=extent, interpolation="nearest"
        )
    ax.set_axis_off()


def receptive_fields(
    table: pd.DataFrame,
    maps: Mapping[str, np.ndarray],
    *,
    quantity: str = "|d centre / d pixel|",
    most: int = 12,
    columns: int | None = None,
    title: str | None = None,
) -> Figure:
    """Each layer's receptive field, scaled to its own maximum; evenly spaced layers where there are many.

    Args:
        table: one row per layer, in order; titles show its radius50_px and, if there is one, its `label`.
        maps: layer -> (h, w).
        quantity: the quantity that the maps show, for the title.
        most: panels drawn.
        columns: panels side by side; None: six, or as many as make a square of more than twelve.
        title: above the figure; None: the model and the quantity.
    """
    rows = named(table) if len(table) <= most else table.iloc[np.linspace(0, len(table) - 1, most).round().astype(int)]
    columns = columns or (min(6, len(rows)) if len(rows) <= 12 else math.isqrt(len(rows) - 1) + 1)
    lines = -(-len(rows) // columns)
    with look():
        figure = Figure(figsize=(1.5 * columns, 1.75 * lines + 0.5))
        axes = figure.subplots(lines, columns, squeeze=False).flatten()
        for ax in axes:
            ax.set_axis_off()
        for ax, row in zip(axes, rows.itertuples()):
            field = maps[row.layer]
            ax.imshow(field, cmap=MAP_CMAP, vmin=0, vmax=field.max() or 1, interpolation="nearest")
            name = f"{getattr(row, 'label', row.layer)}\nhalf within {row.radius50_px:.1f} px"
            label(ax, title=name, size=7, inches=PANEL)
        entitle(figure, title or f"{table['model'].iloc[0]}: {quantity}, each panel to its own maximum")
    return figure


def localization(
    table: pd.DataFrame,
    *,
    tokens: Sequence[tuple[int, int]] | None = None,
    layer: str | None = None,
    title: str = "CKA of single tokens with input patches",
) -> Figure:
    """CKA of chosen tokens with every input patch, a row of panels per model, all on one scale (paper, Figure 9).

    Args:
        table: of `rs.token_localization`, or `localization.csv`.
        tokens: (row, column) of each token's own patch; None: the tokens of the paper, scaled to grids that it lacks.
        layer: which to draw, of the models that have it; None: the last of each.
        title: above the figure.

    Returns:
        The figure; its axes are the panels, row by row, and, last, the colour bar. A token's own patch is outlined, and
        the title gives its value; grey cells are undefined.
    """
    layers = _drawn_layers(named(table), layer)
    rows = [_token_maps(part, tokens) for part in layers]
    values = np.concatenate([panel_table.values for row in rows for panel_table in row], axis=None)
    low, high = min(0.0, np.nanmin(values, initial=0)), np.nanmax(values, initial=0) or 1.0
    columns = max(map(len, rows))
    with look():
        figure = Figure(figsize=(1.45 * columns + 0.8, 1.6 * len(rows) + 0.5))
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for ax in axes.flatten():
            ax.set(xticks=[], yticks=[])
            ax.set_visible(False)
        for line, part, row in zip(axes, layers, rows):
            for ax, panel_table in zip(line, row):
                ax.set_visible(True)
                token_map(ax, panel_table, low=low, high=high)
            label(line[0], y=f"{part['model'].iloc[0]}\n{part['layer'].iloc[0]}", inches=PANEL)
        figure.colorbar(axes[0, 0].images[0], ax=list(axes.flatten()), label="CKA", fraction=0.03)
        entitle(figure, f"{title} (numbers: with their own)")
    return figure


class TokenMap(NamedTuple):
    """CKA of one token with the patches."""

    values: np.ndarray
    """(rows, columns) of the grid of patches."""
    own: tuple[int, int]
    """Row and column of the token's own patch."""
    token: tuple[int, int]
    """The token's on its layer's grid."""


def token_map(ax: Axes, shown: TokenMap, *, low: float, high: float) -> None:
    """One panel of `localization`."""
    ax.set_facecolor(UNDEFINED)
    ax.imshow(shown.values, cmap=TOKEN_CMAP, vmin=low, vmax=high, interpolation="nearest")
    row, column = shown.own
    outline = {"fill": False, "edgecolor": "white", "linewidth": 0.8, "clip_on": False, "zorder": 3}
    rim = [withStroke(linewidth=2, foreground="black")]  # white alone is lost on the brightest cells
    ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, path_effects=rim, **outline))
    label(ax, title=f"token {shown.token}: {shown.values[shown.own]:.2f}", size=7, inches=PANEL)


def _drawn_layers(table: pd.DataFrame, layer: str | None) -> list[pd.DataFrame]:
    """The rows of the layer asked for, of each model that has it, or of each model's last layer."""
    if layer is not None and layer not in set(table["layer"]):
        raise one_of("layer of this table", layer, dict.fromkeys(table["layer"]))
    of_models = (part for _, part in table.groupby("model", sort=False))
    chosen = (part[part["layer"] == (part["layer"].iloc[-1] if layer is None else layer)] for part in of_models)
    return [part for part in chosen if len(part)]


def _token_maps(part: pd.DataFrame, tokens: Sequence[tuple[int, int]] | None) -> list[TokenMap]:
    """The maps of the chosen tokens of one layer, from its rows."""
    part = part.sort_values(["token_row", "token_col", "patch_row", "patch_col"])
    down, across = (sorted(part[f"token_{axis}"].unique().tolist()) for axis in ("row", "col"))
    rows, columns = len(down), len(across)
    maps = part["cka"].to_numpy().reshape(rows, columns, rows, columns)
    chosen = tokens or paper_tokens(rows, columns)
    for row, column in chosen:
        if not (0 <= row < rows and 0 <= column < columns):
            raise UsageError(f"there is no token ({row}, {column}): {part['model'].iloc[0]} has {rows} x {columns}")
    return [TokenMap(maps[row, column], (row, column), (down[row], across[column])) for row, column in chosen]
