"""How much memory there is, and which errors are of memory."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from repsim.errors import UsageError

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
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt]?)(?:i?b)?|(%))\s*", str(text).lower())
    number = float(match[1]) if match else 0.0
    if not match or not 0 < number < UNLIMITED or (match[3] and number > 100):
        raise UsageError(f"memory is given as 8G, 500M or 50% (of what is free), got {text!r}")
    return int(number / 100 * free() if match[3] else number * UNITS[match[2]])


def free() -> int:
    """Bytes that this process can still take: of the machine, of its container, and of its own limit."""
    least = psutil.virtual_memory().available
    for limit, used in (_of_container(), _of_process()):
        if limit < UNLIMITED:
            least = min(least, max(limit - used, 0))
    return least


def _of_container() -> tuple[int, int]:
    """Limit and use of the strictest control group (version 2 or 1) that this process is in."""
    limits = (UNLIMITED, 0)
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
                if limit - used < limits[0] - limits[1]:
                    limits = limit, used
    return limits


def _group(group: Path) -> tuple[int, int]:
    """Limit and use of one group, less files that it only caches."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError):  # `max` is no number: no limit
            most, now = int((group / limit).read_text()), int((group / used).read_text())
            match = re.search(rf"^{cached} (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
            return most, now - int(match[1]) if match else now
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
"""A parameter of `mallopt`, as glibc numbers it."""
BLOCK = 2**23
"""Bytes from which on a block goes back to the system as soon as it is free."""


def give_back_blocks() -> None:
    """Have this process give large blocks back when they are free, where its C library is glibc.

    By itself glibc learns to keep blocks up to 32 MiB. What is kept of each layer, small as it is, then comes to lie
    between freed blocks, into which the next layer's do not fit any more: a pass of ViT-B/16 over 50 images took 2.8
    GB for 0.6. It costs 2 to 3 % of a forward pass.
    """
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        with suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, BLOCK)


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
