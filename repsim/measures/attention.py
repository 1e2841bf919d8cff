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


def grid_positions(rows: int, columns: int, spacing: float) -> Tensor:
    """Centres of the cells of a grid in pixels, row by row. (rows * columns, 2) float64, (y, x)."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return (torch.stack([y, x], dim=-1).view(-1, 2).double() + 0.5) * spacing


def distances(queries: Tensor, keys: Tensor) -> Tensor:
    """Euclidean distance of each query position (q, 2) to each key position (k, 2). (q, k) in pixels."""
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
        renormalize: divide each row by its sum over the grid's keys.

    >>> eye = torch.eye(4).view(1, 1, 4, 4)
    >>> positions = grid_positions(2, 2, spacing=16)
    >>> head_statistics(eye, distances(positions, positions)).distance_px.item()
    0.0
    """
    rows = attention[:, :, prefix:]
    grid = rows[..., prefix:]
    reach = torch.einsum("nhqk,qk->nhq", grid.float(), distance.to(grid.device, torch.float32)).double()
    if renormalize:
        reach = reach / grid.sum(-1).double()
    nowhere = torch.full(attention.shape[:2], torch.nan, dtype=torch.float64, device=attention.device)
    square = grid.shape[-1] == grid.shape[-2]
    return HeadStatistics(
        distance_px=reach.mean(-1),
        entropy=torch.special.entr(rows.float()).sum(-1).double().mean(-1),
        cls_share=rows[..., 0].double().mean(-1) if cls and prefix else nowhere,
        self_share=grid.diagonal(dim1=-2, dim2=-1).double().mean(-1) if square else nowhere,
    )
