"""One pass of the images through one or more networks, feeding one or more studies."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from repsim.errors import RepsimError, UsageError, first_line, not_finite
from repsim.features.aligned import rows_of
from repsim.features.arrays import FeatureNetwork
from repsim.images.image_set import Batch, Counts, ImageSet, Share
from repsim.measures.running import FEWEST, merged
from repsim.networks.memory import is_memory_error
from repsim.networks.models import Network, evaluating
from repsim.networks.pieces import in_pieces
from repsim.networks.precision import Precision
from repsim.networks.tracing import Trace, eagerly, passing
from repsim.passes import processes
from repsim.passes.plan import Runs, Takes, plan
from repsim.passes.resume import Resume
from repsim.passes.seen import Seen

if TYPE_CHECKING:
    from repsim.passes.study import Study, Summing

Progress = Callable[..., Iterable[Batch]]


class Passing(TypedDict, total=False):
    """Options of a pass of images through networks; every study takes these."""

    progress: Progress | None
    """Wraps the iterator of batches, as `tqdm` does; called with `total`."""
    workers: int | None
    """Processes that decode images; None: one per core up to 8 for files, none for images in memory."""
    skip_broken: bool
    """Go on without images that cannot be read, and count them."""
    resume: Resume | None
    """Saves the sums at intervals, and holds the sums of the run that this run continues."""


ROUNDING: dict[Precision, float] = {"fp32": 1e-4, "tf32": 2e-3, "bf16": 1e-2}
"""Precision -> the share by which two computations of one batch may differ through the order of additions alone."""


BATCHES = 8
"""Batches that images make where a study's usual size is made smaller for it."""
SMALLEST = 8
"""Images of a batch that is made smaller, at least, where there are enough for two such."""


