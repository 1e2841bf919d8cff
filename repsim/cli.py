"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from repsim.errors import RepsimError, UsageError, one_of

PACKAGES = ("torch", "timm", "torchvision", "numpy", "pandas", "matplotlib", "seaborn")


Asked = tuple[str, str, tuple[str, ...]]
"""A network as it was asked for: model, weights, model arguments."""


class Commands(click.Group):
    """Turns repsim's errors into one line and an exit code: 2 for a wrong call, 1 for the rest."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RepsimError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(2 if isinstance(error, UsageError) else 1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="repsim-vision", prog_name="repsim")
def main() -> None:
    """Compare what vision networks compute, layer by layer (Raghu et al., NeurIPS 2021)."""


AS_JSON = click.option("--json", "as_json", is_flag=True, help="Say what was made as JSON, on standard output.")


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def noticed(out: Path) -> dict[str, Any]:
    """What the record of a run has its user know."""
    from repsim.tables import RECORD

    try:
        return {"notices": json.loads((out / RECORD).read_text()).get("notices", [])}
    except (OSError, ValueError):
        return {"notices": []}


def options(*decorators: Callable) -> Callable:
    """Several click options as one decorator, shared by commands."""

    def decorate(command: Callable) -> Callable:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


@dataclass(frozen=True)
class Job:
    """The options that every study shares, and what is done with them before and after it."""

    command: str
    data: str | None
    data_dir: str | None
    split: str | None
    images: int
    seed: int
    workers: int | None
    skip_broken: bool
    batch_size: int
    device: str | None
    out: Path | None
    redraw: Path | None
    quiet: bool
    as_json: bool

    def start(self, asked: list[Asked]) -> Run:
        """Look at everything that is cheap to look at first; then load networks and make the directory."""
        check_range("--images", self.images, 4)
        check_range("--batch-size", self.batch_size, 4)
        if self.workers is not None:
            check_range("--workers", self.workers, 0)

        from repsim.images import ImageSet
        from repsim.models import check_name
        from repsim.tables import prepare

        started = time.perf_counter()
        for model, _, _ in asked:
            check_name(model)
        data = self.data or default_data([model for model, _, _ in asked])
        chosen = ImageSet(data, split=self.split, root=self.data_dir, images=self.images, seed=self.seed)
        networks = load(asked, self.device, self.seed)
        labels = [label(model, weights) for model, weights, _ in asked]
        out = prepare(self.out or Path("runs") / "-".join([self.command, *labels]))
        run = Run(self, networks, chosen, out, started)
        if len(chosen) < self.images:
            run.notice(f"{self.images} images were asked for, there are {len(chosen)}; all are used")
        return run

    def how(self, repeats: int = 1) -> dict[str, Any]:
        """How images are passed over: what every study takes by these names."""
        progress = progress_bar(self.quiet, repeats)
        return {"progress": progress, "workers": self.workers, "skip_broken": self.skip_broken}


@dataclass(frozen=True)
class Run:
    """A job under way."""

    job: Job
    networks: list[Any]
    images: Any
    out: Path
    started: float
    notices: list[str] = field(default_factory=list)

    def notice(self, text: str) -> None:
        """Something about the run that its user must know: said now, and kept in the record."""
        self.notices.append(text)
        say(text, self.job.quiet)

    def notice_a_single_batch(self) -> None:
        """Of studies whose standard errors are over minibatches."""
        size, count = self.job.batch_size, len(self.images)
        if count < size:
            self.notice(f"fewer images than --batch-size {size}: one batch of {count}, so no standard errors")
        elif count < 2 * size:
            self.notice(f"{count} images make one batch of {size}, so no standard errors")

    def save(self, images: dict[str, Any], protocol: dict[str, Any], **more: Any) -> None:
        """Write `run.json`: everything needed to know what was computed, and to do it again."""
        from repsim.tables import RECORD, save_record

        losses = [("dropped_in_short_batch", "left out, a short last batch"), ("broken_count", "could not be read")]
        for key, what in losses:
            if images[key]:
                self.notice(f"{images['used']} images used; {images[key]} {what}")
        record = {
            "command": command_line(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "networks": [network.record() for network in self.networks],
            "images": images,
            "protocol": {**protocol, "seed": self.job.seed},
            "random": any(network.weights == "random" for network in self.networks),
            **more,
            "notices": self.notices,
            "versions": versions(),
            "device": device_name(self.networks[0].device),
            "seconds": round(time.perf_counter() - self.started, 2),
        }
        save_record(record, self.out / RECORD)


def job_options(command: str, images: int, batch_size: int, of: str) -> Callable:
    """The options of a `Job`, which the command gets as its first argument."""
    decorate = options(
        click.option(
            "--data",
            metavar="DATA",
            help="Folder of images, `sample`, `fashion-mnist`, `noise`, or a timm data set such as torch/cifar10.  "
            "[default: the bundled sample for bundled networks, else data/imagenet/val or $REPSIM_IMAGENET]",
        ),
        click.option("--data-dir", metavar="DIR", help="Where timm's data sets or Fashion-MNIST lie."),
        click.option("--split", help="Which split, or which folder inside DATA."),
        click.option("--images", type=int, default=images, show_default=True, help="How many, drawn at random."),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**63 - 1),
            default=0,
            show_default=True,
            help="Of the draw, and of untrained weights.",
        ),
        click.option("--workers", type=int, help="Processes that decode images.  [default: one per core, up to 8]"),
        click.option("--skip-broken", is_flag=True, help="Go on without images that cannot be read, and count them."),
        click.option("--batch-size", type=int, default=batch_size, show_default=True, help=f"Images per {of}."),
        click.option("--device", help="cpu, cuda, cuda:1, mps ...  [default: cuda where there is one]"),
        click.option(
            "--out", type=click.Path(path_type=Path), help=f"Directory of the results.  [default: runs/{command}-...]"
        ),
        click.option(
            "--redraw",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="Only draw the pictures of a finished run anew.",
        ),
        click.option("--quiet", is_flag=True, help="No progress; errors only."),
        AS_JSON,
    )
    shared = [f.name for f in fields(Job) if f.name != "command"]

    def with_job(function: Callable) -> Callable:
        @functools.wraps(function)
        def called(**given: Any) -> Any:
            job = Job(command, **{name: given.pop(name) for name in shared})
            out = function(job, **given)
            if job.as_json:
                files = sorted(str(path) for path in out.rglob("*") if path.is_file())
                print_json({"directory": str(out), "files": files, **noticed(out)})

        return decorate(called)

    return with_job


def model_options(
    side: str = "", model: str = "", default: str | tuple[str, ...] | None = None, *, several: bool = False
) -> Callable:
    """`--model`, `--weights` and `--arg`, or those of one of two sides: `--model-a` ...

    With `several`, any number of networks may be given, and `each_model` reads them.
    """
    end = f"-{side}" if side else ""
    weights = "`pretrained`, `random`, or a file"
    if several:
        weights += f": once for all, or once per --model{end}.  [default: pretrained]"
    return options(
        click.option(
            f"--model{end}",
            metavar="MODEL",
            multiple=several,
            default=default,
            show_default=default is not None,
            help=f"{MODEL}{model}",
        ),
        click.option(
            f"--weights{end}",
            metavar="WEIGHTS",
            multiple=several,
            default=None if several else "pretrained",
            show_default=not several,
            help=weights if several else f"{weights}.",
        ),
        click.option(
            f"--arg{end}",
            metavar="KEY=VALUE",
            multiple=True,
            help=f"{'Argument of each model' if several else 'Model argument'}, such as img_size=384; repeatable.",
        ),
    )


def each_model(models: tuple[str, ...], weights: tuple[str, ...], args: tuple[str, ...], side: str = "") -> list[Asked]:
    weights = weights or ("pretrained",)
    if len(weights) == 1:
        weights *= len(models)
    if len(weights) != len(models):
        raise UsageError(
            f"give --weights{side} once, or once per --model{side}: "
            f"there are {len(models)} models and {len(weights)} weights"
        )
    return [(model, each, args) for model, each in zip(models, weights)]


LAYERS = click.option(
    "--layers", default="blocks", show_default=True, help="`blocks`, `paper`, `all`, or a regular expression."
)
MODEL = "Alias, timm name, hf-hub:..., local-dir:... or package.module:factory."


@main.command()
@model_options("a", "  [default: vit_mini]")
@model_options(
    "b",
    " Without it: within model A; repeatable with --matched.  [default: resnet_mini if A is not given either]",
    several=True,
)
@click.option(
    "--matched", is_flag=True, help="Only the same layers, of checkpoints of one architecture: A with each B."
)
@LAYERS
@click.option("--tokens", type=click.Choice(["all", "cls", "spatial", "pooled"]), default="all", show_default=True)
@click.option("--repeats", type=int, default=1, show_default=True, help="Passes over newly drawn images.")
@job_options("cka", images=2560, batch_size=256, of="minibatch of CKA")
def cka(
    job: Job,
    model_a: str | None,
    weights_a: str,
    arg_a: tuple[str, ...],
    model_b: tuple[str, ...],
    weights_b: tuple[str, ...],
    arg_b: tuple[str, ...],
    matched: bool,
    layers: str,
    tokens: str,
    repeats: int,
) -> Path:
    """Similarity of all layers of one or two networks by minibatch CKA (paper, Figures 1 and 2).

    Writes cka.csv, run.json, cka.png and cka.pdf; with --matched (Figures 12, G.1) matched.csv and its pictures. The
    paper's protocol is --layers paper --images 10240 --batch-size 1024 --repeats 20.
    """
    name = "matched" if matched else "cka"
    if job.redraw is not None:
        draw(job.redraw, name, job.quiet)
        return job.redraw
    if matched and not model_b:  # checkpoints of A
        model_b = (model_a or "vit_mini",) * len(weights_b)
        if not model_b:
            raise UsageError("--matched compares A with others: give them with --model-b or --weights-b")
    elif not matched and len(model_b) > 1:
        raise UsageError(f"--model-b was given {len(model_b)} times; more than one needs --matched")
    elif model_a is not None and not model_b and (weights_b or arg_b):
        raise UsageError("--weights-b and --arg-b need --model-b")
    elif model_a is None and not model_b:
        model_b = ("resnet_mini",)
    check_range("--repeats", repeats, 1)
    asked = [(model_a or "vit_mini", weights_a, arg_a)] + each_model(model_b, weights_b, arg_b, "-b")
    run = job.start(asked)

    from repsim.studies.similarity import LayerSimilarity, MatchedSimilarity, compare
    from repsim.tables import save_table

    run.notice_a_single_batch()
    protocol = {"layers": layers, "tokens": tokens, "batch_size": job.batch_size, "repeats": repeats}
    study = MatchedSimilarity if matched else LayerSimilarity
    comparison = compare(run.networks, run.images, study=study, **protocol, **job.how(repeats))
    for reason in comparison.undefined:
        say(reason, job.quiet)
    if repeats > 1 and len(run.images) == comparison.images["available"]:
        run.notice("every repeat saw the same images, newly batched: sd_repeats says nothing of other images")
    save_table(comparison.table, run.out / f"{name}.csv")
    run.save(comparison.images, comparison.protocol, undefined=comparison.undefined)
    draw(run.out, name, job.quiet)
    return run.out


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
    check_range("--maps", maps, 0)
    run = job.start([(model, weights, arg)])

    from repsim.studies.attention import AttentionDistance, attention_maps
    from repsim.sweep import sweep
    from repsim.tables import save_arrays, save_table

    (network,) = run.networks
    if maps:
        picked = attention_maps(network, run.images, maps, skip_broken=job.skip_broken)
        save_arrays(picked._asdict(), run.out / "attention_maps.npz")
    study = AttentionDistance(network, renormalize=renormalize)
    counts = sweep(run.images, [study], batch_size=job.batch_size, **job.how())
    save_table(study.table(), run.out / "attention.csv")
    protocol = {"renormalize": renormalize, "batch_size": counts.batch_size, "maps": maps}
    run.save(run.images.record(counts), protocol)
    draw_attention(run.out, drawn, job.quiet)
    return run.out


def draw_attention(directory: Path, blocks: list[int] | str | None, quiet: bool) -> None:
    import numpy as np

    from repsim.plots import attention_distance, attention_maps
    from repsim.tables import ATTENTION, load_table

    table = load_table(directory / "attention.csv", ATTENTION)
    models = list(table["model"])
    chosen = sorted(table["block"].unique()) if blocks == "all" else blocks
    maps = directory / "attention_maps.npz"
    if maps.exists():
        with np.load(maps) as arrays:
            figure = attention_maps(
                **arrays, title=f"{models[0]}: attention rollout, and heads of the last block from CLS"
            )
        finish(directory, "attention_maps", figure, models, True)
    finish(directory, "attention", attention_distance(table, blocks=chosen).figure, models, quiet)


def parse_blocks(blocks: str | None) -> list[int] | str | None:
    if blocks is None or blocks == "all":
        return blocks
    try:
        return [int(block) for block in blocks.split(",")]
    except ValueError:
        raise UsageError(f"--blocks takes numbers such as 0,1,10,11, or `all`, got {blocks!r}") from None


@main.command()
@model_options("a", " A transformer.", "vit_mini")
@model_options("b", default="resnet_mini")
@click.option("--layers", help="Of model B: a preset or a regular expression.  [default: its first five blocks]")
@click.option("--window", type=int, help="Heads per window.  [default: a quarter of them]")
@job_options("heads", images=2560, batch_size=256, of="minibatch of CKA")
def heads(
    job: Job,
    model_a: str,
    weights_a: str,
    arg_a: tuple[str, ...],
    model_b: str,
    weights_b: str,
    arg_b: tuple[str, ...],
    layers: str | None,
    window: int | None,
) -> Path:
    """Local and global heads of A's first block against lower layers of B (paper, Figure 5).

    Writes heads.csv, heads_correlation.csv (Spearman's, with an interval), run.json, heads.png and heads.pdf.
    """
    if job.redraw is not None:
        draw(job.redraw, "heads", job.quiet)
        return job.redraw
    run = job.start([(model_a, weights_a, arg_a), (model_b, weights_b, arg_b)])
    run.notice_a_single_batch()

    from repsim.studies.heads import head_similarity
    from repsim.tables import save_table

    options = {"layers": layers, "window": window, "batch_size": job.batch_size, "seed": job.seed}
    found = head_similarity(*run.networks, run.images, **options, **job.how())
    save_table(found.table, run.out / "heads.csv")
    save_table(found.correlation, run.out / "heads_correlation.csv")
    protocol = {"window": window or "a quarter of the heads", "batch_size": found.counts.batch_size}
    run.save(run.images.record(found.counts), protocol)
    draw(run.out, "heads", job.quiet)
    return run.out


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
    run = job.start([(model, weights, arg)])

    from repsim.studies.receptive import receptive_fields
    from repsim.tables import save_arrays, save_table

    options = {"layers": layers, "branch": branch, "proxy": proxy, "channels": channels or None, "seed": job.seed}
    fields = receptive_fields(*run.networks, run.images, **options, batch_size=job.batch_size, **job.how())
    save_table(fields.table, run.out / f"{name}.csv")
    save_arrays(fields.maps, run.out / f"{name}.npz")
    quantity = "gradient of the sum over channels (proxy)" if proxy else "mean over channels of |gradient|"
    protocol = {"quantity": quantity, "branch": branch, "channels": fields.channels}
    run.save(run.images.record(fields.counts), protocol)
    draw_receptive(run.out, job.quiet, name)
    return run.out


def draw_receptive(directory: Path, quiet: bool, name: str) -> None:
    import numpy as np

    from repsim.plots import receptive_fields
    from repsim.tables import RECEPTIVE, load_table

    table = load_table(directory / f"{name}.csv", RECEPTIVE)
    try:
        with np.load(directory / f"{name}.npz") as arrays:
            maps = dict(arrays)
    except (OSError, ValueError) as error:
        raise RepsimError(f"cannot read the maps beside the table: {error}") from None
    quantity = "|d sum of channels / d pixel| (proxy)" if name == "receptive_proxy" else "|d centre / d pixel|"
    finish(directory, name, receptive_fields(table, maps, quantity=quantity), list(table["model"]), quiet)


@main.command()
@model_options("", " Repeatable.", ("vit_mini", "resnet_mini"), several=True)
@click.option(
    "--outlier", type=float, default=5.0, show_default=True, help="Times the median norm that make a token an outlier."
)
@job_options("residual", images=1000, batch_size=50, of="forward pass")
def residual(job: Job, model: tuple[str, ...], weights: tuple[str, ...], arg: tuple[str, ...], outlier: float) -> Path:
    """What skip connections carry against what branches add (paper, Figures 7, E.1, E.2).

    Writes residual.csv, residual_outliers.csv (tokens of outlying norm), run.json, residual.png and residual.pdf.
    """
    if job.redraw is not None:
        draw(job.redraw, "residual", job.quiet)
        return job.redraw
    if not outlier > 1:
        raise UsageError(f"--outlier must be more than 1, got {outlier}")
    run = job.start(each_model(model, weights, arg))

    from repsim.studies.residual import residual_norms
    from repsim.tables import save_table

    found = residual_norms(run.networks, run.images, outlier=outlier, batch_size=job.batch_size, **job.how())
    for notice in found.notices:
        run.notice(notice)
    save_table(found.table, run.out / "residual.csv")
    save_table(found.outliers, run.out / "residual_outliers.csv")
    protocol = {"outlier": outlier, "outlier_tokens": len(found.outliers), "batch_size": found.counts.batch_size}
    run.save(run.images.record(found.counts), protocol)
    draw(run.out, "residual", job.quiet)
    return run.out


@main.command()
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
@job_options("lesion", images=512, batch_size=64, of="minibatch of CKA")
def lesion(
    job: Job,
    model: str,
    weights: str,
    arg: tuple[str, ...],
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
    run = job.start([(model, weights, arg)])
    run.notice_a_single_batch()

    from repsim.studies.lesion import QUANTITY, REMOVE, lesions
    from repsim.tables import save_table

    options = {"remove": remove or REMOVE, "blocks": None if chosen == "all" else chosen, "layers": layers}
    found = lesions(*run.networks, run.images, **options, batch_size=job.batch_size, **job.how())
    for notice in found.notices:
        run.notice(notice)
    save_table(found.table, run.out / "lesion.csv")
    protocol = {"quantity": QUANTITY, **options, "batch_size": found.counts.batch_size}
    run.save(run.images.record(found.counts), protocol)
    draw(run.out, "lesion", job.quiet)
    return run.out


@main.command()
@model_options("", " Repeatable.", ("vit_mini", "vit_mini_gap", "resnet_mini"), several=True)
@LAYERS
@click.option("--show", metavar="ROW,COLUMN", multiple=True, help="Token to draw; repeatable.  [default: the paper's]")
@click.option("--show-layer", metavar="LAYER", help="Layer to draw.  [default: the last of each network]")
@job_options("localize", images=2560, batch_size=256, of="minibatch of CKA")
def localize(
    job: Job,
    model: tuple[str, ...],
    weights: tuple[str, ...],
    arg: tuple[str, ...],
    layers: str,
    show: tuple[str, ...],
    show_layer: str | None,
) -> Path:
    """Which input patches single tokens resemble (paper, Figures 9, 10, D.1 to D.3).

    Writes localization.csv (every token and patch of every layer), localization_summary.csv, run.json, and the
    pictures of both.
    """
    tokens = parse_tokens(show)
    if job.redraw is not None:
        draw_localization(job.redraw, tokens, show_layer, job.quiet)
        return job.redraw
    run = job.start(each_model(model, weights, arg))
    run.notice_a_single_batch()

    from repsim.studies.localization import located, patch_grid, token_localization
    from repsim.tables import save_table

    if tokens or show_layer is not None:  # what cannot be drawn is said before anything runs
        placed = [(network, located(network, layers)[0]) for network in run.networks]
        names = dict.fromkeys(layer.name for _, of in placed for layer in of)
        if show_layer is not None and show_layer not in names:
            raise one_of("layer of --show-layer", show_layer, names)
        rows, columns = (min(sides) for sides in zip(*(patch_grid(network, of) for network, of in placed)))
        for row, column in tokens or ():
            if not (0 <= row < rows and 0 <= column < columns):
                raise UsageError(f"--show {row},{column}: the grid of tokens is {rows} x {columns}")
    found = token_localization(run.networks, run.images, layers=layers, batch_size=job.batch_size, **job.how())
    for reason in found.undefined:
        say(reason, job.quiet)
    save_table(found.table, run.out / "localization.csv")
    save_table(found.summary, run.out / "localization_summary.csv")
    run.save(run.images.record(found.counts), found.protocol, undefined=found.undefined)
    draw_localization(run.out, tokens, show_layer, job.quiet)
    return run.out


def draw_localization(directory: Path, tokens: list[tuple[int, int]] | None, layer: str | None, quiet: bool) -> None:
    from repsim.plots import localization, localization_summary
    from repsim.tables import LOCALIZATION, LOCALIZATION_SUMMARY, load_table

    summary = load_table(directory / "localization_summary.csv", LOCALIZATION_SUMMARY)
    models = list(summary["model"].unique())
    finish(directory, "localization_summary", localization_summary(summary), models, True)
    table = load_table(directory / "localization.csv", LOCALIZATION)
    finish(directory, "localization", localization(table, tokens=tokens, layer=layer), models, quiet)


def parse_tokens(show: tuple[str, ...]) -> list[tuple[int, int]] | None:
    try:
        pairs = [tuple(int(number) for number in token.split(",")) for token in show]
    except ValueError:
        pairs = [()]
    if any(len(pair) != 2 for pair in pairs):
        raise UsageError(f"--show takes the row and column of a token, such as 2,1, got {' '.join(show)!r}")
    return pairs or None


@main.command()
@model_options("", " Repeatable.", ("vit_mini", "resnet_mini"), several=True)
@LAYERS
@click.option(
    "--shots",
    multiple=True,
    default=("10",),
    show_default=True,
    help="Training images per class, or `all`; repeatable.",
)
@click.option("--seeds", type=int, default=3, show_default=True, help="Draws of so many.")
@click.option("--tokens/--no-tokens", default=True, show_default=True, help="A probe for each single token too.")
@click.option(
    "--neighbours", type=int, default=1000, show_default=True, help="Test images for neighbours and soft loss; 0: none."
)
@click.option("-k", type=int, default=10, show_default=True, help="Nearest neighbours that vote.")
@click.option("--train-data", metavar="DATA", help="Where training images are.  [default: in DATA]")
@click.option("--train-split", metavar="SPLIT", help="Which split or folder they are.  [default: train]")
@click.option("--train-images", type=int, metavar="N", help="Draw so many of them first.  [default: all]")
@job_options("probe", images=5000, batch_size=128, of="forward pass")
def probe(
    job: Job,
    model: tuple[str, ...],
    weights: tuple[str, ...],
    arg: tuple[str, ...],
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
    """What layers know of classes: linear probes, neighbours (paper, Figures 11, 13, D.4, F).

    --data, --split and --images choose the test images. Writes probe.csv, probe_summary.csv (mean and standard error
    over seeds), neighbours.csv, run.json, and the pictures of all three.
    """
    if job.redraw is not None:
        draw_probe(job.redraw, job.quiet)
        return job.redraw
    counts = [None if each == "all" else parse_shots(each) for each in shots]
    if train_images is not None:
        check_range("--train-images", train_images, 4)
    asked = each_model(model, weights, arg)

    from repsim.images import ImageSet, train_and_test

    data = job.data or default_data([name for name, _, _ in asked])
    (train_data, train_split), (data, split) = train_and_test(data, job.split, train_data, train_split)
    train = ImageSet(train_data, split=train_split, root=job.data_dir, images=train_images, seed=job.seed)
    run = replace(job, data=data, split=split).start(asked)

    from repsim.studies.probe import linear_probes
    from repsim.tables import save_table

    options = {"layers": layers, "shots": counts, "seeds": seeds, "tokens": tokens, "neighbours": neighbours, "k": k}
    found = linear_probes(run.networks, train, run.images, **options, batch_size=job.batch_size, **job.how())
    save_table(found.table, run.out / "probe.csv")
    save_table(found.summary, run.out / "probe_summary.csv")
    save_table(found.neighbours, run.out / "neighbours.csv")
    run.save(run.images.record(found.counts), found.protocol)
    draw_probe(run.out, job.quiet)
    return run.out


def parse_shots(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--shots takes a number or `all`, got {text!r}") from None


def draw_probe(directory: Path, quiet: bool) -> None:
    from repsim import plots
    from repsim.tables import NEIGHBOURS, PROBE, PROBE_SUMMARY, load_table

    summary = load_table(directory / "probe_summary.csv", PROBE_SUMMARY)
    table = load_table(directory / "probe.csv", PROBE)
    near = load_table(directory / "neighbours.csv", NEIGHBOURS)
    models = list(summary["model"].unique())
    if len(near):
        finish(directory, "neighbours", plots.neighbours(near), models, True)
    if (table["aggregation"] == "token").any():
        finish(directory, "probe_tokens", plots.probe_tokens(table), models, True)
    finish(directory, "probe", plots.probes(summary), models, quiet)


@main.command()
@click.argument("numbers", nargs=-1, metavar="[NUMBER]...")
@click.option(
    "--preset", type=click.Choice(["mini", "paper"]), default="mini", show_default=True, help="Which networks."
)
@click.option("--weights", metavar="WEIGHTS", default="pretrained", show_default=True, help="`random`: a dry run.")
@click.option("--layers", help="See `repsim cka`.  [default: blocks; of `paper`, paper]")
@click.option("--train-data", metavar="DATA", help="Where the training images of probes are.  [default: in DATA]")
@click.option("--train-split", metavar="SPLIT", help="Which split or folder they are.  [default: train]")
@job_options("figures", images=None, batch_size=None, of="minibatch  [default: 250; of `paper`, 1024]")
def figures(
    job: Job,
    numbers: tuple[str, ...],
    preset: str,
    weights: str,
    layers: str | None,
    train_data: str | None,
    train_split: str | None,
) -> Path:
    """The figures of the paper, such as 1 or C.5; all of them without NUMBER.

    Forward-only figures share one forward pass per network and image. Writes a folder per figure, figure-NUMBER, with
    its tables, the numbers its claims are checked by (numbers.csv), run.json and the picture. `mini` has the bundled
    networks and images; `paper` the public checkpoints nearest to the paper's, ImageNet's validation images and
    the paper's protocol.
    """
    from repsim.paper.figures import FIGURES

    chosen = {number.upper(): number for number in numbers}
    for number in chosen:
        if number not in FIGURES:
            raise one_of("figure", chosen[number], FIGURES)
    wanted = [FIGURES[number] for number in chosen] or list(FIGURES.values())
    if job.redraw is not None:
        redraw_figures(job.redraw, wanted if chosen else [], preset, job.quiet)
        return job.redraw
    job = replace(job, images=job.images or (5000 if preset == "mini" else 10240))
    job = replace(job, batch_size=job.batch_size or (250 if preset == "mini" else 1024))

    from repsim.images import ImageSet, train_and_test
    from repsim.minis import bundled
    from repsim.paper.files import save_figure
    from repsim.paper.run import Plan

    plan = Plan.of(wanted, preset, bundled())
    data = job.data or default_data(plan.names)
    train = None
    if plan.probes and data != "noise":
        (train_data, train_split), (data, split) = train_and_test(data, job.split, train_data, train_split)
        train = ImageSet(train_data, split=train_split, root=job.data_dir, seed=job.seed)
        job = replace(job, split=split)
    run = replace(job, data=data, out=job.out or Path("runs") / f"figures-{preset}").start(
        [(name, weights, ()) for name in plan.names]
    )
    for number, reason in plan.left_out.items():
        run.notice(f"figure {number} is left out: {reason}")
    layers = layers or ("blocks" if preset == "mini" else "paper")
    made = plan.make(
        dict(zip(plan.names, run.networks)), run.images, train, layers=layers, batch_size=job.batch_size, **job.how()
    )
    for reason in made.left_out:
        run.notice(reason)
    for exhibit, of in made.figures:
        save_figure(exhibit, of, run.out, preset)
    run.save(run.images.record(made.counts), {"preset": preset, "layers": layers, **made.protocol})
    redraw_figures(run.out, [exhibit for exhibit, _ in made.figures], preset, job.quiet)
    return run.out


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--quiet", is_flag=True, help="Write the files only.")
@AS_JSON
def claims(directory: Path, quiet: bool, as_json: bool) -> None:
    """What the paper claims, and whether the figures in DIRECTORY agree.

    A claim is the side of a boundary on which the paper finds a number. It agrees or disagrees if the number's 95 %
    interval lies on one side of it, and is undecided otherwise. Also writes claims.csv and claims.md.
    """
    from repsim.claims import check, markdown
    from repsim.tables import prepare, save_table, save_text

    table = check(directory)
    save_table(table, prepare(directory) / "claims.csv")
    save_text(markdown(table), directory / "claims.md")
    if as_json:
        print_json(json.loads(table.to_json(orient="records")))
    elif not quiet:
        click.echo(markdown(table), nl=False)


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="The page.  [default: DIRECTORY/report.html]"
)
@click.option("--quiet", is_flag=True, help="Errors only.")
@AS_JSON
def report(directory: Path, out: Path | None, quiet: bool, as_json: bool) -> None:
    """One page of the figures in DIRECTORY, with their claims, that opens offline; needs plotly.

    Heatmaps can be hovered over and zoomed into.
    """
    from repsim.report import write_report

    page = write_report(directory, out)
    if as_json:
        print_json({"directory": str(directory), "files": [str(page)]})
    say(f"wrote {page}", quiet)


@main.command()
@AS_JSON
def models(as_json: bool) -> None:
    """Networks by the paper's names: what each stands for, and which public weights are used."""
    from repsim.aliases import ALIASES, BUNDLED

    rows = [("alias", "in the paper", "timm name", "weights")]
    rows += [(name, alias.stands_for, alias.timm_name, alias.weights) for name, alias in ALIASES.items()]
    rows += [(name, what, "bundled", "Fashion-MNIST") for name, what in BUNDLED.items()]
    if as_json:
        return print_rows_as_json(rows)
    print_columns(rows)
    click.echo("\nAlso: every timm name, hf-hub:owner/name, local-dir:path, package.module:factory.")


@main.command()
@click.argument("model")
@click.option("--layers", default="paper", show_default=True, help="`blocks`, `paper`, `all`, or a regular expression.")
@click.option("--arg", metavar="KEY=VALUE", multiple=True, help="Model argument, such as img_size=384; repeatable.")
@AS_JSON
def layers(model: str, layers: str, arg: tuple[str, ...], as_json: bool) -> None:
    """What can be compared in MODEL: name, kind, index, relative depth, shape for one image."""
    from repsim.layers import find_layers
    from repsim.models import load_model, parse_model_args

    network = load_model(model, weights="random", **parse_model_args(arg))
    rows = [("index", "depth", "kind", "layer", "shape")]
    for layer in find_layers(network, layers):
        shape = " x ".join(map(str, layer.shape))
        rows.append((str(layer.index), f"{layer.depth:.3f}", layer.kind, layer.name, shape))
    print_rows_as_json(rows) if as_json else print_columns(rows)


# Helpers that the commands share


def redraw_figures(out: Path, wanted: list[Any], preset: str, quiet: bool) -> None:
    """Draw the pictures of figures from their tables; of all that are there, unless some are wanted."""
    from repsim import plots
    from repsim.paper.figures import FIGURES
    from repsim.paper.files import folder, load_figure

    drawn = []
    for exhibit in wanted or FIGURES.values():
        made = load_figure(exhibit, out)
        if made is None and wanted:
            raise UsageError(f"there is no figure {exhibit.number} in {out}; make it first")
        if made is not None:
            picture = exhibit.draw(made, exhibit.caption(preset))
            plots.save(picture, folder(exhibit, out) / f"figure-{exhibit.number}")
            drawn.append(exhibit.number)
    if not drawn:
        raise UsageError(f"there are no figures in {out}; give the directory of a finished run")
    say(f"figures {', '.join(drawn)} are in {out}", quiet)


PICTURES = {
    "cka": ("SIMILARITY", "heatmap"),
    "matched": ("MATCHED", "matched"),
    "heads": ("HEADS", "head_similarity"),
    "residual": ("RESIDUAL", "residual"),
    "lesion": ("LESION", "lesion"),
}
"""Name of a table -> its columns in `tables`, and what draws it in `plots`."""


def draw(directory: Path, name: str, quiet: bool) -> None:
    """Draw a run's picture from its table and say where everything is."""
    from repsim import plots, tables

    columns, plot = PICTURES[name]
    table = tables.load_table(directory / f"{name}.csv", getattr(tables, columns))
    models = [
        model for column in ("model", "model_a", "model_b") if column in table for model in table[column].unique()
    ]
    finish(directory, name, getattr(plots, plot)(table).figure, models, quiet)


def finish(directory: Path, name: str, figure: Any, models: list[str], quiet: bool) -> None:
    """Save a figure under its name, and once more with `random` in it for untrained networks; say where it is."""
    from repsim.plots import save
    from repsim.tables import RECORD

    pictures = save(figure, directory / name)
    if any("-random" in model for model in models):
        pictures += save(figure, directory / f"{name}-random")
    else:  # an earlier run into this directory may have been untrained
        for suffix in (".png", ".pdf"):
            (directory / f"{name}-random{suffix}").unlink(missing_ok=True)
    found = [*sorted(directory.glob(f"{name}*.csv")), directory / RECORD, *pictures]
    say("wrote " + ", ".join(str(path) for path in found if path.exists()), quiet)


def load(asked: list[Asked], device: str | None, seed: int) -> list[Any]:
    """The networks of a command, each loaded once."""
    import torch

    from repsim.models import load_model, parse_model_args

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return [
        load_model(model, weights=weights, device=device, seed=seed, **parse_model_args(args))
        for model, weights, args in asked
    ]


def default_data(networks: list[str]) -> str:
    """The bundled sample for the bundled networks, else ImageNet where it is."""
    from repsim.minis import ARCHITECTURES, bundled

    if all(name in ARCHITECTURES or name in bundled() for name in networks):
        return "sample"
    named = os.environ.get("REPSIM_IMAGENET")
    if named and not Path(named).is_dir():
        raise UsageError(f"REPSIM_IMAGENET names {named!r}, which is no folder")
    for place in (named, "data/imagenet/val"):
        if place and Path(place).is_dir():
            return place
    raise UsageError(
        "no images: give a folder with --data DIR (data/README.md says how to get some), or put ImageNet's validation "
        "images into data/imagenet/val or name their folder in REPSIM_IMAGENET; `--data noise` gives a dry run"
    )


def label(model: str, weights: str) -> str:
    suffix = {"pretrained": "", "random": "-random"}.get(weights, f"@{Path(weights).stem}")
    return re.sub(r"[^\w.@+-]+", "-", model.rstrip("/").split("/")[-1]) + suffix


def check_range(option: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"{option} must be at least {least}, got {value}")


def progress_bar(quiet: bool, repeats: int = 1) -> Callable | None:
    """tqdm on stderr, one bar per repeat; nothing when quiet or not on a terminal."""
    from tqdm import tqdm

    if quiet or not sys.stderr.isatty():
        return None
    counter = iter(range(1, repeats + 1))
    return lambda batches, **more: functools.partial(tqdm, unit="batch", dynamic_ncols=True)(
        batches, desc=f"repeat {next(counter)} of {repeats}" if repeats > 1 else "images", **more
    )


def say(text: str, quiet: bool) -> None:
    if not quiet:
        click.echo(text, err=True)


def print_columns(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def print_rows_as_json(rows: list[tuple[str, ...]]) -> None:
    """The first row names the columns."""
    print_json([dict(zip(rows[0], row)) for row in rows[1:]])


def command_line() -> str:
    return shlex.join(["repsim", *sys.argv[1:]])


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in ("repsim-vision", *PACKAGES)}}


def device_name(device: Any) -> str:
    import torch

    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)
