"""One pass of the images through one or more networks, feeding one or more studies."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any, Protocol, TypedDict

import numpy as np
import torch
from torch import Tensor

from repsim.errors import RepsimError, UsageError, first_line, not_finite
from repsim.images.image_set import FEWEST, Batch, Counts, ImageSet
from repsim.measures.running import Sums, merged
from repsim.networks.memory import is_memory_error
from repsim.networks.models import Network, evaluating
from repsim.networks.pieces import in_pieces
from repsim.networks.precision import Precision
from repsim.networks.tracing import Trace, eagerly, passing
from repsim.passes import processes
from repsim.passes.plan import Runs, Takes, plan
from repsim.passes.resume import Resume

Progress = Callable[..., Iterable[Batch]]


class Passing(TypedDict, total=False):
    """How images are passed through networks; every study takes these."""

    progress: Progress | None
    """Wraps the iterator of batches, as `tqdm` does; called with `total`."""
    workers: int | None
    """Processes that decode images; None: one per core up to 8 for files, none for images in memory."""
    skip_broken: bool
    """Go on without images that cannot be read, and count them."""
    resume: Resume | None
    """Saves the sums every so often, and has those of the run that this one goes on from."""


ROUNDING: dict[Precision, float] = {"fp32": 1e-4, "tf32": 2e-3, "bf16": 1e-2}
"""Share by which two computations of one batch may differ for another order of additions alone, in each precision."""


class Summing(Protocol):
    """What is filled batch by batch."""

    sums: Sums
    """All that it keeps of the batches; see `merged`. Classes of its own in it are named in an attribute `kinds`."""

    def takes(self, size: int, batches: int) -> Takes:
        """What it takes of main memory with so many batches of so many images."""


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
        how: see `Passing`.

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
                forward(network, batch.inputs[network.transform].to(network.device), batch)

        def each(batch: Batch) -> Any:
            run(batch)
            for study, what in zip(studies, seen):
                study.update(what, batch)
            return seen

        def rehearse(batch: Batch) -> None:
            run(batch)
            for study in studies:
                if hasattr(study, "rehearsed"):
                    study.rehearsed()

        return over_batches(images, networks, each, studies, rehearse, batch_size=batch_size, short=short, **how)


def over_batches(
    images: ImageSet,
    networks: Sequence[Network],
    each: Callable[[Batch], Any],
    summing: Sequence[Summing],
    rehearse: Callable[[Batch], None] | None = None,
    *,
    batch_size: int,
    progress: Progress | None = None,
    workers: int | None = None,
    skip_broken: bool = False,
    short: bool = False,
    gradients: bool = False,
    resume: Resume | None = None,
) -> Counts:
    """Do something with every batch for networks, all of one size unless `short`.

    Of several processes (`torchrun`) each does its share of the batches, and all have the sums over all of them
    afterwards.

    Args:
        each: what is done; it adds the batch to the sums of `summing`, and returns what it computed of the batch, by
            which `resume` knows the computation again.
        rehearse: what every process does with the first batch, where something is settled on it.
        progress: wraps the iterator of batches, as `tqdm` does; called with `total`.
        workers, skip_broken, short: see `ImageSet.batches`.
        gradients: whether what the networks compute is kept for a backward pass.
        resume: saves the sums every so often, and has those of the run that it goes on from.

    Returns:
        How many images were used, dropped and broken.

    Raises:
        UsageError: it does not fit into memory; see `repsim.passes.plan`.
    """
    share, broken = processes.share(), []
    if share is not None and skip_broken:  # which images make a batch depends on those before it
        parts = processes.gathered(images.unreadable(workers, share))
        unreadable = dict(sorted(pair for part in parts for pair in part.items()))
        broken, good = list(unreadable.values()), np.setdiff1d(np.arange(len(images)), list(unreadable))
        images, process = images.only(good), each

        def each(batch: Batch) -> Any:
            return process(replace(batch, positions=torch.from_numpy(good)[batch.positions]))

    size = min(batch_size, len(images))
    at_once = planned(images, networks, summing, size, gradients)
    transforms = [network.transform for network in networks]

    def settle_on_the_first() -> None:
        if share is not None and share.rank and rehearse is not None:
            rehearse(next(images.batches(transforms, size, workers=0)))

    def first_again() -> Any:
        settle_on_the_first()
        reading = {"workers": 0, "skip_broken": skip_broken, "short": short, "share": share}
        batches = images.batches(transforms, size, counts=Counts(at_once=dict(at_once)), **reading)
        with contextlib.closing(batches):
            batch = next(batches, None)
            return None if batch is None else each(batch)

    if resume is not None:
        counts = resume.begin(summing, first_again, max(map(_rounding, networks)))
        if share is not None:
            counts = _as_who_finished(resume, summing, counts, networks[0].device)
    else:
        counts = Counts()
    if resume is None or not resume.done:
        counts.at_once = {**at_once, **counts.at_once}
        reading = {"workers": workers, "skip_broken": skip_broken, "short": short, "share": share}
        if not counts.batches:
            settle_on_the_first()
        batches = images.batches(transforms, size, counts=counts, device=_gpu(networks), **reading)
        if progress is not None:
            total = math.ceil(len(images) / size) if short else len(images) // size
            batches = progress(batches, total=total if share is None else len(range(share.rank, total, share.of)))
        for batch in batches:
            try:
                gave = each(batch)
            except (RuntimeError, MemoryError, OSError) as error:  # in a forward pass it would have said so itself
                if isinstance(error, RepsimError) or not is_memory_error(error):
                    raise
                raise out_of_memory(
                    "what is computed of a batch", networks[0].device, batch, first_line(error)
                ) from error
            if resume is not None:
                resume.after(batch, summing, counts, gave)
        if share is not None:
            for of in summing:
                of.sums = processes.reduced(of.sums, merged, networks[0].device)
            counts = processes.reduced(counts, Counts.merge, networks[0].device)
            counts.broken += broken
            if not counts.batches:
                raise RepsimError(f"at least {FEWEST} images are needed; {len(images)} can be read")
        if resume is not None:
            resume.end(summing, counts)
    return counts


def _as_who_finished(resume: Resume, summing: Sequence[Summing], counts: Counts, device: torch.device) -> Counts:
    """All processes take the sums of a pass that one of them has saved whole; they may be killed before others have."""
    finished = processes.gathered(resume.done)
    if any(finished) and not all(finished):
        *sums, counts = processes.told([*(of.sums for of in summing), counts], finished.index(True), device)
        for of, whole in zip(summing, sums, strict=True):
            of.sums = whole
        resume.done = True
    return counts


def _rounding(network: Network) -> float:
    half = torch.finfo(network.dtype).bits < 32
    return ROUNDING["bf16" if half else network.computes_in]


def _gpu(networks: Sequence[Network]) -> torch.device | None:
    """The CUDA device that they all are on, to which images are copied ahead; None if there is none."""
    devices = {network.device for network in networks}
    (device, *others) = devices
    return device if device.type == "cuda" and not others else None


def planned(
    images: ImageSet, networks: Sequence[Network], summing: Sequence[Summing], size: int, gradients: bool
) -> dict[str, int]:
    """How many images of a batch go through a network at once, where memory is too small for all of them.

    Raises:
        UsageError: it is too small in any case.
    """
    on_cpu = [network for network in networks if network.device.type == "cpu"]
    runs = [
        Runs(
            network.name,
            image=network.dtype.itemsize * math.prod(network.input_size),
            peak=2 * Trace.of(network).made if gradients else Trace.of(network).peak,
            whole=gradients,
        )
        for network in on_cpu
    ]

    def takes(size: int) -> Takes:
        all_of_them = sum((of.takes(size, max(len(images) // size, 1)) for of in summing), Takes())
        return all_of_them if on_cpu else replace(all_of_them, batch=0, waiting=0)

    return plan(takes, runs, size).at_once


def forward(network: Network, inputs: Tensor, batch: Batch) -> Any:
    """Run a network on a batch, mostly for what its hooks take; an error of its own names both.

    Where the batch does not fit into the memory of the network's device, it goes through in pieces, and so do those
    after it.
    """
    inputs = inputs.to(network.dtype)
    size = min(batch.at_once.get(network.name, len(inputs)), len(inputs))
    while size:
        try:
            with network.computing(), eagerly(network), passing(network):
                run = network.module if inputs.requires_grad else network.runner
                return run(inputs) if size == len(inputs) else in_pieces(run, inputs, size)
        except RepsimError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, MemoryError, OSError, SystemExit) as error:
            reason = first_line(error)
            if not is_memory_error(error):
                where = f"{network.name} failed on batch {batch.number}, {len(inputs)} images"
                raise RepsimError(f"{where}: {reason}") from error
        if inputs.requires_grad:  # gradients keep all activations in any case
            break
        size, batch.at_once[network.name] = size // 2, max(size // 2, 1)
        if network.device.type == "cuda":
            torch.cuda.empty_cache()
    gigabytes = sum(p.numel() * p.element_size() for p in network.module.parameters()) / 2**30
    what = f"{network.name} ({gigabytes:.1f} GiB of weights) and what is kept of a batch"
    raise out_of_memory(what, network.device, batch, reason)


def require_finite(values: Sequence[Tensor], named: Sequence[tuple[str, str]], batch: Batch) -> None:
    """Raise, naming network, layer and batch, if one of the values of a batch is NaN or infinite.

    It looks at all of them at once, since each look at a GPU waits for it.

    Args:
        values: on one device.
        named: network and layer of each.
    """
    finite = torch.isfinite(torch.stack([value.abs().amax() if value.ndim else value for value in values]))
    if not finite.all():
        network, layer = named[int((~finite).nonzero()[0])]
        raise not_finite(network, layer, batch.number)


def out_of_memory(what: str, device: torch.device, batch: Batch, error: str) -> RepsimError:
    """What did not fit where, with the sizes."""
    sizes = ", ".join(str(tuple(inputs.shape)) for inputs in batch.inputs.values())
    room = ""
    if device.type == "cuda":
        free, total = (f"{size / 2**30:.1f} GiB" for size in torch.cuda.mem_get_info(device))
        room = f" ({total}, {free} of it free)"
    return RepsimError(
        f"the memory of {device}{room} is too small for {what}: batch {batch.number} is of shape {sizes}; take a "
        f"smaller batch size, fewer layers or another device ({error})"
    )
