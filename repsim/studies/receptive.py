"""Effective receptive fields of the layers of a network (paper, Figures 6 and C.1 to C.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from repsim.errors import UsageError
from repsim.images.image_set import FEWEST, Batch, Counts, ImageSet, as_image_set
from repsim.measures.receptive import centre_gradients, field_statistics
from repsim.measures.running import Moments
from repsim.networks.hooks import capture
from repsim.networks.layers import Layer, find_layers, grid_of, residual_layers
from repsim.networks.models import Network, as_network, evaluating
from repsim.passes.plan import Takes
from repsim.passes.resume import Resume
from repsim.passes.sweep import forward, over_batches
from repsim.tables import RECEPTIVE

BUDGET = 2**28
"""Bytes that gradients of channels batched together may take, roughly."""


@dataclass(frozen=True)
class ReceptiveFields:
    table: pd.DataFrame
    """model, layer, index, depth, radius50_px, radius95_px, centre_share: one row per layer."""
    maps: dict[str, np.ndarray]
    """Layer -> (h, w): the receptive field, a mean over images, channels and colours."""
    channels: dict[str, list[int] | str]
    """Layer -> which channels were taken, or `all`."""
    counts: Counts
    """What became of the images."""


def receptive_fields(
    network: Network | nn.Module | str,
    images: ImageSet | Tensor | np.ndarray | None = None,
    *,
    layers: str | Sequence[str] | None = None,
    branch: bool = False,
    proxy: bool = False,
    channels: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    progress: Any = None,
    workers: int | None = None,
    skip_broken: bool = False,
    resume: Resume | None = None,
) -> ReceptiveFields:
    """Mean |d centre / d pixel| of each layer, over images and channels.

    Args:
        network: a network, module or name.
        images: see `layer_cka`; None: 32 of the bundled sample, as many as the paper takes.
        layers: what `find_layers` takes; None: after every residual sum.
        branch: None of the above, but what enters each residual sum beside the skip (C.4).
        proxy: the gradient of the *sum* over channels instead: cheap, and not the paper's quantity.
        channels: exact over all channels if None; else over so many, chosen with `seed`.
        batch_size: images per pass, lowered to a divisor of the number of images so that none is left over.
        progress: wraps the iterator of batches, as `tqdm` does.
        workers, skip_broken: see `ImageSet.batches`.
        resume: see `layer_cka`.

    Returns:
        Table, maps, and which channels were taken.

    Raises:
        UsageError: a layer is not a map or a grid of tokens.
    """
    network = as_network(network)
    images = as_image_set(images, 32)
    network = network.sized(images.tensor_size)
    if layers is not None and branch:
        raise UsageError("give either layers or branch: branch chooses its own layers")
    found = residual_layers(network, branch=branch) if layers is None else find_layers(network, layers)
    grids = {layer.name: grid_of(layer, network) for layer in found}
    chosen = {layer.name: _channels(layer, channels, seed) for layer in found}
    largest = max(math.prod(layer.shape) for layer in found)

    batch_size = _divisor(len(images), batch_size)
    at_once = max(1, BUDGET // (4 * 4 * largest * batch_size))
    colours, height, width = network.input_size
    fields = _Fields(found, height * width, colours * height * width)

    def reduce(layer: Layer, x: Tensor) -> Tensor:
        return centre(layer, x, grids[layer.name])

    how = {"progress": progress, "workers": workers, "skip_broken": skip_broken, "resume": resume}
    with frozen(network.module), capture(network, found, reduce, passed=True) as seen:

        def each(batch: Batch) -> dict[str, Tensor]:
            inputs = batch.inputs[network.transform].to(network.device).requires_grad_()
            with torch.enable_grad():
                forward(network, inputs, batch)
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
    return ReceptiveFields(
        table=pd.DataFrame(rows, columns=RECEPTIVE),
        maps={name: field.float().numpy() for name, field in maps.items()},
        channels={name: "all" if full[name] else which.tolist() for name, which in chosen.items()},
        counts=counts,
    )


class _Fields:
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
        with torch.inference_mode(False), evaluating(module), sdpa_kernel(SDPBackend.MATH):
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
