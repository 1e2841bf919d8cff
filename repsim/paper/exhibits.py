"""The kinds of figures in the paper: the roles that each shows, its options, and its drawing from its tables.

`measuring` measures them, and `roles` says which networks play the roles. No torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from repsim import plots
from repsim.paper.roles import Case
from repsim.plots.matrices import paper_range
from repsim.plots.residual import share_tokens
from repsim.plots.style import Figure, entitle, figure_of, groups_of, groups_of_images


@dataclass
class Made:
    """The tables and arrays that a figure is drawn from."""

    tables: dict[str, pd.DataFrame]
    """File name without `.csv` -> table; `numbers` is one of them."""
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    """The record of a figure that was read from its files."""


class Comparison(NamedTuple):
    """A difference between two roles: of each network of the first with each network of the second.

    Exhibits of one number need no key or label; probes have several numbers.
    """

    first: str
    second: str
    key: str = ""
    label: str = ""


class Compared(NamedTuple):
    """A comparison of two networks of an exhibit, by their numbers among them."""

    key: str
    label: str
    first: int
    second: int


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One figure of the paper.

    Attributes:
        number: as in the paper: `1`, `C.5`.
        title: above the picture.
        shows: the paper's finding in this figure, in a sentence.
        roles: whose networks it shows, in this order.
        needs: roles without which there is no such figure; of the further roles one network suffices.
        compare: which roles are compared in its numbers.
        notes: preset -> what is not as the paper had it, and is written on the picture; where there are no networks,
            why.
    """

    number: str
    title: str
    shows: str
    roles: tuple[str, ...]
    needs: tuple[str, ...] = ()
    compare: tuple[Comparison, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)

    def networks(self, cases: Sequence[Case], apart: Collection[frozenset[str]] = ()) -> tuple[Any, ...]:
        """Its networks, or the groups of them that pass together; none if it cannot be made.

        Args:
            cases: the networks that play the roles, case by case.
            apart: networks that cannot be in one group.
        """
        return tuple(dict.fromkeys(name for case in cases for role in self.roles for name in case.get(role, ())))

    def players(self, cases: Sequence[Case], apart: Collection[frozenset[str]] = ()) -> list[Any]:
        """All its networks without duplicates."""
        return list(self.networks(cases, apart))

    def compared(self, cases: Sequence[Case]) -> list[Compared]:
        """The networks that are compared; where several networks share a label, the label names them."""
        names, comparisons = list(self.networks(cases)), []
        for first, second, key, label in self.compare:
            pairs = [pair for case in cases for pair in product(case.get(first, ()), case.get(second, ()))]
            for a, b in dict.fromkeys(pairs):
                words = f"{label}, {a} - {b}" if len(set(pairs)) > 1 else label
                comparisons.append(Compared(key, words, names.index(a), names.index(b)))
        return comparisons

    def lacking(self, cases: Sequence[Case]) -> list[str]:
        """The roles that need a network before the figure can be made."""
        missing = [role for role in self.needs if not any(case.get(role) for case in cases)]
        return missing or ([] if self.networks(cases) else list(self.roles))

    def note(self, preset: str) -> str:
        return self.notes.get(preset, "")

    def draw(self, results: Made, title: str) -> Figure:
        raise NotImplementedError

    def caption(self, record: dict[str, Any]) -> str:
        """Number and title, and below them differences from the paper's figure, and whether weights are random."""
        first = f"Figure {self.number}. {self.title}"
        note = "untrained networks, random weights" if record["random"] else self.note(record["preset"])
        return f"{first}\n(here: {note})" if note else first


@dataclass(frozen=True, kw_only=True)
class Grouped(Exhibit):
    """An exhibit whose networks pass in groups: one network of each role, in every combination."""

    def networks(self, cases: Sequence[Case], apart: Collection[frozenset[str]] = ()) -> tuple[tuple[str, ...], ...]:
        groups = dict.fromkeys(group for case in cases for group in self.groups(case))
        return tuple(group for group in groups if not any(names <= set(group) for names in apart))

    def players(self, cases: Sequence[Case], apart: Collection[frozenset[str]] = ()) -> list[Any]:
        return list(dict.fromkeys(player for group in self.networks(cases, apart) for player in group))

    def groups(self, case: Case) -> list[tuple[str, ...]]:
        """The groups of one case."""
        played = [case[role] for role in self.roles if case.get(role)]
        return list(product(*played)) if played and all(case.get(role) for role in self.needs) else []


# Similarity of layers


@dataclass(frozen=True, kw_only=True)
class Similarity(Grouped):
    """Heatmaps of CKA; `panels` says which pairs of a group are drawn."""

    panels: Literal["within", "across", "all", "pairs"] = "within"
    """`within` each network, `across` from the first to each later one of a group, `all` of both; or all `pairs`."""
    layers: str | None = None
    """The choice of layers; None: the run's choice."""
    statistics: Literal["uniformity", "matching", "closeness"] | None = None
    """Which numbers there are of a group's CKA matrix; see the functions of these names in `measuring`."""
    without_skips: tuple[int, ...] = ()
    """The block without skips of each network after the first; there are numbers of the CKA across these blocks."""

    def draw(self, results: Made, title: str) -> Figure:
        cka = results.tables["cka"]
        pairs = list(dict.fromkeys(zip(cka["model_a"], cka["model_b"])))
        low, high = paper_range(cka)
        return plots.panels(cka, pairs, title=title, vmin=low, vmax=high)


