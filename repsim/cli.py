"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from repsim.errors import RepsimError, UsageError

PACKAGES = ("torch", "timm", "torchvision", "numpy", "pandas", "matplotlib", "seaborn")


class Commands(click.Group):
    """Turns repsim's errors into one line and an exit code: 2 for a wrong call, 1 for the rest."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RepsimError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(2 if isinstance(error, UsageError) else 1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="repsim-vision", prog_name="repsim")
def main() -> None:
    """Compare what vision networks compute, layer by layer (Raghu et al., NeurIPS 2021)."""


def options(*decorators: Callable) -> Callable:
    """Several click options as one decorator, shared by commands."""

    def decorate(command: Callable) -> Callable:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def image_options(images: int) -> Callable:
    return options(
        click.option(
            "--data",
            metavar="DATA",
            help="Folder of images, `sample`, `fashion-mnist`, `noise`, or a timm data set such as torch/cifar10.  "
            "[default: the bundled sample for bundled networks, else data/imagenet/val or $REPSIM_IMAGENET]",
        ),
        click.option("--data-dir", metavar="DIR", help="Where timm's data sets or Fashion-MNIST lie."),
        click.option("--split", help="Which split, or which folder inside DATA."),
        click.option("--images", type=int, default=images, show_default=True, help="How many, drawn at random."),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**63 - 1),
            default=0,
            show_default=True,
            help="Of the draw, and of untrained weights.",
        ),
        click.option("--workers", type=int, help="Processes that decode images.  [default: one per core, up to 8]"),
        click.option("--skip-broken", is_flag=True, help="Go on without images that cannot be read, and count them."),
    )


def run_options(command: str) -> Callable:
    return options(
        click.option("--device", help="cpu, cuda, cuda:1, mps ...  [default: cuda where there is one]"),
        click.option(
            "--out", type=click.Path(path_type=Path), help=f"Directory of the results.  [default: runs/{command}-...]"
        ),
        click.option(
            "--redraw",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="Only draw the pictures of a finished run anew.",
        ),
        click.option("--quiet", is_flag=True, help="No progress; errors only."),
    )


LAYERS = options(
    click.option(
        "--layers", default="blocks", show_default=True, help="`blocks`, `paper`, `all`, or a regular expression."
    ),
    click.option("--tokens", type=click.Choice(["all", "cls", "spatial", "pooled"]), default="all", show_default=True),
)


def model_option(side: str, help: str, default: str | None = None) -> Callable:
    return options(
        click.option(f"--model-{side}", metavar="MODEL", default=default, help=help),
        click.option(
            f"--weights-{side}",
            metavar="WEIGHTS",
            default="pretrained",
            show_default=True,
            help="`pretrained`, `random`, or a file.",
        ),
        click.option(
            f"--arg-{side}",
            metavar="KEY=VALUE",
            multiple=True,
            help="Model argument, such as img_size=384; repeatable.",
        ),
    )


MODEL = "Alias, timm name, hf-hub:..., local-dir:... or package.module:factory."
WEIGHTS = "`pretrained`, `random`, or a file."
ARGUMENT = "Model argument, such as img_size=384; repeatable."


@main.command()
@model_option("a", "Alias, timm name, hf-hub:..., local-dir:... or package.module:factory.  [default: vit_mini]")
@model_option("b", "The other network. Without it: within model A.  [default: resnet_mini if A is not given either]")
@LAYERS
@image_options(2560)
@click.option("--batch-size", type=int, default=256, show_default=True, help="Images per minibatch of CKA.")
@click.option("--repeats", type=int, default=1, show_default=True, help="Passes over newly drawn images.")
@run_options("cka")
def cka(
    model_a: str | None,
    weights_a: str,
    arg_a: tuple[str, ...],
    model_b: str | None,
    weights_b: str,
    arg_b: tuple[str, ...],
    layers: str,
    tokens: str,
    data: str | None,
    data_dir: str | None,
    split: str | None,
    images: int,
    seed: int,
    workers: int | None,
    skip_broken: bool,
    batch_size: int,
    repeats: int,
    device: str | None,
    out: Path | None,
    redraw: Path | None,
    quiet: bool,
) -> None:
    """Similarity of all layers of one or two networks by minibatch CKA (paper, Figures 1 and 2).

    Writes cka.csv, run.json, cka.png and cka.pdf. The paper's protocol is
    --layers paper --images 10240 --batch-size 1024 --repeats 20.
    """
    if redraw is not None:
        return draw_cka(redraw, quiet)
    if model_b is None and (weights_b != "pretrained" or arg_b):
        if model_a is not None:
            raise UsageError("--weights-b and --arg-b need --model-b")
    if model_a is None and model_b is None:
        model_a, model_b = "vit_mini", "resnet_mini"
    model_a = model_a or "vit_mini"
    check_range("--images", images, 4)
    check_range("--batch-size", batch_size, 4)
    check_range("--repeats", repeats, 1)
    if workers is not None:
        check_range("--workers", workers, 0)

    from repsim.models import check_name
    from repsim.tables import prepare

    started = time.perf_counter()
    asked = [(model_a, weights_a, arg_a)] + ([(model_b, weights_b, arg_b)] if model_b else [])
    for model, _, _ in asked:
        check_name(model)
    chosen = image_set(data, data_dir, split, images, seed, [model for model, _, _ in asked])
    networks = load(asked, device, seed)
    out = prepare(out or default_directory("cka", [label(model, weights) for model, weights, _ in asked]))

    from repsim.studies.similarity import compare
    from repsim.tables import RECORD, save_record, save_table

    notices = notices_of(chosen, images, quiet)
    if len(chosen) < batch_size:
        notices.append(
            f"fewer images than --batch-size {batch_size}: one batch of {len(chosen)}, so no standard errors"
        )
        say(notices[-1], quiet)
    comparison = compare(
        networks,
        chosen,
        layers=layers,
        tokens=tokens,
        batch_size=batch_size,
        repeats=repeats,
        progress=progress_bar(quiet, repeats),
        workers=workers,
        skip_broken=skip_broken,
    )
    for reason in comparison.undefined:
        say(reason, quiet)
    if repeats > 1 and len(chosen) == comparison.images["available"]:
        notices.append("every repeat saw the same images, newly batched: sd_repeats says nothing of other images")
        say(notices[-1], quiet)
    notices += notices_of_losses(comparison.images, quiet)
    more = {"undefined": comparison.undefined, "notices": notices}
    record = run_record(networks, comparison.images, {**comparison.protocol, "seed": seed}, started, **more)
    save_table(comparison.table, out / "cka.csv")
    save_record(record, out / RECORD)
    draw_cka(out, quiet)


def draw_cka(directory: Path, quiet: bool) -> None:
    """Draw a run's pictures from its table and say where everything is."""
    from repsim.plots import heatmap
    from repsim.tables import SIMILARITY, load_table

    table = load_table(directory / "cka.csv", SIMILARITY)
    finish(directory, "cka", heatmap(table), list(table["model_a"]), quiet)


