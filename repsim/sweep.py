"""One pass of the images through one or more networks, feeding one or more studies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch import Tensor

from repsim.errors import UsageError
from repsim.hooks import capture
from repsim.images import FEWEST, Batch, Counts, ImageSet
from repsim.layers import Layer
from repsim.models import Network, evaluating

Progress = Callable[..., Iterable[Batch]]


class Study(Protocol):
    """What a sweep feeds: it names its layers, reduces activations inside the hooks, and sums."""

    layers: Sequence[Sequence[Layer]]
    """The layers wanted of each network."""

    def reduce(self, network: int, layer: Layer, activation: Tensor) -> Any:
        """Called inside the hook; the activation must not be kept."""

    def update(self, reduced: Sequence[dict[str, Any]], batch: Batch) -> None:
        """Add one batch to the sums: for each network, what `reduce` made of each layer."""


def sweep(
    images: ImageSet,
    networks: Sequence[Network],
    studies: Sequence[Study],
    *,
    batch_size: int,
    progress: Progress | None = None,
    workers: int | None = None,
    skip_broken: bool = False,
) -> Counts:
    """Run every network once on every batch, and hand each study what it asked for.

    Args:
        images: the same images, in the same order, for all networks.
        networks: as the studies number them.
        batch_size: images per batch; a last short batch is dropped.
        progress: wraps the iterator of batches, as `tqdm` does; called with `total`.
        workers, skip_broken: see `ImageSet.batches`.

    Returns:
        How many images were used, dropped and broken.
    """
    if batch_size < FEWEST:
        raise UsageError(f"a batch needs at least {FEWEST} images, got batch_size={batch_size}")
    counts = Counts(len(images))
    size = min(batch_size, len(images))
    batches = images.batches(
        [network.transform for network in networks], size, counts=counts, workers=workers, skip_broken=skip_broken
    )
    if progress is not None:
        batches = progress(batches, total=len(images) // size)
    with ExitStack() as stack:
        # Not inference_mode, in which tensors do not count the changes made to them.
        stack.enter_context(torch.no_grad())
        for network in networks:
            stack.enter_context(evaluating(network.module))
        seen = [
            [
                stack.enter_context(capture(network, study.layers[i], _reduction(study, i)))
                for i, network in enumerate(networks)
            ]
            for study in studies
        ]
        for batch in batches:
            for network in networks:
                network.module(batch.inputs[network.transform].to(network.device, non_blocking=True))
            for study, reduced in zip(studies, seen):
                study.update(reduced, batch)
    if not counts.batches:
        raise UsageError(f"not one batch of {size} images is left: {len(counts.broken)} of {len(images)} are broken")
    return counts


def _reduction(study: Study, network: int) -> Callable[[Layer, Tensor], Any]:
    return lambda layer, activation: study.reduce(network, layer, activation)
