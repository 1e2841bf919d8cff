r"""Linear probes in closed form: regularised least squares to +-1 targets (paper, Figures 11, 13, D.4 and F).

Features are standardised (mean 0, standard deviation 1 over the images fitted on), targets are +1 for the image's
class and -1 for the others, and the intercept is not penalised:

    min_W,b  sum_i || y_i - b - W^T x_i ||^2 + l2 ||W||^2      =>      W = (X^T X + l2 I)^-1 X^T Y

for centred X, Y. Everything needed is in sums over images: of x, of x x^T, and of x for each class; with fewer images
than features it is in the images' features themselves (`training_data` takes what is smaller). With
X^T X = V diag(lambda) V^T every l2 costs next to nothing more, W = V diag(1 / (lambda + l2)) V^T X^T Y, and so does its
squared error on other images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from repsim.errors import RepsimError, UsageError
from repsim.measures import bounds
from repsim.measures.inputs import classes_of, tensor, whole
from repsim.measures.running import Accumulator

GRID = tuple(2.0**k for k in range(-10, 21))
"""Strengths of the ridge that are tried."""


def training_data(images: int, features: int, classes: int) -> ProbeSums | ProbeRows:
    """What `images` are collected in, to fit probes of so many features: whichever is smaller."""
    images, features = whole(images, "images"), whole(features, "features")
    return ProbeRows(classes) if images <= features else ProbeSums(classes)


def _checked(x: Tensor, labels: Tensor, data: ProbeSums | ProbeRows) -> tuple[Tensor, Tensor]:
    """(m, n, d) features of the type they came in and (n,) classes; `data.eps` becomes that of the coarsest."""
    x = tensor(x, "x")
    if x.ndim not in (2, 3) or not x[0:1].numel():
        raise UsageError(f"a probe needs features (n, d), or (n, m, d) for m probes, got {tuple(x.shape)}")
    bounds.check_magnitude(x, "features for a probe")
    if not torch.isfinite(x).all():
        raise RepsimError("a probe needs finite features: x holds NaN or infinity")
    data.eps = max(data.eps, bounds.eps_of(x.dtype))
    return (x[:, None] if x.ndim == 2 else x).transpose(0, 1), classes_of(labels, len(x), classes=len(data.counts))


def _eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eigh`; on the CPU of small matrices in one thread, since several wait for each other."""
    threads = torch.get_num_threads()
    try:
        if matrices.device.type == "cpu" and matrices.shape[-1] <= 256:
            torch.set_num_threads(1)
        return torch.linalg.eigh(matrices)
    finally:
        torch.set_num_threads(threads)


