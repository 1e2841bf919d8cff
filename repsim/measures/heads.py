r"""Whether heads that look farther resemble something else less: windows of heads, and what chance makes of them.

Heads are sorted by their distance, and windows of neighbours slide over them by one. A window's representation is its
heads' outputs side by side, so its Gram is the sum of theirs, and from HSICs of single heads h and layers l

.. math:: CKA(S, l) = \frac{\sum_{h \in S} H_{hl}}{\sqrt{\sum_{h, h' \in S} H_{hh'}} \sqrt{H_{ll}}}

Windows share heads and are no independent points. Where distance has nothing to do with similarity it is the heads
that are exchangeable: the test permutes them and builds the windows anew.

Reference: paper section 4, Figure 5.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from repsim.measures.rsa import ranks

EXACT = 40320
"""Permutations that are all taken, those of 8 heads; of more heads, `DRAWN` at random."""
DRAWN = 9999
AT_ONCE = 2**22
"""Numbers of windows and heads, of permutations that are computed together."""
TIED = 1e-9
"""By how much correlations differ that are the same."""


def windows_of(order: Tensor, window: int) -> Tensor:
    """Which heads are in each of the windows that slide over them.

    Args:
        order: (..., h) numbers of the heads, as they are sorted.
        window: heads per window.

    Returns:
        (..., windows, h) of 0 and 1, float64.

    >>> windows_of(torch.tensor([2, 0, 1]), 2).tolist()
    [[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    """
    return torch.nn.functional.one_hot(order.unfold(-1, window, 1), order.shape[-1]).sum(-2).double()


def window_cka(hsics: Tensor, chosen: Tensor) -> Tensor:
    """CKA of sets of heads with layers.

    Args:
        hsics: (h + l, h + l) HSIC, or its mean over minibatches, of h heads and l layers.
        chosen: (..., windows, h), 1 for the heads of each set.

    Returns:
        (..., windows, l). NaN for what is constant.
    """
    heads, chosen = chosen.shape[-1], chosen.to(hsics)
    hsics = (hsics + hsics.T) / 2  # sums over batches may differ in the last bit on the two sides
    own = ((chosen @ hsics[:heads, :heads]) * chosen).sum(-1, keepdim=True)
    root = own.sqrt() * hsics.diagonal()[heads:].sqrt()
    return chosen @ hsics[:heads, heads:] / torch.where(root > 0, root, torch.nan)


def rank_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's rank correlation of each column.

    Args:
        x: (w,).
        y: (..., w, l).

    Returns:
        (..., l) float64. NaN where it is undefined: fewer than three points, values that are all the same, or NaN.

    >>> rank_correlation(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([[3.0], [9.0], [1.0]])).tolist()
    [-0.5]
    """
    a, b = (ranks(values.cpu().mT).mT for values in (x[:, None], y))
    a, b = a - a.mean(-2, keepdim=True), b - b.mean(-2, keepdim=True)
    scale = (a.square().sum(-2) * b.square().sum(-2)).sqrt()
    defined = (scale > 0) & (len(x) > 2) & ~y.cpu().isnan().any(-2) & ~x.cpu().isnan().any()
    return (a * b).sum(-2) / torch.where(defined, scale, torch.nan)


def distance_correlation(distances: Tensor, hsics: Tensor, window: int, order: Tensor | None = None) -> Tensor:
    """Rank correlation, over windows of heads, of their mean distance and their CKA with layers.

    Args:
        distances: (h,).
        hsics: (h + l, h + l), see `window_cka`.
        window: heads per window.
        order: (..., h) the heads whose similarities stand in for those of the nearest, the second nearest, ...; None:
            their own.

    Returns:
        (..., l + 1): with each layer, and with the mean over layers, which leaves out those that are undefined.
    """
    nearest = distances.cpu().argsort(stable=True)
    means = (windows_of(nearest, window) @ distances.cpu().double()[:, None])[:, 0]
    cka = window_cka(hsics.cpu(), windows_of(nearest if order is None else order, window))
    return rank_correlation(means, torch.cat([cka, cka.nanmean(-1, keepdim=True)], -1))


def permutation_test(
    distances: Tensor, hsics: Tensor, window: int, *, seed: int = 0, exact: int = EXACT, drawn: int = DRAWN
) -> Tensor:
    """How often heads in random order correlate as strongly as they do by distance, in either direction.

    Args:
        distances, hsics, window: see `distance_correlation`.
        seed: of the permutations, where there are more than `exact`.
        exact: so many are all taken.
        drawn: so many are drawn otherwise; with the heads' own order they are all that is compared.

    Returns:
        (l + 1,) shares, above 0 to 1; NaN where the correlation is.
    """
    count = len(distances)
    own = distance_correlation(distances, hsics, window)
    if math.factorial(count) <= exact:
        orders, before = np.array(list(itertools.permutations(range(count)))), 0
    else:
        rng = np.random.default_rng(seed)
        orders, before = rng.permuted(np.tile(np.arange(count), (drawn, 1)), axis=1), 1
    size = max(AT_ONCE // ((count - window + 1) * count), 1)
    parts = torch.from_numpy(orders).split(size)
    as_strong = sum(
        (distance_correlation(distances, hsics, window, part).abs() >= own.abs() - TIED).sum(0) for part in parts
    )
    return torch.where(own.isnan(), torch.nan, (before + as_strong) / (before + len(orders)))
