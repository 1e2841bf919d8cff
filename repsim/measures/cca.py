r"""Canonical correlations: how much of the space of one representation is in the space of the other.

With X = U_x S_x V_x^T and Y = U_y S_y V_y^T centred (n images; r_x and r_y directions that vary), the canonical
correlations rho_1 >= rho_2 >= ... are the singular values of U_x^T U_y = A diag(rho) B^T, and the canonical variates
the columns of U_x A and U_y B.

* CCA: the mean of the min(r_x, r_y) correlations. Every direction counts as much, however little varies along it.
* SVCCA (Raghu et al. 2017): the same of the fewest principal directions of either that hold 99 % of its variance.
* PWCCA (Morcos et al. 2018): their mean weighted by how much of X each variate h_k accounts for,
  alpha_k = sum_j | <h_k, x_j> | over the features x_j of X.

With r directions in both, unrelated representations have correlations up to about the root of 4 r / n: take ten times
as many images as features, and compare with permuted images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from repsim.measures import bounds
from repsim.measures.features import centred, finite, narrow, noise, same_images
from repsim.measures.halves import as_left_out, cuts

VARIANCE = 0.99
"""Of a representation's variance is held by the directions that SVCCA keeps."""
Pairs = Sequence[tuple[int, int]]


class Principal(NamedTuple):
    """Centred features (n, p) as U diag(s) V^T, in the r directions that vary by more than rounding."""

    left: Tensor
    """U, (n, r) float64: orthonormal columns."""
    sizes: Tensor
    """s, (r,), from large to small; of Frobenius norm 1."""
    right: Tensor | None
    """V, (p, r); None where p >= n."""


def principal(x: Any, name: str = "x") -> Principal:
    """Of features (n, ...), n >= 4: what CCA, SVCCA and PWCCA need; r = 0 where they are constant."""
    x = finite(x, "cca", name)
    z = centred(x)
    wide = z.shape[1] >= len(z)
    q, r = torch.linalg.qr(narrow(z))
    u, s, vt = torch.linalg.svd(r, full_matrices=False)
    keep = _kept(s, x)
    s = s[keep]
    return Principal(q @ u[:, keep], s / torch.linalg.vector_norm(s), None if wide else vt[keep].mT)


def basis(x: Any, name: str = "x") -> Principal:
    """What CCA alone needs: other orthonormal columns of the same space, which take half of the time."""
    z = centred(finite(x, "cca", name))
    if z.shape[1] >= len(z):
        return principal(x, name)
    q, r = torch.linalg.qr(z)
    sizes = torch.linalg.svdvals(r)
    return Principal(q, sizes, None) if _kept(sizes, x).all() else principal(x, name)


def _kept(sizes: Tensor, x: Tensor) -> Tensor:
    """Which singular values of features are more than rounding."""
    total = torch.linalg.vector_norm(sizes)
    return sizes > torch.maximum(noise(x), bounds.ZERO * bounds.eps_of(x.dtype) * total)


def main_directions(x: Principal) -> Principal:
    """The fewest directions, the largest first, that hold `VARIANCE` of the variance."""
    count = _held(x.sizes.square())
    return Principal(x.left[:, :count], x.sizes[:count], None if x.right is None else x.right[:, :count])


def _held(variances: Tensor) -> int:
    """How many of them, from large to small, hold `VARIANCE` of their sum."""
    held = variances.cumsum(0) / variances.sum()
    return int((held < VARIANCE - 1e-12).sum()) + 1


def cca(x: Any, y: Any) -> float:
    """Mean canonical correlation of two representations of the same images, in float64.

    From 0 to 1, which is for the same representation but for an invertible linear map and translation. Unrelated
    representations give more than 0, see the module.

    Args:
        x: (n, ...) features of n >= 4 images; all axes but the first are flattened.
        y: (n, ...) features of the same images in the same order.

    Returns:
        NaN where x or y is the same for all images, or varies in n - 1 directions, as features of n <= p mostly do:
        they hold every centred representation of these images, so that all correlations are 1 whatever the other is.

    Raises:
        UsageError: different numbers of images, or fewer than 4; no dense real numbers.
        RepsimError: NaN or infinite features.

    >>> x = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    >>> round(cca(x, x.cumsum(1) + 1), 6)
    1.0

    Reference: Hotelling (1936); Raghu et al. (2017), section 2.1.
    """
    x, y = same_images(x, y, "cca")
    return cca_values([basis(x), basis(y, "y")], [(0, 1)]).item()


def svcca(x: Any, y: Any) -> float:
    """Mean canonical correlation of the principal directions that hold 99 % of the variance, in float64.

    From 0 to 1, which is for the same representation but for rotation, scale and translation; invertible linear maps
    change which directions are kept. Otherwise as `cca`; NaN where a side keeps n - 1 directions.

    Reference: Raghu, Gilmer, Yosinski & Sohl-Dickstein (2017), "SVCCA", section 2.
    """
    return _of_two(x, y, svcca_values)


