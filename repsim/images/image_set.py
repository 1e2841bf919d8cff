"""A fixed choice of images, and batches of it."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from repsim.errors import RepsimError, UsageError
from repsim.images.folders import said
from repsim.images.groups import Groups
from repsim.images.loading import PIECE, Loaded, Transform, ahead, copied, cores, decoded, formed
from repsim.images.sources import (
    Arrays,
    FileList,
    Files,
    Items,
    Noise,
    Pictures,
    Rows,
    Tensors,
    TimmDataset,
    is_folder,
    several_of,
    size_of,
    source_of,
)
from repsim.measures.running import FEWEST, Group

Data = (
    str | os.PathLike[str] | Tensor | np.ndarray | Sequence[str | os.PathLike[str] | Image.Image] | Dataset | DataLoader
)
"""The data that an `ImageSet` takes; a `Dataset` of Hugging Face is taken as well."""
Named = str | os.PathLike[str] | Image.Image | Sequence[str | os.PathLike[str] | Image.Image]
"""One or several images: files, folders of them, or PIL images."""
TEST_SHARE = 0.2
"""The share of test images in each class, where training and test images are parted here."""
TEST_FOLDERS = ("val", "validation", "test")


class BrokenImage(RepsimError):
    """An image that cannot be read, and its name."""


@dataclass(frozen=True)
class Batch:
    """Images of a pass, as every network's transform made them."""

    number: int
    positions: Tensor
    """(n,) which images these are, as positions in `ImageSet.chosen`."""
    inputs: dict[Hashable, Tensor]
    """For each transform, (n, c, h, w)."""
    at_once: dict[str, int]
    """Networks through which not all of its images go at once, for lack of memory, and how many do."""
    groups: Tensor | None = None
    """(n,) in which group of the jackknife each of them is, where images come in groups."""

    @property
    def group(self) -> Group:
        """The group that sums take: the number of the batch, or the group of each of its images."""
        return self.number if self.groups is None else self.groups


class Share(NamedTuple):
    """One of several processes that share the batches of a pass."""

    rank: int
    of: int


@dataclass
class Counts:
    """Numbers of images of a pass that were used, dropped and broken; filled while it runs."""

    used: int = 0
    dropped: int = 0
    """Images of the last, short batch, which is left out."""
    broken: list[str] = dataclasses.field(default_factory=list)
    batches: int = 0
    batch_size: int = 0
    passed: int = 0
    """The chosen images up to this position are done with."""
    at_once: dict[str, int] = dataclasses.field(default_factory=dict)
    """Networks through which not all images of a batch went at once, for lack of memory, and how many did."""

    def merge(self, other: Counts) -> Counts:
        """Join the counts of two processes, which shared a pass."""
        added = {name: getattr(self, name) + getattr(other, name) for name in ("used", "dropped", "broken", "batches")}
        largest = {name: max(getattr(self, name), getattr(other, name)) for name in ("batch_size", "passed")}
        least = {
            name: min(counts.at_once[name] for counts in (self, other) if name in counts.at_once)
            for name in {**self.at_once, **other.at_once}
        }
        return Counts(**added, **largest, at_once=least)

    def record(self) -> dict[str, Any]:
        """The entry of `run.json` for the pass."""
        return {
            "used": self.used,
            "batches": self.batches,
            "dropped_in_short_batch": self.dropped,
            "broken": self.broken,
            "broken_count": len(self.broken),
            **({"forward_batch_sizes": self.at_once} if self.at_once else {}),
        }


