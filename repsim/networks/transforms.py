"""Preparation of images for a network: timm's preprocessing, or another library's own, unchanged."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from PIL import Image, ImageOps
from timm.data import create_transform
from torch import Tensor

from repsim.errors import RepsimError, UsageError, first_line

Size = tuple[int, int, int]
"""(channels, height, width)"""


@dataclass(frozen=True)
class EvalTransform:
    """A network's evaluation preprocessing; equal ones share one decoded and resized image.

    >>> grey = EvalTransform(input_size=(1, 28, 28), mean=(0.5,), std=(0.5,))
    >>> grey(Image.new("RGB", (40, 30))).shape
    torch.Size([1, 28, 28])
    """

    input_size: Size = (3, 224, 224)
    """Images are converted to grey for 1 channel, to RGB for 3."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    @classmethod
    def of(cls, config: dict[str, Any]) -> EvalTransform:
        """From a timm data configuration; entries that it leaves open keep the defaults above."""
        settings = ((f.name, config.get(f.name)) for f in dataclasses.fields(cls))
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings if v is not None}
        return cls(**known)

    def __call__(self, image: Image.Image) -> Tensor:
        """(channels, height, width) float32."""
        return _composed(self)(_in_channels(image, self.input_size[0]))

    def record(self) -> dict[str, Any]:
        """What `run.json` says of it."""
        return dataclasses.asdict(self)


@lru_cache(maxsize=16)
def _composed(config: EvalTransform) -> Callable[[Image.Image], Tensor]:
    composed: Any = create_transform(**dataclasses.asdict(config), is_training=False)
    return composed


@dataclass(frozen=True)
class LibraryTransform:
    """A library's own preprocessing of evaluation images; two with the same settings are equal."""

    input_size: Size
    by: str
    """The name of its class or function."""
    said: str
    """Its own description: its settings, as JSON or as it prints itself."""
    prepare: Callable[[Image.Image], Tensor] = field(compare=False, repr=False)
    square: int | None = None
    """The side of the middle square that images are cropped to before it; None: it is given images as they are."""
    own: int | None = None
    """Identity of the object, where its description does not cover its whole behaviour."""

    def __call__(self, image: Image.Image) -> Tensor:
        """(channels, height, width) float32."""
        image = _in_channels(image, self.input_size[0])
        return self.prepare(image if self.square is None else _square(image, self.square))

    def record(self) -> dict[str, Any]:
        """What `run.json` says of it."""
        settings = json.loads(self.said) if self.said.startswith("{") else self.said
        return {"input_size": self.input_size, "by": self.by, "settings": settings, "square": self.square}


@dataclass(frozen=True)
class Unsaid:
    """Stands for a transform where the preparation of images is not known; tensors need none."""

    input_size: Size | None
    """None: the size is not known either."""
    why: str

    def __call__(self, image: Image.Image) -> Tensor:
        raise UsageError(self.why)

    def record(self) -> dict[str, Any]:
        """What `run.json` says of it."""
        return {"input_size": self.input_size}


ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""The default `repr` of an object, which differs between processes."""
Transform = EvalTransform | LibraryTransform | Unsaid

HOW_TO_SAY = (
    "state it with --transform or repsim.Network(module, transform=...): 'size=224 mean=0.5,0.5,0.5 std=0.5,0.5,0.5', "
    "'imagenet', or in Python the function that prepares them; or give images as tensors that need no preparing"
)
PROBES = ((96, 72), (72, 96), (300, 200))
"""(width, height) of the images that are tried to find the size of a library's prepared images."""


IMAGENET = "imagenet"
"""The word for 224 px and ImageNet's mean and standard deviation."""
WORDS = {"size": "224", "mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5", "crop": "0.9", "interpolation": "bilinear"}
"""The words that describe a transform."""
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "hamming", "box")


def said_in_words(words: str, known: Transform, name: str = "the network") -> EvalTransform:
    """Read a transform such as `size=224 mean=0.5,0.5,0.5 std=0.5,0.5,0.5 crop=0.9`, or `imagenet` with changes.

    Args:
        words: pairs with spaces between. `size` is a side or HEIGHTxWIDTH in pixels, `mean` and `std` have a number for
            each channel of values from 0 to 1, `crop` is the share of the resized image's side that is cut out.
        known: what is known without them: the size, and of one of timm's kind all that they leave open.
        name: of the network, in errors.

    Raises:
        UsageError: they say something else, or leave open what nothing else says.
    """
    whole, settings = read_words(words, name)
    base = known if isinstance(known, EvalTransform) and not whole else EvalTransform()
    if not whole and not isinstance(known, EvalTransform):
        given_by = {"size": known.input_size is not None}
        missing = [key for key in ("size", "mean", "std") if key not in settings and not given_by.get(key)]
        if missing:
            raise UsageError(f"{words!r} leaves open the {' and '.join(missing)} of {name}'s images; give them, too")
    mean, std = settings.get("mean", base.mean), settings.get("std", base.std)
    side = settings.get("size") or (known.input_size or base.input_size)[1:]
    channels = known.input_size[0] if known.input_size else len(mean)
    if not len(mean) == len(std) == channels:
        raise UsageError(
            f"mean and std must have a number for each channel: {name} takes {channels} channels, and mean has "
            f"{len(mean)} numbers, std {len(std)}"
        )
    return dataclasses.replace(
        base,
        input_size=(channels, side[0], side[1]),
        mean=mean,
        std=std,
        interpolation=settings.get("interpolation", base.interpolation),
        crop_pct=settings.get("crop", base.crop_pct),
    )


