"""Which part of an activation stands for an image: all of it, the CLS token, the grid, its mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from repsim.errors import UsageError, one_of

Tokens = Literal["all", "cls", "spatial", "pooled"]
Layout = Literal["tokens", "channels_first", "channels_last", "vector", "windows", "other"]
TOKENS: tuple[str, ...] = get_args(Tokens)


def one_of_tokens(tokens: str) -> None:
    """Raise `UsageError` for what is not a choice of tokens."""
    if tokens not in TOKENS:
        raise one_of("choice of tokens", tokens, TOKENS)


def select(x: Tensor, tokens: Tokens, *, layout: Layout, prefix: int = 0) -> Tensor:
    """The part of an activation that represents each image.

    Args:
        x: (n, t, d) for layout `tokens`, (n, c, h, w) `channels_first`, (n, h, w, c)
            `channels_last`, (n, w, t, d) `windows` (w windows of t tokens), (n, d) `vector`,
            (n, ...) `other`, which cannot be pooled.
        tokens: `all`: everything, CLS and other prefix tokens too; `cls`: the first prefix token;
            `spatial`: everything but the prefix tokens; `pooled`: the mean over the spatial tokens
            or positions.
        prefix: how many of the t tokens stand before the grid (CLS, distillation, registers).

    Returns:
        (n, ...): for `cls` and `pooled` (n, d).
    """
    if tokens == "all" or layout == "vector":
        return x
    if tokens == "cls":
        if layout != "tokens" or prefix == 0:
            raise UsageError("this layer has no CLS token; choose all, spatial or pooled")
        return x[:, 0]
    spatial = x[:, prefix:] if layout == "tokens" else x
    if tokens == "spatial":
        return spatial
    if layout == "other":
        raise UsageError(f"this layer, (n, {', '.join(map(str, x.shape[1:]))}), has no known positions to pool over")
    axes = {"tokens": (1,), "channels_first": (2, 3), "channels_last": (1, 2), "windows": (1, 2)}
    return spatial.mean(axes[layout])


def to_tokens(x: Tensor, *, layout: Layout) -> Tensor:
    """An activation as (n, t, d): the positions of a map are its tokens, row by row; a vector is one token."""
    if layout == "channels_first":
        return x.flatten(2).transpose(1, 2)
    if layout == "channels_last":
        return x.flatten(1, 2)
    if layout == "tokens":
        return x
    if layout == "vector":
        return x[:, None]
    raise UsageError(f"this activation, (n, {', '.join(map(str, x.shape[1:]))}), has no known tokens or positions")


def first_tensor(value: Any) -> Tensor | None:
    """The tensor itself, or the first one in a tuple, list or dictionary; None if there is none."""
    if isinstance(value, Tensor):
        return value
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return next((t for t in map(first_tensor, values) if t is not None), None)


@dataclass(frozen=True, eq=False, kw_only=True)
class Reading:
    """How to read an activation: where the images are in it, and what its other axes mean."""

    shape: tuple[int, ...]
    """Shape of the activation of one image."""
    batch_axis: int
    fold: int
    """How many rows of the first axis one image has (windows, say); 1 almost always."""
    layout: Layout
    prefix: int
    """Tokens before the grid: CLS, distillation, registers."""

    @property
    def width(self) -> int:
        """Channels of a token or position."""
        return self.shape[0] if self.layout == "channels_first" else self.shape[-1]

    def read(self, activation: Any) -> Tensor:
        """The activation with images on the first axis, (n, *shape), whatever the module returned."""
        x = first_tensor(activation)
        if self.batch_axis:
            x = x.movedim(self.batch_axis, 0)
        return x.reshape(x.shape[0] // self.fold, *self.shape) if self.fold > 1 else x

    def select(self, activation: Tensor, tokens: Tokens) -> Tensor:
        """The asked-for tokens of what `read` gave."""
        return select(activation, tokens, layout=self.layout, prefix=self.prefix)

    def tokens(self, activation: Tensor) -> Tensor:
        """(n, t, d): the tokens, prefix first, or the positions of a map, of what `read` gave."""
        return to_tokens(activation, layout=self.layout)
