"""Classes in layers: linear probes, neighbours (paper, Figures 11, 13, D.4 and F)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from typing_extensions import Unpack

from repsim.errors import UsageError
from repsim.features.aligned import known_images
from repsim.images.image_set import Counts, ImageSet, as_image_set, has_split, train_and_test
from repsim.images.sources import Files
from repsim.measures.intervals import crossed, jackknife
from repsim.measures.neighbours import nearest_neighbours, soft_nearest_neighbour, squared_distances
from repsim.measures.running import FEWEST, ImageMeans
from repsim.networks.models import Network
from repsim.passes.plan import Takes
from repsim.passes.study import Study
from repsim.passes.sweep import Passing, sweep
from repsim.studies.probe_passes import (
    Features,
    Fitted,
    Fitting,
    Place,
    Split,
    Testing,
    bytes_of_layer,
    class_sample,
    probed,
)
from repsim.studies.results import AnyImages, AnyNetwork, Begun, Result, begin, study
from repsim.tables import NEIGHBOURS, PROBE, PROBE_SUMMARY

MOST = 5000
"""Images of the bundled sample, where none are given."""
BATCH = 32
"""Images in a batch; fewer if images are few, see `passes.sweep.fitting`."""
SUMS = 2**29
"""Bytes of the data of probes that one pass over the training images collects, where more passes cost little."""
AGAIN = 2500
"""Images in all such passes that cost little in any case; as many as there are test images do too."""


@study
def linear_probes(
    networks: AnyNetwork | Sequence[AnyNetwork],
    images: AnyImages = None,
    *,
    train: ImageSet | None = None,
    layers: str | Sequence[str] = "blocks",
    shots: int | None | Sequence[int | None] = 10,
    seeds: int = 3,
    tokens: bool = True,
    neighbours: int = 1000,
    k: int = 10,
    batch_size: int | None = None,
    **pass_options: Unpack[Passing],
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
        networks: one, or several that see the same images; `Features` have rows of both sets, such as `join` makes.
        images: test images with labels; None: 5,000 of the bundled sample.
        train: training images with labels; None: 3,000 of the bundled sample, with test images of it; for a folder with
            splits `train`; for other images `ImageSet.parted` takes training and test images out of `images`.
        layers: a choice of `find_layers`; maps or grids of tokens, or vectors of features, which get one probe each.
        shots: training images per class to fit on; None: all; or several of these.
        seeds: number of draws of training images.
        tokens: whether to probe each single token too: as many probes per layer as there are positions.
        neighbours: test images among which nearest neighbours and the soft nearest neighbour loss are computed, as
            many of each class; with too many classes for ten of each, of some classes. 0: do without.
        k: nearest neighbours that vote.
        batch_size: images per forward pass. None: 32, or of few test images fewer, see `layer_cka`.
        pass_options: see `repsim.passes.sweep.Passing`.

    Returns:
        `table`: accuracies from 0 to 1, per draw; `summary`: over draws, with a standard error that is over draws of
        training images and over test images (see `crossed`), and its degrees of freedom; of one draw it is over test
        images only, of one batch of them NaN. `neighbours`: leave-one-out accuracy
        of nearest neighbours and soft nearest neighbour loss of the aggregated features as they are, not standardised.

    Raises:
        UsageError: no labels, too few images of a class, classes that one set lacks, more memory needed than there is.

    Reference: paper section 6, Figures 11, 13, D.4 and F. Its code (big_vision) keeps the strength fixed and
    penalises the bias, which is not done here.

    >>> import repsim as rs
    >>> images, train = rs.ImageSet("sample", images=64), rs.ImageSet("sample", split="train", images=200)
    >>> probes = rs.linear_probes(
    ...     "vit_mini", images, train=train, layers=["blocks.11"], shots=5, seeds=1, tokens=False, neighbours=0
    ... )
    >>> probes.summary["aggregation"].tolist()
    ['cls', 'spatial_mean', 'mean']
    """
    if train is None:
        train, images = _with_training(None if images is None else as_image_set(images))
    begun = begin(
        networks, images, most=MOST, layers=layers, batch_size=batch_size, usual=BATCH, over_batches=True, short=True
    )
    if how_split := begun.images.split_here:
        begun.notices.say(split_in_words(begun.images.data, how_split))
    if train.left_out:
        begun.notices.say(train.left_out_in_words)
    train = known_images(train, begun.networks, begun.notices.say)
    shots = [shots] if shots is None or isinstance(shots, int) else shots
    options = {"layers": layers, "shots": shots, "seeds": seeds, "tokens": tokens, "neighbours": neighbours, "k": k}
    probing = Probing.of(begun, train, **options)
    probes, trained_on = probing.fit(batch_size=begun.batch_size, **pass_options)
    testing = probing.testing(probes)
    counts = sweep(begun.images, [testing], batch_size=begun.batch_size, short=True, **pass_options)
    return probing.result(testing, trained_on, counts)


