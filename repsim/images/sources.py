"""Where images come from: arrays, tensors, folders, Fashion-MNIST, noise, data sets as timm names them, or nowhere."""

from __future__ import annotations

import gzip
import io
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from repsim.errors import RepsimError, UsageError, first_line, one_of
from repsim.images.folders import list_images, said

SAMPLE = Path(__file__).parents[1] / "sample" / "fashion_mnist.npz"
SPLITS = ("train", "test")
FASHION_MNIST_PLACES = (Path("data/fashion-mnist"), Path("/usr/share/datasets/fashion-mnist"))
TIMM_SCHEMES = ("torch/", "hfds/", "hfids/", "wds/", "tfds/")


class Source(Protocol):
    """Images by number. `labels` is None where there are none."""

    labels: np.ndarray | None

    def __len__(self) -> int: ...
    def load(self, index: int) -> Image.Image | Tensor: ...
    def name(self, index: int) -> str: ...


class Arrays:
    """uint8 images in memory, (n, h, w) grey or (n, h, w, 3)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray | None = None) -> None:
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
            raise UsageError(
                f"arrays of images are uint8 (n, h, w) or (n, h, w, 3), got {images.dtype} {images.shape}; "
                "give float images that need no transform as a torch tensor (n, c, h, w)"
            )
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def name(self, index: int) -> str:
        return f"number {index}"


class Tensors(Arrays):
    """Float images that go into the networks as they are, (n, c, h, w)."""

    def __init__(self, tensors: Tensor) -> None:
        if tensors.ndim != 4 or not tensors.is_floating_point():
            raise UsageError(f"tensors of images are float (n, c, h, w), got {tensors.dtype} {tuple(tensors.shape)}")
        self.tensors = self.images = tensors.detach()
        self.labels = None


def read(file: Any) -> Image.Image:
    """An image as it is meant to be seen: upright, of 8 bits; of an animation the first frame.

    Raises:
        OSError, SyntaxError, ValueError: what is wrong with the file.
    """
    with Image.open(file) as image:
        image.load()
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, which conversion would clip at 255
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating point numbers of no known range")
    return image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image


class Noise:
    """Uniform noise, a function of (seed, index) alone."""

    labels = None

    def __init__(self, images: int, seed: int, side: int = 224) -> None:
        self.images, self.seed, self.side = images, seed, side

    def __len__(self) -> int:
        return self.images

    def load(self, index: int) -> Image.Image:
        rng = np.random.default_rng((self.seed, index))
        return Image.fromarray(rng.integers(0, 256, (self.side, self.side, 3), dtype=np.uint8))

    def name(self, index: int) -> str:
        return f"noise {index}"


class Rows:
    """Images of which nothing is known but, perhaps, their ids: those that features are of where no data are given."""

    labels = None

    def __init__(self, count: int, ids: Sequence[str] | None = None) -> None:
        self.count, self.ids = count, ids

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> Image.Image:
        raise UsageError("there are no images here, only features of them; give the images for a network to look at")

    def name(self, index: int) -> str:
        return f"number {index}" if self.ids is None else self.ids[index]


class Files:
    """A folder of images, flat or by class."""

    def __init__(self, root: Path) -> None:
        readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
        found = list_images(root, readable)
        self.root, self.paths, self.classes, self.left_out = root, found.paths, found.classes, found.left_out
        self.labels = found.labels if len(found.classes) > 1 else None
        if not self.paths:
            without = f"; {said(root, self.left_out)}" if self.left_out else ""
            raise UsageError(
                f"there are no images in {root}{without}; it may hold images, or one folder of images per class"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> Image.Image:
        path = self.paths[index]
        if not stat.S_ISREG(os.stat(path).st_mode):  # it was one when it was found; to open a pipe is to wait
            raise OSError("it is no longer a regular file")
        return read(path)

    def name(self, index: int) -> str:
        return self.paths[index]


class TimmDataset:
    """A data set made by timm's factory that can be indexed."""

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.labels = dataset, None
        targets = getattr(dataset, "targets", None)
        if targets is not None and len(targets) == len(dataset):
            self.labels = np.asarray(targets)

    def __len__(self) -> int:
        return len(self.dataset)

    def load(self, index: int) -> Image.Image:
        reader = getattr(self.dataset, "reader", None)
        if reader is None:
            return self.dataset[index][0]
        # timm's ImageDataset itself would hand out the next image in place of one that is broken.
        opened, _ = reader[index]
        return read(io.BytesIO(opened) if isinstance(opened, bytes) else opened)

    def name(self, index: int) -> str:
        reader = getattr(self.dataset, "reader", None)
        return f"number {index}" if reader is None else str(reader.filename(index, absolute=True))


