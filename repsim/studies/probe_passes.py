"""The passes of probes: drawing images, reducing layers to features, and summing these."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from repsim.errors import RepsimError, UsageError
from repsim.features.arrays import FeatureNetwork
from repsim.images.image_set import Batch
from repsim.measures.probe import Probe, ProbeRows, ProbeSums, Ridge, refit, side_by_side, stacked, training_data
from repsim.measures.running import GROUPS, ImageMeans, Joined, kept
from repsim.networks.layers import PRESETS, Layer, find_layers, grid_of
from repsim.networks.models import Network
from repsim.networks.structure import listed
from repsim.passes.plan import Takes
from repsim.passes.seen import Seen
from repsim.passes.study import Study
from repsim.passes.sweep import require_finite

BUDGET = 2**26
"""Bytes of the data of probes that are fitted at one time, roughly."""
SOLVING = 16
"""Memory of fitting, in multiples of the bytes of the data."""
HELD_OUT = 0.1
"""Largest share of a class's training images on which the strength of the ridge is chosen."""


# Which images


@kept
class Draw(NamedTuple):
    """Which training images a probe is fitted on."""

    shots: int | None
    """Images of each class; None: all of them."""
    seed: int


@dataclass(frozen=True)
class Split:
    """Positions of training images in their set: held-out images for the ridge, and the images of each draw."""

    held_out: np.ndarray
    draws: dict[Draw, np.ndarray]

    @classmethod
    def of(
        cls, labels: np.ndarray, shots: Sequence[int | None], seeds: int, names: Sequence[str] | None = None
    ) -> Split:
        """Held-out images are the same for all draws and in none of them; a seed's smaller draws lie in larger ones.

        A tenth of each class is held out; for few shots at most as many as the shots, or ten.
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
                    f"class {name!r} has {len(of_class)} training images; {max(few, default=1)} are needed to fit on, "
                    f"and {count} to choose the ridge on"
                )
            held.append(of_class[:count])
            rest.append(of_class[count:])
        draws = {Draw(None, 0): np.sort(np.concatenate(rest))} if None in shots else {}
        for seed in range(seeds if few else 0):
            rng = np.random.default_rng(seed)
            order = [rng.permutation(positions) for positions in rest]
            for count in few:
                draws[Draw(count, seed)] = np.sort(np.concatenate([positions[:count] for positions in order]))
        return cls(np.sort(np.concatenate(held)), draws)

    @property
    def used(self) -> np.ndarray:
        return np.unique(np.concatenate([self.held_out, *self.draws.values()]))


def class_sample(labels: np.ndarray, most: int) -> np.ndarray:
    """Positions of at most so many images, as many of each class: ten at least, if need be of fewer classes."""
    rng = np.random.default_rng(0)
    known = rng.permutation(np.unique(labels))
    of_each = max(most // len(known), min(10, most))
    chosen = [rng.permutation(np.flatnonzero(labels == label))[:of_each] for label in known[: most // max(of_each, 1)]]
    chosen = [of_class for of_class in chosen if len(of_class) > 1]  # alone in its class, an image has no fellow
    return np.concatenate([np.empty(0, np.int64), *chosen])


# Features


@dataclass(frozen=True)
class Features:
    """How a layer is reduced to the features of probes."""

    layer: Layer
    grid: tuple[int, int]
    """Rows and columns of the layer."""
    last: tuple[int, int]
    """Rows and columns of the network's last layer, to which finer maps are pooled."""
    patch: int
    """Space-to-depth: patch x patch positions become channels."""
    cls: bool
    single: bool
    """Whether there is a probe for each single token."""

    @classmethod
    def of(cls, network: Network, layers: Sequence[Layer], *, single: bool) -> list[Features]:
        """For each layer; finer maps are patched until their channels come close to the last layer's."""
        grids = [(1, 1) if _vector(layer, network) else grid_of(layer, network) for layer in layers]
        last, widest = grids[-1], layers[-1].width
        features = []
        for layer, grid in zip(layers, grids):
            most = min(math.isqrt(widest // layer.width) or 1, *(max(g // n, 1) for g, n in zip(grid, last)))
            patch = max(k for k in range(1, most + 1) if grid[0] % k == 0 and grid[1] % k == 0)
            features.append(cls(layer, grid, last, patch, layer.cls, single))
        return features

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Aggregation -> how many probes of how many features."""
        width = self.layer.width
        if self.layer.layout == "vector":
            return {"cls" if self.cls else "spatial_mean": (1, width)}
        pooled = width * self.patch**2
        sizes = {"cls" if self.cls else "first": (1, width if self.cls else pooled), "spatial_mean": (1, pooled)}
        if self.layer.prefix and self.patch == 1:
            sizes["mean"] = (1, width)
        if self.single:
            sizes["token"] = (math.prod(self.last), pooled)
        return sizes

    def __call__(self, activation: Tensor) -> dict[str, Tensor]:
        """Aggregation -> (n, probes, features)."""
        tokens = self.layer.tokens(activation).float()
        spatial = tokens[:, self.layer.prefix :]
        if self.grid != self.last and self.layer.layout != "vector":
            maps = spatial.transpose(1, 2).unflatten(2, self.grid)
            spatial = F.adaptive_avg_pool2d(F.pixel_unshuffle(maps, self.patch), self.last)
            spatial = spatial.flatten(2).transpose(1, 2)
        aggregations = {
            "cls": lambda: tokens[:, :1].clone(),  # later modules may write into what is only a view
            "first": lambda: spatial[:, :1].clone(),
            "spatial_mean": lambda: spatial.mean(1, keepdim=True),
            "mean": lambda: tokens.mean(1, keepdim=True),
            "token": lambda: spatial.clone() if self.grid == self.last else spatial.contiguous(),
        }
        return {aggregation: aggregations[aggregation]() for aggregation in self.sizes}


def probed(network: Network, layers: str | Sequence[str], say: Callable[[str], None]) -> list[Layer]:
    """The layers of a choice; of a preset those that have positions in the image, where others have none.

    Args:
        network: that is probed.
        layers: a choice of `find_layers`.
        say: is called with a sentence on the layers that are left out.
    """
    chosen = find_layers(network, layers)
    without = [layer.name for layer in chosen if layer.grid is None and not _vector(layer, network)]
    if layers not in PRESETS or not 0 < len(without) < len(chosen):
        return chosen
    say(f"{network.name} has layers without positions in the image, which are not probed: {listed(without)}")
    return [layer for layer in chosen if layer.name not in without]


def _vector(layer: Layer, network: Network) -> bool:
    """Whether a layer holds features with one vector for each image, which is probed as it is."""
    return isinstance(network, FeatureNetwork) and layer.layout == "vector"


# Passes


@kept
class Place(NamedTuple):
    """A place of probes: the number of its network, its layer and its aggregation."""

    network: int
    layer: str
    aggregation: str


@dataclass(frozen=True)
class Fitted:
    """The probes of a place."""

    probe: Probe
    """The probes of all draws side by side, in float32."""
    l2: dict[Draw, list[float]]
    """The strengths of each draw, in the same order."""
    images: dict[Draw | None, int]
    """How many images each draw was fitted on, which broken ones may have thinned; None: held out."""

    @classmethod
    def of(cls, probes: Mapping[Draw, Probe], images: dict[Draw | None, int]) -> Fitted:
        strengths = {draw: probe.l2.tolist() for draw, probe in probes.items()}
        return cls(stacked(list(probes.values())).to(torch.float32), strengths, images)


class _Watching(Study):
    """The common part of passes over training and test images: they see every layer's features."""

    def __init__(self, networks: Sequence[Network], features: Sequence[Sequence[Features]], labels: np.ndarray) -> None:
        self.networks, self.features = networks, features
        self.labels = torch.from_numpy(labels).long()

    def watch(self, index: int, network: Network, seen: Seen) -> AbstractContextManager[None]:
        by_layer = {layer_features.layer.name: layer_features for layer_features in self.features[index]}
        return seen.rows(
            [layer_features.layer for layer_features in self.features[index]], lambda at, x: by_layer[at.name](x)
        )

    def bytes_of_features(self, size: int) -> list[int]:
        """Memory of the features of a batch, layer by layer."""
        return [
            4 * size * sum(probes * width for probes, width in layer_features.sizes.values())
            for features in self.features
            for layer_features in features
        ]

    def each(self, seen: Sequence[Seen], batch: Batch) -> Iterator[tuple[Place, Tensor]]:
        """The features of a batch, checked: (n, probes, features) of every place."""
        for index, (network, mapping) in enumerate(zip(self.networks, seen)):
            looked_at = [
                (layer, x) for layer, values in mapping.items() for kind, x in values.items() if kind != "token"
            ]
            require_finite([x for _, x in looked_at], [(network.name, layer) for layer, _ in looked_at], batch)
            for layer, aggregations in mapping.items():
                for aggregation, x in aggregations.items():
                    yield Place(index, layer, aggregation), x


class Fitting(_Watching):
    """The study of the training images: the data that probes are fitted on, for every place and draw."""

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
        """Networks, in the order of their numbers in a `Place`."""
        self.classes = int(labels.max()) + 1
        members = {**split.draws, None: split.held_out}
        self.members = {name: torch.from_numpy(np.isin(split.used, positions)) for name, positions in members.items()}
        self.sums: dict[Place, dict[Draw | None, ProbeSums | ProbeRows]] = {}
        """The draw; None: the held-out images."""

    def update(self, seen: Sequence[Seen], batch: Batch) -> None:
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
        all_features = [layer_features for features_of_one in self.features for layer_features in features_of_one]
        widest = max(width for layer_features in all_features for _, width in layer_features.sizes.values())
        images = [int(members.sum()) for members in self.members.values()]
        largest = max(bytes_of(1, widest, members, self.classes) for members in images)
        weights = sum(
            probes * width for layer_features in all_features for probes, width in layer_features.sizes.values()
        )
        return Takes(
            sums=sum(bytes_of_layer(layer_features, images, self.classes) for layer_features in all_features),
            batch=sum(features) + 4 * max(features),
            tables=4 * weights * self.classes * (len(images) - 1) + SOLVING * max(BUDGET, largest),
            less="probes of no single tokens (--no-tokens, tokens=False), fewer --layers, or one network at a time",
        )

    def fit(self) -> Iterator[tuple[Place, Fitted]]:
        """Choose each probe's ridge on the held-out images; fit probes of all images again, with these."""
        for place in list(self.sums):
            data = self.sums.pop(place)  # frees the data of this place
            used = {draw: int(images.counts.sum()) for draw, images in data.items()}
            if incomplete := [
                draw for draw in self.members if draw not in data or (draw and not data[draw].counts.all())
            ]:
                subject = (
                    f"{incomplete[0].shots} per class, seed {incomplete[0].seed}"
                    if incomplete[0]
                    else "the held-out images"
                )
                raise RepsimError(
                    f"broken images left no image of some class in {subject}; take more shots, or mend the images"
                )
            held_out = data.pop(None)
            yield place, Fitted.of({d: _fitted(d, data.pop(d), held_out) for d in self.members if d}, used)


def _fitted(draw: Draw, images: ProbeSums | ProbeRows, held_out: ProbeSums | ProbeRows) -> Probe:
    """The probes of a place and draw, some at a time: fitting takes many times the memory of the data."""
    (probes, features), rows = images.shape, int(images.counts.sum())
    at_once = max(1, BUDGET // bytes_of(1, features, rows, len(images.counts)))
    parts = []
    for start in range(0, probes, at_once):
        chunk = slice(start, start + at_once)
        part, rest = images.part(chunk), held_out.part(chunk)
        ridge = Ridge(part)
        l2 = ridge.best(rest)
        # Held-out images are the fewer, so that theirs are rows wherever the others' are.
        parts.append(ridge.fit(l2) if draw.shots is not None else refit(part.merge(rest), l2))  # pyrefly: ignore [bad-argument-type]
    return side_by_side(parts)


def bytes_of(probes: int, features: int, images: int, classes: int) -> int:
    """Memory of the data of probes, in the kind that `training_data` chooses."""
    return probes * (4 * images * features if images <= features else 8 * features * (features + classes))


def bytes_of_layer(features: Features, images: Iterable[int], classes: int) -> int:
    """Memory of the data of all probes of a layer, given the images of each draw."""
    images = list(images)
    return sum(bytes_of(*size, members, classes) for size in features.sizes.values() for members in images)


class Testing(_Watching):
    """The study of the test images: which each probe gets right, and the features of a sample of them.

    Args:
        networks: that are probed.
        features: of each network's layers.
        labels: (images,) classes of the images that pass.
        probes: of each place.
        sample: positions of the images whose features are kept.
        tested: (images,) whether each is a test image, and no training image.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        features: Sequence[Sequence[Features]],
        labels: np.ndarray,
        probes: Mapping[Place, Fitted],
        sample: np.ndarray,
        tested: np.ndarray,
    ) -> None:
        super().__init__(networks, features, labels)
        self.probes = probes
        self.tested = torch.from_numpy(tested)
        self.sums: dict[str, Any] = {"right": {}, "kept": {}, "labels": Joined(), "groups": Joined()}
        """Share right at each place, (draws, probes); of the sample the features at each place, labels and groups."""
        self.sampled = torch.from_numpy(np.isin(np.arange(len(labels)), sample))

    def update(self, seen: Sequence[Seen], batch: Batch) -> None:
        labels, sampled = self.labels[batch.positions], self.sampled[batch.positions]
        chosen = batch.positions[sampled]
        self.sums["labels"].update(chosen, labels[sampled])
        if batch.groups is not None:
            self.sums["groups"].update(chosen, batch.groups[sampled])
        tested = self.tested[batch.positions]
        group = batch.number if batch.groups is None else batch.groups[tested]
        for place, x in self.each(seen, batch):
            if tested.any():
                fitted = self.probes[place]
                scores = fitted.probe.scores(x if tested.all() else x[tested.to(x.device)])
                predicted = scores.unflatten(2, (len(fitted.l2), -1)).argmax(3)
                right = (predicted == labels[tested].to(x.device)[:, None, None]).mT.cpu()
                self.sums["right"].setdefault(place, ImageMeans()).update(right, group)
            if place.aggregation != "token":
                self.sums["kept"].setdefault(place, Joined()).update(chosen, x[sampled.to(x.device), 0])

    def takes(self, size: int, batches: int) -> Takes:
        features = self.bytes_of_features(size)
        probes = {place: fitted.probe for place, fitted in self.probes.items()}
        weights = sum(tensor.numel() * 4 for probe in probes.values() for tensor in (probe.weight, probe.mean))
        most = max(size * probe.bias.numel() * 4 for probe in probes.values())
        widths = (probe.mean.shape[1] for place, probe in probes.items() if place.aggregation != "token")
        sample = 4 * int(self.sampled.sum()) * sum(widths)
        right = (
            8 * min(GROUPS, batches) * sum(probe.l2.numel() * len(self.probes[at].l2) for at, probe in probes.items())
        )
        pairs = 8 * int(self.sampled.sum()) ** 2
        return Takes(
            sums=sample + right,
            batch=sum(features) + 2 * max(features) + 2 * most,
            tables=4 * pairs + weights // 8,
            less="fewer neighbours (--neighbours), fewer --layers, or one network at a time",
        )

    def of(self, place: Place) -> Features:
        """The features of a place."""
        return next(
            layer_features
            for layer_features in self.features[place.network]
            if layer_features.layer.name == place.layer
        )
