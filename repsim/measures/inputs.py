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


def tensor(value: Any, name: str, axes: str | None = None) -> Tensor:
    """A dense tensor of real numbers, without its graph; of its own precision, else float64.

    Args:
        value: a tensor, an array, a pandas object, a number, or nested sequences of these.
        name: its name in messages.
        axes: such as `(n, d)`, to ask for two axes.

    Raises:
        UsageError: what the value has no place for in such a tensor, or its shape.

    >>> tensor([1e8, 1e8 + 1], "x")
    tensor([1.0000e+08, 1.0000e+08], dtype=torch.float64)
    """
    try:
        result = _tensor(value, name)
    except RecursionError:
        raise UsageError(f"{name} is nested too deeply; pass one array or tensor") from None
    if axes is not None and result.ndim != len(re.findall(r"\w+", axes)):
        raise UsageError(f"{name} must have axes {axes}, got shape {tuple(result.shape)}")
    return result


def real_images(value: Any, name: str, fewest: int = 4, measure: str = "cka") -> Tensor:
    """Features (n, ...) of `fewest` images or more, one number each or more."""
    features = tensor(value, name)
    n = len(features) if features.ndim else 0
    if n < fewest:
        raise UsageError(f"{measure} needs at least {fewest} examples, got {n}")
    if not features.numel():
        raise UsageError(f"{measure} needs features: {name}, {tuple(features.shape)}, holds none")
    return features


def classes_of(value: Any, n: int, *, classes: int | None = None, name: str = "labels") -> Tensor:
    """(n,) int64 classes, from 0; fewer than `classes` where that is known."""
    if isinstance(value, Tensor) and value.dtype == torch.int64 and value.layout == torch.strided:
        labels = value.detach()
    else:
        labels = tensor(value, name)
        if not (labels == labels.round()).all() or not (labels.abs() < EXACT).all():
            raise UsageError(f"{name} must be whole numbers, one class for each image")
        labels = labels.long()
    if tuple(labels.shape) != (n,):
        raise UsageError(f"{name} must be one class for each of {n} images, got shape {tuple(labels.shape)}")
    if n and (labels.min() < 0 or (classes is not None and labels.max() >= classes)):
        wanted = "from 0" if classes is None else f"from 0 to {classes - 1}"
        raise UsageError(f"{name} must be classes {wanted}, got {labels.min().item()} to {labels.max().item()}")
    return labels