@main.command()
@click.option("--model", metavar="MODEL", default="vit_mini", show_default=True, help=MODEL)
@click.option("--weights", metavar="WEIGHTS", default="pretrained", show_default=True, help=WEIGHTS)
@click.option("--arg", metavar="KEY=VALUE", multiple=True, help=ARGUMENT)
@click.option("--blocks", help="Blocks to draw, such as 0,1,10,11, or `all`.  [default: two lowest, two highest]")
@click.option("--renormalize", is_flag=True, help="Divide attention rows by their sum once CLS is taken out.")
@click.option("--maps", type=int, default=0, metavar="N", help="Also draw CLS attention and rollout over N images.")
@image_options(5000)
@click.option("--batch-size", type=int, default=50, show_default=True, help="Images per forward pass.")
@run_options("attention")
def attention(
    model: str,
    weights: str,
    arg: tuple[str, ...],
    blocks: str | None,
    renormalize: bool,
    maps: int,
    data: str | None,
    data_dir: str | None,
    split: str | None,
    images: int,
    seed: int,
    workers: int | None,
    skip_broken: bool,
    batch_size: int,
    device: str | None,
    out: Path | None,
    redraw: Path | None,
    quiet: bool,
) -> None:
    """How far each attention head looks, in pixels (paper, Figures 3, 4, C.5, C.6).

    Writes attention.csv, run.json, attention.png and attention.pdf; with --maps also attention_maps.npz and its
    picture.
    """
    drawn = parse_blocks(blocks)
    if redraw is not None:
        return draw_attention(redraw, drawn, quiet)
    check_range("--images", images, 4)
    check_range("--batch-size", batch_size, 4)
    check_range("--maps", maps, 0)

    from repsim.models import check_name
    from repsim.studies.attention import AttentionDistance, attention_maps
    from repsim.sweep import sweep
    from repsim.tables import RECORD, prepare, save_arrays, save_record, save_table

    started = time.perf_counter()
    check_name(model)
    chosen = image_set(data, data_dir, split, images, seed, [model])
    (network,) = load([(model, weights, arg)], device, seed)
    out = prepare(out or default_directory("attention", [label(model, weights)]))
    notices = notices_of(chosen, images, quiet)
    study = AttentionDistance(network.sized(chosen.tensor_size), renormalize=renormalize)
    how = {"progress": progress_bar(quiet), "workers": workers, "skip_broken": skip_broken}
    counts = sweep(chosen, [study.network], [study], batch_size=batch_size, **how)
    table = study.table()
    picked = attention_maps(network, chosen, maps)._asdict() if maps else None
    protocol = {"renormalize": renormalize, "batch_size": counts.batch_size, "seed": seed, "maps": maps}
    taken = {**chosen.record(), **counts.record()}
    notices += notices_of_losses(taken, quiet)
    record = run_record([network], taken, protocol, started, notices=notices)
    save_table(table, out / "attention.csv")
    if picked:
        save_arrays(picked, out / "attention_maps.npz")
    save_record(record, out / RECORD)
    draw_attention(out, drawn, quiet)


