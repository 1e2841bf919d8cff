"""Files of sums that end with a checksum, and fingerprints of sums by which two computations are compared."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAGIC = b"repsim sums\n"
CHUNK = 2**20

# A file is what torch.save writes, a line of JSON that says what it is and what its checksum is, the length of that
# line in eight bytes, and MAGIC. PyTorch's reader finds its archive's end before such a tail.


def save(value: Any, file: Path, mark: dict[str, Any], beside: Mapping[str, Sequence[str]] | None = None) -> None:
    """Save a value, with its description (`mark`), names of what its run leaves beside it, and a checksum."""
    try:
        with file.open("wb") as opened:
            torch.save(value, opened)
    except RuntimeError as error:  # of PyTorch's archive writer, which does not say what the system said
        raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
    said = {**mark, "beside": {kind: list(names) for kind, names in (beside or {}).items()}}
    line = json.dumps({**said, "sha256": _checksum(file, file.stat().st_size, said)}, sort_keys=True).encode()
    with file.open("ab") as end:
        end.write(line + len(line).to_bytes(8, "big") + MAGIC)


def load(file: Path, mark: dict[str, Any]) -> Any:
    """Load a saved value, if no bit of it has changed and its description is the expected one.

    Raises:
        ValueError: the value is damaged, or another one; the message says which.
    """
    said = _said(file)
    if said != {**mark, "beside": said["beside"]}:
        raise ValueError("its sums are those of another run, pass or process")
    return torch.load(file, weights_only=True)


def beside(file: Path) -> dict[str, list[str]]:
    """Names, by kind, that a file of sums says lie beside it; none if it is damaged."""
    try:
        return _said(file)["beside"]
    except (OSError, ValueError):
        return {}


def _said(file: Path) -> dict[str, Any]:
    """The description at the end of a file, if no bit of the file has changed."""
    size, fixed = file.stat().st_size, 8 + len(MAGIC)
    if not size:
        raise ValueError("it is empty")
    with file.open("rb") as opened:
        opened.seek(max(size - fixed, 0))
        end = opened.read()
        length = int.from_bytes(end[:8], "big")
        if end[8:] != MAGIC or length > size - fixed:
            raise ValueError("it is cut off, damaged, or not a file of sums")
        opened.seek(size - fixed - length)
        line = opened.read(length)
    try:
        said = json.loads(line)
        checksum = said.pop("sha256")
        said["beside"] = dict(said["beside"])
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError("it is damaged: its last line has changed since it was written") from None
    if checksum != _checksum(file, size - fixed - length, said):
        raise ValueError("it is damaged: its checksum has changed since it was written")
    return said


def _checksum(file: Path, size: int, said: dict[str, Any]) -> str:
    """SHA-256 of the first bytes of a file, and of its description."""
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    with file.open("rb") as opened:
        while size > 0 and (piece := opened.read(min(CHUNK, size))):
            digest.update(piece)
            size -= len(piece)
    return digest.hexdigest()


def size(value: Any) -> int:
    """Bytes of all tensors in it."""
    return sum(leaf.numel() * leaf.element_size() for leaf in _leaves(value) if isinstance(leaf, Tensor))


def fingerprint(*values: Any) -> list[Any]:
    """A few numbers for each tensor, and every other value, by which two computations of the same values are compared.

    A tensor has its shape, its type, its norm, its products with two fixed vectors of normal variates, and its number
    of NaN values. A change of all of its values by a share d moves the products by about d times the norm.
    """
    return [_of_tensor(leaf) if isinstance(leaf, Tensor) else leaf for leaf in _leaves(values)]


def alike(one: Sequence[Any], other: Sequence[Any], rounding: float) -> bool:
    """Whether two fingerprints are of the same computation, up to the rounding of additions in another order.

    Numbers may differ by this share of their tensor's norm, and counts by 1e-2, since a value at the border of a bin
    may fall into the next. Sums of all layers in one tensor hide a small layer behind large ones, so each layer must
    have a tensor of its own.
    """
    return len(one) == len(other) and all(_alike(a, b, rounding) for a, b in zip(one, other))


def _alike(one: Any, other: Any, rounding: float) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        if one[:3] != other[:3]:  # shape, type, NaN
            return False
        floating = getattr(torch, one[1]).is_floating_point
        share = rounding if floating else max(rounding, 1e-2)
        bound = share * max(abs(one[3]), abs(other[3]))
        return all(a == b or abs(a - b) <= bound for a, b in zip(one[3:], other[3:]))
    if isinstance(one, float) and isinstance(other, float):
        return one == other or math.isclose(one, other, rel_tol=rounding) or (math.isnan(one) and math.isnan(other))
    return one == other


def _leaves(value: Any) -> Iterator[Any]:
    """Tensors, numbers and texts in a value, in the order in which it holds them."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _leaves(item)
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield len(value)
        for item in sorted(value, key=str) if isinstance(value, (set, frozenset)) else value:
            yield from _leaves(item)
    elif isinstance(value, Tensor) or value is None or isinstance(value, bool | int | float | str):
        yield value
    elif hasattr(value, "__dict__"):
        yield type(value).__name__
        yield from _leaves(vars(value))
    else:
        yield str(value)


def _of_tensor(tensor: Tensor) -> list[Any]:
    values = tensor.detach().flatten()
    norm, first, second, missing = 0.0, 0.0, 0.0, 0
    for number, piece in enumerate(values.split(CHUNK) if len(values) else ()):
        piece = piece.cpu().double()
        missing += int(piece.isnan().sum())
        piece = piece.nan_to_num(0.0, 0.0, 0.0)
        one, two = _vectors()[:, : len(piece)]
        turn = 1 + number % 7 / 7  # so that two pieces that change places are seen
        norm += float(piece @ piece)
        first += turn * float(piece @ one)
        second += turn * float(piece @ two)
    return [list(tensor.shape), str(tensor.dtype).removeprefix("torch."), missing, math.sqrt(norm), first, second]


@functools.cache
def _vectors() -> Tensor:
    return torch.randn(2, CHUNK, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