def read_words(words: str, name: str = "the network") -> tuple[bool, dict[str, Any]]:
    """Whether words begin with `imagenet`, and the settings in the remaining words.

    Raises:
        UsageError: a word is no setting of a transform.
    """
    pairs_given = [pair.partition("=") for pair in words.split()]
    whole = bool(pairs_given) and pairs_given[0] == (IMAGENET, "", "")
    settings: dict[str, Any] = {}
    for key, equals, value in pairs_given[whole:]:
        if key not in WORDS or not equals or key in settings:
            pairs = " ".join(f"{word}={usage}" for word, usage in WORDS.items())
            raise UsageError(
                f"a transform is written as {pairs!r}, each word once, or {IMAGENET!r}; got {words!r} for {name}"
            )
        settings[key] = _read_word(key, value)
    return whole, settings


def _read_word(key: str, value: str) -> Any:
    """Read the value of a transform's size, mean, std, crop or interpolation."""
    try:
        if key == "size":
            sides = tuple(int(side) for side in value.split("x"))
            sides = sides * 2 if len(sides) == 1 else sides
            if len(sides) == 2 and min(sides) >= 1:
                return sides
        elif key in ("mean", "std"):
            numbers = tuple(float(number) for number in value.split(","))
            if all(map(math.isfinite, numbers)) and (key == "mean" or min(numbers) > 0):
                return numbers
        elif key == "crop":
            if 0 < (share := float(value)) <= 1:
                return share
        elif value in INTERPOLATIONS:
            return value
    except ValueError:
        pass
    known = f", one of {', '.join(INTERPOLATIONS)}" if key == "interpolation" else ""
    raise UsageError(f"the {key} of a transform is written as {key}={WORDS[key]}{known}; got {key}={value}")


def as_transform(preparing: Any, *, channels: int = 3, name: str = "the network", square: int | None = None) -> Any:
    """A transform, whatever prepares images.

    Image processors of transformers, transforms of torchvision's and open_clip's, and any function from a PIL image to
    a tensor (c, h, w).

    Args:
        channels: 1 if it is to be given grey images, 3 for RGB.
        name: of the network, in errors.
        square: see `LibraryTransform`.

    Raises:
        UsageError: it fails, or its results have different sizes.
    """
    if isinstance(preparing, Transform):
        return preparing
    if not callable(preparing):
        raise UsageError(
            f"a transform takes a PIL image and gives a tensor (c, h, w), got {type(preparing).__name__} for {name}"
        )
    preparing = getattr(preparing, "image_processor", preparing)
    processes = _is_processor(preparing)
    kind = preparing if hasattr(preparing, "__qualname__") else type(preparing)
    description = _said(preparing)
    plain = processes or (kind.__module__.startswith("torchvision.") and not ADDRESS.search(description))
    new = LibraryTransform(
        (channels, 0, 0),
        f"{kind.__module__}.{kind.__qualname__}",
        ADDRESS.sub("", description),
        Processed(preparing) if processes else preparing,
        square,
        None if plain else id(preparing),
    )
    sizes = {_shape_of(new, probe, name) for probe in PROBES}
    if len(sizes) > 1:
        listed = " and ".join(sorted("x".join(map(str, size)) for size in sizes))
        raise UsageError(
            f"{new.by} makes images of different sizes for {name}, such as {listed}, and a batch needs one size; give "
            "it with the model argument image_size, or give another transform"
        )
    return dataclasses.replace(new, input_size=sizes.pop())


def _shape_of(transform: LibraryTransform, probe: tuple[int, int], name: str) -> Size:
    try:
        tensor = transform(Image.new("RGB", probe))
    except Exception as error:  # whatever a function of the user's does
        raise UsageError(f"{transform.by} cannot prepare images for {name}: {first_line(error)}") from None
    if not isinstance(tensor, Tensor) or tensor.ndim != 3 or not tensor.is_floating_point():
        got = f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise UsageError(f"{transform.by} must make a float tensor (c, h, w) of an image for {name}, it made {got}")
    channels, height, width = tensor.shape
    return channels, height, width


@dataclass(frozen=True)
class Processed:
    """An image processor of transformers, which takes several images and gives a dictionary."""

    processor: Any

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = self.processor(images=image, return_tensors="pt")["pixel_values"]
        if len(pixels) != 1:
            raise RepsimError(f"it makes {len(pixels)} images of one")
        return pixels[0]


def _is_processor(preparing: Any) -> bool:
    return any(kind.__name__ == "ImageProcessingMixin" for kind in type(preparing).__mro__)


def _said(preparing: Any) -> str:
    """The settings of a transform."""
    if _is_processor(preparing):
        return json.dumps(preparing.to_dict(), sort_keys=True, default=str)
    if type(preparing).__module__ == "torchvision.transforms._presets":  # they do not print all of them
        settings = {key: value for key, value in vars(preparing).items() if not key.startswith("_")}
        return json.dumps({k: v for k, v in settings.items() if k != "training"}, sort_keys=True, default=str)
    return repr(preparing)


def _square(image: Image.Image, side: int) -> Image.Image:
    """The largest square in the middle of an image, resized."""
    return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)


def _in_channels(image: Image.Image, channels: int) -> Image.Image:
    if channels not in (1, 3):
        raise UsageError(f"images have 1 or 3 channels, this network takes {channels}; pass tensors instead")
    return image.convert("L" if channels == 1 else "RGB")
