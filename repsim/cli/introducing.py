"""The lines on the networks before a run: one for each, and sentences on differences between their images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def introduced(network: Any) -> str:
    """Name, size, mean, standard deviation and crop of the images, and weights of a network, in one line."""
    if getattr(network, "features", None) is not None:
        return f"{network.name}: features from files"
    settings = network.transform.record()
    parts = [_size(settings)] if settings.get("input_size") else []
    if "mean" in settings:
        parts += [
            f"mean {_numbers(settings['mean'])}",
            f"std {_numbers(settings['std'])}",
            f"crop {settings['crop_pct']:g}",
        ]
    elif "by" in settings:
        parts.append(f"prepared by {settings['by']}")
    return f"{network.name}: {', '.join([*parts, f'weights {network.weights}'])}"


def differences(networks: Sequence[Any]) -> list[str]:
    """A sentence where networks see images of other sizes, and one where they see them normalised otherwise."""
    sizes: dict[str, list[str]] = {}
    scales: dict[str, list[str]] = {}
    for network in networks:
        if getattr(network, "features", None) is not None:
            continue
        settings = network.transform.record()
        if settings.get("input_size"):
            sizes.setdefault(_size(settings), []).append(network.name)
        if "mean" in settings:
            scale = f"mean {_numbers(settings['mean'])} and std {_numbers(settings['std'])}"
            scales.setdefault(scale, []).append(network.name)
    return [
        f"networks see images {difference}, which may be part of the difference between them: "
        + "; ".join(f"{', '.join(names)} {value}" for value, names in by_name.items())
        for difference, by_name in (("of different sizes", sizes), ("normalised differently", scales))
        if len(by_name) > 1
    ]


def _size(settings: dict[str, Any]) -> str:
    channels, height, width = settings["input_size"]
    return f"{height} x {width} px, {channels} channel{'s' * (channels != 1)}"


def _numbers(values: Sequence[float]) -> str:
    """A number for each channel; one where they are all the same."""
    return "/".join(f"{value:.3g}" for value in (values[:1] if len(set(values)) == 1 else values))
