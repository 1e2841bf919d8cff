r"""Orthogonal Procrustes: how much of one representation lies on the other after the best rotation.

With X (n, p) and Y (n, q) centred and of Frobenius norm 1, padded with zeros to as many features, and Q orthogonal,

.. math:: \max_Q \operatorname{tr}(Q^T X^T Y) = \lVert X^T Y \rVert_* = \cos \theta

the nuclear norm, the sum of singular values: theta is the angular shape distance, a metric.

Reference: Williams, Kunz, Kornblith & Linderman (2021), "Generalized shape metrics on neural representations", eq. 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from repsim.measures.features import centred, finite, left_out, narrow, noise, same_images


def procrustes(x: Any, y: Any) -> float:
    """The cosine of the angular shape distance of two representations of the same images, in float64.

    From 0 to 1, which is for the same representation but for rotation, scale and translation; invertible linear maps
    change it. Unrelated representations do not give 0: the fewer images for each feature, the larger it is.

    Args:
        x: (n, ...) features of n >= 4 images; all axes but the first are flattened.
        y: (n, ...) features of the same images in the same order.

    Returns:
        NaN where x or y is the same for all images.

    Raises:
        UsageError: different numbers of images, or fewer than 4; no dense real numbers.
        RepsimError: NaN or infinite features.

    >>> x = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    >>> round(procrustes(x, 3 * x.flip(1) + 1), 6)
    1.0
    """
    x, y = same_images(x, y, "procrustes")
    return procrustes_values([shape(x), shape(y, "y")], [(0, 1)]).item()


def shape(x: Any, name: str = "x") -> Tensor:
    """(n, min(n, p)) float64: features (n, p) centred, of Frobenius norm 1, NaN where constant."""
    x = finite(x, "procrustes", name)
    z = centred(x)
    size = torch.linalg.matrix_norm(z)
    return narrow(z) / torch.where(size > noise(x), size, torch.nan)


def procrustes_values(shapes: Sequence[Tensor], pairs: Sequence[tuple[int, int]]) -> Tensor:
    """The value of each pair of `shape`, (P,) float64."""
    values = [_nuclear_norm(shapes[i].mT @ shapes[j]) for i, j in pairs]
    return torch.stack(values)


def _nuclear_norm(matrix: Tensor) -> Tensor:
    if matrix.isnan().any():
        return matrix.new_tensor(torch.nan)
    return torch.linalg.svdvals(matrix).sum()


def procrustes_without(shapes: Sequence[Tensor], pairs: Sequence[tuple[int, int]], groups: Tensor) -> Tensor:
    """The values without the images of each of G groups, (G, P), the nuclear norm to first order.

    Without the images of S, with s, t the sums of their rows of X, Y and m left,

        X^T Y  becomes  X^T Y - X_S^T Y_S - s t^T / m = X^T Y - D        (and X^T X, Y^T Y likewise)

    and the nuclear norm, whose gradient is U V^T for X^T Y = U diag(sigma) V^T, loses tr(D^T U V^T).
    """
    groups = groups.to(shapes[0].device)
    left = len(groups) - torch.bincount(groups).double()
    sums = [left_out(groups, x) for x in shapes]
    squares = [1 - left_out(groups, x.square().sum(1)) - s.square().sum(1) / left for x, s in zip(shapes, sums)]
    values = []
    for i, j in pairs:
        product = shapes[i].mT @ shapes[j]
        if product.isnan().any():
            values.append(torch.full_like(left, torch.nan))
            continue
        u, sigma, vt = torch.linalg.svd(product, full_matrices=False)
        gradient = u @ vt
        decrease = left_out(groups, (shapes[i] @ gradient * shapes[j]).sum(1))
        decrease += (sums[i] @ gradient * sums[j]).sum(1) / left
        values.append((sigma.sum() - decrease) / (squares[i] * squares[j]).sqrt())
    return torch.stack(values, 1)
