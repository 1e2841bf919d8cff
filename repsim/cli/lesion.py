"""`repsim lesion`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from repsim.cli.asked import Asked, model_options
from repsim.cli.attention import parse_blocks
from repsim.cli.base import main
from repsim.cli.job import Job, job_options
from repsim.cli.pictures import draw, pictures


@main.command(short_help="Remove skips, branches or blocks, and measure the loss.")
@model_options(default="vit_mini")
@click.option(
    "--remove",
    type=click.Choice(["skip", "branch", "skips", "block"]),
    multiple=True,
    help="One skip or branch, all skips of a block, or the block; repeatable.  [default: each of them]",
)
@click.option("--blocks", help="Numbers of the blocks to try, such as 0,5,11.  [default: all]")
@click.option(
    "--layers", default="blocks", show_default=True, help="Where to compare: `blocks`, `paper`, `all`, or a pattern."
)
@job_options("lesion", images=512, batch=64, batch_kind="minibatch of CKA")
def lesion(
    job: Job,
    model: str,
    weights: str,
    weights_key: str | None,
    arg: tuple[str, ...],
    transform: str | None,
    remove: tuple[str, ...],
    blocks: str | None,
    layers: str,
) -> Path:
    """What a network loses with one skip, branch or block, removed at inference.

    Not the paper's Figure 8, which trains networks without the skips of a block. Writes lesion.csv, run.json,
    lesion.png and lesion.pdf.
    """
    if job.redraw is not None:
        draw(job.redraw, "lesion", job.quiet)
        return job.redraw
    chosen = parse_blocks(blocks)
    run = job.start([Asked(model, weights, arg, weights_key, transform)], ["lesion.csv", *pictures("lesion")])

    from repsim.studies.lesion import REMOVE, lesions

    options: dict[str, Any] = {
        "remove": remove or REMOVE,
        "blocks": None if chosen == "all" else chosen,
        "layers": layers,
    }
    run.save(lesions(run.networks[0], run.images, **options, batch_size=job.batch_size, **run.pass_options()))
    return run.out