def draw_attention(directory: Path, blocks: list[int] | str | None, quiet: bool) -> None:
    import numpy as np

    from repsim.plots import attention_distance, attention_maps
    from repsim.tables import ATTENTION, load_table

    table = load_table(directory / "attention.csv", ATTENTION)
    models = list(table["model"])
    chosen = sorted(table["block"].unique()) if blocks == "all" else blocks
    maps = directory / "attention_maps.npz"
    if maps.exists():
        with np.load(maps) as arrays:
            figure = attention_maps(
                **arrays, title=f"{models[0]}: attention rollout, and heads of the last block from CLS"
            )
        finish(directory, "attention_maps", figure, models, True)
    finish(directory, "attention", attention_distance(table, blocks=chosen).figure, models, quiet)


def parse_blocks(blocks: str | None) -> list[int] | str | None:
    if blocks is None or blocks == "all":
        return blocks
    try:
        return [int(block) for block in blocks.split(",")]
    except ValueError:
        raise UsageError(f"--blocks takes numbers such as 0,1,10,11, or `all`, got {blocks!r}") from None


@main.command()
@model_option("a", MODEL + " A transformer.  [default: vit_mini]", "vit_mini")
@model_option("b", MODEL + "  [default: resnet_mini]", "resnet_mini")
@click.option("--layers", help="Of model B: a preset or a regular expression.  [default: its first five blocks]")
@click.option("--window", type=int, help="Heads per window.  [default: a quarter of them]")
@image_options(2560)
@click.option("--batch-size", type=int, default=256, show_default=True, help="Images per minibatch of CKA.")
@run_options("heads")
def heads(
    model_a: str,
    weights_a: str,
    arg_a: tuple[str, ...],
    model_b: str,
    weights_b: str,
    arg_b: tuple[str, ...],
    layers: str | None,
    window: int | None,
    data: str | None,
    data_dir: str | None,
    split: str | None,
    images: int,
    seed: int,
    workers: int | None,
    skip_broken: bool,
    batch_size: int,
    device: str | None,
    out: Path | None,
    redraw: Path | None,
    quiet: bool,
) -> None:
    """Local and global heads of A's first block against lower layers of B (paper, Figure 5).

    Writes heads.csv, heads_correlation.csv (Spearman's, with an interval), run.json, heads.png and heads.pdf.
    """
    if redraw is not None:
        return draw_heads(redraw, quiet)
    check_range("--images", images, 4)
    check_range("--batch-size", batch_size, 4)

    from repsim.models import check_name
    from repsim.studies.heads import head_similarity
    from repsim.tables import RECORD, prepare, save_record, save_table

    started = time.perf_counter()
    asked = [(model_a, weights_a, arg_a), (model_b, weights_b, arg_b)]
    for model, _, _ in asked:
        check_name(model)
    chosen = image_set(data, data_dir, split, images, seed, [model_a, model_b])
    networks = load(asked, device, seed)
    out = prepare(out or default_directory("heads", [label(model, weights) for model, weights, _ in asked]))
    notices = notices_of(chosen, images, quiet)
    found = head_similarity(
        *networks,
        chosen,
        layers=layers,
        window=window,
        batch_size=batch_size,
        seed=seed,
        progress=progress_bar(quiet),
        workers=workers,
        skip_broken=skip_broken,
    )
    taken = {**chosen.record(), **found.counts.record()}
    notices += notices_of_losses(taken, quiet)
    protocol = {"window": window or "a quarter of the heads", "batch_size": found.counts.batch_size, "seed": seed}
    save_table(found.table, out / "heads.csv")
    save_table(found.correlation, out / "heads_correlation.csv")
    save_record(run_record(networks, taken, protocol, started, notices=notices), out / RECORD)
    draw_heads(out, quiet)


