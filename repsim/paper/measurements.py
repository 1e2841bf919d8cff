"""Studies that the figures of the paper share, with their networks, images and forward passes.

An exhibit asks `Measurements` for studies before the images pass; see `measuring` for the tables that are made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from repsim.errors import RepsimError, UsageError
from repsim.images.image_set import Batch, Counts, ImageSet
from repsim.measures.running import ImageMeans, Total
from repsim.networks.layers import Layer, find_layers
from repsim.networks.models import Network
from repsim.passes.plan import Takes, fits, size_in_words
from repsim.passes.seen import Seen
from repsim.passes.study import Study, Summing
from repsim.passes.sweep import networks_of, runs_of, sweep
from repsim.studies.attention import AttentionDistance
from repsim.studies.heads import HeadSimilarity, head_layer, lower_layers
from repsim.studies.localization import Localization, located
from repsim.studies.probe import Probing, check_labels, tested_among
from repsim.studies.probe_passes import Features, Fitting, Place, Testing, probed
from repsim.studies.receptive import ReceptiveFields, places_of
from repsim.studies.residual import ResidualNorms
from repsim.studies.results import Begun, Notices, Result
from repsim.studies.similarity import LayerSimilarity, MatchedSimilarity


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
