"""Numbers that the paper makes a claim about: their keys, their values, and their 95 % intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from repsim.measures.intervals import crossed, interval
from repsim.measures.running import BatchMeans, Together
from repsim.tables import NUMBERS


class Number(NamedTuple):
    """One number of a figure; its key and its networks identify it."""

    key: str
    """The quantity, in a word; claims name it."""
    models: tuple[str, ...]
    """Its networks, in the order of the subtraction, division or comparison."""
    label: str
    """The quantity in words, with the names of its networks."""
    value: float
    se: float
    df: float
    """Degrees of freedom of its standard error."""


def numbers(found: Sequence[Number]) -> pd.DataFrame:
    """The table of numbers, with their intervals; see `interval`."""
    rows = []
    for key, models, label, value, se, df in found:
        low, high = interval(*(torch.tensor(float(number), dtype=torch.float64) for number in (value, se, df)))
        rows.append((key, as_text(models), label, value, low.item(), high.item(), df))
    return pd.DataFrame(rows, columns=NUMBERS[:-2]).assign(seeds=1, sd_seeds=np.nan)


def as_text(models: Sequence[str]) -> str:
    """The networks of a number as a table has them."""
    return json.dumps(list(models), ensure_ascii=False)


def over_runs(table: pd.DataFrame, run: str, other_tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The same numbers, with their spread over training runs of a network.

    Args:
        table: numbers of a figure.
        run: the network that was trained several times.
        other_tables: a further run of it -> the numbers of the same figure, with that run in the network's place.

    Returns:
        With `seeds`, in how many runs a number is known, and `sd_seeds`, its standard deviation over these.
    """
    values = {
        run_again: dict(zip(zip(table_of_run["key"], table_of_run["models"]), table_of_run["value"]))
        for run_again, table_of_run in other_tables.items()
    }
    seeds, spread = [], []
    for key, models, value in zip(table["key"], table["models"], table["value"]):
        names = json.loads(models)
        again = [
            table_of_run.get((key, as_text([run_again if name == run else name for name in names])), np.nan)
            for run_again, table_of_run in values.items()
            if run in names
        ]
        known = np.array([value, *again])[~np.isnan([value, *again])]
        seeds.append(len(known) if len(known) > 1 else 1)
        spread.append(known.std(ddof=1) if len(known) > 1 else np.nan)
    return table.assign(seeds=seeds, sd_seeds=spread)


def thirds(values: Any, number: int) -> Any:
    """The lowest (0), middle or highest (2) third along the last axis."""
    cuts = [round(values.shape[-1] * k / 3) for k in range(4)]
    return values[..., cuts[number] : cuts[number + 1]]


def third(values: Any, number: int) -> Any:
    """Mean over the lowest (0), middle or highest (2) third of the last axis."""
    return thirds(values, number).mean(-1)


# Statistics of the sums of one pass

Of = Callable[[Any], Tensor]
"""A function of the mean over batches (or of CKA from it), or of the means of several sums, see `Together`."""


class Statistic(NamedTuple):
    """A `Number` as a function of the sums of a pass."""

    key: str
    models: tuple[str, ...]
    label: str
    of: Of


def jackknifed(sums: BatchMeans | Together, statistics: Sequence[Statistic]) -> list[Number]:
    """Numbers from sums, with their jackknife standard errors over groups of batches: all from the same left out."""
    if not statistics:
        return []
    values, errors = sums.compute(lambda means: torch.stack([statistic.of(means) for statistic in statistics]))
    df = sums.groups - 1
    return [
        Number(*statistic[:3], value, se, df)
        for statistic, value, se in zip(statistics, values.tolist(), errors.tolist())
    ]


def of_draws(sums: Together, statistics: Sequence[Statistic]) -> list[Number]:
    """Numbers that are means over draws of training images, with standard errors over these and test images."""
    results = crossed(sums, lambda means: torch.stack([statistic.of(means) for statistic in statistics], 1))
    return [
        Number(*statistic[:3], *columns)
        for statistic, *columns in zip(statistics, *(part.tolist() for part in results))
    ]


