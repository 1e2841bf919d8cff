"""One pass of the images through one or more networks, feeding one or more studies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import reduce
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from repsim import processes
from repsim.errors import RepsimError, UsageError, first_line
from repsim.images import FEWEST, Batch, Counts, ImageSet
from repsim.measures.running import Sums, merged
from repsim.models import Network, evaluating
from repsim.resume import Resume

Progress = Callable[..., Iterable[Batch]]


class Summing(Protocol):
    """What is filled batch by batch."""

    sums: Sums
    """All that it keeps of the batches; see `merged`. Classes of its own in it are named in an attribute `kinds`."""


class Study(Summing, Protocol):
    """What a sweep feeds: it reduces activations while a network runs, and sums what is left of them."""

    networks: Sequence[Network]
    """What it looks at."""

    def watch(self, index: int, network: Network) -> AbstractContextManager[Mapping[str, Any]]:
        """Within it, every forward pass of its network number `index` fills the mapping with reduced values."""

    def update(self, seen: Sequence[Mapping[str, Any]], batch: Batch) -> None:
        """Add one batch to the sums, from what was seen in each of its networks."""


def check_batch_size(batch_size: int) -> None:
    if batch_size < FEWEST:
        raise UsageError(f"a batch needs at least {FEWEST} images, got batch_size={batch_size}")


def networks_of(studies: Sequence[Study]) -> list[Network]:
    """All that they look at, each once."""
    return list({id(network): network for study in studies for network in study.networks}.values())


def sweep(
    images: ImageSet,
    studies: Sequence[Study],
    *,
    batch_size: int,
    short: bool = False,
    **how: Any,
) -> Counts:
    """Run every network once on every batch, however many studies look at it, and hand each what it asked for.

    Args:
        images: the same images, in the same order, for all networks.
        studies: what is computed; two that share a network share its forward passes.
        batch_size: images per batch; a last short batch is dropped, unless `short`.
        how: `progress`, `workers`, `skip_broken`, `resume` of `over_batches`.

    Returns:
        How many images were used, dropped and broken.
    """
    check_batch_size(batch_size)
    networks = networks_of(studies)
    with ExitStack() as stack:
        # Not inference_mode, in which tensors do not count the changes made to them.
        stack.enter_context(torch.no_grad())
        for network in networks:
            stack.enter_context(evaluating(network.module))
        seen = [
            [stack.enter_context(study.watch(i, network)) for i, network in enumerate(study.networks)]
            for study in studies
        ]

        def run(batch: Batch) -> None:
            for network in networks:
                forward(network, batch.inputs[network.transform].to(network.device, non_blocking=True), batch)

        def each(batch: Batch) -> None:
            run(batch)
            for study, what in zip(studies, seen):
                study.update(what, batch)

        def rehearse(batch: Batch) -> None:
            run(batch)
            for study in studies:
                if hasattr(study, "rehearsed"):
                    study.rehearsed()

        return over_batches(images, networks, each, studies, rehearse, batch_size=batch_size, short=short, **how)


def over_batches(
    images: ImageSet,
    networks: Sequence[Network],
    each: Callable[[Batch], None],
    summing: Sequence[Summing],
    rehearse: Callable[[Batch], None] | None = None,
    *,
    batch_size: int,
    progress: Progress | None = None,
    workers: int | None = None,
    skip_broken: bool = False,
    short: bool = False,
    resume: Resume | None = None,
) -> Counts:
    """Do something with every batch for networks, all of one size unless `short`.

    Of several processes (`torchrun`) each does its share of the batches, and all have the sums over all of them
    afterwards.

    Args:
        each: what is done; it adds the batch to the sums of `summing`.
        rehearse: what every process does with the first batch, where something is settled on it.
        progress: wraps the iterator of batches, as `tqdm` does; called with `total`.
        workers, skip_broken, short: see `ImageSet.batches`.
        resume: saves the sums every so often, and has those of the run that it goes on from.

    Returns:
        How many images were used, dropped and broken.
    """
    share, broken = processes.share(), []
    if share is not None and skip_broken:  # which images make a batch depends on those before it
        parts = processes.gathered(images.unreadable(workers, share))
        unreadable = dict(sorted(pair for part in parts for pair in part.items()))
        broken, good = list(unreadable.values()), np.setdiff1d(np.arange(len(images)), list(unreadable))
        images, process = images.only(good), each

        def each(batch: Batch) -> None:
            process(replace(batch, positions=torch.from_numpy(good)[batch.positions]))

    size = min(batch_size, len(images))
    counts = resume.begin(summing) if resume is not None else Counts()
    if resume is None or not resume.done:
        transforms = [network.transform for network in networks]
        reading = {"workers": workers, "skip_broken": skip_broken, "short": short, "share": share}
        if share is not None and share.rank and rehearse is not None and not counts.batches:
            rehearse(next(images.batches(transforms, size, workers=workers)))
        batches = images.batches(transforms, size, counts=counts, **reading)
        if progress is not None:
            total = math.ceil(len(images) / size) if short else len(images) // size
            batches = progress(batches, total=total if share is None else len(range(share.rank, total, share.of)))
        for batch in batches:
            each(batch)
            if resume is not None:
                resume.after(batch, summing, counts)
        if share is not None:
            parts = processes.gathered(([of.sums for of in summing], counts))
            for of, sums in zip(summing, zip(*(sums for sums, _ in parts))):
                of.sums = reduce(merged, sums)
            counts = reduce(Counts.merge, (counts for _, counts in parts))
            counts.broken += broken
            if not counts.batches:
                raise RepsimError(f"at least {FEWEST} images are needed; {len(images)} can be read")
        if resume is not None:
            resume.end(summing, counts)
    return counts


def forward(network: Network, inputs: Tensor, batch: Batch) -> Any:
    """Run a network on a batch, mostly for what its hooks take; an error of its own names both."""
    try:
        return network.module(inputs)
    except RepsimError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, MemoryError) as error:
        where = f"{network.name} failed on batch {batch.number}, {len(inputs)} images"
        raise RepsimError(f"{where}: {first_line(error)}") from error
