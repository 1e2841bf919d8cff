"""Networks of other libraries: loaded by name with their own preprocessing, or handed over in Python as they are.

Every library has one function that returns a `Found`; `SCHEMES` has them by the prefix of the name.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from packaging.version import Version
from torch import Tensor, nn

from repsim.errors import RepsimError, UsageError, first_line, one_of
from repsim.networks.checkpoints import few
from repsim.networks.transforms import HOW_TO_SAY, Transform, Unsaid, as_transform
from repsim.tables import regular


class Found(NamedTuple):
    """A network as its library has it."""

    module: nn.Module
    transform: Transform
    name: str
    record: dict[str, Any]
    """Its origin, as its library records it."""
    notices: tuple[str, ...] = ()


def of_library(name: str) -> bool:
    """Whether a network's name begins with the scheme of one of these libraries."""
    return name.partition(":")[0] in SCHEMES and ":" in name


def check_library(name: str) -> None:
    """Raise `UsageError` if nothing is named, or the library is not there or does not know the name."""
    scheme, _, rest = name.partition(":")
    if not rest.strip(":"):
        raise UsageError(f"{name!r} names no network: write {USAGE[scheme]}")
    extra = f"; install it with pip install 'repsim-vision[{scheme}]'"
    if importlib.util.find_spec(PACKAGES[scheme]) is None:
        raise UsageError(f"{name} needs the package {PACKAGES[scheme]}, which is not installed{extra}")
    if (old := _too_old(scheme)) is not None:
        raise UsageError(f"{name} needs {PACKAGES[scheme]} {OLDEST[scheme]} or newer, and {old} is installed{extra}")
    NAMES[scheme](rest)


def _too_old(scheme: str) -> str | None:
    """The release of a library that is installed, if it is older than what is used of it."""
    if scheme not in OLDEST:
        return None
    try:
        release = importlib.metadata.version(DISTRIBUTIONS.get(PACKAGES[scheme], PACKAGES[scheme]))
    except importlib.metadata.PackageNotFoundError:  # imported from a folder
        return None
    return release if Version(release).release < Version(OLDEST[scheme]).release else None


def found_in_library(name: str, weights: str, model_args: dict[str, Any]) -> Found:
    """The network of a name such as `hf:OWNER/NAME`.

    Args:
        weights: `pretrained`, or else it is left untrained.
        model_args: what its library takes beside; `image_size` is also told its preprocessing.

    Raises:
        UsageError: the library does not know it, or is not installed.
        RepsimError: its weights cannot be loaded.
    """
    check_library(name)
    scheme, _, rest = name.partition(":")
    return SCHEMES[scheme](rest, weights == "pretrained", dict(model_args))


# transformers