def draw_heads(directory: Path, quiet: bool) -> None:
    from repsim.plots import head_similarity
    from repsim.tables import HEADS, load_table

    table = load_table(directory / "heads.csv", HEADS)
    finish(directory, "heads", head_similarity(table).figure, [*table["model_a"], *table["model_b"]], quiet)


@main.command()
@click.option("--model", metavar="MODEL", default="vit_mini", show_default=True, help=MODEL)
@click.option("--weights", metavar="WEIGHTS", default="pretrained", show_default=True, help=WEIGHTS)
@click.option("--arg", metavar="KEY=VALUE", multiple=True, help=ARGUMENT)
@click.option("--layers", help="`blocks`, `paper`, `all`, or a regular expression.  [default: after residual sums]")
@click.option("--branch", is_flag=True, help="What enters each residual sum beside the skip, before the sum.")
@click.option(
    "--proxy", is_flag=True, help="Gradient of the sum over channels: cheap, not the paper's; writes receptive_proxy.*."
)
@click.option("--channels", type=int, default=16, show_default=True, help="Random channels per layer; 0: all, exactly.")
@image_options(32)
@click.option("--batch-size", type=int, default=8, show_default=True, help="Images per pass.")
@run_options("receptive")
def receptive(
    model: str,
    weights: str,
    arg: tuple[str, ...],
    layers: str | None,
    branch: bool,
    proxy: bool,
    channels: int,
    data: str | None,
    data_dir: str | None,
    split: str | None,
    images: int,
    seed: int,
    workers: int | None,
    skip_broken: bool,
    batch_size: int,
    device: str | None,
    out: Path | None,
    redraw: Path | None,
    quiet: bool,
) -> None:
    """Which pixels the centre of each layer depends on (paper, Figures 6 and C.1 to C.4).

    Writes receptive.csv, receptive.npz (the maps), run.json, receptive.png and receptive.pdf.
    """
    if redraw is not None:
        return draw_receptive(redraw, quiet, "receptive_proxy" if proxy else "receptive")
    check_range("--images", images, 4)
    check_range("--batch-size", batch_size, 4)
    check_range("--channels", channels, 0)

    from repsim.models import check_name
    from repsim.studies.receptive import receptive_fields
    from repsim.tables import RECORD, prepare, save_arrays, save_record, save_table

    started = time.perf_counter()
    check_name(model)
    chosen = image_set(data, data_dir, split, images, seed, [model])
    (network,) = load([(model, weights, arg)], device, seed)
    out = prepare(out or default_directory("receptive", [label(model, weights)]))
    notices = notices_of(chosen, images, quiet)
    fields = receptive_fields(
        network,
        chosen,
        layers=layers,
        branch=branch,
        proxy=proxy,
        channels=channels or None,
        seed=seed,
        batch_size=batch_size,
        progress=progress_bar(quiet),
        workers=workers,
        skip_broken=skip_broken,
    )
    taken = {**chosen.record(), **fields.counts.record()}
    notices += notices_of_losses(taken, quiet)
    quantity = "gradient of the sum over channels (proxy)" if proxy else "mean over channels of |gradient|"
    protocol = {"quantity": quantity, "branch": branch, "seed": seed, "channels": fields.channels}
    record = run_record([network], taken, protocol, started, notices=notices)
    name = "receptive_proxy" if proxy else "receptive"
    save_table(fields.table, out / f"{name}.csv")
    save_arrays(fields.maps, out / f"{name}.npz")
    save_record(record, out / RECORD)
    draw_receptive(out, quiet, name)