class ProbeSums(Accumulator):
    """Sums over images from which m probes of d features and c classes are fitted; memory m d (d + c).

    Features are summed less their mean in the first update, so that features whose mean is large beside their
    spread lose no digits.

    Attributes:
        counts: (c,) images of each class.
        origin: (m, d) float64: what is taken from the features.
        totals: (m, c, d) float64: sum of the features of each class.
        squares: (m, d, d) float64: sum of x x^T.
        eps: of the type in which features came (see `measures/bounds.py`).
    """

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(whole(classes, "classes"), dtype=torch.int64)
        self.eps = 0.0
        self.origin = self.totals = self.squares = torch.zeros(0, 0)  # of no probes, until there are images

    @torch.no_grad()
    def update(self, x: Tensor, labels: Tensor) -> ProbeSums:
        """Add images: features (n, m, d), or (n, d) for a single probe, and their classes (n,), from 0."""
        x, labels = _checked(x, labels, self)
        x = x.double()
        if not len(self.origin):
            m, _, d = x.shape
            self.origin = x.mean(1)
            self.totals = x.new_zeros(m, len(self.counts), d)
            self.squares = x.new_zeros(m, d, d)
        if x.shape[::2] != self.origin.shape:
            raise UsageError(f"a probe needs the same features, {tuple(self.origin.shape)}, got {tuple(x.shape[::2])}")
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
        moved.counts, moved.origin, moved.eps = self.counts, origin, self.eps
        moved.totals = self.totals + self.counts.to(by)[:, None] * by.transpose(1, 2)
        moved.squares = self.squares + across + across.transpose(1, 2) + self.counts.sum() * by * by.transpose(1, 2)
        return moved

    def merge(self, other: ProbeSums | ProbeRows) -> ProbeSums:
        """The sums over the images of both."""
        if isinstance(other, ProbeRows):
            other = ProbeSums(len(self.counts)).update(other.features.transpose(0, 1), other.labels)
        if not (len(other.origin) and len(self.origin)):
            return other if len(other.origin) else self
        other, merged = other.moved(self.origin), ProbeSums(len(self.counts))
        merged.counts, merged.origin = self.counts + other.counts, self.origin
        merged.eps = max(self.eps, other.eps)
        merged.totals, merged.squares = self.totals + other.totals, self.squares + other.squares
        return merged

    @property
    def shape(self) -> tuple[int, int]:
        """m probes of d features."""
        m, d = self.origin.shape
        return m, d

    def part(self, probes: slice) -> ProbeSums:
        """The sums of some of the m probes: views."""
        part = ProbeSums(len(self.counts))
        part.counts, part.eps = self.counts, self.eps
        part.origin, part.totals, part.squares = self.origin[probes], self.totals[probes], self.squares[probes]
        return part

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each feature, (m, d)."""
        n = self.counts.sum()
        mean = self.origin + self.totals.sum(1) / n
        return mean, self.moved(mean).squares.diagonal(dim1=1, dim2=2) / n

    def products(self, by: Standard) -> tuple[Tensor, Tensor]:
        """X^T X (m, d, d) and X^T Y (m, d, c) of standardised features and centred targets."""
        about = self.moved(by.mean)
        total = about.totals.sum(1)[:, :, None]
        # A target is 2 (of the class) - 1, so sum x y = 2 (sum over the class) - (sum over all).
        product = 2 * about.totals.transpose(1, 2) - total * (1 + by.target)
        scale = by.scale[:, :, None]
        return about.squares / scale / scale.transpose(1, 2), product / scale

    def decompose(self, by: Standard) -> tuple[Tensor, Tensor, Tensor]:
        """What `Ridge` needs of standardised features: r = d eigenvalues, their vectors, V^T X^T Y."""
        gram, product = self.products(by)
        eigenvalues, vectors = _eigh(gram)
        return eigenvalues.clamp(min=0), vectors, vectors.mT @ product  # rounding leaves some just below zero

    def along(self, ridge: Ridge) -> tuple[Tensor, Tensor]:
        """V^T X^T X V (m, r, r) and V^T X^T Y (m, r, c) for a ridge's own V, standardisation and mean targets."""
        gram, product = self.products(ridge.standard)
        return ridge.vectors.mT @ gram @ ridge.vectors, ridge.vectors.mT @ product


