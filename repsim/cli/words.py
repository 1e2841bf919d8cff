"""What commands say: messages, progress, rows, and what a record tells of the machine."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from repsim.errors import UsageError

PACKAGES = (
    "torch",
    "timm",
    "torchvision",
    "numpy",
    "pandas",
    "matplotlib",
    "seaborn",
    "scipy",
    "pillow",
    "safetensors",
)


DISTRIBUTIONS = {"open_clip": "open_clip_torch", "vit_pytorch": "vit-pytorch", "PIL": "pillow"}
"""Libraries of networks that are called otherwise where they are imported than where they are installed."""


def say(text: str, quiet: bool) -> None:
    if not quiet:
        click.echo(text, err=True)


def check_range(option: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"{option} must be at least {least}, got {value}")


def progress_bar(quiet: bool, repeats: int = 1) -> Callable | None:
    """tqdm on stderr, one bar per repeat; nothing when quiet or not on a terminal."""
    from tqdm import tqdm

    if quiet or not sys.stderr.isatty():
        return None
    counter = iter(range(1, repeats + 1))

    def bar(batches: Iterable, **more: Any) -> Iterable:
        what = f"repeat {next(counter)} of {repeats}" if repeats > 1 else "images"
        return tqdm(batches, **{"desc": what, "unit": "batch", "dynamic_ncols": True, **more})

    return bar


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def print_columns(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def print_rows_as_json(rows: list[tuple[str, ...]]) -> None:
    """The first row names the columns."""
    print_json([dict(zip(rows[0], row)) for row in rows[1:]])


def command_line() -> str:
    return shlex.join(["repsim", *sys.argv[1:]])


def versions(networks: Iterable[Any]) -> dict[str, str]:
    """Of Python, of repsim and what it decodes and computes with, and of the libraries that networks are made of."""
    found = {name: version(name) for name in ("repsim-vision", *PACKAGES)}
    roots = {type(module).__module__.partition(".")[0] for network in networks for module in network.module.modules()}
    for root in sorted(roots - {"repsim", "builtins", "__main__"} - set(PACKAGES)):
        with suppress(PackageNotFoundError):
            name = DISTRIBUTIONS.get(root, root)
            found[name] = version(name)
    return {"python": platform.python_version(), **found}


def device_name(device: Any) -> str:
    import torch

    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)
