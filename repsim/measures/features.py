"""What two feature matrices must be to be compared: of the same images, finite, in float64, in few columns.

Features are divided by their largest magnitude first, which no measure depends on, and whose squares would vanish or
overflow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from repsim.errors import RepsimError, UsageError
from repsim.measures import bounds
from repsim.measures.inputs import real_images, tensor


def same_images(x: Any, y: Any, measure: str) -> tuple[Tensor, Tensor]:
    """Both as tensors; `UsageError` where they have not as many rows."""
    x, y = tensor(x, "x"), tensor(y, "y")
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
        sizes = " and ".join(f"{len(t)} rows" if t.ndim else "no rows" for t in (x, y))
        raise UsageError(f"{measure} needs the same images in both: got {sizes}; pass one set of images through both")
    return x, y.to(x.device)


def finite(x: Any, measure: str, name: str = "x", fewest: int = 4) -> Tensor:
    """(n, p) of the type it came in; all axes but the first are flattened.

    Raises:
        UsageError: fewer images than `fewest`, no features, or no dense real numbers.
        RepsimError: NaN or infinite features.
    """
    x = real_images(x, name, fewest, measure)
    if not torch.isfinite(x).all():
        raise RepsimError(f"{measure} needs finite features: {name} holds NaN or infinity")
    return x.reshape(len(x), -1)


def scaled(x: Tensor) -> Tensor:
    """(n, p) float64, over its largest magnitude."""
    x = x.double()
    largest = x.abs().max()
    return x / largest if largest > 0 else x


def noise(x: Tensor) -> Tensor:
    """How much of the Frobenius norm of features, scaled and centred, the rounding of x (n, p) may be; ().

    Numbers of size s are known to eps s / 2, see `measures/bounds.py`.
    """
    return bounds.CONSTANT * bounds.eps_of(x.dtype) * len(x) ** 0.5 * torch.linalg.vector_norm(scaled(x)[0])


def varies(x: Tensor) -> bool:
    """Whether features (n, p) differ between images by more than rounding."""
    return bool(torch.linalg.matrix_norm(centred(x)) > noise(x))


def centred(x: Tensor) -> Tensor:
    """(n, p) float64, scaled, less the mean over images; less the first first, so that constant features are 0."""
    x = scaled(x)
    x = x - x[:1]
    return x - x.mean(0)


def narrow(x: Tensor) -> Tensor:
    """(n, min(n, p)): features turned into the coordinates of a space that holds them all, where p > n.

    With x^T = Q R, x Q = R^T: inner products between images, and hence what does not depend on rotations, are kept.
    """
    return torch.linalg.qr(x.mT, mode="r").R.mT if x.shape[1] > len(x) else x


def left_out(groups: Tensor, values: Tensor) -> Tensor:
    """The sums (G, ...) over the images of each group, of values (n, ...)."""
    sums = values.new_zeros(int(groups.max()) + 1, *values.shape[1:])
    return sums.index_add_(0, groups.to(values.device), values)