def draw_receptive(directory: Path, quiet: bool, name: str = "receptive") -> None:
    import numpy as np

    from repsim.plots import receptive_fields
    from repsim.tables import RECEPTIVE, load_table

    table = load_table(directory / f"{name}.csv", RECEPTIVE)
    try:
        with np.load(directory / f"{name}.npz") as arrays:
            maps = dict(arrays)
    except (OSError, ValueError) as error:
        raise RepsimError(f"cannot read the maps beside the table: {error}") from None
    quantity = "|d sum of channels / d pixel| (proxy)" if name == "receptive_proxy" else "|d centre / d pixel|"
    finish(directory, name, receptive_fields(table, maps, quantity=quantity), list(table["model"]), quiet)


@main.command()
def models() -> None:
    """Networks by the paper's names: what each stands for, and which public weights are used."""
    from repsim.aliases import ALIASES, BUNDLED

    rows = [("alias", "in the paper", "timm name", "weights")]
    rows += [(name, alias.stands_for, alias.timm_name, alias.weights) for name, alias in ALIASES.items()]
    rows += [(name, what, "bundled", "Fashion-MNIST") for name, what in BUNDLED.items()]
    print_columns(rows)
    click.echo("\nAlso: every timm name, hf-hub:owner/name, local-dir:path, package.module:factory.")


@main.command()
@click.argument("model")
@click.option("--layers", default="paper", show_default=True, help="`blocks`, `paper`, `all`, or a regular expression.")
@click.option("--arg", metavar="KEY=VALUE", multiple=True, help="Model argument, such as img_size=384; repeatable.")
def layers(model: str, layers: str, arg: tuple[str, ...]) -> None:
    """What can be compared in MODEL: name, kind, index, relative depth, shape for one image."""
    from repsim.layers import find_layers
    from repsim.models import load_model, parse_model_args

    network = load_model(model, weights="random", **parse_model_args(arg))
    rows = [("index", "depth", "kind", "layer", "shape")]
    for layer in find_layers(network, layers):
        shape = " x ".join(map(str, layer.shape))
        rows.append((str(layer.index), f"{layer.depth:.3f}", layer.kind, layer.name, shape))
    print_columns(rows)


# Helpers that the commands share


