"""Numbers that the paper makes a claim about: their keys, their values, and their 95 % intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from repsim.measures.running import BatchMeans, interval
from repsim.tables import NUMBERS


class Number(NamedTuple):
    """One number of a figure, which its key and its networks tell from the others."""

    key: str
    """What it is a number of, in a word; claims name it."""
    models: tuple[str, ...]
    """The networks it is of, in the order of what is subtracted, divided or compared."""
    label: str
    """What people read, with the networks' names."""
    value: float
    se: float
    groups: int
    """Of how many independent groups (batches, seeds, images) its standard error is."""


def numbers(found: Sequence[Number]) -> pd.DataFrame:
    """The table of numbers, with their intervals; see `interval`."""
    rows = []
    for *what, value, se, groups in found:
        low, high = interval(*(torch.tensor(float(each), dtype=torch.float64) for each in (value, se)), groups)
        rows.append((*what, value, low.item(), high.item()))
    return with_intervals(rows)


def with_intervals(rows: Sequence[tuple[str, tuple[str, ...], str, float, float, float]]) -> pd.DataFrame:
    """The table of numbers whose intervals are known: key, models, label, value, low, high."""
    found = [(key, json.dumps(models, ensure_ascii=False), *rest) for key, models, *rest in rows]
    return pd.DataFrame(found, columns=NUMBERS)


def difference(key: str, label: str, a: Number, b: Number) -> Number:
    """One number less another, as if they were independent: measured on the same images, they are rather closer."""
    se = float(np.hypot(a.se, b.se))
    return Number(key, _both(a, b), label, a.value - b.value, se, min(a.groups, b.groups))


def ratio(key: str, label: str, a: Number, b: Number) -> Number:
    """One number over another, as if they were independent."""
    value = a.value / b.value
    se = float(abs(value) * np.hypot(a.se / a.value, b.se / b.value))
    return Number(key, _both(a, b), label, value, se, min(a.groups, b.groups))


def _both(a: Number, b: Number) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*a.models, *b.models]))


def spread(key: str, models: tuple[str, ...], label: str, values: np.ndarray) -> Number:
    """The mean over groups of images."""
    mean, se = float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)
    return Number(key, models, label, mean, se, len(values))


def third(values: Any, which: int) -> Any:
    """Mean over the lowest (0), middle or highest (2) third of the last axis."""
    cuts = [round(values.shape[-1] * k / 3) for k in range(4)]
    return values[..., cuts[which] : cuts[which + 1]].mean(-1)


# Of the CKA of the layers of a group of networks


class Statistic(NamedTuple):
    """What a `Number` is of the CKA of a group of networks."""

    key: str
    models: tuple[str, ...]
    label: str
    of: Callable[[Tensor], Tensor]


def jackknifed(sums: BatchMeans, statistics: Sequence[Statistic]) -> list[Number]:
    """Numbers from functions of CKA, with their jackknife standard errors over minibatches."""
    found = []
    for key, models, label, of in statistics:
        value, se = sums.compute(of)
        found.append(Number(key, models, label, value.item(), se.item(), sums.groups))
    return found


def uniformity(names: list[str], where: list[slice]) -> list[Statistic]:
    """Mean CKA between the lowest and highest third of a network's layers; its difference between the first two."""

    def of(cka: Tensor, rows: slice) -> Tensor:
        within = cka[rows, rows]
        size = -(-len(within) // 3)
        return within[:size, -size:].mean()

    found = [
        Statistic("low_with_high", (name,), f"low with high layers, {name}", lambda cka, r=rows: of(cka, r))
        for name, rows in zip(names, where)
    ]
    if len(names) > 1:
        a, b = names[:2]
        label = f"low with high layers, {a} - {b}"
        apart = Statistic("low_with_high_difference", (a, b), label, lambda cka: of(cka, where[0]) - of(cka, where[1]))
        found.append(apart)
    return found


def matching(names: list[str], where: list[slice]) -> list[Statistic]:
    """What in the first network is like the second's lower half; what in the second is like the first's last third."""

    def lower(cka: Tensor) -> Tensor:
        part = cka[where[0], where[1]]
        part, quarter = part[:, : -(-part.shape[1] // 2)], -(-len(part) // 4)
        return (part[:quarter].max(0).values - part[quarter:].max(0).values).mean()

    def last(cka: Tensor) -> Tensor:
        best = cka[where[0], where[1]].max(1).values
        return third(best, 2) - torch.stack([third(best, 0), third(best, 1)]).mean()

    first, second = names[:2]
    of_lower = f"likest of {first} to lower half of {second}: lowest quarter - rest"
    of_last = f"likest of {second} to {first}: last third - rest"
    return [
        Statistic("lowest_quarter_minus_rest", (first, second), of_lower, lower),
        Statistic("last_third_minus_rest", (second, first), of_last, last),
    ]


def closeness(names: list[str], where: list[slice]) -> list[Statistic]:
    """Mean over the first network's layers of the CKA with the likest of the second, of the third; the difference."""

    def best(cka: Tensor, other: int) -> Tensor:
        return cka[where[0], where[other]].max(1).values.mean()

    a, b, c = names
    apart = f"likest layers, {a} with {b} - with {c}"
    return [
        Statistic("likest", (a, b), f"likest layers, {a} with {b}", lambda cka: best(cka, 1)),
        Statistic("likest", (a, c), f"likest layers, {a} with {c}", lambda cka: best(cka, 2)),
        Statistic("likest_difference", (a, b, c), apart, lambda cka: best(cka, 1) - best(cka, 2)),
    ]


def across_blocks(names: list[str], where: list[slice], blocks: Sequence[int]) -> list[Statistic]:
    """CKA of the layers before a block with those from it on: of an untouched network, and of one without its skips."""

    def across(cka: Tensor, network: int, block: int) -> Tensor:
        return cka[where[network], where[network]][: block + 1, block + 1 :].mean()  # the stem is layer 0

    found = []
    for k, block in enumerate(blocks, 1):
        key, label = f"across_block_{block}", f"CKA across block {block}"
        without, untouched = partial(across, network=k, block=block), partial(across, network=0, block=block)
        found += [
            Statistic(f"{key}_without", (names[k],), f"{label}, without its skips", without),
            Statistic(f"{key}_untouched", (names[0],), f"{label}, untouched", untouched),
            Statistic(
                f"{key}_difference",
                (names[k], names[0]),
                f"{label}, without its skips - untouched",
                lambda cka, a=without, b=untouched: a(cka) - b(cka),
            ),
        ]
    return found


STATISTICS = {"uniformity": uniformity, "matching": matching, "closeness": closeness}
