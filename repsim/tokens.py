"""Which part of an activation stands for an image: all of it, the CLS token, the grid, its mean."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from repsim.errors import UsageError

Tokens = Literal["all", "cls", "spatial", "pooled"]
Layout = Literal["tokens", "channels_first", "channels_last", "vector"]
TOKENS: tuple[str, ...] = get_args(Tokens)


def select(x: Tensor, tokens: Tokens, *, layout: Layout, prefix: int = 0) -> Tensor:
    """The part of an activation that represents each image.

    Args:
        x: (n, t, d) for layout `tokens`, (n, c, h, w) `channels_first`, (n, h, w, c)
            `channels_last`, (n, d) `vector`.
        tokens: `all`: everything, CLS and other prefix tokens too; `cls`: the first prefix token;
            `spatial`: everything but the prefix tokens; `pooled`: the mean over the spatial tokens
            or positions.
        prefix: how many of the t tokens stand before the grid (CLS, distillation, registers).

    Returns:
        (n, ...): for `cls` and `pooled` (n, d).
    """
    if tokens == "all":
        return x
    if tokens == "cls":
        if layout != "tokens" or prefix == 0:
            raise UsageError("this layer has no CLS token; choose all, spatial or pooled")
        return x[:, 0]
    spatial = x[:, prefix:] if layout == "tokens" else x
    if tokens == "spatial" or layout == "vector":
        return spatial
    return spatial.mean({"tokens": 1, "channels_first": (-2, -1), "channels_last": (1, 2)}[layout])
