"""Standard errors and intervals: there is one account of error for statistics that compare or join.

A statistic of sums is computed again without each of their groups in turn (`jackknife`), of all sums that it is of at
once, so that what is measured of the same images is paired, whatever is computed of it. What docs/intervals.md says of
intervals is about these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from scipy.stats import t
from torch import Tensor

if TYPE_CHECKING:
    from repsim.measures.running import GroupedSums, Together

ROUNDING = 1e-6
"""A standard error of less, as a share of the value or of 1, is of what float32 cannot tell apart, and says nothing."""
Mean = TypeVar("Mean", covariant=True)


class InGroups(Protocol[Mean]):
    """What a jackknife takes: a mean over batches, or several, and the same without each group of them."""

    @property
    def batches(self) -> int: ...

    @property
    def counts(self) -> Tensor:
        """(groups,) batches in each group."""
        ...

    def mean(self) -> Mean: ...

    def leave_one_out(self) -> Iterator[tuple[Mean, int]]:
        """For each group that holds batches: the mean over all others, and the group's size."""
        ...


def jackknife(sums: InGroups[Mean], statistic: Callable[[Mean], Tensor]) -> tuple[Tensor, Tensor]:
    r"""A function of the mean over batches, with its jackknife standard error.

    With g groups of m_j out of k batches, h_j = k / m_j and theta_(-j) the statistic without
    group j, the variance is that of the pseudo-values h_j theta - (h_j - 1) theta_(-j):

    .. math:: \frac{1}{g} \sum_j \frac{1}{h_j - 1}
              \left(h_j \theta - (h_j - 1)\theta_{(-j)} - \theta_J\right)^2

    where theta_J is the jackknife estimate, g theta - sum_j (1 - m_j/k) theta_(-j). For groups of
    one size this is the textbook (g-1)/g sum_j (theta_(-j) - mean)^2.

    Args:
        sums: one value per batch, or per image, summed in groups; or several such sums.
        statistic: maps the mean over batches, or a list of the means of several sums, to a tensor of any shape.

    Returns:
        The statistic and its standard error, of the same shape; NaN where there is one group only.

    Reference: Busing, Meijer & van der Leeden (1999), "Delete-m jackknife for unequal m", eq. 5-9.
    """
    theta = statistic(sums.mean())

    def without() -> Iterator[tuple[Tensor, float]]:  # twice, rather than keep as many tables as there are groups
        for rest, size in sums.leave_one_out():
            if sums.batches > size:
                yield statistic(rest), sums.batches / size

    groups = sum(0 < size < sums.batches for size in sums.counts.tolist())
    if groups < 2:
        return theta, torch.full_like(theta, torch.nan)
    nothing = torch.zeros_like(theta)
    estimate = groups * theta - sum(((1 - 1 / h) * rest for rest, h in without()), nothing)
    squares = sum(((h * theta - (h - 1) * rest - estimate) ** 2 / (h - 1) for rest, h in without()), nothing)
    return theta, (squares / groups).sqrt()


def effective_groups(sums: GroupedSums, parts: Callable[[Tensor], Sequence[Tensor]]) -> list[Tensor]:
    """How many groups a mean is really of: as many as there are where all give as much, 1 where one gives all.

    The square of the sum of what the groups give over the sum of their squares (Kish, Survey Sampling, 1965).

    Args:
        sums: in groups.
        parts: maps their mean to what is looked at of it, linearly: tensors of any shape, not negative.

    Returns:
        As `parts` does; NaN where nothing is given.

    >>> from repsim.measures.running import GroupedSums
    >>> sums = GroupedSums()
    >>> for value in (1.0, 1.0, 1.0):
    ...     _ = sums.update(torch.tensor([value, 0.0]))
    >>> _ = sums.update(torch.tensor([1.0, 3.0]))
    >>> [round(each.item(), 3) for each in effective_groups(sums, lambda mean: [mean[0], mean[1]])]
    [4.0, 1.0]
    """
    whole = parts(sums.mean())
    totals, squares = ([torch.zeros_like(tensor) for tensor in whole] for _ in range(2))
    for rest, size in sums.leave_one_out():
        for k, (of_all, of_rest) in enumerate(zip(whole, parts(rest), strict=True)):
            gives = of_all - (1 - size / sums.batches) * of_rest
            totals[k], squares[k] = totals[k] + gives, squares[k] + gives.square()
    return [total.square() / square for total, square in zip(totals, squares)]


