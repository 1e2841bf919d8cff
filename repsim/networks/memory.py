"""How much memory there is, how much of it a pass over images takes, and which errors are of memory.

A pass is planned before it begins: what its sums take, what its largest batch takes (images, what the networks keep of
them while they run, what the studies keep of them until the batch is summed), and what its tables take. Where that is
more than the budget, networks get a batch in pieces; where that is not enough either, the pass is refused, with what
would fit.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from repsim.errors import UsageError

SHARE = 0.75
"""Of the memory that is free: the budget where none is given."""
UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
CGROUP = Path("/sys/fs/cgroup")
UNLIMITED = 2**60
"""From here on what a system says of a limit means that there is none."""


def parse(text: str) -> int:
    """Bytes of `8G`, `500M` or, of what is free now, `50%`.

    Raises:
        UsageError: it is none of these, or nothing.

    >>> parse("1.5G") == parse("1536 MiB") == 3 * 2**29
    True
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt]?)(?:i?b)?|(%))\s*", str(text).lower())
    number = float(found[1]) if found else 0.0
    if not found or not 0 < number < UNLIMITED or (found[3] and number > 100):
        raise UsageError(f"memory is given as 8G, 500M or 50% (of what is free), got {text!r}")
    return int(number / 100 * free() if found[3] else number * UNITS[found[2]])


def free() -> int:
    """Bytes that this process can still take: of the machine, of its container, and of its own limit."""
    least = psutil.virtual_memory().available
    for limit, used in (_of_container(), _of_process()):
        if limit < UNLIMITED:
            least = min(least, max(limit - used, 0))
    return least


def _of_container() -> tuple[int, int]:
    """Limit and use of the strictest control group (version 2 or 1) that this process is in."""
    found = (UNLIMITED, 0)
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds not in ("", "memory"):
                continue
            root = CGROUP / kinds
            here = root / path.lstrip("/")
            for group in (here, *here.parents):
                if not group.is_relative_to(root):
                    break
                limit, used = _group(group)
                if limit - used < found[0] - found[1]:
                    found = limit, used
    return found


def _group(group: Path) -> tuple[int, int]:
    """Limit and use of one group, less files that it only caches."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError):  # `max` is no number: no limit
            most, now = int((group / limit).read_text()), int((group / used).read_text())
            found = re.search(rf"^{cached} (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
            return most, now - int(found[1]) if found else now
    return UNLIMITED, 0


def _of_process() -> tuple[int, int]:
    """Its limit of addresses (`ulimit -v`), and those that it has."""
    with suppress(ImportError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            return limit, psutil.Process().memory_info().vms
    return UNLIMITED, 0


MMAP_THRESHOLD = -3
"""Of `mallopt`, as glibc numbers it."""
BLOCK = 2**23
"""Bytes from which on memory goes back to the system as soon as it is free."""


def give_back_blocks() -> None:
    """Have this process give large blocks back when they are free, where its C library is glibc.

    By itself glibc learns to keep blocks up to 32 MiB. What is kept of each layer, small as it is, then comes to lie
    between freed blocks, into which the next layer's do not fit any more: a pass of ViT-B/16 over 50 images took 2.8
    GB for 0.6. It costs 2 to 3 % of a forward pass.
    """
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        with suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, BLOCK)


class _Limit(NamedTuple):
    budget: int
    say: Callable[[str], None] | None


_limit: ContextVar[_Limit | None] = ContextVar("limit", default=None)


@contextmanager
def limited(budget: int | str | None = None, say: Callable[[str], None] | None = None) -> Iterator[int]:
    """Within it, no pass over images is planned to take more than this.

    Args:
        budget: bytes, or what `parse` takes; None: three quarters of what is free now.
        say: told before each pass what it takes.
    """
    if budget is None:
        budget = int(SHARE * free())
    token = _limit.set(_Limit(budget if isinstance(budget, int) else parse(budget), say))
    try:
        yield _limit.get().budget
    finally:
        _limit.reset(token)


@dataclass(frozen=True)
class Takes:
    """Bytes that a study takes of main memory."""

    sums: int = 0
    """All through the pass."""
    batch: int = 0
    """For what is computed of a batch, until it is summed."""
    tables: int = 0
    """When its tables are made, beside the sums."""
    waiting: int = 0
    """Beside `batch`, where a network gets the batch in pieces: activations that wait for those of other pieces."""
    less: str = ""
    """What its user can do to have it take less."""

    def __add__(self, other: Takes) -> Takes:
        less = dict.fromkeys(each for each in (self.less, other.less) if each)
        return Takes(
            self.sums + other.sums,
            self.batch + other.batch,
            self.tables + other.tables,
            self.waiting + other.waiting,
            ", ".join(less),
        )


@dataclass(frozen=True)
class Runs:
    """What a network takes of main memory for each image of a batch."""

    name: str
    image: int
    """Bytes of an image as it goes in."""
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
    """Network -> images at a time, where that is fewer than a batch."""

    @property
    def total(self) -> int:
        return self.takes.sums + max(self.batch, self.takes.tables)


BESIDE = 1.25
"""What operations take for themselves while they run, as a share of the tensors that are alive."""
AHEAD = 3
"""Batches of images in memory: the one computed, the one loaded ahead, and the one that its pieces are joined into."""


def plan(takes: Callable[[int], Takes], networks: Sequence[Runs], batch_size: int) -> Plan:
    """How a pass fits into the budget: with whole batches, or with networks that get them in pieces.

    Args:
        takes: what the studies take with batches of so many images.
        networks: each of those that compute in main memory.

    Raises:
        UsageError: it does not fit; the message says what would.
    """
    limit = _limit.get() or _Limit(int(SHARE * free()), None)
    found = _fitting(takes, networks, batch_size, limit.budget)
    if found is None:
        raise UsageError(_too_much(takes, networks, batch_size, limit.budget))
    if limit.say is not None:
        limit.say(f"memory: {_words(found)}; {_size(limit.budget)} may be taken")
    return found


def _fitting(takes: Callable[[int], Takes], networks: Sequence[Runs], batch_size: int, budget: int) -> Plan | None:
    size = batch_size
    while size:
        made = _planned(takes(batch_size), networks, batch_size, size)
        if made.total <= budget:
            return made
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
    return (
        f"this takes {_size(needed.total)} of memory ({_words(needed)}), and {_size(budget)} may be taken, "
        f"{SHARE:.0%} of what is free unless --memory says otherwise; {', or '.join(fits) or 'take fewer layers'}"
    )


def _words(made: Plan) -> str:
    pieces = f", {min(made.at_once.values())} images at a time" if made.at_once else ""
    return (
        f"{_size(made.takes.sums)} for sums, {_size(made.batch)} for the largest batch{pieces}, "
        f"{_size(made.takes.tables)} for tables"
    )


def _size(number: int) -> str:
    return f"{number / 2**30:,.1f} GiB" if number >= 2**30 else f"{number / 2**20:,.0f} MiB"


WORDS = (
    "DefaultCPUAllocator",
    "can't allocate memory",
    "Cannot allocate memory",
    "not enough memory",
    "out of memory",
    "ALLOC_FAILED",
    "bad_alloc",
)
"""In what PyTorch and the libraries below it say where memory is lacking."""


def is_memory_error(error: BaseException) -> bool:
    """Whether memory was lacking: of a GPU, or of the CPU, whose allocator raises a plain `RuntimeError`."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS)


def physical() -> int:
    """Bytes of the machine's memory, or of its container's."""
    return min(psutil.virtual_memory().total, _of_container()[0])
