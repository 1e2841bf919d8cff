"""Options that name networks and features, and the loading of these."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click

from repsim.cli.base import Model, Source, at_home, options
from repsim.errors import UsageError


class Asked(NamedTuple):
    """A network with its options, before it is loaded."""

    model: str
    weights: str
    args: tuple[str, ...] = ()
    key: str | None = None
    """The key of the weights in a file."""
    transform: str | None = None
    """The preparation of its images, where the user gives one."""


def known_models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of networks, for the completion of shells."""
    from repsim.networks.aliases import ALIASES, BUNDLED

    return [name for name in (*BUNDLED, *ALIASES) if name.startswith(incomplete)]


def model_options(
    side: str = "", model: str = "", default: str | tuple[str, ...] | None = None, *, several: bool = False
) -> Callable:
    """`--model`, `--weights`, `--weights-key`, `--arg` and `--transform`, or those of a side: `--model-a` ...

    Options of side A may be written without the side. With `several`, any number of networks may be given, and
    `each_model` reads them.
    """
    end = f"-{side}" if side else ""
    asked = click.option(
        *named("model", end),
        type=Model(),
        metavar="MODEL",
        multiple=several or side == "a",
        callback=the_only if side == "a" else None,
        default=(default,) if side == "a" and default else default,
        show_default=default is not None,
        help=f"{MODEL}{model}",
        shell_complete=known_models,
    )
    return options(asked, weights_options(end, several=several))


def named(option: str, end: str) -> list[str]:
    """Spellings of an option of a side, and the name of its value: `--model-a`, also `--model`, and `model_a`."""
    short = [f"--{option}"] if end == "-a" else []
    return [f"--{option}{end}", *short, f"{option}{end}".replace("-", "_")]


def the_only(ctx: click.Context, param: click.Parameter, models: tuple[str, ...]) -> str | None:
    """The one network of side A; a second one belongs to side B.

    Raises:
        UsageError: several networks are given.
    """
    if len(models) > 1:
        raise UsageError(
            f"--model-a, or --model, is one network, and {len(models)} were given ({', '.join(models)}); "
            "give the second with --model-b"
        )
    return models[0] if models else None


def weights_options(end: str = "", *, several: bool = False) -> Callable:
    """`--weights`, `--weights-key`, `--arg` and `--transform` of the networks that a command is given."""
    explanation = f": once for all, or once per model{end.replace('-', ' ')}" if several else ""
    weights = f"`pretrained`, `random`, or a file{explanation}."
    return options(
        click.option(
            *named("weights", end),
            type=Source(),
            metavar="WEIGHTS",
            multiple=several,
            default=None if several else "pretrained",
            show_default=not several,
            help=f"{weights}  [default: pretrained]" if several else weights,
        ),
        click.option(
            *named("weights-key", end),
            metavar="KEY",
            multiple=several,
            help=f"Which of the weights in a file, such as state_dict_ema or model.teacher{explanation}.",
        ),
        click.option(
            *named("arg", end),
            metavar="KEY=VALUE",
            multiple=True,
            help=f"{'Argument of each model' if several else 'Model argument'}, such as img_size=384; repeatable.",
        ),
        transform_option(end, explanation, several=several),
    )


def transform_option(end: str = "", explanation: str = "", *, several: bool = False) -> Callable:
    """`--transform`, with or without a side."""
    return click.option(
        *named("transform", end),
        metavar="WORDS",
        multiple=several,
        help="How images are prepared, where the network does not say, or otherwise than it says: `imagenet`, or "
        f"'size=224 mean=0.5,0.5,0.5 std=0.5,0.5,0.5 crop=1.0 interpolation=bicubic'{explanation}.",
    )


