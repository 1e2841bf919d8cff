r"""Linear probes in closed form: regularised least squares to +-1 targets (paper, Figures 11, 13, D.4 and F).

Features are standardised (mean 0, standard deviation 1 over the images fitted on), targets are +1 for the image's
class and -1 for the others, and the intercept is not penalised:

    min_W,b  sum_i || y_i - b - W^T x_i ||^2 + l2 ||W||^2      =>      W = (X^T X + l2 I)^-1 X^T Y

for centred X, Y. Everything needed is in sums over images: of x, of x x^T, and of x for each class. With
X^T X = V diag(lambda) V^T every l2 costs next to nothing more, W = V diag(1 / (lambda + l2)) V^T X^T Y, and so does its
squared error on other images, from their sums alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from repsim.errors import UsageError

GRID = tuple(2.0**k for k in range(-10, 21))
"""Strengths of the ridge that are tried."""


class ProbeSums:
    """Sums over images from which m probes of d features and c classes are fitted; memory m d (d + c).

    Features are summed less their mean in the first update, so that features whose mean is large beside their
    spread lose no digits.

    Attributes:
        counts: (c,) images of each class.
        origin: (m, d) float64: what is taken from the features.
        totals: (m, c, d) float64: sum of the features of each class.
        squares: (m, d, d) float64: sum of x x^T.
    """

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(classes, dtype=torch.int64)
        self.origin: Tensor | None = None
        self.totals: Tensor | None = None
        self.squares: Tensor | None = None

    @torch.no_grad()
    def update(self, x: Tensor, labels: Tensor) -> ProbeSums:
        """Add images: features (n, m, d), or (n, d) for a single probe, and their classes (n,), from 0."""
        x = (x[:, None] if x.ndim == 2 else x).transpose(0, 1).double()
        if self.origin is None:
            m, _, d = x.shape
            self.origin = x.mean(1)
            self.totals = x.new_zeros(m, len(self.counts), d)
            self.squares = x.new_zeros(m, d, d)
        x = x - self.origin[:, None]
        self.counts += torch.bincount(labels.cpu(), minlength=len(self.counts))
        self.totals.index_add_(1, labels.to(x.device), x)
        self.squares.baddbmm_(x.transpose(1, 2), x)
        return self

    def moved(self, origin: Tensor) -> ProbeSums:
        """The same sums of features less another origin."""
        moved = ProbeSums(len(self.counts))
        by = (self.origin - origin)[:, :, None]
        across = self.totals.sum(1)[:, :, None] * by.transpose(1, 2)
        moved.counts, moved.origin = self.counts, origin
        moved.totals = self.totals + self.counts.to(by)[:, None] * by.transpose(1, 2)
        moved.squares = self.squares + across + across.transpose(1, 2) + self.counts.sum() * by * by.transpose(1, 2)
        return moved

    def merge(self, other: ProbeSums) -> ProbeSums:
        """The sums over the images of both."""
        if other.origin is None or self.origin is None:
            return self if other.origin is None else other
        other, merged = other.moved(self.origin), ProbeSums(len(self.counts))
        merged.counts, merged.origin = self.counts + other.counts, self.origin
        merged.totals, merged.squares = self.totals + other.totals, self.squares + other.squares
        return merged

    def products(self, mean: Tensor, scale: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """X^T X (m, d, d) and X^T Y (m, d, c) of features less `mean`, over `scale`, and of targets less `target`."""
        about = self.moved(mean)
        total = about.totals.sum(1)[:, :, None]
        # A target is 2 (of the class) - 1, so sum x y = 2 (sum over the class) - (sum over all).
        product = 2 * about.totals.transpose(1, 2) - total * (1 + target)
        scale = scale[:, :, None]
        return about.squares / scale / scale.transpose(1, 2), product / scale


@dataclass(frozen=True)
class Probe:
    """m fitted probes of d features and c classes."""

    mean: Tensor
    """(m, d)."""
    scale: Tensor
    """(m, d): standard deviations; 1 where a feature is constant."""
    weight: Tensor
    """(m, d, c), of standardised features."""
    bias: Tensor
    """(c,)."""
    l2: Tensor
    """(m,)."""

    def scores(self, x: Tensor) -> Tensor:
        """(n, m, c): one score per class, the highest of which is the prediction; x is (n, m, d), or (n, d)."""
        x = x[:, None] if x.ndim == 2 else x
        standard = ((x - self.mean) / self.scale).to(self.weight.dtype)
        return torch.einsum("nmd,mdc->nmc", standard, self.weight) + self.bias

    def right(self, x: Tensor, labels: Tensor) -> Tensor:
        """(n, m) whether each image's class is predicted."""
        return self.scores(x).argmax(2) == labels[:, None].to(x.device)


class Ridge:
    """The ridge path of some sums: probes for any strength from one eigendecomposition per probe."""

    def __init__(self, sums: ProbeSums) -> None:
        n = sums.counts.sum()
        if not (sums.counts > 0).all():
            missing = (sums.counts == 0).nonzero()[:, 0].tolist()
            raise UsageError(f"a probe needs images of every class; there are none of class {missing[0]}")
        self.sums = sums
        self.mean = sums.origin + sums.totals.sum(1) / n
        variance = sums.moved(self.mean).squares.diagonal(dim1=1, dim2=2) / n
        rounding = (n * self.mean * torch.finfo(torch.float64).eps) ** 2  # all a constant feature varies by
        self.scale = torch.where(variance <= rounding, 1.0, variance.clamp(min=0).sqrt())
        self.bias = (2 * sums.counts.to(self.mean) - n) / n
        gram, product = sums.products(self.mean, self.scale, self.bias)
        self.eigenvalues, self.vectors = torch.linalg.eigh(gram)
        self.eigenvalues = self.eigenvalues.clamp(min=0)  # rounding leaves some just below
        self.product = self.vectors.transpose(1, 2) @ product

    def fit(self, l2: float | Tensor) -> Probe:
        """The probes for one strength, or for one strength each, (m,)."""
        l2 = torch.as_tensor(l2, dtype=torch.float64, device=self.mean.device).expand(len(self.mean))
        weight = self.vectors @ (self.product / (self.eigenvalues + l2[:, None])[:, :, None])
        return Probe(self.mean, self.scale, weight, self.bias, l2)

    def errors(self, held_out: ProbeSums, grid: tuple[float, ...] = GRID) -> Tensor:
        """Mean squared error of every strength on other images, (strengths, m), less what no strength changes."""
        gram, product = held_out.products(self.mean, self.scale, self.bias)
        rotated = self.vectors.transpose(1, 2) @ gram @ self.vectors
        quadratic = rotated * (self.product @ self.product.transpose(1, 2))
        linear = ((self.vectors.transpose(1, 2) @ product) * self.product).sum(2)
        rows = []
        for l2 in grid:
            shrunk = 1 / (self.eigenvalues + l2)
            rows.append(torch.einsum("mi,mij,mj->m", shrunk, quadratic, shrunk) - 2 * (shrunk * linear).sum(1))
        return torch.stack(rows) / held_out.counts.sum()

    def best(self, held_out: ProbeSums, grid: tuple[float, ...] = GRID) -> Tensor:
        """(m,) the strength with the smallest error on held-out images."""
        return torch.tensor(grid, dtype=torch.float64)[self.errors(held_out, grid).argmin(0).cpu()]
