r"""Effective receptive fields: how the centre of a feature map depends on the pixels of the input.

For a layer's activation z at the centre position, channel c, and the input image x (channels k):

.. math:: F(y, x) = \operatorname{mean}_{images} \operatorname{mean}_c \operatorname{mean}_k
          \left| \partial z_c / \partial x_{k y x} \right|

The absolute value is taken per channel, before any mean: gradients of a sum over channels cancel
and show something else (`proxy` in the study).

Reference: paper section 4, Figure 6, appendix C; Luo et al. (2016).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def centre_gradients(z: Tensor, images: Tensor, channels: Tensor, *, at_once: int) -> Tensor:
    """|d z_c / d image|, a mean over the channels asked for.

    Args:
        z: (n, d) activations at the centre, each row a function of its own image alone.
        images: (n, k, h, w) with `requires_grad`.
        channels: which of the d channels.
        at_once: channels per batched backward pass; memory grows with it.

    Returns:
        (n, k, h, w).
    """
    total = torch.zeros_like(images)
    for some in channels.split(at_once):
        vectors = torch.zeros(len(some), *z.shape, dtype=z.dtype, device=z.device)
        vectors[torch.arange(len(some)), :, some] = 1
        (gradients,) = torch.autograd.grad(
            z, images, vectors, is_grads_batched=True, retain_graph=True, materialize_grads=True
        )
        total += gradients.abs().sum(0)
    return total / len(channels)


class FieldStatistics(NamedTuple):
    radius50_px: float
    radius95_px: float
    """Distance from the centre within which half, and 95 %, of the mass lies."""
    centre_share: float
    """Share of the mass on the centre's own patch (or cell of the map)."""


def field_statistics(field: Tensor, grid: tuple[int, int]) -> FieldStatistics:
    """Radii and centre share of a receptive field.

    Args:
        field: (h, w), not negative.
        grid: (rows, columns) of the map whose centre, cell (rows // 2, columns // 2), was differentiated.

    Returns:
        NaN for a field that is zero everywhere.
    """
    height, width = field.shape
    rows, columns = grid
    cell_h, cell_w = height / rows, width / columns
    row, column = rows // 2, columns // 2
    y = torch.arange(height, dtype=torch.float64) + 0.5 - (row + 0.5) * cell_h
    x = torch.arange(width, dtype=torch.float64) + 0.5 - (column + 0.5) * cell_w
    distance, order = (y[:, None] ** 2 + x[None, :] ** 2).sqrt().flatten().sort()
    mass = field.double().cpu().flatten()
    if not mass.sum() > 0:
        return FieldStatistics(torch.nan, torch.nan, torch.nan)
    within = (mass[order] / mass.sum()).cumsum(0)
    radius = [distance[int((within < share).sum().clamp(max=len(within) - 1))].item() for share in (0.5, 0.95)]
    inside = (y.abs() <= cell_h / 2)[:, None] & (x.abs() <= cell_w / 2)[None, :]
    return FieldStatistics(*radius, (mass[inside.flatten()].sum() / mass.sum()).item())
