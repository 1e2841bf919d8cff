"""`repsim receptive`."""

from __future__ import annotations

from pathlib import Path

import click

from repsim.cli.base import Asked, Job, job_options, main, model_options
from repsim.cli.pictures import finish, pictures
from repsim.cli.words import check_range
from repsim.errors import RepsimError


@main.command()
@model_options(default="vit_mini")
@click.option("--layers", help="`blocks`, `paper`, `all`, or a regular expression.  [default: after residual sums]")
@click.option("--branch", is_flag=True, help="What enters each residual sum beside the skip, before the sum.")
@click.option(
    "--proxy", is_flag=True, help="Gradient of the sum over channels: cheap, not the paper's; writes receptive_proxy.*."
)
@click.option("--channels", type=int, default=16, show_default=True, help="Random channels per layer; 0: all, exactly.")
@job_options("receptive", images=32, batch_size=8, of="pass")
def receptive(
    job: Job,
    model: str,
    weights: str,
    weights_key: str | None,
    arg: tuple[str, ...],
    layers: str | None,
    branch: bool,
    proxy: bool,
    channels: int,
) -> Path:
    """Which pixels the centre of each layer depends on (paper, Figures 6 and C.1 to C.4).

    Writes receptive.csv, receptive.npz (the maps), run.json, receptive.png and receptive.pdf.
    """
    name = "receptive_proxy" if proxy else "receptive"
    if job.redraw is not None:
        draw_receptive(job.redraw, job.quiet, name)
        return job.redraw
    check_range("--channels", channels, 0)
    writes = [f"{name}.csv", f"{name}.npz", *pictures(name)]
    run = job.start([Asked(model, weights, arg, weights_key)], writes)

    from repsim.studies.receptive import receptive_fields
    from repsim.tables import save_arrays, save_table

    options = {"layers": layers, "branch": branch, "proxy": proxy, "channels": channels or None, "seed": job.seed}
    fields = receptive_fields(*run.networks, run.images, **options, batch_size=job.batch_size, **run.how())
    save_table(fields.table, run.out / f"{name}.csv")
    save_arrays(fields.maps, run.out / f"{name}.npz")
    quantity = "gradient of the sum over channels (proxy)" if proxy else "mean over channels of |gradient|"
    protocol = {"quantity": quantity, "branch": branch, "channels": fields.channels}
    run.save(run.images.record(fields.counts), protocol)
    draw_receptive(run.out, job.quiet, name)
    return run.out


def draw_receptive(directory: Path, quiet: bool, name: str) -> None:
    from repsim.plots import receptive_fields
    from repsim.tables import RECEPTIVE, load_arrays, load_table

    table = load_table(directory / f"{name}.csv", RECEPTIVE)
    maps = load_arrays(directory / f"{name}.npz")
    if missing := [layer for layer in table["layer"] if layer not in maps]:
        raise RepsimError(f"{directory / f'{name}.npz'} has no map of layer {missing[0]!r}, which the table has")
    quantity = "|d sum of channels / d pixel| (proxy)" if name == "receptive_proxy" else "|d centre / d pixel|"
    finish(directory, name, receptive_fields(table, maps, quantity=quantity), list(table["model"]), quiet)
