"""What the figures of the paper are made from: studies that share networks, images and forward passes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from repsim.errors import RepsimError, UsageError
from repsim.images.image_set import Batch, Counts, ImageSet
from repsim.measures.running import Total
from repsim.networks.layers import Layer, find_layers
from repsim.networks.models import Network
from repsim.networks.tracing import is_own
from repsim.passes.plan import Takes
from repsim.passes.sweep import Study, networks_of, sweep
from repsim.studies.attention import AttentionDistance
from repsim.studies.heads import HeadSimilarity, head_layer
from repsim.studies.localization import Localization, located
from repsim.studies.probe import Probes, Probing
from repsim.studies.receptive import receptive_fields
from repsim.studies.residual import ResidualNorms
from repsim.studies.results import Result
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
        self._probes: dict[str, Probes | RepsimError] = {}
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
            _, heads, count = head_layer(networks[0])
            return HeadSimilarity(networks, heads, count, layers)

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

    def probes(self, name: str) -> Probes:
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
                probing = Probing(networks, self.train, self.images, tokens=tokens, neighbours=0)
                passes = Passes(networks)
                how = self._how("training images")
                studies.append(probing.fitted(batch_size=self.batch_size, beside=passes.among, **how))
                self._count(passes, "train")
                fitted.append((names, probing))
            except UsageError as error:  # too few images of a class, or too little memory
                self._probes |= dict.fromkeys(names, error)
        if not studies:
            return Counts()
        passes = Passes(networks_of(studies))
        counts = sweep(self.images, [*studies, passes], batch_size=self.batch_size, **self._how("test images"))
        self._count(passes, "test")
        for names, probing in fitted:
            self._probes |= dict.fromkeys(names, probing.found(counts))
        return counts

    def _count(self, passes: Passes, what: str) -> None:
        for name, total in passes.sums.items():
            self.passes.setdefault(name, {})[what] = total.total


class Passes:
    """The study that counts the images which go through each network, as they do."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self.networks = networks
        self.sums: dict[str, Total] = {}

    def among(self, networks: Sequence[Network]) -> Passes:
        """The same, of a pass of some of them."""
        self.networks = networks
        return self

    @contextmanager
    def watch(self, index: int, network: Network) -> Iterator[dict[str, Any]]:
        def count(module: Any, arguments: tuple, output: Any) -> None:
            if is_own(network, passed=True):
                self.sums.setdefault(network.name, Total()).update(len(arguments[0]))

        hook = network.module.register_forward_hook(count)
        try:
            yield {}
        finally:
            hook.remove()

    def takes(self, size: int, batches: int) -> Takes:
        return Takes()

    def update(self, seen: Sequence[dict[str, Any]], batch: Batch) -> None:
        """Nothing more: it was counted when the images went in."""
