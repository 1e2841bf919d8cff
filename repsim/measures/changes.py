r"""Changes of a representation whose effect is known, by which it is seen what a measure of similarity answers to.

Of features X (n, p) with rows x_i, mean m and root mean square distance s from it:

* *Components* (Ding, Denain & Steinhardt 2021): X is replaced by what its largest principal components hold. A good
  measure falls by as much as what is deleted matters, and is not blind to small ones.
* *Translation* (Davari et al. 2023): some images are moved by the same vector, x_i + a s v with a random unit vector v.
  Two such sets are told apart as before by a linear map, so what a linear probe sees hardly changes.
* *Outlier*: one image is moved by a s v. All others are as they were.

Reference: Ding, Denain & Steinhardt (2021), "Grounding representation similarity with statistical testing", section 4;
Davari, Horoi, Natik, Lajoie, Wolf & Belilovsky (2023), "Reliability of CKA as a similarity measure in deep learning",
sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from repsim.errors import UsageError
from repsim.measures.features import finite

MOVED = 0.5
"""Share of the images that a translation moves."""


def without_components(x: Tensor, share: float) -> Tensor:
    """Features without the smallest principal components.

    Args:
        x: (n, p) features.
        share: of the min(n - 1, p) components, from 0, which deletes none, to below 1; at least one is left.

    Returns:
        (n, p) float64.

    >>> x = torch.tensor([[2.0, 0.1], [-2.0, 0.1], [2.0, -0.1], [-2.0, -0.1]])
    >>> without_components(x, 0.5).round(decimals=6)[0].tolist()
    [2.0, 0.0]
    """
    x = finite(x, "without_components").double()
    if not 0 <= share < 1:
        raise UsageError(f"the share of components to delete must be from 0 to below 1, got {share}")
    mean = x.mean(0)
    u, sigma, vt = torch.linalg.svd(x - mean, full_matrices=False)
    count = min(len(x) - 1, x.shape[1])
    left = max(count - round(share * count), 1)
    return (u[:, :left] * sigma[:left]) @ vt[:left] + mean


def translated(x: Tensor, amount: float, seed: int = 0) -> Tensor:
    """Features of which half of the images, drawn at random, are moved by one vector.

    Args:
        x: (n, p) features.
        amount: length of the vector over the root mean square distance of images from their mean.
        seed: of the draw of images and direction.

    Returns:
        (n, p) float64.
    """
    return _moved(x, amount, round(MOVED * len(x)), seed)


def with_outlier(x: Tensor, amount: float, seed: int = 0) -> Tensor:
    """Features of which one image, drawn at random, is moved; see `translated`."""
    return _moved(x, amount, 1, seed)


def _moved(x: Tensor, amount: float, count: int, seed: int) -> Tensor:
    x = finite(x, "moving images").double()
    drawn = torch.Generator().manual_seed(seed)
    indices = torch.randperm(len(x), generator=drawn)[:count].to(x.device)
    direction = torch.randn(x.shape[1], dtype=torch.float64, generator=drawn).to(x.device)
    size = (x - x.mean(0)).square().sum(1).mean().sqrt()
    moved = x.clone()
    moved[indices] += amount * size * direction / torch.linalg.vector_norm(direction)
    return moved


CHANGES: dict[str, tuple[Callable[..., Tensor], tuple[float, ...]]] = {
    "components": (without_components, (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)),
    "translation": (translated, (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)),
    "outlier": (with_outlier, (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)),
}
"""What is changed -> how, and by how much."""
