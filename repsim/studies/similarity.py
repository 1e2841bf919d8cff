"""Similarity of layers within and between networks by minibatch CKA (paper, Figures 1, 2, B.1, G.2, H)."""

from __future__ import annotations

import dataclasses
import warnings
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from repsim.errors import UsageError, not_finite
from repsim.hooks import capture
from repsim.images import Batch, ImageSet, as_image_set
from repsim.layers import Layer, find_layers
from repsim.measures.cka import GramRow, MinibatchCKA, flatten, gram_row, scratch_for
from repsim.models import Network, as_network, told_apart
from repsim.sweep import Progress, sweep
from repsim.tables import SIMILARITY
from repsim.tokens import Tokens


class LayerSimilarity:
    """The study: CKA of every pair of layers of one or two networks, within and across."""

    def __init__(self, networks: Sequence[Network], layers: Sequence[Sequence[Layer]], tokens: Tokens = "all") -> None:
        self.networks, self.layers, self.tokens = networks, layers, tokens
        self.cka = MinibatchCKA()
        self._scratch: Tensor | None = None
        self._to_centre: set[tuple[int, str]] = set()
        self._last: tuple[Any, ...] | None = None

    def watch(self, index: int, network: Network) -> AbstractContextManager[dict[str, GramRow]]:
        return capture(network, self.layers[index], lambda layer, x: self._reduce(index, layer, x))

    def _reduce(self, network: int, layer: Layer, activation: Tensor) -> GramRow:
        # Identity and, in evaluation, dropout hand on the very tensor that was just reduced.
        same = (activation._version, layer.layout, layer.prefix)
        if self._last is not None and self._last[0]() is activation and self._last[1] == same:
            return self._last[2]
        x = flatten(layer.select(activation, self.tokens))
        if self._scratch is None or self._scratch.device != x.device:
            self._scratch = scratch_for(len(x), x.device)
        row = gram_row(x, self._scratch, centre=(network, layer.name) in self._to_centre)
        if row.centred:
            self._to_centre.add((network, layer.name))
        self._last = (weakref.ref(activation), same, row)
        return row

    def update(self, seen: Sequence[dict[str, GramRow]], batch: Batch) -> None:
        rows = [rows[layer.name] for rows, layers in zip(seen, self.layers) for layer in layers]
        device = rows[0].norm.device
        rows = [row._replace(direction=row.direction.to(device), norm=row.norm.to(device)) for row in rows]
        require_finite(rows, [(name, layer.name) for name, layer in self._named()], batch)
        self.cka.update(rows, len(batch.positions), batch.number)

    def _named(self) -> list[tuple[str, Layer]]:
        return [(net.name, layer) for net, layers in zip(self.networks, self.layers) for layer in layers]

    def constant(self) -> list[tuple[str, str]]:
        """(network, layer) of layers that are the same for all images: their CKA is undefined."""
        own = self.cka.sums.mean().diagonal().tolist()
        return [(name, layer.name) for (name, layer), hsic in zip(self._named(), own) if not hsic > 0]


def require_finite(rows: Sequence[GramRow], named: Sequence[tuple[str, str]], batch: Batch) -> None:
    """Raise, naming network, layer and batch, if one of the rows comes of NaN or infinite activations."""
    broken = ~torch.isfinite(torch.stack([row.norm for row in rows]))
    if broken.any():
        network, layer = named[int(broken.nonzero()[0])]
        raise not_finite(network, layer, batch.number)


