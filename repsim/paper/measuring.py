"""What the figures of the paper are made from: studies that share networks, images and forward passes.

An exhibit asks `Measurements` for studies before the images pass, and its tables are made afterwards; see `measure`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from functools import partial, singledispatch
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from repsim.errors import RepsimError, UsageError
from repsim.images.image_set import Batch, Counts, ImageSet
from repsim.measures.localization import own_minus_rest, places
from repsim.measures.running import Together, Total
from repsim.networks.layers import Layer, find_layers
from repsim.networks.models import Network
from repsim.paper import exhibits
from repsim.paper.exhibits import Comparison, Exhibit, Made, classified
from repsim.paper.numbers import (
    STATISTICS,
    Number,
    Of,
    Statistic,
    across_blocks,
    apart,
    difference,
    jackknifed,
    less,
    numbers,
    spread,
    third,
    with_intervals,
)
from repsim.passes.seen import Seen
from repsim.passes.study import Study
from repsim.passes.sweep import networks_of, sweep
from repsim.studies.attention import AttentionDistance
from repsim.studies.heads import HeadSimilarity, correlation, head_layer, lower_layers, windows
from repsim.studies.localization import Localization, located
from repsim.studies.probe import Probing
from repsim.studies.receptive import receptive_fields
from repsim.studies.residual import ResidualNorms
from repsim.studies.results import Begun, Notices, Result
from repsim.studies.similarity import LayerSimilarity, MatchedSimilarity


class Measurements:
    """Studies that figures ask for before the images pass, each made once however many figures want it.

    Forward-only studies share one pass over the test images, in which every network sees every image once; probes
    are fitted before, in a pass of theirs over the training images.

    Args:
        load: name of a network -> the network, untold apart from others of its name.
        layers: of similarity; see `find_layers`. Other figures show blocks.
        batch_size: images per minibatch.
        channels: channels per layer of receptive fields, drawn at random; 0 takes all.
        images: the test images.
        train: the training images of probes; None: there are none, and figures of probes cannot be made.
        how: `progress`, `workers`, `skip_broken` of `sweep`.
    """

    def __init__(
        self,
        load: Callable[[str], Network],
        images: ImageSet,
        train: ImageSet | None,
        *,
        layers: str = "blocks",
        batch_size: int = 250,
        channels: int = 16,
        **how: Any,
    ) -> None:
        self.images, self.train, self.layers, self.batch_size, self.how = images, train, layers, batch_size, how
        self.channels = channels
        self._load = load
        self._networks: dict[str, Network] = {}
        self._studies: dict[Hashable, Study] = {}
        self._fields: dict[Hashable, list[Result]] = {}
        self._probed: dict[str, bool] = {}
        """Name of a network -> whether single tokens are probed too."""
        self._probes: dict[str, Result | RepsimError] = {}
        self.passes: dict[str, dict[str, int]] = {}
        """Images that each network saw in a forward pass, counted as it ran: `test` and, for probes, `train`."""

    def network(self, name: str) -> Network:
        if name not in self._networks:
            self._networks[name] = self._load(name)
        return self._networks[name]

    @property
    def networks(self) -> list[Network]:
        """All that were asked for."""
        return list(self._networks.values())

    def _once(self, made: dict, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in made:
            made[key] = make()
        return made[key]

    def _found(self, names: Sequence[str], layers: str) -> tuple[list[Network], list[list[Layer]]]:
        networks = [self.network(name) for name in names]
        return networks, [find_layers(network, layers) for network in networks]

    def similarity(self, *names: str, layers: str | None = None) -> LayerSimilarity:
        """CKA of all layers of all these networks."""
        layers = layers or self.layers
        key = ("similarity", names, layers)
        return self._once(self._studies, key, lambda: LayerSimilarity(*self._found(names, layers)))

    def matched(self, reference: str, *others: str) -> MatchedSimilarity:
        names = (reference, *others)
        return self._once(self._studies, ("matched", names), lambda: MatchedSimilarity(*self._found(names, "blocks")))

    def attention(self, name: str) -> AttentionDistance:
        return self._once(self._studies, ("attention", name), lambda: AttentionDistance(self.network(name)))

    def heads(self, name: str, other: str, layers: Sequence[Layer]) -> HeadSimilarity:
        """Heads of the first block of one against layers of the other."""

        def make() -> HeadSimilarity:
            networks = [self.network(name), self.network(other)]
            return HeadSimilarity(networks, *head_layer(networks[0]), layers)

        return self._once(self._studies, ("heads", name, other), make)

    def residual(self, name: str) -> ResidualNorms:
        return self._once(self._studies, ("residual", name), lambda: ResidualNorms([self.network(name)]))

    def localization(self, name: str) -> Localization:
        def make() -> Localization:
            network = self.network(name)
            return Localization([network], [located(network, "blocks")[0]])

        return self._once(self._studies, ("localization", name), make)

    def probing(self, name: str, *, tokens: bool) -> None:
        """Have a network probed, its single tokens too or not; what comes of it is in `probes`."""
        if self.train is None:
            raise UsageError("probes need training images with labels, and there are none")
        self.network(name)
        self._probed[name] = self._probed.get(name, False) or tokens

    def probes(self, name: str) -> Result:
        """What was found by probes, among others of this network."""
        found = self._probes[name]
        if isinstance(found, RepsimError):
            raise found
        return found

    def probe_protocols(self) -> list[dict[str, Any]]:
        """How probes were made, once for those with and once for those without single tokens."""
        found = {id(of): of.protocol for of in self._probes.values() if not isinstance(of, RepsimError)}
        return list(found.values())

    def receptive(self, name: str, *, branch: bool = False) -> list[Result]:
        """Receptive fields of groups of four of the first 32 images, by gradients: passes of their own."""

        def make() -> list[Result]:
            groups = np.arange(min(32, len(self.images)) // 4 * 4).reshape(-1, 4)
            how = self._how(f"receptive fields of {name}, groups of images")
            progress = how.pop("progress") or (lambda groups, total: groups)
            options = {"branch": branch, "channels": self.channels or None, "batch_size": 4, **how}
            return [
                receptive_fields(self.network(name), self.images.only(group), **options)
                for group in progress(groups, total=len(groups))
            ]

        return self._once(self._fields, (name, branch), make)

    def _how(self, what: str) -> dict[str, Any]:
        """How a pass is made, its progress named after what passes."""
        progress = self.how.get("progress")
        return {**self.how, "progress": progress and partial(progress, desc=what)}

    def run(self) -> Counts:
        """Pass the images; afterwards every study that was asked for has its sums."""
        studies, fitted = list(self._studies.values()), []
        for tokens in sorted(set(self._probed.values())):
            names = [name for name, single in self._probed.items() if single == tokens]
            networks = [self.network(name) for name in names]
            try:
                begun = Begun(networks, self.images, Notices())
                probing = Probing.of(begun, self.train, tokens=tokens, neighbours=0)
                passes = Passes(networks)
                how = self._how("training images")
                probes, trained_on = probing.fit(batch_size=self.batch_size, beside=passes.among, **how)
                self._count(passes, "train")
                studies.append(probing.testing(probes))
                fitted.append((names, partial(probing.result, studies[-1], trained_on)))
            except UsageError as error:  # too few images of a class, or too little memory
                self._probes |= dict.fromkeys(names, error)
        if not studies:
            return Counts()
        passes = Passes(networks_of(studies))
        counts = sweep(self.images, [*studies, passes], batch_size=self.batch_size, **self._how("test images"))
        self._count(passes, "test")
        for names, result in fitted:
            self._probes |= dict.fromkeys(names, result(counts))
        return counts

    def _count(self, passes: Passes, what: str) -> None:
        for name, total in passes.sums.items():
            self.passes.setdefault(name, {})[what] = total.total


class Passes(Study):
    """The study that counts the images which go through each network, as they do."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self.networks = networks
        self.sums: dict[str, Total] = {}

    def among(self, networks: Sequence[Network]) -> Passes:
        """The same, of a pass of some of them."""
        self.networks = networks
        return self

    def watch(self, index: int, network: Network, seen: Seen) -> AbstractContextManager[None]:
        return seen.calls(lambda images: self.sums.setdefault(network.name, Total()).update(images))

    def update(self, seen: Sequence[Seen], batch: Batch) -> None:
        """Nothing more: it was counted when the images went in."""


