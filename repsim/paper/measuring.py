"""Measuring the figures of the paper: each kind of exhibit asks for its studies, and makes its tables of them later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, singledispatch
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from repsim.measures.localization import own_minus_rest, places
from repsim.measures.running import ImageMeans, Together
from repsim.paper import exhibits
from repsim.paper.exhibits import Compared, Exhibit, Made, classified
from repsim.paper.measurements import Measurements
from repsim.paper.numbers import (
    STATISTICS,
    Number,
    Of,
    Statistic,
    across_blocks,
    apart,
    jackknifed,
    less,
    numbers,
    of_draws,
    third,
    thirds,
)
from repsim.studies.heads import correlation, windows
from repsim.studies.probe_passes import Place
from repsim.studies.receptive import ReceptiveFields
from repsim.studies.residual import mean_ratio
from repsim.studies.similarity import LayerSimilarity, MatchedSimilarity, slices

Later = Callable[[], Made]
"""A function that makes tables and numbers once the images have passed."""


@singledispatch
def measure(exhibit: Exhibit, m: Measurements, networks: tuple[Any, ...], compared: Sequence[Compared] = ()) -> Later:
    """Ask for the studies of an exhibit; the returned function makes tables and numbers once the images have passed.

    Args:
        exhibit: the figure; its kind says which studies it needs.
        m: measurements that share studies and passes.
        networks: names, or groups of names.
        compared: which of them are compared, in exhibits that are not of groups.

    Raises:
        Cannot: a network, or a group of networks, lacks what the exhibit shows. The returned function may raise it too.
    """
    raise NotImplementedError(f"nothing is known of how exhibits of the kind {type(exhibit).__name__} are measured")


@measure.register(exhibits.Similarity)
def similarity(
    exhibit: exhibits.Similarity, m: Measurements, networks: tuple[tuple[str, ...], ...], compared: Any = ()
) -> Later:
    """CKA of all layers, and the statistics of it that the figure is about."""
    studies = [m.similarity(*group, layers=exhibit.layers) for group in networks]

    def later() -> Made:
        parts, once = [], {}
        for study in studies:
            names = [network.name for network in study.networks]
            table = LayerSimilarity.table([study])
            pairs = drawn_pairs(exhibit.panels, names)
            parts.append(table[[pair in pairs for pair in zip(table["model_a"], table["model_b"])]])
            for one in jackknifed(study.sums, _statistics(exhibit, names, rows_of(study))):
                once.setdefault((one.key, one.models), one)  # a network may be in several groups
        cka = pd.concat(parts).drop_duplicates(["model_a", "layer_a", "model_b", "layer_b"])
        return Made({"cka": cka.reset_index(drop=True), "numbers": numbers(list(once.values()))})

    return later


def drawn_pairs(panels: str, names: list[str]) -> list[tuple[str, str]]:
    """The pairs of a group of networks that are drawn; see `exhibits.Similarity.panels`."""
    within = [(name, name) for name in names]
    across = [(names[0], name) for name in names[1:]]
    pairs = list(combinations(names, 2))
    return {"within": within, "across": across, "all": within + across, "pairs": pairs}[panels]


def rows_of(study: LayerSimilarity) -> list[slice]:
    """The rows of the CKA matrix of all layers that belong to each network."""
    return slices([len(layers) for layers in study.layers])


def _statistics(exhibit: exhibits.Similarity, names: list[str], layer_slices: list[slice]) -> list[Statistic]:
    if exhibit.without_skips:
        return across_blocks(names, layer_slices, exhibit.without_skips)
    return STATISTICS[exhibit.statistics](names, layer_slices) if exhibit.statistics else []


@measure.register(exhibits.Matched)
def matched(
    exhibit: exhibits.Matched, m: Measurements, networks: tuple[tuple[str, ...], ...], compared: Any = ()
) -> Later:
    """CKA of the same layers, and by how much it falls from low to high ones."""
    studies = [m.matched(*group) for group in networks]

    def later() -> Made:
        differences = []
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
            differences += jackknifed(study.sums, falls)
        table = pd.concat([MatchedSimilarity.table([study]) for study in studies], ignore_index=True)
        return Made({"matched": table, "numbers": numbers(differences)})

    return later


@measure.register(exhibits.Attention)
def attention(
    exhibit: exhibits.Attention, m: Measurements, networks: tuple[str, ...], compared: Sequence[Compared] = ()
) -> Later:
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
        statistics = [
            Statistic(key, (model,), f"{label}, {model}", partial(statistic, k=k))
            for k, model in enumerate(models)
            for key, (label, statistic) in kinds.items()
        ]
        label, functions = "nearest head of the first block", [partial(first, k=k) for k in range(len(models))]
        statistics += each_apart("nearest_head_first_difference", label, models, functions, compared)
        return Made({"attention": table, "numbers": numbers(jackknifed(sums, statistics))})

    return later


@measure.register(exhibits.Heads)
def heads(exhibit: exhibits.Heads, m: Measurements, networks: tuple[tuple[str, str], ...], compared: Any = ()) -> Later:
    """Windows of heads against lower layers, and the rank correlation of distance and of CKA, mean over the layers."""
    pairs = [(m.heads(a, b), m.attention(a)) for a, b in networks]

    def later() -> Made:
        tables, rows = [], []
        for study, distance in pairs:
            tables.append(windows(study, distance))
            a, b = (network.name for network in study.networks)
            label = f"rank correlation, {a} against {b}"
            found_correlation = correlation(study, distance)
            value, se, p = (
                values[-1].item()
                for values in (found_correlation.spearman, found_correlation.se, found_correlation.p_permuted)
            )
            rows.append(Number("rank_correlation", (a, b), label, value, se, found_correlation.df))
            permuted = f"{label}: share of orders of heads"
            rows.append(Number("rank_correlation_p", (a, b), permuted, p, np.nan, np.nan))
        return Made({"heads": pd.concat(tables, ignore_index=True), "numbers": numbers(rows)})

    return later


@measure.register(exhibits.Receptive)
def receptive(
    exhibit: exhibits.Receptive, m: Measurements, networks: tuple[str, ...], compared: Sequence[Compared] = ()
) -> Later:
    """Receptive fields, and how their radius grows with depth."""
    for name in networks:
        m.fields(name, branch=exhibit.branch)
        if exhibit.against_sums:
            m.fields(name)
    models = [m.network(name).name for name in networks]

    def later() -> Made:
        fields = [m.receptive(name, branch=exhibit.branch) for name in networks]
        arrays = {
            f"{model}/{at}": field
            for model, field_of_model in zip(models, fields)
            for at, field in field_of_model.maps().items()
        }
        statistics: list[Statistic] = []
        sums, of_layers = _joined(fields)
        for model, table_of in zip(models, of_layers):
            kinds = {
                "radius_last": ("half-mass radius, last layer", lambda table: table[-1, 0]),
                "radius_highest_minus_lowest_third": (
                    "half-mass radius, highest - lowest third",
                    lambda table: third(table[:, 0], 2) - third(table[:, 0], 0),
                ),
                "radius_lowest_third": ("half-mass radius, lowest third", _lowest_radius),
                "own_patch_last": ("share of the own patch, last layer", lambda table: table[-1, 2]),
            }
            statistics += [
                Statistic(
                    key, (model,), f"{label}, {model}", partial(_of_table, table_of=table_of, number_of=number_of)
                )
                for key, (label, number_of) in kinds.items()
            ]
        lowest = [partial(_of_table, table_of=table_of, number_of=_lowest_radius) for table_of in of_layers]
        label = "half-mass radius, lowest third"
        statistics += each_apart("radius_lowest_third_difference", label, models, lowest, compared)
        rows = jackknifed(sums, statistics)
        if exhibit.against_sums:
            rows += jackknifed(*_against_sums(fields, [m.receptive(name) for name in networks]))
        table = pd.concat([field_of_model.table() for field_of_model in fields], ignore_index=True)
        return Made({"receptive": table, "numbers": numbers(rows)}, arrays)

    return later


def _joined(fields: Sequence[ReceptiveFields]) -> tuple[Together, list[Of]]:
    """The sums of fields of the same images together, and how the statistics of each come of their means."""
    of_layers: list[Of] = [
        lambda means, part=part, rows=rows: part.statistics(means[rows])
        for part, rows in zip(fields, slices([len(part.layers) for part in fields]))
    ]
    return Together([sums for part in fields for sums in part.masses()]), of_layers


def _of_table(means: list[Tensor], table_of: Of, number_of: Of) -> Tensor:
    return number_of(table_of(means))


def _lowest_radius(table: Tensor) -> Tensor:
    """Half-mass radius, mean over the lowest third of layers, of (layers, 3) statistics of fields."""
    return third(table[:, 0], 0)


def _against_sums(
    branches: Sequence[ReceptiveFields], sums: Sequence[ReceptiveFields]
) -> tuple[Together, list[Statistic]]:
    """By how much more is of the own patch after residual sums than in the branches, mean over layers."""
    parts, of_layers = _joined([*branches, *sums])
    statistics = []
    for fields, of_branch, of_sum in zip(branches, of_layers, of_layers[len(branches) :]):
        model = fields.network.name
        label = f"share of the own patch, after the sum - branch, {model}"
        share = [lambda means, table_of=table_of: table_of(means)[:, 2].mean() for table_of in (of_sum, of_branch)]
        statistics.append(Statistic("own_patch_sum_minus_branch", (model,), label, partial(less, *share)))
    return parts, statistics


@measure.register(exhibits.Residual)
def residual(
    exhibit: exhibits.Residual, m: Measurements, networks: tuple[str, ...], compared: Sequence[Compared] = ()
) -> Later:
    """Norm ratios of residual sums, of CLS against spatial tokens in both halves of the network."""
    studies = [m.residual(name) for name in networks]

    def later() -> Made:
        table = pd.concat([study.table() for study in studies], ignore_index=True)
        sums = Together([sums_of_study for study in studies for sums_of_study in study.grouped()])
        statistics: list[Statistic] = []
        models = dict(list(table.groupby("model", sort=False)))
        overall = [mean_ratio(part) for part in models.values()]
        for (model, part), of in zip(models.items(), overall):
            statistics.append(Statistic("skip_over_branch", (model,), f"skip over branch, {model}", of))
            low, cls = part["block"] < (part["block"].max() + 1) / 2, part["token"] == "cls"
            for half, there in (("first", low), ("second", ~low)) if cls.any() else ():
                pair = [mean_ratio(part[there & chosen]) for chosen in (cls, part["token"].str.isdigit())]
                label = f"CLS - spatial ratio, {half} half, {model}"
                statistics.append(Statistic(f"cls_minus_spatial_{half}_half", (model,), label, partial(less, *pair)))
        statistics += each_apart("skip_over_branch_difference", "skip over branch", list(models), overall, compared)
        return Made({"residual": table, "numbers": numbers(jackknifed(sums, statistics))})

    return later


def each_apart(
    key: str, label: str, models: Sequence[str], functions: Sequence[Of], compared: Sequence[Compared]
) -> list[Statistic]:
    """The differences between results of networks that are compared."""
    pairs = [(first, second) for *_, first, second in compared]
    return [one for a, b in pairs for one in apart(key, label, [models[a], models[b]], [functions[a], functions[b]])]


@measure.register(exhibits.Localization)
def localization(
    exhibit: exhibits.Localization, m: Measurements, networks: tuple[str, ...], compared: Sequence[Compared] = ()
) -> Later:
    """CKA of tokens and patches at one layer, and how far a token's own patch stands out."""
    studies = [m.localization(name, exhibit.layer) for name in networks]

    def later() -> Made:
        parts = [part for study in studies for part in study.parts]
        sums = [sums_of_study.part(exhibit.layer) for study in studies for sums_of_study in study.sums]
        tables = [part.table(part.layers[exhibit.layer], of_layer) for part, of_layer in zip(parts, sums)]
        summary = pd.concat([study.summary() for study in studies], ignore_index=True)
        models = [part.network.name for part in parts]
        interiors = [np.array(places(part.grid)) == "interior" for part in parts]

        def own(hsics: list[Tensor], k: int) -> Tensor:
            return own_minus_rest(sums[k].finish(hsics[k]))[interiors[k]].nanmean()

        label, functions = "own patch - rest, interior", [partial(own, k=k) for k in range(len(parts))]
        statistics = [
            Statistic("own_minus_rest", (model,), f"{label}, {model}", statistic)
            for model, statistic in zip(models, functions)
        ]
        statistics += each_apart("own_minus_rest_difference", label, models, functions, compared)
        tables_of_figure = {"localization": pd.concat(tables, ignore_index=True), "localization_summary": summary}
        return Made({**tables_of_figure, "numbers": numbers(jackknifed(Together(sums), statistics))})

    return later


