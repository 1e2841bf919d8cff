"""Effects of lesions on predictions and on later layers."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from repsim.plots.matrices import ticks
from repsim.plots.style import SIMILARITY_CMAP, UNDEFINED, Figure, entitle, label, legend, look, named, room, tick_names

NOTHING = "nothing"
COLUMNS = 3


def lesion(table: pd.DataFrame) -> Figure:
    """Agreement and accuracy over the block that lost something, and CKA of every later layer with itself before.

    Args:
        table: of `rs.lesions`, or `lesion.csv`.
    """
    model = named(table)["model"].iloc[0]
    kinds = [kind for kind in dict.fromkeys(table["removed"]) if kind != NOTHING]
    rows = -(-len(kinds) // COLUMNS)
    layers = [layer for layer in dict.fromkeys(table["layer"]) if layer in set(_lesioned(table)["layer"])]
    with look():
        below = (2.3 + room(layers[i] for i in labelled(layers))) * rows
        figure = Figure(figsize=(7.2, 2.7 + below))
        if not kinds:
            entitle(figure, f"{model}: nothing was removed")
            return figure
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[2.7, below])[:, 0]
        left, right = above.subplots(1, 2)
        drawn = curves(table, "agreement", ax=left)
        left.set(ylabel="predictions that stay", ylim=(0, 1.02))
        curves(table, "accuracy", ax=right)
        right.set(ylabel="accuracy", ylim=(0, 1.02))
        legend(above, drawn, loc="outside right center")
        axes = below.subplots(rows, COLUMNS, squeeze=False).flatten()
        for ax in axes[len(kinds) :]:
            ax.set_axis_off()
        for ax, kind in zip(axes, kinds):
            panel(table[table["removed"] == kind], kind, layers, ax=ax, low=min(0.0, table["cka"].min()))
        below.colorbar(axes[0].collections[0], ax=list(axes), label="CKA with the untouched layer", fraction=0.03)
        entitle(figure, f"{model}: removed at inference, not trained without (another quantity than the paper's)")
    return figure


def _lesioned(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["removed"] != NOTHING]


def curves(table: pd.DataFrame, column: str, *, ax: Axes) -> list[tuple[Line2D, str]]:
    """A column over the number of the block, one line per kind of lesion; grey: the untouched network.

    Returns:
        The lines and their names, for a legend.
    """
    drawn = []
    per = _lesioned(table).drop_duplicates(["removed", "block"])
    kinds = list(dict.fromkeys(per["removed"]))
    for kind, colour in zip(kinds, sns.color_palette("colorblind", len(kinds))):
        part = per[per["removed"] == kind].sort_values("block")
        style = {"color": colour, "marker": "o", "markersize": 3, "linewidth": 1}
        (line,) = ax.plot(part["block"], part[column], label=kind, linestyle="--" if "skip" in kind else "-", **style)
        drawn.append((line, kind))
    whole = table.loc[table["removed"] == NOTHING, column]
    if len(whole):
        line = ax.axhline(whole.iloc[0], color="0.6", linewidth=0.8, zorder=0, label="untouched")
        drawn.append((line, "untouched"))
    if table[column].isna().all():
        ax.text(0.5, 0.5, "not known", ha="center", transform=ax.transAxes, color="0.4")
    ax.set(xlabel="block that lost it", xlim=(per["block"].min() - 0.5, per["block"].max() + 0.5))
    ax.xaxis.get_major_locator().set_params(integer=True)  # pyrefly: ignore [unexpected-keyword]  # it is a MaxNLocator
    return drawn


def labelled(layers: list[str]) -> list[int]:
    """Positions of the layers that are named below a panel."""
    return ticks(["block"] * len(layers), 7)


def panel(part: pd.DataFrame, kind: str, layers: list[str], *, ax: Axes, low: float = 0.0) -> Axes:
    """Blocks that lost something upwards, later layers to the right; grey where the lesion comes after the layer."""
    matrix = part.pivot(index="block", columns="layer", values="cka").reindex(columns=layers).sort_index()
    ax.set_facecolor(UNDEFINED)
    options = {"cbar": False, "rasterized": True, "xticklabels": False, "yticklabels": False}
    sns.heatmap(matrix, ax=ax, vmin=low, vmax=1, cmap=SIMILARITY_CMAP, **options)
    ax.invert_yaxis()
    positions = labelled(layers)
    tick_names(ax.xaxis, [i + 0.5 for i in positions], [layers[i] for i in positions])
    ax.tick_params(axis="x", rotation=90)
    step = -(-len(matrix) // 8)
    ax.set_yticks([i + 0.5 for i in range(0, len(matrix), step)], matrix.index[::step])
    label(ax, x="layer", y="block", title=f"without {kind}", inches=7.2 / COLUMNS)
    return ax
