"""Effective receptive fields of the layers of a network (paper, Figures 6 and C.1 to C.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from typing_extensions import Unpack

from repsim.errors import UsageError
from repsim.images.image_set import FEWEST, Batch, Counts, ImageSet
from repsim.measures.receptive import Rings, centre_gradients
from repsim.measures.running import GROUPS, ImageMeans, Together, kept
from repsim.networks.layers import Layer, find_layers, grid_of, residual_layers
from repsim.networks.models import Network, evaluating
from repsim.networks.structure import listed
from repsim.networks.wrappers import check_gradients
from repsim.passes.plan import Takes
from repsim.passes.seen import Seen
from repsim.passes.study import Summing
from repsim.passes.sweep import Passing, forward, over_batches
from repsim.studies.results import AnyImages, AnyNetwork, Result, begin, study
from repsim.tables import RECEPTIVE

MOST = 32
"""Images of the bundled sample, where none are given."""
BATCH = 8
"""Images in a batch; fewer if images are few, see `passes.sweep.fitting`."""
BUDGET = 2**28
"""Bytes that gradients of channels batched together may take, roughly."""


@study
def receptive_fields(
    network: AnyNetwork,
    images: AnyImages = None,
    *,
    layers: str | Sequence[str] | None = None,
    branch: bool = False,
    proxy: bool = False,
    channels: int | None = 16,
    seed: int = 0,
    batch_size: int | None = None,
    **pass_options: Unpack[Passing],
) -> Result:
    """Mean |d centre / d pixel| of each layer, over images and channels.

    Args:
        network: a network, module or name.
        images: see `layer_cka`; None: 32 of the bundled sample, as many as the paper takes.
        layers: a choice of `find_layers`; None: after every residual sum.
        branch: instead of layers, the branch that enters each residual sum beside the skip (C.4).
        proxy: the gradient of the *sum* over channels instead: cheap, and not the paper's quantity.
        channels: number of channels of each layer, chosen with `seed`; None or 0: all, which is exact.
        seed: of the choice.
        batch_size: images per pass, lowered to a divisor of the number of images so that none is left over; None: 8.
        pass_options: see `repsim.passes.sweep.Passing`.

    Returns:
        `table`: model, layer, index, depth, radius50_px, radius95_px, centre_share, each of these three of the mean
        map with its jackknife standard error over images: one row per layer.
        `maps`: layer -> (h, w), the receptive field, a mean over images, channels and colours.

    Raises:
        UsageError: a layer is not a map or a grid of tokens.

    >>> import repsim as rs
    >>> images = rs.ImageSet("sample", images=4)
    >>> rs.receptive_fields("vit_mini", images, layers=["blocks.0"], channels=2).maps["blocks.0"].shape
    (28, 28)
    """
    if channels is not None and channels < 0:
        raise UsageError(f"channels must be 0 or more, where 0 takes all, got channels={channels}")
    begun = begin(
        network, images, most=MOST, layers="blocks" if layers is None else layers, batch_size=batch_size, usual=BATCH
    )
    if layers is not None and branch:
        raise UsageError("give either layers or branch: branch chooses its own layers")
    (network,) = begun.networks
    layers_found = places_of(network, layers, branch=branch, say=begun.notices.say)
    fields = ReceptiveFields(network, layers_found, proxy=proxy, channels=channels, seed=seed)
    counts = fields.run(begun.images, batch_size=begun.batch_size, **pass_options)
    protocol = {
        "quantity": "gradient of the sum over channels (proxy)" if proxy else "mean over channels of |gradient|",
        "branch": branch,
        "channels": {
            layer.name: "all" if len(chosen) == layer.width else chosen.tolist()
            for layer, chosen in zip(fields.layers, fields.channels.values())
        },
        "channels_seed": seed,
    }
    name = "receptive_proxy" if proxy else "receptive"
    return begun.result(name, fields.table(), counts, protocol, arrays={name: fields.maps()})


def places_of(
    network: Network, layers: str | Sequence[str] | None = None, *, branch: bool = False, say: Callable[[str], Any]
) -> list[Layer]:
    """The layers that have receptive fields, see `receptive_fields`.

    Args:
        network, layers, branch: see there.
        say: is called with sentences on residual sums that are left out, because they are no map or grid of tokens, or
            out of reach of gradients.

    Raises:
        UsageError: all of them, or one that is named, are out of reach of gradients: no module gives them.
    """
    layers_found = residual_layers(network, branch=branch) if layers is None else find_layers(network, layers)
    if inner := [layer.name for layer in layers_found if layer.place is not None]:
        if layers is not None or len(inner) == len(layers_found):
            raise UsageError(
                f"layer {inner[0]!r} of {network.name} is the result of an addition that no module gives, so its "
                "gradients cannot be taken; choose other layers, or pass the module as it was before it was traced"
            )
        say(f"{network.name} has additions that no module gives, of which gradients cannot be taken: {listed(inner)}")
        layers_found = [layer for layer in layers_found if layer.place is None]
    without = [layer.name for layer in layers_found if layer.grid is None]
    if layers is not None or not 0 < len(without) < len(layers_found):
        return layers_found
    say(f"{network.name} has layers without a centre, which are left out: {listed(without)}")
    return [layer for layer in layers_found if layer.grid is not None]


@kept
class _Field(NamedTuple):
    """The sums of a layer."""

    total: ImageMeans
    """|gradients|, (h, w), in one group."""
    masses: ImageMeans
    """Mass of the gradients in rings, see `Rings`, in the groups of the jackknife."""


class ReceptiveFields(Summing):
    """The sums of `receptive_fields` over a pass, before they become its table.

    Images are independent of each other here, so each is one of the jackknife's groups, while there are enough.

    Args:
        network: its network.
        layers: maps or grids of tokens.
        proxy, channels, seed: see `receptive_fields`.

    Raises:
        UsageError: one of the layers is not a map or a grid of tokens.
    """

    def __init__(
        self,
        network: Network,
        layers: Sequence[Layer],
        *,
        proxy: bool = False,
        channels: int | None = 16,
        seed: int = 0,
    ) -> None:
        self.network, self.layers, self.proxy = network, layers, proxy
        self.grids = {layer.name: grid_of(layer, network) for layer in layers}
        self.channels = {layer.name: _channels(layer, channels, seed) for layer in layers}
        self._size = network.input_size
        self.rings = {grid: Rings(*self._size[1:], grid) for grid in set(self.grids.values())}
        self.sums: dict[str, _Field] = {}

    def run(self, images: ImageSet, *, batch_size: int = 8, **pass_options: Unpack[Passing]) -> Counts:
        """Pass the images; see `receptive_fields`."""
        network, seen = self.network, Seen(self.network)
        batch_size = _divisor(len(images), batch_size)
        largest = max(math.prod(layer.shape) for layer in self.layers)
        at_once = max(1, BUDGET // (4 * 4 * largest * batch_size))
        check_gradients(network.module, network.name)

        def reduce(layer: Layer, x: Tensor) -> Tensor:
            return centre(layer, x, self.grids[layer.name])

        def run_batch(batch: Batch) -> dict[str, Tensor]:
            inputs = batch.inputs[network.transform].to(network.device).requires_grad_()
            with torch.enable_grad():
                forward(network, inputs, batch, [seen])
            fields = {name: self._gradients(name, seen[name], inputs, at_once) for name in list(seen)}
            seen.clear()
            for name, gradients in fields.items():
                self._add(name, gradients, batch)
            return fields

        with frozen(network.module), seen.layers(self.layers, reduce):
            return over_batches(
                images, [network], run_batch, [self], batch_size=batch_size, gradients=True, **pass_options
            )

    def _gradients(self, name: str, z: Tensor, inputs: Tensor, at_once: int) -> Tensor:
        """(n, h, w), means over channels and colours."""
        channels = self.channels[name].to(self.network.device)
        if self.proxy:
            z, channels = z.sum(1, keepdim=True), torch.zeros_like(channels[:1])
        with self.network.computing():
            return centre_gradients(z, inputs, channels, at_once=at_once).mean(1).cpu()

    def _add(self, name: str, gradients: Tensor, batch: Batch) -> None:
        sums = self.sums.setdefault(name, _Field(ImageMeans(1), ImageMeans()))
        sums.total.update(gradients, batch.number)
        own = batch.positions % GROUPS if batch.groups is None else batch.groups
        sums.masses.update(self.rings[self.grids[name]].masses(gradients), own)

    def takes(self, size: int, batches: int) -> Takes:
        """See `Summing.takes`."""
        colours, height, width = self._size
        pixels, channels = height * width, max(layer.width for layer in self.layers)
        masses = sum(len(self.rings[grid].distances) + 1 for grid in self.grids.values())
        return Takes(
            sums=8 * (pixels * len(self.layers) + min(GROUPS, size * batches) * masses),
            batch=2 * BUDGET + 4 * size * (2 * channels * colours * pixels + 3 * pixels * len(self.layers)),
            tables=4 * pixels * len(self.layers),
        )

    def maps(self) -> dict[str, np.ndarray]:
        """Layer -> (h, w) float32, the mean over images."""
        return {layer.name: self.sums[layer.name].total.mean().float().numpy() for layer in self.layers}

    def masses(self) -> list[ImageMeans]:
        """Mass in rings for each layer, (r + 1,), in groups of images."""
        return [self.sums[layer.name].masses for layer in self.layers]

    def statistics(self, masses: Sequence[Tensor]) -> Tensor:
        """(layers, 3) of `field_statistics`, of means over images of `masses`."""
        rings = (self.rings[self.grids[layer.name]] for layer in self.layers)
        return torch.stack([ring.statistics(of_layer) for ring, of_layer in zip(rings, masses, strict=True)])

    def table(self) -> pd.DataFrame:
        """One row per layer, with standard errors over images."""
        values, errors = Together(self.masses()).compute(self.statistics)
        rows = [
            (self.network.name, layer.name, layer.index, layer.depth, *torch.stack(pair, 1).flatten().tolist())
            for layer, *pair in zip(self.layers, values, errors)
        ]
        return pd.DataFrame(rows, columns=RECEPTIVE)


def centre(layer: Layer, activation: Tensor, grid: tuple[int, int]) -> Tensor:
    """(n, d): the activation at row h // 2, column w // 2; a copy, for later modules may write in place."""
    row, column = grid[0] // 2, grid[1] // 2
    return layer.tokens(activation)[:, layer.prefix + row * grid[1] + column].clone()


@contextmanager
def frozen(module: nn.Module):
    """Evaluation mode, parameters that ask for no gradient, and attention in a form whose gradients batch."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    try:
        with evaluating(module), sdpa_kernel(SDPBackend.MATH):
            for p in parameters:
                p.requires_grad_(False)
            yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def _channels(layer: Layer, channels: int | None, seed: int) -> Tensor:
    width = layer.width
    if not channels or channels >= width:
        return torch.arange(width)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(width, generator=generator)[:channels].sort().values


def _divisor(images: int, most: int) -> int:
    """The largest batch size up to `most` that leaves no image over, if one of at least 4 does."""
    sizes = [size for size in range(FEWEST, max(most, FEWEST) + 1) if images % size == 0]
    return max(sizes, default=min(most, images))
