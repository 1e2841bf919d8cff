r"""CKA with Gaussian kernels: as linear CKA, but of what is near rather than of what is large.

With d_ik the Euclidean distance of the features of images i and k, and sigma a multiple of its median over all pairs,

.. math:: K_{ik} = \exp(-d_{ik}^2 / 2 \sigma^2), \quad \mathrm{CKA} = HSIC_1(K, L) / \sqrt{HSIC_1(K, K) HSIC_1(L, L)}

HSIC_1 is the inner product of the U-centred Grams over n (n - 3), see `measures/cka.py`. Over minibatches it is
averaged and then divided, as linear CKA is; the bandwidth is that of each batch.

Reference: Kornblith et al. (2019), section 3.2 and Table 2; Song et al. (2012), eq. 5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from repsim.errors import UsageError
from repsim.measures import bounds
from repsim.measures.cka import normalise, u_centre
from repsim.measures.features import finite, same_images
from repsim.measures.inputs import real_images, tensor
from repsim.measures.neighbours import squared_distances


def rbf_cka(x: Any, y: Any, *, factor: float = 1.0) -> float:
    """CKA with Gaussian kernels of two representations of the same images, in float64.

    1 for the same representation, about 0 for unrelated ones, of which some are slightly negative. It does not depend
    on rotation, scale and translation of either; it does on invertible linear maps. Kornblith et al. count an image's
    distance of 0 to itself in the median; here it is over pairs of different images (of an even number of them, the
    lower of the two in the middle).

    Args:
        x: (n, ...) features of n >= 4 images; all axes but the first are flattened.
        y: (n, ...) features of the same images in the same order.
        factor: the bandwidth over the median distance. A large one gives linear CKA, a small one sees no image near
            another: K becomes the identity, whose U-centred Gram is zero.

    Returns:
        At most 1. NaN where it is undefined: half or more of the pairs of images are alike, so that the median
        distance is 0, or a U-centred kernel is zero, as where all images are as far from each other.

    Raises:
        UsageError: different numbers of images, or fewer than 4; no dense real numbers; a factor of 0 or less.
        RepsimError: NaN or infinite features.

    >>> x = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    >>> round(rbf_cka(x, 3 * x + 1), 6)
    1.0
    """
    x, y = same_images(x, y, "rbf_cka")
    rows = [rbf_row(finite(features, "rbf_cka", name), factor) for features, name in ((x, "x"), (y, "y"))]
    return normalise(torch.stack([torch.stack([a @ b for b in rows]) for a in rows]))[0, 1].item()


def rbf_row(x: Tensor, factor: float = 1.0) -> Tensor:
    """(n(n-1)/2,) float64 of one batch's features (n, p): rows' inner products are HSIC_1.

    The entries of the U-centred kernel above the diagonal, times the root of 2 / (n (n - 3)). Zero where it is
    undefined (`rbf_cka`), so that a batch adds nothing; NaN where features are not finite.
    """
    x = real_images(x, "x", measure="rbf_cka").flatten(1)
    factor = tensor(factor, "factor", "()").item()
    if not 0 < factor < torch.inf:
        raise UsageError(f"factor must be above 0 and finite, got {factor}; 1 is the median distance")
    n = len(x)
    above = torch.ones(n, n, dtype=torch.bool, device=x.device).triu_(1)
    if not torch.isfinite(x).all():
        return torch.full((n * (n - 1) // 2,), torch.nan, dtype=torch.float64, device=x.device)
    squares = squared_distances(x)
    median = squares[above].median()
    if median == 0:
        return torch.zeros(n * (n - 1) // 2, dtype=torch.float64, device=x.device)
    kernel = squares.mul_(-0.5 / (factor**2 * median)).exp_()  # 0 from an image to itself, which no one looks at
    row = u_centre(kernel)[above] * (2 / (n * (n - 3))) ** 0.5
    # A kernel's entries are at most 1 and known to a few eps.
    return row if bounds.nonzero(torch.linalg.vector_norm(row), 1 / n, bounds.eps_of(torch.float64) * n) else row * 0
