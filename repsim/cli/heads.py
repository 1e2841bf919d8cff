"""`repsim heads`."""

from __future__ import annotations

from pathlib import Path

import click

from repsim.cli.asked import Asked, model_options
from repsim.cli.base import main
from repsim.cli.job import Job, job_options
from repsim.cli.pictures import draw, pictures


@main.command(short_help="Compare local and global heads of A with lower layers of B.")
@model_options("a", " A transformer.", "vit_mini")
@model_options("b", default="resnet_mini")
@click.option("--layers", help="Layers of B: a preset or a regular expression.  [default: its first five blocks]")
@click.option("--window", type=int, help="Heads per window.  [default: a quarter of them]")
@job_options("heads", images=2560, batch=256, batch_kind="minibatch of CKA")
def heads(
    job: Job,
    model_a: str,
    weights_a: str,
    weights_key_a: str | None,
    arg_a: tuple[str, ...],
    transform_a: str | None,
    model_b: str,
    weights_b: str,
    weights_key_b: str | None,
    arg_b: tuple[str, ...],
    transform_b: str | None,
    layers: str | None,
    window: int | None,
) -> Path:
    """Local and global heads of A's first block against lower layers of B (paper, Figure 5).

    Writes heads.csv, heads_correlation.csv (Spearman's, with an interval over images and a test that permutes heads),
    run.json, heads.png and heads.pdf.
    """
    if job.redraw is not None:
        draw(job.redraw, "heads", job.quiet)
        return job.redraw
    asked = [
        Asked(model_a, weights_a, arg_a, weights_key_a, transform_a),
        Asked(model_b, weights_b, arg_b, weights_key_b, transform_b),
    ]
    run = job.start(asked, ["heads.csv", "heads_correlation.csv", *pictures("heads")])

    from repsim.studies.heads import head_similarity

    options = {"layers": layers, "window": window, "batch_size": job.batch_size, "seed": job.seed}
    run.save(head_similarity(run.networks, run.images, **options, **run.pass_options()))
    return run.out
