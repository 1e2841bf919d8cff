"""`repsim figures`, `repsim claims` and `repsim report`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from repsim.cli.base import AS_JSON, Asked, Job, Place, Source, default_data, is_first, job_options, main
from repsim.cli.words import check_range, print_json, say
from repsim.errors import UsageError, one_of

NOISE_TO_TRAIN = 48
"""Training images of a dry run."""


@main.command()
@click.argument("numbers", nargs=-1, metavar="[NUMBER]...")
@click.option(
    "--preset", type=click.Choice(["mini", "paper"]), default="mini", show_default=True, help="Which networks."
)
@click.option(
    "--weights", type=Source(), metavar="WEIGHTS", default="pretrained", show_default=True, help="`random`: a dry run."
)
@click.option("--layers", help="See `repsim cka`.  [default: blocks; of `paper`, paper]")
@click.option("--channels", default=16, show_default=True, help="Per layer, of receptive fields; 0: all.")
@click.option(
    "--train-data", type=Source(), metavar="DATA", help="Where the training images of probes are.  [default: in DATA]"
)
@click.option("--train-split", metavar="SPLIT", help="Which split or folder they are.  [default: train]")
@job_options("figures", images=None, batch_size=None, of="minibatch  [default: 250; of `paper`, 1024]")
def figures(
    job: Job,
    numbers: tuple[str, ...],
    preset: str,
    weights: str,
    layers: str | None,
    channels: int,
    train_data: str | None,
    train_split: str | None,
) -> Path:
    """The figures of the paper, such as 1 or C.5; all of them without NUMBER.

    Forward-only figures share one forward pass per network and image. Writes a folder per figure, figure-NUMBER, with
    its tables, the numbers its claims are checked by (numbers.csv), run.json and the picture. `mini` has the bundled
    networks and images; `paper` the public checkpoints nearest to the paper's, ImageNet's validation images and
    the paper's protocol.
    """
    from repsim.paper.figures import FIGURES, PRESETS

    chosen = {number.upper(): number for number in numbers}
    for number in chosen:
        if number not in FIGURES:
            raise one_of("figure", chosen[number], FIGURES)
    wanted = [FIGURES[number] for number in chosen] or list(FIGURES.values())
    if job.redraw is not None:
        redraw_figures(job.redraw, wanted if chosen else [], job.quiet)
        return job.redraw
    check_range("--channels", channels, 0)
    of_preset = PRESETS[preset]
    if job.images is None:
        job = replace(job, images=of_preset["images"])
    if job.batch_size is None:
        job = replace(job, batch_size=of_preset["batch_size"])

    from repsim.images.image_set import ImageSet, train_and_test
    from repsim.networks.minis import bundled
    from repsim.paper.files import save_figure
    from repsim.paper.run import Plan

    plan = Plan.of(wanted, preset, bundled())
    data, split, train, without = job.data or default_data(plan.names), job.split, None, ""
    try:
        (train_data, train_split), (data, split) = train_and_test(data, split, train_data, train_split)
        if plan.probes:
            few = NOISE_TO_TRAIN if data == "noise" else None
            train = ImageSet(train_data, split=train_split, root=job.data_dir, images=few, seed=job.seed)
    except UsageError as error:  # only figures of probes need training images
        without = str(error)
    name = f"figures-{preset}" + ("-random" if weights == "random" else "")
    job = replace(job, data=data, split=split)
    writes = [f"figure-{exhibit.number}" for exhibit in plan.exhibits]
    asked = [Asked(name, weights) for name in plan.names]
    run = job.start(asked, writes, train=train, called=name, beside=["numbers"])
    layers = layers or of_preset["layers"]

    from repsim.studies.results import begin

    begun = begin(run.networks, run.images, layers=layers, minibatch=job.batch_size)
    if train is not None and train.left_out:
        begun.notices.say(train.left_out_in_words)
    if without and plan.probes:
        begun.notices.say(f"no training images: {without}")
    begun.notices.say(*(f"figure {number} is left out: {reason}" for number, reason in plan.left_out.items()))
    options = {"layers": layers, "batch_size": job.batch_size, "channels": channels}
    images = run.images
    if data == "noise" and plan.probes:
        begun.notices.say("probes of noise: two classes are made up, to try them out")
        train, images = (of.labelled([i % 2 for i in range(len(of))]) for of in (train, images))
    made = plan.make(dict(zip(plan.names, run.networks)), images, train, **options, **run.how())
    begun.notices.say(*made.left_out)
    record = run.record(begun.record(made.counts, {"preset": preset, **options, **made.protocol}))
    shared = {key: record[key] for key in ("command", "date", "images", "random")}
    for exhibit, of in made.figures:
        save_figure(exhibit, of, run.out, preset, shared)
    if is_first():
        redraw_figures(run.out, [exhibit for exhibit, _ in made.figures], job.quiet)
    return run.out


def redraw_figures(out: Path, wanted: list[Any], quiet: bool) -> None:
    """Draw the pictures of figures from their tables; of all that are there, unless some are wanted."""
    from repsim import plots
    from repsim.paper.figures import FIGURES
    from repsim.paper.files import load_figure, picture_file

    drawn = []
    for exhibit in wanted or FIGURES.values():
        made = load_figure(exhibit, out)
        if made is None and wanted:
            raise UsageError(f"there is no figure {exhibit.number} in {out}; make it first")
        if made is not None:
            plots.save(exhibit.draw(made, exhibit.caption(made.record)), picture_file(exhibit, made, out))
            drawn.append(exhibit.number)
    if not drawn:
        raise UsageError(f"there are no figures in {out}; give the directory of a finished run")
    say(f"figures {', '.join(drawn)} are in {out}", quiet)


@main.command()
@click.argument("directory", type=Place())
@click.option("--quiet", is_flag=True, help="Write the files only.")
@AS_JSON
def claims(directory: Path, quiet: bool, as_json: bool) -> None:
    """What the paper claims, and whether the figures in DIRECTORY agree.

    A claim is the side of a boundary on which the paper finds a number. It agrees or disagrees if the number's 95 %
    interval lies on one side of it, and is undecided otherwise. Also writes claims.csv and claims.md.
    """
    from repsim.paper.claims import CLAIMS_COLUMNS, HEAD, check, markdown
    from repsim.tables import check_own, prepare, save_table, save_text

    table = check(directory)
    check_own(directory / "claims.csv", ",".join(CLAIMS_COLUMNS[:7]))
    check_own(directory / "claims.md", HEAD)
    save_table(table, prepare(directory) / "claims.csv")
    save_text(markdown(table), directory / "claims.md")
    if as_json:
        print_json(json.loads(table.to_json(orient="records")))
    elif not quiet:
        click.echo(markdown(table), nl=False)


@main.command()
@click.argument("directory", type=Place())
@click.option("--out", type=Place(), metavar="FILE", help="The page.  [default: DIRECTORY/report.html]")
@click.option("--quiet", is_flag=True, help="Errors only.")
@AS_JSON
def report(directory: Path, out: Path | None, quiet: bool, as_json: bool) -> None:
    """One page of the figures in DIRECTORY, with their claims, that opens offline; needs plotly.

    Heatmaps can be hovered over and zoomed into.
    """
    from repsim.paper.report import write_report

    page = write_report(directory, out)
    if as_json:
        print_json({"directory": str(directory), "files": [str(page)]})
    say(f"wrote {page}", quiet)
