"""The memory that a pass over images takes, and fitting the pass into the memory that is free.

A pass is planned before it begins. Its memory is that of its sums, of its largest batch (images, activations while the
networks run, reduced activations until the batch is summed), and of its tables. Where that exceeds the budget, networks
get a batch in pieces; where pieces are still too large, the pass is refused, and the error names a size that fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

from repsim.errors import UsageError
from repsim.networks.memory import free, parse

SHARE = 0.75
"""Share of the free memory that is the budget by default."""


class _Limit(NamedTuple):
    budget: int
    say: Callable[[str], None] | None


_limit: ContextVar[_Limit | None] = ContextVar("limit", default=None)


@contextmanager
def limited(budget: int | str | None = None, say: Callable[[str], None] | None = None) -> Iterator[int]:
    """While active, no pass over images is planned to take more memory than the budget.

    Args:
        budget: bytes, or a text for `parse`; None: three quarters of the memory that is free now.
        say: gets a sentence on the memory of each pass before it.
    """
    if budget is None:
        budget = int(SHARE * free())
    limit = _Limit(budget if isinstance(budget, int) else parse(budget), say)
    token = _limit.set(limit)
    try:
        yield limit.budget
    finally:
        _limit.reset(token)


@dataclass(frozen=True)
class Takes:
    """Bytes that a study takes of main memory."""

    sums: int = 0
    """Bytes during the whole pass."""
    batch: int = 0
    """Bytes for the reduced activations of a batch, until it is summed."""
    tables: int = 0
    """Bytes for making its tables, beside the sums."""
    waiting: int = 0
    """Bytes beside `batch`, where a network gets the batch in pieces: activations wait until all pieces have passed."""
    less: str = ""
    """Advice to the user for taking less memory."""

    def __add__(self, other: Takes) -> Takes:
        less = dict.fromkeys(advice for advice in (self.less, other.less) if advice)
        return Takes(
            self.sums + other.sums,
            self.batch + other.batch,
            self.tables + other.tables,
            self.waiting + other.waiting,
            ", ".join(less),
        )


@dataclass(frozen=True)
class Runs:
    """Main memory that a network takes for each image of a batch."""

    name: str
    image: int
    """Bytes of an image as the network takes it."""
    peak: int
    """Bytes that are alive at once while it runs."""
    whole: bool = False
    """Whether a batch must go through at once, for its gradients."""


@dataclass(frozen=True)
class Plan:
    """How a pass fits into memory."""

    takes: Takes
    batch: int
    """Bytes of the largest batch: images, networks and studies."""
    at_once: dict[str, int]
    """Network -> images at a time, where they are fewer than a batch."""

    @property
    def total(self) -> int:
        return self.takes.sums + max(self.batch, self.takes.tables)


BESIDE = 1.25
"""Memory of operations themselves while they run, as a share of the tensors that are alive."""
AHEAD = 3
"""Batches of images in memory: the one computed, the one loaded ahead, and the one that its pieces are joined into."""


def plan(takes: Callable[[int], Takes], networks: Sequence[Runs], batch_size: int) -> Plan:
    """Plan a pass that is about to begin, see `fits`, and give the sentence on it to the listener."""
    fit = fits(takes, networks, batch_size)
    tell(f"memory: {_words(fit)}; {size_in_words(_current().budget)} may be taken")
    return fit


def fits(takes: Callable[[int], Takes], networks: Sequence[Runs], batch_size: int) -> Plan:
    """Fit a pass into the budget: with whole batches, or with networks that get batches in pieces.

    Args:
        takes: memory of the studies, given the images per batch.
        networks: memory of each network that computes in main memory.

    Raises:
        UsageError: it does not fit; the message names a size that fits.
    """
    budget = _current().budget
    fit = _fitting(takes, networks, batch_size, budget)
    if fit is None:
        raise UsageError(_too_much(takes, networks, batch_size, budget))
    return fit


def tell(text: str) -> None:
    """Give the sentence on the memory of a pass to the listener."""
    if (say := _current().say) is not None:
        say(text)


@contextmanager
def unsaid() -> Iterator[None]:
    """While active, the memory of passes is not announced, because a plan has announced all of them."""
    token = _limit.set(_current()._replace(say=None))
    try:
        yield
    finally:
        _limit.reset(token)


def _current() -> _Limit:
    return _limit.get() or _Limit(int(SHARE * free()), None)


def _fitting(takes: Callable[[int], Takes], networks: Sequence[Runs], batch_size: int, budget: int) -> Plan | None:
    size = batch_size
    while size:
        fit = _planned(takes(batch_size), networks, batch_size, size)
        if fit.total <= budget:
            return fit
        size = 0 if any(network.whole for network in networks) else size // 2
    return None


def _planned(takes: Takes, networks: Sequence[Runs], batch_size: int, size: int) -> Plan:
    images = AHEAD * batch_size * sum(network.image for network in networks)
    running = max((int(BESIDE * size * network.peak) for network in networks), default=0)
    waiting = takes.waiting if size < batch_size else 0
    at_once = {network.name: size for network in networks} if size < batch_size else {}
    return Plan(takes, images + running + waiting + takes.batch, at_once)


def _too_much(takes: Callable[[int], Takes], networks: Sequence[Runs], batch_size: int, budget: int) -> str:
    smallest = 1 if batch_size and not any(network.whole for network in networks) else batch_size
    needed = _planned(takes(batch_size), networks, batch_size, smallest)
    smaller = batch_size // 2
    while smaller >= 4 and _fitting(takes, networks, smaller, budget) is None:
        smaller //= 2
    fits = [f"--batch-size {smaller} fits"] if smaller >= 4 else []
    fits += [needed.takes.less] if needed.takes.less else []
    needs, may = size_in_words(needed.total), size_in_words(budget)
    return (
        f"this takes {needs} of memory ({_words(needed)}), and {may} may be taken, "
        f"{SHARE:.0%} of the free memory unless --memory says otherwise; {', or '.join(fits) or 'take fewer layers'}"
    )


def _words(plan_: Plan) -> str:
    pieces = f", {min(plan_.at_once.values())} images at a time" if plan_.at_once else ""
    return (
        f"{size_in_words(plan_.takes.sums)} for sums, {size_in_words(plan_.batch)} for the largest batch{pieces}, "
        f"{size_in_words(plan_.takes.tables)} for tables"
    )


def size_in_words(number: int) -> str:
    """Bytes, in MiB or GiB."""
    return f"{number / 2**30:,.1f} GiB" if number >= 2**30 else f"{number / 2**20:,.0f} MiB"
