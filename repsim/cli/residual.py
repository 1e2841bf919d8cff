"""`repsim residual`."""

from __future__ import annotations

from pathlib import Path

import click

from repsim.cli.asked import each_model, model_options
from repsim.cli.base import main
from repsim.cli.job import Job, job_options
from repsim.cli.pictures import draw, pictures
from repsim.errors import UsageError


@main.command(short_help="Measure the norm of skips against that of branches.")
@model_options("", " Repeatable.", ("vit_mini", "resnet_mini"), several=True)
@click.option(
    "--outlier", type=float, default=5.0, show_default=True, help="Multiple of the median norm that marks an outlier."
)
@job_options("residual", images=1000, batch=50, batch_kind="forward pass")
def residual(
    job: Job,
    model: tuple[str, ...],
    weights: tuple[str, ...],
    weights_key: tuple[str, ...],
    arg: tuple[str, ...],
    transform: tuple[str, ...],
    outlier: float,
) -> Path:
    """Measure the norm of skip connections against that of branches (paper, Figures 7, E.1, E.2).

    Writes residual.csv, residual_outliers.csv (tokens of outlying norm), run.json, residual.png and residual.pdf.
    """
    if job.redraw is not None:
        draw(job.redraw, "residual", job.quiet)
        return job.redraw
    if not outlier > 1:
        raise UsageError(f"--outlier must be more than 1, got {outlier}")
    writes = ["residual.csv", "residual_outliers.csv", *pictures("residual")]
    run = job.start(each_model(model, weights, weights_key, arg, transform), writes)

    from repsim.studies.residual import residual_norms

    run.save(residual_norms(run.networks, run.images, outlier=outlier, batch_size=job.batch_size, **run.pass_options()))
    return run.out
