"""How each kind of figure in the paper is measured and drawn, and the numbers its claims are checked by.

An exhibit asks `Measurements` for studies before the images pass, and makes its tables afterwards; its picture is drawn
from the tables alone. `numbers` holds what the paper makes a claim about: a value and its 95 % interval.
Nothing heavy is imported before something is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from repsim import plots
from repsim.plots.style import Figure, entitle
from repsim.tables import NUMBERS

if TYPE_CHECKING:
    from torch import Tensor

    from repsim.paper.measuring import Measurements
    from repsim.studies.similarity import LayerSimilarity


@dataclass
class Made:
    """What a figure is made of."""

    tables: dict[str, pd.DataFrame]
    """File name without `.csv` -> table; `numbers` is one of them."""
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    """Of a figure read from its files: how it was made."""


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
        mini_note, paper_note: what is not as the paper had it, and is written on the picture; where there are no
            networks, why.
    """

    number: str
    title: str
    shows: str
    mini: tuple[Any, ...] = ()
    paper: tuple[Any, ...] = ()
    mini_note: str = ""
    paper_note: str = ""

    def names(self, preset: str) -> list[str]:
        """All networks it needs."""
        return list(dict.fromkeys(_flat(getattr(self, preset))))

    def note(self, preset: str) -> str:
        return getattr(self, f"{preset}_note")

    def measure(self, m: Measurements, networks: tuple[Any, ...]) -> Later:
        raise NotImplementedError

    def draw(self, made: Made, title: str) -> Figure:
        raise NotImplementedError

    def caption(self, record: dict[str, Any]) -> str:
        """Number and title, and under it what is not as the paper had it, and whether weights are random."""
        first = f"Figure {self.number}. {self.title}"
        note = "untrained networks, random weights" if record["random"] else self.note(record["preset"])
        return f"{first}\n(here: {note})" if note else first


