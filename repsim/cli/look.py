"""`repsim models` and `repsim layers`."""

from __future__ import annotations

import click

from repsim.cli.asked import known_models, transform_option
from repsim.cli.base import AS_JSON, Model, main
from repsim.cli.words import print_columns, print_rows_as_json


@main.command(short_help="List the networks that have short names.")
@AS_JSON
def models(as_json: bool) -> None:
    """List the networks with short names, the paper's network that each stands for, and its public weights."""
    from repsim.networks.aliases import ALIASES, BUNDLED
    from repsim.networks.minis import bundled

    rows = [("alias", "in the paper", "timm name", "weights")]
    rows += [(name, alias.stands_for, alias.timm_name, alias.weights) for name, alias in ALIASES.items()]
    for name in bundled():
        rows.append((name, BUNDLED.get(name, "trained here by analyses/train_minis.py"), "bundled", "Fashion-MNIST"))
    if as_json:
        print_rows_as_json(rows)
        return
    print_columns(rows)
    click.echo(
        "\nAlso: every timm name, hf:OWNER/NAME, torchvision:NAME, open_clip:NAME:PRETRAINED, package.module:factory."
    )


@main.command(short_help="List the layers of a network that can be compared.")
@click.argument("model", type=Model(), metavar="MODEL", shell_complete=known_models)
@click.option("--layers", default="paper", show_default=True, help="`blocks`, `paper`, `all`, or a regular expression.")
@click.option("--arg", metavar="KEY=VALUE", multiple=True, help="Model argument, such as img_size=384; repeatable.")
@transform_option()
@AS_JSON
def layers(model: str, layers: str, arg: tuple[str, ...], transform: str | None, as_json: bool) -> None:
    """List the layers of MODEL that can be compared: name, kind, index, relative depth, shape for one image."""
    from repsim.networks.layers import find_layers
    from repsim.networks.models import load_model, parse_model_args, with_values

    options = {"weights": "random", "seed_each_pass": True, "transform": transform}
    network = with_values(load_model(model, **options, **parse_model_args(arg)))
    rows = [("index", "depth", "kind", "layer", "shape")]
    for layer in find_layers(network, layers):
        shape = " x ".join(map(str, layer.shape))
        rows.append((str(layer.index), f"{layer.depth:.3f}", layer.kind, layer.name, shape))
    print_rows_as_json(rows) if as_json else print_columns(rows)