@dataclass(frozen=True, kw_only=True)
class Matched(Grouped):
    """CKA of the same layers: of the reference, which is the first role, with each network of the later roles."""

    def groups(self, case: Case) -> list[tuple[str, ...]]:
        other_networks = [name for role in self.roles[1:] for name in case.get(role, ())]
        return list(product(case.get(self.roles[0], ()), other_networks))

    def draw(self, results: Made, title: str) -> Figure:
        draw = partial(plots.matched, groups=groups_of(results.record))
        parts = [part for _, part in results.tables["matched"].groupby("model_a", sort=False)]
        if len(parts) > 1:  # a panel for each reference
            return plots.side_by_side(draw, parts, title=title)
        figure = figure_of(draw(results.tables["matched"]))
        entitle(figure, title)
        return figure


# Attention


@dataclass(frozen=True, kw_only=True)
class Attention(Exhibit):
    """Sorted attention distances of the lowest and highest blocks, a panel per network."""

    def draw(self, results: Made, title: str) -> Figure:
        parts = [part for _, part in results.tables["attention"].groupby("model", sort=False)]
        draw = partial(plots.attention_distance, groups=groups_of_images(results.record))
        return plots.side_by_side(draw, parts, title=title)


@dataclass(frozen=True, kw_only=True)
class Heads(Grouped):
    """Windows of heads of a first block against lower layers of another network."""

    def draw(self, results: Made, title: str) -> Figure:
        parts = [part for _, part in results.tables["heads"].groupby(["model_a", "model_b"], sort=False)]
        draw = partial(plots.head_similarity, groups=groups_of(results.record))
        return plots.side_by_side(draw, parts, title=title)


# Receptive fields


@dataclass(frozen=True, kw_only=True)
class Receptive(Exhibit):
    """Effective receptive fields after every residual sum, or of the branch that enters it."""

    branch: bool = False
    against_sums: bool = False
    """Whether the centre's share is compared with that after the sums."""

    def draw(self, results: Made, title: str) -> Figure:
        table = results.tables["receptive"]
        models = [part for _, part in table.groupby("model", sort=False)]
        columns = None
        if len(models) > 1:  # a row of panels for each
            chosen = [part.iloc[np.unique(np.linspace(0, len(part) - 1, 6).round().astype(int))] for part in models]
            columns = len(chosen[0])
            table = pd.concat(chosen).assign(label=lambda t: t["model"] + "\n" + t["layer"])
        else:
            table = table.assign(label=table["layer"])
        table["layer"] = table["model"] + "/" + table["layer"]
        return plots.receptive_fields(table, results.arrays, most=len(table), columns=columns, title=title)


# Skip connections, places


@dataclass(frozen=True, kw_only=True)
class Residual(Exhibit):
    """Norm ratios and cosines of skip and branch."""

    shown: Literal["ratio", "cosine", "both"] = "both"

    def draw(self, results: Made, title: str) -> Figure:
        table = results.tables["residual"]
        shown = "both" if self.shown == "ratio" and not share_tokens(table) else self.shown
        draw = {"ratio": plots.norm_ratios, "cosine": plots.cosines, "both": plots.residual}[shown]
        return draw(table, title=title)


@dataclass(frozen=True, kw_only=True)
class Localization(Exhibit):
    """CKA of single tokens of one layer of each network with input patches."""

    layer: int = -1
    """Which of a network's layers with places, from the first; -1: the last."""

    def draw(self, results: Made, title: str) -> Figure:
        return plots.localization(results.tables["localization"], title=title)


# Probes


@dataclass(frozen=True, kw_only=True)
class Probed(Exhibit):
    """Ten-shot probes of every layer."""

    tokens: bool = False
    """Whether single tokens are probed; their mean is then an aggregation, and the one that is compared."""


@dataclass(frozen=True, kw_only=True)
class ProbesCompared(Probed):
    """Networks in one panel, each by the input of its own classifier: CLS or the mean of tokens."""

    def draw(self, results: Made, title: str) -> Figure:
        models = results.tables["probe_summary"].groupby("model", sort=False)
        parts = [part[part["aggregation"] == classified(part)] for _, part in models]
        return plots.compared(pd.concat(parts), title=title)


@dataclass(frozen=True, kw_only=True)
class ProbesAggregated(Probed):
    """All aggregations, a panel per network."""

    def draw(self, results: Made, title: str) -> Figure:
        return plots.probes(results.tables["probe_summary"], title=title)


@dataclass(frozen=True, kw_only=True)
class ProbesOfTokens(Probed):
    """Single tokens at their places."""

    def draw(self, results: Made, title: str) -> Figure:
        return plots.probe_tokens(results.tables["probe"], title=title)


def classified(summary: pd.DataFrame) -> str:
    """The aggregation that a network's own classifier sees, from the summary of its probes."""
    return "cls" if (summary["aggregation"] == "cls").any() else "spatial_mean"