def _from_transformers(rest: str, pretrained: bool, args: dict[str, Any]) -> Found:
    """`OWNER/NAME` or a folder, and perhaps `:Class`; a folder of PEFT's adapters alone is that of its base."""
    place, kind = _place_and_class(rest)
    adapters, place = (place, _base_of(place)) if _is_of_adapters(place) else (None, place)
    kind = kind or (adapters and _class_of(adapters)) or ""
    import transformers

    if kind and not issubclass(getattr(transformers, kind, type(None)), transformers.PreTrainedModel):
        known = [each for each in dir(transformers) if each.endswith("Model")]
        raise one_of("model class of transformers", kind, known)
    factory = getattr(transformers, kind) if kind else transformers.AutoModel
    from_config = factory._from_config if kind else factory.from_config
    label, missing = Path(adapters or place).name, set()
    with _quietly(), _said_by(f"hf:{place}", weights=pretrained):
        config = transformers.AutoConfig.from_pretrained(place)
        if args:
            config = transformers.AutoConfig.from_pretrained(place, **_for_config(config, args, place))
        expected = getattr(factory, "config_class", None)
        if expected is not None and not any(isinstance(part, expected) for part in (config, *vars(config).values())):
            raise UsageError(
                f"{kind} is made from {expected.__name__}, and {place} holds {type(config).__name__}; "
                f"name the class that its weights were saved from, or none (hf:{place})"
            )
        if pretrained:
            module, loaded = factory.from_pretrained(
                place, config=config, output_loading_info=True, dtype=torch.float32
            )
            missing = set(loaded["missing_keys"])
        else:
            module = from_config(config, dtype=torch.float32)
    if adapters:
        _adapt(module, adapters, pretrained)
    seen = tower(module)
    prefix = next(f"{path}." if path else "" for path, each in module.named_modules() if each is seen)
    drawn = sorted(key for key in missing if key.startswith(prefix))
    if 2 * len(drawn) > len(seen.state_dict()):
        raise RepsimError(
            f"the weights in {place} are not those of {type(seen).__name__}: {len(drawn)} of its tensors are not there "
            f"({few(drawn)}); name the class they were saved from with hf:{place}:CLASS"
        )
    of_processor = {}
    if "image_size" in args:
        height, width = _pair(args["image_size"])
        of_processor = {"size": {"height": height, "width": width}, "crop_size": {"height": height, "width": width}}
    processor_folder = adapters if adapters and (Path(adapters) / "preprocessor_config.json").is_file() else place
    try:
        with _quietly(), _said_by(f"the image processor of hf:{processor_folder}", weights=True):
            preparing = transformers.AutoImageProcessor.from_pretrained(processor_folder, **of_processor)
    except RepsimError as error:
        transform = Unsaid(
            _size_of(seen),
            f"nothing says how images are prepared for hf:{place} ({error}); save an image processor "
            f"beside its weights, or {HOW_TO_SAY}",
        )
    else:
        transform = as_transform(preparing, channels=_channels_of(seen), name=f"hf:{place}")
    commit = getattr(module.config, "_commit_hash", None)
    record = {"class": f"transformers.{type(module).__name__}", **({"commit": commit} if commit else {})}
    record |= {"adapters": adapters, "base": place} if adapters else {}
    notice = (
        f"{label}: {len(drawn)} tensors are not among its weights ({few(drawn)}) and were drawn at random: they are "
        "untrained"
    )
    return Found(seen, transform, label, record, (notice,) if drawn else ())


ADAPTERS = "adapter_config.json"
"""The file that PEFT writes beside adapters, which names their base."""


def _is_of_adapters(place: str) -> bool:
    """Whether a folder holds adapters, and no network of its own."""
    folder = Path(place)
    return (folder / ADAPTERS).is_file() and not (folder / "config.json").exists()


def _said_of_adapters(folder: str) -> dict[str, Any]:
    try:
        config = json.loads((Path(folder) / ADAPTERS).read_text())
    except (OSError, ValueError) as error:
        raise RepsimError(f"cannot read {Path(folder) / ADAPTERS}: {first_line(error)}") from None
    return config if isinstance(config, dict) else {}


def _base_of(folder: str) -> str:
    """The network that adapters belong to: a folder, or a name on the hub."""
    base = _said_of_adapters(folder).get("base_model_name_or_path")
    if not base:
        raise UsageError(
            f"{folder} holds adapters without the network they belong to, and {ADAPTERS} names none in "
            "base_model_name_or_path; merge them (merge_and_unload) and save the whole, or name the base there"
        )
    folder_of_base = _folder(str(Path(folder) / base)) or _folder(base)
    if folder_of_base is None and (Path(base).is_absolute() or base.startswith(".")):
        raise UsageError(
            f"{folder} holds adapters of {base}, and there is no such folder; name where it is in {ADAPTERS}, under "
            "base_model_name_or_path"
        )
    return base if folder_of_base is None else str(folder_of_base.resolve())


def _class_of(folder: str) -> str | None:
    """The class of transformers whose weights adapters were trained beside, where they say so."""
    return (_said_of_adapters(folder).get("auto_mapping") or {}).get("base_model_class")


