"""`repsim attention`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from repsim.cli.asked import Asked, model_options
from repsim.cli.base import Source, main
from repsim.cli.job import Job, data_at_hand, job_options
from repsim.cli.pictures import draw, pictures
from repsim.cli.words import check_range
from repsim.errors import UsageError


@main.command(short_help="Measure how far each attention head looks, in pixels.")
@model_options(default="vit_mini")
@click.option("--blocks", help="Blocks to draw, such as 0,1,10,11, or `all`.  [default: two lowest, two highest]")
@click.option("--renormalize", is_flag=True, help="Divide attention rows by their sum once CLS is taken out.")
@click.option(
    "--maps",
    type=Source(),
    multiple=True,
    metavar="N|FILE...",
    help="Also draw CLS attention and rollout over N images, or over these files, or all of a folder.",
)
@click.argument("files", nargs=-1, type=Source(), metavar="")
@job_options("attention", images=5000, batch=50, batch_kind="forward pass")
def attention(
    job: Job,
    model: str,
    weights: str,
    weights_key: str | None,
    arg: tuple[str, ...],
    transform: str | None,
    blocks: str | None,
    renormalize: bool,
    maps: tuple[str, ...],
    files: tuple[str, ...],
) -> Path:
    """How far each attention head looks, in pixels (paper, Figures 3, 4, C.5, C.6).

    Writes attention.csv, run.json, attention.png and attention.pdf; with --maps also attention_maps.npz and its
    picture.
    """
    drawn = parse_blocks(blocks)
    if job.redraw is not None:
        draw(job.redraw, "attention", job.quiet, blocks=drawn)
        return job.redraw
    looked_at = parse_maps([*maps, *files] if maps else maps)
    if files and not maps:
        raise UsageError(f"unexpected {files[0]!r}; images to look at are given as --maps FILE, images as --data DIR")
    writes = ["attention.csv", "attention_maps.npz", *pictures("attention", "attention_maps")]
    # Where no other images are, those that maps are drawn of are measured too.
    images = None
    if isinstance(looked_at, list) and job.data is None and data_at_hand([model]) is None:
        from repsim.images.image_set import ImageSet

        images = ImageSet.of_named(looked_at)
    run = job.start([Asked(model, weights, arg, weights_key, transform)], writes, images=images)

    from repsim.studies.attention import attention_distance

    options: dict[str, Any] = {"renormalize": renormalize, "maps": looked_at, "batch_size": job.batch_size}
    run.save(attention_distance(run.networks[0], run.images, **options, **run.pass_options()), blocks=drawn)
    return run.out


def parse_maps(texts: Sequence[str]) -> int | list[str]:
    """A number of images, or which they are, from what was given; there are no more than a picture has rows for."""
    if len(texts) <= 1 and all(text.lstrip("-").isdigit() for text in texts):
        count = int(texts[0]) if texts else 0
        check_range("--maps", count, 0, 100)
        return count

    from repsim.images.image_set import ImageSet

    check_range("images of --maps", len(ImageSet.of_named(texts)), 1, 100)
    return list(texts)


def parse_blocks(blocks: str | None) -> list[int] | str | None:
    """Numbers of blocks from an option's text; `all` and None stay as they are."""
    if blocks is None or blocks == "all":
        return blocks
    try:
        return [int(block) for block in blocks.split(",")]
    except ValueError:
        raise UsageError(f"--blocks takes numbers such as 0,1,10,11, or `all`, got {blocks!r}") from None
