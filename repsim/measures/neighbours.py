r"""What the distances between representations say of classes: soft nearest neighbour loss, nearest neighbours.

The soft nearest neighbour loss of n images at temperature T (Frosst, Papernot & Hinton 2019, eq. 1), with
squared Euclidean distances d_ij, is

    -1/n sum_i log( sum_{j != i, y_j = y_i} exp(-d_ij / T)  /  sum_{k != i} exp(-d_ik / T) )

0 where classes are apart; about the entropy of the classes where neighbours say nothing about them. Its
temperature is the one at which it is smallest (ibid., section 2), so that it does not depend on the features' scale.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from repsim.errors import RepsimError, UsageError
from repsim.measures import bounds
from repsim.measures.inputs import classes_of, real_images, tensor, whole

RANGE = (1e-5, 1e2)
"""Temperatures that are tried, times the mean squared distance between two images."""


def squared_distances(x: Tensor) -> Tensor:
    """(n, n) float64 squared Euclidean distances of (n, d) features; infinite from an image to itself.

    What is within rounding of zero is zero: see `measures/bounds.py`.
    """
    features = real_images(tensor(x, "x", "(n, d)"), "x", fewest=2, measure="squared_distances")
    bounds.check_magnitude(features, "features for distances")
    if not torch.isfinite(features).all():
        raise RepsimError("squared_distances needs finite features: x holds NaN or infinity")
    x = features.double()
    size = torch.linalg.vector_norm(x[0])
    x = x - x[:1]  # first, so that constant features are exactly 0
    x -= x.mean(0)
    squares = x.square().sum(1)
    eps = bounds.eps_of(torch.float64)
    sums = squares[:, None] + squares
    distances = sums - 2 * (x @ x.mT)
    alike = (distances <= bounds.ZERO * eps * sums) | ~bounds.varies(
        squares.sum(), size, len(x), bounds.eps_of(features.dtype)
    )
    return distances.masked_fill_(alike, 0).fill_diagonal_(torch.inf)


def _checked(distances: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    distances = tensor(distances, "distances", "(n, n)").double()
    n = len(distances)
    if distances.shape[1] != n or n < 2 or not (distances >= 0).all() or not distances.diagonal().isposinf().all():
        raise UsageError("distances must be those of squared_distances: (n, n), not negative, infinite on the diagonal")
    return distances, classes_of(labels, n).to(distances.device)


class SoftNeighbours(NamedTuple):
    """The soft nearest neighbour loss at the temperature that makes it smallest."""

    loss: float
    """In nats."""
    se: float
    """Its standard error over images, as if their losses were independent."""
    temperature: float
    """In squared units of the features."""
    losses: Tensor
    """(n,) of each image; NaN where all representations are the same."""


def soft_nearest_neighbour(distances: Tensor, labels: Tensor) -> SoftNeighbours:
    """The smallest soft nearest neighbour loss over temperatures, from 1e-5 to 100 times the mean squared distance.

    Args:
        distances: (n, n) of `squared_distances`.
        labels: (n,), two or more images of each class that is there.

    Returns:
        Loss, standard error, temperature, losses of the images; all NaN where all representations are the same.

    Raises:
        UsageError: a class has a single image.

    Reference: Frosst, Papernot & Hinton (2019), "Analyzing and improving representations with the soft nearest
    neighbor loss", eq. 1 and section 2.
    """
    distances, labels = _checked(distances, labels)
    same = labels[:, None] == labels
    if (same.sum(1) < 2).any():
        raise UsageError("the soft nearest neighbour loss needs two or more images of each class")
    same = same.to(distances)
    off_diagonal = distances[~torch.eye(len(distances), dtype=torch.bool, device=distances.device)]
    unit = off_diagonal.mean()
    if not unit > 0:
        return SoftNeighbours(torch.nan, torch.nan, torch.nan, torch.full_like(distances[0], torch.nan))
    nearest = distances.min(1, keepdim=True).values

    def losses(log_temperature: float) -> Tensor:
        near = torch.exp((nearest - distances) / (unit * 10**log_temperature))
        # Beyond the smallest float64 the loss is no less than what stands here, and never the smallest.
        return -((near * same).sum(1).clamp(min=1e-300) / near.sum(1)).log()

    low, high = (torch.tensor(RANGE).log10()).tolist()
    tried = torch.linspace(low, high, 15).tolist()
    values = [losses(log_temperature).mean().item() for log_temperature in tried]
    best = min(range(len(tried)), key=values.__getitem__)
    around = (tried[max(best - 1, 0)], tried[min(best + 1, len(tried) - 1)])
    minimum = minimize_scalar(
        lambda t: losses(t).mean().item(), bounds=around, method="bounded", options={"xatol": 1e-3}
    )
    image_losses = losses(minimum.x)
    return SoftNeighbours(
        image_losses.mean().item(),
        image_losses.std().item() / len(image_losses) ** 0.5,
        unit.item() * 10**minimum.x,
        image_losses,
    )


def nearest_neighbours(distances: Tensor, labels: Tensor, k: int) -> Tensor:
    """(n,) whether the commonest class among each image's k nearest others is its own; of equals the lowest class.

    Leave-one-out accuracy is the mean. scikit-learn's `KNeighborsClassifier` votes the same way.
    """
    distances, labels = _checked(distances, labels)
    if whole(k, "k", 0) not in range(1, len(labels)):
        raise UsageError(f"k must be from 1 to {len(labels) - 1}, with {len(labels)} images, got {k}")
    nearest = distances.topk(k, largest=False).indices
    votes = torch.nn.functional.one_hot(labels[nearest]).sum(1)
    return votes.argmax(1) == labels
