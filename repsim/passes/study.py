"""The contract of a study, and a check of it that anybody can call on a study of theirs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from repsim.images.image_set import Batch, Counts
from repsim.measures.running import Sums
from repsim.networks.models import Network
from repsim.passes.plan import Takes
from repsim.passes.seen import Seen

if TYPE_CHECKING:
    from repsim.studies.results import Result


class Summing:
    """What is filled batch by batch."""

    sums: Sums
    """Everything that is kept of the batches: accumulators, in dictionaries, lists or tuples. A sweep may put other
    sums of the same kind in their place: those of an earlier run, or of several processes."""

    def takes(self, size: int, batches: int) -> Takes:
        """What is taken of main memory with so many batches of so many images; nothing, unless a study says so."""
        return Takes()


class Study(Summing, ABC):
    """What is to be seen of networks while images pass, and the table that it gives.

    A study reduces activations inside the hooks of a forward pass, sums what is left of them batch by batch, and turns
    the sums into a table. It keeps nothing of the batches but `sums`. `check_study` tests what it must hold to.
    """

    networks: Sequence[Network]
    """What it looks at."""

    @abstractmethod
    def watch(self, index: int, network: Network, seen: Seen) -> AbstractContextManager[None]:
        """While active, forward passes of its network number `index` fill `seen`; see its methods."""

    @abstractmethod
    def update(self, seen: Sequence[Seen], batch: Batch) -> None:
        """Add one batch to the sums, from what was seen in each of its networks."""

    @abstractmethod
    def result(self, counts: Counts) -> Result:
        """What the sums give, with a record that need not say more than the protocol."""
