"""Where images come from: memory, files, data sets in Python or by timm's names, Fashion-MNIST, noise, or nowhere."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from repsim.errors import RepsimError, UsageError, first_line, one_of
from repsim.images.folders import list_images, said

SAMPLE = Path(__file__).parents[1] / "sample" / "fashion_mnist.npz"
SPLITS = ("train", "test")
FASHION_MNIST_PLACES = (Path("data/fashion-mnist"), Path("/usr/share/datasets/fashion-mnist"))
TIMM_SCHEMES = ("torch/", "hfds/", "hfids/", "wds/", "tfds/")
TAKEN = (
    "images are a folder or the name of a data set, an ImageSet, a float tensor (n, c, h, w), a uint8 array (n, h, w) "
    "or (n, h, w, 3), a list of PIL images or of files, a PyTorch Dataset or DataLoader, or a Dataset of Hugging Face"
)


class Source(Protocol):
    """Images by number. `labels` is None where there are no classes."""

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
        self.tensors = tensors.detach()
        self.images = self.tensors  # pyrefly: ignore [bad-assignment]  # only counted and made a digest of
        self.labels = None


def read(file: Any) -> Image.Image:
    """Decode an image as it is meant to be seen: upright, in 8 bits; an animation gives its first frame.

    Raises:
        OSError, SyntaxError, ValueError: the file cannot be read; the message says why.
    """
    with Image.open(file) as image:
        image.load()
        return seen(image)


def seen(image: Image.Image) -> Image.Image:
    """Decode an image as it is meant to be seen; see `read`."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, which conversion would clip at 255
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating point numbers of no known range")
    return image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image


class Noise:
    """Uniform noise, a function of (seed, index) alone."""

    labels: np.ndarray | None = None

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
    """Images known at most by their ids: the images of features, where no data are given."""

    labels = None

    def __init__(self, count: int, ids: Sequence[str] | None = None) -> None:
        self.count, self.ids = count, ids

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> Image.Image:
        raise UsageError(
            "there are no images here, only features of them; give the images that the network is to look at"
        )

    def name(self, index: int) -> str:
        return f"number {index}" if self.ids is None else self.ids[index]


class Files:
    """A folder of images, flat or by class."""

    def __init__(self, root: Path) -> None:
        readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
        listing = list_images(root, readable)
        self.root: Path | None = root
        self.paths, self.classes, self.left_out = listing.paths, listing.classes, listing.left_out
        self.labels: np.ndarray | None = listing.labels if len(listing.classes) > 1 else None
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


class FileList(Files):
    """Files of images that are named one by one."""

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        self.paths = [os.path.expanduser(os.fspath(path)) for path in paths]
        self.root, self.classes, self.left_out, self.labels = None, [], {}, None
        if missing := next((path for path in self.paths if not os.path.isfile(path)), None):
            raise UsageError(f"each file of a list must exist, and there is no file {missing!r}")


class Items:
    """Images that a sequence in Python gives by their numbers, one at a time; none is kept.

    Each is a PIL image, or a float tensor (c, h, w) that goes into the networks as it is; alone, first in a tuple with
    its label, or under `image` in a dictionary.

    Args:
        items: gives images by number, and has a length.
        called: the name of the data in records.

    Raises:
        UsageError: the first is no image.
        RepsimError: the first cannot be read.
    """

    def __init__(self, items: Any, called: str) -> None:
        self.items, self.called, self.labels = items, called, _labels_of(items)
        self.tensor_size: tuple[int, int, int] | None = None
        """The size of images that go into the networks as they are."""
        self.first = ""
        """Digest of the first image."""
        if not len(items):
            return
        try:
            item = items[0]
        except Exception as error:
            reason = first_line(error)
            raise RepsimError(f"cannot read the first item of {called}: {type(error).__name__}: {reason}") from None
        try:
            image = _image_of(item)
        except ValueError as error:
            raise UsageError(f"items of {called} must be images; in the first item {error}") from None
        self.tensor_size = size_of(image.shape) if isinstance(image, Tensor) else None
        self.first = digest([image])

    def __len__(self) -> int:
        return len(self.items)

    def load(self, index: int) -> Image.Image | Tensor:
        image = _image_of(self.items[index])
        size = tuple(image.shape) if isinstance(image, Tensor) else None
        if size != self.tensor_size:
            kinds = (
                "a PIL image" if size_of_tensor is None else f"a tensor {size_of_tensor}"
                for size_of_tensor in (size, self.tensor_size)
            )
            raise ValueError("it is {}, and the first of them is {}".format(*kinds))
        return image

    def name(self, index: int) -> str:
        return f"number {index}"


class Pictures(Items):
    """PIL images in memory."""

    @cached_property
    def pixels(self) -> str:
        """Digest of all."""
        return digest(map(self.load, range(len(self))))


def size_of(shape: Sequence[int]) -> tuple[int, int, int]:
    """(c, h, w) of a tensor that is an image."""
    channels, height, width = shape
    return channels, height, width


def digest(images: Iterable[Image.Image | Tensor]) -> str:
    """SHA-256 of kinds, sizes and pixels."""
    hashed = hashlib.sha256()
    for image in images:
        pixels = image.cpu().float().numpy() if isinstance(image, Tensor) else np.asarray(image)
        kind = "" if isinstance(image, Tensor) else image.mode
        hashed.update(f"{kind} {pixels.shape} {pixels.dtype} ".encode() + pixels.tobytes())
    return hashed.hexdigest()


