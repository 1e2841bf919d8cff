r"""Do two representations find the same images near? Overlaps of the k nearest neighbours by cosine.

With N_i the k nearest other images of image i in one representation and M_i in the other (k = 10):

* mutual nearest neighbours: mean_i |N_i and M_i| / k;
* Jaccard: mean_i |N_i and M_i| / |N_i or M_i|;
* CKNNA: CKA of the images' inner products K, L with all but those of common neighbours put to zero. With
  m_ij = 1 where j is in N_i and in M_i (with N_i alone in HSIC of K with itself),
  HSIC = [ sum_ij K_ij m_ij L_ji m_ji + 1'(mK)1 1'(mL)1 / ((n-1)(n-2)) - 2 1'(mK)(mL)1 / (n-2) ] / (n (n-3)),
  the last product being the mean of (mK)(mL) and (mL)(mK).

Features are scaled to length 1, so inner products are cosines. Unrelated representations of n images share
k / (n - 1) of their neighbours, and so the more, the fewer images there are: compare values of as many images.

Reference: Huh, Cheung, Wang & Isola (2024), "The Platonic representation hypothesis", section 3 and appendix C; Wang et
al. (2022), "Towards understanding the instability of network embedding"; Klabunde et al. (2023), section 3.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from repsim.errors import UsageError
from repsim.measures.features import finite, left_out, same_images, scaled, varies
from repsim.measures.inputs import whole

K = 10
"""Nearest neighbours."""
ROWS = 512
"""Images whose neighbours are looked for at a time."""
Pairs = Sequence[tuple[int, int]]


class Neighbours(NamedTuple):
    """The nearest neighbours of each image, more than k of them, so that some may be left out."""

    k: int
    x: Tensor
    """(n, p) float64 features of length 1; NaN where an image's are all zero, or all images' are the same."""
    nearest: Tensor
    """(n, c) int64 positions, c >= k, nearest first."""
    cosines: Tensor
    """(n, c) to them."""

    @property
    def defined(self) -> bool:
        return not self.x.isnan().any()


def mutual_knn(x: Any, y: Any, *, k: int = K) -> float:
    """The share of the k nearest neighbours that two representations of the same images have in common.

    From 0 to 1, which is for the same representation; k / (n - 1) for unrelated ones. It does not depend on rotation
    and scale of either; translations and invertible linear maps change it. Which of equally near images counts is not
    defined.

    Args:
        x: (n, ...) features of n >= k + 2 images; all axes but the first are flattened.
        y: (n, ...) features of the same images in the same order.
        k: how many neighbours.

    Returns:
        NaN where x or y is the same for all images, or zero for one of them, which has no direction.

    Raises:
        UsageError: different numbers of images, or fewer than k + 2 (of k + 1 all are neighbours of all), or than 4;
            no dense real numbers.
        RepsimError: NaN or infinite features.

    >>> x = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    >>> round(mutual_knn(x, 3 * x), 6)
    1.0
    """
    return _of_two(x, y, k, MUTUAL)


def jaccard(x: Any, y: Any, *, k: int = K) -> float:
    """The mean Jaccard overlap of the k nearest neighbours in two representations of the same images.

    Otherwise as `mutual_knn`, of which it is a steeper function for each image: s / (2 - s) for a share s in common.
    """
    return _of_two(x, y, k, JACCARD)


def cknna(x: Any, y: Any, *, k: int = K) -> float:
    """CKA of the inner products of common nearest neighbours, in two representations of the same images.

    About 0 for unrelated representations, 1 for the same one; it may come out slightly negative. Otherwise as
    `mutual_knn` (k from 2). In the authors' code a term of HSIC takes rows of one and columns of the other, so that the
    order of the two matters in the fourth digit, and 1e-6 is added to the denominator, which matters where n is in the
    thousands. Here it is the mean of both orders, and nothing is added.
    """
    return _of_two(x, y, whole(k, "k", 2), CKNNA)


def _of_two(x: Any, y: Any, k: int, kind: Kind) -> float:
    x, y = same_images(x, y, "nearest neighbours")
    return kind.values([neighbours(x, k=k, spare=0), neighbours(y, "y", k=k, spare=0)], [(0, 1)]).item()


def neighbours(x: Any, name: str = "x", *, k: int = K, spare: int = K) -> Neighbours:
    """Of features (n, ...), n >= k + 2: the k nearest and `spare` more; `mutual_knn` has the errors."""
    k = whole(k, "k")
    x = finite(x, "nearest neighbours", name)
    if len(x) < k + 2:
        raise UsageError(
            f"{k} nearest neighbours need at least {k + 2} images, got {len(x)}; pass more, or a smaller k"
        )
    z = scaled(x)
    z = z / torch.linalg.vector_norm(z, dim=1, keepdim=True) if varies(x) else torch.full_like(z, torch.nan)
    return _searched(k, z, k + spare)


def _searched(k: int, x: Tensor, count: int) -> Neighbours:
    n = len(x)
    nearest, cosines = list[Tensor](), list[Tensor]()
    for start in range(0, n, ROWS):
        near = x[start : start + ROWS] @ x.mT
        near.diagonal(start).fill_(-torch.inf)
        top = near.topk(min(count, n - 1))
        nearest.append(top.indices)
        cosines.append(top.values)
    return Neighbours(k, x, torch.cat(nearest), torch.cat(cosines))


class Chosen(NamedTuple):
    """Which of the neighbours on the lists are the k nearest, in each of G cases."""

    lists: Neighbours
    among: Tensor
    """(G, n * c) bool."""
    images: Tensor
    """(G, n) bool: which images are there."""


def _first(lists: Neighbours) -> Chosen:
    """With all images, G = 1."""
    n, c = lists.nearest.shape
    among = (torch.arange(c, device=lists.x.device) < lists.k).expand(n, c)
    return Chosen(lists, among.reshape(1, -1), torch.ones(1, n, dtype=torch.bool, device=lists.x.device))


def _left(lists: Neighbours, groups: Tensor) -> Chosen:
    """Without the images of each group; lists that are too short for that are made longer."""
    n, c = lists.nearest.shape
    neighbour_groups, places = groups[lists.nearest], torch.arange(c, device=groups.device)
    among = torch.empty(int(groups.max()) + 1, n, c, dtype=torch.bool, device=groups.device)
    for group, chosen in enumerate(among):
        removed = neighbour_groups == group
        torch.logical_and(~removed, places - removed.cumsum(1) < lists.k, out=chosen)
    images = torch.arange(len(among), device=groups.device)[:, None] != groups
    if c < n - 1 and (images & (among.sum(2) < lists.k)).any():
        return _left(_searched(lists.k, lists.x, 2 * c), groups)
    among &= images[:, :, None]
    return Chosen(lists, among.flatten(1), images)


class Overlap(NamedTuple):
    """Of one pair of representations, in each of G cases."""

    value: Tensor
    """(G,)."""
    images: Tensor
    """(G, n) the part of each image: their mean is the value, or all of it that is not of a smaller order."""


class Common(NamedTuple):
    """The E neighbours that are on both lists of an image: places on the lists, counted through all images, and who."""

    in_a: Tensor
    in_b: Tensor
    image: Tensor
    other: Tensor

    def chosen(self, a: Chosen, b: Chosen) -> Tensor:
        """(G, E) whether each is among the k nearest in both."""
        return a.among[:, self.in_a] & b.among[:, self.in_b]


def _common(a: Neighbours, b: Neighbours) -> Common:
    image, in_a, in_b = (a.nearest[:, :, None] == b.nearest[:, None, :]).nonzero(as_tuple=True)
    other = a.nearest[image, in_a]
    return Common(image * a.nearest.shape[1] + in_a, image * b.nearest.shape[1] + in_b, image, other)


def _summed(values: Tensor, at: Tensor, n: int) -> Tensor:
    """(G, E) -> (G, n): the sums of those at each image."""
    sums = torch.zeros(len(values), n, dtype=torch.float64, device=values.device)
    return sums.index_add_(1, at, values.double())


def _shares(a: Chosen, b: Chosen) -> Tensor:
    """(G, n) how many of an image's k nearest are common, over k; 0 of images that are not there."""
    common = _common(a.lists, b.lists)
    return _summed(common.chosen(a, b), common.image, len(a.lists.x)) / a.lists.k


