"""Where the heads of a transformer look (paper, Figures 3, 4, C.5, C.6)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import reduce
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from typing_extensions import Unpack

from repsim.errors import UsageError
from repsim.images.image_set import FEWEST, Batch, Counts, ImageSet, Named
from repsim.images.sources import FileList
from repsim.measures.attention import HeadStatistics, windowed_head_statistics
from repsim.measures.running import GROUPS, ImageMeans, Moments, kept
from repsim.networks.attention_weights import (
    AttentionLayer,
    Geometry,
    all_attention,
    find_attention,
    geometry_of,
    grid_of_places,
    watch_attention,
)
from repsim.networks.models import Network, evaluating
from repsim.networks.tracing import IMAGES, eagerly
from repsim.passes.plan import Takes
from repsim.passes.seen import Seen
from repsim.passes.study import Study
from repsim.passes.sweep import Passing, require_finite
from repsim.studies.results import AnyImages, AnyNetwork, Result, begin, study
from repsim.tables import ATTENTION, ATTENTION_MAPS

MOST = 5000
"""Images of the bundled sample, where none are given."""
BATCH = 50
"""Images in a batch; fewer if images are few, see `passes.sweep.fitting`."""
COPIES = 6
"""Memory of a map in multiples of its weights: inputs, and products with distances and logarithms."""


class AttentionDistance(Study):
    """The study: mean distance, entropy and shares of every head of one network."""

    def __init__(self, network: Network, *, renormalize: bool = False) -> None:
        self.network, self.networks, self.renormalize = network, [network], renormalize
        self.sums: dict[str, _Sums] = {}
        self.attentions = find_attention(network)
        self._geometry = {
            (layer.name, number): geometry_of(attention_map, self.attentions.places, network.prefix)
            for layer in self.attentions.layers
            for number, attention_map in enumerate(layer.maps)
        }

    @property
    def notices(self) -> list[str]:
        """Sentences on layers that were left out."""
        return self.attentions.notices

    def watch(self, index: int, network: Network, seen: Seen) -> AbstractContextManager[None]:
        return seen.attention(self.attentions, self._reduce)

    def _reduce(self, layer: AttentionLayer, number: int, attention: Tensor) -> HeadStatistics:
        geometry = self._geometry[layer.name, number]
        return windowed_head_statistics(
            attention,
            geometry.distances,
            queries=geometry.queries,
            keys=geometry.keys,
            cls=geometry.cls,
            own=geometry.own,
            renormalize=self.renormalize,
        )

    def takes(self, size: int, batches: int) -> Takes:
        weights = max(
            math.prod(attention_map.shape) // IMAGES for layer in self.attentions.layers for attention_map in layer.maps
        )
        heads = sum(len(layer.order) for layer in self.attentions.layers)
        values = heads * len(HeadStatistics._fields)
        batch = size * (COPIES * 4 * weights + 8 * values)
        return Takes(sums=24 * values + 8 * GROUPS * heads, batch=batch, tables=24 * values)

    def update(self, seen: Sequence[Seen], batch: Batch) -> None:
        for layer in self.attentions.layers:
            maps = [seen[0][layer.name, number] for number in range(len(layer.maps))]
            together = (torch.cat(parts, 1)[:, layer.order] for parts in zip(*maps))
            statistics = HeadStatistics(*together)
            require_finite([statistics.distance_px], [(self.network.name, layer.name)], batch)
            sums = self.sums.setdefault(layer.name, _Sums([Moments() for _ in statistics], ImageMeans()))
            for moments, values in zip(sums.moments, statistics):
                moments.update(values)
            sums.distances.update(statistics.distance_px, batch.group)

    def distances(self) -> list[ImageMeans]:
        """Distances of the heads of each block, first to last."""
        return [sums.distances for sums in self.sums.values()]

    def result(self, counts: Counts) -> Result:
        protocol = {"renormalize": self.renormalize, "batch_size": counts.batch_size}
        return Result("attention", self.table(), {"protocol": protocol})

    def table(self) -> pd.DataFrame:
        """One row per block and head."""
        rows = []
        depths = {layer.name: layer.depth for layer in self.attentions.layers}
        for block, (path, (moments, distances)) in enumerate(self.sums.items()):
            means = dict(zip(HeadStatistics._fields, (m.mean().tolist() for m in moments)))
            errors = distances.se(moments[0]).tolist()
            for head, se in enumerate(errors):
                values = {name: column[head] for name, column in means.items()}
                place = {"model": self.network.name, "layer": path, "depth": depths[path], "block": block, "head": head}
                rows.append({**place, **values, "distance_px_se": se})
        return pd.DataFrame(rows)[ATTENTION]


@kept
class _Sums(NamedTuple):
    moments: list[Moments]
    """Moments over images, for each of `HeadStatistics`."""
    distances: ImageMeans


def geometry(network: Network, path: str, windows: int, queries: int, keys: int) -> Geometry:
    """Where the tokens of an attention module are.

    Raises:
        UsageError: it has no positions, or the shape of the weights does not fit its windows, queries and keys.
    """
    attentions = all_attention(network)
    places = geometry_of(attentions.at(path).maps[0], attentions.places, network.prefix)
    numbers = places.windows, int(places.queries[0].sum()), int(places.keys[0].sum())
    if numbers != (windows, queries - places.prefix, keys - places.prefix):
        raise UsageError(
            f"{path} has (windows, queries, keys) = {numbers} in the image, not {(windows, queries, keys)}"
        )
    return places


@study
def attention_distance(
    network: AnyNetwork,
    images: AnyImages = None,
    *,
    renormalize: bool = False,
    maps: int | Named = 0,
    batch_size: int | None = None,
    **pass_options: Unpack[Passing],
) -> Result:
    """Mean attention distance of every head, with entropy and shares, averaged over images.

    Args:
        network: a network, module or name.
        images: see `layer_cka`; None: 5,000 of the bundled sample, as many as the paper takes.
        renormalize: divide attention rows by their sum once CLS and the like are taken out.
        maps: of how many images `attention_maps` are taken too; or of which: a file, a folder, or several.
        batch_size: images per forward pass; a last short one is dropped. None: 50, or fewer if images are few, see
            `layer_cka`.
        pass_options: see `repsim.passes.sweep.Passing`.

    Returns:
        `table`: one row per block and head: model, layer, depth, block, head, distance_px (from 0, all attention on the
        own patch, to about half the image's width, uniform), distance_px_se (standard error over images), entropy
        (nats), cls_share, self_share (0 to 1, NaN where there is no such token). With `maps` its arrays hold
        `attention_maps`.

    Reference: paper section 4, Figures 3, 4, C.5 and C.6.

    >>> import repsim as rs
    >>> distances = rs.attention_distance("vit_mini", rs.ImageSet("sample", images=16), batch_size=8)
    >>> distances.table.shape[0]  # 12 blocks of 8 heads
    96
    """
    begun = begin(network, images, most=MOST, layers="all", batch_size=batch_size, usual=BATCH)
    (network,) = begun.networks
    arrays: dict[str, Mapping[str, np.ndarray]] = {}
    shown: int | list[str] = maps if isinstance(maps, int) else []
    if maps or not isinstance(maps, int):
        looked_at, count = (begun.images, maps) if isinstance(maps, int) else _those(maps)
        arrays["attention_maps"] = taken = _maps(network, looked_at, count, pass_options.get("skip_broken", False))
        shown = maps if isinstance(maps, int) else taken["names"].tolist()
    study = AttentionDistance(network, renormalize=renormalize)
    begun.notices.say(*study.notices)
    result = begun.swept(study, **pass_options)
    result.protocol["maps"] = shown
    return replace(result, arrays=arrays)


def rollout(attentions: Sequence[Tensor]) -> Tensor:
    """Attention rollout: the product over blocks of 0.5 A + 0.5 I, A the mean over heads, rows summing to 1.

    Args:
        attentions: of each block from the first on, (n, h, t, t).

    Returns:
        (n, t, t): how much each token's last representation draws on each token of the input.

    Reference: Abnar & Zuidema (2020); Dosovitskiy et al. (2021), appendix D.8.
    """
    sums = (
        0.5 * attention.mean(1) + 0.5 * torch.eye(attention.shape[-1], device=attention.device)
        for attention in attentions
    )
    steps = (total / total.sum(-1, keepdim=True) for total in sums)
    return reduce(lambda joint, step: step @ joint, steps)


@study
def attention_maps(
    network: AnyNetwork, images: AnyImages | Named = None, *, count: int | None = None, skip_broken: bool = False
) -> Result:
    """CLS attention of the last block and attention rollout of the first images, or of those that are named.

    Args:
        network: a network, module or name.
        images: see `layer_cka`; None: the bundled sample. Or a file, or a list of files or of PIL images, however
            few: all of them are taken, in this order.
        count: how many images of a set; None: 8.
        skip_broken: go on without images that cannot be read.

    Returns:
        `arrays["attention_maps"]`: images (n, height, width, channels), each scaled to 0..1; cls (n, h, rows,
        columns), attention of CLS on the grid in the last block, per head, empty without CLS; rollout (n, rows,
        columns), from CLS, or the mean over the grid's tokens without one; names (n,) of the images; and block, the
        name of the last. `table`: one row per image: model, image.

    Raises:
        UsageError: tokens are pooled or windowed on the way, so that blocks do not share them.

    Reference: Abnar & Zuidema (2020); Dosovitskiy et al. (2021), appendix D.8.

    >>> import repsim as rs
    >>> maps = rs.attention_maps("vit_mini", rs.ImageSet("sample", images=16), count=2).maps
    >>> maps["cls"].shape, maps["rollout"].shape  # of 8 heads, and of all blocks together
    ((2, 8, 7, 7), (2, 7, 7))
    """
    named = isinstance(images, list | tuple | Image.Image) or (
        isinstance(images, str | os.PathLike) and os.path.isfile(os.path.expanduser(images))
    )
    images, all_of_them = _those(images) if named else (images, 8)
    count = all_of_them if count is None else count
    begun = begin(network, images, most=MOST)
    (network,) = begun.networks
    maps = _maps(network, begun.images, count, skip_broken)
    table = pd.DataFrame({"model": network.name, "image": range(count)})[ATTENTION_MAPS]
    protocol = {"count": count, **({"maps": maps["names"].tolist()} if named else {})}
    return begun.result("attention_maps", table, Counts(used=count), protocol, arrays={"attention_maps": maps})


def _those(named: Named) -> tuple[ImageSet, int]:
    """The very images that are named, and how many they are."""
    images = ImageSet.of_named(named)
    return images, len(images)


def _names(images: ImageSet, positions: Tensor) -> list[str]:
    """What images are called on a picture: a file's name without its folders."""
    ids = images.ids
    shown = (f"image {p}" if ids is None else ids[p] for p in positions.tolist())
    return [name.rpartition("/")[2] if isinstance(images.source, FileList) else name for name in shown]


@torch.no_grad()
def _maps(network: Network, images: ImageSet, count: int, skip_broken: bool) -> dict[str, np.ndarray]:
    """The arrays of `attention_maps`."""
    if count > len(images):
        raise UsageError(f"maps of {count} images were asked for, there are {len(images)}")
    attentions = find_attention(network)
    batch = next(images.batches([network.transform], max(count, FEWEST), skip_broken=skip_broken, short=True))
    inputs = batch.inputs[network.transform][:count].to(network.device, network.dtype)
    maps = [attention_map for layer in attentions.layers for attention_map in layer.maps]
    for attention_map in maps:
        same = np.array_equal(attention_map.query_places, maps[0].query_places)
        if (
            attention_map.groups.shape[1] > 1
            or not same
            or not np.array_equal(attention_map.key_places, attention_map.query_places)
        ):
            raise UsageError(
                f"attention maps need one grid of tokens from the first block to the last; {network.name} changes it"
            )
    for why, names in (
        ("is left out", [*attentions.placeless, *attentions.linear]),
        ("is mixed between its heads", attentions.mixed),
    ):
        if names:
            raise UsageError(
                f"attention maps need the attention of all blocks; in {network.name} the attention of {names[0]} {why}"
            )
    seen: dict[str, dict[int, Tensor]] = {}

    def take(layer: AttentionLayer, number: int, attention: Tensor) -> None:
        seen.setdefault(layer.name, {})[number] = attention[:, :, 0].cpu()

    with evaluating(network.module), eagerly(network), network.seeded(), watch_attention(network, take, attentions):
        network.module(inputs)
    whole_maps = [
        torch.cat([seen[layer.name][i] for i in range(len(layer.maps))], 1)[:, layer.order]
        for layer in attentions.layers
    ]
    geometry = geometry_of(maps[0], attentions.places, network.prefix)
    (rows, columns), order = grid_of_places(attentions.places, maps[0].key_places[0], geometry.keys[0])
    whole, last = rollout(whole_maps), whole_maps[-1]
    if geometry.cls is None:
        from_cls, rolled = last[:, :0, 0][..., order], whole[:, order][..., order].mean(1)
    else:
        from_cls, rolled = last[:, :, geometry.cls][..., order], whole[:, geometry.cls][..., order]
    pixels = inputs.cpu().movedim(1, -1)
    low, high = pixels.amin((1, 2, 3), keepdim=True), pixels.amax((1, 2, 3), keepdim=True)
    return {
        "images": ((pixels - low) / (high - low).clamp(min=1e-12)).numpy(),  # an image of one colour stays black
        "cls": from_cls.unflatten(-1, (rows, columns)).numpy(),
        "rollout": rolled.unflatten(-1, (rows, columns)).numpy(),
        "names": np.array(_names(images, batch.positions[:count])),
        "block": np.array(attentions.layers[-1].name),
    }
