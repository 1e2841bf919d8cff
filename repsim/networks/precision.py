"""Precision of networks and Grams: products of 32-bit numbers on a GPU, and 16-bit activations.

    fp32    products of float32 are exact products of float32
    tf32    on CUDA, products take 10 bits of each factor's mantissa (of 23) and are summed in float32
    bf16    networks run in bfloat16 where that is known to be safe (autocast); Grams of their activations as in tf32

Whatever it is, what comes after a Gram is in float64. `tests/benchmarks/README.md` has how far results of each move.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import torch

from repsim.errors import UsageError, one_of

Precision = Literal["fp32", "tf32", "bf16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


def check_precision(precision: str, device: torch.device) -> None:
    """Raise `UsageError` for an unknown precision, or one that the device lacks."""
    if precision not in PRECISIONS:
        raise one_of("precision", precision, PRECISIONS)
    if precision == "tf32" and device.type != "cuda":
        raise UsageError(f"tf32 is a precision of CUDA devices; on {device.type} there are fp32 and bf16")


def usual_precision(device: torch.device) -> Precision:
    """tf32 on CUDA, else fp32."""
    return "tf32" if device.type == "cuda" else "fp32"


@contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """While active, a network on the device and computations in its hooks have this precision."""
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(_products(tf32=precision != "fp32"))
        if precision == "bf16":
            stack.enter_context(torch.autocast(device.type, torch.bfloat16))
        yield


@contextmanager
def _products(tf32: bool) -> Iterator[None]:
    """While active, float32 matrices and convolutions use tf32 or not; cuDNN takes it unless it is switched off.

    PyTorch has two sets of switches for it since 2.9, and refuses to read one that disagrees with the other.
    """
    backends: Any = torch.backends  # the stubs know only some of the switches
    cuda, cudnn = backends.cuda.matmul, backends.cudnn
    places = [cuda, cudnn.conv, cudnn.rnn] if hasattr(cuda, "fp32_precision") else []
    before = [place.fp32_precision for place in places]
    switches = {place: _switch(place) for place in (cuda, cudnn)}
    try:
        for place in switches:
            place.allow_tf32 = tf32
        yield
    finally:
        for place, switch in switches.items():
            if switch is not None:
                place.allow_tf32 = switch
        for place, value in zip(places, before):
            place.fp32_precision = value


def _switch(place: Any) -> bool | None:
    try:
        return place.allow_tf32
    except RuntimeError:  # the user's settings disagree already
        return None


@contextmanager
def as_given() -> Iterator[None]:
    """While active, operations have the precision of their inputs instead of the network's."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
