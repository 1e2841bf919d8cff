"""Curves of measures of similarity over the size of a change."""

from __future__ import annotations

import pandas as pd
import seaborn as sns

from repsim.plots.style import Figure, entitle, label, legend, look, named

INCHES = 2.6
AMOUNTS = {
    "components": "share of components deleted",
    "translation": "half of the images moved by, rms distances",
    "outlier": "one image moved by, rms distances",
}
"""Kind of change -> the unit of its amount; distances are from images to their mean."""


def sensitivity(table: pd.DataFrame) -> Figure:
    """Similarity of layers with themselves after a change: a row for each change, a panel for three of the layers.

    Args:
        table: `sensitivity.csv`, or the table of `sensitivity`.

    Returns:
        The figure: a curve for each measure, of the first, a middle and the last layer.
    """
    layers = list(dict.fromkeys(named(table)["layer"]))
    chosen = [layers[k] for k in sorted({0, len(layers) // 2, len(layers) - 1})]
    measures, changes = list(dict.fromkeys(table["measure"])), list(dict.fromkeys(table["change"]))
    colours = dict(zip(measures, sns.color_palette("husl", len(measures))))
    styles = ["-", "--", ":", "-."]
    with look():
        size = (INCHES * len(chosen) + 1.6, INCHES * 0.8 * len(changes) + 0.4)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(changes), len(chosen), squeeze=False, sharey="row")
        drawn = {}
        for change, row in zip(changes, axes):
            for layer, ax in zip(chosen, row):
                rows = table[(table["change"] == change) & (table["layer"] == layer)]
                for number, measure in enumerate(measures):
                    curve = rows[rows["measure"] == measure].sort_values("amount")
                    line_style = {
                        "color": colours[measure],
                        "linestyle": styles[number % len(styles)],
                        "marker": ".",
                        "lw": 1,
                    }
                    (drawn[measure],) = ax.plot(curve["amount"], curve["value"], **line_style)
                if change != "components":
                    ax.set_xscale("symlog", linthresh=1)
                ax.axhline(0, color="0.8", lw=0.5, zorder=0)
                y = "similarity" if ax is row[0] else None
                title = layer if change == changes[0] else None
                label(ax, title=title, x=AMOUNTS.get(change, change), y=y, inches=INCHES)
        legend(figure, ((line, measure) for measure, line in drawn.items()), loc="outside right center")
        entitle(figure, f"{table['model'].iloc[0]}: what measures answer to")
    return figure
