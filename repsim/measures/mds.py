r"""A map of things of which distances are known: metric multidimensional scaling (MDS).

Positions z_i in the plane are sought whose distances d_ij are as near as can be to those given, delta_ij, by the raw
stress sum_{i<j} (d_ij - delta_ij)^2. It begins at the classical solution (Torgerson 1952), the two largest axes of the
doubly centred squared distances, and never increases from there (SMACOF):

.. math:: Z \leftarrow B(Z) Z / N, \quad B_{ij} = -\delta_{ij} / d_{ij} \; (i \ne j), \quad
          B_{ii} = -\sum_{j \ne i} B_{ij}

How well a map shows the distances is its stress-1, sqrt(sum (d - delta)^2 / sum d^2): 0 where it shows them as they
are, 0.05 good, 0.2 poor (Kruskal 1964).

Reference: Borg & Groenen, Modern Multidimensional Scaling (2005), chapters 3, 8 and 12.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repsim.errors import UsageError
from repsim.measures.inputs import tensor

STEPS, CLOSE = 500, 1e-10
"""Of the iteration, at most; and the share of the stress by which it falls in a step that ends it."""


def mds(distances: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Positions in the plane whose distances are near those given.

    Args:
        distances: (N, N) symmetric, from 0, and 0 on the diagonal.
        start: (N, 2) positions to begin at; None: the classical solution.

    Returns:
        (N, 2) float64 positions about the origin, and () the stress-1 of their distances; NaN where a distance is.

    Raises:
        UsageError: no such distances.

    >>> right = torch.tensor([[0.0, 3.0, 4.0], [3.0, 0.0, 5.0], [4.0, 5.0, 0.0]])
    >>> positions, stress = mds(right)
    >>> [round(each, 4) for each in torch.pdist(positions).tolist()], round(stress.item(), 4)
    ([3.0, 4.0, 5.0], 0.0)
    """
    target = tensor(distances, "distances", "(N, N)").double()
    if target.shape[0] != target.shape[1] or (target < 0).any() or target.diagonal().any():
        raise UsageError("distances must be (N, N), not negative, and 0 on the diagonal")
    if target.isnan().any():
        return target.new_full((len(target), 2), torch.nan), target.new_tensor(torch.nan)
    target = (target + target.T) / 2
    positions = _classical(target) if start is None else start.double()
    before = torch.inf
    for _ in range(STEPS):
        between = torch.cdist(positions, positions, compute_mode="donot_use_mm_for_euclid_dist")
        stress = (between - target).square().sum()
        if not stress < before * (1 - CLOSE):
            break
        before = stress
        ratios = target / torch.where(between > 0, between, torch.inf)
        positions = (torch.diag(ratios.sum(1)) - ratios) @ positions / len(positions)
    between = torch.cdist(positions, positions, compute_mode="donot_use_mm_for_euclid_dist")
    total = between.square().sum()
    left = (between - target).square().sum()
    stress = (left / torch.where(total > 0, total, torch.inf)).sqrt()
    return positions - positions.mean(0), stress


def _classical(distances: Tensor) -> Tensor:
    """(N, 2) of the two largest axes; each axis' largest entry is positive, so that the same map comes out again."""
    squares = distances.square()
    means = squares.mean(0, keepdim=True)
    values, vectors = torch.linalg.eigh(-(squares - means - means.T + squares.mean()) / 2)
    count = min(2, len(values))
    values, vectors = values[-count:].flip(0), vectors[:, -count:].flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    positions = vectors * largest.sign() * values.clamp(min=0).sqrt()
    return torch.nn.functional.pad(positions, (0, 2 - count))


def turned(positions: Tensor, to: Tensor) -> Tensor:
    """Positions (N, 2) about the origin, turned and mirrored so that they come as near to others as they can."""
    if (positions.isnan() | to.isnan()).any():
        return torch.full_like(positions, torch.nan)
    u, _, vt = torch.linalg.svd(positions.T @ to)
    return positions @ u @ vt