def less(a: Of, b: Of, means: Any) -> Tensor:
    """One statistic less another, of the same images."""
    return a(means) - b(means)


def apart(key: str, label: str, models: Sequence[str], functions: Sequence[Of]) -> list[Statistic]:
    """The difference between the statistics of the first two networks, if there are two."""
    if len(models) < 2:
        return []
    a, b = models[:2]
    return [Statistic(key, (a, b), f"{label}, {a} - {b}", partial(less, *functions[:2]))]


# Statistics of the CKA of the layers of a group of networks


def uniformity(names: list[str], layer_slices: list[slice]) -> list[Statistic]:
    """Mean CKA between the lowest and highest third of a network's layers; its difference between the first two."""

    def of(cka: Tensor, rows: slice) -> Tensor:
        within = cka[rows, rows]
        size = -(-len(within) // 3)
        return within[:size, -size:].mean()

    label, functions = "low with high layers", [partial(of, rows=rows) for rows in layer_slices]
    statistics = [Statistic("low_with_high", (name,), f"{label}, {name}", one) for name, one in zip(names, functions)]
    return statistics + apart("low_with_high_difference", label, names, functions)


def matching(names: list[str], layer_slices: list[slice]) -> list[Statistic]:
    """Likeness of the first network to the second's lower half, and of the second to the first's last third."""

    def lower(cka: Tensor) -> Tensor:
        part = cka[layer_slices[0], layer_slices[1]]
        part, quarter = part[:, : -(-part.shape[1] // 2)], -(-len(part) // 4)
        return (part[:quarter].max(0).values - part[quarter:].max(0).values).mean()

    def last(cka: Tensor) -> Tensor:
        best = cka[layer_slices[0], layer_slices[1]].max(1).values
        return third(best, 2) - torch.stack([third(best, 0), third(best, 1)]).mean()

    first, second = names[:2]
    of_lower = f"likest of {first} to lower half of {second}: lowest quarter - rest"
    of_last = f"likest of {second} to {first}: last third - rest"
    return [
        Statistic("lowest_quarter_minus_rest", (first, second), of_lower, lower),
        Statistic("last_third_minus_rest", (second, first), of_last, last),
    ]


def closeness(names: list[str], layer_slices: list[slice]) -> list[Statistic]:
    """Mean over the first network's layers of the CKA with the likest of the second, of the third; the difference."""

    def best(cka: Tensor, other: int) -> Tensor:
        return cka[layer_slices[0], layer_slices[other]].max(1).values.mean()

    a, b, c = names
    apart = f"likest layers, {a} with {b} - with {c}"
    return [
        Statistic("likest", (a, b), f"likest layers, {a} with {b}", lambda cka: best(cka, 1)),
        Statistic("likest", (a, c), f"likest layers, {a} with {c}", lambda cka: best(cka, 2)),
        Statistic("likest_difference", (a, b, c), apart, lambda cka: best(cka, 1) - best(cka, 2)),
    ]


def across_blocks(names: list[str], layer_slices: list[slice], blocks: Sequence[int]) -> list[Statistic]:
    """CKA of the layers before a block with those from it on: of an untouched network, and of one without its skips."""

    def across(cka: Tensor, network: int, block: int) -> Tensor:
        return cka[layer_slices[network], layer_slices[network]][: block + 1, block + 1 :].mean()  # the stem is layer 0

    statistics = []
    for k, block in enumerate(blocks, 1):
        key, label = f"across_block_{block}", f"CKA across block {block}"
        without, untouched = partial(across, network=k, block=block), partial(across, network=0, block=block)
        statistics += [
            Statistic(f"{key}_without", (names[k],), f"{label}, without its skips", without),
            Statistic(f"{key}_untouched", (names[0],), f"{label}, untouched", untouched),
            Statistic(
                f"{key}_difference",
                (names[k], names[0]),
                f"{label}, without its skips - untouched",
                partial(less, without, untouched),
            ),
        ]
    return statistics


STATISTICS = {"uniformity": uniformity, "matching": matching, "closeness": closeness}
