"""What callers hand to a measure, as a tensor that lost nothing: lists, NumPy, pandas, tensors of any type.

A dense tensor of float16, bfloat16, float32 or float64 is taken as it is, at once: studies hand over millions of
them. Everything else becomes float64, or is refused in a sentence: what would lose an imaginary part, a mask, a scale
or digits, and what is no number.
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repsim.errors import UsageError, first_line

AS_THEY_ARE = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
"""Types of tensors that measures compute with; others become float64."""
EXACT = 2**53
"""Whole numbers beyond it need not be numbers of float64."""
_PLAIN = (bool, int, float, complex, np.generic)


def tensor(value: Any, what: str, axes: str | None = None) -> Tensor:
    """A dense tensor of real numbers, without its graph; of its own precision, else float64.

    Args:
        value: a tensor, an array, a pandas object, a number, or nested sequences of these.
        what: its name in messages.
        axes: such as `(n, d)`, to ask for two axes.

    Raises:
        UsageError: what the value has no place for in such a tensor, or its shape.

    >>> tensor([1e8, 1e8 + 1], "x")
    tensor([1.0000e+08, 1.0000e+08], dtype=torch.float64)
    """
    try:
        found = _tensor(value, what)
    except RecursionError:
        raise UsageError(f"{what} is nested too deeply; pass one array or tensor") from None
    if axes is not None and found.ndim != len(re.findall(r"\w+", axes)):
        raise UsageError(f"{what} must have axes {axes}, got shape {tuple(found.shape)}")
    return found


def real_images(value: Any, what: str, fewest: int = 4, measure: str = "cka") -> Tensor:
    """Features (n, ...) of `fewest` images or more, one number each or more."""
    found = tensor(value, what)
    n = len(found) if found.ndim else 0
    if n < fewest:
        raise UsageError(f"{measure} needs at least {fewest} examples, got {n}")
    if not found.numel():
        raise UsageError(f"{measure} needs features: {what}, {tuple(found.shape)}, holds none")
    return found


def classes_of(value: Any, n: int, *, classes: int | None = None, what: str = "labels") -> Tensor:
    """(n,) int64 classes, from 0; fewer than `classes` where that is known."""
    if isinstance(value, Tensor) and value.dtype == torch.int64 and value.layout == torch.strided:
        found = value.detach()
    else:
        found = tensor(value, what)
        if not (found == found.round()).all() or not (found.abs() < EXACT).all():
            raise UsageError(f"{what} must be whole numbers, one class for each image")
        found = found.long()
    if tuple(found.shape) != (n,):
        raise UsageError(f"{what} must be one class for each of {n} images, got shape {tuple(found.shape)}")
    if n and (found.min() < 0 or (classes is not None and found.max() >= classes)):
        wanted = "from 0" if classes is None else f"from 0 to {classes - 1}"
        raise UsageError(f"{what} must be classes {wanted}, got {found.min().item()} to {found.max().item()}")
    return found


def whole(value: Any, what: str, fewest: int = 1) -> int:
    """A count."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < fewest:
        raise UsageError(f"{what} must be a whole number from {fewest}, got {value!r:.60}".replace("\n", " "))
    return int(value)


def _tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return _of_tensor(value, what)
    if isinstance(value, (list, tuple)):
        return _of_sequence(value, what)
    if isinstance(value, np.ma.MaskedArray):
        raise UsageError(f"{what} is a masked array, whose mask would be lost; fill or drop what it masks, pass .data")
    if isinstance(value, (np.ndarray, *_PLAIN, Decimal, numbers.Real, range)) or hasattr(value, "__array__"):
        try:
            array = np.asarray(value)
        except Exception as error:  # any that another library raises
            raise UsageError(f"{what} cannot be read as an array: {first_line(error)}") from None
        return _of_array(array, what)
    raise _no_numbers(value, what)


def _no_numbers(value: Any, what: str) -> UsageError:
    shown = f" ({value!r:.40})".replace("\n", " ") if isinstance(value, (str, bytes)) else ""
    return UsageError(f"{what} must hold real numbers, got {type(value).__name__}{shown}; pass an array or a tensor")


