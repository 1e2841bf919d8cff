r"""How well one representation predicts another linearly: cross-validated ridge regression, as brain scores are made.

Images are cut into 5 folds. With X, Y less their means over the images of the other four,

.. math:: B = (X^T X + \lambda I)^{-1} X^T Y, \quad
          R^2 = 1 - \sum_i \lVert y_i - B^T x_i \rVert^2 / \sum_i \lVert y_i \rVert^2

with sums over the images of all folds, each predicted by what was fitted without it, and over all features of Y. The
strength lambda is chosen within these four, one for all features of Y, by generalised cross-validation: the one with
the smallest squared error over (m - df)^2, for m images and df = 1 + tr X (X^T X + lambda I)^-1 X^T degrees of
freedom. Features are not standardised, so that rotations do not matter; strengths are multiples of the trace of X^T X.

Reference: Golub, Heath & Wahba (1979), "Generalized cross-validation"; Yamins et al. (2014); Kornblith et al. (2019),
section 3.1, for R^2 pooled over features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from repsim.measures.features import centred, finite, left_out, narrow, noise, same_images

FOLDS = 5
STRENGTHS = tuple(2.0**k for k in range(-30, 11))
"""Strengths of the ridge that are tried, times the trace of X^T X."""
FEWEST = 2 * FOLDS
"""Images."""


class Fold(NamedTuple):
    """X^T X = V diag(lambda) V^T over the images of all other folds."""

    inside: Tensor
    """The positions of its images."""
    sums: Tensor
    """The sum of their features, (d,)."""
    eigenvalues: Tensor
    vectors: Tensor
    """V, (d, d)."""


class Predictor(NamedTuple):
    """Features centred over all images, (n, d) float64 with d <= n, and what fits on each fold's others need."""

    x: Tensor
    folds: list[Fold]
    """None, where features are constant."""


def linear_r2(x: Any, y: Any, *, seed: int = 0) -> float:
    """Cross-validated R^2 of y predicted from x by ridge regression, in float64: not symmetric.

    1 where y is a linear map of x, if images are more than features; about 0 where x says nothing of y, or less than 0
    where it misleads. It does not
    depend on rotation, scale and translation of either; invertible linear maps change what is large and so is shrunk
    little. It depends on the order of images as far as it does on which images are a fold.

    Args:
        x: (n, ...) features of n >= 10 images that predict; all axes but the first are flattened.
        y: (n, ...) features of the same images in the same order that are predicted.
        seed: of the folds.

    Returns:
        At most 1. NaN where x or y is the same for all images.

    Raises:
        UsageError: different numbers of images, or fewer than 10; no dense real numbers.
        RepsimError: NaN or infinite features.

    >>> x = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    >>> round(linear_r2(x, x[:, :5].cumsum(1)), 4)
    1.0
    """
    x, y = same_images(x, y, "linear_r2")
    return r2_values([predictor(x, seed=seed), predictor(y, "y", seed=seed)], [(0, 1)]).item()


def predictor(x: Any, name: str = "x", *, seed: int = 0) -> Predictor:
    """Of features (n, ...), n >= 10; `linear_r2` has the errors."""
    x = finite(x, "linear_r2", name, FEWEST)
    z = centred(x)
    if not torch.linalg.matrix_norm(z) > noise(x):
        return Predictor(z, [])
    z = narrow(z)
    n = len(z)
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(z.device)
    gram, folds = z.mT @ z, list[Fold]()
    for inside in shuffled.tensor_split(FOLDS):
        own = z[inside]
        total = own.sum(0)
        rest = gram - own.mT @ own - torch.outer(total, total) / (n - len(inside))  # those of the others sum to -total
        eigenvalues, vectors = torch.linalg.eigh(rest)
        folds.append(Fold(inside, total, eigenvalues.clamp(min=0), vectors))
    return Predictor(z, folds)


def squared_errors(a: Predictor, b: Predictor) -> tuple[Tensor, Tensor]:
    """|y_i - B^T x_i|^2 and |y_i|^2 of each image, (n,), predicted from `a` without the images of its fold."""
    n = len(a.x)
    errors, squares = (torch.full((n,), torch.nan, dtype=torch.float64, device=a.x.device) for _ in range(2))
    if not (a.folds and b.folds):
        return errors, squares
    products = [a.x[fold.inside].mT @ b.x[fold.inside] for fold in a.folds]
    whole, of_y = sum(products), b.x.square().sum()
    for fold, product, other in zip(a.folds, products, b.folds):
        m = n - len(fold.inside)
        along = fold.vectors.mT @ (whole - product - torch.outer(fold.sums, other.sums) / m)
        y = b.x[fold.inside]
        left = of_y - y.square().sum() - other.sums.square().sum() / m
        shrunk = 1 / (fold.eigenvalues + _strength(fold, along, left, m))
        y = y + other.sums / m
        predicted = (a.x[fold.inside] + fold.sums / m) @ (fold.vectors @ (along * shrunk[:, None]))
        errors[fold.inside], squares[fold.inside] = (y - predicted).square().sum(1), y.square().sum(1)
    return errors, squares


def _strength(fold: Fold, along: Tensor, squares: Tensor, m: int) -> Tensor:
    """The strength with the smallest generalised cross-validation error, for V^T X^T Y `along` and |Y|^2 `squares`."""
    strengths = fold.eigenvalues.sum() * torch.tensor(STRENGTHS).to(along)
    shrunk = 1 / (fold.eigenvalues + strengths[:, None])  # (strengths, d)
    kept = fold.eigenvalues * shrunk
    error = squares - (shrunk * (2 - kept)) @ along.square().sum(1)
    return strengths[(error.clamp(min=0) / (m - 1 - kept.sum(1)).square()).argmin()]


def r2_values(prepared: Sequence[Predictor], pairs: Sequence[tuple[int, int]]) -> Tensor:
    """R^2 of the second of each pair of `predictor` predicted from the first, (P,) float64."""
    parts = [squared_errors(prepared[i], prepared[j]) for i, j in pairs]
    return torch.stack([1 - errors.sum() / squares.sum() for errors, squares in parts])


def r2_without(prepared: Sequence[Predictor], pairs: Sequence[tuple[int, int]], groups: Tensor) -> Tensor:
    """R^2 without the images of each of G groups among those predicted, (G, P).

    What was fitted on them stays: near its minimum, an error changes to second order only with the fit.
    """
    values = []
    for i, j in pairs:
        errors, squares = squared_errors(prepared[i], prepared[j])
        values.append(1 - (errors.sum() - left_out(groups, errors)) / (squares.sum() - left_out(groups, squares)))
    return torch.stack(values, 1)
