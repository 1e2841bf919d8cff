"""`repsim localize`."""

from __future__ import annotations

from pathlib import Path

import click

from repsim.cli.asked import LAYERS, each_model, model_options
from repsim.cli.base import main
from repsim.cli.job import Job, job_options
from repsim.cli.pictures import draw, pictures
from repsim.errors import UsageError, one_of


@main.command(short_help="Find which input patches single tokens resemble.")
@model_options("", " Repeatable.", ("vit_mini", "vit_mini_gap", "resnet_mini"), several=True)
@LAYERS
@click.option(
    "--grid",
    "finest",
    type=int,
    default=32,
    show_default=True,
    help="Rows and columns of positions to look at, at most; finer maps are looked at in as many places.",
)
@click.option("--show", metavar="ROW,COLUMN", multiple=True, help="Token to draw; repeatable.  [default: the paper's]")
@click.option("--show-layer", metavar="LAYER", help="Layer to draw.  [default: the last of each network]")
@job_options("localize", images=2560, batch=256, batch_kind="minibatch of CKA")
def localize(
    job: Job,
    model: tuple[str, ...],
    weights: tuple[str, ...],
    weights_key: tuple[str, ...],
    arg: tuple[str, ...],
    transform: tuple[str, ...],
    layers: str,
    finest: int,
    show: tuple[str, ...],
    show_layer: str | None,
) -> Path:
    """Which input patches single tokens resemble (paper, Figures 9, 10, D.1 to D.3).

    Writes localization.csv (every token and patch of every layer), localization_summary.csv, run.json, and the
    pictures of both. Where that would be over a million rows, localization.csv has the tokens of --show, and
    localization.npz has all.
    """
    tokens = parse_tokens(show)
    if job.redraw is not None:
        draw(job.redraw, "localization", job.quiet, tokens=tokens, layer=show_layer)
        return job.redraw
    tables = ["localization.csv", "localization_summary.csv"]
    writes = [*tables, "localization.npz", *pictures("localization", "localization_summary")]
    run = job.start(each_model(model, weights, weights_key, arg, transform), writes)

    from repsim.studies.localization import located, patch_grid, token_localization

    if tokens or show_layer is not None:  # choices that cannot be drawn are refused before the pass
        placed = [(network, located(network, layers)[0]) for network in run.networks]
        names = dict.fromkeys(layer.name for _, layers_of_one in placed for layer in layers_of_one)
        if show_layer is not None and show_layer not in names:
            raise one_of("layer of --show-layer", show_layer, names)
        rows, columns = (
            min(sides)
            for sides in zip(*(patch_grid(network, layers_of_one, finest) for network, layers_of_one in placed))
        )
        for row, column in tokens or ():
            if not (0 <= row < rows and 0 <= column < columns):
                raise UsageError(f"--show {row},{column}: the grid of tokens is {rows} x {columns}")
    options = {"layers": layers, "finest": finest, "tokens": tokens, "batch_size": job.batch_size}
    run.save(
        token_localization(run.networks, run.images, **options, **run.pass_options()), tokens=tokens, layer=show_layer
    )
    return run.out


def parse_tokens(show: tuple[str, ...]) -> list[tuple[int, int]] | None:
    """Rows and columns of tokens from an option's texts; None without texts."""
    try:
        pairs = [(int(row), int(column)) for row, column in (token.split(",") for token in show)]
    except ValueError:
        raise UsageError(f"--show takes the row and column of a token, such as 2,1, got {' '.join(show)!r}") from None
    return pairs or None