class ProbeRows(Accumulator):
    """The features of images themselves, of which m probes are fitted; memory m n d.

    Attributes:
        counts: (c,) images of each class.
        features: (m, n, d), of the type they came in.
        labels: (n,).
        eps: of the type in which features came (see `measures/bounds.py`).
    """

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(whole(classes, "classes"), dtype=torch.int64)
        self.eps = 0.0
        self._features: list[Tensor] = []
        self._labels: list[Tensor] = []

    @property
    def features(self) -> Tensor:
        return torch.cat(self._features, 1)

    @property
    def labels(self) -> Tensor:
        return torch.cat(self._labels)

    @torch.no_grad()
    def update(self, x: Tensor, labels: Tensor) -> ProbeRows:
        """Add images: features (n, m, d), or (n, d) for a single probe, and their classes (n,), from 0."""
        x, labels = _checked(x, labels, self)
        if self._features and x.shape[::2] != self._features[0].shape[::2]:
            before = tuple(self._features[0].shape[::2])
            raise UsageError(f"a probe needs the same features, {before}, got {tuple(x.shape[::2])}")
        self._features.append(x.clone(memory_format=torch.contiguous_format))
        self._labels.append(labels.to(x.device))
        self.counts += torch.bincount(labels.cpu(), minlength=len(self.counts))
        return self

    def merge(self, other: ProbeRows) -> ProbeRows:
        """The images of both."""
        merged = ProbeRows(len(self.counts))
        merged.counts, merged.eps = self.counts + other.counts, max(self.eps, other.eps)
        merged._features, merged._labels = self._features + other._features, self._labels + other._labels
        return merged

    @property
    def shape(self) -> tuple[int, int]:
        """m probes of d features."""
        m, _, d = self._features[0].shape
        return m, d

    def part(self, probes: slice) -> ProbeRows:
        """The features of some of the m probes: views."""
        part = ProbeRows(len(self.counts))
        part.counts, part.eps, part._labels = self.counts, self.eps, self._labels
        part._features = [features[probes] for features in self._features]
        return part

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each feature, (m, d)."""
        x = self.features.double()
        first = x[:, :1]  # less it, constant features are exactly 0
        return first[:, 0] + (x - first).mean(1), (x - first).var(1, correction=0)

    def _standardised(self, by: Standard) -> tuple[Tensor, Tensor]:
        """X (m, n, d) and Y (n, c): standardised features, centred targets."""
        targets = 2 * torch.nn.functional.one_hot(self.labels, len(self.counts)).double() - 1
        return (self.features.double() - by.mean[:, None]) / by.scale[:, None], targets - by.target

    def decompose(self, by: Standard) -> tuple[Tensor, Tensor, Tensor]:
        """What `Ridge` needs of standardised features: r = n eigenvalues, those of X X^T, which X^T X has too."""
        x, y = self._standardised(by)
        eigenvalues, left = _eigh(x @ x.mT)
        smallest = eigenvalues[:, -1:] * x.shape[1] * torch.finfo(torch.float64).eps
        roots = torch.where(eigenvalues > smallest, eigenvalues.clamp(min=0).sqrt(), torch.inf)  # X = U roots V^T
        vectors = (x.mT @ left) / roots[:, None]
        return eigenvalues.clamp(min=0), vectors, vectors.mT @ (x.mT @ y)

    def along(self, ridge: Ridge) -> tuple[Tensor, Tensor]:
        """V^T X^T X V (m, r, r) and V^T X^T Y (m, r, c) for a ridge's own V, standardisation and mean targets."""
        x, y = self._standardised(ridge.standard)
        rotated = x @ ridge.vectors
        return rotated.mT @ rotated, rotated.mT @ y


@dataclass(frozen=True)
class Probe:
    """m fitted probes of d features and c classes, for features as they are: the scale is in the weights."""

    mean: Tensor
    """(m, d)."""
    weight: Tensor
    """(m, d, c), of features less their mean."""
    bias: Tensor
    """(m, c)."""
    l2: Tensor
    """(m,)."""

    def scores(self, x: Tensor) -> Tensor:
        """(n, m, c) of the type of x: the class with the highest is predicted; x is (n, m, d), or (n, d)."""
        x = tensor(x, "x")
        x = x[:, None] if x.ndim == 2 else x
        if x.shape[1:] != self.mean.shape:
            raise UsageError(f"this probe needs features (n, *{tuple(self.mean.shape)}), got {tuple(x.shape)}")
        mean, weight, bias = (tensor.to(x) for tensor in (self.mean, self.weight, self.bias))
        return torch.baddbmm(bias[:, None], (x - mean).transpose(0, 1), weight).transpose(0, 1)

    def to(self, dtype: torch.dtype) -> Probe:
        return Probe(self.mean.to(dtype), self.weight.to(dtype), self.bias.to(dtype), self.l2)


def side_by_side(parts: Sequence[Probe]) -> Probe:
    """Probes of different features as one: all of their m."""
    return Probe(*(torch.cat([getattr(part, field) for part in parts]) for field in ("mean", "weight", "bias", "l2")))


