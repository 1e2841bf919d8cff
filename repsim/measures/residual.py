r"""What a skip connection carries against what the branch beside it adds, token by token.

With z on the skip connection and f(z) from the branch, as they are added (paper, Figure 7 and appendix E):

    ratio = ||z|| / ||f(z)||          cos_output = cos(z, z + f(z))          cos_branch = cos(z, f(z))

norms and inner products over channels, one value per image and token (or position of a map). A ratio above 1
says that the skip connection carries more than the branch adds; cosines are between -1 and 1, and cos_output near 1
says that the sum points where the skip connection did.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from repsim.errors import UsageError
from repsim.measures.inputs import tensor


class SkipStatistics(NamedTuple):
    """Each (n, t), float32 or as the tokens are."""

    ratio: Tensor
    """||z|| / ||f(z)||, from 0; infinite where the branch adds nothing, NaN where nothing is on the skip either."""
    cos_output: Tensor
    """cos(z, z + f(z)); NaN where one of the two is zero, as cos_branch is."""
    cos_branch: Tensor
    """cos(z, f(z))."""
    skip_norm: Tensor
    branch_norm: Tensor


def skip_statistics(skip: Tensor, branch: Tensor) -> SkipStatistics:
    """Norm ratio and cosines of skip connection and branch.

    Args:
        skip: (n, t, d) z, after its projection where it has one.
        branch: (n, t, d) f(z), as it is added: after LayerScale.

    >>> z = torch.tensor([[[3.0, 4.0]]])
    >>> skip_statistics(z, 0.5 * z).ratio.item()
    2.0

    Reference: paper section 5, Figure 7; appendix E, Figures E.1 and E.2.
    """
    skip, branch = (_at_least_float32(tensor(x, name, "(n, t, d)")) for x, name in ((skip, "skip"), (branch, "branch")))
    if skip.shape != branch.shape or not skip.shape[-1]:
        shapes = f"{tuple(skip.shape)} and {tuple(branch.shape)}"
        raise UsageError(f"skip and branch must be two (n, t, d) that can be added, got {shapes}")
    # Halves, for the sum of two large numbers may overflow; its direction is the same.
    (z, z_size), (f, f_size), (out, _) = (_unit_scale(x) for x in (skip, branch, skip / 2 + branch / 2))
    z_norm, f_norm, out_norm = (torch.linalg.vector_norm(x, dim=-1) for x in (z, f, out))
    return SkipStatistics(
        ratio=z_norm / f_norm * (z_size / f_size),
        cos_output=(z * out).sum(-1) / (z_norm * out_norm),
        cos_branch=(z * f).sum(-1) / (z_norm * f_norm),
        skip_norm=z_norm * z_size,
        branch_norm=f_norm * f_size,
    )


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize < 4 else x


def _unit_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each token (n, t, d) over its largest magnitude, and that, (n, t): in float32 squares of 1e20 are infinite."""
    size = x.abs().amax(-1)
    size = torch.where(size > 0, size, 1)  # NaN and infinity stay
    return x / size[..., None], size