# What each kind of exhibit is made of

Later = Callable[[], Made]
"""What is done once the images have passed."""


@singledispatch
def measure(exhibit: Exhibit, m: Measurements, networks: tuple[Any, ...]) -> Later:
    """Ask for the studies of an exhibit; what is returned makes its tables and numbers once the images have passed.

    Args:
        exhibit: what is measured depends on its kind.
        m: what shares studies and passes.
        networks: its names of one preset.
    """
    raise NotImplementedError(f"nothing is known of how exhibits of the kind {type(exhibit).__name__} are measured")


@measure.register(exhibits.Similarity)
def similarity(exhibit: exhibits.Similarity, m: Measurements, networks: tuple[tuple[str, ...], ...]) -> Later:
    """CKA of all layers, and the statistics of it that the figure is about."""
    studies = [m.similarity(*group, layers=exhibit.layers) for group in networks]

    def later() -> Made:
        parts, found = [], []
        for study in studies:
            names = [network.name for network in study.networks]
            table = LayerSimilarity.table([study])
            pairs = drawn_pairs(exhibit.panels, names)
            parts.append(table[[pair in pairs for pair in zip(table["model_a"], table["model_b"])]])
            found += jackknifed(study.sums, _statistics(exhibit, names, rows_of(study)))
        cka = pd.concat(parts).drop_duplicates(["model_a", "layer_a", "model_b", "layer_b"])
        return Made({"cka": cka.reset_index(drop=True), "numbers": numbers(found)})

    return later