def stacked(probes: Sequence[Probe]) -> Probe:
    """Several probes of the same features as one: their classes one after the other, (m, k c); l2 is the first's."""
    mean = probes[0].mean
    moved = [probe.bias + ((mean - probe.mean)[:, None] @ probe.weight)[:, 0] for probe in probes]
    return Probe(mean, torch.cat([probe.weight for probe in probes], 2), torch.cat(moved, 1), probes[0].l2)


class Standard(NamedTuple):
    """How features and targets are standardised, and back."""

    mean: Tensor
    """(m, d)."""
    scale: Tensor
    """(m, d): standard deviations; 1 where a feature is constant."""
    target: Tensor
    """(c,): mean target of each class."""

    @classmethod
    def of(cls, data: ProbeSums | ProbeRows) -> Standard:
        """That of the images fitted on; `UsageError` if there are none of a class."""
        n = data.counts.sum()
        if not (data.counts > 0).all():
            missing = (data.counts == 0).nonzero()[:, 0].tolist()
            raise UsageError(f"a probe needs images of every class; there are none of class {missing[0]}")
        mean, variance = data.moments()
        scale = torch.where(bounds.varies(variance, mean.abs(), 1, data.eps), variance.clamp(min=0).sqrt(), 1.0)
        return cls(mean, scale, (2 * data.counts - n).to(mean) / n)

    def probe(self, weight: Tensor, l2: Tensor) -> Probe:
        """The probe with these weights (m, d, c) of standardised features."""
        return Probe(self.mean, weight / self.scale[:, :, None], self.target.expand(len(weight), -1), l2)


class Ridge:
    """The ridge path of some images: probes for any strength from one eigendecomposition per probe."""

    def __init__(self, data: ProbeSums | ProbeRows) -> None:
        self.standard = Standard.of(data)
        self.eigenvalues, self.vectors, self.product = data.decompose(self.standard)

    def fit(self, l2: float | Tensor) -> Probe:
        """The probes for one strength, or for one strength each, (m,)."""
        l2 = tensor(l2, "l2").to(self.product)
        if l2.shape not in ((), (1,), (len(self.product),)) or not (torch.isfinite(l2) & (l2 > 0)).all():
            raise UsageError(f"l2 must be a finite strength above 0, or one for each of {len(self.product)} probes")
        l2 = l2.expand(len(self.product))
        return self.standard.probe(self.vectors @ (self.product / (self.eigenvalues + l2[:, None])[:, :, None]), l2)

    def errors(self, held_out: ProbeSums | ProbeRows, grid: tuple[float, ...] = GRID) -> Tensor:
        """Mean squared error of every strength on other images, (strengths, m), less what no strength changes."""
        gram, product = held_out.along(self)
        quadratic = gram * (self.product @ self.product.mT)
        linear = (product * self.product).sum(2)[:, None]
        shrunk = 1 / (self.eigenvalues[:, None] + torch.tensor(grid).to(gram)[:, None])
        return (shrunk * (shrunk @ quadratic - 2 * linear)).sum(2).T / held_out.counts.sum()

    def best(self, held_out: ProbeSums | ProbeRows, grid: tuple[float, ...] = GRID) -> Tensor:
        """(m,) the strength with the smallest error on held-out images."""
        return torch.tensor(grid, dtype=torch.float64)[self.errors(held_out, grid).argmin(0).cpu()]


def refit(data: ProbeSums | ProbeRows, l2: Tensor) -> Probe:
    """The probes of known strengths, (m,): the same as `Ridge(data).fit(l2)`, at a tenth of the time."""
    if isinstance(data, ProbeRows):
        return Ridge(data).fit(l2)
    standard = Standard.of(data)
    gram, product = data.products(standard)
    l2 = l2.to(gram)
    gram.diagonal(dim1=1, dim2=2).add_(l2[:, None])
    return standard.probe(torch.cholesky_solve(product, torch.linalg.cholesky(gram)), l2)