@dataclass(frozen=True)
class Probing:
    """The layers that are probed, and the images: the steps of `linear_probes`, for a test in a pass of one's own."""

    begun: Begun
    networks: list[Network]
    """The networks, with the size of the training images."""
    features: list[list[Features]]
    """The features of the layers of each network."""
    train: ImageSet
    labels: np.ndarray
    """Classes of the training images, as numbers without gaps."""
    test_labels: np.ndarray
    split: Split
    sample: np.ndarray
    """Positions of the test images that are neighbours."""
    tested: np.ndarray
    """(images,) whether each of the images that pass is a test image."""
    k: int
    asked: dict[str, Any]

    @classmethod
    def of(
        cls,
        begun: Begun,
        train: ImageSet,
        *,
        layers: str | Sequence[str] = "blocks",
        shots: Sequence[int | None] = (10,),
        seeds: int = 3,
        tokens: bool = True,
        neighbours: int = 1000,
        k: int = 10,
    ) -> Probing:
        """Prepare the probes for the networks and test images of a study; see `linear_probes`."""
        check_settings(shots, seeds, neighbours, k)
        both = check_labels(train, begun.images)
        present = np.unique(both[0])  # numbers of classes may have gaps
        labels, test_labels = (np.searchsorted(present, classes) for classes in both)
        names = [train.classes[label] if train.classes else label for label in present.tolist()]
        split = Split.of(labels, list(dict.fromkeys(shots)), seeds, names)
        tested = tested_among(begun.images, train, begun.notices.say)
        networks = [network.sized(train.tensor_size) for network in begun.networks]
        say = begun.notices.say
        features = [Features.of(network, probed(network, layers, say), single=tokens) for network in networks]
        test = np.flatnonzero(tested)
        sample = test[class_sample(test_labels[test], neighbours)]
        shown = [in_table(count) for count in shots]
        asked = {"layers": layers, "shots": shown, "seeds": seeds, "single_tokens": tokens}
        return cls(begun, networks, features, train, labels, test_labels, split, sample, tested, k, asked)

    def fit(
        self, *, batch_size: int, beside: Callable[[Sequence[Network]], Study] | None = None, **pass_options: Any
    ) -> tuple[dict[Place, Fitted], Counts]:
        """Pass the training images and fit, in as many parts as `parts` makes.

        Args:
            batch_size: images per forward pass.
            beside: a further study that sees every pass of these networks.
            pass_options: see `sweep`.

        Returns:
            The probes, and the counts of the training images.
        """
        used, probes, counts = self.train.only(self.split.used), {}, Counts()
        for part in self.parts():
            networks = [self.networks[number] for number in part]
            fitting = Fitting(networks, list(part.values()), self.labels, self.split, list(part))
            check_memory(fitting.takes(batch_size, 1), networks[0].device)
            studies = [fitting] if beside is None else [fitting, beside(networks)]
            counts = sweep(used, studies, batch_size=batch_size, short=True, **pass_options)
            probes.update(fitting.fit())
        return probes, counts

    def parts(self) -> list[dict[int, list[Features]]]:
        """Numbers of networks and layers of theirs, in as many parts as there are to be passes over training images.

        What the probes of single tokens are fitted on can take gigabytes. A few images are rather passed again: as
        often as keeps a pass below `SUMS` bytes, and all passes together near one over the test images, or near `AGAIN`
        images.
        """
        images = [len(features) for features in (self.split.held_out, *self.split.draws.values())]
        classes = int(self.labels.max()) + 1
        sizes = [
            (number, layer, bytes_of_layer(layer, images, classes))
            for number, features in enumerate(self.features)
            for layer in features
        ]
        passes = max(max(len(self.test_labels), AGAIN) // len(self.split.used), 1)
        most = max(SUMS, math.ceil(sum(size for *_, size in sizes) / passes))
        parts: list[dict[int, list[Features]]] = []
        room = 0
        for number, layer, size in sizes:
            if not parts or size > room:
                parts.append({})
                room = most
            parts[-1].setdefault(number, []).append(layer)
            room -= size
        return parts

    def testing(self, probes: Mapping[Place, Fitted]) -> Testing:
        """The study of the test images, which are to be passed next."""
        return Testing(self.networks, self.features, self.test_labels, probes, self.sample, self.tested)

    def result(self, testing: Testing, trained_on: Counts, counts: Counts) -> Result:
        """After the test images: the tables, with their record.

        Args:
            testing: of the pass over the test images.
            trained_on: counts of the training images.
            counts: and of the test images.
        """
        images = next(iter(testing.probes.values())).images  # the same at all places
        protocol = {
            **self.asked,
            "estimator": "ridge to +-1 targets, features standardised, strength chosen on held-out training images",
            "training_images": {
                **self.train.record(trained_on),
                "held_out": images[None],
                "fitted_on": {str(in_table(draw.shots)): count for draw, count in images.items() if draw},
            },
            "test_images": int(next(iter(testing.sums["right"].values())).counts.sum()) if testing.sums["right"] else 0,
            "neighbours": {"images": len(self.sample), "k": self.k, "distance": "Euclidean, features as they are"},
            "patched": {
                network.name: {
                    layer_features.layer.name: layer_features.patch
                    for layer_features in features
                    if layer_features.patch > 1
                }
                for network, features in zip(self.networks, self.features)
            },
            "batch_size": counts.batch_size,
        }
        further = {"probe_summary": summarise(testing), "neighbours": of_neighbours(testing, self.k)}
        return self.begun.result("probe", accuracies(testing), counts, protocol, tables=further)


# Tables


def accuracies(testing: Testing) -> pd.DataFrame:
    """One row per place (of `token`: position) and draw."""
    rows = []
    for place, right in testing.sums["right"].items():
        name = columns_of(testing, place)
        for (draw, strengths), of_draw in zip(testing.probes[place].l2.items(), right.mean().tolist()):
            for position, (accuracy, l2) in enumerate(zip(of_draw, strengths)):
                at = (*position_of(testing, place, position), in_table(draw.shots))
                rows.append((*name, *at, draw.seed, l2, accuracy))
    return pd.DataFrame(rows, columns=PROBE).astype(POSITIONS)


def summarise(testing: Testing) -> pd.DataFrame:
    """Mean over draws of each probe, and of the mean of all single tokens; see `crossed`."""
    rows, means = [], []
    for place, right in testing.sums["right"].items():
        name, numbers = columns_of(testing, place), shots_of(testing, place)
        for shots, drawn in numbers.items():
            per_position = crossed(right.part(drawn), lambda mean: mean)
            for position, result in enumerate(zip(*(part.tolist() for part in per_position))):
                at = (*position_of(testing, place, position), in_table(shots), len(drawn))
                rows.append((*name, *at, *result))
        if place.aggregation == "token":
            name = columns_of(testing, place._replace(aggregation="token_mean"))
            for shots, drawn in numbers.items():
                result = crossed(right.part(drawn), lambda mean: mean.mean(-1))
                means.append((*name, None, None, in_table(shots), len(drawn), *(part.item() for part in result)))
    return pd.DataFrame([*rows, *means], columns=PROBE_SUMMARY).astype(POSITIONS)


POSITIONS = {"token_row": "Int64", "token_col": "Int64"}


def shots_of(testing: Testing, place: Place) -> dict[int | None, list[int]]:
    """Number of training images per class -> the numbers of its draws."""
    seeds: dict[int | None, list[int]] = {}
    for number, draw in enumerate(testing.probes[place].l2):
        seeds.setdefault(draw.shots, []).append(number)
    return seeds


def in_table(shots: int | None) -> int | str:
    """How tables name a number of training images per class."""
    return "all" if shots is None else shots


def position_of(testing: Testing, place: Place, number: int) -> tuple[int | None, int | None]:
    """Row and column of a single token among the probes of its layer; empty for aggregations."""
    return divmod(number, testing.of(place).last[1]) if place.aggregation == "token" else (None, None)


def of_neighbours(testing: Testing, k: int) -> pd.DataFrame:
    """One row per place but single tokens, of the sample."""
    labels = testing.sums["labels"].values
    has_fellows = torch.bincount(labels, minlength=1)[labels] > 1  # others may have been broken, or in a short batch
    labels, k = labels[has_fellows], min(k, int(has_fellows.sum()) - 1)
    groups = testing.sums["groups"].values[has_fellows] if testing.sums["groups"] else None
    rows = []
    for place, kept in testing.sums["kept"].items() if k > 0 else ():
        distances = squared_distances(kept.values[has_fellows.to(kept.values.device)])
        own = labels.to(distances.device)
        right = nearest_neighbours(distances, own, k).double()
        soft = soft_nearest_neighbour(distances, own)
        measured = (right.mean().item(), _se(right, groups), soft.loss, _se(soft.losses, groups), soft.temperature)
        rows.append((*columns_of(testing, place), len(labels), k, *measured))
    return pd.DataFrame(rows, columns=NEIGHBOURS)


def _se(values: Tensor, groups: Tensor | None) -> float:
    """Standard error of the mean over images (n,): over images, or over the groups that they come in."""
    if groups is None:
        return values.std().item() / len(values) ** 0.5
    return jackknife(ImageMeans().update(values, groups), lambda mean: mean)[1].item()


def columns_of(testing: Testing, place: Place) -> tuple[str, str, int, float, str]:
    """The columns that both tables begin with: model, layer, index, depth and aggregation."""
    layer = testing.of(place).layer
    return testing.networks[place.network].name, place.layer, layer.index, layer.depth, place.aggregation


def _with_training(images: ImageSet | None) -> tuple[ImageSet, ImageSet | None]:
    """Training images, where none are given, and the test images."""
    if images is None or images.data in ("sample", "fashion-mnist"):
        return ImageSet("sample", split="train"), images
    if isinstance(images.source, Files) and (images.split or has_split(images.data)):
        (data, split), _ = train_and_test(images.data, images.split)
        return ImageSet(data, split=split, seed=images.seed), images
    return images.parted()


def split_in_words(data: str, split: Mapping[str, Any]) -> str:
    """How training and test images were parted here; see `ImageSet.parted`."""
    test, total = split["test"], split["test"] + split["training"]
    return (
        f"{data} has no separate training and test images: {split['test_share']:.0%} of each class are test images, "
        f"{test} of {total}, drawn by seed {split['seed']}"
    )


# Checks


def check_settings(shots: Sequence[int | None], seeds: int, neighbours: int, k: int) -> None:
    """Raise `UsageError` for numbers that make no sense."""
    wrong = [count for count in shots if count is not None and count < 1]
    if wrong or not shots:
        raise UsageError(f"shots must be at least 1, or all of a class, got {wrong[0] if wrong else 'none'}")
    if seeds < 1:
        raise UsageError(f"seeds must be at least 1, got {seeds}")
    if neighbours and neighbours < 20:
        raise UsageError(f"neighbours must be 0, or at least 20 images, got {neighbours}")
    if k < 1 or (neighbours and k >= neighbours):
        raise UsageError(f"k must be from 1 to {max(neighbours - 1, 1)}, got {k}")


def check_labels(train: ImageSet, test: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """The labels of both; raise for images without labels, or sets that do not have the same classes."""
    labels: list[np.ndarray] = []
    for part, images in (("training", train), ("test", test)):
        if images.labels is None:
            raise UsageError(
                f"probes need labels, and the {part} images of {images.data} have none; make one folder per class"
            )
        if unlabelled := int((images.labels < 0).sum()):
            raise UsageError(
                f"labels must not be negative, and {unlabelled} of the {part} images of {images.data} have negative "
                "labels; images that lie beside the folders of classes have -1, and so do many data sets that are not "
                "labelled"
            )
        labels.append(images.labels)
    if train.classes is not None and test.classes is not None and train.classes != test.classes:
        unshared = sorted(set(train.classes) ^ set(test.classes))[0]
        raise UsageError(f"training and test images must have the same classes; {unshared!r} is in one of them only")
    of_train, of_test = labels
    present, tested = np.unique(of_train), np.unique(of_test)
    if missing := sorted(set(tested.tolist()) - set(present.tolist())):
        name = train.classes[missing[0]] if train.classes else missing[0]
        raise UsageError(f"every class needs training images; there are none of class {name!r}")
    return of_train, of_test


def tested_among(images: ImageSet, train: ImageSet, say: Callable[[str], None]) -> np.ndarray:
    """(images,) whether probes are tested on each: on those that are no training images, where there are enough."""
    shared = images.shared_with(train)
    if not shared.any():
        return ~shared
    count = f"{shared.sum()} of the {len(images)} test images are training images"
    if (~shared).sum() < FEWEST:
        say(f"{count}, so accuracies are too high; ImageSet.parted takes training and test images of one set apart")
        return np.ones(len(images), bool)
    say(f"{count}; probes are tested on the other {(~shared).sum()} alone")
    return ~shared


def check_memory(takes: Takes, device: torch.device) -> None:
    """Raise before the pass if a GPU has no room for the data that probes of its activations are fitted on."""
    if device.type == "cuda":
        free, needed = torch.cuda.mem_get_info(device)[0], takes.sums + takes.tables
        if needed > free:
            raise UsageError(
                f"the sums of these probes take {needed / 2**30:.0f} GiB, more than the {free / 2**30:.0f} GiB that "
                f"are free on {device}; take {takes.less}"
            )
