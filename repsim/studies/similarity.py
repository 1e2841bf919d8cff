"""Similarity of layers within and between networks by minibatch CKA (paper, Figures 1, 2, B.1, G.2, H)."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from typing_extensions import Unpack

from repsim.errors import UsageError
from repsim.images.image_set import Batch, Counts
from repsim.measures.cka import (
    GramRow,
    Grams,
    matched_hsic,
    matched_without_groups,
    minibatch_cka,
    normalise_matched,
    skewed,
    stacked_hsic,
    stacked_without_groups,
)
from repsim.measures.running import GROUPS, BatchMeans
from repsim.networks.layers import Layer, find_layers
from repsim.networks.models import Network
from repsim.networks.tokens import Tokens
from repsim.passes.plan import Takes
from repsim.passes.seen import Seen
from repsim.passes.study import Study
from repsim.passes.sweep import Passing, require_finite, sweep
from repsim.studies.results import AnyImages, AnyNetwork, Result, begin, study, too_skewed
from repsim.tables import MATCHED, SIMILARITY

MOST = 2560
"""Images of the bundled sample, where none are given."""
BATCH = 256
"""Images in a batch; fewer if images are few, see `passes.sweep.fitting`."""
BYTES_OF_ROW = 400
"""Bytes of a row of the table, while it is put together and written."""


class LayerSimilarity(Study):
    """The study: CKA of every pair of layers of networks, within each and across."""

    name = "cka"

    def __init__(self, networks: Sequence[Network], layers: Sequence[Sequence[Layer]], tokens: Tokens = "all") -> None:
        self.networks, self.layers, self.tokens = networks, layers, tokens
        self.sums = minibatch_cka()
        self._grams = Grams()
        self._last: tuple[Any, ...] | None = None

    def watch(self, index: int, network: Network, seen: Seen) -> AbstractContextManager[None]:
        return seen.layers(self.layers[index], self._reduce)

    def _reduce(self, layer: Layer, activation: Tensor) -> GramRow:
        # Identity and, in evaluation, dropout pass on the tensor that was just reduced.
        same = (activation._version, layer.layout, layer.order, layer.prefix, layer.positions)
        if self._last is not None and self._last[0]() is activation and self._last[1] == same:
            return self._last[2]
        row = self._grams(layer.select(activation, self.tokens))
        self._last = (weakref.ref(activation), same, row)
        return row

    def update(self, seen: Sequence[Seen], batch: Batch) -> None:
        rows = self._rows(seen, batch)
        without = partial(stacked_without_groups, rows)
        self.sums.update(stacked_hsic(rows, len(batch.positions)), batch.group, without)

    def result(self, counts: Counts) -> Result:
        return Result(self.name, self.table([self]), {"protocol": {"batch_size": counts.batch_size}})

    def takes(self, size: int, batches: int) -> Takes:
        layers = [layer for layers_of_one in self.layers for layer in layers_of_one]
        pairs = 8 * len(layers) ** 2
        return Takes(
            sums=min(GROUPS, batches) * pairs,
            batch=grams_of(layers, size),
            tables=8 * pairs + BYTES_OF_ROW * len(layers) ** 2,
            waiting=4 * size * sum(layer.numel for layer in layers),
            less="fewer --layers",
        )

    def _rows(self, seen: Sequence[Seen], batch: Batch) -> list[GramRow]:
        """The Grams of all layers of all networks, on one device and checked."""
        rows = [rows[layer.name] for rows, layers in zip(seen, self.layers) for layer in layers]
        device = rows[0].norm.device
        rows = [row._replace(direction=row.direction.to(device), norm=row.norm.to(device)) for row in rows]
        require_finite([row.norm for row in rows], [(name, layer.name) for name, layer in self._named()], batch)
        return rows

    def _named(self) -> list[tuple[str, Layer]]:
        return [(net.name, layer) for net, layers in zip(self.networks, self.layers) for layer in layers]

    def constant(self) -> list[tuple[str, str]]:
        """(network, layer) of layers without HSIC in any batch, as where all images are alike: no CKA."""
        return self._without(self.sums.mean().diagonal())

    @staticmethod
    def table(studies: Sequence[LayerSimilarity]) -> pd.DataFrame:
        """The table of `layer_cka` from one study, or one per repeat: all ordered pairs of layers."""
        table = pairs_of_layers(studies[0].networks, studies[0].layers)
        return _with_values(table, studies, SIMILARITY)

    def own(self, hsics: Tensor) -> tuple[Tensor, Tensor]:
        """HSIC with itself of the first and of the second of each pair; see `skewed`."""
        own = hsics.diagonal()
        return own[:, None], own[None]

    def means(self, cka: Tensor) -> list[tuple[dict[str, str], Any]]:
        """The means over CKA that a command says last: what each is of, and where in the matrix its CKA are.

        Lowest with highest third of the layers of each network; and of two networks each third of the first's layers
        with the layer of the second that it is most like.
        """
        places = slices([len(layers) for layers in self.layers])
        means: list[tuple[dict[str, str], Any]] = []
        for network, own in zip(self.networks, places):
            if own.stop - own.start >= 3:
                low, _, high = thirds_of(own)
                name = network.name
                means.append(({"model_a": name, "layers_a": LOWEST, "model_b": name, "layers_b": HIGHEST}, (low, high)))
        if len(places) == 2 and places[0].stop >= 3:
            of, other = self.networks
            for name, rows in zip((LOWEST, MIDDLE, HIGHEST), thirds_of(places[0])):
                likeness = cka[rows, places[1]].mean(0)
                if len(likeness) and rows.stop > rows.start and not likeness.isnan().all():
                    best = int(likeness.nan_to_num(-torch.inf).argmax())
                    layer = self.layers[1][best].name
                    row = {"model_a": of.name, "layers_a": name, "model_b": other.name, "layers_b": layer}
                    means.append((row, (rows, slice(places[1].start + best, places[1].start + best + 1))))
        return means

    def _without(self, own: Tensor) -> list[tuple[str, str]]:
        """Layers whose HSIC with themselves is zero."""
        return [(name, layer.name) for (name, layer), hsic in zip(self._named(), own.tolist()) if not hsic > 0]


def pairs_of_layers(networks: Sequence[Network], layers: Sequence[Sequence[Layer]]) -> pd.DataFrame:
    """All ordered pairs of layers of all networks: model, layer, kind, index and depth of either."""
    sides = pd.DataFrame(
        [
            (network.name, layer.name, layer.kind, layer.index, layer.depth)
            for network, chosen in zip(networks, layers)
            for layer in chosen
        ],
        columns=["model", "layer", "kind", "index", "depth"],
    )
    count = len(sides)
    return pd.concat(
        [
            sides.iloc[np.repeat(np.arange(count), count)].add_suffix("_a").reset_index(drop=True),
            sides.iloc[np.tile(np.arange(count), count)].add_suffix("_b").reset_index(drop=True),
        ],
        axis=1,
    )


LOWEST, MIDDLE, HIGHEST, ALL = "lowest third", "middle third", "highest third", "all"
"""Names of groups of layers in `run.json`."""


def thirds_of(layers: slice) -> tuple[slice, slice, slice]:
    """The lowest, middle and highest third; the middle has what is left where they are uneven."""
    size = -(-(layers.stop - layers.start) // 3)
    low, high = layers.start + size, layers.stop - size
    return slice(layers.start, low), slice(low, high), slice(high, layers.stop)


def slices(lengths: Sequence[int]) -> list[slice]:
    """Slices of several parts that follow each other."""
    ends = np.cumsum([0, *lengths]).tolist()
    return [slice(low, high) for low, high in zip(ends, ends[1:])]


def grams_of(layers: Sequence[Layer], size: int) -> int:
    """Bytes that the Grams of layers take until a batch of so many images is summed, and what making them takes.

    A Gram keeps half of its entries in float32, and they are stacked once; layers are read as rows of images, a copy
    where their axes lie otherwise.
    """
    widest = max(layer.numel for layer in layers)
    return len(layers) * (4 * size**2 + 2**21) + 6 * 8 * size**2 + 4 * (size * widest + 2 * max(2**20, 2048 * size))


class MatchedSimilarity(LayerSimilarity):
    """The study: CKA of each layer of the first network with the same layer of every later network."""

    name = "matched"

    def __init__(self, networks: Sequence[Network], layers: Sequence[Sequence[Layer]], tokens: Tokens = "all") -> None:
        super().__init__(networks, layers, tokens)
        self.sums = BatchMeans(normalise_matched)
        if len(networks) < 2:
            raise UsageError("the comparison of the same layers needs a network and at least one other network")
        for network, chosen in zip(networks, layers):
            if [layer.name for layer in chosen] != [layer.name for layer in layers[0]]:
                raise UsageError(
                    f"{network.name} and {networks[0].name} do not have the same layers, and only the same layer "
                    "of both is compared; compare all with all, or choose layers by name that both have"
                )

    def takes(self, size: int, batches: int) -> Takes:
        values = 8 * sum(map(len, self.layers)) * 2
        return dataclasses.replace(
            super().takes(size, batches), sums=min(GROUPS, batches) * values, tables=values * BYTES_OF_ROW // 8
        )

    def update(self, seen: Sequence[Seen], batch: Batch) -> None:
        rows, count = self._rows(seen, batch), len(self.layers[0])
        reference, *other_rows = (rows[start : start + count] for start in range(0, len(rows), count))
        without = partial(matched_without_groups, reference, other_rows)
        self.sums.update(matched_hsic(reference, other_rows, len(batch.positions)), batch.group, without)

    def constant(self) -> list[tuple[str, str]]:
        return self._without(self.sums.mean()[: len(self.networks)].flatten())

    @staticmethod
    def table(studies: Sequence[LayerSimilarity]) -> pd.DataFrame:
        """The table of `matched_cka` from one study, or one per repeat."""
        networks, layers = studies[0].networks, studies[0].layers[0]
        table = pd.DataFrame(
            [(networks[0].name, b.name, at.name, at.index, at.depth) for b in networks[1:] for at in layers],
            columns=["model_a", "model_b", "layer", "index", "depth"],
        )
        return _with_values(table, studies, MATCHED)

    def own(self, hsics: Tensor) -> tuple[Tensor, Tensor]:
        return hsics[:1], hsics[1 : len(self.networks)]

    def means(self, cka: Tensor) -> list[tuple[dict[str, str], Any]]:
        """The mean over the layers of each network with the first."""
        reference, *others = (network.name for network in self.networks)
        names = {"model_a": reference, "layers_a": ALL}
        return [({**names, "model_b": name, "layers_b": ALL}, number) for number, name in enumerate(others)]


def layer_cka(
    networks: AnyNetwork | Sequence[AnyNetwork],
    images: AnyImages = None,
    *,
    layers: str | Sequence[str] = "blocks",
    tokens: Tokens = "all",
    batch_size: int | None = None,
    repeats: int = 1,
    **pass_options: Unpack[Passing],
) -> Result:
    """CKA of every pair of layers within each network and across, from one pass over the images.

    HSIC_1 is averaged over minibatches, then divided: 1 for the same representation (up to rotation
    and scale), about 0, also slightly below, for unrelated ones. The paper's protocol is 10,240
    images, `batch_size=1024, repeats=20`.

    Args:
        networks: one or several: networks, modules, names, or `Features` of the same images.
        images: an `ImageSet`, or data for one: a folder, a float tensor (n, c, h, w) that goes into the
            networks as it is, a uint8 array, a list of PIL images or of files, a `Dataset`, a `DataLoader`; None: 2,560
            of the bundled sample, or for features alone all images that they have in common.
        layers: a choice of `find_layers`, for all networks.
        tokens: `all`, `cls`, `spatial` or `pooled`.
        batch_size: images per minibatch, at least 4; the last short one is dropped. None: 256, or fewer if images are
            few, so that there are standard errors (`passes.sweep.fitting`).
        repeats: passes, each over newly chosen images; the mean of their CKA is given.
        pass_options: see `repsim.passes.sweep.Passing`.

    Returns:
        `table`: one row per ordered pair of layers: model_a, layer_a, kind_a, index_a, depth_a,
        the same of b, cka, se, its jackknife standard error over minibatches, and skewed, 1 where an interval by it is
        not to be trusted (see `measures.cka.skewed`); of several repeats the mean and its
        standard error over them, which covers the draws from this set of images, and no further images. NaN where a
        layer is constant.

    Reference: paper section 3, Figures 1 and 2; Nguyen, Raghu & Kornblith (2021).

    >>> import repsim as rs
    >>> images = rs.ImageSet("sample", images=32)
    >>> cka = rs.layer_cka(["vit_mini", "resnet_mini"], images, batch_size=16)
    >>> cka.table[["layer_a", "layer_b"]].values.tolist()[-1], len(cka.table)  # 13 and 17 layers
    (['layer4.2', 'layer4.2'], 900)
    """
    options = {"layers": layers, "tokens": tokens, "batch_size": batch_size, "repeats": repeats}
    return _compare(LayerSimilarity, networks, images, **options, **pass_options)


def matched_cka(
    networks: Sequence[AnyNetwork],
    images: AnyImages = None,
    *,
    layers: str | Sequence[str] = "blocks",
    tokens: Tokens = "all",
    batch_size: int | None = None,
    repeats: int = 1,
    **pass_options: Unpack[Passing],
) -> Result:
    """CKA of each layer of a network with the same layer of further networks of its architecture: checkpoints, seeds.

    The same values as on the diagonal of `layer_cka`, without the rest of the matrix.

    Args:
        networks: the reference, and one or more networks, or `Features`, with layers of the same names.
        images, layers, tokens, batch_size, repeats, pass_options: see `layer_cka`.

    Returns:
        `table`: one row per other network and layer: model_a (the reference), model_b, layer, index, depth, cka,
        se and skewed, as `layer_cka` has them.

    Raises:
        UsageError: the networks do not have the same layers.

    Reference: paper, Figures 12 and G.1.

    >>> import repsim as rs
    >>> networks = ["vit_mini", rs.load_model("vit_mini", weights="random")]
    >>> cka = rs.matched_cka(networks, rs.ImageSet("sample", images=32), batch_size=16)
    >>> cka.table["layer"].tolist()[:2]
    ['stem', 'blocks.0']
    """
    options = {"layers": layers, "tokens": tokens, "batch_size": batch_size, "repeats": repeats}
    return _compare(MatchedSimilarity, networks, images, **options, **pass_options)


@study
def _compare(
    kind: type[LayerSimilarity],
    networks: AnyNetwork | Sequence[AnyNetwork],
    images: AnyImages,
    *,
    layers: str | Sequence[str],
    tokens: Tokens,
    batch_size: int | None,
    repeats: int,
    **pass_options: Unpack[Passing],
) -> Result:
    if repeats < 1:
        raise UsageError(f"repeats must be at least 1, got {repeats}")
    begun = begin(
        networks, images, most=MOST, layers=layers, batch_size=batch_size, usual=BATCH, over_batches=repeats == 1
    )
    layers_of_networks = [find_layers(network, layers, tokens=tokens) for network in begun.networks]
    studies, counts = [], []
    for repeat in range(repeats):
        chosen = begun.images if repeat == 0 else begun.images.redrawn(begun.images.seed + repeat)
        studies.append(kind(begun.networks, layers_of_networks, tokens))
        counts.append(sweep(chosen, studies[-1:], batch_size=begun.batch_size, **pass_options))
    begun.notices.say(
        *(
            f"layer {layer!r} of {network} is constant over all images, or has no U-centred Gram (as where all "
            "images of a batch but one are alike), so its CKA is undefined"
            for network, layer in studies[0].constant()
        )
    )
    seen = begun.images.record(counts[0])
    if repeats > 1 and seen["available"] == len(begun.images):
        begun.notices.say("every repeat saw the same images, newly batched: se says nothing of other images")
    broken = sorted({name for c in counts for name in c.broken})
    protocol = {
        "layers": layers,
        "tokens": tokens,
        "estimator": "minibatch CKA, unbiased HSIC_1 averaged over batches",
        "batch_size": counts[0].batch_size,
        "batches": counts[0].batches,
        "repeats": repeats,
    }
    images_seen = {**seen, "broken": broken, "broken_count": len(broken)}
    table = kind.table(studies)
    begun.notices.say(*too_skewed(table))
    result = begun.result(kind.name, table, images_seen, protocol)
    return dataclasses.replace(result, record={**result.record, "means": _means(studies)})


def _means(studies: Sequence[LayerSimilarity]) -> list[dict[str, Any]]:
    """The means of `LayerSimilarity.means`, with standard error and degrees of freedom, for `run.json`.

    Groups of batches are left out of all CKA of a mean at once; of several repeats the error is over these.
    """
    means = studies[0].means(torch.stack([study.sums.finish(study.sums.mean()) for study in studies]).mean(0))
    if not means:
        return []

    def statistic(cka: Tensor) -> Tensor:
        return torch.stack([cka[place].mean() for _, place in means])

    results = [study.sums.compute(statistic) for study in studies]
    values = torch.stack([value for value, _ in results])
    repeats, groups = len(studies), studies[0].sums.groups
    se, df = (values.std(0) / repeats**0.5, repeats - 1) if repeats > 1 else (results[0][1], groups - 1)
    return [
        {**names, "cka": value, "se": None if math.isnan(error) else error, "df": df}
        for (names, _), value, error in zip(means, values.mean(0).tolist(), se.tolist())
        if not math.isnan(value)
    ]


def _with_values(table: pd.DataFrame, studies: Sequence[LayerSimilarity], columns: list[str]) -> pd.DataFrame:
    """The table with CKA, its standard error (of several repeats the mean and that over them), and whether skewed."""
    results = [study.sums.compute() for study in studies]
    values = torch.stack([cka.cpu() for cka, _ in results])
    se = results[0][1].cpu() if len(results) == 1 else values.std(0) / len(results) ** 0.5
    flags = skewed(results[0][0], studies[0].sums, studies[0].own).cpu()
    for column, values_of in zip(("cka", "se", "skewed"), (values.mean(0), se, flags.long())):
        table[column] = values_of.flatten().numpy()
    return table[columns]
