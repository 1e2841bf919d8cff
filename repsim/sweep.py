"""One pass of the images through one or more networks, feeding one or more studies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol

import torch
from torch import Tensor

from repsim.errors import RepsimError, UsageError, first_line
from repsim.images import FEWEST, Batch, Counts, ImageSet
from repsim.models import Network, evaluating

Progress = Callable[..., Iterable[Batch]]


class Study(Protocol):
    """What a sweep feeds: it reduces activations while a network runs, and sums what is left of them."""

    networks: Sequence[Network]
    """What it looks at."""

    def watch(self, index: int, network: Network) -> AbstractContextManager[Mapping[str, Any]]:
        """Within it, every forward pass of its network number `index` fills the mapping with reduced values."""

    def update(self, seen: Sequence[Mapping[str, Any]], batch: Batch) -> None:
        """Add one batch to the sums, from what was seen in each of its networks."""


def sweep(
    images: ImageSet,
    studies: Sequence[Study],
    *,
    batch_size: int,
    progress: Progress | None = None,
    workers: int | None = None,
    skip_broken: bool = False,
    short: bool = False,
) -> Counts:
    """Run every network once on every batch, however many studies look at it, and hand each what it asked for.

    Args:
        images: the same images, in the same order, for all networks.
        studies: what is computed; two that share a network share its forward passes.
        batch_size: images per batch; a last short batch is dropped, unless `short`.
        progress: wraps the iterator of batches, as `tqdm` does; called with `total`.
        workers, skip_broken: see `ImageSet.batches`.

    Returns:
        How many images were used, dropped and broken.
    """
    how = {"progress": progress, "workers": workers, "skip_broken": skip_broken, "short": short}
    networks = list({id(network): network for study in studies for network in study.networks}.values())
    batches, counts = minibatches(images, networks, batch_size=batch_size, **how)
    with ExitStack() as stack:
        # Not inference_mode, in which tensors do not count the changes made to them.
        stack.enter_context(torch.no_grad())
        for network in networks:
            stack.enter_context(evaluating(network.module))
        seen = [
            [stack.enter_context(study.watch(i, network)) for i, network in enumerate(study.networks)]
            for study in studies
        ]
        for batch in batches:
            for network in networks:
                forward(network, batch.inputs[network.transform].to(network.device, non_blocking=True), batch)
            for study, what in zip(studies, seen):
                study.update(what, batch)
    return counts


def minibatches(
    images: ImageSet,
    networks: Sequence[Network],
    *,
    batch_size: int,
    progress: Progress | None = None,
    workers: int | None = None,
    skip_broken: bool = False,
    short: bool = False,
) -> tuple[Iterable[Batch], Counts]:
    """Batches for networks, all of one size unless `short`, and what is counted as they are handed out."""
    if batch_size < FEWEST:
        raise UsageError(f"a batch needs at least {FEWEST} images, got batch_size={batch_size}")
    counts = Counts()
    size = min(batch_size, len(images))
    transforms = [network.transform for network in networks]
    batches = images.batches(transforms, size, counts=counts, workers=workers, skip_broken=skip_broken, short=short)
    total = math.ceil(len(images) / size) if short else len(images) // size
    return batches if progress is None else progress(batches, total=total), counts


def forward(network: Network, inputs: Tensor, batch: Batch) -> Any:
    """Run a network on a batch, mostly for what its hooks take; an error of its own names both."""
    try:
        return network.module(inputs)
    except RepsimError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, MemoryError) as error:
        where = f"{network.name} failed on batch {batch.number}, {len(inputs)} images"
        raise RepsimError(f"{where}: {first_line(error)}") from error