def _adapt(module: nn.Module, folder: str, pretrained: bool) -> None:
    """Put adapters into a network, with their weights or untrained.

    Raises:
        UsageError: PEFT is not installed, or they are prompts, which a network of images has none of.
        RepsimError: they are not this network's.
    """
    if importlib.util.find_spec("peft") is None:
        raise UsageError(f"{folder} holds adapters, which the package peft reads; install it with pip install peft")
    import peft

    with warnings.catch_warnings(), _said_by(f"the adapters in {folder}", weights=True):
        warnings.simplefilter("ignore")  # of what follows as an error
        config = peft.PeftConfig.from_pretrained(folder)
        if config.is_prompt_learning:
            raise UsageError(f"{folder} holds learned prompts, which are not part of a network of images")
        adapted = peft.get_peft_model(module, config)
        loaded = adapted.load_adapter(folder, "default") if pretrained else None
    misfits = [*loaded.unexpected_keys, *loaded.missing_keys] if loaded else []
    if misfits:
        raise RepsimError(
            f"the adapters in {folder} are not those of {type(module).__name__}: {len(misfits)} of their tensors do "
            f"not fit ({few(misfits)}); name the class they were trained in with hf:{folder}:CLASS"
        )


def _for_config(config: Any, args: dict[str, Any], place: str) -> dict[str, Any]:
    """Model arguments as a config of transformers has them, which would take any, and uses those it knows."""
    known = config.to_dict()
    taken = {}
    for key, value in args.items():
        if key not in known and key != "image_size":  # which the image processor takes in any case
            raise one_of(f"model argument of hf:{place}", key, known)
        if isinstance(known.get(key), float) and isinstance(value, int):
            value = float(value)
        if isinstance(known.get(key), (list, tuple)) and isinstance(value, int):
            value = [value] * len(known[key])
        if key in known:
            taken[key] = value
    return taken


def _place_and_class(rest: str) -> tuple[str, str]:
    """A folder or a name on the hub, and the class that is named after it."""
    place, _, kind = rest.rpartition(":")
    if not place or not kind.isidentifier() or _folder(rest) is not None:
        place, kind = rest, ""
    folder = _folder(place)
    if folder is None and (place.startswith((".", "~", os.sep)) or place.count("/") > 1):
        raise UsageError(f"there is no folder {place!r}; write {USAGE['hf']}")
    for file in folder.glob("*.*") if folder else ():
        regular(file)  # transformers would wait at a pipe
    return str(folder.resolve()) if folder else place, kind


def _folder(place: str) -> Path | None:
    try:
        folder = Path(place).expanduser()
    except RuntimeError:  # nobody's home
        return None
    return folder if folder.is_dir() else None


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


@contextmanager
def _quietly() -> Iterator[None]:
    """While active, transformers is silent but for errors; repsim gives notices instead."""
    from transformers.utils import logging as said

    verbosity, bars = said.get_verbosity(), said.is_progress_bar_enabled()
    said.set_verbosity(said.CRITICAL)
    said.disable_progress_bar()
    try:
        yield
    finally:
        said.set_verbosity(verbosity)
        if bars:
            said.enable_progress_bar()


@contextmanager
def _said_by(subject: str, *, weights: bool) -> Iterator[None]:
    """While active, an error of a library becomes a repsim error of one line."""
    try:
        yield
    except RepsimError:
        raise
    except Exception as error:  # whatever a library does
        kind = RepsimError if weights else UsageError
        raise kind(f"cannot get {subject}: {first_line(error).split('. ')[0]}") from None


