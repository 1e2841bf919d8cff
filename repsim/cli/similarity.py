"""`repsim cka`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from repsim.cli.asked import FEATURES, LAYERS, Asked, each_model, model_options, read_features, tokens_option
from repsim.cli.base import main
from repsim.cli.job import Job, job_options
from repsim.cli.pictures import draw, pictures
from repsim.cli.words import PASSES, check_range
from repsim.errors import UsageError


@main.command(short_help="Compare all layers of one or two networks by minibatch CKA.")
@model_options("a", "  [default: vit_mini]")
@model_options(
    "b",
    " Without it: within model A; repeatable with --matched.  [default: resnet_mini if A is not given either]",
    several=True,
)
@click.option(
    "--matched", is_flag=True, help="Compare only the same layers, of checkpoints of one architecture: A with each B."
)
@FEATURES
@LAYERS
@tokens_option("all")
@click.option("--repeats", type=int, default=1, show_default=True, help="Passes over newly drawn images.")
@job_options("cka", images=2560, batch=256, batch_kind="minibatch of CKA")
def cka(
    job: Job,
    model_a: str | None,
    weights_a: str,
    weights_key_a: str | None,
    arg_a: tuple[str, ...],
    transform_a: str | None,
    model_b: tuple[str, ...],
    weights_b: tuple[str, ...],
    weights_key_b: tuple[str, ...],
    arg_b: tuple[str, ...],
    transform_b: tuple[str, ...],
    features_of: tuple[str, ...],
    matched: bool,
    layers: str,
    tokens: str,
    repeats: int,
) -> Path:
    """Measure the similarity of all layers of one or two networks by minibatch CKA (paper, Figures 1 and 2).

    Features take free places: that of B, or, without --model-a, those of A and B; then no images are needed.
    Writes cka.csv, run.json, cka.png and cka.pdf; with --matched (Figures 12, G.1) matched.csv and its pictures. The
    paper's protocol is --layers paper --images 10240 --batch-size 1024 --repeats 20.
    """
    name = "matched" if matched else "cka"
    if job.redraw is not None:
        draw(job.redraw, name, job.quiet)
        return job.redraw
    first = model_a is None and bool(features_of)
    features_for_b = len(dict.fromkeys(text.partition("=")[0] for text in features_of)) - first
    if first and (weights_a != "pretrained" or weights_key_a or arg_a or transform_a):
        raise UsageError("--weights-a, --weights-key-a, --arg-a and --transform-a need --model-a beside --features")
    if matched and not model_b and not features_for_b:  # checkpoints of A
        model_b = () if first else (model_a or "vit_mini",) * max(len(weights_b), len(weights_key_b))
        if not model_b:
            raise UsageError("--matched compares A with others: give them with --model-b, --weights-b or --features")
    elif not matched and len(model_b) + features_for_b > 1:
        subject = (
            f"--model-b was given {len(model_b)} times"
            if not features_for_b
            else f"{len(model_b) + features_for_b} stand for B"
        )
        raise UsageError(f"{subject}; more than one needs --matched")
    elif first and model_b:
        raise UsageError("without --model-a features stand for A, so name the network with --model-a, not --model-b")
    elif (model_a is not None or first) and not model_b and (weights_b or weights_key_b or arg_b or transform_b):
        raise UsageError("--weights-b, --weights-key-b, --arg-b and --transform-b need --model-b")
    elif model_a is None and not model_b and not first:
        model_b = ("resnet_mini",)
    check_range("--repeats", repeats, 1, PASSES)
    a = [] if first else [Asked(model_a or "vit_mini", weights_a, arg_a, weights_key_a, transform_a)]
    asked = [*a, *each_model(model_b, weights_b, weights_key_b, arg_b, transform_b, "-b")]
    run = job.start(asked, [f"{name}.csv", *pictures(name)], features=read_features(features_of))

    from repsim.studies.similarity import layer_cka, matched_cka

    compare = matched_cka if matched else layer_cka
    options: dict[str, Any] = {"layers": layers, "tokens": tokens, "batch_size": job.batch_size, "repeats": repeats}
    run.save(compare(run.networks, run.images, **options, **run.pass_options(repeats)))
    return run.out
