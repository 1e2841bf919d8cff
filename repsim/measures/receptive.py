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

from repsim.errors import UsageError
from repsim.measures import bounds
from repsim.measures.inputs import classes_of, tensor, whole


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
    if not all(isinstance(each, Tensor) and each.requires_grad for each in (z, images)) or z.ndim != 2:
        raise UsageError("centre_gradients needs tensors: z (n, d) computed from images, which require their gradient")
    channels = classes_of(channels, len(channels), classes=z.shape[1], what="channels")
    at_once = whole(at_once, "at_once")
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
    """Numbers that describe the receptive field of one layer."""

    radius50_px: float
    radius95_px: float
    """Distance from the centre within which half, and 95 %, of the mass lies."""
    centre_share: float
    """Share of the mass on the centre's own patch (or cell of the map)."""


def _grid(grid: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    if not isinstance(grid, (tuple, list)) or len(grid) != 2:
        raise UsageError("grid must be (rows, columns)")
    rows, columns = whole(grid[0], "rows of the grid"), whole(grid[1], "columns of the grid")
    if rows > height or columns > width:
        raise UsageError(f"a grid of {rows} x {columns} is finer than the field, {height} x {width}")
    return rows, columns


def field_statistics(field: Tensor, grid: tuple[int, int]) -> FieldStatistics:
    """Radii and centre share of a receptive field.

    Args:
        field: (h, w), not negative.
        grid: (rows, columns) of the map whose centre, cell (rows // 2, columns // 2), was differentiated.

    Returns:
        NaN for a field that is zero everywhere.

    Raises:
        UsageError: a field that is negative or not finite somewhere, or a grid that is finer than it.
    """
    field = tensor(field, "field", "(h, w)")
    height, width = field.shape
    rows, columns = _grid(grid, height, width)
    if not (torch.isfinite(field).all() and (field >= 0).all()):
        raise UsageError("a receptive field must be finite and not negative: take absolute values of gradients")
    cell_h, cell_w = height / rows, width / columns
    row, column = rows // 2, columns // 2
    y = torch.arange(height, dtype=torch.float64) + 0.5 - (row + 0.5) * cell_h
    x = torch.arange(width, dtype=torch.float64) + 0.5 - (column + 0.5) * cell_w
    distance, order = (y[:, None] ** 2 + x[None, :] ** 2).sqrt().flatten().sort()
    mass = field.double().cpu().flatten()
    if not mass.max() > 0:
        return FieldStatistics(torch.nan, torch.nan, torch.nan)
    if not bool(bounds.SMALLEST < mass.max() < bounds.LARGEST):
        mass = mass / mass.max()  # shares do not depend on scale; sums may overflow
    within = (mass[order] / mass.sum()).cumsum(0)
    radius = [distance[int((within < share).sum().clamp(max=len(within) - 1))].item() for share in (0.5, 0.95)]
    inside = (y.abs() <= cell_h / 2)[:, None] & (x.abs() <= cell_w / 2)[None, :]
    return FieldStatistics(*radius, (mass[inside.flatten()].sum() / mass.sum()).item())
