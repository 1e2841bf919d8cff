"""Which part of an activation stands for an image: all of it, the CLS token, the grid, its mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from repsim.errors import UsageError, one_of

Tokens = Literal["all", "cls", "spatial", "pooled"]
Layout = Literal["tokens", "channels_first", "channels_last", "vector", "windows", "other"]
TOKENS: tuple[str, ...] = get_args(Tokens)


def one_of_tokens(tokens: str) -> None:
    """Raise `UsageError` for an unknown choice of tokens."""
    if tokens not in TOKENS:
        raise one_of("choice of tokens", tokens, TOKENS)


def first_tensor(value: Any) -> Tensor | None:
    """The tensor itself, or the first one in a tuple, list or dictionary; None if there is none."""
    if isinstance(value, Tensor):
        return value
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return next((t for t in map(first_tensor, values) if t is not None), None)


@dataclass(frozen=True, eq=False, kw_only=True)
class Reading:
    """Reading of an activation: the axis of its images, and the meaning of its other axes."""

    shape: tuple[int, ...]
    """Shape of the activation of one image."""
    batch_axis: int
    before: int = 1
    fold: int = 1
    """The axis of the images holds (before, images, fold): windows of an image one after another, views of a batch."""
    channels: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    """Axes of `shape`; axes of unknown meaning are in neither."""
    order: tuple[int, ...] | None = None
    """Numbers of the tokens along the positions, first the prefix, then the grid row by row; None: they are in this
    order."""
    prefix: int = 0
    """Tokens before the grid: CLS, distillation, registers."""
    names: tuple[str, ...] = ()
    """The kind of each token in the prefix: `cls`, `distillation`, `register`, or `token` where it is not known."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the tokens after the prefix, or of a map; None where they make no grid in the image."""
    unknown: str = ""
    """The reason why `spatial` and `pooled` are not possible; empty: they are."""

    @property
    def numel(self) -> int:
        """Number of entries for each image."""
        return math.prod(self.shape)

    @property
    def layout(self) -> Layout:
        """The kind of its axes.

        `tokens` (t, d), `channels_first` (d, h, w), `channels_last` (h, w, d), `vector` (d), `windows` (w, t, d) and
        the like; `other` where axes are not known.
        """
        dims = len(self.shape)
        if dims == 1:
            return "vector"
        if self.unknown or len(self.channels) + len(self.positions) != dims:
            return "other"
        if dims == 2:
            return "tokens"
        if dims == 3 and self.order is None and self.prefix == 0:
            sizes = tuple(self.shape[axis] for axis in self.positions)
            if self.grid in (sizes, None) and self.channels in ((0,), (2,)):
                return "channels_first" if self.channels == (0,) else "channels_last"
        return "windows"

    @property
    def is_tokens(self) -> bool:
        """Whether it is a full grid in the image, or a row of tokens none of which is in the image."""
        only_prefix = self.prefix > 0 and self.prefix == math.prod(self.shape[axis] for axis in self.positions)
        return self.grid is not None or (only_prefix and not self.unknown)

    @property
    def cls(self) -> bool:
        """Whether the first token is a CLS token."""
        return bool(self.names) and self.names[0] == "cls"

    @property
    def width(self) -> int:
        """Channels of a token or position."""
        return math.prod(self.shape[axis] for axis in self.channels)

    def read(self, activation: Any) -> Tensor:
        """The activation with images on the first axis, (n, *shape), whatever the module returned."""
        tensor = first_tensor(activation)
        if tensor is None:
            raise TypeError(f"there is no tensor in {type(activation).__name__}")
        return images_first(tensor, self.batch_axis, self.before, self.fold)

    def select(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Select the part that stands for each image, (n, ...), from the result of `read`.

        Args:
            tokens: `all`: everything, tokens before the grid too; `cls`: the CLS token, (n, d); `spatial`: all but the
                tokens before the grid; `pooled`: the mean over those, (n, d). A vector is what it is.
        """
        if tokens == "all" or len(self.shape) == 1:
            return x
        if tokens == "cls":
            if not self.cls:
                raise UsageError("this layer has no CLS token; choose all, spatial or pooled")
            return self.tokens(x)[:, 0]
        if self.unknown:
            raise UsageError(self.unknown)
        if not self.prefix:
            if tokens == "spatial":
                return x
            pooled = x.mean([axis + 1 for axis in self.positions])
            return pooled.flatten(1) if self.channels else pooled[:, None]
        spatial = self.tokens(x)[:, self.prefix :]
        return spatial if tokens == "spatial" else spatial.mean(1)

    def selected(self, tokens: Tokens) -> Reading:
        """The reading of the result of `select`, which has the images on its first axis."""
        whole = replace(_plain(self), batch_axis=0, before=1, fold=1)
        if tokens == "all" or len(self.shape) == 1 or (tokens == "spatial" and not self.prefix):
            return whole
        vector = replace(whole, shape=(self.width,), channels=(0,), positions=(), order=None, prefix=0, names=())
        if tokens == "cls":
            return replace(vector, prefix=1, names=("cls",), grid=None)
        if tokens == "pooled":
            return replace(vector, grid=None)
        count = math.prod(self.shape[axis] for axis in self.positions) if self.order is None else len(self.order)
        return replace(vector, shape=(count - self.prefix, self.width), channels=(1,), positions=(0,), grid=self.grid)

    def tokens(self, x: Tensor) -> Tensor:
        """(n, t, d): the tokens in the result of `read`, prefix first, then the grid by rows; a vector is one token."""
        if len(self.shape) == 1:
            return x[:, None]
        if self.unknown:
            raise UsageError(self.unknown)
        axes = [0, *(axis + 1 for axis in (*self.positions, *self.channels))]
        last = len(self.positions)
        x = x.permute(axes)
        x = x.flatten(1, last) if last else x[:, None]
        x = x.flatten(2) if self.channels else x[..., None]
        return x if self.order is None else x[:, self._order]

    @cached_property
    def _order(self) -> Tensor:
        return torch.tensor(self.order)


def _plain(reading: Reading) -> Reading:
    """The plain reading in an object of a subclass, such as a layer."""
    return Reading(**{field_.name: getattr(reading, field_.name) for field_ in fields(Reading)})


def images_first(x: Tensor, axis: int, before: int, fold: int) -> Tensor:
    """An axis that holds (before, images, fold) taken apart: (n, *what comes before it, before, fold, the rest).

    Axes of size 1 that come of it are left out.
    """
    if before == fold == 1:
        return x.movedim(axis, 0) if axis else x
    x = x.unflatten(axis, (before, -1, fold))
    x = x.movedim(axis + 1, 0)  # (n, ..., before, fold, ...)
    if fold == 1:
        x = x.squeeze(axis + 2)
    return x.squeeze(axis + 1) if before == 1 else x


def known_by_name(parameters: Sequence[str]) -> str:
    """The kind of a token that comes from parameters of these names: `cls`, `distillation`, `register`, or `token`."""
    last = [name.lower() for name in parameters]
    for kind, parts in (("register", ("reg", "storage")), ("distillation", ("dist",)), ("cls", ("cls", "class"))):
        if any(part in name.rpartition(".")[2] for part in parts for name in last):
            return kind
    return "token"
