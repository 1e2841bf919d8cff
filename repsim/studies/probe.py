"""What layers know of classes: linear probes, neighbours (paper, Figures 11, 13, D.4 and F)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Unpack

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from repsim.errors import RepsimError, UsageError
from repsim.images.image_set import Batch, Counts, ImageSet
from repsim.measures.neighbours import nearest_neighbours, soft_nearest_neighbour, squared_distances
from repsim.measures.probe import Probe, ProbeRows, ProbeSums, Ridge, refit, side_by_side, stacked, training_data
from repsim.measures.running import Joined, Total
from repsim.networks.hooks import capture
from repsim.networks.layers import Layer, find_layers, grid_of
from repsim.networks.models import Network, told_apart
from repsim.passes.plan import Takes
from repsim.passes.sweep import Passing, Study, require_finite, sweep
from repsim.studies.results import AnyNetwork, Result, begin, study
from repsim.tables import NEIGHBOURS, PROBE, PROBE_SUMMARY

MOST = 5000
"""Images of the bundled sample, where none are given."""
BUDGET = 2**26
"""Bytes of the data of probes that are fitted at one time, roughly."""
SUMS = 2**29
"""Bytes of the data of probes that one pass over the training images collects, where more passes cost little."""
AGAIN = 2500
"""Images in all such passes that cost little in any case; as many as there are test images do too."""
SOLVING = 16
"""Times these bytes that fitting takes beside them."""
HELD_OUT = 0.1
"""Largest share of a class's training images on which the strength of the ridge is chosen."""


class Draw(NamedTuple):
    """Which training images a probe is fitted on."""

    shots: int | None
    """Images of each class; None: all of them."""
    seed: int


@dataclass(frozen=True)
class Split:
    """Training images as positions in their set: those the ridge is chosen on, and those each draw is fitted on."""

    held_out: np.ndarray
    draws: dict[Draw, np.ndarray]

    @classmethod
    def of(
        cls, labels: np.ndarray, shots: Sequence[int | None], seeds: int, names: Sequence[str] | None = None
    ) -> Split:
        """Held-out images are the same for all draws and in none of them; a seed's smaller draws lie in larger ones.

        A tenth of each class is held out; for few shots no more than so many, or ten.
        """
        few = [count for count in shots if count is not None]
        most = None if None in shots else max(*few, 10)
        held, rest = [], []
        for label in range(int(labels.max()) + 1):
            of_class = np.random.default_rng(0).permutation(np.flatnonzero(labels == label))
            tenth = max(1, round(HELD_OUT * len(of_class)))
            count = tenth if most is None else min(tenth, most)
            if len(of_class) - count < max(few, default=1):
                name = names[label] if names is not None else label
                raise UsageError(
                    f"class {name!r} has {len(of_class)} training images; needed are {max(few, default=1)} to fit on "
                    f"and {count} to choose the ridge on"
                )
            held.append(of_class[:count])
            rest.append(of_class[count:])
        draws = {Draw(None, 0): np.sort(np.concatenate(rest))} if None in shots else {}
        for seed in range(seeds if few else 0):
            rng = np.random.default_rng(seed)
            order = [rng.permutation(each) for each in rest]
            for count in few:
                draws[Draw(count, seed)] = np.sort(np.concatenate([each[:count] for each in order]))
        return cls(np.sort(np.concatenate(held)), draws)

    @property
    def used(self) -> np.ndarray:
        return np.unique(np.concatenate([self.held_out, *self.draws.values()]))