def run_record(
    networks: list[Any], images: dict[str, Any], protocol: dict[str, Any], started: float, **more: Any
) -> dict[str, Any]:
    """What `run.json` holds: everything needed to know what was computed, and to do it again."""
    return {
        "command": command_line(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "networks": [network.record() for network in networks],
        "images": images,
        "protocol": protocol,
        "random": any(network.weights == "random" for network in networks),
        **more,
        "versions": versions(),
        "device": device_name(networks[0].device),
        "seconds": round(time.perf_counter() - started, 2),
    }


def finish(directory: Path, name: str, figure: Any, models: list[str], quiet: bool) -> None:
    """Save a figure under its name, and once more with `random` in it for untrained networks; say where it is."""
    from repsim.plots import save
    from repsim.tables import RECORD, prepare

    prepare(directory)
    pictures = save(figure, directory / name)
    if any("-random" in model for model in models):
        pictures += save(figure, directory / f"{name}-random")
    else:  # an earlier run into this directory may have been untrained
        for suffix in (".png", ".pdf"):
            (directory / f"{name}-random{suffix}").unlink(missing_ok=True)
    found = [directory / f"{name}.csv", directory / RECORD, *pictures]
    say("wrote " + ", ".join(str(path) for path in found if path.exists()), quiet)


def notices_of_losses(images: dict[str, Any], quiet: bool) -> list[str]:
    """What became of images that were chosen and not used."""
    losses = [("dropped_in_short_batch", "left out, a short last batch"), ("broken_count", "could not be read")]
    notices = [f"{images['used']} images used; {images[key]} {what}" for key, what in losses if images[key]]
    for notice in notices:
        say(notice, quiet)
    return notices


def notices_of(chosen: Any, images: int, quiet: bool) -> list[str]:
    notices = []
    if len(chosen) < images:
        notices.append(f"{images} images were asked for, there are {len(chosen)}; all are used")
    for notice in notices:
        say(notice, quiet)
    return notices


def load(asked: list[tuple[str, str, tuple[str, ...]]], device: str | None, seed: int) -> list[Any]:
    """The networks of a command, each loaded once."""
    import torch

    from repsim.models import load_model, parse_model_args

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return [
        load_model(model, weights=weights, device=device, seed=seed, **parse_model_args(args))
        for model, weights, args in asked
    ]


def image_set(
    data: str | None, root: str | None, split: str | None, images: int, seed: int, networks: list[str]
) -> Any:
    """The images asked for, or those that go with the networks."""
    from repsim.images import ImageSet

    return ImageSet(data or default_data(networks), split=split, root=root, images=images, seed=seed)


def default_data(networks: list[str]) -> str:
    """The bundled sample for the bundled networks, else ImageNet where it is."""
    from repsim.minis import ARCHITECTURES, bundled

    if all(name in ARCHITECTURES or name in bundled() for name in networks):
        return "sample"
    named = os.environ.get("REPSIM_IMAGENET")
    if named and not Path(named).is_dir():
        raise UsageError(f"REPSIM_IMAGENET names {named!r}, which is no folder")
    for place in (named, "data/imagenet/val"):
        if place and Path(place).is_dir():
            return place
    raise UsageError(
        "no images: give a folder with --data DIR (data/README.md says how to get some), or put ImageNet's validation "
        "images into data/imagenet/val or name their folder in REPSIM_IMAGENET; `--data noise` gives a dry run"
    )


def label(model: str, weights: str) -> str:
    suffix = {"pretrained": "", "random": "-random"}.get(weights, f"@{Path(weights).stem}")
    return re.sub(r"[^\w.@+-]+", "-", model.rstrip("/").split("/")[-1]) + suffix


def default_directory(command: str, labels: list[str]) -> Path:
    return Path("runs") / "-".join([command, *labels])


def check_range(option: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"{option} must be at least {least}, got {value}")


def progress_bar(quiet: bool, repeats: int = 1) -> Callable | None:
    """tqdm on stderr, one bar per repeat; nothing when quiet or not on a terminal."""
    from functools import partial

    from tqdm import tqdm

    if quiet or not sys.stderr.isatty():
        return None
    counter = iter(range(1, repeats + 1))
    return lambda batches, **more: partial(tqdm, unit="batch", dynamic_ncols=True)(
        batches, desc=f"repeat {next(counter)} of {repeats}" if repeats > 1 else "images", **more
    )


def say(text: str, quiet: bool) -> None:
    if not quiet:
        click.echo(text, err=True)


def print_columns(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def command_line() -> str:
    return shlex.join(["repsim", *sys.argv[1:]])


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in ("repsim-vision", *PACKAGES)}}


def device_name(device: Any) -> str:
    import torch

    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)
