"""Making figures: which can be made, and all of them from one pass of the images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repsim.errors import RepsimError, UsageError
from repsim.images.image_set import Counts, ImageSet
from repsim.networks.models import Network
from repsim.paper.exhibits import Exhibit, Made, Probed
from repsim.paper.figures import PRESETS
from repsim.paper.measuring import Measurements, measure


@dataclass(frozen=True)
class Replication:
    """Figures that were measured, and what is known of the run."""

    figures: list[tuple[Exhibit, Made]]
    left_out: list[str]
    """Figures that turned out not to be possible, and why."""
    counts: Counts
    """What became of the test images, which every network saw once."""
    protocol: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Which figures can be made with a preset, and what they need."""

    preset: str
    exhibits: list[Exhibit]
    left_out: dict[str, str]
    """Number -> why it cannot be made."""

    @classmethod
    def of(cls, wanted: Sequence[Exhibit], preset: str, bundled: Collection[str]) -> Plan:
        possible, left_out = [], {}
        for exhibit in wanted:
            names = exhibit.names(preset)
            missing = [name for name in names if PRESETS[preset]["bundled"] and name not in bundled]
            if missing:
                left_out[exhibit.number] = f"not trained: {', '.join(missing)} (analyses/train_minis.py)"
            elif not names:
                left_out[exhibit.number] = exhibit.note(preset)
            else:
                possible.append(exhibit)
        if not possible:
            raise UsageError("; ".join(f"figure {number} cannot be made: {why}" for number, why in left_out.items()))
        return cls(preset, possible, left_out)

    @property
    def names(self) -> list[str]:
        """All networks, each once."""
        return list(dict.fromkeys(name for exhibit in self.exhibits for name in exhibit.names(self.preset)))

    @property
    def probes(self) -> bool:
        """Whether training images are needed."""
        return any(isinstance(exhibit, Probed) for exhibit in self.exhibits)

    def make(
        self, networks: Mapping[str, Network], images: ImageSet, train: ImageSet | None, **options: Any
    ) -> Replication:
        """Pass the images once, and make what can be made; a figure that cannot is left out with the reason.

        Args:
            networks: by name.
            images, train: test images, and training images of probes.
            options: of `Measurements`.
        """
        m = Measurements(networks.__getitem__, images, train, **options)
        begun, left_out, figures = [], [], []
        for exhibit in self.exhibits:
            try:
                begun.append((exhibit, measure(exhibit, m, exhibit.networks[self.preset])))
            except RepsimError as error:
                left_out.append(f"figure {exhibit.number} is left out: {error}")
        if not begun:
            raise RepsimError("; ".join(left_out))
        counts = m.run()
        for exhibit, later in begun:
            try:
                figures.append((exhibit, later()))
            except RepsimError as error:
                left_out.append(f"figure {exhibit.number} is left out: {error}")
        if not figures:
            raise RepsimError("; ".join(left_out))
        protocol = {"batch_size": counts.batch_size, "batches": counts.batches, "forward_passes": m.passes}
        return Replication(figures, left_out, counts, protocol | {"probes": m.probe_protocols()})
