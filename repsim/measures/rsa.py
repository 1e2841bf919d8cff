r"""Representational similarity analysis (RSA): do two representations find the same pairs of images unlike?

With d_ik the dissimilarity of the features of images i and k in one representation and e_ik in the other,

.. math:: \mathrm{RSA} = \operatorname{corr}_{i < k} (d_{ik}, e_{ik})

by Pearson or Spearman. Over minibatches it is the mean of the correlations within each of them.

Reference: Kriegeskorte, Mur & Bandettini (2008), "Representational similarity analysis"; Nili et al. (2014).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from repsim.errors import one_of
from repsim.measures import bounds
from repsim.measures.features import centred, finite, same_images, scaled
from repsim.measures.inputs import real_images
from repsim.measures.neighbours import squared_distances
from repsim.measures.running import kept

Correlation = Literal["pearson", "spearman"]
Dissimilarity = Literal["correlation", "euclidean"]


def rsa(
    x: Any, y: Any, correlation: Correlation = "spearman", *, dissimilarity: Dissimilarity = "correlation"
) -> float:
    """Correlation of the dissimilarities of all pairs of images in two representations, in float64.

    1 for the same representation, about 0 for unrelated ones, from -1 to 1. It does not depend on the scale of either;
    with `correlation` it does on rotation and translation, for the mean over features is taken from each image. With
    `euclidean` it does not. Invertible linear maps change it.

    Args:
        x: (n, ...) features of n >= 4 images; all axes but the first are flattened.
        y: (n, ...) features of the same images in the same order.
        correlation: `pearson`, or `spearman` (ranks; of equal dissimilarities their mean rank).
        dissimilarity: 1 - Pearson's correlation of the features of two images, or their Euclidean distance.

    Returns:
        NaN where it is undefined: all pairs of images are as unlike, or, of `correlation`, the features of an image
        are one number (as they always are where there is one feature).

    Raises:
        UsageError: different numbers of images, or fewer than 4; no dense real numbers; an unknown word.
        RepsimError: NaN or infinite features.

    >>> x = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    >>> round(rsa(x, 3 * x), 6)
    1.0
    """
    x, y = same_images(x, y, "rsa")
    a, b = (
        rsa_row(finite(features, "rsa", name), correlation, dissimilarity=dissimilarity)
        for features, name in ((x, "x"), (y, "y"))
    )
    return (a @ b).item()


def rsa_row(
    x: Tensor, correlation: Correlation = "spearman", *, dissimilarity: Dissimilarity = "correlation"
) -> Tensor:
    """(n(n-1)/2,) float64 of one batch's features (n, p): rows' inner products are correlations.

    Dissimilarities, or their ranks, less their mean and over their norm; NaN where that is undefined (`rsa`), or where
    features are not finite.
    """
    if correlation not in ("pearson", "spearman"):
        raise one_of("correlation", str(correlation), ("pearson", "spearman"))
    if dissimilarity not in ("correlation", "euclidean"):
        raise one_of("dissimilarity", str(dissimilarity), ("correlation", "euclidean"))
    x = real_images(x, "x", measure="rsa").flatten(1)
    if not torch.isfinite(x).all():
        return torch.full((len(x) * (len(x) - 1) // 2,), torch.nan, dtype=torch.float64, device=x.device)
    values = (correlation_distances if dissimilarity == "correlation" else euclidean_distances)(x)
    size = values.abs().max()
    values = values - values.mean()
    # Distances are known to a few eps of the largest, or of 1.
    if not values.abs().max() > bounds.ZERO * bounds.eps_of(x.dtype) * size:
        return torch.full_like(values, torch.nan)
    if correlation == "spearman":
        values = ranks(values)
        values -= values.mean()
    return values / torch.linalg.vector_norm(values)


def correlation_distances(x: Tensor) -> Tensor:
    """(n(n-1)/2,) 1 - Pearson's correlation of the features (p) of each two images; NaN where one's do not vary."""
    z = centred(x.mT).mT  # over features
    squares = z.square().sum(1)
    known = bounds.varies(squares, scaled(x)[:, 0].abs(), x.shape[1], bounds.eps_of(x.dtype))
    z = z / torch.where(known, squares, torch.nan).sqrt()[:, None]
    return _above(1 - z @ z.mT)


def euclidean_distances(x: Tensor) -> Tensor:
    """(n(n-1)/2,) Euclidean distances of the features of each two images."""
    return _above(squared_distances(scaled(x).to(x.dtype) if x.dtype == torch.float64 else x)).sqrt()


def _above(square: Tensor) -> Tensor:
    """The entries above the diagonal, row by row."""
    return square[torch.ones_like(square, dtype=torch.bool).triu_(1)]


def ranks(values: Tensor) -> Tensor:
    """(..., m) float64 ranks along the last axis, from 1; those of equal values are their mean.

    >>> ranks(torch.tensor([[3.0, 1.0, 3.0]])).tolist()
    [[2.5, 1.0, 2.5]]
    """
    ordered, order = values.sort()
    places = torch.arange(1, values.shape[-1] + 1, device=values.device).expand_as(order)
    differs = ordered[..., 1:] != ordered[..., :-1]
    if differs.all():
        mean = places.double()
    else:  # runs of equal values: from the last place at which one begins to the first at which one ends
        edge = differs.new_ones(*differs.shape[:-1], 1)
        first = torch.where(torch.cat([edge, differs], -1), places, 0).cummax(-1).values
        last = torch.where(torch.cat([differs, edge], -1), places, places.shape[-1]).flip(-1).cummin(-1).values.flip(-1)
        mean = (first + last).double() / 2
    return torch.empty_like(mean).scatter_(-1, order, mean)


@kept
def correlations(mean: Tensor) -> Tensor:
    """(N, N) mean over batches of the correlations -> themselves, the same on both sides to the last bit."""
    return (mean + mean.T) / 2