def pwcca(x: Any, y: Any) -> float:
    """Canonical correlations weighted by how much of x they account for, in float64: not symmetric.

    From 0 to 1, which is for a y that holds x. It does not depend on the scale and translation of either, nor on an
    invertible linear map of y; a rotation of x changes it, for the weights are sums of absolute values over the
    features of x. Where x varies in more directions than y, those that y has none for do not count. Otherwise as `cca`;
    NaN too where x has n features or more, or where both together vary in n directions or more: several correlations
    are 1 then, and any mixture of their variates is as good.

    Reference: Morcos, Raghu & Bengio (2018), "Insights on representational similarity", section 2.1, eq. 3 (their
    code multiplies by other vectors than the variates; what is computed here is the equation).
    """
    return _of_two(x, y, pwcca_values)


def _of_two(x: Any, y: Any, values: Callable[[Sequence[Principal], Pairs], Tensor]) -> float:
    x, y = same_images(x, y, "cca")
    return values([principal(x), principal(y, "y")], [(0, 1)]).item()


class Canonical(NamedTuple):
    """The canonical correlations of two representations, (k,), and their directions in the principal ones."""

    a: Tensor
    rho: Tensor
    b: Tensor


def _defined(x: Principal, y: Principal) -> bool:
    """Whether there is something to be found: no side is constant, or holds everything."""
    return all(0 < len(representation.sizes) < len(representation.left) - 1 for representation in (x, y))


def _canonical(x: Principal, y: Principal) -> Canonical:
    a, rho, bt = torch.linalg.svd(x.left.mT @ y.left, full_matrices=False)
    return Canonical(a, rho.clamp(max=1), bt.mT)


def _projection_weights(x: Principal, y: Principal, canonical: Canonical) -> Tensor | None:
    """<h_k, x_j> is row j of V S A: h_k = U a_k and X = U S V^T."""
    if x.right is None or len(x.sizes) + len(y.sizes) >= len(x.left):
        return None
    weights = ((x.right * x.sizes) @ canonical.a).abs().sum(0)
    return weights / weights.sum()


def _both_ways(pairs: Pairs) -> dict[tuple[int, int], list[tuple[int, bool]]]:
    """Which of the pairs are of the same two, in whatever order: their numbers, and whether they are the other way."""
    ways: dict[tuple[int, int], list[tuple[int, bool]]] = {}
    for number, (i, j) in enumerate(pairs):
        ways.setdefault((min(i, j), max(i, j)), []).append((number, i > j))
    return ways


def cca_values(prepared: Sequence[Principal], pairs: Pairs) -> Tensor:
    """The value of each pair of `principal`, (P,) float64; no directions are needed."""
    values = torch.full((len(pairs),), torch.nan).to(prepared[0].left)
    for (i, j), asked in _both_ways(pairs).items():
        if _defined(prepared[i], prepared[j]):
            rho = torch.linalg.svdvals(prepared[i].left.mT @ prepared[j].left).clamp(max=1)
            values[[number for number, _ in asked]] = rho.mean()
    return values


def pwcca_values(prepared: Sequence[Principal], pairs: Pairs) -> Tensor:
    """The value of each pair of `principal`, (P,) float64."""
    values = torch.full((len(pairs),), torch.nan).to(prepared[0].left)
    for (i, j), asked in _both_ways(pairs).items():
        if not _defined(prepared[i], prepared[j]):
            continue
        canonical = _canonical(prepared[i], prepared[j])
        for number, turned in asked:
            x, y = (prepared[j], prepared[i]) if turned else (prepared[i], prepared[j])
            weights = _projection_weights(
                x, y, Canonical(canonical.b, canonical.rho, canonical.a) if turned else canonical
            )
            if weights is not None:
                values[number] = (weights * canonical.rho).sum()
    return values


class Half(NamedTuple):
    """What is needed of a representation in one half of the images; C is the Gram of centred U in it, (r, r)."""

    whitening: Tensor
    """W, (k, r), with W C W^T = I: U W^T has orthonormal columns, less their mean."""
    loadings: Tensor | None
    """(p, k): how much of each feature is along each of these."""
    images: float
    """How many there are."""


def _all_of(x: Principal, gram: Tensor, images: float) -> Half:
    factor = torch.linalg.cholesky(gram)
    whitening = torch.linalg.solve_triangular(factor, torch.eye(len(gram)).to(gram), upper=False)
    return Half(whitening, None if x.right is None else (x.right * x.sizes) @ factor, images)


def _main_of(x: Principal, gram: Tensor, images: float) -> Half:
    eigenvalues, vectors = torch.linalg.eigh(x.sizes[:, None] * gram * x.sizes)
    count = _held(eigenvalues.flip(0).clamp(min=0))
    whitening = (vectors[:, -count:] / eigenvalues[-count:].sqrt()).T * x.sizes
    return Half(whitening, None, images)


def _mean_correlation(x: Half, y: Half, product: Tensor) -> tuple[Tensor, Tensor]:
    product = product if len(product) < product.shape[1] else product.T
    value = torch.linalg.eigvalsh(product @ product.T).clamp(0, 1).sqrt().mean()
    return value, value