def mutual_overlap(a: Chosen, b: Chosen) -> Overlap:
    """The mean share."""
    shares = _shares(a, b)
    return Overlap(shares.sum(1) / a.images.sum(1), shares)


def jaccard_overlap(a: Chosen, b: Chosen) -> Overlap:
    """The mean overlap over all neighbours of either."""
    shares = _shares(a, b)
    shares = shares / (2 - shares)
    return Overlap(shares.sum(1) / a.images.sum(1), shares)


def cknna_hsic(a: Chosen, b: Chosen) -> Overlap:
    """HSIC of inner products of common neighbours."""
    n, m = len(a.lists.x), a.images.sum(1).double()
    common = _common(a.lists, b.lists)
    there = common.chosen(a, b)
    k_ij = there * a.lists.cosines.flatten()[common.in_a]
    l_ij = there * b.lists.cosines.flatten()[common.in_b]
    # Where j is a common neighbour of i, is i one of j? L_ji is L_ij, if so.
    keys, order = (common.image * n + common.other).sort()
    back = common.other * n + common.image
    at = torch.searchsorted(keys, back).clamp(max=max(len(keys) - 1, 0))
    both = (keys[at] == back) & there[:, order[at]] if len(keys) else there
    trace = _summed(both * k_ij * l_ij, common.image, n)
    total = k_ij.sum(1) * l_ij.sum(1) / ((m - 1) * (m - 2))
    (rows_k, rows_l), (columns_k, columns_l) = (
        [_summed(values, at, n) for values in (k_ij, l_ij)] for at in (common.image, common.other)
    )
    across = (columns_k * rows_l + rows_k * columns_l).sum(1) / 2
    # Of the three terms the trace alone is of order n, and has a part for each image.
    return Overlap((trace.sum(1) + total - 2 * across / (m - 2)) / (m * (m - 3)), trace / (m - 3)[:, None])