@measure.register(exhibits.ProbesCompared)
@measure.register(exhibits.ProbesAggregated)
def probes_aggregated(
    exhibit: exhibits.ProbesCompared | exhibits.ProbesAggregated,
    m: Measurements,
    networks: tuple[str, ...],
    compared: Sequence[Compared] = (),
) -> Later:
    """Accuracies by kind of aggregation."""
    for name in networks:
        m.probing(name, tokens=exhibit.tokens)
    accuracy = _of_tokens if exhibit.tokens else _aggregated
    others = ("token",) if exhibit.tokens else ("token", "token_mean")

    def later() -> Made:
        summary, accuracies = _accuracies(m, networks, accuracy, compared)
        return Made({"probe_summary": _without(summary, *others), "numbers": accuracies})

    return later


@measure.register(exhibits.ProbesOfTokens)
def probes_of_tokens(
    exhibit: exhibits.ProbesOfTokens, m: Measurements, networks: tuple[str, ...], compared: Sequence[Compared] = ()
) -> Later:
    """Accuracies of each single token."""
    for name in networks:
        m.probing(name, tokens=True)

    def later() -> Made:
        summary, accuracies = _accuracies(m, networks, _of_tokens, compared)
        single = []
        for name in networks:
            table = m.probes(name).table
            single.append(table[(table["model"] == m.network(name).name) & (table["aggregation"] == "token")])
        return Made({"probe_summary": summary, "probe": pd.concat(single, ignore_index=True), "numbers": accuracies})

    return later


