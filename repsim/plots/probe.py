"""Classes in layers: accuracy of probes over depth, maps of single tokens, neighbours."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns

from repsim.errors import UsageError
from repsim.plots.curves import over_depth
from repsim.plots.maps import TOKEN_CMAP
from repsim.plots.style import LOOK, Figure, entitle, freedom, inches_of, label, legend, look, named

PANEL, SMALL = 2.6, 1.5
"""Inches of a panel's width: of curves, of maps."""
AGGREGATIONS = {
    "cls": "CLS",
    "first": "first token",
    "spatial_mean": "mean of tokens, without CLS",
    "mean": "mean of all tokens",
    "token_mean": "single tokens, mean accuracy",
}
COLOURS = dict(zip(AGGREGATIONS, sns.color_palette("colorblind", len(AGGREGATIONS))))


def probes(summary: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Accuracy of probes over depth, a panel per model and number of shots (paper, Figures 11, 13).

    Args:
        summary: of `rs.linear_probes`, or `probe_summary.csv`.
        title: above the figure.

    Returns:
        A line per aggregation, with a band of 95 % intervals over draws of training images and over test images.
    """
    models = list(dict.fromkeys(named(summary)["model"]))
    shots = list(dict.fromkeys(summary["shots"].astype(str)))
    with look():
        figure = Figure(figsize=(PANEL * len(models) + 0.6, 2.5 * len(shots) + 0.7))
        axes = figure.subplots(len(shots), len(models), sharex=True, sharey=True, squeeze=False)
        for line, count in zip(axes, shots):
            for ax, model in zip(line, models):
                part = summary[(summary["model"] == model) & (summary["shots"].astype(str) == count)]
                for aggregation, name in AGGREGATIONS.items():
                    rows = part[part["aggregation"] == aggregation]
                    if len(rows):
                        over_depth(ax, rows, "accuracy", COLOURS[aggregation], name)
                label(ax, title=f"{model}, {'all images' if count == 'all' else f'{count} per class'}", inches=PANEL)
            line[0].set_ylabel("accuracy of the probe")
        entitle(figure, title)
        _legend(figure, columns=3)
    return figure


def compared(summary: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Accuracy of probes over depth, a line and a band of 95 % intervals per model, in one panel (paper, Figure 13).

    Args:
        summary: as for `probes`, with one aggregation for each model.
        title: above the figure.
    """
    models = list(dict.fromkeys(named(summary)["model"]))
    with look():
        figure = Figure(figsize=(4.2, 3.4))
        ax = figure.subplots()
        parts = ((summary[summary["model"] == model], model) for model in models)
        colours = sns.color_palette("colorblind", len(models))
        drawn = [over_depth(ax, part, "accuracy", colour, name) for (part, name), colour in zip(parts, colours)]
        ax.set_ylabel("accuracy of the probe")
        legend(ax, drawn)
        entitle(figure, title)
    return figure


def probe_tokens(table: pd.DataFrame, *, most: int = 5, title: str = "accuracy of probes on single tokens") -> Figure:
    """Accuracy of the probe on each single token, each map on its own scale (paper, Figure D.4).

    Args:
        table: of `rs.linear_probes`, or `probe.csv`; means over seeds are drawn, of its largest number of shots.
        most: layers drawn, evenly spaced.

    Raises:
        UsageError: single tokens were not probed.
    """
    single = named(table)[table["aggregation"] == "token"]
    if not len(single):
        raise UsageError("there are no single tokens in this table")
    order = {count: len(single) if count == "all" else int(count) for count in single["shots"].astype(str).unique()}
    shots = max(order, key=order.__getitem__)
    single = single[single["shots"].astype(str) == shots]
    models = list(dict.fromkeys(single["model"]))
    with look():
        figure = Figure(figsize=(SMALL * most + 0.4, 1.9 * len(models) + 0.4))
        axes = figure.subplots(len(models), most, squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        for line, model in zip(axes, models):
            of_model = single[single["model"] == model]
            names = list(dict.fromkeys(of_model["layer"]))
            chosen = np.unique(np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int))
            for ax, number in zip(line, chosen):
                of_layer = of_model[of_model["layer"] == names[number]]
                grid = of_layer.pivot_table(index="token_row", columns="token_col", values="accuracy").to_numpy(float)
                ax.imshow(100 * grid, cmap=TOKEN_CMAP, interpolation="nearest")
                low, high = 100 * grid.min(), 100 * grid.max()
                label(ax, title=f"{model}\n{names[number]}\n{low:.1f} to {high:.1f} %", size=7, inches=SMALL)
        entitle(figure, f"{title}, {'all images' if shots == 'all' else f'{shots} per class'}")
    return figure


def neighbours(table: pd.DataFrame) -> Figure:
    """Nearest-neighbour accuracy and soft nearest neighbour loss over depth, with 95 % intervals over images.

    Args:
        table: of `rs.linear_probes`, or `neighbours.csv`.
    """
    models = list(dict.fromkeys(named(table)["model"]))
    quantities = {
        "knn_accuracy": f"accuracy of {table['k'].iloc[0]} nearest neighbours",
        "soft_loss": "soft nearest neighbour loss (nats)",
    }
    with look():
        figure = Figure(figsize=(PANEL * len(models) + 0.6, 5.4))
        axes = figure.subplots(2, len(models), sharex=True, sharey="row", squeeze=False)
        for line, (column, quantity) in zip(axes, quantities.items()):
            for ax, model in zip(line, models):
                for aggregation, name in AGGREGATIONS.items():
                    rows = table[(table["model"] == model) & (table["aggregation"] == aggregation)]
                    if len(rows):
                        rows = rows.assign(se=rows[f"{column}_se"], df=freedom(rows["images"]))
                        over_depth(ax, rows, column, COLOURS[aggregation], name)
                label(ax, title=model, inches=PANEL)
            line[0].set_ylabel(quantity)
        _legend(figure, columns=4)
    return figure


def _legend(figure: Figure, columns: int) -> None:
    """One legend below all panels, each line once."""
    seen = {name: line for ax in figure.axes for line, name in zip(*ax.get_legend_handles_labels())}
    entries = [(line, name) for name, line in seen.items()]
    inches = max((inches_of(name, LOOK["font.size"]) + 0.6 for name in seen), default=1)
    fitting = max(1, int(figure.get_size_inches()[0] / inches))
    legend(figure, entries, loc="outside lower center", ncols=min(columns, fitting, len(seen)))
