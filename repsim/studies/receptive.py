"""Effective receptive fields of the layers of a network (paper, Figures 6 and C.1 to C.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Unpack

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from repsim.errors import UsageError
from repsim.images.image_set import FEWEST, Batch
from repsim.measures.receptive import centre_gradients, field_statistics
from repsim.measures.running import Moments
from repsim.networks.layers import Layer, find_layers, grid_of, residual_layers
from repsim.networks.models import Network, evaluating
from repsim.networks.structure import listed
from repsim.networks.wrappers import check_gradients
from repsim.passes.plan import Takes
from repsim.passes.seen import Seen
from repsim.passes.study import Summing
from repsim.passes.sweep import Passing, forward, over_batches
from repsim.studies.results import AnyImages, AnyNetwork, Notices, Result, begin, study
from repsim.tables import RECEPTIVE

MOST = 32
"""Images of the bundled sample, where none are given."""
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
    batch_size: int = 8,
    **how: Unpack[Passing],
) -> Result:
    """Mean |d centre / d pixel| of each layer, over images and channels.

    Args:
        network: a network, module or name.
        images: see `layer_cka`; None: 32 of the bundled sample, as many as the paper takes.
        layers: what `find_layers` takes; None: after every residual sum.
        branch: None of the above, but what enters each residual sum beside the skip (C.4).
        proxy: the gradient of the *sum* over channels instead: cheap, and not the paper's quantity.
        channels: so many of each layer, chosen with `seed`; None: all, which is exact.
        seed: of the choice.
        batch_size: images per pass, lowered to a divisor of the number of images so that none is left over.
        how: see `repsim.passes.sweep.Passing`.

    Returns:
        `table`: model, layer, index, depth, radius50_px, radius95_px, centre_share: one row per layer.
        `maps`: layer -> (h, w), the receptive field, a mean over images, channels and colours.

    Raises:
        UsageError: a layer is not a map or a grid of tokens.
    """
    begun = begin(network, images, most=MOST, layers="blocks" if layers is None else layers)
    (network,), images = begun.networks, begun.images
    if layers is not None and branch:
        raise UsageError("give either layers or branch: branch chooses its own layers")
    found = residual_layers(network, branch=branch) if layers is None else find_layers(network, layers)
    if layers is None:
        found = _with_a_centre(found, network, begun.notices)
    if inner := [layer.name for layer in found if layer.place is not None]:
        raise UsageError(
            f"layer {inner[0]!r} of {network.name} is the result of an addition that no module gives, so its gradients "
            "cannot be taken; choose other layers, or pass the module as it was before it was traced"
        )
    grids = {layer.name: grid_of(layer, network) for layer in found}
    chosen = {layer.name: _channels(layer, channels, seed) for layer in found}
    largest = max(math.prod(layer.shape) for layer in found)

    batch_size = _divisor(len(images), batch_size)
    at_once = max(1, BUDGET // (4 * 4 * largest * batch_size))
    colours, height, width = network.input_size
    fields = _Fields(found, height * width, colours * height * width)

    def reduce(layer: Layer, x: Tensor) -> Tensor:
        return centre(layer, x, grids[layer.name])

    check_gradients(network.module, network.name)
    seen = Seen(network)
    with frozen(network.module), seen.layers(found, reduce):

        def each(batch: Batch) -> dict[str, Tensor]:
            inputs = batch.inputs[network.transform].to(network.device).requires_grad_()
            with torch.enable_grad():
                forward(network, inputs, batch, [seen])
            gave = {}
            for name in list(seen):
                z, which = seen[name], chosen[name].to(network.device)
                if proxy:
                    z, which = z.sum(1, keepdim=True), torch.zeros(1, dtype=torch.int64, device=network.device)
                with network.computing():
                    gradient = centre_gradients(z, inputs, which, at_once=at_once)
                gave[name] = gradient.mean(1).cpu()
                fields.sums.setdefault(name, Moments()).update(gave[name])
            seen.clear()
            return gave

        counts = over_batches(images, [network], each, [fields], batch_size=batch_size, gradients=True, **how)
    maps = {name: moments.mean() for name, moments in fields.sums.items()}
    rows = [
        (network.name, layer.name, layer.index, layer.depth, *field_statistics(maps[layer.name], grids[layer.name]))
        for layer in found
    ]
    full = {layer.name: len(chosen[layer.name]) == layer.width for layer in found}
    protocol = {
        "quantity": "gradient of the sum over channels (proxy)" if proxy else "mean over channels of |gradient|",
        "branch": branch,
        "channels": {name: "all" if full[name] else which.tolist() for name, which in chosen.items()},
        "channels_seed": seed,
    }
    name = "receptive_proxy" if proxy else "receptive"
    arrays = {name: {layer: field.float().numpy() for layer, field in maps.items()}}
    return begun.result(name, pd.DataFrame(rows, columns=RECEPTIVE), counts, protocol, arrays=arrays)


def _with_a_centre(found: list[Layer], network: Network, notices: Notices) -> list[Layer]:
    """Without the layers that are no map or grid, such as a class token's blocks; a notice names them."""
    kept = [layer for layer in found if layer.grid is not None]
    if kept and (without := [layer.name for layer in found if layer.grid is None]):
        notices.say(f"{network.name} has layers without a centre, which are left out: {listed(without)}")
    return kept or found


class _Fields(Summing):
    """What a pass adds to: layer -> |gradients| of every image, (h, w)."""

    def __init__(self, layers: Sequence[Layer], pixels: int, image: int) -> None:
        self.sums: dict[str, Moments] = {}
        self.layers, self.pixels, self.image = layers, pixels, image
        """Layers, pixels of a map, and numbers of an image."""

    def takes(self, size: int, batches: int) -> Takes:
        channels = max(layer.width for layer in self.layers)
        return Takes(
            sums=2 * 8 * self.pixels * len(self.layers),
            batch=2 * BUDGET + 4 * size * (2 * channels * self.image + self.pixels * len(self.layers)),
            tables=4 * self.pixels * len(self.layers),
        )


def centre(layer: Layer, activation: Tensor, grid: tuple[int, int]) -> Tensor:
    """(n, d): the activation at row h // 2, column w // 2; a copy, for later modules may write in place."""
    row, column = grid[0] // 2, grid[1] // 2
    return layer.tokens(activation)[:, layer.prefix + row * grid[1] + column].clone()


@contextmanager
def frozen(module: nn.Module):
    """Evaluation mode, parameters that ask for no gradient, and attention in a form whose gradients batch."""
    asked = [p for p in module.parameters() if p.requires_grad]
    try:
        with evaluating(module), sdpa_kernel(SDPBackend.MATH):
            for p in asked:
                p.requires_grad_(False)
            yield
    finally:
        for p in asked:
            p.requires_grad_(True)


def _channels(layer: Layer, channels: int | None, seed: int) -> Tensor:
    width = layer.width
    if channels is None or channels >= width:
        return torch.arange(width)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(width, generator=generator)[:channels].sort().values


def _divisor(images: int, most: int) -> int:
    """The largest batch size up to `most` that leaves no image over, if one of at least 4 does."""
    sizes = [size for size in range(FEWEST, max(most, FEWEST) + 1) if images % size == 0]
    return max(sizes, default=min(most, images))