@contextmanager
def _without_logs() -> Iterator[None]:
    """While active, nothing is logged: open_clip logs the errors that it raises."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


# torchvision


def _from_torchvision(rest: str, pretrained: bool, args: dict[str, Any]) -> Found:
    """`NAME`, and perhaps `:WEIGHTS`; without it the weights that torchvision calls the best, and their transform."""
    from torchvision import models

    name, tag = _name_in_torchvision(rest)
    choices = models.get_model_weights(name)
    chosen = choices[tag] if tag else getattr(choices, "DEFAULT", None)
    if pretrained and chosen is None:
        raise RepsimError(f"torchvision has no pretrained weights for {name}; ask for `random` ones, or give a file")
    taken = set(inspect.signature(models.get_model_builder(name)).parameters)
    of_model, size = dict(args), args.get("image_size")
    if "image_size" not in taken:
        of_model.pop("image_size", None)
    if not pretrained and "weights_backbone" in taken:
        of_model.setdefault("weights_backbone", None)
    with _said_by(f"torchvision:{rest}", weights=pretrained):
        module = models.get_model(name, weights=chosen if pretrained else None, **of_model)
    if chosen is None:
        known = None if size is None else (3, *_pair(size))
        transform = Unsaid(known, f"nothing says how images are prepared for {name}; {HOW_TO_SAY}")
    else:
        transform = _of_preset(chosen.transforms(), name, size)
    weights = {"weights": str(chosen), "url": chosen.url} if chosen is not None and pretrained else {}
    return Found(module, transform, name, weights)


def _name_in_torchvision(rest: str) -> tuple[str, str]:
    """The name of a network, and that of weights or nothing."""
    from torchvision import models

    name, _, tag = rest.partition(":")
    if name not in models.list_models():
        raise one_of("model of torchvision", name, models.list_models(), "`torchvision.models.list_models()` has all.")
    choices = models.get_model_weights(name)
    if tag and tag not in choices.__members__:
        raise one_of(f"weights of torchvision's {name}", tag, choices.__members__)
    return name, tag


def _of_preset(preset: Any, name: str, size: Any) -> Transform:
    """torchvision's transform of some weights; of another size where that is asked for.

    A detector's does not change the size of images, and a segmenter's not their shape: they are given squares.
    """
    if size is None:
        return as_transform(preset, name=name)
    if getattr(preset, "crop_size", None):
        side = max(_pair(size))
        preset.resize_size = [round(side * preset.resize_size[0] / preset.crop_size[0])]
        preset.crop_size = [side]
        return as_transform(preset, name=name)
    return as_transform(preset, name=name, square=max(_pair(size)))


# open_clip


def _from_open_clip(rest: str, pretrained: bool, args: dict[str, Any]) -> Found:
    """`NAME`, and `:PRETRAINED`; or `hf-hub:OWNER/NAME` and `local-dir:FOLDER`, which have their weights with them."""
    import open_clip

    name, tag = _name_in_open_clip(rest)
    if pretrained and not tag and not rest.startswith(COMPLETE):
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise UsageError(
            f"say which weights: open_clip:{name}:{tags[0] if tags else 'PRETRAINED'}; open_clip has "
            f"{', '.join(tags) if tags else 'none for it, so ask for `random` ones or give a file'}"
        )
    if "image_size" in args:
        args["force_image_size"] = args.pop("image_size")
    with _said_by(f"open_clip:{rest}", weights=pretrained), _without_logs():
        module, _, preparing = open_clip.create_model_and_transforms(
            name, pretrained=tag or None if pretrained else None, load_weights=pretrained, **args
        )
    label = name.rstrip("/").split("/")[-1].split(":")[-1]
    return Found(tower(module), as_transform(preparing, name=label), label, {"pretrained": tag} if tag else {})


COMPLETE = ("hf-hub:", "local-dir:")
"""How names of open_clip's begin that have their weights with them."""


def _name_in_open_clip(rest: str) -> tuple[str, str]:
    """The name of a network, and that of weights or nothing."""
    import open_clip

    if rest.startswith(COMPLETE):
        return rest, ""
    name, _, tag = rest.partition(":")
    if open_clip.get_model_config(name) is None:
        raise one_of("model of open_clip", name, open_clip.list_models(), "`open_clip.list_models()` has all.")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag and tag not in tags:
        raise one_of(f"pretrained weights of open_clip's {name}", tag, tags)
    return name, tag


SCHEMES: dict[str, Callable[[str, bool, dict[str, Any]], Found]] = {
    "hf": _from_transformers,
    "torchvision": _from_torchvision,
    "open_clip": _from_open_clip,
}
NAMES: dict[str, Callable[[str], tuple[str, str]]] = {
    "hf": _place_and_class,
    "torchvision": _name_in_torchvision,
    "open_clip": _name_in_open_clip,
}
"""What looks at the name alone; it raises `UsageError` for one that the library does not know."""
PACKAGES = {"hf": "transformers", "torchvision": "torchvision", "open_clip": "open_clip"}
"""What must be installed for each."""
OLDEST = {"hf": "4.56", "open_clip": "3.0"}
"""The oldest releases that take `dtype` and `load_weights`; pyproject.toml has them too."""
DISTRIBUTIONS = {"open_clip": "open_clip_torch", "vit_pytorch": "vit-pytorch", "PIL": "pillow"}
"""Libraries that are called otherwise where they are imported than where they are installed."""
USAGE = {
    "hf": "hf:OWNER/NAME, hf:FOLDER or hf:OWNER/NAME:CLASS",
    "torchvision": "torchvision:NAME or torchvision:NAME:WEIGHTS",
    "open_clip": "open_clip:NAME:PRETRAINED",
}