class ImageSet:
    """A fixed, seeded choice of images, in an order that all networks share.

    Args:
        data: `sample` (the bundled part of Fashion-MNIST), `fashion-mnist`, `noise`, a folder of
            images or of folders named after classes, a data set as timm names them (`torch/cifar10`,
            `hfds/owner/name`, `wds/name`, `tfds/name`), a float tensor (n, c, h, w) that goes into the
            networks as it is, or a uint8 array (n, h, w) or (n, h, w, 3) that goes through their transforms. It may
            also be a list of PIL images or of files, or a data set of PyTorch or Hugging Face that gives items by their
            numbers: PIL images, or float tensors (c, h, w) that go into the networks as they are, each alone, first in
            a tuple, or in the column `image`. Of a `DataLoader` the items of its data set are taken; its batches, its
            order and its `collate_fn` are not used. The classes of a data set are its `targets` or `labels`, or its
            column `label`; `labelled` gives it others.
            The classes of a folder are the folders directly inside it, whatever is below them. Hidden files, what is
            no image and what links lead to a second time are left out, and counted in `left_out`.
        split: `test` (default) or `train` of the sample and fashion-mnist; of timm's data sets what they
            call it (default `validation`); of a folder, a folder inside it.
        root: where timm's data sets lie.
        images: how many, chosen at random without replacement; None takes all (2,560 of `noise`).
            Where there are fewer, all are taken.
        seed: of the choice and its order, and of the noise.
        groups: which images belong together and are not independent of each other, as crops of a photograph are:
            `class`, or an array with one label for each image of the data. Standard errors and intervals are then over
            groups, no batch holds two images of one where that can be, and what is drawn is as many of each as can be.

    Raises:
        UsageError: no such data, fewer than 4 images, or fewer than two groups of them.

    >>> len(ImageSet("sample", images=100))
    100
    """

    split_here: dict[str, Any] | None = None
    """How training and test images were parted, of which these are either, where nobody else had; see `parted`."""

    def __init__(
        self,
        data: Data = "sample",
        *,
        split: str | None = None,
        root: str | os.PathLike[str] | None = None,
        images: int | None = None,
        seed: int = 0,
        groups: Literal["class"] | Sequence[Hashable] | np.ndarray | None = None,
    ) -> None:
        if not 0 <= seed < 2**63:
            raise UsageError(f"seed must be from 0 to 2**63 - 1, got {seed}")
        if images is not None and images < FEWEST:
            raise UsageError(f"at least {FEWEST} images are needed, got images={images}")
        self.split, self.seed, self.asked = split, seed, images
        self.source = source_of(data, split, root, images, seed)
        self.data = _called(data, self.source)
        if len(self.source) < FEWEST:
            without = f"; {self.left_out_in_words}" if self.left_out else ""
            raise UsageError(f"at least {FEWEST} images are needed; {self.data} has {len(self.source)}{without}")
        self.groups = None if groups is None else Groups.of_labels(groups, self.source, self.data)
        self.among = None
        self._choose(images)

    @classmethod
    def of_named(cls, named: Named) -> ImageSet:
        """Those very images that are named, or all of a folder, in this order and however few: to look at."""
        several = [named] if isinstance(named, str | os.PathLike | Image.Image) else list(named)
        source = several_of(several)
        images_of = object.__new__(cls)
        data = os.fspath(named) if isinstance(named, str | os.PathLike) else _called(several, source)
        images_of.__dict__ = {"data": data, "split": None, "seed": 0, "asked": None, "groups": None, "among": None}
        images_of.source, images_of.chosen = source, np.arange(len(source))
        return images_of

    @classmethod
    def of_rows(cls, rows: Rows, *, images: int | None = None, seed: int = 0) -> ImageSet:
        """Images that only features know, chosen and ordered as all images are; see `Rows`."""
        image_set = object.__new__(cls)
        named = {"data": "features", "split": None, "seed": seed, "asked": images}
        image_set.__dict__ = {**named, "source": rows, "groups": None, "among": None}
        if len(rows) < FEWEST:
            raise UsageError(f"at least {FEWEST} images are needed; the features have {len(rows)} in common")
        image_set._choose(images)
        return image_set

    def __len__(self) -> int:
        return len(self.chosen)

    def __repr__(self) -> str:
        data = f"{self.data} ({self.split})" if self.split else self.data
        labels = self.source.labels
        number = 0 if labels is None else len(np.unique(labels[labels >= 0]))
        classes = f"{number or 'no'} class{'es' * (number != 1)}"
        return f"ImageSet of {data}: {len(self)} of {len(self.source)} images, {classes}, seed {self.seed}"

    @property
    def largest_batch(self) -> int:
        """How many images a batch holds at most: all, or as many as have no two of one group among them."""
        return len(self) if self.groups is None else self.groups.spacing or len(self)

    @property
    def labels(self) -> np.ndarray | None:
        """(n,) class of each chosen image, or None where classes are not known.

        A folder has classes where two or more folders in it hold images; images that lie beside these have -1.
        """
        return None if self.source.labels is None else self.source.labels[self.chosen]

    @property
    def available_ids(self) -> list[str] | None:
        """The id of every image of the data, in the data's own order; None for rows without ids.

        A file's is its path from the folder `data` on, with `/` (`val/cat/1.png` where `val` is the split), or as a
        list of files has it; that of all other images is their number in the data, after the split where there
        are several (`test/17`).
        """
        if isinstance(self.source, Rows):
            return None if self.source.ids is None else list(self.source.ids)
        if isinstance(self.source, FileList):
            return [path.replace(os.sep, "/") for path in self.source.paths]
        if isinstance(self.source, Files):
            root, within = str(self.source.root), f"{self.split}/" if self.split else ""
            names = (path.removeprefix(root).lstrip(os.sep).replace(os.sep, "/") for path in self.source.paths)
            return [within + name for name in names]
        split = self.split
        if split is None and self.data in ("sample", "fashion-mnist"):
            split = "test"
        return [f"{split}/{number}" if split else str(number) for number in range(len(self.source))]

    @property
    def ids(self) -> list[str] | None:
        """The id of each chosen image, in the order of the choice; see `available_ids`.

        >>> ImageSet("sample", images=100).ids[:2]
        ['test/1044', 'test/2591']
        """
        ids = self.available_ids
        return None if ids is None else [ids[number] for number in self.chosen.tolist()]

    @property
    def numbered_in(self) -> str | None:
        """A name that tells data apart whose images are known by numbers; None for files, which have names."""
        if isinstance(self.source, Files | Rows):
            return None
        if isinstance(self.source, Arrays | Pictures):
            return self._identity()["pixels"]
        if isinstance(self.source, Items):
            return f"{self.data} {self.source.first}"
        return f"noise of seed {self.source.seed}" if isinstance(self.source, Noise) else f"{self.data} {self.split}"

    @property
    def tensor_size(self) -> tuple[int, int, int] | None:
        """(c, h, w) of images that go into the networks as they are; None if transforms make them."""
        if isinstance(self.source, Items):
            return self.source.tensor_size
        return size_of(self.source.tensors.shape[1:]) if isinstance(self.source, Tensors) else None

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes where the data set has some: folders, in the order of the labels."""
        return (list(self.source.classes) or None) if isinstance(self.source, Files) else None

    @property
    def left_out(self) -> dict[str, int]:
        """Count what a folder holds beside its images, by `folders.KINDS`; it is empty if there is nothing."""
        return self.source.left_out if isinstance(self.source, Files) else {}

    @property
    def left_out_in_words(self) -> str:
        """Say so on one line; it is empty if nothing is left out."""
        folder = self.source.root if isinstance(self.source, Files) else None
        return said(folder, self.left_out) if folder is not None and self.left_out else ""

    def identity(self) -> dict[str, str]:
        """Digests that tell these images from other images chosen in the same way, without decoding an image.

        Files have their `names`, `sizes` and `times of change`; images in memory have their `pixels`; a data set in
        Python: those of its `first image`. It is empty for data sets that tell neither.
        """
        own = {} if self.groups is None else {"groups": hashlib.sha256(self.groups.of_images.data).hexdigest()}
        return {**self._identity(), **own}

    def _identity(self) -> dict[str, str]:
        if isinstance(self.source, Arrays):
            pixels = self.source.images
            pixels = pixels.cpu().contiguous().view(torch.uint8).numpy() if isinstance(pixels, Tensor) else pixels
            return {"pixels": hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()}
        if isinstance(self.source, Pictures):
            return {"pixels": self.source.pixels}
        if isinstance(self.source, Items):
            return {"first image": self.source.first}
        if not isinstance(self.source, Files | TimmDataset):
            return {}
        files = [self.source.name(index) for index in self.chosen.tolist()]
        states = [os.stat(file) if os.path.exists(file) else None for file in files]
        values = {
            "names": files,
            "sizes": [state and state.st_size for state in states],
            "times of change": [state and state.st_mtime_ns for state in states],
        }
        return {kind: hashlib.sha256(repr(value).encode()).hexdigest() for kind, value in values.items()}

    def only(self, positions: np.ndarray) -> ImageSet:
        """Some of the chosen images, by their positions in `chosen`; nobody asked for more of them."""
        return self._with(chosen=self.chosen[positions], asked=None)

    def known_to(self, known: np.ndarray) -> ImageSet:
        """The chosen images that are known, in a set from which further choices can be made.

        Args:
            known: (all images of the data,) whether each is.
        """
        other = self.only(np.flatnonzero(known[self.chosen]))
        other.among = known if self.among is None else known & self.among
        return other

    def at_most_all(self) -> ImageSet:
        """The same images, of which nobody is told that more were wanted: so many were a default."""
        return self if len(self) == self.asked else self._with(asked=None)

    def shared_with(self, other: ImageSet) -> np.ndarray:
        """(n,) whether each chosen image was chosen in another set too: the same file, or number of the same data."""
        mine, others = self.chosen, other.chosen
        if self.source is not other.source:
            if isinstance(self.source, Files) and isinstance(other.source, Files):
                paths, other_paths = self.source.paths, other.source.paths
                mine = [os.path.abspath(paths[number]) for number in mine.tolist()]
                others = [os.path.abspath(other_paths[number]) for number in others.tolist()]
            elif self.numbered_in is None or self.numbered_in != other.numbered_in:
                return np.zeros(len(self), bool)
        return np.isin(mine, others)

    def labelled(self, labels: np.ndarray | Sequence[int]) -> ImageSet:
        """The same images with other classes: (n,) integers from 0 on, one for each chosen image."""
        if np.shape(labels) != (len(self),):
            raise UsageError(f"labels must be one for each of the {len(self)} images, got shape {np.shape(labels)}")
        of_all = np.full(len(self.source), -1)
        of_all[self.chosen] = labels
        other = self._with(source=copy.copy(self.source))
        other.source.labels = of_all
        return other

    def redrawn(self, seed: int) -> ImageSet:
        """Another choice of as many images from the same source."""
        other = self._with(seed=seed)
        other._choose(len(self))
        return other

    def parted(self, train_images: int | None = None) -> tuple[ImageSet, ImageSet]:
        """(training images, test images) of data that come without such a split, by the seed and the images' names.

        `TEST_SHARE` of each class are test images, at least one; a class of one image is not tested. Images that come
        in groups stay together: groups are parted, as if they were images of the class that most of them have. What
        was asked for is the number of test images.

        Args:
            train_images: how many are drawn of the training images; None: all.

        Raises:
            UsageError: there are no classes, or groups are whole classes.
        """
        labels = self.source.labels
        if labels is None or (labels < 0).all():
            raise UsageError(
                f"training and test images can be parted by class only, and the images of {self.data} have no classes"
            )
        if self.groups is not None and self.groups.of == "class":
            raise UsageError(
                "with --groups class the images of a class are not independent, and each class would have training and "
                "test images; name folders of other images for training with --train-data (train=)"
            )
        names = self.available_ids or list(map(str, range(len(labels))))
        units = np.arange(len(labels)) if self.groups is None else self.groups.of_images
        draws = [hashlib.sha256(f"{self.seed} {name}".encode(errors="surrogateescape")).digest() for name in names]
        draw_of, held = {}, {}
        for unit, draw, label in zip(units.tolist(), draws, labels.tolist()):
            draw_of[unit] = min(draw_of.get(unit, draw), draw)
            held.setdefault(unit, []).append(label)
        of_class: dict[int, list[int]] = {}
        for unit in sorted(draw_of, key=draw_of.__getitem__):
            most = int(np.bincount(np.array(held[unit]) + 1).argmax()) - 1
            of_class.setdefault(most, []).append(unit)
        tested = [
            unit
            for members in of_class.values()
            for unit in members[: min(max(round(TEST_SHARE * len(members)), 1), len(members) - 1)]
        ]
        test = np.isin(units, tested)
        split = {"test_share": TEST_SHARE, "seed": self.seed, "training": int((~test).sum()), "test": int(test.sum())}
        return self._part(~test, train_images, split), self._part(test, self.asked, split)

    def _part(self, known: np.ndarray, images: int | None, split: dict[str, Any]) -> ImageSet:
        """So many of some of the images of the data, chosen and ordered as others are."""
        if known.sum() < FEWEST:
            raise UsageError(f"at least {FEWEST} training and {FEWEST} test images are needed; {self.data} has too few")
        among = known if self.among is None else known & self.among
        other = self._with(among=among, asked=images, split_here=split)
        other._choose(images)
        return other

    def _with(self, **changes: Any) -> ImageSet:
        """These images with other attributes, without choosing anew."""
        other = object.__new__(ImageSet)
        other.__dict__ = {**self.__dict__, **changes}
        return other

    def _choose(self, images: int | None) -> None:
        order = torch.randperm(len(self.source), generator=torch.Generator().manual_seed(self.seed)).numpy()
        if self.among is not None:
            order = order[self.among[order]]
        if self.groups is not None:
            order = self.groups.in_turn(order)
        self.chosen = order if images is None else order[:images]
        if self.groups is not None:
            self.groups = self.groups.dealt(self.chosen)
            self.chosen = self.groups.apart(self.chosen)

    def record(self, counts: Counts) -> dict[str, Any]:
        """The entry of `run.json` for the images and for a pass over them."""
        kept = {"data": self.data, "split": self.split, "seed": self.seed, "asked": self.asked}
        left_out = {"left_out": self.left_out} if self.left_out else {}
        groups = {} if self.groups is None else {"groups": self.groups.record()}
        parted = {} if self.split_here is None else {"split_here": self.split_here}
        chosen = {"available": len(self.source), **left_out, "chosen": len(self), **groups, **parted}
        return {**kept, **chosen, **counts.record()}

    def batches(
        self,
        transforms: Iterable[Transform],
        batch_size: int,
        *,
        counts: Counts | None = None,
        workers: int | None = None,
        skip_broken: bool = False,
        short: bool = False,
        share: Share | None = None,
        device: torch.device | None = None,
    ) -> Iterator[Batch]:
        """Whole batches of the chosen images, each image read and decoded once for all transforms.

        Loading goes on in the background while the caller computes. A last short batch is dropped
        and counted, unless `short`.

        Args:
            transforms: the preparation that each network needs; equal ones are done once. Without any, no image is
                read.
            batch_size: images per batch, at least 4.
            counts: filled while batches are handed out; the counts of an earlier pass continue after its last batch.
            workers: processes that decode; None: one per core up to 8 for files, none for images in memory.
            skip_broken: go on without images that cannot be read.
            short: hand out the last short batch as well.
            share: hand out only the batches of one process; there must be no broken images then.
            device: a CUDA device to which each batch is copied while the one before it is computed.

        Raises:
            UsageError: a transform is no function, such as a network.
            BrokenImage: one cannot be read; the message names it.
            RepsimError: broken ones left fewer than 4.
        """
        transforms = list(dict.fromkeys(transforms))
        if wrong := [transform for transform in transforms if not callable(transform)]:
            kind = type(wrong[0]).__name__
            hint = "give `network.transform`" if hasattr(wrong[0], "transform") else "such as `network.transform`"
            raise UsageError(f"transforms are functions from an image to a tensor, got a {kind}; {hint}")
        counts = counts if counts is not None else Counts()
        counts.batch_size = batch_size
        wanted = self._wanted(batch_size, share, counts.passed, short)
        if isinstance(self.source, Tensors) or not transforms:
            items = self._slices(transforms, batch_size, wanted)
        else:
            items = self._decoded(transforms, batch_size, workers, wanted)
        loaded = formed(items, batch_size)
        on_gpu = isinstance(self.source, Tensors) and self.source.tensors.is_cuda
        if device is not None and not on_gpu:
            loaded = ahead(copied(loaded, device, torch.cuda.current_stream(device)))
        unreadable: list[tuple[int, str]] = []

        def batch(positions: Tensor, tensors: list[Tensor]) -> Batch:
            number = counts.batches if share is None else int(positions[0]) // batch_size
            counts.used, counts.batches = counts.used + len(positions), counts.batches + 1
            counts.passed = int(positions[-1]) + 1
            counts.broken += [message for position, message in unreadable if position < counts.passed]
            unreadable[:] = [pair for pair in unreadable if pair[0] >= counts.passed]
            groups = None if self.groups is None else self.groups.at(self.chosen[positions.numpy()])
            return Batch(number, positions, dict(zip(transforms, tensors)), counts.at_once, groups)

        for positions, tensors, broken in loaded:
            if broken and not skip_broken:
                raise BrokenImage(f"{broken[0][1]}; leave such images out with --skip-broken (skip_broken=True)")
            unreadable += broken
            less_than_one = not counts.batches and len(positions) >= FEWEST  # broken images left no whole batch
            if len(positions) == batch_size:
                yield batch(positions, tensors)
            elif less_than_one or (short and len(positions)):
                yield batch(positions, tensors)
                counts.batch_size = min(batch_size, counts.used)
            elif len(positions):
                counts.dropped = len(positions)
        counts.broken += [message for _, message in unreadable]
        if not counts.batches and share is None:
            raise RepsimError(
                f"at least {FEWEST} images are needed; {len(positions)} are left, {len(counts.broken)} are broken"
            )

    def _wanted(self, batch_size: int, share: Share | None, passed: int, short: bool) -> Tensor:
        """Positions of the images to load, in order."""
        positions = torch.arange(passed, len(self))
        if share is None:
            return positions
        number = positions // batch_size
        own = number % share.of == share.rank
        if not short and share.rank:  # the first process counts the last, short batch
            own &= number < len(self) // batch_size
        elif not short:
            own |= number >= len(self) // batch_size
        return positions[own]

    def unreadable(self, workers: int | None = None, share: Share | None = None) -> dict[int, str]:
        """The images of one process's part that cannot be read: position -> the reason."""
        part = torch.arange(share.rank if share else 0, len(self), share.of if share else 1)
        if isinstance(self.source, Tensors | Rows):
            return {}
        return dict(pair for _, _, broken in self._decoded([], PIECE, workers, part) for pair in broken)

    def _slices(self, transforms: Sequence[Transform], batch_size: int, wanted: Tensor) -> Iterator[Loaded]:
        for positions in wanted.split(batch_size) if len(wanted) else ():
            tensors: list[Tensor] = []
            if transforms and isinstance(self.source, Tensors):
                tensors = [self.source.tensors[torch.from_numpy(self.chosen)[positions]]] * len(transforms)
            yield positions, tensors, []

    def _decoded(
        self, transforms: Sequence[Transform], batch_size: int, workers: int | None, wanted: Tensor
    ) -> Iterator[Loaded]:
        if workers is None:
            workers = min(cores(), 8) if isinstance(self.source, Files) else 0
        return decoded(self.source, self.chosen, transforms, wanted.tolist(), batch_size, workers)


