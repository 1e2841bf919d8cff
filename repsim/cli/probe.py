"""`repsim probe`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from repsim.cli.asked import FEATURES, LAYERS, each_model, model_options, read_features
from repsim.cli.base import Source, given, main
from repsim.cli.job import Job, default_data, job_options
from repsim.cli.pictures import draw, pictures
from repsim.cli.words import PASSES, check_range
from repsim.errors import UsageError


@main.command(short_help="Measure how well layers tell classes apart.")
@model_options("", " Repeatable.", ("vit_mini", "resnet_mini"), several=True)
@FEATURES
@LAYERS
@click.option(
    "--shots",
    multiple=True,
    default=("10",),
    show_default=True,
    help="Training images per class, or `all`; repeatable.",
)
@click.option("--seeds", type=int, default=3, show_default=True, help="Number of draws of training images.")
@click.option("--tokens/--no-tokens", default=True, show_default=True, help="A probe for each single token too.")
@click.option(
    "--neighbours", type=int, default=1000, show_default=True, help="Test images for neighbours and soft loss; 0: none."
)
@click.option("-k", type=int, default=10, show_default=True, help="Nearest neighbours that vote.")
@click.option("--train-data", type=Source(), metavar="DATA", help="Training images.  [default: looked for in DATA]")
@click.option("--train-split", metavar="SPLIT", help="Split or folder of the training images.  [default: train]")
@click.option("--train-images", type=int, metavar="N", help="Number of training images to choose from.  [default: all]")
@job_options("probe", images=5000, batch=32, batch_kind="forward pass")
def probe(
    job: Job,
    model: tuple[str, ...],
    weights: tuple[str, ...],
    weights_key: tuple[str, ...],
    arg: tuple[str, ...],
    transform: tuple[str, ...],
    features_of: tuple[str, ...],
    layers: str,
    shots: tuple[str, ...],
    seeds: int,
    tokens: bool,
    neighbours: int,
    k: int,
    train_data: str | None,
    train_split: str | None,
    train_images: int | None,
) -> Path:
    """Measure how well layers tell classes apart: linear probes, neighbours (paper, Figures 11, 13, D.4, F).

    --data, --split and --images choose the test images; features must be of these and of the training images. Of a
    folder without training and test images apart, a fifth of each class is drawn for testing, by --seed. Writes
    probe.csv, probe_summary.csv (mean and standard error over seeds), neighbours.csv, run.json, and the pictures of all
    three.
    """
    if job.redraw is not None:
        draw(job.redraw, "probe", job.quiet)
        return job.redraw
    counts = [None if count == "all" else parse_shots(count) for count in shots]
    check_range("--seeds", seeds, 1, PASSES)
    check_range("--neighbours", neighbours, 0)
    if train_images is not None:
        check_range("--train-images", train_images, 4)
    if features_of and not given("model"):
        model = ()
    asked = each_model(model, weights, weights_key, arg, transform) if model else []
    features = read_features(features_of)

    from repsim.images.image_set import ImageSet, has_split, train_and_test

    data = job.data or default_data([network.model for network in asked])
    if any((job.split, train_data, train_split)) or has_split(data):
        (train_data, train_split), (data, split) = train_and_test(data, job.split, train_data, train_split)
        train = ImageSet(train_data, split=train_split, root=job.data_dir, images=train_images, seed=job.seed)
        job, images = replace(job, data=data, split=split), None
    else:
        train, images = job.chosen(data, None).parted(train_images)
    writes = ["probe.csv", "probe_summary.csv", "neighbours.csv", *pictures("probe", "probe_tokens", "neighbours")]
    run = job.start(asked, writes, train=train, features=features, images=images)

    from repsim.studies.probe import linear_probes

    options = {"layers": layers, "shots": counts, "seeds": seeds, "tokens": tokens, "neighbours": neighbours, "k": k}
    run.save(
        linear_probes(run.networks, run.images, train=train, **options, batch_size=job.batch_size, **run.pass_options())
    )
    return run.out


def parse_shots(text: str) -> int:
    """Images per class from an option's text."""
    try:
        shots = int(text)
    except ValueError:
        raise UsageError(f"--shots takes a number or `all`, got {text!r}") from None
    check_range("--shots", shots, 1)
    return shots
