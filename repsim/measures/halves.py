r"""Standard errors by halves, for what a jackknife does not suit: a statistic that jumps, or that is fitted closely.

The groups of images are cut into two halves, a statistic is taken of either, and of halves of n_a and n_b images

.. math:: c = (\theta_a - \theta_b) \sqrt{n_a n_b} / n, \quad E c^2 = \operatorname{var} \theta

for a statistic that is a mean over images; of any other it is the variance at half of the images, halved, whether or
not it is smooth. Several cuts, at right angles to each other as the rows of a Hadamard matrix are, have as many
independent c, and the mean of their squares as many degrees of freedom.

Reference: McCarthy (1969), "Pseudo-replication: half samples"; Shao & Wu (1989), for deleting half where deleting one
fails.
"""

from __future__ import annotations

import torch
from torch import Tensor

CUTS = 8
"""At most: each costs as much as two more values."""


def cuts(groups: Tensor) -> Tensor:
    """(C, G) bool: in which half each of G groups of images (n,) is, in the most even C <= `CUTS` cuts."""
    sizes = torch.bincount(groups).double()
    numbers = torch.arange(len(sizes), device=groups.device)
    width = max(len(sizes) - 1, 0).bit_length()
    bits = (numbers[:, None] >> torch.arange(width, device=groups.device)) & 1
    rows = torch.arange(1, 2**width, device=groups.device)
    chosen = (rows[:, None] >> torch.arange(width, device=groups.device)) & 1
    signs = (chosen @ bits.T) % 2 == 1
    uneven = (signs.double() @ sizes - sizes.sum() / 2).abs()
    signs = signs[uneven.argsort(stable=True)[:CUTS]]
    return signs[signs.any(1) & ~signs.all(1)]


def as_left_out(values: Tensor, halves: Tensor, signs: Tensor, groups: Tensor) -> Tensor:
    """(G, P) numbers that a jackknife over groups makes the same standard errors, and covariances, of.

    Args:
        values: (P,) of all images.
        halves: (2, C, P) of the half in which `signs` are true, and of the other.
        signs: (C, G) of `cuts`.
        groups: (n,) of each image.
    """
    if not len(signs):
        return torch.full((signs.shape[1], len(values)), torch.nan).to(values)
    share = signs.double() @ torch.bincount(groups, minlength=signs.shape[1]).double() / len(groups)
    apart = (halves[0] - halves[1]) * (share * (1 - share)).sqrt()[:, None]
    differences = (2 * signs.double() - 1).T @ apart
    differences = differences - differences.mean(0)
    count = len(differences)
    variance = (count - 1) / count * differences.square().sum(0)
    scale = apart.square().mean(0) / torch.where(variance > 0, variance, 1)
    return values - differences * scale.sqrt()
