"""How each kind of figure in the paper is measured and drawn, and the numbers its claims are checked by.

An exhibit asks `Measurements` for studies before the images pass, and makes its tables afterwards; its picture is drawn
from the tables alone. `numbers` holds what the paper makes a claim about: a value and its 95 % interval.
Nothing heavy is imported before something is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from repsim import plots
from repsim.plots.style import Figure

if TYPE_CHECKING:
    from torch import Tensor

    from repsim.paper.measurements import Measurements

NUMBERS = ["number", "value", "low", "high"]
"""Columns of `numbers.csv`: 95 % intervals."""


@dataclass
class Made:
    """What a figure is made of."""

    tables: dict[str, pd.DataFrame]
    """File name without `.csv` -> table; `numbers` is one of them."""
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


Later = Callable[[], Made]
"""What is done once the images have passed."""


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One figure of the paper.

    Attributes:
        number: as in the paper: `1`, `C.5`.
        title: above the picture.
        shows: what the paper shows there, and what to expect.
        mini, paper: names of the networks of each preset; none: the figure cannot be made with it.
        stand_in: what of `paper` is not what the paper had; it is written on the picture. Where there are no
            networks, why.
    """

    number: str
    title: str
    shows: str
    mini: tuple[Any, ...] = ()
    paper: tuple[Any, ...] = ()
    stand_in: str = ""

    sweeps: ClassVar[bool] = True
    """Whether forward passes are all it takes."""

    def names(self, preset: str) -> list[str]:
        """All networks it needs."""
        return list(dict.fromkeys(_flat(getattr(self, preset))))

    def measure(self, m: Measurements, networks: tuple[Any, ...]) -> Later:
        raise NotImplementedError

    def draw(self, made: Made, title: str) -> Figure:
        raise NotImplementedError

    def caption(self, preset: str) -> str:
        """Number and title, and under it what stands for what the paper had."""
        first = f"Figure {self.number}. {self.title}"
        return f"{first}\n(here: {self.stand_in})" if preset == "paper" and self.stand_in else first


