"""The pictures of a study, from its tables and arrays: for results in memory and for saved ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from repsim import tables as columns
from repsim.errors import RepsimError, UsageError
from repsim.plots.compare import layer_matrices, networks_map, networks_matrix
from repsim.plots.curves import (
    attention_distance,
    each_layer,
    head_similarity,
    localization_summary,
    matched,
    values_of,
)
from repsim.plots.lesion import lesion
from repsim.plots.maps import attention_maps, localization, receptive_fields
from repsim.plots.matrices import heatmap
from repsim.plots.probe import neighbours, probe_tokens, probes
from repsim.plots.residual import residual
from repsim.plots.sensitivity import sensitivity
from repsim.plots.style import Figure, figure_of, groups_of, groups_of_images, note
from repsim.studies.token_tables import all_tokens

Tables = Mapping[str, pd.DataFrame]
Arrays = Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Drawing:
    """How the pictures of a study are drawn."""

    draw: Callable[..., dict[str, Figure]]
    tables: dict[str, list[str]]
    """The tables that the pictures are drawn from, and their columns."""
    arrays: tuple[str, ...] = ()
    """The arrays, where there are some."""
    intervals: Literal["batches", "images"] | None = None
    """The unit that intervals are over; the number of its groups must be known for drawing them."""


def pictures(name: str, tables: Tables, arrays: Arrays, record: Mapping[str, Any], **options: Any) -> dict[str, Figure]:
    """All pictures of a study, by the names of their files; the last is that of its main table.

    A study that is not among `DRAWINGS` has one if its table is of layers, and else none.

    Args:
        name: of the study.
        tables: by the names of their files.
        arrays: likewise.
        record: of the run.
        options: `blocks` of attention, `tokens` and `layer` of localization.
    """
    has_pictures = name in DRAWINGS or has_picture(name, tables[name])
    drawn = drawing(name)
    if drawn.intervals == "batches":
        options["groups"] = groups_of(record)
    elif drawn.intervals == "images":
        options["groups"] = groups_of_images(record)
    figures = drawn.draw(name, tables, arrays, **options) if has_pictures else {}
    named = isinstance(record.get("protocol", {}).get("maps"), list)
    for file, figure in figures.items():
        if not (file == "attention_maps" and named):  # of other images, each with its name
            note(figure, record)
    return figures


def drawing(name: str) -> Drawing:
    """The drawing of a study's pictures; a study that is not in `DRAWINGS` is drawn as a curve over its layers."""
    return DRAWINGS.get(name) or Drawing(_one(each_layer), {name: columns.TABLES.get(name, [])}, intervals="batches")


def has_picture(name: str, table: pd.DataFrame) -> bool:
    """Whether there is something to draw."""
    return len(table) > 0 and (name in DRAWINGS or bool(values_of(table)))


def _one(plot: Callable[..., Any]) -> Callable[..., dict[str, Figure]]:
    """The drawing of studies with one table and one picture."""

    def draw(name: str, tables: Tables, arrays: Arrays, **groups: int | None) -> dict[str, Figure]:
        drawn = plot(tables[name], **groups)
        return {name: drawn if isinstance(drawn, Figure) else figure_of(drawn)}

    return draw


def _attention(
    name: str,
    tables: Tables,
    arrays: Arrays,
    *,
    blocks: list[int] | Literal["all"] | None = None,
    groups: int | None = None,
) -> dict[str, Figure]:
    table = tables[name]
    chosen = sorted(table["block"].unique()) if blocks == "all" else blocks
    maps = _attention_maps("attention_maps", {"attention_maps": table}, arrays) if arrays else {}
    return {**maps, name: figure_of(attention_distance(table, blocks=chosen, groups=groups))}


def _attention_maps(name: str, tables: Tables, arrays: Arrays) -> dict[str, Figure]:
    title = f"{tables[name]['model'].iloc[0]}: attention rollout, and heads of the last block from CLS"
    return {name: attention_maps(**arrays[name], title=title)}