def fitting(usual: int, images: ImageSet) -> int:
    """A study's usual batch size, smaller where images would make too few batches for standard errors over these.

    They make `BATCHES` of them, or as many of `SMALLEST` images as there can be, or two of `FEWEST` at least; or some
    more where that leaves fewer images over. Of images that come in groups errors are over these, whatever batches are.

    >>> [fitting(256, ImageSet("sample", images=images)) for images in (2560, 1000, 100, 40, 12)]
    [256, 125, 10, 8, 6]
    """
    count = len(images)
    if images.groups is not None or count < 2 * FEWEST:
        return usual
    most = count // max(min(BATCHES, count // SMALLEST), 2)
    least = max(3 * most // 4, min(SMALLEST, most))
    return usual if usual <= most else min(range(most, least - 1, -1), key=lambda size: count % size)


def check_batch_size(batch_size: int) -> None:
    """Raise `UsageError` for batches that are too small for the computation."""
    if batch_size < FEWEST:
        raise UsageError(f"a batch needs at least {FEWEST} images, got batch_size={batch_size}")


def networks_of(studies: Sequence[Study]) -> list[Network]:
    """Every network that these studies use, without duplicates."""
    return list({id(network): network for study in studies for network in study.networks}.values())


def sweep(
    images: ImageSet,
    studies: Sequence[Study],
    *,
    batch_size: int,
    short: bool = False,
    **pass_options: Unpack[Passing],
) -> Counts:
    """Run every network once on every batch, for any number of studies, and give each study the layers it asked for.

    Args:
        images: the same images, in the same order, for all networks.
        studies: the studies to run; studies that share a network share its forward passes.
        batch_size: images per batch; a last short batch is dropped, unless `short`.
        pass_options: see `Passing`.

    Returns:
        How many images were used, dropped and broken.
    """
    check_batch_size(batch_size)
    with watching(studies) as run_batch:
        return over_batches(
            images, networks_of(studies), run_batch, studies, batch_size=batch_size, short=short, **pass_options
        )


@contextmanager
def watching(studies: Sequence[Study]) -> Iterator[Callable[[Batch], list[list[Seen]]]]:
    """While active, the function that it yields runs all networks on a batch, and updates the studies."""
    networks = networks_of(studies)
    with ExitStack() as stack:
        # Not inference_mode, in which tensors do not count the changes made to them.
        stack.enter_context(torch.no_grad())
        for network in networks:
            stack.enter_context(evaluating(network.module))
        seen = [[Seen(network) for network in study.networks] for study in studies]
        for study, of_study in zip(studies, seen):
            for index, of_network in enumerate(of_study):
                stack.enter_context(study.watch(index, of_network.network, of_network))

        def run_batch(batch: Batch) -> list[list[Seen]]:
            for network in networks:
                looking = [view for of_study in seen for view in of_study if view.network is network]
                forward(network, batch.inputs[network.transform].to(network.device), batch, looking)
            for study, of_study in zip(studies, seen):
                study.update(of_study, batch)
            return seen

        yield run_batch


def over_batches(
    images: ImageSet,
    networks: Sequence[Network],
    run_batch: Callable[[Batch], Any],
    summing: Sequence[Summing],
    *,
    batch_size: int,
    progress: Progress | None = None,
    workers: int | None = None,
    skip_broken: bool = False,
    short: bool = False,
    gradients: bool = False,
    resume: Resume | None = None,
) -> Counts:
    """Call a function on every batch for networks; all batches have one size unless `short`.

    With several processes (`torchrun`) each process does its share of the batches, and all have the sums over all
    batches afterwards.

    Args:
        run_batch: the function; it adds the batch to the sums of `summing`, and returns the values that it computed, by
            which `resume` recognises the computation.
        progress: wraps the iterator of batches, as `tqdm` does; called with `total`.
        workers, skip_broken, short: see `ImageSet.batches`.
        gradients: whether activations are kept for a backward pass.
        resume: saves the sums at intervals, and holds the sums of the run that this run continues.

    Returns:
        How many images were used, dropped and broken.

    Raises:
        UsageError: it does not fit into memory; see `repsim.passes.plan`.
    """
    share, broken, positions = processes.share(), list[str](), None
    if share is not None and skip_broken and _looks(networks):  # which images make a batch depends on those before it
        images, positions, broken = _readable(images, workers, share)
    size = min(batch_size, images.largest_batch)
    at_once = planned(images, networks, summing, size, gradients)
    reading = Reading(images, networks, size, at_once, workers, skip_broken, short, share, positions)
    counts = Counts() if resume is None else _begun(resume, reading, run_batch, summing)
    if resume is None or not resume.done:
        counts.at_once = {**at_once, **counts.at_once}
        _run(reading, run_batch, summing, counts, progress, resume)
        if share is not None:
            counts = _joined(summing, counts, networks[0].device)
            counts.broken += broken
            if not counts.batches:
                raise RepsimError(f"at least {FEWEST} images are needed; {len(images)} can be read")
        if resume is not None:
            resume.end(summing, counts)
    return counts


@dataclass(frozen=True)
class Reading:
    """Options of reading the batches of a pass."""

    images: ImageSet
    networks: Sequence[Network]
    size: int
    at_once: dict[str, int]
    workers: int | None
    skip_broken: bool
    short: bool
    share: Share | None
    positions: Tensor | None
    """Numbers of the images in the original set, where broken images were taken out of it."""

    def batches(self, counts: Counts, *, here: bool = False) -> Generator[Batch, None, None]:
        """This process's batches from where the counts end; `here`: they are decoded in this process."""
        for batch in inputs_of(
            self.images,
            self.networks,
            self.size,
            counts=counts,
            workers=0 if here else self.workers,
            skip_broken=self.skip_broken,
            short=self.short,
            share=self.share,
            device=None if here else _gpu(self.networks),
        ):
            yield batch if self.positions is None else replace(batch, positions=self.positions[batch.positions])

    @property
    def total(self) -> int:
        """Batches of this process."""
        total = math.ceil(len(self.images) / self.size) if self.short else len(self.images) // self.size
        return total if self.share is None else len(range(self.share.rank, total, self.share.of))


def inputs_of(images: ImageSet, networks: Sequence[Network], batch_size: int, **options: Any) -> Iterator[Batch]:
    """Batches of images with the input of each network: pixels after its transform, or rows of features.

    Args:
        images, networks, batch_size: arguments of the pass.
        options: see `ImageSet.batches`.
    """
    rows = {
        network.transform: rows_of(network.features, images)
        for network in networks
        if isinstance(network, FeatureNetwork)
    }
    transforms = [network.transform for network in networks if network.transform not in rows]
    for batch in images.batches(transforms, batch_size, **options):
        numbers = images.chosen[batch.positions.numpy()]
        batch.inputs.update(
            {transform: torch.from_numpy(rows_of_images[numbers]) for transform, rows_of_images in rows.items()}
        )
        yield batch


def _looks(networks: Sequence[Network]) -> bool:
    """Whether some network takes the images themselves."""
    return not all(isinstance(network, FeatureNetwork) for network in networks)


def _readable(images: ImageSet, workers: int | None, share: Share) -> tuple[ImageSet, Tensor, list[str]]:
    """The images that can be read, their positions, and the names of broken images, over all processes."""
    parts = processes.gathered(images.unreadable(workers, share))
    unreadable = dict(sorted(pair for part in parts for pair in part.items()))
    good = np.setdiff1d(np.arange(len(images)), list(unreadable))
    return images.only(good), torch.from_numpy(good), list(unreadable.values())


def _begun(resume: Resume, reading: Reading, run_batch: Callable[[Batch], Any], summing: Sequence[Summing]) -> Counts:
    """Begin a pass with its saved sums, if the first batch gives the same values as then."""

    def first_again() -> Any:
        with contextlib.closing(reading.batches(Counts(at_once=dict(reading.at_once)), here=True)) as batches:
            batch = next(batches, None)
            return None if batch is None else run_batch(batch)

    counts = resume.begin(summing, first_again, max(map(_rounding, reading.networks)))
    return counts if reading.share is None else _as_who_finished(resume, summing, counts, reading.networks[0].device)


def _run(
    reading: Reading,
    run_batch: Callable[[Batch], Any],
    summing: Sequence[Summing],
    counts: Counts,
    progress: Progress | None,
    resume: Resume | None,
) -> None:
    """Add this process's batches to the sums, and save these at intervals."""
    batches = reading.batches(counts)
    for batch in batches if progress is None else progress(batches, total=reading.total):
        try:
            values = run_batch(batch)
        except (RuntimeError, MemoryError, OSError) as error:  # in a forward pass it would have said so itself
            if isinstance(error, RepsimError) or not is_memory_error(error):
                raise
            device = reading.networks[0].device
            raise out_of_memory("the values computed of a batch", device, batch, first_line(error)) from error
        if resume is not None:
            resume.after(batch, summing, counts, values)


def _joined(summing: Sequence[Summing], counts: Counts, device: torch.device) -> Counts:
    """Replace the sums of each process by the sums over all processes."""
    for summed in summing:
        summed.sums = processes.reduced(summed.sums, merged, device)
    return processes.reduced(counts, Counts.merge, device)


def _as_who_finished(resume: Resume, summing: Sequence[Summing], counts: Counts, device: torch.device) -> Counts:
    """Give all processes the whole sums of a pass that one of them has saved; a kill can come before all have saved."""
    finished = processes.gathered(resume.done)
    if any(finished) and not all(finished):
        *sums, counts = processes.told([*(summed.sums for summed in summing), counts], finished.index(True), device)
        for summed, whole in zip(summing, sums, strict=True):
            summed.sums = whole
        resume.done = True
    return counts


def _rounding(network: Network) -> float:
    half = network.dtype.is_floating_point and torch.finfo(network.dtype).bits < 32
    return ROUNDING["bf16" if half else network.computes_in]


def _gpu(networks: Sequence[Network]) -> torch.device | None:
    """The CUDA device of all networks, to which images are copied ahead; None if there is no such device."""
    devices = {network.device for network in networks}
    (device, *others) = devices
    return device if device.type == "cuda" and not others else None


def planned(
    images: ImageSet, networks: Sequence[Network], summing: Sequence[Summing], size: int, gradients: bool
) -> dict[str, int]:
    """Plan the pass: the number of images that go through a network at once, where memory is too small for a batch.

    Raises:
        UsageError: memory is too small for any number.
    """
    return plan(*runs_of(images, networks, summing, gradients), size).at_once


def runs_of(
    images: ImageSet, networks: Sequence[Network], summing: Sequence[Summing], gradients: bool
) -> tuple[Callable[[int], Takes], list[Runs]]:
    """Main memory of a pass: of its sums, given the images per batch, and of its networks for each image."""
    on_cpu = [network for network in networks if network.device.type == "cpu"]
    runs = [_runs(network, gradients) for network in on_cpu]

    def takes(size: int) -> Takes:
        groups = 0 if images.groups is None else images.groups.jackknife
        all_of_them = sum((summed.takes(size, max(len(images) // size, groups, 1)) for summed in summing), Takes())
        if groups:  # of a batch, as many values as of all of them, and its Grams once more
            all_of_them = replace(all_of_them, batch=2 * all_of_them.batch + all_of_them.sums)
        return all_of_them if on_cpu else replace(all_of_them, batch=0, waiting=0)

    return takes, runs


def _runs(network: Network, gradients: bool) -> Runs:
    """Main memory that a network takes for each image."""
    if isinstance(network, FeatureNetwork):
        return Runs(network.name, image=network.dtype.itemsize, peak=network.bytes_of_rows)
    return Runs(
        network.name,
        image=network.dtype.itemsize * math.prod(network.input_size),
        peak=2 * Trace.of(network).made if gradients else Trace.of(network).peak,
        whole=gradients,
    )


def forward(network: Network, inputs: Tensor, batch: Batch, seen: Iterable[Seen] = ()) -> Any:
    """Run a network on a batch, so that studies see its activations; an error names the network and the batch.

    Where the batch does not fit into the memory of the network's device, it goes through in pieces, and so do later
    batches.
    """
    inputs = inputs.to(network.dtype)
    size = min(batch.at_once.get(network.name, len(inputs)), len(inputs))
    while True:
        try:
            for view in seen:
                view.begin(inputs, batch.groups)
            with network.computing(), eagerly(network), passing(network):
                run = network.module if inputs.requires_grad else network.runner
                return run(inputs) if size == len(inputs) else in_pieces(run, inputs, size)
        except RepsimError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, MemoryError, OSError, SystemExit) as error:
            reason = first_line(error)
            if not is_memory_error(error):
                place = f"{network.name} failed on batch {batch.number}, {len(inputs)} images"
                raise RepsimError(f"{place}: {reason}") from error
        if inputs.requires_grad or size < 2:  # gradients keep all activations in any case
            break
        size = batch.at_once[network.name] = size // 2
        if network.device.type == "cuda":
            torch.cuda.empty_cache()
    gigabytes = sum(p.numel() * p.element_size() for p in network.module.parameters()) / 2**30
    needed = f"{network.name} ({gigabytes:.1f} GiB of weights) and the values kept of a batch"
    raise out_of_memory(needed, network.device, batch, reason)


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


def out_of_memory(subject: str, device: torch.device, batch: Batch, error: str) -> RepsimError:
    """The error for memory that ran out, with the sizes."""
    sizes = ", ".join(str(tuple(inputs.shape)) for inputs in batch.inputs.values())
    room = ""
    if device.type == "cuda":
        free, total = (f"{size / 2**30:.1f} GiB" for size in torch.cuda.mem_get_info(device))
        room = f" ({total}, {free} of it free)"
    return RepsimError(
        f"the memory of {device}{room} is too small for {subject}: batch {batch.number} has shape {sizes}; take a "
        f"smaller batch size, fewer layers or another device ({error})"
    )
