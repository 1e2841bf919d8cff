"""`repsim attention`."""

from __future__ import annotations

from pathlib import Path

import click

from repsim.cli.base import Asked, Job, job_options, main, model_options
from repsim.cli.pictures import finish, pictures
from repsim.cli.words import check_range
from repsim.errors import UsageError


@main.command()
@model_options(default="vit_mini")
@click.option("--blocks", help="Blocks to draw, such as 0,1,10,11, or `all`.  [default: two lowest, two highest]")
@click.option("--renormalize", is_flag=True, help="Divide attention rows by their sum once CLS is taken out.")
@click.option("--maps", type=int, default=0, metavar="N", help="Also draw CLS attention and rollout over N images.")
@job_options("attention", images=5000, batch_size=50, of="forward pass")
def attention(
    job: Job,
    model: str,
    weights: str,
    weights_key: str | None,
    arg: tuple[str, ...],
    blocks: str | None,
    renormalize: bool,
    maps: int,
) -> Path:
    """How far each attention head looks, in pixels (paper, Figures 3, 4, C.5, C.6).

    Writes attention.csv, run.json, attention.png and attention.pdf; with --maps also attention_maps.npz and its
    picture.
    """
    drawn = parse_blocks(blocks)
    if job.redraw is not None:
        draw_attention(job.redraw, drawn, job.quiet)
        return job.redraw
    check_range("--maps", maps, 0, 100)  # a picture holds no more rows
    writes = ["attention.csv", "attention_maps.npz", *pictures("attention", "attention_maps")]
    run = job.start([Asked(model, weights, arg, weights_key)], writes)

    from repsim.passes.sweep import sweep
    from repsim.studies.attention import AttentionDistance, attention_maps
    from repsim.tables import save_arrays, save_table

    (network,) = run.networks
    if maps:
        picked = attention_maps(network, run.images, maps, skip_broken=job.skip_broken)
        save_arrays(picked._asdict(), run.out / "attention_maps.npz")
    study = AttentionDistance(network, renormalize=renormalize)
    for text in study.notices:
        run.notice(text)
    counts = sweep(run.images, [study], batch_size=job.batch_size, **run.how())
    save_table(study.table(), run.out / "attention.csv")
    protocol = {"renormalize": renormalize, "batch_size": counts.batch_size, "maps": maps}
    run.save(run.images.record(counts), protocol)
    draw_attention(run.out, drawn, job.quiet)
    return run.out


def draw_attention(directory: Path, blocks: list[int] | str | None, quiet: bool) -> None:
    from repsim.plots import attention_distance, attention_maps
    from repsim.tables import ATTENTION, load_arrays, load_table

    table = load_table(directory / "attention.csv", ATTENTION)
    models = list(table["model"])
    chosen = sorted(table["block"].unique()) if blocks == "all" else blocks
    maps = directory / "attention_maps.npz"
    if maps.exists():
        title = f"{models[0]}: attention rollout, and heads of the last block from CLS"
        figure = attention_maps(**load_arrays(maps), title=title)
        finish(directory, "attention_maps", figure, models, True)
    finish(directory, "attention", attention_distance(table, blocks=chosen).figure, models, quiet)


def parse_blocks(blocks: str | None) -> list[int] | str | None:
    if blocks is None or blocks == "all":
        return blocks
    try:
        return [int(block) for block in blocks.split(",")]
    except ValueError:
        raise UsageError(f"--blocks takes numbers such as 0,1,10,11, or `all`, got {blocks!r}") from None
