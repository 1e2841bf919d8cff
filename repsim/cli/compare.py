"""`repsim compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from repsim.cli.asked import FEATURES, each_model, known_models, read_features, tokens_option, weights_options
from repsim.cli.base import Model, main
from repsim.cli.job import Job, job_options
from repsim.cli.pictures import draw, pictures
from repsim.cli.words import check_range
from repsim.errors import UsageError

DEFAULT = ("vit_mini", "resnet_mini", "mixer_mini")
ORDERS = 10_000
"""The most permutations of images, for values by chance."""


@main.command(short_help="Compare networks and features by several measures.")
@click.argument("models", type=Model(), metavar="MODEL...", nargs=-1, shell_complete=known_models)
@weights_options(several=True)
@FEATURES
@click.option(
    "--measure",
    "measures",
    metavar="NAME",
    multiple=True,
    help="cka, cka-rbf, rsa-pearson, rsa-spearman, procrustes, cca, svcca, pwcca, linear-r2, mutual-knn, cknna, "
    "jaccard, or `all`. Repeatable.  [default: cka, procrustes, mutual-knn]",
)
@click.option(
    "--layers", default="last", show_default=True, help="`last`, `blocks`, `paper`, `all`, or a regular expression."
)
@tokens_option("pooled")
@click.option(
    "--null",
    type=int,
    default=0,
    show_default=True,
    metavar="N",
    help="Permutations of the images of one side, for values by chance.",
)
@click.option("--untrained", is_flag=True, help="Measure the same architectures without training, too.")
@click.option(
    "--pair",
    "pairs",
    metavar="A,B",
    multiple=True,
    help="Networks whose layers are drawn; with several layers. Repeatable.  [default: the first with each of four]",
)
@job_options("compare", images=2560, batch=256, batch_kind="minibatch")
def compare(
    job: Job,
    models: tuple[str, ...],
    weights: tuple[str, ...],
    weights_key: tuple[str, ...],
    arg: tuple[str, ...],
    transform: tuple[str, ...],
    features_of: tuple[str, ...],
    measures: tuple[str, ...],
    layers: str,
    tokens: str,
    null: int,
    untrained: bool,
    pairs: tuple[str, ...],
) -> Path:
    """Similarity of any number of networks and features by several measures, and a map of them.

    Without models the bundled ViT, ResNet and MLP-Mixer are compared. Writes compare.csv (all pairs of layers),
    networks.csv (all pairs of networks), networks_map.csv, run.json, and pictures: compare.png, networks_map.png,
    and, for several layers, layers_MEASURE.png. docs/measures.md describes the strengths and gaps of each measure.
    """
    drawn = {"pairs": [_pair(pair) for pair in pairs]} if pairs else {}
    if job.redraw is not None:
        draw(job.redraw, "compare", job.quiet, **drawn)
        return job.redraw
    check_range("--null", null, 0, ORDERS)

    from repsim.measures.catalogue import MEASURES
    from repsim.studies.compare import compare, measures_of

    chosen = list(MEASURES) if "all" in measures else list(measures or ("cka", "procrustes", "mutual-knn"))
    names = [measure.name for measure in measures_of(chosen)]
    if not models and not features_of:
        models = DEFAULT
    asked = each_model(models, weights, weights_key, arg, transform) if models else []
    if not models and (weights or weights_key or arg or transform):
        raise UsageError("--weights, --weights-key, --arg and --transform need a model")
    figures = pictures("compare", "networks_map", *(f"layers_{name}" for name in names))
    writes = ["compare.csv", "networks.csv", "networks_map.csv", *figures]
    run = job.start(asked, writes, features=read_features(features_of))
    options: dict[str, Any] = {
        "measures": names,
        "layers": layers,
        "tokens": tokens,
        "null": null,
        "untrained": untrained,
    }
    result = compare(run.networks, run.images, **options, batch_size=job.batch_size, **run.pass_options())
    run.save(result, **drawn)
    return run.out


def _pair(text: str) -> tuple[str, str]:
    a, comma, b = text.partition(",")
    if not (comma and a.strip() and b.strip()):
        raise UsageError(f"a pair of networks is given as --pair A,B, got {text!r}")
    return a.strip(), b.strip()