def whole(value: Any, name: str, fewest: int = 1) -> int:
    """A count."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < fewest:
        raise UsageError(f"{name} must be a whole number from {fewest}, got {value!r:.60}".replace("\n", " "))
    return int(value)


def _tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return _of_tensor(value, name)
    if isinstance(value, (list, tuple)):
        return _of_sequence(value, name)
    if isinstance(value, np.ma.MaskedArray):
        raise UsageError(f"{name} is a masked array, whose mask would be lost; fill or drop what it masks, pass .data")
    if isinstance(value, (np.ndarray, *_PLAIN, Decimal, numbers.Real, range)) or hasattr(value, "__array__"):
        try:
            array = np.asarray(value)
        except Exception as error:  # any that another library raises
            raise UsageError(f"{name} cannot be read as an array: {first_line(error)}") from None
        return _of_array(array, name)
    raise _no_numbers(value, name)


def _no_numbers(value: Any, name: str) -> UsageError:
    shown = f" ({value!r:.40})".replace("\n", " ") if isinstance(value, (str, bytes)) else ""
    return UsageError(f"{name} must hold real numbers, got {type(value).__name__}{shown}; pass an array or a tensor")


def _of_tensor(value: Tensor, name: str) -> Tensor:
    if value.layout != torch.strided or value.is_nested:
        raise UsageError(f"{name} must be a dense tensor, got {value.layout}; pass {name}.to_dense()")
    if value.device.type == "meta":
        raise UsageError(f"{name} is a meta tensor, which holds no numbers; pass one that was computed")
    if value.requires_grad:
        value = value.detach()
    if value.dtype in AS_THEY_ARE:
        return value
    if value.is_quantized:
        raise UsageError(f"{name} is a quantized tensor, whose scale would be lost; pass {name}.dequantize()")
    if value.is_complex():
        raise _complex(name)
    try:
        result = value.double()
    except RuntimeError:
        raise UsageError(f"{name} is of {value.dtype}, which PyTorch cannot convert; pass float32") from None
    if not value.is_floating_point() and result.numel() and not (result.abs() < EXACT).all():
        raise _too_long(name)
    return result


def _complex(name: str) -> UsageError:
    return UsageError(
        f"{name} is complex, and its imaginary part would be lost; pass real features, such as both parts side by side"
    )


def _too_long(name: str) -> UsageError:
    return UsageError(
        f"{name} holds whole numbers beyond 2^53, which float64 would round; subtract the part that they share"
    )


def _of_sequence(value: Sequence[Any], name: str) -> Tensor:
    """Innermost sequences of plain numbers at once, for there may be many numbers; others one by one."""
    if all(isinstance(item, _PLAIN) for item in value):
        return _of_array(_plain_array(value, name), name)
    parts = [_tensor(item, name) for item in value]
    if len({part.shape for part in parts}) > 1:
        shapes = " and ".join(sorted({str(tuple(part.shape)) for part in parts})[:2])
        raise UsageError(f"{name} must be a full array, got a list of shapes {shapes}; give all rows one length")
    if len({part.device for part in parts}) > 1:
        raise UsageError(f"{name} must lie on one device, got a list of tensors on several")
    if parts[0].ndim > 62:
        raise UsageError(f"{name} is nested too deeply; pass one array or tensor")
    return torch.stack(parts)


def _plain_array(value: Sequence[Any], name: str) -> np.ndarray:
    """Numbers each in float64, or as whole numbers, for float64 would hide that they are too long."""
    array = np.asarray(value)
    if array.dtype.kind == "f" and any(isinstance(item, numbers.Integral) and abs(int(item)) > EXACT for item in value):
        raise _too_long(name)
    return array


def _of_array(array: np.ndarray, name: str) -> Tensor:
    kind = array.dtype.kind
    if kind == "c":
        raise _complex(name)
    if kind == "O":
        array = _of_objects(array, name)
    elif kind in "iub":
        if array.size and max(abs(int(array.max())), abs(int(array.min()))) > EXACT:
            raise _too_long(name)
        array = array.astype(np.float64)
    elif kind != "f":
        raise UsageError(f"{name} must hold real numbers, got an array of {array.dtype}")
    elif array.dtype.itemsize > 8:
        with np.errstate(over="ignore"):
            shortened = array.astype(np.float64)
        if not np.array_equal(np.isinf(array), np.isinf(shortened)):
            raise UsageError(f"{name} holds numbers beyond 1.8e308, which float64 cannot hold; scale it")
        array = shortened
    # Torch reads no other byte order and no steps backwards, and warns of memory that must not be written.
    array = np.asarray(array, array.dtype.newbyteorder("="))
    steps_apart = any(step < 0 or step % array.itemsize for step in array.strides)  # backwards, or a field of records
    if steps_apart or not (array.flags.writeable and array.flags.aligned):
        array = array.copy()
    return torch.from_numpy(array)


def _of_objects(array: np.ndarray, name: str) -> np.ndarray:
    result = np.empty(array.shape, np.float64)
    for index, item in np.ndenumerate(array):
        if isinstance(item, numbers.Complex) and not isinstance(item, numbers.Real):
            raise _complex(name)
        if item is np.ma.masked or not isinstance(item, (numbers.Real, Decimal, np.bool_)):
            raise _no_numbers(item, name)
        if isinstance(item, numbers.Integral) and abs(int(item)) > EXACT:
            raise _too_long(name)
        try:
            result[index] = float(item)
        except (OverflowError, ValueError):
            raise UsageError(f"{name} holds {type(item).__name__}s that float64 cannot hold; scale it") from None
    return result