def _image_of(item: Any) -> Image.Image | Tensor:
    """The image of an item.

    Raises:
        ValueError: there is no image; the message goes on after "in the first item".
    """
    if isinstance(item, Mapping):
        if "image" not in item:
            raise ValueError(f"there is no `image`, but {', '.join(map(repr, item))}; rename one of them to `image`")
        item = item["image"]
    elif isinstance(item, (tuple, list)) and item:
        item = item[0]
    if isinstance(item, Image.Image):
        return seen(item)
    if not isinstance(item, Tensor):
        raise ValueError(f"the image is a {type(item).__name__}; give PIL images, or float tensors (c, h, w)")
    if item.ndim != 3 or not item.is_floating_point():
        got = f"{item.dtype} {tuple(item.shape)}"
        raise ValueError(
            f"the image is a tensor {got}; give float tensors (c, h, w) that need no transform, or PIL images"
        )
    return item.detach()


def _labels_of(items: Any) -> np.ndarray | None:
    """The classes of all items, where a data set says them without reading its images."""
    if isinstance(items, Subset):
        labels = _labels_of(items.dataset)
        return None if labels is None else labels[np.asarray(items.indices)]
    if isinstance(items, TensorDataset):
        labels = items.tensors[1] if len(items.tensors) > 1 else None
    elif hasattr(items, "column_names"):
        labels = items["label"] if "label" in items.column_names else None
    else:
        labels = getattr(items, "targets", getattr(items, "labels", None))
    if labels is None or len(labels) != len(items):
        return None
    labels = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(list(labels))
    return labels.astype(np.int64) if labels.ndim == 1 and labels.dtype.kind in "iu" else None


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
    """Open the data of an `ImageSet`.

    Raises:
        UsageError: it is nothing that images come from.
    """
    if isinstance(data, Tensor):
        return Tensors(data)
    if isinstance(data, np.ndarray):
        return Arrays(data)
    if not isinstance(data, str | os.PathLike):
        return _in_python(data)
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


def several_of(named: Sequence[Any]) -> Source:
    """Images that are named one by one; a folder stands for all that are in it.

    Raises:
        UsageError: there is no such file, or none are named.
    """
    if not named:
        raise UsageError("name one image at least")
    paths = []
    for item in named:
        if not isinstance(item, str | os.PathLike):
            return _in_python(list(named))
        path = Path(item).expanduser()
        paths += Files(path).paths if path.is_dir() else [path]
    return FileList(paths)


def _in_python(data: Any) -> Source:
    """Images of a list, a data set or a loader."""
    kind = type(data).__name__
    if isinstance(data, DataLoader):
        _check_loader(data)
        return _in_python(data.dataset)
    if isinstance(data, (list, tuple)):
        kinds = [type_ for type_ in (str | os.PathLike, Image.Image) if all(isinstance(item, type_) for item in data)]
        if not kinds:
            kinds_of_items = dict.fromkeys(type(item).__name__ for item in data)
            raise UsageError(f"{TAKEN}; got a {kind} of {' and '.join(kinds_of_items)}")
        return Pictures(data, f"{len(data)} PIL images") if Image.Image in kinds else FileList(data)
    if isinstance(data, IterableDataset) or (hasattr(data, "__iter__") and not hasattr(data, "__getitem__")):
        raise UsageError(f"images are chosen by their numbers, and {kind} can only be iterated; give a list of them")
    if isinstance(data, Mapping):
        raise UsageError(f"{TAKEN}; got a {kind} of {', '.join(map(repr, data)) or 'nothing'}; try one of its values")
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise UsageError(f"{TAKEN}; got {kind}")
    if "image" not in getattr(data, "column_names", ["image"]):
        columns = ", ".join(map(repr, data.column_names))
        raise UsageError(
            f"the images of a {kind} are in its column 'image', and its columns are {columns}; rename the one that "
            "holds images (rename_column)"
        )
    return Items(data, f"{kind} of {len(data)}")


def _check_loader(loader: DataLoader) -> None:
    """Raise `UsageError` for a loader that does not hand out each item of its data set once."""
    rule = "an ImageSet takes each item of a DataLoader's data set once, in its own order, and the items of this one"
    if isinstance(loader.dataset, IterableDataset):
        raise UsageError(f"{rule} can only be iterated; give a data set whose items have numbers")
    sampler: Any = loader.sampler
    dataset: Any = loader.dataset
    batches = loader.batch_sampler
    plain = type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and not sampler.replacement)
    if batches is not None and type(batches) is not BatchSampler:
        raise UsageError(f"{rule} are chosen by a {type(batches).__name__}; give its dataset, or a Subset of it")
    if not plain or len(sampler) != len(dataset):
        raise UsageError(f"{rule} are chosen by a {type(sampler).__name__}; give its dataset, or a Subset of it")


def is_folder(data: str) -> bool:
    """Whether the name of a data set is a folder's."""
    return data not in ("sample", "fashion-mnist", "noise") and not data.startswith(TIMM_SCHEMES)


def _known_split(split: str | None) -> str:
    if split is not None and split not in SPLITS:
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
        folder = os.fspath(root) if root else None
        dataset = create_dataset(data, root=folder, split=split or "validation", download=data.startswith("torch/"))
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
        files = [_zipped_or_not(place / f"{stem}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
        present = [file for file in files if file is not None]
        if present == files:
            images, labels = (_read_bytes(file) for file in present)
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