def each_model(
    models: tuple[str, ...],
    weights: tuple[str, ...],
    keys: tuple[str, ...],
    args: tuple[str, ...],
    transforms: tuple[str, ...] = (),
    side: str = "",
    role: str = "",
) -> list[Asked]:
    """Each network with its weights; a key that is given once holds for every file.

    Args:
        models, weights, keys, args, transforms: values of the options of one side, or of one role.
        side: ending of the options, where a command has two sides.
        role: prefix of the values, where options are for roles.
    """

    def spread(option: str, values: tuple[str, ...]) -> tuple[str, ...]:
        if len(values) not in (1, len(models)):
            example, per = (f" {role}=", f"network {role}=") if role else (side, f"model{side}")
            raise UsageError(
                f"give --{option}{example} once, or once per --{per}: "
                f"there are {len(models)} models and {len(values)} {option.replace('-', ' ').rstrip('s')}s"
            )
        return values * len(models) if len(values) == 1 else values

    weights = spread("weights", weights or ("pretrained",))
    one_key = len(keys) == 1 and any(source not in NO_FILE for source in weights)
    keys = spread("weights-key", keys or ("",))
    transforms = spread("transform", transforms or ("",))
    return [
        Asked(model, source, args, None if one_key and source in NO_FILE else key or None, transform or None)
        for model, source, key, transform in zip(models, weights, keys, transforms)
    ]


NO_FILE = ("pretrained", "random")
"""Words for weights that are no file and so have no keys."""


FEATURES = click.option(
    "--features",
    "features_of",
    metavar="NAME=PATH",
    multiple=True,
    help="Features that stand for a network, and what they are called: a folder of `repsim extract` (DIR:MODEL of "
    "several networks), .npy, .npz, .safetensors or .h5. Repeatable; those of one NAME are joined, image by image.",
)


def read_features(texts: Sequence[str]) -> list[Any]:
    """The features that `--features` names, in order; features of one name (training and test images) are joined."""
    from repsim.features.files import load_features

    by_name: dict[str, Any] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (equals and name.strip() and path.strip()):
            raise UsageError(f"features are given as --features NAME=PATH, got {text!r}")
        path, model = at_home(path, "--features"), None
        if not Path(path).exists() and Path(path.rpartition(":")[0] or path).is_dir():
            path, _, model = path.rpartition(":")
        features = load_features(path, model=model, name=name)
        by_name[name] = by_name[name].join(features) if name in by_name else features
    return list(by_name.values())


def standing(features: Sequence[Any], device: str | None) -> list[Any]:
    """Features in the places of networks, on the networks' device."""
    import torch

    from repsim.passes import processes

    on = torch.device(processes.own_device() if device is None else device) if features else None
    return [replace(network.as_network(), on=on) for network in features]


LAYERS = click.option(
    "--layers", default="blocks", show_default=True, help="`blocks`, `paper`, `all`, or a regular expression."
)


def tokens_option(default: str) -> Callable:
    """`--tokens`, the part of a layer that stands for an image."""
    choice = click.Choice(["all", "cls", "spatial", "pooled"])
    return click.option("--tokens", type=choice, default=default, show_default=True)


MODEL = "Alias, timm name, hf:..., torchvision:..., open_clip:..., local-dir:... or package.module:factory."


def load(asked: list[Asked], device: str | None, seed: int, **options: Any) -> list[Any]:
    """The networks of a command; equal ones are loaded once."""
    from repsim.networks.models import load_model, parse_model_args, with_values
    from repsim.passes import processes

    device = processes.own_device() if device is None else device
    return [
        with_values(
            load_model(
                network.model,
                weights=network.weights,
                weights_key=network.key,
                device=device,
                seed=seed,
                transform=network.transform,
                **options,
                **parse_model_args(network.args),
            )
        )
        for network in asked
    ]


def label(model: str, weights: str = "pretrained", key: str | None = None) -> str:
    """The name of a network in tables: the model's, and its weights unless these are the pretrained ones."""
    suffix = {"pretrained": "", "random": "-random"}.get(weights, f"@{Path(weights).stem}")
    suffix += re.sub(r"[^\w.@+-]+", "-", f"-{key}") if key else ""
    return re.sub(r"[^\w.@+-]+", "-", model.rstrip("/").split("/")[-1]) + suffix