def _weighted_correlation(x: Half, y: Half, product: Tensor) -> tuple[Tensor, Tensor]:
    undefined = product.new_tensor(torch.nan)
    if sum(product.shape) >= x.images:
        return undefined, undefined
    squares, a = torch.linalg.eigh(product @ product.T)
    count = min(product.shape)  # the largest come last
    rho, a = squares[-count:].clamp(0, 1).sqrt(), a[:, -count:]

    def mean(half: Half, directions: Tensor) -> Tensor:
        if half.loadings is None:
            return undefined
        weights = (half.loadings @ directions).abs().sum(0)
        return (rho * weights).sum() / weights.sum()

    return mean(x, a), mean(y, torch.nn.functional.normalize(product.T @ a, dim=0))


@dataclass(frozen=True)
class ByHalves:
    """Values without groups of images, as halves of the images give them (`measures/halves.py`).

    To first order an image changes rho_k by u_k v_k - rho_k (u_k^2 + v_k^2) / 2 for its variates, and a jackknife by
    that is too wide for CCA (1.2 to 1.7 times the spread, as correlations of unrelated directions push each other
    apart) and too narrow for SVCCA and PWCCA (0.6 to 1.2, as it knows nothing of which directions are kept and how they
    are weighted). One that leaves groups out exactly is too wide for all three (1.3 to 2.6). Halves give 0.75 to 1.3,
    and 1.0 in the mean.

    NaN where half of the images are no more than the directions that vary, of SVCCA those that are kept.
    """

    of: Callable[[Principal, Tensor, float], Half]
    correlation: Callable[[Half, Half, Tensor], tuple[Tensor, Tensor]]
    """Of W_x U_x^T U_y W_y^T: the value of the two, and the other way round."""
    values: Callable[[Sequence[Principal], Pairs], Tensor]

    def __call__(self, prepared: Sequence[Principal], pairs: Pairs, groups: Tensor) -> Tensor:
        """(G, P); NaN where there is one group only."""
        groups = groups.to(prepared[0].left.device)
        signs = cuts(groups)
        return as_left_out(self.values(prepared, pairs), self.in_halves(prepared, pairs, groups, signs), signs, groups)

    def in_halves(self, prepared: Sequence[Principal], pairs: Pairs, groups: Tensor, signs: Tensor) -> Tensor:
        """(2, C, P) the values of the images in the half where `signs` (C, G) are true, and of the others.

        In float32: U has columns of one size, so that its Grams of halves are near half of the identity.
        """
        prepared = [
            Principal(x.left.float(), x.sizes.float(), None if x.right is None else x.right.float()) for x in prepared
        ]
        sides = torch.cat([signs, ~signs]).float()  # (2 C, G)
        sizes = sides @ torch.bincount(groups).float()
        order = groups.argsort()
        counts = torch.bincount(groups).tolist()
        parts = [x.left[order].split(counts) for x in prepared]
        sums = [sides @ torch.stack([part.sum(0) for part in halves_of]) for halves_of in parts]

        def products(i: int, j: int) -> Tensor:
            """Of U_i and U_j, each centred, in each half: (2 C, r_i, r_j)."""
            plain = torch.stack([a.mT @ b for a, b in zip(parts[i], parts[j])])
            means = sums[i][:, :, None] * (sums[j] / sizes[:, None])[:, None, :]
            return (sides @ plain.flatten(1)).view(-1, *plain.shape[1:]) - means

        used = sorted({i for pair in pairs for i in pair if len(prepared[i].sizes)})
        halves = {i: half for i in used if (half := self._halves(prepared[i], products(i, i), sizes))}
        correlations = torch.full((len(sides), len(pairs)), torch.nan).to(sides)
        for (i, j), asked in _both_ways(pairs).items():
            if i not in halves or j not in halves:
                continue
            for side, product in enumerate(products(i, j)):
                x, y = halves[i][side], halves[j][side]
                values = self.correlation(x, y, x.whitening @ product @ y.whitening.T)
                for number, turned in asked:
                    correlations[side, number] = values[turned]
        return correlations.double().view(2, len(signs), -1)

    def _halves(self, x: Principal, grams: Tensor, sizes: Tensor) -> list[Half] | None:
        """None where there is one that holds everything."""
        if self.of is _all_of and len(x.sizes) >= sizes.min() - 1:
            return None
        halves = [self.of(x, gram, images) for gram, images in zip(grams, sizes.tolist())]
        return halves if all(len(half.whitening) < half.images - 1 for half in halves) else None


def _main(prepared: Sequence[Principal]) -> list[Principal]:
    return [main_directions(x) if len(x.sizes) else x for x in prepared]


def svcca_values(prepared: Sequence[Principal], pairs: Pairs) -> Tensor:
    """The value of each pair of `principal`, (P,) float64."""
    return cca_values(_main(prepared), pairs)


cca_without = ByHalves(_all_of, _mean_correlation, cca_values)
svcca_without = ByHalves(_main_of, _mean_correlation, svcca_values)
pwcca_without = ByHalves(_all_of, _weighted_correlation, pwcca_values)