def _means_without(images: Tensor, groups: Tensor) -> Tensor:
    """(G,) the mean over the images of all other groups, of values (n,)."""
    return (images.sum() - left_out(groups, images)) / (len(groups) - torch.bincount(groups))


def _measured(overlap: Callable[[Chosen, Chosen], Overlap], chosen: Sequence[Chosen], pairs: Pairs) -> list[Overlap]:
    """Of each pair; NaN where one is undefined."""
    overlaps = []
    for i, j in pairs:
        if chosen[i].lists.defined and chosen[j].lists.defined:
            overlaps.append(overlap(chosen[i], chosen[j]))
        else:
            undefined = torch.full(
                chosen[i].images.shape, torch.nan, dtype=torch.float64, device=chosen[i].images.device
            )
            overlaps.append(Overlap(undefined[:, 0], undefined))
    return overlaps


class Kind(NamedTuple):
    """A measure of overlap, as what is computed of each pair, and of those with themselves that it is divided by."""

    overlap: Callable[[Chosen, Chosen], Overlap]
    normalised: bool

    def _table(self, chosen: Sequence[Chosen], pairs: Pairs, value_of: Callable[[Overlap], Tensor]) -> Tensor:
        """(G, P)."""
        cross = torch.stack([value_of(overlap) for overlap in _measured(self.overlap, chosen, pairs)], 1)
        if not self.normalised:
            return cross
        used = sorted({i for pair in pairs for i in pair})
        own = {
            i: value_of(overlap) for i, overlap in zip(used, _measured(self.overlap, chosen, [(i, i) for i in used]))
        }
        roots = torch.stack([own[i] * own[j] for i, j in pairs], 1)
        return cross / torch.where(roots > 0, roots, torch.nan).sqrt()

    def values(self, prepared: Sequence[Neighbours], pairs: Pairs) -> Tensor:
        """The value of each pair of `neighbours`, (P,) float64."""
        return self._table([_first(x) for x in prepared], pairs, lambda overlap: overlap.value)[0]

    def left(self, prepared: Sequence[Neighbours], pairs: Pairs, groups: Tensor) -> Tensor:
        """The values of the images left without each of G groups, (G, P)."""
        groups = groups.to(prepared[0].x.device)
        return self._table([_left(x, groups) for x in prepared], pairs, lambda overlap: overlap.value)

    def without(self, prepared: Sequence[Neighbours], pairs: Pairs, groups: Tensor) -> Tensor:
        """The same for a jackknife, (G, P): nearer to the values of all images, that it may not be too wide.

        A group is lost twice: Q is what a value loses if the group's images are no longer averaged over but still are
        neighbours, and C = D - Q what it loses beside if they are none, and others come in their place. Most of C is
        that change of places, which a value of other images does not have, so that plain jackknife standard errors,
        the root of the sum of D^2 over groups, are 1.4 to 1.9 times the spread, and intervals cover 0.99 or more; those
        of Q alone are 0.7 to 0.8 of it, as images that are neighbours of many, and of each other, vary together. The
        sum of Q^2 + 2 Q C = 2 Q D - Q^2 has what both have in common without C^2, and is what is observed. What is lost
        is therefore taken times the root of its share in the sum of D^2, not more than 1.
        """
        groups, all_images = groups.to(prepared[0].x.device), [_first(x) for x in prepared]
        values, left = self.values(prepared, pairs), self.left(prepared, pairs, groups)

        def not_averaged(overlap: Overlap) -> Tensor:
            images = overlap.images[0]
            return overlap.value + _means_without(images, groups) - images.mean()

        apart = [x - x.mean(0) for x in (self._table(all_images, pairs, not_averaged), left)]
        share = (apart[0] * (2 * apart[1] - apart[0])).sum(0) / apart[1].square().sum(0)
        return values + (left - values) * share.nan_to_num(1.0).clamp(0, 1).sqrt()


MUTUAL, JACCARD, CKNNA = Kind(mutual_overlap, False), Kind(jaccard_overlap, False), Kind(cknna_hsic, True)
