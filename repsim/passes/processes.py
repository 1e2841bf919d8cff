"""Several processes that share the batches of a pass, as `torchrun` starts them; torch.distributed does the work."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from repsim.errors import RepsimError, UsageError, first_line
from repsim.images.image_set import Share
from repsim.passes.ranks import local_rank, rank, world_size

LONGEST_WAIT = timedelta(hours=24)
"""Time to wait for the slowest process; torchrun ends all processes when one has died."""


def join() -> None:
    """Join the processes that `torchrun` started, if it did."""
    if world_size() > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            dist.init_process_group(backend, timeout=LONGEST_WAIT)
        except (RuntimeError, ValueError) as error:
            raise RepsimError(
                f"process {rank()} of {world_size()} cannot join the others: {first_line(error)}"
            ) from None


def leave() -> None:
    """Wait for all processes, and leave the group."""
    if dist.is_available() and dist.is_initialized():
        wait()
        dist.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """While active, processes exchange values, which fails where one of them has ended."""
    try:
        yield
    except RuntimeError as error:
        raise RepsimError(
            f"process {dist.get_rank()} of {dist.get_world_size()} waits for another that has ended or cannot be "
            f"reached, and can do nothing alone ({first_line(error)}); the same command goes on from the saved sums"
        ) from None


def share() -> Share | None:
    """This process's part of the work; None if there is one process only."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    return Share(dist.get_rank(), dist.get_world_size())


def own_device() -> str:
    """`cuda:1` for the second process of a machine with GPUs, `cuda` for a single process, else `cpu`."""
    if not torch.cuda.is_available():
        return "cpu"
    if world_size() == 1:
        return "cuda"
    own = local_rank()
    if own >= torch.cuda.device_count():
        raise UsageError(f"process {own} of this machine has no GPU of its own: there are {torch.cuda.device_count()}")
    return f"cuda:{own}"


def gathered(value: Any) -> list[Any]:
    """The values of all processes, in order, on all of them."""
    values: list[Any] = [None] * dist.get_world_size()
    with _together():
        dist.all_gather_object(values, value)
    return values


def agreed(value: Any) -> Any:
    """The value of the first process, on all of them."""
    if share() is None:
        return value
    values = [value]
    with _together():
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def reduced(value: Any, join: Callable[[Any, Any], Any], device: torch.device) -> Any:
    """The values of all processes joined, in order, on all of them; tensors of a GPU come to this device.

    The first process takes one after the other, so that no more than two are in memory at once.
    """
    cpu = torch.device("cpu")
    if dist.get_rank():
        with _together():
            dist.send_object_list([_packed(value)], dst=0, device=cpu)
    else:
        for rank in range(1, dist.get_world_size()):
            other = [b""]
            with _together():
                dist.recv_object_list(other, src=rank, device=cpu)
            value = join(value, _unpacked(other[0], device))
    return told(value, 0, device)


def _packed(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _unpacked(packed: bytes, device: torch.device) -> Any:
    def place(storage: Any, location: str) -> Any:
        return storage.to(device=device) if location.startswith("cuda") else storage

    return torch.load(io.BytesIO(packed), map_location=place, weights_only=False)


def told(value: Any, source: int, device: torch.device) -> Any:
    """The value of one process, on all of them; tensors of a GPU come to this device."""
    packed = [_packed(value) if dist.get_rank() == source else b""]
    with _together():
        dist.broadcast_object_list(packed, src=source, device=torch.device("cpu"))
    return _unpacked(packed[0], device)


def wait() -> None:
    """Wait until all processes are here."""
    with _together():
        dist.barrier()