def drawn_pairs(panels: str, names: list[str]) -> list[tuple[str, str]]:
    """The pairs of a group of networks that are drawn; see `exhibits.Similarity.panels`."""
    within = [(name, name) for name in names]
    across = [(names[0], name) for name in names[1:]]
    pairs = list(combinations(names, 2))
    return {"within": within, "across": across, "all": within + across, "pairs": pairs}[panels]


def rows_of(study: LayerSimilarity) -> list[slice]:
    """The rows of the CKA matrix of all layers that belong to each network."""
    ends = np.cumsum([0, *map(len, study.layers)]).tolist()
    return [slice(low, high) for low, high in zip(ends, ends[1:])]


def _statistics(exhibit: exhibits.Similarity, names: list[str], where: list[slice]) -> list[Statistic]:
    if exhibit.without_skips:
        return across_blocks(names, where, exhibit.without_skips)
    return STATISTICS[exhibit.statistics](names, where) if exhibit.statistics else []


@measure.register(exhibits.Matched)
def matched(exhibit: exhibits.Matched, m: Measurements, networks: tuple[tuple[str, ...], ...]) -> Later:
    """CKA of the same layers, and by how much it falls from low to high ones."""
    studies = [m.matched(*group) for group in networks]

    def later() -> Made:
        found = []
        for study in studies:
            reference, *others = [network.name for network in study.networks]
            falls = [
                Statistic(
                    "lowest_minus_highest_third",
                    (name, reference),
                    f"lowest - highest third, {name}",
                    lambda cka, k=k: third(cka[k], 0) - third(cka[k], 2),
                )
                for k, name in enumerate(others)
            ]
            found += jackknifed(study.sums, falls)
        table = pd.concat([MatchedSimilarity.table([study]) for study in studies], ignore_index=True)
        return Made({"matched": table, "numbers": numbers(found)})

    return later


@measure.register(exhibits.Attention)
def attention(exhibit: exhibits.Attention, m: Measurements, networks: tuple[str, ...]) -> Later:
    """Distances of heads: of the nearest one in the first and in the last block."""
    studies = [m.attention(name) for name in networks]

    def later() -> Made:
        table = pd.concat([study.table() for study in studies], ignore_index=True)
        models = [study.network.name for study in studies]
        sums = Together([ends for study in studies for ends in (study.distances()[0], study.distances()[-1])])
        first, last = (lambda means, k: means[2 * k].min()), (lambda means, k: means[2 * k + 1].min())
        kinds = {
            "nearest_head_first": ("nearest head of the first block", first),
            "nearest_head_last": ("nearest head of the last block", last),
            "nearest_head_ratio": (
                "nearest head, first / last block",
                lambda means, k: first(means, k) / last(means, k),
            ),
        }
        found = [
            Statistic(key, (model,), f"{label}, {model}", partial(of, k=k))
            for k, model in enumerate(models)
            for key, (label, of) in kinds.items()
        ]
        label = "nearest head of the first block"
        found += apart(
            "nearest_head_first_difference", label, models, [partial(first, k=k) for k in range(len(models))]
        )
        return Made({"attention": table, "numbers": numbers(jackknifed(sums, found))})

    return later