@dataclass(frozen=True)
class Features:
    """How a layer is reduced to the features of probes."""

    layer: Layer
    grid: tuple[int, int]
    """Rows and columns of the layer."""
    last: tuple[int, int]
    """Those of the network's last layer, to which finer maps are pooled."""
    patch: int
    """Space-to-depth: patch x patch positions become channels."""
    cls: bool
    single: bool
    """Whether there is a probe for each single token."""

    @classmethod
    def of(cls, network: Network, layers: Sequence[Layer], *, single: bool) -> list[Features]:
        """For each layer; finer maps are patched until their channels come close to the last layer's."""
        grids = [grid_of(layer, network) for layer in layers]
        last, widest = grids[-1], layers[-1].width
        found = []
        for layer, grid in zip(layers, grids):
            most = min(math.isqrt(widest // layer.width) or 1, *(max(g // n, 1) for g, n in zip(grid, last)))
            patch = max(k for k in range(1, most + 1) if grid[0] % k == 0 and grid[1] % k == 0)
            found.append(cls(layer, grid, last, patch, layer.cls, single))
        return found

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Aggregation -> how many probes of how many features."""
        width = self.layer.width
        pooled = width * self.patch**2
        found = {"cls" if self.cls else "first": (1, width if self.cls else pooled), "spatial_mean": (1, pooled)}
        if self.layer.prefix and self.patch == 1:
            found["mean"] = (1, width)
        if self.single:
            found["token"] = (math.prod(self.last), pooled)
        return found

    def __call__(self, activation: Tensor) -> dict[str, Tensor]:
        """Aggregation -> (n, probes, features)."""
        tokens = self.layer.tokens(activation).float()
        spatial = tokens[:, self.layer.prefix :]
        if self.grid != self.last:
            maps = spatial.transpose(1, 2).unflatten(2, self.grid)
            spatial = F.adaptive_avg_pool2d(F.pixel_unshuffle(maps, self.patch), self.last)
            spatial = spatial.flatten(2).transpose(1, 2)
        found = {
            "cls": lambda: tokens[:, :1].clone(),  # later modules may write into what is only a view
            "first": lambda: spatial[:, :1].clone(),
            "spatial_mean": lambda: spatial.mean(1, keepdim=True),
            "mean": lambda: tokens.mean(1, keepdim=True),
            "token": lambda: spatial.clone() if self.grid == self.last else spatial.contiguous(),
        }
        return {aggregation: found[aggregation]() for aggregation in self.sizes}


class Place(NamedTuple):
    """What is probed."""

    network: int
    layer: str
    aggregation: str


class _Watching:
    """What the passes over training and test images have in common: they see every layer's features."""

    def __init__(self, networks: Sequence[Network], features: Sequence[Sequence[Features]], labels: np.ndarray) -> None:
        self.networks, self.features = networks, features
        self.labels = torch.from_numpy(labels).long()

    def watch(self, index: int, network: Network) -> AbstractContextManager[dict[str, Any]]:
        by_layer = {each.layer.name: each for each in self.features[index]}
        layers = [each.layer for each in self.features[index]]
        return capture(network, layers, lambda at, x: by_layer[at.name](x), image_by_image=True, passed=True)

    def bytes_of_features(self, size: int) -> list[int]:
        """What the features of a batch take, layer by layer."""
        return [
            4 * size * sum(probes * width for probes, width in each.sizes.values())
            for of in self.features
            for each in of
        ]

    def each(self, seen: Sequence[dict[str, dict[str, Tensor]]], batch: Batch) -> Iterator[tuple[Place, Tensor]]:
        """The features of a batch, checked: (n, probes, features) of every place."""
        for index, (network, mapping) in enumerate(zip(self.networks, seen)):
            looked_at = [(layer, x) for layer, of in mapping.items() for what, x in of.items() if what != "token"]
            require_finite([x for _, x in looked_at], [(network.name, layer) for layer, _ in looked_at], batch)
            for layer, found in mapping.items():
                for aggregation, x in found.items():
                    yield Place(index, layer, aggregation), x


class Fitting(_Watching):
    """The study of the training images: what probes are fitted on, for every place and draw."""

    def __init__(
        self,
        networks: Sequence[Network],
        features: Sequence[Sequence[Features]],
        labels: np.ndarray,
        split: Split,
        numbers: Sequence[int] | None = None,
    ) -> None:
        super().__init__(networks, features, labels[split.used])
        self.numbers = range(len(networks)) if numbers is None else numbers
        """Of the networks in a `Place`."""
        self.classes = int(labels.max()) + 1
        self.used: dict[Draw | None, int] = {}
        """How many images each draw was fitted on, which broken ones may have thinned; None: held out."""
        self.members = {name: torch.from_numpy(np.isin(split.used, of)) for name, of in split.draws.items()}
        self.members[None] = torch.from_numpy(np.isin(split.used, split.held_out))
        self.sums: dict[Place, dict[Draw | None, ProbeSums | ProbeRows]] = {}
        """None: the held-out images."""
        self.kinds = [Place, Draw]

    def update(self, seen: Sequence[dict[str, dict[str, Tensor]]], batch: Batch) -> None:
        labels = self.labels[batch.positions]
        for place, x in self.each(seen, batch):
            place = place._replace(network=self.numbers[place.network])
            of_place = self.sums.setdefault(place, {})
            for name, members in self.members.items():
                chosen = members[batch.positions]
                if chosen.any():
                    if name not in of_place:
                        of_place[name] = training_data(int(members.sum()), x.shape[2], self.classes)
                    of_place[name].update(x[chosen.to(x.device)], labels[chosen])

    def takes(self, size: int, batches: int) -> Takes:
        features = self.bytes_of_features(size)
        found = [each for of in self.features for each in of]
        widest = max(width for each in found for _, width in each.sizes.values())
        images = [int(members.sum()) for members in self.members.values()]
        largest = max(bytes_of(1, widest, members, self.classes) for members in images)
        weights = sum(probes * width for each in found for probes, width in each.sizes.values())
        return Takes(
            sums=sum(bytes_of_layer(each, images, self.classes) for each in found),
            batch=sum(features) + 4 * max(features),
            tables=4 * weights * self.classes * (len(images) - 1) + SOLVING * max(BUDGET, largest),
            less="probes of no single tokens (--no-tokens, tokens=False), fewer --layers, or one network at a time",
        )

    def fit(self) -> Iterator[tuple[Place, dict[Draw, Probe]]]:
        """Choose each probe's ridge on the held-out images; fit those of all images again on these as well."""
        for place in list(self.sums):
            data = self.sums.pop(place)  # lets go of what has been used
            self.used = {draw: int(images.counts.sum()) for draw, images in data.items()}
            if lacking := [draw for draw in self.members if draw not in data or (draw and not data[draw].counts.all())]:
                what = f"{lacking[0].shots} per class, seed {lacking[0].seed}" if lacking[0] else "the held-out images"
                raise RepsimError(f"broken images left none of some class in {what}; take more shots, or mend them")
            held_out = data.pop(None)
            yield place, {draw: _fitted(draw, data.pop(draw), held_out) for draw in self.members if draw}


def _fitted(draw: Draw, images: ProbeSums | ProbeRows, held_out: ProbeSums | ProbeRows) -> Probe:
    """The probes of a place and draw, some at a time: fitting takes many times the memory of what is fitted on."""
    (probes, features), rows = images.shape, int(images.counts.sum())
    at_once = max(1, BUDGET // bytes_of(1, features, rows, len(images.counts)))
    parts = []
    for start in range(0, probes, at_once):
        some = slice(start, start + at_once)
        part, rest = images.part(some), held_out.part(some)
        ridge = Ridge(part)
        l2 = ridge.best(rest)
        parts.append(ridge.fit(l2) if draw.shots is not None else refit(part.merge(rest), l2))
    return side_by_side(parts)


def bytes_of(probes: int, features: int, images: int, classes: int) -> int:
    """What the data of probes take, of whichever kind `training_data` chooses."""
    return probes * (4 * images * features if images <= features else 8 * features * (features + classes))


def bytes_of_layer(features: Features, images: Iterable[int], classes: int) -> int:
    """What the data of all probes of a layer take, with so many images of each draw."""
    images = list(images)
    return sum(bytes_of(*size, members, classes) for size in features.sizes.values() for members in images)


class Testing(_Watching):
    """The study of the test images: how many each probe gets right, and the features of a sample of them."""

    def __init__(
        self,
        networks: Sequence[Network],
        features: Sequence[Sequence[Features]],
        labels: np.ndarray,
        probes: Iterable[tuple[Place, dict[Draw, Probe]]],
        sample: np.ndarray,
    ) -> None:
        super().__init__(networks, features, labels)
        self.strengths: dict[tuple[Place, Draw], list[float]] = {}
        self.probes: dict[Place, tuple[list[Draw], Probe]] = {}
        """Those of all draws side by side."""
        for place, of in probes:
            self.strengths |= {(place, draw): probe.l2.tolist() for draw, probe in of.items()}
            self.probes[place] = list(of), stacked(list(of.values())).to(torch.float32)
        self.sums: dict[str, Any] = {"tested": Total(), "right": {}, "kept": {}, "labels": Joined()}
        """Images, of them right for each place and draw, and the features of each place and labels of the sample."""
        self.kinds = [Place, Draw]
        self.sampled = torch.from_numpy(np.isin(np.arange(len(labels)), sample))

    def update(self, seen: Sequence[dict[str, dict[str, Tensor]]], batch: Batch) -> None:
        labels, sampled = self.labels[batch.positions], self.sampled[batch.positions]
        self.sums["tested"].update(len(labels))
        kept = batch.positions[sampled]
        self.sums["labels"].update(kept, labels[sampled])
        for place, x in self.each(seen, batch):
            draws, probe = self.probes[place]
            predicted = probe.scores(x).unflatten(2, (len(draws), -1)).argmax(3)
            right = (predicted == labels.to(x.device)[:, None, None]).sum(0).T.cpu()
            for draw, of_draw in zip(draws, right):
                self.sums["right"].setdefault((place, draw), Total()).update(of_draw)
            if place.aggregation != "token":
                self.sums["kept"].setdefault(place, Joined()).update(kept, x[sampled.to(x.device), 0])

    def takes(self, size: int, batches: int) -> Takes:
        features = self.bytes_of_features(size)
        weights = sum(each.numel() * 4 for _, probe in self.probes.values() for each in (probe.weight, probe.mean))
        most = max(size * probe.bias.numel() * 4 for _, probe in self.probes.values())
        places = [place for place in self.probes if place.aggregation != "token"]
        kept = 4 * int(self.sampled.sum()) * sum(self.probes[place][1].mean.shape[1] for place in places)
        pairs = 8 * int(self.sampled.sum()) ** 2
        return Takes(
            sums=kept,
            batch=sum(features) + 2 * max(features) + 2 * most,
            tables=4 * pairs + weights // 8,
            less="fewer neighbours (--neighbours), fewer --layers, or one network at a time",
        )

    def table(self) -> pd.DataFrame:
        """One row per place (of `token`: position) and draw."""
        layers = {(i, each.layer.name): each for i, of in enumerate(self.features) for each in of}
        rows = []
        tested = self.sums["tested"].total
        for (place, draw), right in self.sums["right"].items():
            of = layers[place.network, place.layer]
            where = (self.networks[place.network].name, place.layer, of.layer.index, of.layer.depth, place.aggregation)
            shots = "all" if draw.shots is None else draw.shots
            for position, (count, l2) in enumerate(zip(right.total.tolist(), self.strengths[place, draw])):
                at = divmod(position, of.last[1]) if place.aggregation == "token" else (None, None)
                rows.append((*where, *at, shots, draw.seed, l2, count / tested))
        return pd.DataFrame(rows, columns=PROBE).astype({"token_row": "Int64", "token_col": "Int64"})

    def neighbours(self, k: int) -> pd.DataFrame:
        """One row per place but single tokens, of the sample."""
        labels = self.sums["labels"].values
        fellows = torch.bincount(labels, minlength=1)[labels] > 1  # others may have been broken, or in a short batch
        labels, k = labels[fellows], min(k, int(fellows.sum()) - 1)
        rows = []
        for place, kept in self.sums["kept"].items() if k > 0 else ():
            layer = next(each.layer for each in self.features[place.network] if each.layer.name == place.layer)
            distances = squared_distances(kept.values[fellows.to(kept.values.device)])
            own = labels.to(distances.device)
            right = nearest_neighbours(distances, own, k).double()
            soft = soft_nearest_neighbour(distances, own)
            knn = (right.mean().item(), right.std().item() / len(right) ** 0.5)
            where = (self.networks[place.network].name, place.layer, layer.index, layer.depth, place.aggregation)
            rows.append((*where, len(labels), k, *knn, soft.loss, soft.se, soft.temperature))
        return pd.DataFrame(rows, columns=NEIGHBOURS)


class Probes(NamedTuple):
    """What was found by probes."""

    table: pd.DataFrame
    """model, layer, index, depth, aggregation, token_row, token_col, shots, seed, l2, accuracy."""
    summary: pd.DataFrame
    """The same without seed and l2, with seeds: how many; accuracy is the mean over them, se its standard error."""
    neighbours: pd.DataFrame
    """model, layer, index, depth, aggregation, images, k, and the rest of `NEIGHBOURS`."""
    protocol: dict[str, Any]


@study
def linear_probes(
    networks: AnyNetwork | Sequence[AnyNetwork],
    images: ImageSet | None = None,
    *,
    train: ImageSet | None = None,
    layers: str | Sequence[str] = "blocks",
    shots: int | None | Sequence[int | None] = 10,
    seeds: int = 3,
    tokens: bool = True,
    neighbours: int = 1000,
    k: int = 10,
    batch_size: int = 32,
    **how: Unpack[Passing],
) -> Result:
    """Accuracy of linear probes on every layer, from one pass over training and one over test images.

    Regularised least squares to +-1 targets on standardised features (see `measures/probe.py`). The strength of the
    ridge is chosen from 2^-10 to 2^20 by the squared error on held-out training images: a tenth of each class, for few
    shots no more than so many, or ten. They are never fitted on, but by the probes of all images, fitted again once
    the strength is chosen. Test images are seen once, by the fitted probes.

    A ViT's aggregations are `cls`, or `first` (the first token) where there is none; `spatial_mean` (without CLS),
    `mean` (of all tokens), and `token`, each single one. Maps finer than the last are first patched, k x k positions
    into channels with k = floor(sqrt(last channels / channels)), then average-pooled to the last's size; their
    positions are their tokens.

    Args:
        networks: one, or several that see the same images.
        images: test images with labels; None: 5,000 of the bundled sample.
        train: training images with labels; None: 3,000 of the bundled sample.
        layers: what `find_layers` takes; maps or grids of tokens.
        shots: training images per class to fit on; None: all; or several of these.
        seeds: draws of so many.
        tokens: whether to probe each single token too: as many probes per layer as there are positions.
        neighbours: test images among which nearest neighbours and the soft nearest neighbour loss are computed, as
            many of each class; with too many classes for ten of each, of some classes. 0: do without.
        k: nearest neighbours that vote.
        batch_size: images per forward pass.
        how: see `repsim.passes.sweep.Passing`.

    Returns:
        `table`: accuracies from 0 to 1, per draw; `summary`: over draws, with a standard error that is over draws, and
        covers neither the test images nor the network's training; NaN of one draw. `neighbours`: leave-one-out accuracy
        of nearest neighbours and soft nearest neighbour loss of the aggregated features as they are, not standardised.

    Raises:
        UsageError: no labels, too few images of a class, classes that one set lacks, more memory needed than there is.

    Reference: paper section 6, Figures 11, 13, D.4 and F. Its code (big_vision) keeps the strength fixed and
    penalises the bias, which is not done here.
    """
    train = ImageSet("sample", split="train") if train is None else train
    begun = begin(networks, images, most=MOST, layers=layers)
    if train.left_out:
        begun.notices.say(train.left_out_in_words)
    shots = [shots] if shots is None or isinstance(shots, int) else shots
    options = {"layers": layers, "shots": shots, "seeds": seeds, "tokens": tokens, "neighbours": neighbours, "k": k}
    probing = Probing(begun.networks, train, begun.images, **options)
    testing = probing.fitted(batch_size=batch_size, **how)
    counts = sweep(begun.images, [testing], batch_size=batch_size, short=True, **how)
    table, summary, near, protocol = probing.found(counts)
    return begun.result("probe", table, counts, protocol, tables={"probe_summary": summary, "neighbours": near})


class Probing:
    """What `linear_probes` does, in steps, for those who have other studies of the same test images."""

    def __init__(
        self,
        networks: Sequence[Network],
        train: ImageSet,
        test: ImageSet,
        *,
        layers: str | Sequence[str] = "blocks",
        shots: Sequence[int | None] = (10,),
        seeds: int = 3,
        tokens: bool = True,
        neighbours: int = 1000,
        k: int = 10,
    ) -> None:
        check_settings(shots, seeds, neighbours, k)
        check_labels(train, test)
        self.train, self.test, self.k, self.neighbours = train, test, k, neighbours
        present = np.unique(train.labels)  # numbers of classes may have gaps
        self.labels, self.test_labels = (np.searchsorted(present, images.labels) for images in (train, test))
        names = [train.classes[label] if train.classes else label for label in present.tolist()]
        self.split = Split.of(self.labels, list(dict.fromkeys(shots)), seeds, names)
        self.networks = told_apart([network.sized(train.tensor_size) for network in networks])
        self.features = [Features.of(network, find_layers(network, layers), single=tokens) for network in self.networks]
        self.asked = {"layers": layers, "shots": shots, "seeds": seeds, "single_tokens": tokens}

    def fitted(
        self, *, batch_size: int, beside: Callable[[Sequence[Network]], Study] | None = None, **how: Any
    ) -> Testing:
        """Pass the training images and fit; what is left is a study of the test images.

        Args:
            batch_size: images per forward pass.
            beside: another study that sees every pass of these networks.
            how: see `sweep`.
        """

        def probes() -> Iterator[tuple[Place, dict[Draw, Probe]]]:
            used = self.train.only(self.split.used)
            for chosen in self.parts():
                numbers = [number for number, of in enumerate(chosen) if of]
                networks, features = ([of[number] for number in numbers] for of in (self.networks, chosen))
                fitting = Fitting(networks, features, self.labels, self.split, numbers)
                check_memory(fitting.takes(batch_size, 1), networks[0].device)
                studies = [fitting] if beside is None else [fitting, beside(networks)]
                self.train_counts = sweep(used, studies, batch_size=batch_size, short=True, **how)
                yield from fitting.fit()
                self.used = fitting.used

        self.sample = class_sample(self.test_labels, self.neighbours)
        self.testing = Testing(self.networks, self.features, self.test_labels, probes(), self.sample)
        return self.testing

    def parts(self) -> list[list[list[Features]]]:
        """The layers of each network, in as many parts as there are to be passes over the training images.

        What the probes of single tokens are fitted on can take gigabytes. A few images are rather passed again: as
        often as keeps a pass below `SUMS` bytes, and all passes together near one over the test images, or near `AGAIN`
        images.
        """
        images = [len(of) for of in (self.split.held_out, *self.split.draws.values())]
        classes = int(self.labels.max()) + 1
        takes = [
            (number, each, bytes_of_layer(each, images, classes))
            for number, of in enumerate(self.features)
            for each in of
        ]
        most = max(
            SUMS,
            math.ceil(sum(size for *_, size in takes) / max(max(len(self.test), AGAIN) // len(self.split.used), 1)),
        )
        parts: list[list[list[Features]]] = []
        room = 0
        for number, each, size in takes:
            if not parts or size > room:
                parts.append([[] for _ in self.networks])
                room = most
            parts[-1][number].append(each)
            room -= size
        return parts

    def found(self, counts: Counts) -> Probes:
        """After the test images: everything, with the record of it."""
        table = self.testing.table()
        shots = ["all" if each is None else each for each in self.asked["shots"]]
        return Probes(
            table=table,
            summary=summarise(table),
            neighbours=self.testing.neighbours(self.k) if self.neighbours else pd.DataFrame(columns=NEIGHBOURS),
            protocol={
                **self.asked,
                "shots": shots,
                "estimator": "ridge to +-1 targets, features standardised, strength chosen on held-out training images",
                "training_images": {
                    **self.train.record(self.train_counts),
                    "held_out": self.used[None],
                    "fitted_on": {str(draw.shots or "all"): count for draw, count in self.used.items() if draw},
                },
                "neighbours": {"images": len(self.sample), "k": self.k, "distance": "Euclidean, features as they are"},
                "patched": {
                    network.name: {each.layer.name: each.patch for each in of if each.patch > 1}
                    for network, of in zip(self.networks, self.features)
                },
                "batch_size": counts.batch_size,
            },
        )


def check_settings(shots: Sequence[int | None], seeds: int, neighbours: int, k: int) -> None:
    """Raise `UsageError` for numbers that make no sense."""
    wrong = [each for each in shots if each is not None and each < 1]
    if wrong or not shots:
        raise UsageError(f"shots must be at least 1, or all of a class, got {wrong[0] if wrong else 'none'}")
    if seeds < 1:
        raise UsageError(f"seeds must be at least 1, got {seeds}")
    if neighbours and neighbours < 20:
        raise UsageError(f"neighbours must be 0, or at least 20 images, got {neighbours}")
    if k < 1 or (neighbours and k >= neighbours):
        raise UsageError(f"k must be from 1 to {max(neighbours - 1, 1)}, got {k}")


def check_labels(train: ImageSet, test: ImageSet) -> None:
    """Raise for images without labels, or sets that do not have the same classes."""
    for what, images in (("training", train), ("test", test)):
        if images.labels is None:
            raise UsageError(
                f"probes need labels, and the {what} images of {images.data} have none; one folder per class gives some"
            )
        if unlabelled := int((images.labels < 0).sum()):
            raise UsageError(
                f"labels must not be negative, and {unlabelled} of the {what} images of {images.data} have such; "
                "images that lie beside the folders of classes have -1, and so do many data sets that are not labelled"
            )
    if train.classes is not None and test.classes is not None and train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))[0]
        raise UsageError(f"training and test images must have the same classes; {odd!r} is in one of them only")
    present, tested = np.unique(train.labels), np.unique(test.labels)
    if missing := sorted(set(tested.tolist()) - set(present.tolist())):
        name = train.classes[missing[0]] if train.classes else missing[0]
        raise UsageError(f"every class needs training images; there are none of class {name!r}")


def class_sample(labels: np.ndarray, most: int) -> np.ndarray:
    """Positions of at most so many images, as many of each class: ten at least, if need be of fewer classes."""
    rng = np.random.default_rng(0)
    known = rng.permutation(np.unique(labels))
    of_each = max(most // len(known), min(10, most))
    chosen = [rng.permutation(np.flatnonzero(labels == label))[:of_each] for label in known[: most // max(of_each, 1)]]
    chosen = [of_class for of_class in chosen if len(of_class) > 1]  # alone in its class, an image has no fellow
    return np.concatenate([np.empty(0, np.int64), *chosen])


def check_memory(takes: Takes, device: torch.device) -> None:
    """Raise before anything runs if a GPU has no room for what probes of its activations are fitted on."""
    if device.type == "cuda":
        there, needed = torch.cuda.mem_get_info(device)[0], takes.sums + takes.tables
        if needed > there:
            raise UsageError(
                f"the sums of these probes take {needed / 2**30:.0f} GiB, more than the {there / 2**30:.0f} GiB that "
                f"are free on {device}; take {takes.less}"
            )


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard error over seeds of each probe, and of the mean of all single tokens."""
    single = table[table["aggregation"] == "token"]
    where = [c for c in PROBE_SUMMARY[:8] if not c.startswith("token_")]
    means = single.groupby([*where, "seed"], sort=False, as_index=False)["accuracy"].mean()
    if len(means):
        table = pd.concat([table, means.assign(aggregation="token_mean")], ignore_index=True)
    groups = table.groupby(PROBE_SUMMARY[:8], sort=False, dropna=False)["accuracy"]
    return groups.agg(seeds="count", accuracy="mean", se="sem").reset_index()[PROBE_SUMMARY]
