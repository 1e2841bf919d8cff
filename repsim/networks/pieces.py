"""A batch that does not fit through a network at once goes in pieces, and their reduced activations are joined.

Quantities of single images (attention, norms) are joined after they were reduced. A Gram needs all images of a
batch: for it the activations of the pieces wait in the computer's memory, and are joined before they are reduced.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from repsim.networks.tokens import first_tensor


class Piece(NamedTuple):
    """The part of a batch that is going through a network: almost always all of it, first and last piece in one."""

    start: int = 0
    """Images of the batch that went before."""
    last: bool = True

    @property
    def first(self) -> bool:
        return self.start == 0

    @property
    def whole(self) -> bool:
        return self.first and self.last


WHOLE = Piece()
_current: ContextVar[Piece] = ContextVar("piece", default=WHOLE)


def piece() -> Piece:
    """The piece that is going through a network."""
    return _current.get()


def in_pieces(run: Callable[[Tensor], Any], inputs: Tensor, size: int) -> Tensor | None:
    """Run a network on a batch, at most `size` images at a time, and join the (first) tensors that it returns."""
    outputs = []
    for start in range(0, len(inputs), size):
        with under_way(Piece(start, start + size >= len(inputs))):
            outputs.append(first_tensor(run(inputs[start : start + size])))
    present = [each for each in outputs if each is not None]
    return torch.cat(present) if len(present) == len(outputs) else None


@contextmanager
def under_way(piece: Piece) -> Iterator[None]:
    """While active, this piece is the one that goes through the network."""
    token = _current.set(piece)
    try:
        yield
    finally:
        _current.reset(token)


def add_piece(seen: dict[Any, Any], name: Hashable, value: Any) -> None:
    """Put the value of a piece behind the values of the pieces before it; within one piece, the last value counts.

    Args:
        value: a tensor with a row for each image, or a named tuple or dictionary of such.
    """
    if not piece().first:
        value = _joined(seen[name], value, piece().start)
    seen[name] = value


def _joined(before: Any, value: Any, start: int) -> Any:
    if isinstance(value, Tensor):
        return torch.cat([before[:start], value])
    if isinstance(value, dict):
        return {key: _joined(before[key], value[key], start) for key in value}
    return type(value)(*(_joined(a, b, start) for a, b in zip(before, value)))
