"""Which row of features belongs to which image: by ids where both have them, else by order, and never by a guess."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np

from repsim.errors import UsageError
from repsim.features.arrays import FeatureNetwork, Features
from repsim.images.image_set import FEWEST, ImageSet
from repsim.images.sources import Files, Rows
from repsim.networks.models import Network


def rows_of(features: Features, images: ImageSet) -> np.ndarray:
    """(all images of the data,) int64: the row of features of each image; -1 where they have none.

    Where both have ids, the row of an image is the one with its id: as `ImageSet.available_ids` has it, or, if no row
    has such a one, its whole path. Otherwise row i is image i of the data, in the data's own order.

    Raises:
        UsageError: rows without ids are not as many as the images; or ids are numbers in other data.
    """
    count = len(images.source)
    ids = images.available_ids
    if features.ids is None or ids is None:
        if len(features) != count:
            without = f"features {features.name!r} have" if features.ids is None else f"images of {images.data} have"
            raise UsageError(
                f"{without} no ids, so rows belong to images by their order, and there must be one for each: there "
                f"are {len(features)} rows of {features.name!r} and {count} images of {images.data}; give ids "
                "(rs.Features(..., ids=...)), as rs.ImageSet(...).available_ids has them"
            )
        return np.arange(count)
    if features.numbered_in and images.numbered_in is not None and images.numbered_in not in features.numbered_in:
        raise UsageError(
            f"features {features.name!r} are of other images than those of {images.data}: their ids are numbers in "
            "other data; give the images that they were taken of"
        )
    row = {id_: number for number, id_ in enumerate(features.ids)}
    rows = np.array([row.get(id_, -1) for id_ in ids], dtype=np.int64)
    if (rows < 0).all() and isinstance(images.source, Files):
        row = {os.path.abspath(id_): number for number, id_ in enumerate(features.ids)}
        rows = np.array([row.get(os.path.abspath(id_), -1) for id_ in images.source.paths], dtype=np.int64)
    return rows


def of_features_alone(features: Sequence[Features], *, images: int | None = None, seed: int = 0) -> ImageSet:
    """The images of features when no images are given: those with ids in all features, or all rows if equally many.

    Args:
        images: how many, chosen at random; None: all.
        seed: of the choice and its order.

    Raises:
        UsageError: there are fewer than 4, or features without ids differ in their number of rows.
    """
    first = features[0]
    ids = [item.ids for item in features if item.ids is not None]
    if len(ids) == len(features):
        common = set(ids[0]).intersection(*ids[1:])
        if len(common) < FEWEST:
            examples = " and ".join(repr(item[0]) for item in ids[:2])
            raise UsageError(
                f"at least {FEWEST} images are needed, and {', '.join(repr(item.name) for item in features)} have "
                f"{len(common)} ids in common, such as {examples}; give them ids of the same kind"
            )
        shared = [id_ for id_ in ids[0] if id_ in common]
        return ImageSet.of_rows(Rows(len(shared), shared), images=images, seed=seed)
    for item in features[1:]:
        if len(item) != len(first):
            raise UsageError(
                f"rows of features without ids belong together by their order, and {first.name!r} has {len(first)} "
                f"rows and {item.name!r} has {len(item)}; give ids to both (rs.Features(..., ids=...))"
            )
    orders = {item.ids for item in features} - {None}
    if len(orders) > 1:
        without = next(item.name for item in features if item.ids is None)
        raise UsageError(
            f"features {without!r} have no ids, and the others have ids in different orders, so nothing says in "
            "which order its rows are; give it ids (rs.Features(..., ids=...))"
        )
    return ImageSet.of_rows(Rows(len(first)), images=images, seed=seed)


def known_images(images: ImageSet, networks: Sequence[Network], say: Callable[[str], None]) -> ImageSet:
    """The images for which all features among the networks have rows; a notice counts the images without.

    Raises:
        UsageError: fewer than 4 are left; see also `rows_of`.
    """
    for network in networks:
        if not isinstance(network, FeatureNetwork):
            continue
        known = rows_of(network.features, images) >= 0
        left = images.known_to(known)
        if len(left) < FEWEST:
            feature_id, image_id = (next(iter(ids or ()), None) for ids in (network.features.ids, images.ids))
            raise UsageError(
                f"at least {FEWEST} images are needed, and {network.name} has features of {len(left)} of the "
                f"{len(images)} chosen images of {images.data}: its ids are such as {feature_id!r}, and the ids of the "
                f"images such as {image_id!r}; give ids as rs.ImageSet(...).available_ids has them, or choose more "
                "images"
            )
        if len(left) < len(images):
            say(
                f"{network.name} has features of {len(left)} of the {len(images)} chosen images; the others are left "
                f"out (it has {int(known.sum())} of all {len(known)} of {images.data})"
            )
            images = left
    return images