class Accuracy(NamedTuple):
    """The mean accuracy of some probes of a network."""

    key: str
    label: str
    right: list[ImageMeans]
    """For each place, means over test images of right answers, (draws, probes)."""


def _accuracies(
    m: Measurements,
    networks: tuple[str, ...],
    accuracy: Callable[[pd.DataFrame, dict[Place, ImageMeans]], Accuracy],
    compare: Sequence[Compared],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The summary of the probes of networks, and their accuracies, alone and compared: of the same draws and images."""
    parts, right, statistics = [], [], []
    for name in networks:
        summary, model = m.probes(name).summary, m.network(name).name
        parts.append(summary[summary["model"] == model])
        key, label, of_model = accuracy(parts[-1], m.right(name))
        columns = slice(len(right), len(right) + len(of_model))
        right += of_model
        statistics.append(Statistic(key, (model,), f"{label}, {model}", partial(_mean_right, where=columns)))
    for key, label, first, second in compare:
        a, b = statistics[first], statistics[second]
        statistics.append(Statistic(key, (*a.models, *b.models), label, partial(less, a.of, b.of)))
    return pd.concat(parts, ignore_index=True), numbers(of_draws(Together(right), statistics))


def _mean_right(means: list[Tensor], where: slice) -> Tensor:
    """Mean over places and probes, for each draw."""
    return torch.stack([mean.mean(-1) for mean in means[where]]).mean(0)


def _without(summary: pd.DataFrame, *aggregations: str) -> pd.DataFrame:
    """The probes of this figure alone, without further probes of the same networks."""
    return summary[~summary["aggregation"].isin(aggregations)].reset_index(drop=True)


def _aggregated(summary: pd.DataFrame, right: dict[Place, ImageMeans]) -> Accuracy:
    """Accuracy on the input of the network's own classifier, mean over the middle third of layers."""
    part = summary[summary["aggregation"] == classified(summary)].sort_values("index")
    middle = set(thirds(part["layer"].to_numpy(), 1))
    return Accuracy(
        "accuracy_aggregated",
        "accuracy, aggregated, middle third",
        [means for place, means in right.items() if place.aggregation == classified(summary) and place.layer in middle],
    )


def _of_tokens(summary: pd.DataFrame, right: dict[Place, ImageMeans]) -> Accuracy:
    """Single tokens of the last layer, on average."""
    single = summary[summary["aggregation"] == "token_mean"]
    last = single.loc[single["index"].idxmax(), "layer"]
    return Accuracy(
        "accuracy_tokens",
        "accuracy, single tokens, last layer",
        [means for place, means in right.items() if place.aggregation == "token" and place.layer == last],
    )
