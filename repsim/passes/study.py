"""The contract of a study, and a check of it that can be called on every study."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from torch import Tensor

from repsim.errors import first_line
from repsim.images.image_set import Batch, Counts, ImageSet, Share
from repsim.measures.running import Sums, Total, merged
from repsim.networks.layers import Layer, find_layers
from repsim.networks.models import Network
from repsim.passes.plan import Takes
from repsim.passes.resume import FOLDER, Resume
from repsim.passes.seen import Seen
from repsim.passes.sweep import inputs_of, sweep, watching

if TYPE_CHECKING:
    from repsim.studies.results import Result


class Summing:
    """Sums that are filled batch by batch."""

    sums: Sums
    """Everything that is kept from the batches: accumulators, in dictionaries, lists or tuples. A sweep may replace
    them by sums of the same kind: those of an earlier run, or of several processes."""

    def takes(self, size: int, batches: int) -> Takes:
        """Main memory that it takes, given the images per batch and the number of batches; none, unless it says so."""
        return Takes()


class Study(Summing, ABC):
    """A computation on the activations of networks while images pass, and its table.

    A study reduces activations inside the hooks of a forward pass, sums the reduced values batch by batch, and turns
    the sums into a table. It keeps nothing from the batches but `sums`. `check_study` tests this contract.

    >>> import repsim as rs
    >>> class MeanOfLast(rs.Study):
    ...     def __init__(self, network):
    ...         self.networks, self.sums = [network], rs.Moments()
    ...     def watch(self, index, network, seen):
    ...         return seen.rows(rs.find_layers(network, ["blocks.11"]), lambda layer, x: x.mean((1, 2)).double())
    ...     def update(self, seen, batch):
    ...         self.sums.update(seen[0]["blocks.11"])
    >>> study = MeanOfLast(rs.load_model("vit_mini"))
    >>> sweep(rs.ImageSet("sample", images=32), [study], batch_size=16).used, study.sums.count
    (32, 32)
    """

    networks: Sequence[Network]
    """The networks that it uses."""

    @abstractmethod
    def watch(self, index: int, network: Network, seen: Seen) -> AbstractContextManager[None]:
        """While active, forward passes of its network number `index` fill `seen`; see its methods."""

    @abstractmethod
    def update(self, seen: Sequence[Seen], batch: Batch) -> None:
        """Add one batch to the sums, from the values that were kept for each of its networks."""

    def result(self, counts: Counts) -> Result:
        """Make the result from the sums, with a record that needs only the protocol."""
        raise NotImplementedError(f"{type(self).__name__} gives no result of its own")


def check_study(
    study: Study, images: ImageSet, *, batch_size: int = 16, rtol: float = 1e-5, atol: float = 1e-6
) -> Result:
    """Test that a study gives the same result for every way in which batches can come to it.

    The result of the study alone must come out a second time; beside further studies of the same networks; where a
    batch goes through its networks in pieces; from sums that were saved half-way; and from the sums of two processes.

    Args:
        study: the study before its first batch; only copies of it are run.
        images: at least two batches of them.
        batch_size: images per batch.
        rtol, atol: tolerances of numbers that are computed in another order.

    Returns:
        The result of the study alone.

    Raises:
        AssertionError: one of these ways gives a different result; the message names the way and the place.

    >>> import repsim as rs
    >>> from repsim.studies.residual import ResidualNorms
    >>> study = ResidualNorms([rs.load_model("vit_mini")])
    >>> check_study(study, rs.ImageSet("sample", images=16), batch_size=8).name
    'residual'
    """
    shared = {id(network): network for network in study.networks}

    def fresh() -> Study:
        return copy.deepcopy(study, dict(shared))

    alone = _swept(fresh(), images, batch_size)
    ways: dict[str, tuple[Callable[[Study, ImageSet, int], Result], bool]] = {
        "a second time": (_swept, True),
        "beside other studies": (lambda one, data, n: _swept(one, data, n, [_Bystander(one.networks), fresh()]), False),
        "in pieces of a batch": (_in_pieces, False),
        "from sums that were saved": (lambda one, data, n: _resumed([one, fresh()], data, n), True),
        "from sums of two processes": (lambda one, data, n: _merged([one, fresh()], data, n), False),
    }
    for way, (run, exactly) in ways.items():
        try:
            again = run(fresh(), images, batch_size)
            _same(alone, again, *((0.0, 0.0) if exactly else (rtol, atol)))
        except Exception as error:
            reason = first_line(error)
            raise AssertionError(f"{type(study).__name__} gives another result {way}: {reason}") from error
    return alone


def _swept(study: Study, images: ImageSet, size: int, companions: Sequence[Study] = ()) -> Result:
    return study.result(sweep(images, [*companions, study], batch_size=size))


def _in_pieces(study: Study, images: ImageSet, size: int) -> Result:
    counts = Counts(at_once={network.name: max(size // 2 - 1, 1) for network in study.networks})
    return study.result(_each(study, images, size, counts))


def _resumed(studies: Sequence[Study], images: ImageSet, size: int) -> Result:
    """The first study is stopped half-way; the second one goes on from the sums that were saved."""

    class Stop(Exception):
        pass

    def half(batches: Iterable[Batch], total: int) -> Iterator[Batch]:
        for number, batch in enumerate(batches):
            if number == max(total // 2, 1):
                raise Stop
            yield batch

    first, second = studies
    with TemporaryDirectory() as directory:
        at = Resume(Path(directory) / FOLDER, {}, every=0.0)
        try:
            sweep(images, [first], batch_size=size, progress=half, resume=at)
        except Stop:
            pass
        finally:
            at.release()
        at = Resume(Path(directory) / FOLDER, {})
        try:
            return second.result(sweep(images, [second], batch_size=size, resume=at))
        finally:
            at.finish()


def _merged(studies: Sequence[Study], images: ImageSet, size: int) -> Result:
    """Each study takes every other batch, as of two processes; the first one then has the sums of both."""
    first, second = studies
    counts = [_each(study, images, size, Counts(), Share(rank, len(studies))) for rank, study in enumerate(studies)]
    first.sums = merged(first.sums, second.sums)
    return first.result(counts[0].merge(counts[1]))


def _each(study: Study, images: ImageSet, size: int, counts: Counts, share: Share | None = None) -> Counts:
    with watching([study]) as run_batch:
        size = min(size, images.largest_batch)
        for batch in inputs_of(images, study.networks, size, counts=counts, workers=0, share=share):
            run_batch(batch)
    return counts


class _Bystander(Study):
    """A study that uses operations of networks inside its hooks: sums, products, softmax."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self.networks = networks
        self.sums = Total()

    def watch(self, index: int, network: Network, seen: Seen) -> AbstractContextManager[None]:
        return seen.rows(find_layers(network, "all"), self._reduce)

    def _reduce(self, layer: Layer, activation: Tensor) -> Tensor:
        x = activation.flatten(1).float()[:, :64]
        weights = (x @ x.T + 1).softmax(-1)
        return (weights @ x + x).sum(1)

    def update(self, seen: Sequence[Seen], batch: Batch) -> None:
        self.sums.update(len(batch.positions))


def _same(first: Result, other: Result, rtol: float, atol: float) -> None:
    """Raise if two results differ in a table or an array."""
    for name, table in {first.name: first.table, **first.tables}.items():
        again = {other.name: other.table, **other.tables}[name]
        pd.testing.assert_frame_equal(table, again, rtol=rtol, atol=atol, check_exact=not rtol, obj=f"table {name}")
    for file, arrays in first.arrays.items():
        for name, values in arrays.items():
            np.testing.assert_allclose(other.arrays[file][name], values, rtol, atol, err_msg=f"array {name} of {file}")
