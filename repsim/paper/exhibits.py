"""Each kind of figure in the paper: what there is to choose about it, and how it is drawn from its saved tables.

How it is measured is in `measuring`. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from repsim import plots
from repsim.plots.style import Figure, entitle, groups_of, groups_of_images


@dataclass
class Made:
    """What a figure is made of."""

    tables: dict[str, pd.DataFrame]
    """File name without `.csv` -> table; `numbers` is one of them."""
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    """Of a figure read from its files: how it was made."""


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One figure of the paper.

    Attributes:
        number: as in the paper: `1`, `C.5`.
        title: above the picture.
        shows: what the paper shows there, and what to expect.
        networks: preset -> names of its networks, in tuples where they pass together; the figure cannot be made with
            a preset that is not there.
        notes: preset -> what is not as the paper had it, and is written on the picture; where there are no networks,
            why.
    """

    number: str
    title: str
    shows: str
    networks: Mapping[str, tuple[Any, ...]]
    notes: Mapping[str, str] = field(default_factory=dict)

    def names(self, preset: str) -> list[str]:
        """All networks it needs."""
        return list(dict.fromkeys(_flat(self.networks.get(preset, ()))))

    def note(self, preset: str) -> str:
        return self.notes.get(preset, "")

    def draw(self, made: Made, title: str) -> Figure:
        raise NotImplementedError

    def caption(self, record: dict[str, Any]) -> str:
        """Number and title, and under it what is not as the paper had it, and whether weights are random."""
        first = f"Figure {self.number}. {self.title}"
        note = "untrained networks, random weights" if record["random"] else self.note(record["preset"])
        return f"{first}\n(here: {note})" if note else first


def _flat(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else [name for each in names for name in _flat(each)]


# Similarity of layers


@dataclass(frozen=True, kw_only=True)
class Similarity(Exhibit):
    """Heatmaps of CKA; networks are groups that pass together, of which `panels` draws some pairs."""

    panels: Literal["within", "across", "all", "pairs"] = "within"
    """`within` each network, `across` from the first to each other of a group, `all` of these; or all `pairs`."""
    layers: str | None = None
    """Which; None: those of the run."""
    statistics: Literal["uniformity", "matching", "closeness"] | None = None
    """Which numbers there are of a group's CKA matrix; see the functions of these names in `measuring`."""
    without_skips: tuple[int, ...] = ()
    """The block without skips of each network after the first; there are numbers of the CKA across these blocks."""

    def draw(self, made: Made, title: str) -> Figure:
        cka = made.tables["cka"]
        pairs = list(dict.fromkeys(zip(cka["model_a"], cka["model_b"])))
        return plots.panels(cka, pairs, title=title)


@dataclass(frozen=True, kw_only=True)
class Matched(Exhibit):
    """CKA of the same layers: groups of a reference and what is compared with it."""

    def draw(self, made: Made, title: str) -> Figure:
        figure = plots.matched(made.tables["matched"], groups=groups_of(made.record)).figure
        entitle(figure, title)
        return figure


# Attention


@dataclass(frozen=True, kw_only=True)
class Attention(Exhibit):
    """Sorted attention distances of the lowest and highest blocks, a panel per network."""

    def draw(self, made: Made, title: str) -> Figure:
        parts = [part for _, part in made.tables["attention"].groupby("model", sort=False)]
        draw = partial(plots.attention_distance, groups=groups_of_images(made.record))
        return plots.side_by_side(draw, parts, title=title)


@dataclass(frozen=True, kw_only=True)
class Heads(Exhibit):
    """Windows of heads of a first block against lower layers: pairs of networks."""

    def draw(self, made: Made, title: str) -> Figure:
        parts = [part for _, part in made.tables["heads"].groupby(["model_a", "model_b"], sort=False)]
        draw = partial(plots.head_similarity, groups=groups_of(made.record))
        return plots.side_by_side(draw, parts, title=title)


# Receptive fields


@dataclass(frozen=True, kw_only=True)
class Receptive(Exhibit):
    """Effective receptive fields after every residual sum, or of what enters it, of one or two networks."""

    branch: bool = False
    against_sums: bool = False
    """Whether the centre's share is compared with that after the sums."""

    def draw(self, made: Made, title: str) -> Figure:
        table = made.tables["receptive"]
        models = [part for _, part in table.groupby("model", sort=False)]
        if len(models) > 1:  # a row of panels for each
            chosen = [part.iloc[np.unique(np.linspace(0, len(part) - 1, 6).round().astype(int))] for part in models]
            table = pd.concat(chosen).assign(label=lambda t: t["model"] + "\n" + t["layer"])
        else:
            table = table.assign(label=table["layer"])
        table["layer"] = table["model"] + "/" + table["layer"]
        return plots.receptive_fields(table, made.arrays, most=len(table), title=title)


# Skip connections, places


@dataclass(frozen=True, kw_only=True)
class Residual(Exhibit):
    """Norm ratios and cosines of skip and branch."""

    shown: Literal["ratio", "cosine", "both"] = "both"

    def draw(self, made: Made, title: str) -> Figure:
        draw = {"ratio": plots.norm_ratios, "cosine": plots.cosines, "both": plots.residual}[self.shown]
        return draw(made.tables["residual"], title=title)


@dataclass(frozen=True, kw_only=True)
class Localization(Exhibit):
    """CKA of single tokens with input patches, of one layer of each network."""

    layer: int = -1
    """Which of a network's layers with places, from the first; -1: the last."""

    def draw(self, made: Made, title: str) -> Figure:
        return plots.localization(made.tables["localization"], title=title)


# Probes


class Comparison(NamedTuple):
    """The accuracy of probes of one of an exhibit's networks less that of another."""

    key: str
    label: str
    first: int
    second: int
    """Numbers of the networks, from 0; -1: the last."""


@dataclass(frozen=True, kw_only=True)
class Probed(Exhibit):
    """Ten-shot probes of every layer."""

    compare: tuple[Comparison, ...] = ()
    tokens: bool = False
    """Whether single tokens are probed, their mean is one of the aggregations, and it is what is compared."""


@dataclass(frozen=True, kw_only=True)
class ProbesCompared(Probed):
    """Networks in one panel, each by what its own classifier sees: CLS or the mean of tokens."""

    def draw(self, made: Made, title: str) -> Figure:
        models = made.tables["probe_summary"].groupby("model", sort=False)
        parts = [part[part["aggregation"] == classified(part)] for _, part in models]
        return plots.compared(pd.concat(parts), title=title)


@dataclass(frozen=True, kw_only=True)
class ProbesAggregated(Probed):
    """All aggregations, a panel per network."""

    def draw(self, made: Made, title: str) -> Figure:
        return plots.probes(made.tables["probe_summary"], title=title)


@dataclass(frozen=True, kw_only=True)
class ProbesOfTokens(Probed):
    """Single tokens at their places."""

    def draw(self, made: Made, title: str) -> Figure:
        return plots.probe_tokens(made.tables["probe"], title=title)


def classified(summary: pd.DataFrame) -> str:
    """The aggregation that a network's own classifier sees, from the summary of its probes."""
    return "cls" if (summary["aggregation"] == "cls").any() else "spatial_mean"