def _called(data: Data, source: Any) -> str:
    """The name of the data in a record."""
    if isinstance(source, FileList):
        return f"{len(source)} file{'s' * (len(source) != 1)}"
    if isinstance(source, Items):
        return source.called
    if isinstance(data, str | os.PathLike):
        return os.fspath(data)
    return f"{type(data).__name__} {tuple(getattr(data, 'shape', ()))}"


def as_image_set(images: ImageSet | Data | None, most: int | None = None) -> ImageSet:
    """An `ImageSet`, whatever stands for one; None: the bundled sample, or `most` images of it."""
    if isinstance(images, ImageSet):
        return images
    return ImageSet("sample", images=most) if images is None else ImageSet(images)


def has_split(data: str) -> bool:
    """Whether training images may lie apart from test images; else a folder's own are to be parted."""
    inside = Path(data).expanduser()
    places = [inside.parent / "train", *(inside / name for name in ("train", *TEST_FOLDERS))]
    return not is_folder(data) or any(place.is_dir() for place in places)


def train_and_test(
    data: str, split: str | None = None, train_data: str | None = None, train_split: str | None = None
) -> tuple[tuple[str, str | None], tuple[str, str | None]]:
    """(data, split) of training and of test images, where a data set or a folder holds both.

    The training images are the split `train`, of a folder the folder inside it; its test images are in `val`,
    `validation` or `test`, unless `split` names another. A folder of such a name may also stand beside `train`.

    Raises:
        UsageError: a folder lacks such folders, and no folder is named.
    """
    if not (is_folder(data) and train_data is None):
        if train_data is None or not is_folder(train_data):
            train_split = train_split or "train"
        return (train_data or data, train_split), (data, split)
    inside = Path(data).expanduser()
    train_split = train_split or "train"
    if split is None and inside.name in TEST_FOLDERS and (inside.parent / train_split).is_dir():
        return (str(inside.parent), train_split), (data, None)
    split = split or next((name for name in TEST_FOLDERS if (inside / name).is_dir()), None)
    if not (inside / train_split).is_dir() or split is None:
        raise UsageError(
            f"probes need training images beside test images, and {data} has no folders {train_split!r} and "
            f"{split or 'val'!r}; name the folder of the training images with --train-data"
        )
    return (data, train_split), (data, split)