class Crossed(NamedTuple):
    """A mean over draws of a statistic of images."""

    value: Tensor
    se: Tensor
    """Its standard error: over what is drawn, and over images."""
    df: Tensor
    """Degrees of freedom of that."""


def crossed(sums: GroupedSums | Together, statistic: Callable[[Any], Tensor]) -> Crossed:
    r"""The mean over draws of a statistic of images, where every draw has seen the same images.

    Draws (of training images) and groups of (test) images are the two random factors of a table with one value in each
    cell. With V_g the jackknife variance of the mean over draws, V_r the variance of that mean by the spread of draws,
    and V_e what both have in them, the variance of what is left of each draw,

    .. math:: V = V_g + V_r - V_e, \quad
              \nu = V^2 / \left(\frac{V_g^2}{g - 1} + \frac{V_r^2}{r - 1} + \frac{V_e^2}{(g - 1)(r - 1)}\right)

    but where V_e, an estimate too, is larger than one of the others, the other alone. Of a single draw V is V_g: what
    another draw would give is not in it.

    Args:
        sums: of values per image, (draws, ...), in groups; or several such sums.
        statistic: maps their mean, or the list of their means, to (draws, ...).

    Returns:
        The mean over draws, (...), with its standard error, NaN of a single group, and degrees of freedom.

    Reference: two-way random effects without replication (Searle, Casella & McCulloch, Variance Components, 1992,
    section 4.7); degrees of freedom by Satterthwaite (1946).
    """

    def mean_and_rest(means: Any) -> Tensor:
        values = statistic(means)
        mean = values.mean(0, keepdim=True)
        return torch.cat([mean, values - mean])

    theta, se = jackknife(sums, mean_and_rest)
    groups, draws = sums.groups - 1, len(theta) - 2  # less 1
    of_groups = se[0].square()
    if not draws:
        return Crossed(theta[0], se[0], torch.full_like(theta[0], groups))
    of_draws, of_both = (estimate[1:].square().sum(0) / draws / (draws + 1) for estimate in (theta, se))
    larger = torch.maximum(of_groups, of_draws)
    alone = torch.minimum(of_groups, of_draws) <= of_both
    variance = torch.where(alone, larger, of_groups + of_draws - of_both)
    squares = of_groups**2 / groups + of_draws**2 / draws + of_both**2 / (groups * draws)
    single = torch.where(of_groups >= of_draws, groups, draws)
    df = torch.where(alone, single, variance**2 / squares) if groups else torch.full_like(variance, torch.nan)
    return Crossed(theta[0], variance.sqrt(), df)


def interval(value: Tensor, se: Tensor, df: Tensor | float) -> tuple[Tensor, Tensor]:
    """The 95 % interval by Student's t.

    Args:
        value: of any shape.
        se: its standard error.
        df: degrees of freedom of that: one less than there are independent groups.

    Returns:
        Its lower and upper ends; NaN, which decides nothing, where the standard error is not known, zero or rounding.

    >>> low, high = interval(torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.0]), 19)
    >>> [round(float(end), 3) for end in (*low, *high)]
    [-0.047, nan, 2.047, nan]
    """
    df = torch.as_tensor(df, dtype=torch.float64)
    half = torch.from_numpy(np.asarray(t.ppf(0.975, df.where(df > 0, torch.nan)))).to(se) * se
    half = torch.where(se > ROUNDING * value.abs().clamp(min=1), half, torch.nan)
    return value - half, value + half
