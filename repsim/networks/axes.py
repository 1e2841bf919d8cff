"""The meaning of each axis of an activation: found from the labels that a traced pass carries, never from sizes.

The axis of the images is besides measured: one image of the batch is changed, and what changes must be what belongs
to it, all of it and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from repsim.networks.places import HIDDEN, NOWHERE, REGION, SCATTERED, Places
from repsim.networks.provenance import SEVERAL, Label, features_in, images_in, places_in, varies
from repsim.networks.tokens import Reading, images_first, known_by_name

IMAGES_BITS = ~((1 << 48) - 1)


@dataclass(frozen=True)
class Activation:
    """Shape of one image's part of a tensor, and the axis of the images."""

    shape: tuple[int, ...]
    batch_axis: int
    before: int = 1
    fold: int = 1
    axes: Axes | None = field(default=None, compare=False, repr=False)
    """Meaning of the other axes, where it is known."""

    def first(self, tensor: Tensor) -> Tensor:
        """(n, *shape)."""
        return images_first(tensor, self.batch_axis, self.before, self.fold)


@dataclass(frozen=True, eq=False)
class Axes:
    """Meaning of the axes of one image's part."""

    channels: tuple[int, ...]
    positions: tuple[int, ...]
    numbers: np.ndarray
    """(t,) the place of each token, as `Places` number them, along the positions in their order."""
    unknown: str = ""


