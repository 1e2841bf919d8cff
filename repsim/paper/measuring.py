"""Measuring the figures of the paper: studies that share networks, images and forward passes.

An exhibit asks `Measurements` for studies before the images pass, and its tables are made afterwards; see `measure`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial, singledispatch
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from repsim.errors import RepsimError, UsageError
from repsim.images.image_set import Batch, Counts, ImageSet
from repsim.measures.localization import own_minus_rest, places
from repsim.measures.running import ImageMeans, Together, Total
from repsim.networks.layers import Layer, find_layers
from repsim.networks.models import Network
from repsim.paper import exhibits
from repsim.paper.exhibits import Compared, Exhibit, Made, classified
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
from repsim.passes.plan import Takes, fits, size_in_words
from repsim.passes.seen import Seen
from repsim.passes.study import Study, Summing
from repsim.passes.sweep import networks_of, runs_of, sweep
from repsim.studies.attention import AttentionDistance
from repsim.studies.heads import HeadSimilarity, correlation, head_layer, lower_layers, windows
from repsim.studies.localization import Localization, located
from repsim.studies.probe import Probing, check_labels, tested_among
from repsim.studies.probe_passes import Features, Fitting, Place, Testing, probed
from repsim.studies.receptive import ReceptiveFields, places_of
from repsim.studies.residual import ResidualNorms
from repsim.studies.results import Begun, Notices, Result
from repsim.studies.similarity import LayerSimilarity, MatchedSimilarity, slices


class Cannot(RepsimError):
    """A network, or a group of networks, lacks the layers that a figure needs; further networks may have them."""

    def __init__(self, error: RepsimError, *networks: str) -> None:
        super().__init__(str(error))
        self.networks = frozenset(networks)


@contextmanager
def asking(*networks: str) -> Iterator[None]:
    """While active, an error concerns these networks alone."""
    try:
        yield
    except Cannot:
        raise
    except RepsimError as error:
        raise Cannot(error, *networks) from error


@dataclass(frozen=True)
class Pass:
    """One pass over images that is planned."""

    what: str
    networks: list[str]
    images: int
    batch_size: int
    memory: int | str
    """Bytes of main memory that it takes; or the reason why it does not fit."""

    def record(self) -> dict[str, Any]:
        kept = {"pass": self.what, "networks": self.networks, "images": self.images, "batch_size": self.batch_size}
        fits = isinstance(self.memory, int)
        return {**kept, "memory_bytes" if fits else "does_not_fit": self.memory}

    def __str__(self) -> str:
        memory = size_in_words(self.memory) if isinstance(self.memory, int) else self.memory
        images = f"{self.images} images" + (
            f" in batches of {self.batch_size}" if self.batch_size < self.images else ""
        )
        return f"one pass of {images} {self.what}: {', '.join(self.networks)} ({memory})"


class Measurements:
    """Studies that figures ask for before the images pass, each made once however many figures want it.

    Forward-only studies share one pass over the test images, in which every network sees every image once; probes
    are fitted before, in a pass of theirs over the training images.

    Args:
        load: name of a network -> the network, still without a number that tells it from networks of the same name.
        layers: of similarity; see `find_layers`. Other figures show blocks.
        batch_size: images per minibatch.
        channels: channels per layer of receptive fields, drawn at random; 0 takes all.
        images: the test images.
        train: the training images of probes; None: figures of probes cannot be made.
        pass_options: `progress`, `workers`, `skip_broken` of `sweep`.
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
        **pass_options: Any,
    ) -> None:
        self.images, self.train, self.layers, self.batch_size, self.pass_options = (
            images,
            train,
            layers,
            batch_size,
            pass_options,
        )
        self.channels = channels
        self._load = load
        self._networks: dict[str, Network] = {}
        self._studies: dict[Hashable, Study] = {}
        self._fields: dict[tuple[str, bool], ReceptiveFields] = {}
        """(name of a network, whether of branches) -> its receptive fields, without sums until they are wanted."""
        self._probed: dict[str, bool] = {}
        """Name of a network -> whether single tokens are probed too."""
        self._probes: dict[str, Result | RepsimError] = {}
        self._probing: list[tuple[list[str], Probing]] | None = None
        self._testing: dict[str, Testing] = {}
        self._said: list[str] = []
        self.passes: dict[str, dict[str, int]] = {}
        """Images that each network saw in a forward pass, counted as it ran: `test` and, for probes, `train`."""

    def network(self, name: str) -> Network:
        if name not in self._networks:
            self._networks[name] = self._load(name)
        return self._networks[name]

    @property
    def notices(self) -> list[str]:
        """Sentences on parts of networks that studies leave out."""
        attention = [study for study in self._studies.values() if isinstance(study, AttentionDistance)]
        return [*(notice for study in attention for notice in study.notices), *dict.fromkeys(self._said)]

    def _once(self, cache: dict, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in cache:
            cache[key] = make()
        return cache[key]

    def _found(self, names: Sequence[str], layers: str) -> tuple[list[Network], list[list[Layer]]]:
        networks, chosen = [self.network(name) for name in names], []
        for name, network in zip(names, networks):
            with asking(name):
                chosen.append(find_layers(network, layers))
        return networks, chosen

    def similarity(self, *names: str, layers: str | None = None) -> LayerSimilarity:
        """CKA of all layers of all these networks."""
        layers = layers or self.layers
        key = ("similarity", names, layers)
        return self._once(self._studies, key, lambda: LayerSimilarity(*self._found(names, layers)))

    def matched(self, reference: str, *others: str) -> MatchedSimilarity:
        names = (reference, *others)
        with asking(*names):
            return self._once(
                self._studies, ("matched", names), lambda: MatchedSimilarity(*self._found(names, "blocks"))
            )

    def attention(self, name: str) -> AttentionDistance:
        with asking(name):
            return self._once(self._studies, ("attention", name), lambda: AttentionDistance(self.network(name)))

    def heads(self, name: str, other: str) -> HeadSimilarity:
        """Heads of the first block of one network against the lower layers of a second one."""

        def make() -> HeadSimilarity:
            networks = [self.network(name), self.network(other)]
            with asking(name):
                attention = head_layer(networks[0])
            with asking(other):
                layers = lower_layers(networks[1])
                if not layers:
                    raise UsageError(f"{other} has no blocks or units with whose layers heads could be compared")
            return HeadSimilarity(networks, *attention, layers)

        return self._once(self._studies, ("heads", name, other), make)

    def residual(self, name: str) -> ResidualNorms:
        with asking(name):
            return self._once(self._studies, ("residual", name), lambda: ResidualNorms([self.network(name)]))

    def localization(self, name: str, layer: int = -1) -> Localization:
        """Localization of all layers with places; a layer with this number must be among them."""

        def make() -> Localization:
            network = self.network(name)
            return Localization([network], [located(network, "blocks")[0]])

        with asking(name):
            study = self._once(self._studies, ("localization", name), make)
            count = len(study.parts[0].layers)
            if not -count <= layer < count:
                raise UsageError(f"{name} has only {count} block{'s' * (count != 1)} with places in the image")
        return study

    def probing(self, name: str, *, tokens: bool) -> None:
        """Have a network probed, with or without its single tokens; `probes` has the result."""
        if self.train is None:
            raise UsageError("probes need training images with labels, and there are none")
        check_labels(self.train, self.images)
        tested_among(self.images, self.train, self._said.append)
        network = self.network(name)
        with asking(name):
            Features.of(network, probed(network, "blocks", self._said.append), single=tokens)
        self._probed[name] = self._probed.get(name, False) or tokens

    def probes(self, name: str) -> Result:
        """The result of the probes of this network; further networks may be in it."""
        result = self._probes[name]
        if isinstance(result, RepsimError):
            raise result
        return result

    def right(self, name: str) -> dict[Place, ImageMeans]:
        """Share of test images that each probe of a network gets right, (draws, probes)."""
        testing = self._testing[name]
        number = testing.networks.index(
            next(network for network in testing.networks if network.name == self.network(name).name)
        )
        return {place: sums for place, sums in testing.sums["right"].items() if place.network == number}

    def probe_protocols(self) -> list[dict[str, Any]]:
        """Protocols of probes, one with and one without single tokens."""
        protocols = {
            id(result): result.protocol for result in self._probes.values() if not isinstance(result, RepsimError)
        }
        return list(protocols.values())

    def receptive(self, name: str, *, branch: bool = False) -> ReceptiveFields:
        """Receptive fields over the first 32 images, by gradients: a pass of its own.

        They are asked for by `fields` before images pass.
        """
        fields = self._fields[name, branch]
        if not fields.sums:
            with asking(name):
                options = self._how(f"receptive fields of {name}")
                fields.run(self.images.only(self._few()), batch_size=4, **options)
        return fields

    def fields(self, name: str, *, branch: bool = False) -> None:
        """Ask for receptive fields, of layers that have places in the image."""

        def make() -> ReceptiveFields:
            network = self.network(name)
            return ReceptiveFields(
                network, places_of(network, branch=branch, say=self._said.append), channels=self.channels or None
            )

        with asking(name):
            self._once(self._fields, (name, branch), make)

    def _few(self) -> np.ndarray:
        """Positions of the images for receptive fields: as many as the paper takes."""
        return np.arange(min(32, len(self.images)))

    def _how(self, task: str) -> dict[str, Any]:
        """Options of a pass, with its progress named after the images."""
        progress = self.pass_options.get("progress")
        return {**self.pass_options, "progress": progress and partial(progress, desc=task)}

    def _probed_together(self) -> list[tuple[list[str], Probing]]:
        """Names of networks and their probes, for probes with and without single tokens."""
        if self._probing is None:
            self._probing = []
            if self.train is None:  # none was asked for
                return self._probing
            for tokens in sorted(set(self._probed.values())):
                names = [name for name, single in self._probed.items() if single == tokens]
                begun = Begun([self.network(name) for name in names], self.images, Notices(), self.batch_size)
                try:
                    probing = Probing.of(begun, self.train, tokens=tokens, neighbours=0)
                    self._probing.append((names, probing))
                except UsageError as error:  # too few images of a class
                    self._probes |= dict.fromkeys(names, error)
        return self._probing

    def plan(self) -> list[Pass]:
        """The passes for everything that figures asked for, in the order in which they run."""
        passes, studies, fitted = [], list(self._studies.values()), Takes()
        size, networks = min(self.batch_size, len(self.images)), networks_of(studies)
        for names, probing in self._probed_together():
            parts, used = probing.parts(), len(probing.split.used)
            for part in parts:
                probed = [probing.networks[number] for number in part]
                fitting = Fitting(probed, list(part.values()), probing.labels, probing.split, list(part))
                memory = self._memory(probing.train.only(probing.split.used), probed, [fitting], min(size, used))
                purpose = f"to fit probes{' of single tokens too' if probing.asked['single_tokens'] else ''}"
                passes.append(Pass(purpose, [names[number] for number in part], used, min(size, used), memory))
                fitted += tested_by(fitting, size)
            networks += [network for network in probing.networks if network not in networks]
        if networks:
            memory = self._memory(self.images, networks, studies, size, fitted)
            names, used = [network.name for network in networks], len(self.images) // size * size
            passes.append(Pass("of all figures that need no gradients", names, used, size, memory))
        for (name, branch), fields in self._fields.items():
            memory = self._memory(self.images, [self.network(name)], [fields], 4, gradients=True)
            channels = f"{self.channels or 'all'} channel{'s' * (self.channels != 1)} a layer"
            purpose = f"with gradients, of {channels}{', of branches' if branch else ''}"
            passes.append(Pass(purpose, [name], len(self._few()), 4, memory))
        return passes

    def _memory(
        self,
        images: ImageSet,
        networks: Sequence[Network],
        summing: Sequence[Summing],
        size: int,
        beside: Takes = Takes(),  # noqa: B008  it is frozen
        gradients: bool = False,
    ) -> int | str:
        """Bytes that a pass takes of main memory, or why it does not fit."""
        takes, runs = runs_of(images, networks, summing, gradients)
        try:
            return fits(lambda size: takes(size) + beside, runs, size).total
        except UsageError as error:
            return f"it does not fit: {error}"

    def run(self) -> Counts:
        """Pass the images; afterwards every study that was asked for has its sums."""
        studies, fitted = list(self._studies.values()), []
        for names, probing in self._probed_together():
            try:
                passes = Passes(probing.begun.networks)
                options = self._how("training images")
                probes, trained_on = probing.fit(batch_size=self.batch_size, beside=passes.among, **options)
                self._count(passes, "train")
                testing = probing.testing(probes)
                studies.append(testing)
                self._testing |= dict.fromkeys(names, testing)
                fitted.append((names, partial(probing.result, testing, trained_on)))
            except UsageError as error:  # too little memory
                self._probes |= dict.fromkeys(names, error)
        if not studies:
            return Counts()
        passes = Passes(networks_of(studies))
        counts = sweep(self.images, [*studies, passes], batch_size=self.batch_size, **self._how("test images"))
        self._count(passes, "test")
        for names, result in fitted:
            self._probes |= dict.fromkeys(names, result(counts))
        return counts

    def _count(self, passes: Passes, passes_of: str) -> None:
        for name, total in passes.sums.items():
            self.passes.setdefault(name, {})[passes_of] = int(total.total)


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


def tested_by(fitting: Fitting, size: int) -> Takes:
    """Memory that the fitted probes of a study of training images take in a pass over test images."""
    features, draws = fitting.bytes_of_features(size), len(fitting.members) - 1
    probes = [probe for layers_of_one in fitting.features for layer in layers_of_one for probe in layer.sizes.values()]
    weights = 4 * fitting.classes * draws * sum(count * width for count, width in probes)
    scores = 4 * fitting.classes * draws * size * max(count for count, _ in probes)
    return Takes(sums=weights, batch=sum(features) + 2 * max(features) + 2 * scores)


# Measuring each kind of exhibit

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


def mean_ratio(part: pd.DataFrame) -> Of:
    """The mean over residual sums, each a mean over its tokens, of some rows of a table whose ratios are given."""
    part = part[part["ratio"].notna()]
    ratios = part.groupby(["block", "sublayer"])["ratio"]
    rows = torch.from_numpy(part.index.to_numpy(copy=True))
    weights = torch.from_numpy(1 / ratios.transform("size").to_numpy(float))
    return lambda means: torch.cat(means).cpu()[rows] @ weights / weights.sum()


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
