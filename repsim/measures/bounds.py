r"""What counts as zero, and how large and small features may be: the bounds that all measures share.

Rounding leaves something where exact arithmetic leaves nothing, and that must not pass for signal. With eps the
spacing of numbers next to 1, of float64 (2.2e-16) or of float32 (1.2e-7, for 16 bits as well, which float32 holds):

*Constant.* Numbers of size s are known to eps s / 2. Less the first image, features of n images that are one
number but for its last bit leave at most eps s each, and twice that with the rounding of whatever computed them. So
features vary if the sum of squares about their mean, over images and features, exceeds n (2 eps |x_1|)^2, x_1 being
the first image's (or the mean) and eps that of the type in which the features came, not of the one computed in.

*No U-centred Gram.* It is zero also where features do vary: where all images but one are alike, or all are at right
angles to each other as seen from one point, for then it holds nothing but row means (x_i . x_k = m_i + m_k), and
CKA is 0 / 0. An entry x_i . x_k of a Gram is off by c eps |x_i| |x_k|, so the whole, whose norm is the root of the sum
of squares over i and k, by c eps sum_i |x_i|^2 = c eps trace. For sums in the blocks that BLAS takes, c is
below 2 as measured (`tests/measures/test_bounds.py`); what is below 10 eps trace is zero. eps is that of the products.

*Distances.* A squared distance |x_i|^2 + |x_k|^2 - 2 x_i . x_k is off likewise by a few eps (|x_i|^2 + |x_k|^2), and
zero below 10 of them.

*Magnitudes.* HSIC_1 is of the fourth power of features, summed over n^2 pairs and the squares of p features. From 1e-70
to 1e70 that stays within float64 (1e-308 to 1.8e308) for n p up to 1e13. Features of float32 (1e-45 to 3.4e38) always
are; of those of float64 the largest must be.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repsim.errors import RepsimError

CONSTANT, ZERO = 2, 10
"""Times eps: of a constant feature's size, of a Gram's trace. The derivations are above."""
SMALLEST, LARGEST = 1e-70, 1e70
"""Between them is the largest magnitude of features, if any is not zero."""
FLOAT32 = (1e-20, 1e30)
"""Sums of products within it neither overflow in float32 nor lose digits below its normal numbers (1e-38, and the
parts of a sum may be 1e-18 of it)."""


def eps_of(dtype: torch.dtype) -> float:
    """The spacing of numbers next to 1 in the type that features of this type are computed in."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


def varies(squares: Tensor, size: Tensor, n: int | Tensor, eps: float) -> Tensor:
    """Whether features vary: sum of squares of n images about their mean, norm of the first image's."""
    return squares > n * (CONSTANT * eps * size) ** 2


def nonzero(norm: Tensor, trace: Tensor | float, eps: float) -> Tensor:
    """Whether a U-centred Gram of this norm, of centred features whose Gram has this trace, is not zero."""
    return norm > ZERO * eps * trace


def fits_float32(total: Tensor) -> Tensor:
    """Whether sums of products of this size can be trusted to float32."""
    return (total > FLOAT32[0]) & (total < FLOAT32[1])


def check_magnitude(x: Tensor, name: str) -> None:
    """Raise `RepsimError` for features whose fourth powers float64 cannot hold; only float64 can have them."""
    if x.dtype != torch.float64 or not x.numel():
        return
    largest = x.abs().max()
    if (largest > LARGEST and largest < torch.inf) or 0 < largest < SMALLEST:
        raise RepsimError(
            f"{name} must lie between {SMALLEST:g} and {LARGEST:g} in magnitude, got {largest.item():.1e}; scale it"
        )
