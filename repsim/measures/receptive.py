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
    if not all(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in (z, images)) or z.ndim != 2:
        raise UsageError(
            "centre_gradients needs tensors: z (n, d) computed from images, which require their gradient; if the "
            "network has gradient checkpointing of the older, reentrant kind, switch that off"
        )
    channels = classes_of(channels, len(channels), classes=z.shape[1], name="channels")
    at_once = whole(at_once, "at_once")
    total = torch.zeros_like(images)
    for chunk in channels.split(at_once):
        vectors = torch.zeros(len(chunk), *z.shape, dtype=z.dtype, device=z.device)
        vectors[torch.arange(len(chunk)), :, chunk] = 1
        (gradients,) = torch.autograd.grad(
            z, images, vectors, is_grads_batched=True, retain_graph=True, materialize_grads=True
        )
        total += gradients.abs().sum(0)
    return total / len(channels)


class FieldStatistics(NamedTuple):
    """Numbers that describe the receptive field of one layer."""

    radius50_px: float
    radius95_px: float
    """Distance from the centre within which half, and 95 %, of the mass lies, linear between distances of pixels."""
    centre_share: float
    """Share of the mass on the centre's own patch (or cell of the map)."""


class Rings:
    """The mass of fields by its distance from a centre: what their radii and centre share are made of.

    Args:
        height, width: of the fields.
        grid: (rows, columns) of the map whose centre, cell (rows // 2, columns // 2), was differentiated.

    Attributes:
        distances: (r,) float64 from the centre, each once, growing: pixels at the same distance are a ring.

    Raises:
        UsageError: the grid is finer than the field.
    """

    def __init__(self, height: int, width: int, grid: tuple[int, int]) -> None:
        rows, columns = _grid(grid, height, width)
        y, x = (
            torch.arange(side, dtype=torch.float64) + 0.5 - (count // 2 + 0.5) * side / count
            for side, count in ((height, rows), (width, columns))
        )
        exact = (y[:, None] ** 2 + x[None, :] ** 2).sqrt().flatten()
        self.distances, self._ring = exact.round(decimals=9).unique(return_inverse=True)
        inside = (y.abs() <= height / rows / 2)[:, None] & (x.abs() <= width / columns / 2)[None, :]
        self._inside = inside.flatten()

    def masses(self, fields: Tensor) -> Tensor:
        """(..., r + 1) float64, on the CPU, of fields (..., h, w): the mass of every ring, and on the own patch."""
        flat = fields.double().cpu().flatten(-2)
        masses = flat.new_zeros(*flat.shape[:-1], len(self.distances) + 1)
        masses[..., :-1].index_add_(-1, self._ring, flat)
        masses[..., -1] = flat[..., self._inside].sum(-1)
        return masses

    def statistics(self, masses: Tensor) -> Tensor:
        """(..., 3) radii of half and of 95 %, and centre share; NaN where there is no mass. See `FieldStatistics`."""
        rings, own = masses[..., :-1], masses[..., -1:]
        total = rings.sum(-1, keepdim=True)
        within = rings.cumsum(-1) / torch.where(total > 0, total, torch.nan)
        shares = within.new_tensor([0.5, 0.95]).expand(*within.shape[:-1], 2).contiguous()
        outer = torch.searchsorted(within.contiguous(), shares).clamp(max=len(self.distances) - 1)
        inner = (outer - 1).clamp(min=0)
        high, low = within.gather(-1, outer), within.gather(-1, inner)
        part = ((shares - low) / torch.where(high > low, high - low, 1)).clamp(0, 1)
        near, far = self.distances[inner], self.distances[outer]
        radii = torch.where(total > 0, near + part * (far - near), torch.nan)
        return torch.cat([radii, own / torch.where(total > 0, total, torch.nan)], -1)


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
    rings = Rings(height, width, grid)
    if not (torch.isfinite(field).all() and (field >= 0).all()):
        raise UsageError("a receptive field must be finite and not negative: take absolute values of gradients")
    field, largest = field.double(), field.max()
    if largest > 0 and not bool(bounds.SMALLEST < largest < bounds.LARGEST):
        field = field / largest  # shares do not depend on scale; sums may overflow
    return FieldStatistics(*rings.statistics(rings.masses(field)).tolist())