class Streamed(TimmDataset):
    """Images of a data set that can only be iterated: a seeded reservoir sample, kept in memory."""

    def __init__(self, dataset: Iterable[tuple[Image.Image, Any]], images: int | None, seed: int) -> None:
        rng = np.random.default_rng(seed)
        kept: list[tuple[Image.Image, Any]] = []
        for seen, item in enumerate(dataset):
            if images is None or seen < images:
                kept.append(item)
            elif (place := rng.integers(0, seen + 1)) < images:
                kept[place] = item
        self.dataset = kept
        self.labels = np.array([int(target) for _, target in kept])


def source_of(
    data: Any, split: str | None, root: str | os.PathLike[str] | None, images: int | None, seed: int
) -> Source:
    """Open what an `ImageSet` is of."""
    if isinstance(data, Tensor):
        return Tensors(data)
    if isinstance(data, np.ndarray):
        return Arrays(data)
    data = os.fspath(data)
    if data == "noise":
        return Noise(images or 2560, seed)
    if data == "sample":
        with np.load(SAMPLE) as arrays:
            split = _known_split(split)
            return Arrays(arrays[f"{split}_images"], arrays[f"{split}_labels"].astype(np.int64))
    if data == "fashion-mnist":
        pixels, labels = read_fashion_mnist(_known_split(split), places=[Path(root)] if root else None)
        return Arrays(pixels, labels.astype(np.int64))
    if data.startswith(TIMM_SCHEMES):
        return _from_timm(data, split, root, images, seed)
    return Files(_folder(data, split))


def is_folder(data: str) -> bool:
    """Whether the name of a data set is a folder's."""
    return data not in ("sample", "fashion-mnist", "noise") and not data.startswith(TIMM_SCHEMES)


def _known_split(split: str | None) -> str:
    if split not in (None, *SPLITS):
        raise one_of("split", split, SPLITS)
    return split or "test"


def _folder(data: str, split: str | None) -> Path:
    folder = Path(data).expanduser()
    if split is not None:
        folder = folder / split
    if not folder.is_dir():
        known = ", ".join(("sample", "fashion-mnist", "noise", *(f"{scheme}NAME" for scheme in TIMM_SCHEMES)))
        raise UsageError(f"there is no folder {str(folder)!r}; data is a folder of images or one of {known}")
    return folder


def _from_timm(data: str, split: str | None, root: Any, images: int | None, seed: int) -> Source:
    from timm.data import create_dataset

    try:
        where = os.fspath(root) if root else None
        dataset = create_dataset(data, root=where, split=split or "validation", download=data.startswith("torch/"))
        if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
            return TimmDataset(dataset)
        return Streamed(dataset, images, seed)
    except Exception as error:
        reason = first_line(error)
        raise RepsimError(f"timm cannot open the data set {data!r} (root {root}, split {split}): {reason}") from None


def read_fashion_mnist(split: str, *, places: Sequence[Path] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """All images (n, 28, 28) and labels (n,) of Fashion-MNIST, uint8.

    Looked for in `data/fashion-mnist/`, then where Debian's package dataset-fashion-mnist puts it,
    then downloaded through torchvision into `data/`.
    """
    stem = {"train": "train", "test": "t10k"}[split]
    for place in places or FASHION_MNIST_PLACES:
        files = [_zipped_or_not(place / f"{stem}-{what}-ubyte") for what in ("images-idx3", "labels-idx1")]
        if all(files):
            images, labels = (_read_bytes(file) for file in files)
            pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
            return pixels, np.frombuffer(labels, np.uint8, offset=8)
    if places:
        raise RepsimError(f"there is no Fashion-MNIST in {places[0]}; it should hold {stem}-images-idx3-ubyte.gz")
    from torchvision.datasets import FashionMNIST

    try:
        downloaded = FashionMNIST("data", train=split == "train", download=True)
    except Exception as error:
        raise RepsimError(
            f"Fashion-MNIST is not in {' or '.join(map(str, FASHION_MNIST_PLACES))}, and cannot be downloaded "
            f"({first_line(error)}); data/README.md says how to get it"
        ) from None
    return downloaded.data.numpy(), downloaded.targets.numpy().astype(np.uint8)


def _zipped_or_not(file: Path) -> Path | None:
    return next((f for f in (file, file.with_name(f"{file.name}.gz")) if f.is_file()), None)


def _read_bytes(file: Path) -> bytes:
    return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