def images_axis(codes: Tensor, n: int) -> tuple[int, int, int] | None:
    """(axis, before, fold) of the images, where every entry belongs to one image at most; None: no axis is so."""
    images = images_in(codes)
    for axis in range(codes.ndim):
        size = codes.shape[axis]
        if size % n:
            continue
        of_index = images.movedim(axis, 0).reshape(size, -1)
        known = of_index.amax(1)
        if ((of_index != known[:, None]) & (of_index > 0)).any() or set(known.tolist()) - {0} != set(range(1, n + 1)):
            continue
        index = torch.arange(size)
        for fold in (f for f in range(1, size // n + 1) if (size // n) % f == 0):
            if ((index // fold % n + 1 == known) | (known == 0)).all():
                return axis, size // n // fold, fold
    return None


def measured_images_axis(differences: Sequence[Tensor], n: int) -> tuple[int, int, int] | None:
    """The same from which entries changed with each of n images, (n,) masks of the tensor's shape."""
    none = torch.zeros_like(differences[0], dtype=torch.int64)
    codes = sum((mask.long() * (i + 1) for i, mask in enumerate(differences)), none) << 48
    overlap = sum((mask.long() for mask in differences), none)
    return None if (overlap > 1).any() else images_axis(codes, n)


def depends_on_several(label: Label) -> bool:
    """Whether some entry is made of more than one image."""
    return bool((images_in(label.codes) == SEVERAL).any())


def activation_of(label: Label, n: int, places: Places) -> Activation | None:
    """The axis of the images in a tensor, and the meaning of the rest; None: no axis holds images."""
    axis = images_axis(label.codes, n)
    if axis is None and label.across is not None:
        axis = images_axis(label.across, n)
    if axis is None:
        return None
    each = images_first(label.codes, *axis)
    shape = tuple(each.shape[1:])
    if not shape:
        return None
    if label.across is not None:
        return Activation(shape, *axis, Axes((), (), np.empty(0, np.int64), "it belongs to pairs of tokens"))
    return Activation(shape, *axis, axes_of(each & ~IMAGES_BITS, places))


def axes_of(each: Tensor, places: Places) -> Axes:
    """Meaning of the axes, from features and places of every image's part, (n, *shape)."""
    one = each[0]
    feature, place = features_in(one), places_in(one)
    fixed = all(torch.equal(other, one) for other in each[1:])
    with_features = [axis for axis in range(one.ndim) if varies(feature, axis)]
    with_places = [axis for axis in range(one.ndim) if varies(place, axis)]
    positions = [axis for axis in with_places if axis not in with_features]
    channels = list(with_features)
    rest = [axis for axis in range(one.ndim) if axis not in (*positions, *channels)]
    if rest and not channels and one.shape[rest[-1]] == 1 and len(rest) == 1:
        channels = rest  # a single channel
        rest = []
    positions = sorted([*positions, *(axis for axis in rest if one.shape[axis] == 1)])
    unknown = [axis for axis in rest if one.shape[axis] > 1]
    if len(positions) > 1 and not channels and not _is_map(place, positions, places):
        channels = [positions.pop()]  # pixels of patches: as of images of several colours, features of their tokens
    numbers = place.permute(*positions, *unknown, *channels).reshape(_size(one, positions), -1)
    numbers = places.together(numbers.numpy()) if numbers.shape[1] > 1 else numbers[:, 0].numpy().copy()
    why = "it is not known what its axes are" if unknown else ""
    if not why and not fixed and positions:
        kept = all(torch.equal(features_in(other), feature) for other in each[1:])
        why = "" if kept else "its axes differ from image to image"
        if any(not torch.equal(places_in(other), place) for other in each[1:]):
            why = "its tokens differ from image to image"
    return Axes(tuple(channels), tuple(positions), numbers, why)


def _is_map(place: Tensor, positions: Sequence[int], places: Places) -> bool:
    """Whether rows change along one axis only, and columns along another."""
    numbers = place.numpy()
    along = [
        [axis for axis in positions if np.abs(np.diff(centres, axis=axis)).max(initial=0) > 1e-6]
        for centres in (places.row[numbers], places.column[numbers])
    ]
    return all(len(axes) <= 1 for axes in along)


def _size(one: Tensor, axes: Sequence[int]) -> int:
    return int(np.prod([one.shape[axis] for axis in axes], dtype=np.int64))


def reading_of(
    activation: Activation, places: Places, size: tuple[int, int, int], declared: Sequence[str] | None = None
) -> Reading:
    """How to read a tensor.

    Args:
        size: (c, h, w) of the images.
        declared: kinds of the tokens before the grid as the user gives them, first to last; None: not given.
    """
    batch = {"batch_axis": activation.batch_axis, "before": activation.before, "fold": activation.fold}
    axes = activation.axes
    if axes is None:
        return Reading(shape=activation.shape, **batch, unknown="it is not known what its axes are")
    known = {"shape": activation.shape, **batch, "channels": axes.channels, "positions": axes.positions}
    if axes.unknown or len(activation.shape) == 1:
        return Reading(**known, unknown=axes.unknown)
    numbers = places.resolved(axes.numbers)
    kinds = places.kind[numbers]
    in_image = np.isin(kinds, (REGION, SCATTERED))
    in_image &= ~_of_whole_image(places, numbers, in_image, size)
    before = np.flatnonzero(~in_image)
    names = [known_by_name(places.names.get(int(number), ())) for number in numbers[before]]
    if (kinds[before] == NOWHERE).any() or (kinds[before] == HIDDEN).any():
        return Reading(**known, unknown="it is not known where in the image its entries are")
    if declared is not None and len(before):
        names = list(declared) if len(declared) == len(before) else names
    after = np.flatnonzero(in_image)
    first = sorted(range(len(before)), key=lambda i: (names[i] != "cls", names[i] != "distillation", i))
    before, names = before[first], tuple(names[i] for i in first)
    where_they_are = np.stack([places.row, places.column, places.height, places.width], 1)[numbers[after]].round(3)
    scattered = kinds[after] == SCATTERED  # rectangles around them may be the same
    if len(np.unique(where_they_are[~scattered], axis=0)) < (~scattered).sum():
        return Reading(**known, unknown="it holds each place of the image several times, as of several views")
    grid, sorted_ = grid_and_order(places, numbers[after])
    order = np.concatenate([before, after[sorted_]])
    plain = np.array_equal(order, np.arange(len(order)))
    return Reading(
        **known,
        order=None if plain else tuple(order.tolist()),
        prefix=len(before),
        names=names,
        grid=grid,
    )


def _of_whole_image(
    places: Places, numbers: np.ndarray, in_image: np.ndarray, size: tuple[int, int, int]
) -> np.ndarray:
    """Which tokens stand for the whole image (such as a mean over all tokens), beside tokens that do not."""
    _, height, width = size
    whole = in_image & (places.height[numbers] >= 0.9 * height) & (places.width[numbers] >= 0.9 * width)
    return whole if whole.sum() < in_image.sum() else np.zeros_like(whole)


def grid_and_order(places: Places, numbers: np.ndarray) -> tuple[tuple[int, int] | None, np.ndarray]:
    """Rows and columns of tokens in the image, and their order row by row; None if they make no full grid."""
    as_they_are = np.arange(len(numbers))
    if not len(numbers) or (places.kind[numbers] == SCATTERED).any():
        return None, as_they_are
    (rows, row), (columns, column) = (
        np.unique(np.round(centres[numbers], 3), return_inverse=True) for centres in (places.row, places.column)
    )
    cell = row * len(columns) + column
    if len(numbers) != len(rows) * len(columns) or len(np.unique(cell)) != len(cell):
        return None, as_they_are
    return (len(rows), len(columns)), np.argsort(cell)
