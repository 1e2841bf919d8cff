"""Sensitivity of measures of similarity to known changes of each layer of a network."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import pandas as pd
from typing_extensions import Unpack

from repsim.errors import UsageError
from repsim.images.image_set import Batch, Counts
from repsim.measures.catalogue import MEASURES
from repsim.measures.changes import CHANGES
from repsim.measures.running import Joined
from repsim.networks.layers import Layer
from repsim.networks.models import Network
from repsim.networks.tokens import Tokens
from repsim.passes.plan import Takes
from repsim.passes.seen import Seen
from repsim.passes.study import Study
from repsim.passes.sweep import Passing, require_finite, sweep
from repsim.studies.compare import LAST, chosen_layers, measures_of
from repsim.studies.results import AnyImages, AnyNetwork, Result, begin, study
from repsim.tables import SENSITIVITY

MOST = 500
"""Images of the bundled sample, where none are given."""
BATCH = 50
"""Images in a batch; fewer if images are few, see `passes.sweep.fitting`."""
WORK = 2**20
"""Bytes that decompositions take for themselves."""


class Sensitivity(Study):
    """The study: the value of each measure between a layer and the same layer after a change.

    Args:
        network: whose layers are changed.
        layers: of it.
        measures: names of `MEASURES`.
        tokens: the part of each layer that stands for an image.
        seed: of the images and directions of changes.
    """

    name = "sensitivity"

    def __init__(
        self, network: Network, layers: Sequence[Layer], measures: Sequence[str], tokens: Tokens, *, seed: int = 0
    ) -> None:
        self.networks, self.layers, self.tokens, self.seed = [network], layers, tokens, seed
        self.measures = measures_of(measures)
        self.sums = [Joined() for _ in layers]

    def watch(self, index: int, network: Network, seen: Seen) -> AbstractContextManager[None]:
        return seen.rows(self.layers, lambda layer, x: layer.select(x, self.tokens).flatten(1).clone())

    def update(self, seen: Sequence[Seen], batch: Batch) -> None:
        (rows,) = seen
        reduced = [rows[layer.name] for layer in self.layers]
        named = [(self.networks[0].name, layer.name) for layer in self.layers]
        require_finite([x.abs().amax() for x in reduced], named, batch)
        for joined, x in zip(self.sums, reduced):
            joined.update(batch.positions, x.float().cpu() if x.dtype.itemsize < 4 else x.cpu())

    def takes(self, size: int, batches: int) -> Takes:
        widths, images = [layer.selected(self.tokens).numel for layer in self.layers], size * batches
        kept = 4 * images * sum(widths)
        at_once = 8 * (4 * images * max(widths) + 6 * images**2) + WORK
        return Takes(sums=kept, batch=4 * size * sum(widths), tables=kept + at_once, less="fewer --images or --layers")

    def result(self, counts: Counts) -> Result:
        return Result(self.name, self.table(), {"protocol": self.protocol(counts)})

    def protocol(self, counts: Counts) -> dict[str, Any]:
        """Settings that the numbers depend on."""
        names = [measure.name for measure in self.measures]
        return {"measures": names, "tokens": self.tokens, "batch_size": counts.batch_size}

    def table(self) -> pd.DataFrame:
        """One row per measure, layer, change and amount."""
        rows = []
        for layer, joined in zip(self.layers, self.sums):
            x = joined.values
            for change, (changed, amounts) in CHANGES.items():
                for amount in amounts:
                    y = changed(x, amount) if change == "components" else changed(x, amount, self.seed)
                    y = y.to(x.dtype)  # keeps the rounding of the original type
                    for measure in self.measures:
                        at = (measure.name, self.networks[0].name, layer.name, layer.index, layer.depth)
                        rows.append((*at, change, amount, measure.value(x, y)))
        return pd.DataFrame(rows, columns=SENSITIVITY)


@study
def sensitivity(
    network: AnyNetwork,
    images: AnyImages = None,
    *,
    measures: str | Sequence[str] | None = None,
    layers: str | Sequence[str] = "blocks",
    tokens: Tokens = "pooled",
    batch_size: int | None = None,
    **pass_options: Unpack[Passing],
) -> Result:
    """How measures of similarity answer when the layers of a network are changed in known ways.

    Each layer is compared with itself after principal components are deleted, from the smallest on; after half of the
    images are moved by one vector; and after one image is moved. Which answer is wanted is for the user to say: a
    measure that hardly falls where nearly all components are gone sees only the largest, and one that falls far for a
    single image, or for a move that a linear probe would not notice, says little of the others.

    Args:
        network: one network, module, name or `Features`.
        images: see `layer_cka`; None: 500 of the bundled sample. All are compared at once.
        measures: names of `repsim.measures.catalogue.MEASURES`; None: all.
        layers: what `find_layers` takes, or `last`.
        tokens: the part of each layer that stands for an image.
        batch_size: images per forward pass. None: 50, or for few images fewer, see `layer_cka`.
        pass_options: see `repsim.passes.sweep.Passing`.

    Returns:
        `table`: one row per measure, layer, change and amount: measure, model, layer, index, depth, change
        (`components`, `translation`, `outlier`), amount (share of the components; or length of the move over the root
        mean square distance of images from their mean), value. There is no standard error: values are of these
        images, and one draw of moved images and directions.

    Raises:
        UsageError: no such measure or layers, too few images, or more memory needed than there is.

    Reference: `repsim.measures.changes`.

    >>> import repsim as rs
    >>> responses = rs.sensitivity("vit_mini", rs.ImageSet("sample", images=32), measures="cka", layers="last")
    >>> sorted(set(responses.table["change"]))
    ['components', 'outlier', 'translation']
    """
    begun = begin(
        network, images, most=MOST, layers=None if layers == LAST else layers, batch_size=batch_size, usual=BATCH
    )
    if len(begun.networks) > 1:
        raise UsageError(f"sensitivity takes one network, got {len(begun.networks)}; call it for each network")
    names = [measure.name for measure in measures_of(list(MEASURES) if measures is None else measures)]
    if short := next((MEASURES[name] for name in names if len(begun.images) < MEASURES[name].fewest), None):
        raise UsageError(f"{short.name} needs at least {short.fewest} images, got {len(begun.images)}")
    (chosen,) = chosen_layers(begun.networks, layers, tokens)
    taken = Sensitivity(begun.networks[0], chosen, names, tokens, seed=begun.images.seed)
    counts = sweep(begun.images, [taken], batch_size=begun.batch_size, short=True, **pass_options)
    chosen = taken.result(counts)
    if undefined := list(dict.fromkeys(chosen.table.loc[chosen.table["value"].isna(), "measure"])):
        begun.notices.say(
            "some measures are undefined for some layers, such as layers of as many features as images: "
            f"{', '.join(undefined)}"
        )
    return begun.finished(chosen, counts)
