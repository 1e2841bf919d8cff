"""`repsim doctor`."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, NamedTuple

import click

from repsim.cli.base import AS_JSON, main
from repsim.cli.job import IMAGENET
from repsim.cli.words import print_json
from repsim.errors import first_line

REPSIM = "repsim-vision"
EXTRAS = {
    "transformers": ("hf", "networks named hf:..."),
    "open_clip_torch": ("open_clip", "networks named open_clip:..."),
    "plotly": ("report", "the page of figures, report.html"),
    "h5py": ("features", "features in .h5 files"),
}
"""Library that some commands need -> the extra that installs it, and its use."""


class Place(NamedTuple):
    """A place of images or weights."""

    what: str
    where: str
    found: bool
    get: str = ""
    """Advice where it is missing; empty: nothing is missing."""


@main.command(short_help="Say what is installed, what is missing, and how to get it.")
@AS_JSON
def doctor(as_json: bool) -> None:
    """Show installed libraries, devices, places of images and weights, and everything that is missing.

    Nothing is loaded but PyTorch, nothing is downloaded, and the model hub is not asked.
    """
    libraries, spots = versions(), [*places()]
    missing = {name: _install(name) for name, number in libraries.items() if number is None}
    missing |= {place.what: place.get for place in spots if not place.found and place.get}
    computing = device()
    if as_json:
        places_found = [{"what": place.what, "where": place.where, "found": place.found} for place in spots]
        listed = [{"what": item, "get": get} for item, get in missing.items()]
        print_json({"versions": libraries, "device": computing, "places": places_found, "missing": listed})
        return
    _section("Versions", {name: number or "not installed" for name, number in libraries.items()})
    _section("Computing", computing)
    _section(
        "Images and weights", {spot.what: f"{spot.where}" + ("" if spot.found else "  (not there)") for spot in spots}
    )
    _section("Missing", missing or {"nothing": "everything that repsim can use is there"})


def _section(title: str, rows: dict[str, Any]) -> None:
    width = max(map(len, rows))
    click.echo("\n".join([f"{title}:", *(f"  {name.ljust(width)}  {value}" for name, value in rows.items())]))


def versions() -> dict[str, str | None]:
    """Versions of Python, repsim, its dependencies, and libraries that some commands need; None: not installed."""
    try:
        needed = [
            re.split(r"[^\w.-]", requirement)[0]
            for requirement in requires(REPSIM) or ()
            if "extra ==" not in requirement
        ]
    except PackageNotFoundError:  # run from a folder in which nothing was installed
        needed = ["torch", "timm", "numpy"]
    first = [name for name in ("torch", "timm", "numpy") if name in needed]
    names = dict.fromkeys([REPSIM, *first, *sorted(needed), *EXTRAS])
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _install(name: str) -> str:
    if name in EXTRAS:
        extra, purpose = EXTRAS[name]
        return f"pip install '{REPSIM}[{extra}]', for {purpose}"
    return f"pip install {name}"


def device() -> dict[str, str]:
    """Devices, threads, and memory."""
    try:
        import torch
    except Exception as error:  # a broken library fails in many ways
        return {"torch": f"cannot be loaded: {first_line(error)}"}
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    shown = [f"cuda:{i} ({card.name}, {_gib(card.total_memory)})" for i, card in enumerate(cards)]
    rows = {
        "CUDA": ", ".join(shown) or "there is no GPU; networks run on the CPU",
        "threads": f"{torch.get_num_threads()}, on {os.cpu_count()} cores",
    }
    try:
        from repsim.networks.memory import free
    except Exception as error:
        return {**rows, "free memory": f"not known: {first_line(error)}"}
    return {**rows, "free memory": _gib(free())}


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def places() -> Iterator[Place]:
    """Places of images and weights, in the order of the search."""
    package = Path(__file__).parents[1]
    sample = package / "sample" / "fashion_mnist.npz"
    weights, advice_to_install = [*(package / "weights").glob("*.safetensors")], f"install {REPSIM} again"
    yield Place("bundled images", str(sample), sample.is_file(), advice_to_install)
    yield Place(
        "bundled weights", f"{package / 'weights'}, of {len(weights)} networks", bool(weights), advice_to_install
    )
    named = os.environ.get("REPSIM_IMAGENET")
    at_variable, at_folder = bool(named) and Path(named).is_dir(), Path(IMAGENET).is_dir()
    advice = "" if at_variable or at_folder else f"put its validation images into {IMAGENET}, or name their folder"
    yield Place("ImageNet, $REPSIM_IMAGENET", named or "the variable is not set", at_variable)
    yield Place(
        f"ImageNet, {IMAGENET}", str(Path(IMAGENET).absolute()), at_folder, advice and f"{advice} in REPSIM_IMAGENET"
    )
    yield _fashion_mnist()
    yield _hub()


def _fashion_mnist() -> Place:
    name = "Fashion-MNIST, all of it"
    get = "apt-get install dataset-fashion-mnist, or let `--data fashion-mnist` download it"
    try:
        from repsim.images.sources import FASHION_MNIST_PLACES
    except Exception as error:  # it loads libraries, of which one may be broken
        return Place(name, f"not looked for: {first_line(error)}", False)
    present = [place for place in FASHION_MNIST_PLACES if any(place.glob("t10k-images-idx3-ubyte*"))]
    return Place(name, " or ".join(map(str, present or FASHION_MNIST_PLACES)), bool(present), get)


def _hub() -> Place:
    name = "cache of Hugging Face"
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except Exception as error:
        return Place(name, f"not looked for: {first_line(error)}", False)
    cached = len(list(Path(HF_HUB_CACHE).glob("models--*")))
    folder = f"{HF_HUB_CACHE}, with {cached} model{'s' * (cached != 1)}" if cached else str(HF_HUB_CACHE)
    get = "weights are downloaded when a network is first loaded; without a connection, copy another machine's cache"
    return Place(name, folder, bool(cached), get)
