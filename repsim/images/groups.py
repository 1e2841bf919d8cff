"""Images that belong together, such as crops of one photograph: no two of them are independent.

Standard errors are over groups then: the jackknife leaves whole ones out. And batches are made of images of different
groups. HSIC_1 is unbiased for independent images; two crops of one photograph are alike in every layer, and raise CKA:
47 photographs with 16 crops each, in any order, as much as the biased HSIC of 47 images would.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repsim.errors import UsageError, one_of
from repsim.images.sources import Source
from repsim.measures.running import FEWEST, GROUPS


@dataclass(frozen=True)
class Groups:
    """Images that belong together, and how they are dealt into the groups of the jackknife."""

    of: str
    """Where the groups come from: `class`, or `given`."""
    of_images: np.ndarray
    """(all images of the data,) int64: the number of each one's group."""
    dealt_to: np.ndarray
    """(groups of images,) int64: the group of the jackknife of each; -1 for groups without a chosen image."""
    spacing: int = 0
    """About as far apart are two images of the largest group, in the order of `apart`; 0: less than a batch is."""

    @staticmethod
    def of_labels(groups: Any, source: Source, data: str) -> Groups:
        """As they are asked for.

        Raises:
            UsageError: images have no classes, or not one label each.
        """
        if isinstance(groups, str):
            if groups != "class":
                raise one_of("kind of groups", groups, ["class"])
            if source.labels is None:
                raise UsageError(f"groups by class need classes, and the images of {data} have none")
            labels, origin = np.asarray(source.labels), "class"
            if unclassed := int((labels < 0).sum()):
                raise UsageError(
                    f"groups by class need a class for each image, and {unclassed} images of {data} have none"
                )
        else:
            labels, origin = np.asarray(groups), "given"
            if labels.shape != (len(source),):
                raise UsageError(
                    f"groups must be one label for each of the {len(source)} images of {data}, got shape {labels.shape}"
                )
        names, of_images = np.unique(labels, return_inverse=True)
        return Groups(origin, of_images, np.full(len(names), -1))

    def dealt(self, chosen: np.ndarray) -> Groups:
        """Dealt anew, for these images: as evenly as whole groups can be, the largest first.

        Raises:
            UsageError: they are of fewer than two groups.
        """
        sizes = np.bincount(self.of_images[chosen], minlength=len(self.dealt_to))
        present = np.flatnonzero(sizes)
        if len(present) < 2:
            raise UsageError(
                "intervals over groups need two or more groups of images, and all chosen images are of one"
            )
        dealt_to, held = np.full(len(sizes), -1), np.zeros(min(GROUPS, len(present)), dtype=np.int64)
        for group in present[np.argsort(-sizes[present], kind="stable")]:
            dealt_to[group] = held.argmin()
            held[dealt_to[group]] += sizes[group]
        spacing = int(sizes.sum() // sizes.max())
        return dataclasses.replace(self, dealt_to=dealt_to, spacing=spacing if spacing > FEWEST else 0)

    def in_turn(self, order: np.ndarray) -> np.ndarray:
        """The first image of each group in an order, then the second of each, and so on."""
        return order[_numbered(self.of_images[order]).argsort(kind="stable")]

    def apart(self, chosen: np.ndarray) -> np.ndarray:
        """The same images in an order in which images of one group lie as far from each other as they can.

        Images of each group lie evenly between the first image and the last; groups of one size come round in the order
        in which they come first.
        """
        groups = self.of_images[chosen]
        present, first, members, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
        begins = (first.argsort().argsort() / len(present))[members]
        return chosen[np.lexsort([begins, (_numbered(groups) + begins) / sizes[members]])]

    def at(self, images: np.ndarray) -> Tensor:
        """The group of the jackknife of images, by their numbers in the data."""
        return torch.from_numpy(self.dealt_to[self.of_images[images]])

    @property
    def count(self) -> int:
        """Groups of images."""
        return int((self.dealt_to >= 0).sum())

    @property
    def jackknife(self) -> int:
        """Groups of the jackknife."""
        return int(self.dealt_to.max()) + 1

    def record(self) -> dict[str, Any]:
        dealt = "" if self.count == self.jackknife else f", dealt into {self.jackknife}"
        return {
            "of": self.of,
            "count": self.count,
            "jackknife": self.jackknife,
            "intervals": f"over {self.count} groups of images ({self.of}){dealt}: the jackknife leaves out one at a "
            "time, for images of one group are not independent",
        }


def _numbered(groups: np.ndarray) -> np.ndarray:
    """The how-manieth of its group each is, from 0, in the order given."""
    order = groups.argsort(kind="stable")
    numbers = groups[order]
    number = np.empty(len(groups), dtype=np.int64)
    number[order] = np.arange(len(groups)) - np.searchsorted(numbers, numbers)
    return number