@measure.register(exhibits.Heads)
def heads(exhibit: exhibits.Heads, m: Measurements, networks: tuple[tuple[str, str], ...]) -> Later:
    """Windows of heads against lower layers, and the rank correlation of distance and of CKA, mean over the layers."""
    pairs = [(m.heads(a, b, lower_layers(m.network(b))), m.attention(a)) for a, b in networks]

    def later() -> Made:
        tables, found = [], []
        for study, distance in pairs:
            tables.append(windows(study, distance))
            a, b = (network.name for network in study.networks)
            label = f"rank correlation, {a} against {b}"
            value, low, high, p = (float(each[-1]) for each in correlation(study, distance))
            found.append(("rank_correlation", (a, b), label, value, low, high))
            found.append(("rank_correlation_p", (a, b), f"{label}: share of orders of heads", p, np.nan, np.nan))
        return Made({"heads": pd.concat(tables, ignore_index=True), "numbers": with_intervals(found)})

    return later


@measure.register(exhibits.Receptive)
def receptive(exhibit: exhibits.Receptive, m: Measurements, networks: tuple[str, ...]) -> Later:
    """Receptive fields, and how their radius grows with depth."""
    own = [m.network(name).name for name in networks]

    def later() -> Made:
        tables, arrays, found, lowest = [], {}, [], []
        for name, model in zip(networks, own):
            groups = m.receptive(name, branch=exhibit.branch)
            maps = {at: np.mean([each.maps[at] for each in groups], 0) for at in groups[0].maps}
            arrays |= {f"{model}/{at}": field for at, field in maps.items()}
            columns = ["radius50_px", "radius95_px", "centre_share"]
            by_group = np.stack([each.table[columns].to_numpy() for each in groups])
            tables.append(groups[0].table.assign(**dict(zip(columns, by_group.mean(0).T))))
            radius, share = by_group[:, :, 0], by_group[:, :, 2]
            lowest.append(third(radius, 0))
            growth = third(radius, 2) - lowest[-1]
            of_model = [
                ("radius_last", "half-mass radius, last layer", radius[:, -1]),
                ("radius_highest_minus_lowest_third", "half-mass radius, highest - lowest third", growth),
                ("radius_lowest_third", "half-mass radius, lowest third", lowest[-1]),
                ("own_patch_last", "share of the own patch, last layer", share[:, -1]),
            ]
            if exhibit.against_sums:
                of_sums = np.stack([each.table["centre_share"].to_numpy() for each in m.receptive(name)])
                more = of_sums.mean(1) - share.mean(1)
                label = "share of the own patch, after the sum - branch"
                of_model.append(("own_patch_sum_minus_branch", label, more))
            found += [spread(key, (model,), f"{what}, {model}", values) for key, what, values in of_model]
        if len(own) > 1:
            a, b = own[:2]
            label = f"half-mass radius, lowest third, {a} - {b}"
            found.append(spread("radius_lowest_third_difference", (a, b), label, lowest[0] - lowest[1]))
        return Made({"receptive": pd.concat(tables, ignore_index=True), "numbers": numbers(found)}, arrays)

    return later


@measure.register(exhibits.Residual)
def residual(exhibit: exhibits.Residual, m: Measurements, networks: tuple[str, ...]) -> Later:
    """Norm ratios of residual sums, of CLS against spatial tokens in both halves of the network."""
    studies = [m.residual(name) for name in networks]

    def later() -> Made:
        table = pd.concat([study.table() for study in studies], ignore_index=True)
        sums = Together([each for study in studies for each in study.grouped()])
        found: list[Statistic] = []
        models = dict(list(table.groupby("model", sort=False)))
        overall = [mean_ratio(part) for part in models.values()]
        for (model, part), of in zip(models.items(), overall):
            found.append(Statistic("skip_over_branch", (model,), f"skip over branch, {model}", of))
            low, cls = part["block"] < (part["block"].max() + 1) / 2, part["token"] == "cls"
            for half, there in (("first", low), ("second", ~low)) if cls.any() else ():
                pair = [mean_ratio(part[there & chosen]) for chosen in (cls, part["token"].str.isdigit())]
                label = f"CLS - spatial ratio, {half} half, {model}"
                found.append(Statistic(f"cls_minus_spatial_{half}_half", (model,), label, partial(less, *pair)))
        found += apart("skip_over_branch_difference", "skip over branch", list(models), overall)
        return Made({"residual": table, "numbers": numbers(jackknifed(sums, found))})

    return later


def mean_ratio(part: pd.DataFrame) -> Of:
    """The mean over residual sums, each a mean over its tokens, of some rows of a table whose ratios are given."""
    part = part[part["ratio"].notna()]
    each = part.groupby(["block", "sublayer"])["ratio"]
    rows = torch.from_numpy(part.index.to_numpy(copy=True))
    weights = torch.from_numpy(1 / each.transform("size").to_numpy(float))
    return lambda means: torch.cat(means).cpu()[rows] @ weights / weights.sum()


