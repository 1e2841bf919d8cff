"""Places in the image, and further origins of an entry of an activation.

An entry of an activation belongs to an image, to a feature (channel) and to a place. A place is known by a number; the
`Places` of a traced pass say what the numbers mean: a rectangle of pixels with its centre, a token that comes from
a parameter (CLS, registers), a set of rectangles that make none together, or a hidden unit of a layer that mixes
tokens, of which the place shows only later, when its output is added to tokens whose place is known.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

NOWHERE = 0
"""The number for entries without a known place: constants, padding, results of unknown operations."""
REGION, TOKEN, HIDDEN, SCATTERED = 1, 2, 3, 4
BITS = 24
"""Bits of the number of a place; the number of a feature has as many."""
SLACK = 1e-6


class Hidden(NamedTuple):
    """A unit of a layer that mixes tokens."""

    group: int
    index: int


class Places:
    """The meaning of the numbers of places.

    >>> places = Places()
    >>> left, right = places.regions([8, 8], [8, 24], [16, 16], [16, 16])
    >>> int(left), float(places.column[right])
    (1, 24.0)
    """

    def __init__(self) -> None:
        self._size = 1
        self._data = np.zeros((5, 1024))
        self.names: dict[int, tuple[str, ...]] = {}
        """Number of a token -> the parameters that it comes from."""
        self.members: dict[int, np.ndarray] = {}
        """Number of a scattered place -> its regions."""
        self._hidden: dict[int, Hidden] = {}
        self._learnt: dict[int, dict[int, int]] = {}
        self._groups = 0
        self._tokens: dict[tuple[str, ...], int] = {}
        self._sets: dict[bytes, int] = {}

    @property
    def kind(self) -> np.ndarray:
        return self._data[0, : self._size].astype(np.int8)

    @property
    def row(self) -> np.ndarray:
        """Centres in pixels."""
        return self._data[1, : self._size]

    @property
    def column(self) -> np.ndarray:
        return self._data[2, : self._size]

    @property
    def height(self) -> np.ndarray:
        """Extents in pixels: of a cell of a grid the distance to the next."""
        return self._data[3, : self._size]

    @property
    def width(self) -> np.ndarray:
        return self._data[4, : self._size]

    def _new(self, count: int, kind: int, *values: np.ndarray | float) -> np.ndarray:
        start, self._size = self._size, self._size + count
        if self._size >= 2**BITS:
            raise OverflowError(f"there are more places than {BITS} bits can number")
        while self._size > self._data.shape[1]:
            self._data = np.concatenate([self._data, np.zeros_like(self._data)], 1)
        self._data[0, start : self._size] = kind
        for number, value in enumerate(values, 1):
            self._data[number, start : self._size] = value
        return np.arange(start, self._size)

    def regions(self, row: np.ndarray, column: np.ndarray, height: np.ndarray, width: np.ndarray) -> np.ndarray:
        """Numbers of new rectangles, from their centres and extents in pixels."""
        return self._new(len(row), REGION, row, column, height, width)

    def token(self, names: tuple[str, ...]) -> int:
        """The number of the token from these parameters; without names, of the token from a constant."""
        if names not in self._tokens:
            (number,) = self._new(1, TOKEN)
            self._tokens[names] = int(number)
            self.names[int(number)] = names
        return self._tokens[names]

    def hidden(self, count: int) -> np.ndarray:
        """Numbers of the units of a layer that mixes tokens."""
        numbers, self._groups = self._new(count, HIDDEN), self._groups + 1
        self._hidden |= {int(number): Hidden(self._groups, i) for i, number in enumerate(numbers)}
        return numbers

    def scattered(self, members: np.ndarray) -> int:
        """The number of a set of regions."""
        key = np.unique(members)
        if key.tobytes() not in self._sets:
            row, column, height, width = self._around(key[None])
            (number,) = self._new(1, SCATTERED, row, column, height, width)
            self._sets[key.tobytes()] = int(number)
            self.members[int(number)] = key
        return self._sets[key.tobytes()]

    # Several places together

    def _around(self, sets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The rectangle around each row of a matrix of regions; NOWHERE and tokens count for nothing."""
        real = np.isin(self.kind[sets], (REGION, SCATTERED))

        def span(centre: np.ndarray, extent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            low = np.where(real, centre[sets] - extent[sets] / 2, np.inf).min(1)
            high = np.where(real, centre[sets] + extent[sets] / 2, -np.inf).max(1)
            return (low + high) / 2, high - low

        row, height = span(self.row, self.height)
        column, width = span(self.column, self.width)
        return row, column, height, width

    def together(self, sets: np.ndarray) -> np.ndarray:
        """One place for each row of a matrix of places (r, k): the place of an average over them.

        The same place all along stays what it is. Sets of cells of which each fills a rectangle become those; if one
        does not, all are scattered.
        """
        result = sets[:, 0].copy()
        mixed = np.flatnonzero((sets != sets[:, :1]).any(1))
        if not len(mixed):
            return result
        distinct, inverse = np.unique(sets[mixed], axis=0, return_inverse=True)
        kinds = self.kind[distinct]
        real = np.isin(kinds, (REGION, SCATTERED))
        new = np.zeros(len(distinct), np.int64)
        some = real.any(1)
        if some.any():
            rows = distinct[some]
            row, column, height, width = self._around(rows)
            new[some] = self.regions(row, column, height, width)
            areas = np.where(real[some], self.height[rows] * self.width[rows], 0).sum(1)
            full = (1 - 1e-3) * height * width
            if (areas < full).any():  # runs in reading order, say: some happen to make a rectangle, but no grid of them
                for number in np.flatnonzero(real[some].sum(1) > 1):
                    new[np.flatnonzero(some)[number]] = self.scattered(rows[number][real[some][number]])
        for number in np.flatnonzero(~some & (kinds == TOKEN).any(1)):
            names = {name for place in distinct[number] for name in self.names.get(int(place), ())}
            new[number] = self.token(tuple(sorted(names)))
        result[mixed] = new[inverse.reshape(-1)]
        return result

    def joined(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The place of a sum or product of entries from two places, for pairs of different places.

        A known place wins over none, the image over tokens, and the finer of two places over a coarser one (a map times
        its mean, say). Two equal cells that lie less than half a cell apart are the same cell, seen by convolutions of
        other kernels. Two of them further apart make a place around both.
        """
        result = np.where(a == NOWHERE, b, a)
        kinds = self.kind
        place_a, place_b = np.isin(kinds[a], (REGION, SCATTERED)), np.isin(kinds[b], (REGION, SCATTERED))
        result = np.where(place_b & ~place_a, b, result)
        for one, other in ((a, b), (b, a)):  # hidden units are where what they are added to is
            for number in np.flatnonzero((kinds[one] == HIDDEN) & np.isin(kinds[other], (REGION, TOKEN, SCATTERED))):
                unit = self._hidden[int(one[number])]
                of_group = self._learnt.setdefault(unit.group, {})
                if of_group.setdefault(unit.index, int(other[number])) != int(other[number]):
                    of_group[unit.index] = NOWHERE  # it is added to several
                result[number] = other[number]
        for number in np.flatnonzero((kinds[a] == TOKEN) & (kinds[b] == TOKEN)):
            names = {*self.names[int(a[number])], *self.names[int(b[number])]}
            result[number] = self.token(tuple(sorted(names)))
        both = np.flatnonzero(place_a & place_b)
        if len(both):
            result[both] = self._joined_regions(a[both], b[both])
        return result

    def _joined_regions(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        apart = [abs(values[a] - values[b]) for values in (self.row, self.column)]
        reach = [np.maximum(values[a], values[b]) / 2 + SLACK for values in (self.height, self.width)]
        near = (apart[0] <= reach[0]) & (apart[1] <= reach[1])
        area_a, area_b = (self.height[values] * self.width[values] for values in (a, b))
        same = near & (apart[0] < SLACK) & (apart[1] < SLACK) & (area_a == area_b)
        result = np.where(area_b < area_a * (1 - SLACK), b, a)
        alike = near & ~same & (abs(area_a - area_b) <= SLACK * area_a)
        if alike.any():
            x, y = a[alike], b[alike]
            row, column = ((values[x] + values[y]) / 2 for values in (self.row, self.column))
            result[alike] = self.regions(row, column, self.height[x], self.width[x])
        apart = ~near & (abs(area_a - area_b) <= SLACK * area_a)
        if apart.any():
            result[apart] = self.regions(*self._around(np.stack([a[apart], b[apart]], 1)))
        return result

    # Afterwards

    def resolved(self, numbers: np.ndarray) -> np.ndarray:
        """The same places, hidden units replaced by where they turned out to be."""
        kinds = self.kind
        resolved = numbers.copy()
        for at in zip(*np.nonzero(kinds[numbers] == HIDDEN)):
            unit = self._hidden[int(numbers[at])]
            resolved[at] = self._learnt.get(unit.group, {}).get(unit.index, NOWHERE)
        return resolved
