"""`repsim extract`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from repsim.cli.asked import LAYERS, each_model, model_options, tokens_option
from repsim.cli.base import main
from repsim.cli.job import Job, job_options
from repsim.cli.words import say
from repsim.errors import UsageError


@main.command(short_help="Write the features of layers into files.")
@model_options("", " Repeatable.", ("vit_mini",), several=True)
@LAYERS
@tokens_option("all")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Type of the numbers in the files; float16 keeps about three digits.",
)
@job_options("extract", images=None, batch=50, batch_kind="forward pass")
def extract(
    job: Job,
    model: tuple[str, ...],
    weights: tuple[str, ...],
    weights_key: tuple[str, ...],
    arg: tuple[str, ...],
    transform: tuple[str, ...],
    layers: str,
    tokens: str,
    dtype: str,
) -> Path:
    """Features of layers as files: an array for each layer, with a row for each image.

    Writes layers/NETWORK--LAYER.npy, features.json (networks, layers, ids and labels of the images, in the order of the
    rows) and run.json. `--features NAME=DIR` of `repsim cka` and `repsim probe` reads them, rs.load_features in Python.
    """
    if job.redraw is not None:
        raise UsageError("there are no pictures of features, so --redraw has nothing to draw")
    run = job.start(each_model(model, weights, weights_key, arg, transform), ["features.json", "layers"])

    from repsim.studies.extract import extract

    out = run.resume.folder.parent  # into which all processes write
    options: dict[str, Any] = {"layers": layers, "tokens": tokens, "dtype": dtype, "batch_size": job.batch_size}
    features, record = extract(run.networks, run.images, out, **options, **run.pass_options())
    run.record(record)
    say(f"wrote features of {', '.join(features)} into {run.out}", job.quiet)
    return run.out