@measure.register(exhibits.Localization)
def localization(exhibit: exhibits.Localization, m: Measurements, networks: tuple[str, ...]) -> Later:
    """CKA of tokens and patches at one layer, and how far a token's own patch stands out."""
    studies = [m.localization(name) for name in networks]

    def later() -> Made:
        parts = [part for study in studies for part in study.parts]
        sums = [each.part(exhibit.layer) for study in studies for each in study.sums]
        tables = [part.table(part.layers[exhibit.layer], of_layer) for part, of_layer in zip(parts, sums)]
        summary = pd.concat([study.summary() for study in studies], ignore_index=True)
        models = [part.network.name for part in parts]
        interiors = [np.array(places(part.grid)) == "interior" for part in parts]

        def own(hsics: list[Tensor], k: int) -> Tensor:
            return own_minus_rest(sums[k].finish(hsics[k]))[interiors[k]].nanmean()

        label, each = "own patch - rest, interior", [partial(own, k=k) for k in range(len(parts))]
        found = [Statistic("own_minus_rest", (model,), f"{label}, {model}", of) for model, of in zip(models, each)]
        found += apart("own_minus_rest_difference", label, models, each)
        made = {"localization": pd.concat(tables, ignore_index=True), "localization_summary": summary}
        return Made({**made, "numbers": numbers(jackknifed(Together(sums), found))})

    return later


@measure.register(exhibits.ProbesCompared)
@measure.register(exhibits.ProbesAggregated)
def probes_aggregated(
    exhibit: exhibits.ProbesCompared | exhibits.ProbesAggregated, m: Measurements, networks: tuple[str, ...]
) -> Later:
    """Accuracies by kind of aggregation."""
    for name in networks:
        m.probing(name, tokens=exhibit.tokens)
    accuracy = _of_tokens if exhibit.tokens else _aggregated
    others = ("token",) if exhibit.tokens else ("token", "token_mean")

    def later() -> Made:
        summary, found = _accuracies(m, networks, accuracy, exhibit.compare)
        return Made({"probe_summary": _without(summary, *others), "numbers": found})

    return later


@measure.register(exhibits.ProbesOfTokens)
def probes_of_tokens(exhibit: exhibits.ProbesOfTokens, m: Measurements, networks: tuple[str, ...]) -> Later:
    """Accuracies of each single token."""
    for name in networks:
        m.probing(name, tokens=True)

    def later() -> Made:
        summary, found = _accuracies(m, networks, _of_tokens, exhibit.compare)
        single = []
        for name in networks:
            table = m.probes(name).table
            single.append(table[(table["model"] == m.network(name).name) & (table["aggregation"] == "token")])
        return Made({"probe_summary": summary, "probe": pd.concat(single, ignore_index=True), "numbers": found})

    return later


def _accuracies(
    m: Measurements,
    networks: tuple[str, ...],
    accuracy: Callable[[str, pd.DataFrame], Number],
    compare: Sequence[Comparison],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The summary of the probes of networks, and their accuracies, alone and compared."""
    parts, found = [], []
    for name in networks:
        summary, model = m.probes(name).summary, m.network(name).name
        parts.append(summary[summary["model"] == model])
        found.append(accuracy(model, parts[-1]))
    found += [difference(key, label, found[first], found[second]) for key, label, first, second in compare]
    return pd.concat(parts, ignore_index=True), numbers(found)


def _without(summary: pd.DataFrame, *aggregations: str) -> pd.DataFrame:
    """What others had probed of the same networks is not of this figure."""
    return summary[~summary["aggregation"].isin(aggregations)].reset_index(drop=True)


def _aggregated(model: str, summary: pd.DataFrame) -> Number:
    """What the network's own classifier sees, mean over the middle third of layers; its error is at most that given."""
    part = summary[summary["aggregation"] == classified(summary)].sort_values("index")
    accuracy, se = (third(part[column].to_numpy(), 1) for column in ("accuracy", "se"))
    label = f"accuracy, aggregated, middle third, {model}"
    return Number("accuracy_aggregated", (model,), label, accuracy, se, int(part["seeds"].iloc[0]))


def _of_tokens(model: str, summary: pd.DataFrame) -> Number:
    """Single tokens of the last layer, on average."""
    last = summary[summary["aggregation"] == "token_mean"].sort_values("index").iloc[-1]
    label = f"accuracy, single tokens, last layer, {model}"
    return Number("accuracy_tokens", (model,), label, last["accuracy"], last["se"], int(last["seeds"]))