def layer_cka(
    a: Network | nn.Module | str,
    b: Network | nn.Module | str | None = None,
    images: ImageSet | Tensor | np.ndarray | None = None,
    *,
    layers: str | Sequence[str] = "blocks",
    tokens: Tokens = "all",
    batch_size: int = 256,
    repeats: int = 1,
    progress: Progress | None = None,
    workers: int | None = None,
    skip_broken: bool = False,
) -> pd.DataFrame:
    """CKA of every pair of layers within `a`, within `b` and across, from one pass over the images.

    HSIC_1 is averaged over minibatches, then divided: 1 for the same representation (up to rotation
    and scale), about 0, also slightly below, for unrelated ones. The paper's protocol is 10,240
    images, `batch_size=1024, repeats=20`.

    Args:
        a, b: networks, modules or names; without `b`, within `a` only.
        images: an `ImageSet`, a float tensor (n, c, h, w) that goes into the networks as it is, or a
            uint8 array; None: the bundled sample.
        layers: what `find_layers` takes, for both networks.
        tokens: `all`, `cls`, `spatial` or `pooled`.
        batch_size: images per minibatch, at least 4; the last short one is dropped.
        repeats: passes, each over newly chosen images; the mean of their CKA is given.
        progress: wraps the iterator of batches, for instance `tqdm.auto.tqdm`.
        workers, skip_broken: see `ImageSet.batches`.

    Returns:
        Long table, one row per ordered pair of layers: model_a, layer_a, kind_a, index_a, depth_a,
        the same of b, cka, and se, its jackknife standard error over minibatches (with repeats: of one
        repeat, root mean square, and sd_repeats, the spread over them). NaN where a layer is constant.

    Reference: paper section 3, Figures 1 and 2; Nguyen, Raghu & Kornblith (2021).
    """
    networks = [as_network(a)] if b is None else [as_network(a), as_network(b)]
    images = as_image_set(images)
    comparison = compare(
        networks,
        images,
        layers=layers,
        tokens=tokens,
        batch_size=batch_size,
        repeats=repeats,
        progress=progress,
        workers=workers,
        skip_broken=skip_broken,
    )
    for reason in comparison.undefined:
        warnings.warn(reason, stacklevel=2)
    return comparison.table


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A table of `layer_cka`, and what the run record says of it."""

    table: pd.DataFrame
    undefined: list[str]
    """Why some values are NaN, one sentence per layer."""
    protocol: dict[str, Any]
    images: dict[str, Any]


@torch.inference_mode(mode=False)  # in a caller's inference mode no sum could be added to
def compare(
    networks: Sequence[Network],
    images: ImageSet,
    *,
    layers: str | Sequence[str] = "blocks",
    tokens: Tokens = "all",
    batch_size: int = 256,
    repeats: int = 1,
    **how: Any,
) -> Comparison:
    """What `layer_cka` does, with the record of it; see there."""
    if repeats < 1:
        raise UsageError(f"repeats must be at least 1, got {repeats}")
    networks = told_apart([network.sized(images.tensor_size) for network in networks])
    found = [find_layers(network, layers, tokens=tokens) for network in networks]
    studies, counts = [], []
    for repeat in range(repeats):
        chosen = images if repeat == 0 else images.redrawn(images.seed + repeat)
        studies.append(LayerSimilarity(networks, found, tokens))
        counts.append(sweep(chosen, networks, studies[-1:], batch_size=batch_size, **how))
    undefined = [
        f"layer {layer!r} of {name} is constant over all images, so its CKA is undefined"
        for name, layer in studies[0].constant()
    ]
    broken = sorted({name for c in counts for name in c.broken})
    return Comparison(
        table=layer_table(studies),
        undefined=undefined,
        protocol={
            "layers": layers,
            "tokens": tokens,
            "estimator": "minibatch CKA, unbiased HSIC_1 averaged over batches",
            "batch_size": counts[0].batch_size,
            "batches": counts[0].batches,
            "repeats": repeats,
        },
        images={**images.record(), **counts[0].record(), "broken": broken, "broken_count": len(broken)},
    )


def layer_table(studies: Sequence[LayerSimilarity]) -> pd.DataFrame:
    """The table of `layer_cka` from one study, or one per repeat: all ordered pairs of layers."""
    results = [study.cka.compute() for study in studies]
    values = torch.stack([cka.cpu() for cka, _ in results])
    errors = torch.stack([se.cpu() for _, se in results])
    sides = pd.DataFrame(
        [(name, layer.name, layer.kind, layer.index, layer.depth) for name, layer in studies[0]._named()],
        columns=["model", "layer", "kind", "index", "depth"],
    )
    count = len(sides)
    table = pd.concat(
        [
            sides.iloc[np.repeat(np.arange(count), count)].add_suffix("_a").reset_index(drop=True),
            sides.iloc[np.tile(np.arange(count), count)].add_suffix("_b").reset_index(drop=True),
        ],
        axis=1,
    )
    table["cka"] = values.mean(0).flatten().numpy()
    table["se"] = errors.square().mean(0).sqrt().flatten().numpy()
    if len(studies) > 1:
        table["sd_repeats"] = values.std(0).flatten().numpy()
        return table[[*SIMILARITY, "sd_repeats"]]
    return table[SIMILARITY]
