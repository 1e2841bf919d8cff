"""Every measure that compares two representations, in one form: its value, and what many pairs and their errors need.

A measure that is summed over minibatches is `Streamed`: each layer's batch becomes a row, and one product of all rows
gives all pairs. One that needs all images at once is `Held`: each layer is prepared once.

>>> x = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
>>> {name: round(measure.value(x, x), 3) for name, measure in MEASURES.items()}["cka-rbf"]
1.0
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from repsim.measures import cca, halves, overlap, procrustes, rbf, ridge, rsa
from repsim.measures.cka import cka, gram_row, normalise
from repsim.measures.intervals import jackknife

ROTATED = frozenset({"rotation", "scale", "translation"})
ANY_LINEAR = ROTATED | {"linear"}
DIRECTIONS = frozenset({"rotation", "scale"})


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What is the same of all measures: what it is called, and what it claims."""

    name: str
    what: str
    """In a few words."""
    range: tuple[float, float]
    symmetric: bool
    invariant: frozenset[str]
    """Of either representation: `rotation`, `scale`, `translation`, `linear` (an invertible linear map)."""
    fewest: int = 4
    """Images, at least: of a batch, where it is streamed."""
    value: Callable[[Any, Any], float]
    """Of (n, ...) and (n, ...) features of the same images."""


@dataclass(frozen=True, kw_only=True)
class Streamed(Measure):
    """A measure of means over minibatches: `BatchMeans(measure.finish)` of R @ R.T, R the rows of all layers."""

    row: Callable[[Tensor], Tensor]
    """(n, p) features of one batch -> (n(n-1)/2,) float64; NaN where they are not finite."""
    finish: Callable[[Tensor], Tensor]
    """(N, N) mean over batches of R @ R.T -> (N, N) values."""


@dataclass(frozen=True, kw_only=True)
class Held(Measure):
    """A measure of all images at once. What two measures prepare by the same function they can share."""

    prepare: Callable[[Tensor], Any]
    """(n, p) features, once per layer -> what the other two take."""
    values: Callable[[Sequence[Any], Sequence[tuple[int, int]]], Tensor]
    """What was prepared of N layers, and P pairs of them -> (P,) float64."""
    without: Callable[[Sequence[Any], Sequence[tuple[int, int]], Tensor], Tensor]
    """The same, and (n,) int64 groups of images from 0 to G - 1 -> (G, P) float64: the values without each group, or
    numbers that a jackknife makes the right standard errors of, as the function says."""
    contrasts: int | None = None
    """Degrees of freedom of the standard errors at most, if fewer than G - 1."""

    def degrees(self, groups: int) -> int:
        """Degrees of freedom of standard errors over so many groups."""
        return groups - 1 if self.contrasts is None else min(groups - 1, self.contrasts)


@dataclass(frozen=True)
class LeftOut:
    """Values of all images and without each group of them, in the form that `intervals.jackknife` takes.

    >>> groups = torch.tensor([0, 0, 1, 1, 2, 2])
    >>> images = torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0, 3.0])
    >>> rest = torch.stack([images[groups != group].mean() for group in range(3)])
    >>> [round(each.item(), 4) for each in LeftOut(images.mean(), rest, groups).compute()]
    [2.0, 0.5774]
    """

    values: Tensor
    """(P,)."""
    without: Tensor
    """(G, P)."""
    groups: Tensor
    """(n,) int64, from 0 to G - 1."""

    @property
    def counts(self) -> Tensor:
        """(G,) images of each group."""
        return torch.bincount(self.groups.cpu(), minlength=len(self.without))

    @property
    def batches(self) -> int:
        """How many images there are."""
        return len(self.groups)

    def mean(self) -> Tensor:
        return self.values

    def leave_one_out(self) -> Iterator[tuple[Tensor, int]]:
        """For each group that holds images: the values of all others, and the group's size."""
        for rest, count in zip(self.without, self.counts.tolist()):
            if count:
                yield rest, count

    def compute(self, statistic: Callable[[Tensor], Tensor] = lambda values: values) -> tuple[Tensor, Tensor]:
        """The values, or a statistic of them, with jackknife standard errors, as `BatchMeans.compute` gives them."""
        return jackknife(self, statistic)


