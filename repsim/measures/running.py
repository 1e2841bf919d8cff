"""Sums over batches that can be merged, in groups from which `intervals` makes standard errors.

What is seen of a batch is added to one of at most `GROUPS` groups, the same one in all sums of a pass.

Where images come in groups of which a batch holds several (photographs with many crops, subjects, classes), a group's
images are left out of every batch instead: sums keep what they lose without them, and their means are as they were.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from repsim.errors import RepsimError, UsageError
from repsim.measures.inputs import tensor
from repsim.measures.intervals import jackknife

GROUPS = 32
"""Of the jackknife, at most."""
FEWEST = 4
"""Images in a batch, and left in it without one of its groups, at least; HSIC_1 divides by n - 3."""
Group = int | Tensor
"""Of the jackknife: the number of a batch, all of whose images are in the group number mod `GROUPS`; or (n,) int64, the
group of each of its images, from 0 to `GROUPS` - 1."""


Kind = TypeVar("Kind", bound=Callable[..., Any])
_kept: list[Callable[..., Any]] = []


def kept(kind: Kind) -> Kind:
    """Decorator of a class or a function that sums may hold: saved sums that hold it can be read again.

    Accumulators need it not. No file of sums can bring code to run that was not announced so.
    """
    _kept.append(kind)
    return kind


def all_kept() -> list[Callable[..., Any]]:
    """Everything that sums may hold beside tensors, numbers and texts."""
    return list(_kept)


class Accumulator(ABC):
    """A sum over batches that joins the sum over other batches.

    >>> class Largest(Accumulator):
    ...     value = float("-inf")
    ...     def update(self, x):
    ...         self.value = max(self.value, x.max().item())
    ...         return self
    ...     def merge(self, other):
    ...         return Largest().update(torch.tensor([self.value, other.value]))
    >>> Largest().update(torch.tensor([1.0, 3.0])).merge(Largest().update(torch.tensor([2.0]))).value
    3.0
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        kept(cls)

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """The sum over the batches of both; neither of them changes."""


class GroupedSums(Accumulator):
    """Sums of one tensor per batch, kept in a fixed number of groups for the jackknife.

    Batch b is added to group b mod `groups`, so memory does not grow with the number of batches;
    up to `groups` batches, every group is one batch and the jackknife is the usual delete-one.

    Attributes:
        sums: (groups, ...) float64, what the sum of all values loses without each group: the sum of the group's own.
        counts: (groups,) number of batches in each group.
    """

    def __init__(self, groups: int = GROUPS) -> None:
        self.counts = torch.zeros(groups, dtype=torch.int64)
        self._sums: Tensor | None = None

    @property
    def sums(self) -> Tensor:
        if self._sums is None:
            raise RepsimError("nothing was summed: not one whole batch was seen")
        return self._sums

    def __getstate__(self) -> dict[str, Any]:
        """What is saved: the sums of groups that hold something."""
        state = dict(vars(self))
        if self._sums is not None:
            state["_sums"] = self._sums[self.counts > 0]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._sums is not None:
            kept, shape = self._sums, self._sums.shape[1:]
            self._sums = kept.new_zeros(len(self.counts), *shape)
            self._sums[self.counts > 0] = kept

    @property
    def batches(self) -> int:
        """How many were added."""
        return int(self.counts.sum())

    @property
    def groups(self) -> int:
        """How many groups have batches."""
        return int((self.counts > 0).sum())

    @torch.no_grad()
    def update(self, value: Tensor, group: int | None = None) -> Self:
        """Add the value of one batch; `group` is its number where batches arrive out of order."""
        return self._add(value, 1, self.batches if group is None else group)

    def _add(self, value: Tensor, count: int, batch: int) -> Self:
        if self._sums is None:
            shape = (len(self.counts), *value.shape)
            self._sums = torch.zeros(shape, dtype=torch.float64, device=value.device)
        if value.shape != self.sums.shape[1:]:
            before, now = tuple(self.sums.shape[1:]), tuple(value.shape)
            raise UsageError(f"every batch needs a value of one shape, as of the same layers: got {now} after {before}")
        group = batch % len(self.counts)
        self.sums[group] += value
        self.counts[group] += count
        return self

    def _empty(self) -> Self:
        return type(self)(len(self.counts))

    def part(self, index: int) -> Self:
        """The sums of one part along the first axis of the values: a view."""
        part = self._empty()
        part.counts, part._sums = self.counts, self.sums[:, index]
        return part

    def merge(self, other: Self) -> Self:
        """The sums over the batches of both; number the batches of each apart from the other's."""
        if len(self.counts) != len(other.counts):
            raise ValueError(f"cannot merge {len(self.counts)} groups with {len(other.counts)}")
        merged = self._empty()
        merged.counts = self.counts + other.counts
        parts = [part._sums for part in (self, other) if part._sums is not None]
        merged._sums = torch.stack(parts).sum(0) if parts else None
        return merged

    def mean(self) -> Tensor:
        """Mean over all batches."""
        return self.sums.sum(0) / self.batches

    def leave_one_out(self) -> Iterator[tuple[Tensor, int]]:
        """For each group that holds batches: the mean over all others, and the group's size."""
        total = self.sums.sum(0)
        for value, count in zip(self.sums, self.counts.tolist()):
            if count:
                yield (total - value) / (self.batches - count), count