# Modules as they are handed over in Python


TOWERS = ("vision_model", "vision_tower", "visual", "vision_encoder", "image_encoder")
"""What networks of images and texts call the one that sees images."""


def _by(module: nn.Module, library: str) -> bool:
    """Whether it is a model of a library's, or of a class made from one."""
    return any(kind.__module__.partition(".")[0] == library for kind in type(module).__mro__)


def _configured(module: nn.Module) -> bool:
    return _by(module, "transformers") and hasattr(module, "config")


def tower(module: nn.Module) -> nn.Module:
    """The part that sees images, of a network of images and texts; any other as it is."""
    both = (_configured(module) and hasattr(module.config, "vision_config")) or (
        _by(module, "open_clip") and hasattr(module, "visual")
    )
    if not both:
        return module
    parts = sorted(module.named_modules(), key=lambda pair: pair[0].count("."))
    return next((part for path, part in parts if path.rpartition(".")[2] in TOWERS), module)


def call_of(module: nn.Module) -> Callable[[Tensor], Any] | None:
    """How a network of transformers is called with images; None if like any other.

    A masked autoencoder that masks nothing still shuffles its tokens; it is handed an order that leaves them in place.

    Raises:
        UsageError: it takes no images.
    """
    if not _configured(module):
        return None
    taken = list(inspect.signature(module.forward).parameters)
    if "noise" in taken and getattr(module.config, "mask_ratio", None) == 0:
        return lambda images: module(images, noise=_in_order(module, images))
    if not taken or taken[0] == "pixel_values" or "pixel_values" not in taken:
        if taken and taken[0] == "input_ids":
            raise UsageError(f"{type(module).__name__} takes texts and no images; hand over a network that sees images")
        return None
    return lambda images: module(pixel_values=images)


def _in_order(module: Any, images: Tensor) -> Tensor:
    """(n, t) numbers that rise along the tokens of each image."""
    side = module.config.patch_size
    sides = side if isinstance(side, (list, tuple)) else (side, side)
    tokens = math.prod(length // patch for length, patch in zip(images.shape[2:], sides))
    return torch.arange(tokens, device=images.device).expand(len(images), -1)


def transform_of(module: nn.Module) -> Transform | None:
    """What a module of transformers or open_clip says of how images are prepared; None of one that says nothing."""
    if _by(module, "open_clip") and hasattr(module, "preprocess_cfg"):
        from open_clip.transform import PreprocessCfg, image_transform_v2

        config: Any = module.preprocess_cfg
        preparing = image_transform_v2(PreprocessCfg(**config), is_train=False)
        return as_transform(preparing, name=type(module).__name__)
    if _by(module, "open_clip") and hasattr(module, "image_size"):
        why = f"nothing says how images are prepared for {type(module).__name__}, which was not made by its name"
        return Unsaid((3, *_pair(module.image_size)), f"{why}; {HOW_TO_SAY}")
    if _configured(module):
        why = f"nothing says how images are prepared for {type(module).__name__}: its config has no mean and deviation"
        return Unsaid(_size_of(module), f"{why}; {HOW_TO_SAY}")
    return None


def _size_of(module: nn.Module) -> tuple[int, int, int] | None:
    """(channels, height, width) by its config; None where that does not say."""
    size = getattr(module.config, "image_size", None)
    return (_channels_of(module), *_pair(size)) if size else None


def _channels_of(module: nn.Module) -> int:
    """By its config; else those of a colour image."""
    return getattr(module.config, "num_channels", None) or 3
