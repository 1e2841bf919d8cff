"""`repsim receptive`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from repsim.cli.asked import Asked, model_options
from repsim.cli.base import main
from repsim.cli.job import Job, job_options
from repsim.cli.pictures import draw, pictures
from repsim.cli.words import check_range


@main.command(short_help="Measure on which pixels each layer depends.")
@model_options(default="vit_mini")
@click.option("--layers", help="`blocks`, `paper`, `all`, or a regular expression.  [default: after residual sums]")
@click.option("--branch", is_flag=True, help="Fields of the branch that enters each residual sum, before the sum.")
@click.option(
    "--proxy", is_flag=True, help="Gradient of the sum over channels: cheap, not the paper's; writes receptive_proxy.*."
)
@click.option("--channels", type=int, default=16, show_default=True, help="Random channels per layer; 0: all, exactly.")
@job_options("receptive", images=32, batch=8, batch_kind="pass")
def receptive(
    job: Job,
    model: str,
    weights: str,
    weights_key: str | None,
    arg: tuple[str, ...],
    transform: str | None,
    layers: str | None,
    branch: bool,
    proxy: bool,
    channels: int,
) -> Path:
    """Measure on which pixels the centre of each layer depends (paper, Figures 6 and C.1 to C.4).

    Writes receptive.csv, receptive.npz (the maps), run.json, receptive.png and receptive.pdf.
    """
    name = "receptive_proxy" if proxy else "receptive"
    if job.redraw is not None:
        draw(job.redraw, name, job.quiet)
        return job.redraw
    check_range("--channels", channels, 0)
    writes = [f"{name}.csv", f"{name}.npz", *pictures(name)]
    run = job.start([Asked(model, weights, arg, weights_key, transform)], writes)

    from repsim.studies.receptive import receptive_fields

    options: dict[str, Any] = {
        "layers": layers,
        "branch": branch,
        "proxy": proxy,
        "channels": channels or None,
        "seed": job.seed,
    }
    run.save(receptive_fields(run.networks[0], run.images, **options, batch_size=job.batch_size, **run.pass_options()))
    return run.out