def _flat(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else [name for each in names for name in _flat(each)]


Number = tuple[str, float, float, int]
"""Name, value, its standard error, and of how many independent groups (batches, seeds, images) that is."""


def numbers(rows: Sequence[Number]) -> pd.DataFrame:
    """With 95 % intervals by Student's t; without one where the standard error is not known, or zero."""
    from scipy.stats import t

    found = []
    for name, value, se, groups in rows:
        half = t.ppf(0.975, groups - 1) * se if groups > 1 and se > 0 else np.nan
        found.append((name, value, value - half, value + half))
    return pd.DataFrame(found, columns=NUMBERS)


def difference(name: str, a: Number, b: Number) -> Number:
    """One number less another, as if they were independent: measured on the same images, they are rather closer."""
    return name, a[1] - b[1], float(np.hypot(a[2], b[2])), min(a[3], b[3])


def ratio(name: str, a: Number, b: Number) -> Number:
    """One number over another, as if they were independent."""
    value = a[1] / b[1]
    return name, value, float(abs(value) * np.hypot(a[2] / a[1], b[2] / b[1])), min(a[3], b[3])


def jackknifed(
    study: Any, statistics: dict[str, Callable[[Tensor], Tensor]], shape: Callable | None = None
) -> list[Number]:
    """Numbers from functions of a study's CKA, with their jackknife standard errors over minibatches."""
    from repsim.measures.cka import normalise
    from repsim.measures.running import jackknife

    sums, shape = study.sums["hsic"], shape or normalise
    found = []
    for name, of in statistics.items():
        value, se = jackknife(sums, lambda hsics, of=of: of(shape(hsics)))
        found.append((name, value.item(), se.item(), sums.groups))
    return found


def third(values: Any, which: int) -> Any:
    """Mean over the lowest (0), middle or highest (2) third of the last axis."""
    cuts = [round(values.shape[-1] * k / 3) for k in range(4)]
    return values[..., cuts[which] : cuts[which + 1]].mean(-1)


# Similarity of layers


@dataclass(frozen=True, kw_only=True)
class Similarity(Exhibit):
    """Heatmaps of CKA; networks are groups that pass together, of which `panels` draws some pairs."""

    panels: str = "within"
    """`within` each network, `across` from the first to each other of a group, `all` of these; or all `pairs`."""
    layers: str | None = None
    """Which; None: those of the run."""
    statistics: Callable[[list[str], list[slice]], dict[str, Callable[[Tensor], Tensor]]] | None = None
    """From the names and rows of a group's networks: number -> what it is of the group's CKA matrix."""

    def measure(self, m: Measurements, networks: tuple[tuple[str, ...], ...]) -> Later:
        studies = [m.similarity(*group, layers=self.layers) for group in networks]

        def later() -> Made:
            from repsim.studies.similarity import LayerSimilarity

            parts, rows = [], []
            for study in studies:
                names = [network.name for network in study.networks]
                table = LayerSimilarity.table([study])
                pairs = self.pairs(names)
                parts.append(table[[pair in pairs for pair in zip(table["model_a"], table["model_b"])]])
                if self.statistics is not None:
                    rows += jackknifed(study, self.statistics(names, rows_of(study)))
            cka = pd.concat(parts).drop_duplicates(["model_a", "layer_a", "model_b", "layer_b"])
            return Made({"cka": cka.reset_index(drop=True), "numbers": numbers(rows)})

        return later

    def pairs(self, names: list[str]) -> list[tuple[str, str]]:
        within = [(name, name) for name in names]
        across = [(names[0], name) for name in names[1:]]
        pairs = list(combinations(names, 2))
        return {"within": within, "across": across, "all": within + across, "pairs": pairs}[self.panels]

    def draw(self, made: Made, title: str) -> Figure:
        cka = made.tables["cka"]
        pairs = list(dict.fromkeys(zip(cka["model_a"], cka["model_b"])))
        return plots.panels(cka, pairs, title=title)


def rows_of(study: LayerSimilarity) -> list[slice]:
    """The rows of the CKA matrix of all layers that belong to each network."""
    ends = np.cumsum([0, *map(len, study.layers)]).tolist()
    return [slice(low, high) for low, high in zip(ends, ends[1:])]


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


def matching(names: list[str], where: list[slice]) -> dict[str, Callable[[Tensor], Tensor]]:
    """What in the first network is like the second's lower half; what in the second is like the first's last third."""
    import torch

    def lower(cka: Tensor) -> Tensor:
        part = cka[where[0], where[1]]
        part, quarter = part[:, : -(-part.shape[1] // 2)], -(-len(part) // 4)
        return (part[:quarter].max(0).values - part[quarter:].max(0).values).mean()

    def last(cka: Tensor) -> Tensor:
        best = cka[where[0], where[1]].max(1).values
        return third(best, 2) - torch.stack([third(best, 0), third(best, 1)]).mean()

    first, second = names[:2]
    return {
        f"likest of {first} to lower half of {second}: lowest quarter - rest": lower,
        f"likest of {second} to {first}: last third - rest": last,
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


def across_blocks(
    names: list[str], where: list[slice], *, blocks: Sequence[int]
) -> dict[str, Callable[[Tensor], Tensor]]:
    """CKA of the layers before a block with those from it on: of an untouched network, and of one without its skips."""

    def across(cka: Tensor, network: int, block: int) -> Tensor:
        return cka[where[network], where[network]][: block + 1, block + 1 :].mean()  # the stem is layer 0

    found: dict[str, Callable[[Tensor], Tensor]] = {}
    for k, block in enumerate(blocks, 1):
        without, untouched = partial(across, network=k, block=block), partial(across, network=0, block=block)
        found |= {
            f"CKA across block {block}, without its skips": without,
            f"CKA across block {block}, untouched": untouched,
            f"CKA across block {block}, without its skips - untouched": lambda cka, a=without, b=untouched: (
                a(cka) - b(cka)
            ),
        }
    return found


@dataclass(frozen=True, kw_only=True)
class Matched(Exhibit):
    """CKA of the same layers: groups of a reference and what is compared with it."""

    def measure(self, m: Measurements, networks: tuple[tuple[str, ...], ...]) -> Later:
        studies = [m.matched(*group) for group in networks]

        def later() -> Made:
            from repsim.measures.cka import normalise_matched
            from repsim.studies.similarity import MatchedSimilarity

            rows = []
            for study in studies:
                falls = {
                    f"lowest - highest third, {network.name}": lambda cka, k=k: third(cka[k], 0) - third(cka[k], 2)
                    for k, network in enumerate(study.networks[1:])
                }
                rows += jackknifed(study, falls, normalise_matched)
            table = pd.concat([MatchedSimilarity.table([study]) for study in studies], ignore_index=True)
            return Made({"matched": table, "numbers": numbers(rows)})

        return later

    def draw(self, made: Made, title: str) -> Figure:
        figure = plots.matched(made.tables["matched"]).figure
        entitle(figure, title)
        return figure


# Attention


@dataclass(frozen=True, kw_only=True)
class Distances(Exhibit):
    """Sorted attention distances of the lowest and highest blocks, a panel per network."""

    def measure(self, m: Measurements, networks: tuple[str, ...]) -> Later:
        studies = [m.attention(name) for name in networks]

        def later() -> Made:
            table = pd.concat([study.table() for study in studies], ignore_index=True)
            rows: list[Number] = []
            firsts: list[tuple[str, Number]] = []
            for model, part in table.groupby("model", sort=False):
                low, high = part["block"].min(), part["block"].max()
                first = self._nearest(f"nearest head of the first block, {model}", part[part["block"] == low], m)
                last = self._nearest(f"nearest head of the last block, {model}", part[part["block"] == high], m)
                rows += [first, last, ratio(f"nearest head, first / last block, {model}", first, last)]
                firsts.append((model, first))
            if len(firsts) > 1:
                (a, x), (b, y) = firsts[:2]
                rows.append(difference(f"nearest head of the first block, {a} - {b}", x, y))
            return Made({"attention": table, "numbers": numbers(rows)})

        return later

    def _nearest(self, name: str, heads: pd.DataFrame, m: Measurements) -> Number:
        nearest = heads.loc[heads["distance_px"].idxmin()]
        return name, nearest["distance_px"], nearest["distance_se"], len(m.images)

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

    def measure(self, m: Measurements, networks: tuple[str, ...]) -> Later:
        found = [m.network(name) for name in networks]

        def later() -> Made:
            tables, arrays, rows, lowest = [], {}, [], []
            for name, network in zip(networks, found):
                groups = m.receptive(name, branch=self.branch)
                maps = {at: np.mean([each.maps[at] for each in groups], 0) for at in groups[0].maps}
                arrays |= {f"{network.name}/{at}": field for at, field in maps.items()}
                columns = ["radius50_px", "radius95_px", "centre_share"]
                by_group = np.stack([each.table[columns].to_numpy() for each in groups])
                tables.append(groups[0].table.assign(**dict(zip(columns, by_group.mean(0).T))))
                radius, share = by_group[:, :, 0], by_group[:, :, 2]
                rows += [
                    _spread(f"half-mass radius, last layer, {network.name}", radius[:, -1]),
                    _spread(
                        f"half-mass radius, highest - lowest third, {network.name}", third(radius, 2) - third(radius, 0)
                    ),
                    _spread(f"half-mass radius, lowest third, {network.name}", third(radius, 0)),
                    _spread(f"share of the own patch, last layer, {network.name}", share[:, -1]),
                ]
                lowest.append((network.name, third(radius, 0)))
                if self.against_sums:
                    of_sums = np.stack([each.table["centre_share"].to_numpy() for each in m.receptive(name)])
                    more = of_sums.mean(1) - share.mean(1)
                    rows.append(_spread(f"share of the own patch, after the sum - branch, {network.name}", more))
            if len(lowest) > 1:
                (a, x), (b, y) = lowest[:2]
                rows.append(_spread(f"half-mass radius, lowest third, {a} - {b}", x - y))
            return Made({"receptive": pd.concat(tables, ignore_index=True), "numbers": numbers(rows)}, arrays)

        return later

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


def _spread(name: str, values: np.ndarray) -> Number:
    """The mean over groups of images."""
    return name, float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5), len(values)


# Skip connections, places


@dataclass(frozen=True, kw_only=True)
class Skips(Exhibit):
    """Norm ratios and cosines of skip and branch."""

    shown: str = "both"
    """`ratio`, `cosine`, or `both`."""

    def measure(self, m: Measurements, networks: tuple[str, ...]) -> Later:
        studies = [m.residual(name) for name in networks]

        def later() -> Made:
            table = pd.concat([study.table() for study in studies], ignore_index=True)
            rows: list[Number] = []
            means: list[tuple[str, Number]] = []
            for model, part in table.groupby("model", sort=False):

                def mean(name: str, chosen: pd.DataFrame) -> Number:
                    return name, *_mean_ratio(chosen), len(m.images)

                means.append((model, mean(f"skip over branch, {model}", part)))
                rows.append(means[-1][1])
                low, cls = part["block"] < (part["block"].max() + 1) / 2, part["token"] == "cls"
                for half, there in (("first half", low), ("second half", ~low)) if cls.any() else ():
                    own, others = mean("", part[there & cls]), mean("", part[there & part["token"].str.isdigit()])
                    rows.append(difference(f"CLS - spatial ratio, {half}, {model}", own, others))
            if len(means) > 1:
                (a, x), (b, y) = means[:2]
                rows.append(difference(f"skip over branch, {a} - {b}", x, y))
            return Made({"residual": table, "numbers": numbers(rows)})

        return later

    def draw(self, made: Made, title: str) -> Figure:
        draw = {"ratio": plots.norm_ratios, "cosine": plots.cosines, "both": plots.residual}[self.shown]
        return draw(made.tables["residual"], title=title)


def _mean_ratio(part: pd.DataFrame) -> tuple[float, float]:
    """Mean norm ratio of the residual sums, each a mean over its tokens; its standard error is at most that given."""
    of_sums = part.groupby(["block", "sublayer"])[["ratio", "ratio_se"]].mean()
    return float(of_sums["ratio"].mean()), float(of_sums["ratio_se"].mean())


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
                tables.append(part.table(part.layers[self.layer]))
                parts.append(study.summary())
            summary = pd.concat(parts, ignore_index=True)
            rows: list[Number] = []
            for study in studies:
                (part,) = study.parts
                chosen = (summary["model"] == part.network.name) & (summary["layer"] == part.layers[self.layer].name)
                row = summary[chosen & (summary["where"] == "interior")].iloc[0]
                groups = part.cka.sums.groups
                rows.append(
                    (f"own patch - rest, interior, {part.network.name}", row["own_minus_rest"], row["se"], groups)
                )
            if len(rows) > 1:
                a, b = (study.parts[0].network.name for study in studies[:2])
                rows.append(difference(f"own patch - rest, interior, {a} - {b}", *rows[:2]))
            tables = {"localization": pd.concat(tables, ignore_index=True), "localization_summary": summary}
            return Made({**tables, "numbers": numbers(rows)})

        return later

    def draw(self, made: Made, title: str) -> Figure:
        return plots.localization(made.tables["localization"], title=title)


# Probes


@dataclass(frozen=True, kw_only=True)
class Probed(Exhibit):
    """Ten-shot probes of every layer; `shown` is the aggregation whose accuracies are compared."""

    shown: str = "classified"
    """`classified`: what the network's own classifier sees, CLS or the mean of tokens; `aggregations`: all of them;
    `token_mean`: single tokens, and all others; `token`: single tokens, at their places."""
    at: int = 1
    """Third of the layers that is compared; 3: the last layer."""
    compare: tuple[tuple[str, int, int], ...] = ()
    """What is compared, and which network's accuracy less which other's."""

    def measure(self, m: Measurements, networks: tuple[str, ...]) -> Later:
        for name in networks:
            m.probing(name, tokens=self.shown.startswith("token"))

        def later() -> Made:
            single, summaries, rows = [], [], []
            for name in networks:
                found, model = m.probes(name), m.network(name).name
                single.append(found.table[(found.table["model"] == model) & (found.table["aggregation"] == "token")])
                summaries.append(found.summary[found.summary["model"] == model])
                rows.append((f"accuracy, {self._what()}, {model}", *self._accuracy(summaries[-1])))
            of = list(rows)
            rows += [difference(f"accuracy, {self._what()}, {what}", of[a], of[b]) for what, a, b in self.compare]
            # What others had probed of the same networks is not of this figure.
            without = {"token": [], "token_mean": ["token"]}.get(self.shown, ["token", "token_mean"])
            summary = pd.concat(summaries)
            made = {"probe_summary": summary[~summary["aggregation"].isin(without)], "numbers": numbers(rows)}
            if self.shown == "token":
                made["probe"] = pd.concat(single)
            return Made({name: each.reset_index(drop=True) for name, each in made.items()})

        return later

    def _what(self) -> str:
        where = ("lowest third", "middle third", "highest third", "last layer")[self.at]
        return f"{'single tokens' if self.shown.startswith('token') else 'aggregated'}, {where}"

    def _accuracy(self, summary: pd.DataFrame) -> tuple[float, float, int]:
        """With its standard error over so many draws, which in a mean over layers is at most that given."""
        aggregation = "token_mean" if self.shown.startswith("token") else _classified(summary)
        part = summary[summary["aggregation"] == aggregation].sort_values("index")
        accuracy, se, seeds = part["accuracy"].to_numpy(), part["se"].to_numpy(), int(part["seeds"].iloc[0])
        return (accuracy[-1], se[-1], seeds) if self.at == 3 else (third(accuracy, self.at), third(se, self.at), seeds)

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