def _of_tensor(value: Tensor, what: str) -> Tensor:
    if value.layout != torch.strided or value.is_nested:
        raise UsageError(f"{what} must be a dense tensor, got {value.layout}; pass {what}.to_dense()")
    if value.device.type == "meta":
        raise UsageError(f"{what} is a meta tensor, which holds no numbers; pass one that was computed")
    if value.requires_grad:
        value = value.detach()
    if value.dtype in AS_THEY_ARE:
        return value
    if value.is_quantized:
        raise UsageError(f"{what} is a quantized tensor, whose scale would be lost; pass {what}.dequantize()")
    if value.is_complex():
        raise _complex(what)
    try:
        found = value.double()
    except RuntimeError:
        raise UsageError(f"{what} is of {value.dtype}, which PyTorch cannot convert; pass float32") from None
    if not value.is_floating_point() and found.numel() and not (found.abs() < EXACT).all():
        raise _too_long(what)
    return found


def _complex(what: str) -> UsageError:
    return UsageError(
        f"{what} is complex, and its imaginary part would be lost; pass real features, such as both parts side by side"
    )


def _too_long(what: str) -> UsageError:
    return UsageError(
        f"{what} holds whole numbers beyond 2^53, which float64 would round; subtract the part that they share"
    )


def _of_sequence(value: Sequence[Any], what: str) -> Tensor:
    """Innermost sequences of plain numbers at once, for there may be many numbers; others one by one."""
    if all(isinstance(each, _PLAIN) for each in value):
        return _of_array(_plain_array(value, what), what)
    parts = [_tensor(each, what) for each in value]
    if len({part.shape for part in parts}) > 1:
        shapes = " and ".join(sorted({str(tuple(part.shape)) for part in parts})[:2])
        raise UsageError(f"{what} must be a full array, got a list of shapes {shapes}; give all rows one length")
    if len({part.device for part in parts}) > 1:
        raise UsageError(f"{what} must lie on one device, got a list of tensors on several")
    if parts[0].ndim > 62:
        raise UsageError(f"{what} is nested too deeply; pass one array or tensor")
    return torch.stack(parts)


def _plain_array(value: Sequence[Any], what: str) -> np.ndarray:
    """Numbers each in float64, or as whole numbers, for float64 would hide that they are too long."""
    array = np.asarray(value)
    if array.dtype.kind == "f" and any(isinstance(each, numbers.Integral) and abs(int(each)) > EXACT for each in value):
        raise _too_long(what)
    return array


def _of_array(array: np.ndarray, what: str) -> Tensor:
    kind = array.dtype.kind
    if kind == "c":
        raise _complex(what)
    if kind == "O":
        array = _of_objects(array, what)
    elif kind in "iub":
        if array.size and max(abs(int(array.max())), abs(int(array.min()))) > EXACT:
            raise _too_long(what)
        array = array.astype(np.float64)
    elif kind != "f":
        raise UsageError(f"{what} must hold real numbers, got an array of {array.dtype}")
    elif array.dtype.itemsize > 8:
        with np.errstate(over="ignore"):
            shortened = array.astype(np.float64)
        if not np.array_equal(np.isinf(array), np.isinf(shortened)):
            raise UsageError(f"{what} holds numbers beyond 1.8e308, which float64 cannot hold; scale it")
        array = shortened
    # Torch reads no other byte order and no steps backwards, and warns of memory that must not be written.
    array = np.asarray(array, array.dtype.newbyteorder("="))
    steps_apart = any(step < 0 or step % array.itemsize for step in array.strides)  # backwards, or a field of records
    if steps_apart or not (array.flags.writeable and array.flags.aligned):
        array = array.copy()
    return torch.from_numpy(array)


def _of_objects(array: np.ndarray, what: str) -> np.ndarray:
    found = np.empty(array.shape, np.float64)
    for index, each in np.ndenumerate(array):
        if isinstance(each, numbers.Complex) and not isinstance(each, numbers.Real):
            raise _complex(what)
        if each is np.ma.masked or not isinstance(each, (numbers.Real, Decimal, np.bool_)):
            raise _no_numbers(each, what)
        if isinstance(each, numbers.Integral) and abs(int(each)) > EXACT:
            raise _too_long(what)
        try:
            found[index] = float(each)
        except (OverflowError, ValueError):
            raise UsageError(f"{what} holds {type(each).__name__}s that float64 cannot hold; scale it") from None
    return found
