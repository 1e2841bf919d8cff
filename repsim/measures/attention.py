r"""How far attention reaches: mean attention distance in pixels, and what else a head attends to.

For head h with attention A (queries x keys, each row summing to 1), tokens i and j of the grid, and
d(i, j) the distance in pixels between the centres of their patches:

.. math:: D_h = \operatorname{mean}_{i} \sum_j A_{ij}\, d(i, j)

averaged over images. CLS and other prefix tokens are taken out of queries and keys, and rows are not
renormalised, so attention spent on CLS counts as distance 0 (`renormalize` changes that).

Reference: paper section 4 and Figure 3; Dosovitskiy et al. (2021), appendix D.7.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from repsim.errors import UsageError
from repsim.measures.inputs import tensor, whole


def grid_positions(rows: int, columns: int, spacing: float) -> Tensor:
    """Centres of the cells of a grid in pixels, row by row. (rows * columns, 2) float64, (y, x)."""
    rows, columns = whole(rows, "rows"), whole(columns, "columns")
    spacing = tensor(spacing, "spacing", "()").item()
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return (torch.stack([y, x], dim=-1).view(-1, 2).double() + 0.5) * spacing


def distances(queries: Tensor, keys: Tensor) -> Tensor:
    """Euclidean distance of each query position (q, 2) to each key position (k, 2). (q, k) in pixels."""
    queries, keys = tensor(queries, "queries", "(q, 2)"), tensor(keys, "keys", "(k, 2)")
    if queries.shape[1] != 2 or keys.shape[1] != 2:
        shapes = f"{tuple(queries.shape)} and {tuple(keys.shape)}"
        raise UsageError(f"distances needs positions (q, 2) and (k, 2), (y, x) each, got {shapes}")
    return torch.linalg.vector_norm(queries[:, None] - keys[None, :], dim=-1)


class HeadStatistics(NamedTuple):
    """What one batch of attention says of each head; all (n, h) float64, a mean over the grid's queries."""

    distance_px: Tensor
    entropy: Tensor
    """In nats, over all keys: 0 for one key, log(k) for uniform attention."""
    cls_share: Tensor
    """Attention on the first prefix token; NaN where there is none."""
    self_share: Tensor
    """Attention on the query's own token; NaN where keys are not the queries' tokens."""


def head_statistics(
    attention: Tensor, distance: Tensor, *, prefix: int = 0, cls: bool = False, renormalize: bool = False
) -> HeadStatistics:
    """Distance, entropy and shares of each image's attention heads.

    Args:
        attention: (n, h, prefix + q, prefix + k), rows summing to 1.
        distance: (q, k) in pixels between grid positions.
        prefix: tokens before the grid, among queries and keys alike.
        cls: whether the first of them is a CLS token.
        renormalize: divide each row by its sum over the grid's keys; NaN where a row has nothing on them.

    Raises:
        UsageError: shapes that do not fit, or what are no weights: not finite, negative, or beyond 1 in sum.

    >>> eye = torch.eye(4).view(1, 1, 4, 4)
    >>> positions = grid_positions(2, 2, spacing=16)
    >>> head_statistics(eye, distances(positions, positions)).distance_px.item()
    0.0
    """
    attention, distance = tensor(attention, "attention", "(n, h, q, k)"), tensor(distance, "distance", "(q, k)")
    q, k = attention.shape[-2:]
    prefix = whole(prefix, "prefix", 0)
    if tuple(distance.shape) != (q - prefix, k - prefix) or not distance.numel():
        raise UsageError(
            f"head_statistics needs the distance of {q - prefix} queries to {k - prefix} keys of the grid, those after "
            f"{prefix} before it, got distance {tuple(distance.shape)} for attention {tuple(attention.shape)}"
        )
    _check_weights(attention)
    return windowed_head_statistics(
        attention.unsqueeze(2),
        torch.nn.functional.pad(distance, (prefix, 0, prefix, 0))[None],
        queries=(torch.arange(q) >= prefix)[None],
        keys=(torch.arange(k) >= prefix)[None],
        cls=0 if cls and prefix else None,
        own=torch.arange(q)[None] if q == k else None,
        renormalize=renormalize,
    )


def _check_weights(attention: Tensor) -> None:
    if not (torch.isfinite(attention).all() and (attention >= 0).all()):
        raise UsageError("attention must be finite and not negative; pass weights after the softmax")
    most = attention.sum(-1, dtype=torch.float64).max().item() if attention.numel() else 0.0
    if most > 1.01:  # weights of 16 bits are off by up to 0.4 %
        raise UsageError(f"each row of attention must sum to 1, or less where keys were taken out, got {most:.4g}")


def windowed_head_statistics(
    attention: Tensor,
    distances: Tensor,
    *,
    queries: Tensor,
    keys: Tensor,
    cls: int | None = None,
    own: Tensor | None = None,
    renormalize: bool = False,
) -> HeadStatistics:
    """The same of attention within windows: means over the queries of all windows that are in the image.

    Args:
        attention: (n, h, w, q, k) of w windows (one, if every token sees the whole grid), rows summing to 1.
        distances: (w, q, k) in pixels.
        queries, keys: (w, q) and (w, k), which are in the image. What goes to other keys counts as distance 0.
        cls: which key is the CLS token.
        own: (w, q) which key is the query's own token.
        renormalize: divide each row by its sum over the keys that are in the image.
    """
    attention = tensor(attention, "attention", "(n, h, w, q, k)")
    attention = attention if attention.dtype == torch.float64 else attention.float()
    device = attention.device
    inside, count = queries.to(device), int(queries.sum())
    key_distances = torch.where(keys[:, None], distances, 0.0).to(device, attention.dtype)
    mean_distance = torch.einsum("nhwqk,wqk->nhwq", attention, key_distances).double()
    if renormalize:
        mean_distance = mean_distance / torch.einsum(
            "nhwqk,wk->nhwq", attention.double(), keys.to(device, torch.float64)
        )
    undefined = torch.full(attention.shape[:2], torch.nan, dtype=torch.float64, device=device)

    def mean(values: Tensor) -> Tensor:
        return torch.where(inside, values, 0.0).sum((-2, -1)) / count

    to_itself = None if own is None else own.to(device).expand(attention.shape[:-1]).unsqueeze(-1)
    return HeadStatistics(
        distance_px=mean(mean_distance),
        entropy=mean(torch.special.entr(attention).sum(-1).double()),
        cls_share=undefined if cls is None else mean(attention[..., cls].double()),
        self_share=undefined if to_itself is None else mean(attention.gather(-1, to_itself)[..., 0].double()),
    )
