"""Maps over the image: attention, receptive fields."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repsim.plots.style import look

MAP_CMAP = "inferno"


def attention_maps(images: np.ndarray, cls: np.ndarray, rollout: np.ndarray, *, title: str = "") -> Figure:
    """Each image, its attention rollout, and where each head of the last block looks from the CLS token.

    Args:
        images: (n, height, width, 1 or 3) in 0..1.
        cls: (n, h, g, g); h may be 0.
        rollout: (n, g, g).
        title: above the figure.
    """
    rows, columns = len(images), 2 + cls.shape[1]
    with look():
        figure = Figure(figsize=(0.95 * columns, 1.0 * rows + 0.5))
        axes = figure.subplots(rows, columns, squeeze=False)
        for row in range(rows):
            grey = images[row].mean(-1)
            over(axes[row, 0], images[row], None)
            over(axes[row, 1], grey, rollout[row])
            for head in range(cls.shape[1]):
                over(axes[row, 2 + head], grey, cls[row, head])
        for ax, name in zip(axes[0], ["image", "rollout", *(f"head {h}" for h in range(cls.shape[1]))]):
            ax.set_title(name, fontsize=7)
        figure.suptitle(title)
    return figure


def over(ax: Axes, image: np.ndarray, weights: np.ndarray | None) -> None:
    """An image with a map laid over it, scaled to its own maximum."""
    height, width = image.shape[:2]
    extent = (0, width, height, 0)
    ax.imshow(image if image.ndim == 2 or image.shape[2] == 3 else image[..., 0], cmap="gray", extent=extent)
    if weights is not None:
        ax.imshow(
            weights, cmap=MAP_CMAP, alpha=0.65, vmin=0, vmax=weights.max(), extent=extent, interpolation="nearest"
        )
    ax.set_axis_off()


def receptive_fields(
    table: pd.DataFrame, maps: dict[str, np.ndarray], *, quantity: str = "|d centre / d pixel|", most: int = 12
) -> Figure:
    """Each layer's receptive field, scaled to its own maximum; evenly spaced layers where there are many.

    Args:
        table: one row per layer, in order; titles show its radius50_px.
        maps: layer -> (h, w).
        quantity: what the maps show, for the title.
        most: panels drawn.
    """
    rows = table if len(table) <= most else table.iloc[np.linspace(0, len(table) - 1, most).round().astype(int)]
    columns = min(6, len(rows))
    lines = -(-len(rows) // columns)
    with look():
        figure = Figure(figsize=(1.5 * columns, 1.75 * lines + 0.5))
        axes = figure.subplots(lines, columns, squeeze=False).flatten()
        for ax in axes:
            ax.set_axis_off()
        for ax, row in zip(axes, rows.itertuples()):
            field = maps[row.layer]
            ax.imshow(field, cmap=MAP_CMAP, vmin=0, vmax=field.max() or 1, interpolation="nearest")
            ax.set_title(f"{row.layer}\nhalf within {row.radius50_px:.1f} px", fontsize=7)
        figure.suptitle(f"{table['model'].iloc[0]}: {quantity}, each panel to its own maximum")
    return figure