def _receptive(name: str, tables: Tables, arrays: Arrays) -> dict[str, Figure]:
    table, maps = tables[name], arrays[name]
    if missing := [layer for layer in table["layer"] if layer not in maps]:
        raise RepsimError(f"{name}.npz has no map of layer {missing[0]!r}, which the table has")
    quantity = "|d sum of channels / d pixel| (proxy)" if name == "receptive_proxy" else "|d centre / d pixel|"
    return {name: receptive_fields(table, maps, quantity=quantity)}


def _localization(
    name: str,
    tables: Tables,
    arrays: Arrays,
    *,
    tokens: list[tuple[int, int]] | None = None,
    layer: str | None = None,
    groups: int | None = None,
) -> dict[str, Figure]:
    table = tables[name]
    if arrays:
        table = all_tokens(arrays[name], table, layer)
    return {
        "localization_summary": localization_summary(tables["localization_summary"], groups=groups),
        name: localization(table, tokens=tokens, layer=layer),
    }


def _probe(name: str, tables: Tables, arrays: Arrays) -> dict[str, Figure]:
    figures = {}
    if len(tables["neighbours"]):
        figures["neighbours"] = neighbours(tables["neighbours"])
    if (tables["probe"]["aggregation"] == "token").any():
        figures["probe_tokens"] = probe_tokens(tables["probe"])
    return {**figures, name: probes(tables["probe_summary"])}


def _compare(
    name: str,
    tables: Tables,
    arrays: Arrays,
    *,
    pairs: list[tuple[str, str]] | None = None,
) -> dict[str, Figure]:
    figures, table = {}, tables[name]
    if table["index_a"].max() > 0:
        figures |= {f"layers_{measure}": drawn for measure, drawn in layer_matrices(table, pairs).items()}
    elif pairs:
        raise UsageError("there is one layer of each network, so there are no pairs of layers to draw")
    if tables["networks_map"]["x"].notna().any():
        figures["networks_map"] = networks_map(tables["networks_map"])
    if len(tables["networks"]):
        figures[name] = networks_matrix(tables["networks"])
    return figures


DRAWINGS = {
    "cka": Drawing(_one(heatmap), {"cka": columns.SIMILARITY}),
    "matched": Drawing(_one(matched), {"matched": columns.MATCHED}, intervals="batches"),
    "attention": Drawing(_attention, {"attention": columns.ATTENTION}, ("attention_maps",), intervals="images"),
    "attention_maps": Drawing(_attention_maps, {}, ("attention_maps",)),
    "heads": Drawing(_one(head_similarity), {"heads": columns.HEADS}, intervals="batches"),
    "residual": Drawing(_one(residual), {"residual": columns.RESIDUAL}),
    "receptive": Drawing(_receptive, {"receptive": columns.RECEPTIVE}, ("receptive",)),
    "receptive_proxy": Drawing(_receptive, {"receptive_proxy": columns.RECEPTIVE}, ("receptive_proxy",)),
    "localization": Drawing(
        _localization,
        {"localization_summary": columns.LOCALIZATION_SUMMARY, "localization": columns.LOCALIZATION},
        ("localization",),
        intervals="batches",
    ),
    "probe": Drawing(
        _probe,
        {"probe_summary": columns.PROBE_SUMMARY, "probe": columns.PROBE, "neighbours": columns.NEIGHBOURS},
    ),
    "lesion": Drawing(_one(lesion), {"lesion": columns.LESION}),
    "sensitivity": Drawing(_one(sensitivity), {"sensitivity": columns.SENSITIVITY}),
    "compare": Drawing(
        _compare,
        {"networks_map": columns.COMPARE_MAP, "networks": columns.COMPARE_NETWORKS, "compare": columns.COMPARE},
    ),
}
"""By the names of studies."""
