"""Which part of an activation stands for an image: all of it, the CLS token, the grid, its mean."""

from __future__ import annotations

from typing import Literal, get_args

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