@kept
class Mixed(NamedTuple):
    """Of batches that hold images of several groups."""

    total: Tensor
    """The sum of the values of all batches."""
    batches: int
    gone: Tensor
    """(groups,) how many of them are left out whole without each group, for too few images would be left."""


class BatchMeans(GroupedSums):
    """A quantity that is computed from means over batches, as minibatch CKA is from those of HSIC.

    Args:
        finish: maps the mean over batches to the quantity. Where sums are saved it is a module's function, decorated
            with `kept`.
        groups: of the jackknife.

    >>> ratio = BatchMeans(lambda mean: mean[0] / mean[1])
    >>> for batch in (torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])):
    ...     _ = ratio.update(batch)
    >>> [round(float(number), 3) for number in ratio.compute()]
    [0.667, 0.125]
    """

    mixed: Mixed | None = None
    """What is known beside where batches hold images of several groups; `counts` are then of images."""

    def __init__(self, finish: Callable[[Tensor], Tensor], groups: int = GROUPS) -> None:
        super().__init__(groups)
        self.finish = finish

    def _empty(self) -> Self:
        empty = type(self)(self.finish, len(self.counts))
        empty.mixed = self.mixed
        return empty

    @torch.no_grad()
    def update(
        self, value: Tensor, group: Group | None = None, without: Callable[[Tensor], Tensor] | None = None
    ) -> Self:
        """Add the value of one batch.

        Args:
            value: of any shape, the same for all batches.
            group: of the batch, or of each of its images; None: batches come in order.
            without: maps the groups of the batch's images, (n,), to the values (g, ...) that the batch has without each
                of the g different ones, in order. What leaves fewer than `FEWEST` images is not looked at: the batch
                is then left out with the group.

        Raises:
            UsageError: images come in groups, and `without` is not given.
        """
        if not isinstance(group, Tensor):
            return super().update(value, group)
        if without is None:
            raise UsageError(
                "images come in groups, and this study does not say what it finds in a batch without one of them"
            )
        if self.mixed is None:
            self.mixed = Mixed(torch.zeros_like(value, dtype=torch.float64), 0, torch.zeros_like(self.counts))
        present, sizes = (tensor.tolist() for tensor in group.unique(return_counts=True))
        for number, size, rest in zip(present, sizes, without(group), strict=True):
            few = len(group) - size < FEWEST
            self._add(value if few else value - rest, size, number)
            self.mixed.gone[number] += few
        self.mixed = self.mixed._replace(total=self.mixed.total + value, batches=self.mixed.batches + 1)
        return self

    def part(self, index: int) -> Self:
        part = super().part(index)
        if self.mixed is not None:
            part.mixed = self.mixed._replace(total=self.mixed.total[index])
        return part

    def merge(self, other: Self) -> Self:
        merged = super().merge(other)
        a, b = self.mixed, other.mixed
        both = a and b and Mixed(a.total + b.total, a.batches + b.batches, a.gone + b.gone)
        merged.mixed = both or a or b
        return merged

    def mean(self) -> Tensor:
        return super().mean() if self.mixed is None else self.mixed.total / self.mixed.batches

    def leave_one_out(self) -> Iterator[tuple[Tensor, int]]:
        if self.mixed is None:
            yield from super().leave_one_out()
            return
        total, batches, gone = self.mixed
        for part, count, away in zip(self.sums, self.counts.tolist(), gone.tolist()):
            if count:
                yield (total - part) / (batches - away), count

    def compute(self, statistic: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The quantity, or a statistic of it, with its jackknife standard error over batches; see `jackknife`."""
        if statistic is None:
            return jackknife(self, self.finish)
        return jackknife(self, lambda mean: statistic(self.finish(mean)))


class ImageMeans(GroupedSums):
    """Means over images of values that images have one each of, in the groups of their batches, or in their own.

    Attributes:
        sums: (groups, ...) float64, the sum over the images of each group.
        counts: (groups,) number of images in each group.

    >>> means = ImageMeans()
    >>> for number, batch in enumerate((torch.tensor([1.0, 2.0, 3.0]), torch.tensor([6.0]))):
    ...     _ = means.update(batch, number)
    >>> means.mean().item()
    3.0
    """

    own: bool = False
    """Whether images come in groups of their own."""

    @torch.no_grad()
    def update(self, value: Tensor, group: Group) -> Self:  # pyrefly: ignore [bad-override]  # counts are of images
        """Add (n, ...), the values of the n images of a batch."""
        if not isinstance(group, Tensor):
            return self._add(value.double().sum(0), len(value), group)
        self.own, group = True, group.to(value.device)
        for number in group.unique().tolist():
            own = value[group == number]
            self._add(own.double().sum(0), len(own), number)
        return self

    def _empty(self) -> Self:
        empty = super()._empty()
        empty.own = self.own
        return empty

    def merge(self, other: Self) -> Self:
        merged = super().merge(other)
        merged.own = self.own or other.own
        return merged

    def se(self, over_images: Moments) -> Tensor:
        """The standard error of the means: over images, unless these come in groups of their own; then over these."""
        return jackknife(self, lambda mean: mean)[1] if self.own else over_images.se()


class Together:
    """Sums over the same batches, for statistics of several of them: a group is left out of all at once.

    Args:
        parts: of one pass. Groups are weighted as in the first of them.

    >>> a, b = GroupedSums(), GroupedSums()
    >>> for value in (1.0, 2.0, 4.0):
    ...     _, _ = a.update(torch.tensor(value)), b.update(torch.tensor(value + 1))
    >>> [round(each.item(), 6) for each in Together([a, b]).compute(lambda means: means[1] - means[0])]
    [1.0, 0.0]
    """

    def __init__(self, parts: Sequence[GroupedSums]) -> None:
        self.parts, self.counts = parts, parts[0].counts
        for part in parts:
            if not torch.equal(part.counts > 0, self.counts > 0):
                raise ValueError("a statistic needs sums of the same batches")

    @property
    def batches(self) -> int:
        return self.parts[0].batches

    @property
    def groups(self) -> int:
        """How many groups have batches."""
        return self.parts[0].groups

    def mean(self) -> list[Tensor]:
        """Of each part, over all batches."""
        return [part.mean() for part in self.parts]

    def leave_one_out(self) -> Iterator[tuple[list[Tensor], int]]:
        """For each group that holds batches: the mean of each part over all others, and the group's size."""
        for rest in zip(*(part.leave_one_out() for part in self.parts), strict=True):
            yield [mean for mean, _ in rest], rest[0][1]

    def compute(self, statistic: Callable[[list[Tensor]], Tensor]) -> tuple[Tensor, Tensor]:
        """A statistic of the means of all parts, with its jackknife standard error; see `jackknife`."""
        return jackknife(self, statistic)


class Moments(Accumulator):
    """Mean and standard error over images, for quantities with one value per image.

    Squares are summed about the mean of each batch and joined as Chan, Golub & LeVeque (1979) do, for the difference
    of the plain sums loses all digits where the mean is far larger than the spread:

        D = D_a + D_b + (mean_b - mean_a)^2 n_a n_b / (n_a + n_b)

    Attributes:
        count: images seen.
        total: sum of the values, float64.
        deviations: sum of their squared distances from the mean, float64.

    >>> ages = Moments()
    >>> for batch in (torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])):
    ...     _ = ages.update(batch)
    >>> round(ages.mean().item(), 3), round(ages.se().item(), 3)
    (3.0, 1.08)
    """

    def __init__(self) -> None:
        self.count = 0
        self.total = self.deviations = torch.zeros((), dtype=torch.float64)

    @torch.no_grad()
    def update(self, values: Tensor) -> Moments:
        """Add (n, ...), the values of n images."""
        values = tensor(values, "values").double()
        if values.ndim == 0:
            raise UsageError("Moments takes values (n, ...) of n images, got a single number")
        if self.count and values.shape[1:] != self.total.shape:
            raise UsageError(
                f"Moments needs values of one shape: {tuple(values.shape[1:])} after {tuple(self.total.shape)}"
            )
        if len(values):
            self._join(len(values), values.sum(0), (values - values.mean(0)).square().sum(0))
        return self

    def _join(self, count: int, total: Tensor, deviations: Tensor) -> None:
        if self.count:
            apart = (total / count - self.total / self.count).square()
            deviations = self.deviations + deviations + apart * (self.count * count / (self.count + count))
            total = self.total + total
        self.count, self.total, self.deviations = self.count + count, total, deviations

    def merge(self, other: Moments) -> Moments:
        merged = Moments()
        for part in (self, other):
            if part.count:
                merged._join(part.count, part.total, part.deviations)
        return merged

    def mean(self) -> Tensor:
        self._some()
        return self.total / self.count

    def se(self) -> Tensor:
        """Standard error of the mean; NaN for a single image."""
        self._some()
        if self.count < 2:
            return torch.full_like(self.total, torch.nan)
        return (self.deviations / (self.count - 1) / self.count).sqrt()

    def _some(self) -> None:
        if not self.count:
            raise RepsimError("nothing was summed: no image was seen")


class Quantiles(Accumulator):
    """Quantiles over images of positive values, from counts in bins of equal ratio: memory that does not grow.

    A bin spans a factor of 2^(1/64), 1.1 %; within it values are taken to lie evenly (in logarithm), so a
    quantile is off by less than a bin, and by far less where many values fall into it. Between the two middle
    values of an even number it is the lower one. Values under 2^-24 and over 2^24 count as below and above all
    others; NaN are left out.

    Attributes:
        counts: (bins, ...) int32.
    """

    OCTAVES, PER_OCTAVE = 24, 64

    def __init__(self, counts: Tensor | None = None) -> None:
        self._counts = counts

    @property
    def counts(self) -> Tensor:
        if self._counts is None:
            raise RepsimError("nothing was counted: no image was seen")
        return self._counts

    def __getstate__(self) -> dict[str, Any]:
        """What is saved: the bins from the first to the last that hold something, few of thousands."""
        if self._counts is None:
            return {"counts": None}
        held = self.counts.flatten(1).any(1).nonzero()[:, 0]
        low, high = (int(held[0]), int(held[-1]) + 1) if len(held) else (0, 0)
        return {"counts": self.counts[low:high].clone(), "low": low, "bins": len(self.counts)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        kept = self._counts = state["counts"]
        if kept is not None:
            self._counts = kept.new_zeros(state["bins"], *kept.shape[1:])
            self._counts[state["low"] : state["low"] + len(kept)] = kept

    def update(self, values: Tensor) -> Quantiles:
        """Add (n, ...), the values of n images."""
        last = 2 * self.OCTAVES * self.PER_OCTAVE + 1
        if self._counts is None:
            self._counts = torch.zeros(last + 1, *values.shape[1:], dtype=torch.int32, device=values.device)
        bins = ((values.double().log2() + self.OCTAVES) * self.PER_OCTAVE).floor() + 1
        known = ~bins.isnan()
        bins = bins.nan_to_num(0.0, posinf=last, neginf=0).clamp(0, last).long()
        self.counts.scatter_add_(0, bins, known.int())
        return self

    def merge(self, other: Quantiles) -> Quantiles:
        parts = [part._counts for part in (self, other) if part._counts is not None]
        return Quantiles(torch.stack(parts).sum(0, dtype=torch.int32) if parts else None)

    def compute(self, q: float = 0.5) -> Tensor:
        """The q-quantile of each value, float64; NaN where none was counted, 0 or infinite beyond the bins."""
        cumulative = self.counts.double().cumsum(0)
        target = q * cumulative[-1]
        bins = (cumulative < target).sum(0, keepdim=True)
        inside = self.counts.gather(0, bins).double()
        before = cumulative.gather(0, bins) - inside
        exponent = (bins - 1 + (target - before) / inside) / self.PER_OCTAVE - self.OCTAVES
        value = 2**exponent
        value = torch.where(bins == 0, 0.0, torch.where(bins == len(self.counts) - 1, torch.inf, value))
        return torch.where(cumulative[-1] > 0, value[0], torch.nan)


class Joined(Accumulator):
    """Values of images, kept one by one, in the order of their positions whatever order they came in.

    Attributes:
        positions: (n,) of each image.
        values: (n, ...).
    """

    def __init__(self) -> None:
        self._positions: list[Tensor] = []
        self._values: list[Tensor] = []

    def update(self, positions: Tensor, values: Tensor) -> Joined:
        """Add images: their positions (n,) and values (n, ...)."""
        self._positions.append(positions)
        self._values.append(values)
        return self

    def merge(self, other: Joined) -> Joined:
        merged = Joined()
        merged._positions, merged._values = self._positions + other._positions, self._values + other._values
        return merged

    def __bool__(self) -> bool:
        return bool(self._values)

    @property
    def values(self) -> Tensor:
        return torch.cat(self._values)[torch.cat(self._positions).argsort().to(self._values[0].device)]


class Total(Accumulator):
    """A sum over images of integers or tensors of integers, which no order of adding changes."""

    def __init__(self, total: Tensor | int = 0) -> None:
        self.total = total

    def update(self, value: Tensor | int) -> Total:
        self.total = self.total + value
        return self

    def merge(self, other: Total) -> Total:
        return Total(self.total + other.total)


Sums = Any
"""What a study sums: accumulators, in dictionaries, lists or tuples."""


def merged(a: Sums, b: Sums) -> Sums:
    """The sums of two runs of one study over different batches; what only one of them has is taken as it is."""
    if isinstance(a, Accumulator):
        return a.merge(b)
    if isinstance(a, dict):
        return {key: merged(a[key], b[key]) if key in a and key in b else {**b, **a}[key] for key in {**a, **b}}
    if not a or not b:  # no batch has come yet
        return a or b
    parts = [merged(x, y) for x, y in zip(a, b, strict=True)]
    return type(a)(*parts) if hasattr(a, "_fields") else type(a)(parts)