def _flat(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else [name for each in names for name in _flat(each)]


def numbers(rows: Sequence[tuple[str, float, float]]) -> pd.DataFrame:
    """From names, values and standard errors."""
    return pd.DataFrame(
        [(name, value, value - 1.96 * se, value + 1.96 * se) for name, value, se in rows], columns=NUMBERS
    )


def both(*errors: float) -> float:
    """Standard error of a sum or difference of independent values."""
    return float(np.sqrt(np.square(errors).sum()))


def third(values: Any, which: int) -> Any:
    """Mean over the lowest (0), middle or highest (2) third of the last axis."""
    cuts = [round(values.shape[-1] * k / 3) for k in range(4)]
    return values[..., cuts[which] : cuts[which + 1]].mean(-1)


# Similarity of layers


@dataclass(frozen=True, kw_only=True)
class Similarity(Exhibit):
    """Heatmaps of CKA; networks are groups that pass together, of which `panels` draws some pairs."""

    panels: str = "within"
    """`within` each network, `across` from the first to each other of a group, or `all`."""
    statistics: Callable[[list[str], list[slice]], dict[str, Callable[[Tensor], Tensor]]] | None = None
    """From the names and rows of a group's networks: number -> what it is of the group's CKA matrix."""

    def measure(self, m: Measurements, networks: tuple[tuple[str, ...], ...]) -> Later:
        studies = [m.similarity(*group) for group in networks]

        def later() -> Made:
            from repsim.studies.similarity import LayerSimilarity

            parts, rows = [], []
            for study in studies:
                names = [network.name for network in study.networks]
                table = LayerSimilarity.table([study])
                pairs = self.pairs(names)
                parts.append(table[[pair in pairs for pair in zip(table["model_a"], table["model_b"])]])
                ends = np.cumsum([0, *map(len, study.layers)]).tolist()
                where = [slice(low, high) for low, high in zip(ends, ends[1:])]
                for number, of in (self.statistics(names, where) if self.statistics else {}).items():
                    rows.append((number, *(each.item() for each in study.cka.jackknife(of))))
            cka = pd.concat(parts).drop_duplicates(["model_a", "layer_a", "model_b", "layer_b"])
            return Made({"cka": cka.reset_index(drop=True), "numbers": numbers(rows)})

        return later

    def pairs(self, names: list[str]) -> list[tuple[str, str]]:
        within = [(name, name) for name in names]
        across = [(names[0], name) for name in names[1:]]
        return {"within": within, "across": across, "all": within + across}[self.panels]

    def draw(self, made: Made, title: str) -> Figure:
        cka = made.tables["cka"]
        pairs = list(dict.fromkeys(zip(cka["model_a"], cka["model_b"])))
        return plots.panels(cka, pairs, title=title)


def uniformity(names: list[str], where: list[slice]) -> dict[str, Callable[[Tensor], Tensor]]:
    """Mean CKA between the lowest and highest third of a network's layers; its difference between the first two."""

    def of(cka: Tensor, rows: slice) -> Tensor:
        within = cka[rows, rows]
        size = -(-len(within) // 3)
        return within[:size, -size:].mean()

    found = {f"low with high layers, {name}": lambda cka, r=rows: of(cka, r) for name, rows in zip(names, where)}
    if len(names) > 1:
        name = f"low with high layers, {names[0]} - {names[1]}"
        found[name] = lambda cka: of(cka, where[0]) - of(cka, where[1])
    return found


def matching_depth(names: list[str], where: list[slice]) -> dict[str, Callable[[Tensor], Tensor]]:
    """Where the layers of the second's lower half have their likest in the first; what is like its last third."""
    import torch

    def depth(cka: Tensor) -> Tensor:
        part = cka[where[0], where[1]]
        likest = part[:, : -(-part.shape[1] // 2)].argmax(0)
        return (likest / (len(part) - 1)).mean()

    def last(cka: Tensor) -> Tensor:
        best = cka[where[0], where[1]].max(1).values
        return third(best, 2) - torch.stack([third(best, 0), third(best, 1)]).mean()

    first, second = names[:2]
    return {
        f"depth in {first} most like the lower half of {second}": depth,
        f"likest layer of {second}: last third of {first} - rest": last,
    }


def closeness(names: list[str], where: list[slice]) -> dict[str, Callable[[Tensor], Tensor]]:
    """Mean over the first network's layers of the CKA with the likest of the second, of the third; the difference."""

    def best(cka: Tensor, other: int) -> Tensor:
        return cka[where[0], where[other]].max(1).values.mean()

    first, second, third_ = names
    return {
        f"likest layers, {first} with {second}": lambda cka: best(cka, 1),
        f"likest layers, {first} with {third_}": lambda cka: best(cka, 2),
        f"likest layers, {first} with {second} - with {third_}": lambda cka: best(cka, 1) - best(cka, 2),
    }


@dataclass(frozen=True, kw_only=True)
class Cut(Similarity):
    """Networks trained without the skips of one block: (untouched, one without, ...), and the blocks."""

    blocks: tuple[int, ...] = ()

    def measure(self, m: Measurements, networks: tuple[tuple[str, ...], ...]) -> Later:
        later = super().measure(m, networks)
        (study,) = [m.similarity(*group) for group in networks]
        count = len(study.layers[0])

        def across(cka: Tensor, network: int, block: int) -> Tensor:
            within = cka[network * count : (network + 1) * count, network * count : (network + 1) * count]
            return within[: block + 1, block + 1 :].mean()

        def with_numbers() -> Made:
            made, rows = later(), []
            for k, block in enumerate(self.blocks, 1):
                statistics = {
                    f"CKA across block {block}, without its skips": lambda cka, k=k, b=block: across(cka, k, b),
                    f"CKA across block {block}, untouched": lambda cka, b=block: across(cka, 0, b),
                    f"CKA across block {block}, without its skips - untouched": lambda cka, k=k, b=block: (
                        across(cka, k, b) - across(cka, 0, b)
                    ),
                }
                rows += [(name, *(x.item() for x in study.cka.jackknife(of))) for name, of in statistics.items()]
            made.tables["numbers"] = numbers(rows)
            return made

        return with_numbers


@dataclass(frozen=True, kw_only=True)
class Matched(Exhibit):
    """CKA of the same layers: groups of a reference and what is compared with it."""

    def measure(self, m: Measurements, networks: tuple[tuple[str, ...], ...]) -> Later:
        studies = [m.matched(*group) for group in networks]

        def later() -> Made:
            from repsim.measures.cka import normalise_matched
            from repsim.measures.running import jackknife
            from repsim.studies.similarity import MatchedSimilarity

            rows = []
            for study in studies:
                for k, network in enumerate(study.networks[1:]):
                    value, se = jackknife(study.sums, lambda h, k=k: _fall(normalise_matched(h)[k]))
                    rows.append((f"lowest - highest third, {network.name}", value.item(), se.item()))
            table = pd.concat([MatchedSimilarity.table([study]) for study in studies], ignore_index=True)
            return Made({"matched": table, "numbers": numbers(rows)})

        return later

    def draw(self, made: Made, title: str) -> Figure:
        figure = plots.matched(made.tables["matched"]).figure
        figure.suptitle(title)
        return figure


def _fall(cka: Tensor) -> Tensor:
    return third(cka, 0) - third(cka, 2)


# Attention


@dataclass(frozen=True, kw_only=True)
class Distances(Exhibit):
    """Sorted attention distances of the lowest and highest blocks, a panel per network."""

    def measure(self, m: Measurements, networks: tuple[str, ...]) -> Later:
        studies = [m.attention(name) for name in networks]

        def later() -> Made:
            table = pd.concat([study.table() for study in studies], ignore_index=True)
            rows, nearest = [], {}
            for model, part in table.groupby("model", sort=False):
                first, last = (
                    part[part["block"] == block].sort_values("distance_px").iloc[0]
                    for block in (part["block"].min(), part["block"].max())
                )
                nearest[model] = (first["distance_px"], first["distance_se"])
                fall = (first["distance_px"] - last["distance_px"], both(first["distance_se"], last["distance_se"]))
                rows += [
                    (f"nearest head of the first block, {model}", *nearest[model]),
                    (f"nearest head, first - last block, {model}", *fall),
                ]
            if len(nearest) > 1:
                (a, (low, low_se)), (b, (high, high_se)) = list(nearest.items())[:2]
                rows.append((f"nearest head of the first block, {a} - {b}", low - high, both(low_se, high_se)))
            return Made({"attention": table, "numbers": numbers(rows)})

        return later

    def draw(self, made: Made, title: str) -> Figure:
        parts = [part for _, part in made.tables["attention"].groupby("model", sort=False)]
        return plots.side_by_side(plots.attention_distance, parts, title=title)


@dataclass(frozen=True, kw_only=True)
class Heads(Exhibit):
    """Windows of heads of a first block against lower layers: pairs of networks."""

    def measure(self, m: Measurements, networks: tuple[tuple[str, str], ...]) -> Later:
        from repsim.studies.heads import lower_layers

        pairs = [(m.heads(a, b, lower_layers(m.network(b))), m.attention(a)) for a, b in networks]

        def later() -> Made:
            from repsim.studies.heads import spearman, windows

            tables, rows = [], []
            for study, distance in pairs:
                table = windows(study, distance)
                mean = table.groupby("heads")[["distance_px", "cka"]].mean()
                names = " against ".join(network.name for network in study.networks)
                rows.append((f"rank correlation, {names}", *spearman(*mean.to_numpy().T)))
                tables.append(table)
            return Made({"heads": pd.concat(tables, ignore_index=True), "numbers": pd.DataFrame(rows, columns=NUMBERS)})

        return later

    def draw(self, made: Made, title: str) -> Figure:
        parts = [part for _, part in made.tables["heads"].groupby(["model_a", "model_b"], sort=False)]
        return plots.side_by_side(plots.head_similarity, parts, title=title)


# Receptive fields


@dataclass(frozen=True, kw_only=True)
class Receptive(Exhibit):
    """Effective receptive fields after every residual sum, or of what enters it, of one or two networks."""

    branch: bool = False
    against_sums: bool = False
    """Whether the centre's share is compared with that after the sums."""

    sweeps: ClassVar[bool] = False

    def measure(self, m: Measurements, networks: tuple[str, ...]) -> Later:
        found = [m.network(name) for name in networks]

        def later() -> Made:
            tables, arrays, rows = [], {}, []
            for name, network in zip(networks, found):
                groups = m.receptive(name, branch=self.branch)
                maps = {at: np.mean([each.maps[at] for each in groups], 0) for at in groups[0].maps}
                arrays |= {f"{network.name}/{at}": field for at, field in maps.items()}
                columns = ["radius50_px", "radius95_px", "centre_share"]
                by_group = np.stack([each.table[columns].to_numpy() for each in groups])
                tables.append(groups[0].table.assign(**dict(zip(columns, by_group.mean(0).T))))
                radius, share = by_group[:, :, 0], by_group[:, :, 2]
                rows += [
                    (f"half-mass radius, last layer, {network.name}", radius[:, -1]),
                    (f"half-mass radius, highest - lowest third, {network.name}", third(radius, 2) - third(radius, 0)),
                    (f"half-mass radius, lowest third, {network.name}", third(radius, 0)),
                    (f"share of the own patch, last layer, {network.name}", share[:, -1]),
                ]
                if self.against_sums:
                    summed = m.receptive(name)
                    of_sums = np.stack([each.table["centre_share"].to_numpy() for each in summed])
                    rows.append(
                        (
                            f"share of the own patch, after the sum - branch, {network.name}",
                            of_sums.mean(1) - share.mean(1),
                        )
                    )
            if len(found) > 1:
                a, b = (network.name for network in found[:2])
                low = {name: values for name, values in rows if name.startswith("half-mass radius, lowest third")}
                first, second = low.values()
                rows.append((f"half-mass radius, lowest third, {a} - {b}", first - second))
            return Made(
                {
                    "receptive": pd.concat(tables, ignore_index=True),
                    "numbers": pd.DataFrame([_spread(*r) for r in rows], columns=NUMBERS),
                },
                arrays,
            )

        return later

    def draw(self, made: Made, title: str) -> Figure:
        table = made.tables["receptive"]
        models = [part for _, part in table.groupby("model", sort=False)]
        each = 6 if len(models) > 1 else 12  # a row, or two, of panels for each network
        chosen = [part.iloc[np.unique(np.linspace(0, len(part) - 1, each).round().astype(int))] for part in models]
        table = pd.concat(chosen).assign(layer=lambda t: t["model"] + "/" + t["layer"])
        return plots.receptive_fields(table, made.arrays, most=len(table), title=title)


def _spread(name: str, values: np.ndarray) -> tuple[str, float, float, float]:
    """Mean over groups of images, and its 95 % interval by Student's t."""
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return name, values.mean(), values.mean() - half, values.mean() + half


# Skip connections, places


@dataclass(frozen=True, kw_only=True)
class Skips(Exhibit):
    """Norm ratios and cosines of skip and branch."""

    def measure(self, m: Measurements, networks: tuple[str, ...]) -> Later:
        studies = [m.residual(name) for name in networks]

        def later() -> Made:
            table = pd.concat([study.table() for study in studies], ignore_index=True)
            rows, means = [], {}
            for model, part in table.groupby("model", sort=False):
                halves = part["block"] < (part["block"].max() + 1) / 2
                means[model] = _mean_ratio(part)
                rows.append((f"skip over branch, {model}", *means[model]))
                if (part["token"] == "cls").any():
                    for half, chosen in (("first half", halves), ("second half", ~halves)):
                        cls, spatial = (
                            _mean_ratio(part[chosen & (part["token"] == "cls")]),
                            _mean_ratio(part[chosen & part["token"].str.isdigit()]),
                        )
                        rows.append(
                            (f"CLS - spatial ratio, {half}, {model}", cls[0] - spatial[0], both(cls[1], spatial[1]))
                        )
            if len(means) > 1:
                (a, (x, x_se)), (b, (y, y_se)) = list(means.items())[:2]
                rows.append((f"skip over branch, {a} - {b}", x - y, both(x_se, y_se)))
            return Made({"residual": table, "numbers": numbers(rows)})

        return later

    def draw(self, made: Made, title: str) -> Figure:
        figure = plots.residual(made.tables["residual"])
        figure.suptitle(title)
        return figure


def _mean_ratio(part: pd.DataFrame) -> tuple[float, float]:
    """Mean norm ratio over sublayers and tokens; its standard error is at most that given."""
    return float(part["ratio"].mean()), float(part["ratio_se"].mean())


@dataclass(frozen=True, kw_only=True)
class Places(Exhibit):
    """CKA of single tokens with input patches, of one layer of each network."""

    layer: int = -1
    """Which of a network's layers with places, from the first; -1: the last."""

    def measure(self, m: Measurements, networks: tuple[str, ...]) -> Later:
        studies = [m.localization(name) for name in networks]

        def later() -> Made:
            tables, parts = [], []
            for study in studies:
                (part,) = study.parts
                table = part.table()
                tables.append(table[table["layer"] == part.layers[self.layer].name])
                parts.append(study.summary())
            summary = pd.concat(parts, ignore_index=True)
            rows = []
            for study in studies:
                (part,) = study.parts
                chosen = (summary["model"] == part.network.name) & (summary["layer"] == part.layers[self.layer].name)
                row = summary[chosen & (summary["where"] == "interior")].iloc[0]
                rows.append((f"own patch - rest, interior, {part.network.name}", row["own_minus_rest"], row["se"]))
            if len(rows) > 1:
                (a, x, x_se), (b, y, y_se) = rows[:2]
                names = [study.parts[0].network.name for study in studies[:2]]
                rows.append((f"own patch - rest, interior, {names[0]} - {names[1]}", x - y, both(x_se, y_se)))
            tables = {"localization": pd.concat(tables, ignore_index=True), "localization_summary": summary}
            return Made({**tables, "numbers": numbers(rows)})

        return later

    def draw(self, made: Made, title: str) -> Figure:
        figure = plots.localization(made.tables["localization"])
        figure.suptitle(title)
        return figure


# Probes


@dataclass(frozen=True, kw_only=True)
class Probed(Exhibit):
    """Ten-shot probes of every layer; `shown` is the aggregation whose accuracies are compared."""

    shown: str = "classified"
    """`classified`: what the network's own classifier sees, CLS or the mean of tokens; `token_mean`; `token`."""
    at: int = 1
    """Third of the layers that is compared; 3: the last layer."""
    compare: tuple[tuple[str, int, int], ...] = ()
    """What is compared, and which network's accuracy less which other's."""

    def measure(self, m: Measurements, networks: tuple[str, ...]) -> Later:
        for name in networks:
            m.probing(name)

        def later() -> Made:
            names = [m.network(name).name for name in networks]
            table, summary = (t[t["model"].isin(names)] for t in (m.probes.table, m.probes.summary))
            rows = []
            for name in names:
                value, se = self._accuracy(summary[summary["model"] == name])
                rows.append((f"accuracy, {self._what()}, {name}", value, se))
            of = dict(enumerate(rows[: len(names)])) | {-1: rows[-1]}
            for what, a, b in self.compare:
                rows.append((f"accuracy, {self._what()}, {what}", of[a][1] - of[b][1], both(of[a][2], of[b][2])))
            tables = {"probe_summary": summary[summary["aggregation"] != "token"], "numbers": numbers(rows)}
            if self.shown == "token":
                tables["probe"] = table[table["aggregation"] == "token"]
            return Made({name: each.reset_index(drop=True) for name, each in tables.items()})

        return later

    def _what(self) -> str:
        where = ("lowest third", "middle third", "highest third", "last layer")[self.at]
        return f"{'single tokens' if self.shown.startswith('token') else 'aggregated'}, {where}"

    def _accuracy(self, summary: pd.DataFrame) -> tuple[float, float]:
        aggregation = "token_mean" if self.shown.startswith("token") else _classified(summary)
        part = summary[summary["aggregation"] == aggregation].sort_values("index")
        accuracy, se = part["accuracy"].to_numpy(), part["se"].to_numpy()
        return (accuracy[-1], se[-1]) if self.at == 3 else (third(accuracy, self.at), third(se, self.at))

    def draw(self, made: Made, title: str) -> Figure:
        if self.shown == "token":
            return plots.probe_tokens(made.tables["probe"], title=title)
        summary = made.tables["probe_summary"]
        if self.shown == "classified":
            parts = [part[part["aggregation"] == _classified(part)] for _, part in summary.groupby("model", sort=False)]
            return plots.compared(pd.concat(parts), title=title)
        return plots.probes(summary, title=title)


def _classified(summary: pd.DataFrame) -> str:
    return "cls" if (summary["aggregation"] == "cls").any() else "spatial_mean"
