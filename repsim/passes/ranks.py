"""The number of this process and the number of processes, from `torchrun`'s environment variables. No torch."""

from __future__ import annotations

import os

from repsim.errors import UsageError


def world_size() -> int:
    """The number of processes that share the run."""
    return _place()[1]


def rank() -> int:
    """The number of this process among all."""
    return _place()[0]


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return _number("LOCAL_RANK", rank())


def _place() -> tuple[int, int]:
    own, all_of_them = _number("RANK", 0), _number("WORLD_SIZE", 1)
    for name, other in (("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")):
        if name in os.environ and other not in os.environ and (own, all_of_them) != (0, 1):
            raise UsageError(f"{name} is set, and {other} is not; torchrun sets both; without torchrun set neither")
    if not 0 <= own < all_of_them:
        raise UsageError(f"RANK must be from 0 to WORLD_SIZE - 1, got RANK={own} and WORLD_SIZE={all_of_them}")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if all_of_them > 1 and missing:
        raise UsageError(
            f"WORLD_SIZE is {all_of_them}, and {' and '.join(missing)} not set; start several processes with torchrun"
        )
    return own, all_of_them


def _number(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()):
        raise UsageError(
            f"{name} must be a whole number, got {text!r}; torchrun sets it; without torchrun do not set it"
        )
    return int(text)