def cka_row(x: Tensor) -> Tensor:
    """(n(n-1)/2,) float64 of one batch's features (n, p): rows' inner products are HSIC_1, see `cka.gram_row`."""
    n, row = len(x), gram_row(x.flatten(1))
    return row.direction.double() * (row.norm * (2 / (n * (n - 3))) ** 0.5)


MEASURES: dict[str, Streamed | Held] = {
    measure.name: measure
    for measure in (
        Streamed(
            name="cka",
            what="linear CKA, unbiased",
            range=(-1, 1),
            symmetric=True,
            invariant=ROTATED,
            value=cka,
            row=cka_row,
            finish=normalise,
        ),
        Streamed(
            name="cka-rbf",
            what="CKA with Gaussian kernels, unbiased",
            range=(-1, 1),
            symmetric=True,
            invariant=ROTATED,
            value=rbf.rbf_cka,
            row=rbf.rbf_row,
            finish=normalise,
        ),
        *(
            Streamed(
                name=f"rsa-{correlation}",
                what=f"{correlation.capitalize()} correlation of dissimilarities",
                range=(-1, 1),
                symmetric=True,
                invariant=frozenset({"scale"}),
                value=partial(rsa.rsa, correlation=correlation),
                row=partial(rsa.rsa_row, correlation=correlation),
                finish=rsa.correlations,
            )
            for correlation in ("pearson", "spearman")
        ),
        Held(
            name="procrustes",
            what="cosine of the angular shape distance",
            range=(0, 1),
            symmetric=True,
            invariant=ROTATED,
            value=procrustes.procrustes,
            prepare=procrustes.shape,
            values=procrustes.procrustes_values,
            without=procrustes.procrustes_without,
        ),
        Held(
            name="cca",
            what="mean canonical correlation",
            range=(0, 1),
            symmetric=True,
            invariant=ANY_LINEAR,
            value=cca.cca,
            prepare=cca.principal,
            values=cca.cca_values,
            without=cca.cca_without,
            contrasts=halves.CUTS,
        ),
        Held(
            name="svcca",
            what="mean canonical correlation of 99 % of the variance",
            range=(0, 1),
            symmetric=True,
            invariant=ROTATED,
            value=cca.svcca,
            prepare=cca.principal,
            values=cca.svcca_values,
            without=cca.svcca_without,
            contrasts=halves.CUTS,
        ),
        Held(
            name="pwcca",
            what="canonical correlations weighted by the first",
            range=(0, 1),
            symmetric=False,
            invariant=frozenset({"scale", "translation"}),
            value=cca.pwcca,
            prepare=cca.principal,
            values=cca.pwcca_values,
            without=cca.pwcca_without,
            contrasts=halves.CUTS,
        ),
        Held(
            name="linear-r2",
            what="R^2 of the second predicted from the first",
            range=(-torch.inf, 1),
            symmetric=False,
            invariant=ROTATED,
            fewest=ridge.FEWEST,
            value=ridge.linear_r2,
            prepare=ridge.predictor,
            values=ridge.r2_values,
            without=ridge.r2_without,
        ),
        Held(
            name="mutual-knn",
            what="share of nearest neighbours in common",
            range=(0, 1),
            symmetric=True,
            invariant=DIRECTIONS,
            fewest=overlap.K + 2,
            value=overlap.mutual_knn,
            prepare=overlap.neighbours,
            values=overlap.MUTUAL.values,
            without=overlap.MUTUAL.without,
        ),
        Held(
            name="cknna",
            what="CKA of nearest neighbours in common",
            range=(-torch.inf, torch.inf),
            symmetric=True,
            invariant=DIRECTIONS,
            fewest=overlap.K + 2,
            value=overlap.cknna,
            prepare=overlap.neighbours,
            values=overlap.CKNNA.values,
            without=overlap.CKNNA.without,
        ),
        Held(
            name="jaccard",
            what="Jaccard overlap of nearest neighbours",
            range=(0, 1),
            symmetric=True,
            invariant=DIRECTIONS,
            fewest=overlap.K + 2,
            value=overlap.jaccard,
            prepare=overlap.neighbours,
            values=overlap.JACCARD.values,
            without=overlap.JACCARD.without,
        ),
    )
}
"""By name."""
