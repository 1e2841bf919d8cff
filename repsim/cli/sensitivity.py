"""`repsim sensitivity`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from repsim.cli.asked import LAYERS, Asked, known_models, tokens_option, weights_options
from repsim.cli.base import Model, main
from repsim.cli.job import Job, job_options
from repsim.cli.pictures import draw, pictures


@main.command(short_help="Measure how each measure responds to changes of a layer.")
@click.argument("model", type=Model(), metavar="MODEL", default="vit_mini", shell_complete=known_models)
@weights_options()
@click.option(
    "--measure",
    "measures",
    metavar="NAME",
    multiple=True,
    help="Measures, as in `repsim compare`. Repeatable.  [default: all]",
)
@LAYERS
@tokens_option("pooled")
@job_options("sensitivity", images=500, batch=50, batch_kind="forward pass")
def sensitivity(
    job: Job,
    model: str,
    weights: str,
    weights_key: str | None,
    arg: tuple[str, ...],
    transform: str | None,
    measures: tuple[str, ...],
    layers: str,
    tokens: str,
) -> Path:
    """Measure how measures of similarity respond when each layer of a network is changed in known ways.

    Principal components are deleted from the smallest on, half of the images are moved by one vector, and one image is
    moved. Writes sensitivity.csv, run.json, sensitivity.png and sensitivity.pdf.
    """
    if job.redraw is not None:
        draw(job.redraw, "sensitivity", job.quiet)
        return job.redraw

    from repsim.studies.compare import measures_of
    from repsim.studies.sensitivity import sensitivity

    chosen = None if not measures or "all" in measures else [measure.name for measure in measures_of(measures)]
    asked = [Asked(model, weights, arg, weights_key, transform)]
    run = job.start(asked, ["sensitivity.csv", *pictures("sensitivity")])
    options: dict[str, Any] = {"measures": chosen, "layers": layers, "tokens": tokens}
    run.save(sensitivity(run.networks[0], run.images, **options, batch_size=job.batch_size, **run.pass_options()))
    return run.out
