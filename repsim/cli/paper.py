"""`repsim figures`, `repsim claims` and `repsim report`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repsim.cli.asked import Asked, each_model, label
from repsim.cli.base import AS_JSON, Place, Source, is_first, main
from repsim.cli.job import Job, default_data, job_options
from repsim.cli.words import check_range, print_json, say
from repsim.errors import UsageError, one_of

if TYPE_CHECKING:
    from repsim.paper.roles import Roles

NOISE_TO_TRAIN = 48
"""Training images of a dry run."""


class OfRole(Source):
    """`ROLE=` and a known word or a path, or one of these alone."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        role, converted = of_role(str(value))
        converted = super().convert(converted, param, ctx)
        return f"{role}={converted}" if role else converted


def of_role(text: str, separator: str = "=") -> tuple[str, str]:
    """The role that stands before a value, and the value; an empty role where none stands there."""
    from repsim.paper.roles import ROLES

    role, between, value = text.partition(separator)
    return (role, value) if between and role in ROLES else ("", text)


@main.command(short_help="Measure and draw the figures of the paper.")
@click.argument("numbers", nargs=-1, metavar="[NUMBER]...")
@click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="ROLE=MODEL",
    help="A network of yours and its role: vit, cnn, gap, little, small, mixer, tuned, seed; repeatable, also for "
    "several of a role.",
)
@click.option(
    "--preset", type=click.Choice(["mini", "paper"]), help="Networks to take without --network.  [default: mini]"
)
@click.option(
    "--weights",
    type=OfRole(),
    multiple=True,
    metavar="[ROLE=]WEIGHTS",
    help="`pretrained`, `random` (a dry run), or ROLE=FILE: once for all of a role, or once per network of it.  "
    "[default: pretrained]",
)
@click.option("--weights-key", multiple=True, metavar="ROLE=KEY", help="Key of the weights in a file, likewise.")
@click.option("--arg", multiple=True, metavar="ROLE.KEY=VALUE", help="Model argument, as vit.img_size=384; repeatable.")
@click.option(
    "--transform",
    multiple=True,
    metavar="ROLE=WORDS",
    help="How images are prepared, likewise: as `--transform-a` of `repsim cka`, cnn=imagenet.",
)
@click.option("--plan", "only_plan", is_flag=True, help="List the figures and passes that would be made, and stop.")
@click.option("--layers", help="See `repsim cka`.  [default: blocks; of `paper`, paper]")
@click.option("--channels", default=16, show_default=True, help="Channels per layer of receptive fields; 0: all.")
@click.option(
    "--train-data", type=Source(), metavar="DATA", help="Training images of probes.  [default: looked for in DATA]"
)
@click.option("--train-split", metavar="SPLIT", help="Split or folder of the training images.  [default: train]")
@job_options(
    "figures",
    images=None,
    batch="256; of `mini` 250, of `paper` 1024",
    batch_kind="minibatch",
)
def figures(
    job: Job,
    numbers: tuple[str, ...],
    networks: tuple[str, ...],
    preset: str | None,
    weights: tuple[str, ...],
    weights_key: tuple[str, ...],
    arg: tuple[str, ...],
    transform: tuple[str, ...],
    only_plan: bool,
    layers: str | None,
    channels: int,
    train_data: str | None,
    train_split: str | None,
) -> Path | None:
    """Measure and draw figures of the paper, such as 1 or C.5; without NUMBER all of them.

    With your own networks, `--network vit=MODEL --network cnn=MODEL` makes all figures that these allow, and names the
    roles that the rest needs; one network alone works for its own figures. `mini` has the bundled networks and images;
    `paper` the public checkpoints nearest to the paper's, ImageNet's validation images and the paper's protocol. The
    figures, their networks and the passes are listed before anything runs.

    Forward-only figures share one forward pass per network and image. Writes a folder per figure, figure-NUMBER, with
    its tables, the numbers its claims are checked by (numbers.csv), run.json and the picture; the paper's claims with
    verdicts (claims.csv, claims.md); and one page of all (report.html), if plotly is installed.
    """
    from repsim.paper.figures import PRESETS
    from repsim.paper.report import check_pages
    from repsim.paper.run import Cast, replicate, wanted
    from repsim.paper.run import plan as planned

    exhibits = wanted(numbers or None)
    if job.redraw is not None:
        redraw_figures(job.redraw, exhibits if numbers else [], job.quiet)
        return job.redraw
    check_range("--channels", channels, 0)
    if networks:
        if preset is not None:
            raise UsageError("give --network or --preset, not both")
        cast = Cast.of(exhibits, own_roles(networks, weights, weights_key, arg, transform))
    else:
        cast = Cast.of(exhibits, PRESETS[preset or "mini"])
        of_all = of_preset(weights, [*weights_key, *arg, *transform])
        cast = cast.played_by({name: Asked(name, of_all) for name in cast.players})

    from repsim.images.image_set import ImageSet, has_split, train_and_test

    job = replace(job, images=cast.roles.images if job.images is None else job.images)
    data, split, train, chosen, without = job.data, job.split, None, None, ""
    data = data or default_data([item.model for item in cast.players])
    try:
        if any((split, train_data, train_split)) or has_split(data):
            training, (data, split) = train_and_test(data, split, train_data, train_split)
            if cast.probes:
                few = NOISE_TO_TRAIN if data == "noise" else None
                train = ImageSet(training[0], split=training[1], root=job.data_dir, images=few, seed=job.seed)
        elif cast.probes:
            chosen = job.chosen(data, None)
            train, _ = chosen.parted()
    except UsageError as error:  # only figures of probes need training images
        without = f"no training images: {error}"
    job = replace(job, data=data, split=split)
    if only_plan:
        loaded, images = job.ready(cast.players, images=chosen)
    else:
        run = job.start(
            cast.players,
            [f"figure-{exhibit.number}" for exhibit in cast.exhibits],
            train=train,
            images=chosen,
            called=called(cast.roles, cast.players),
            beside=["numbers", "only_plan"],
        )
        loaded, images = run.networks, run.images
        check_pages(run.out)
    said = [without] if without and cast.probes else []
    if train is not None and train.split_here:
        from repsim.studies.probe import split_in_words

        said.append(split_in_words(data, train.split_here))
    if data == "noise" and train is not None:
        said.append("probes of noise: two classes are made up, to try them out")
        train, images = (item.labelled([i % 2 for i in range(len(item))]) for item in (train, images))
    for notice in said:
        say(notice, job.quiet)
    given = (cast.played_by(dict(zip(cast.players, loaded))), images, train)
    options = {"layers": layers, "batch_size": job.batch_size, "channels": channels}
    if only_plan:
        plan = planned(*given, **options, workers=job.workers, skip_broken=job.skip_broken)
        if job.as_json:
            print_json(plan.record())
        elif is_first():
            click.echo(plan)
        return None
    replication = replicate(*given, **options, tell=lambda plan: say(str(plan), job.quiet), **run.pass_options())  # pyrefly: ignore [unbound-name]
    record = {**replication.record, "notices": [*said, *replication.record["notices"]]}
    replication = replace(replication, record=run.record(record))
    replication.save_tables(run.out)
    if is_first():
        finish(run.out, [exhibit for exhibit, _ in replication.made], replication, job.quiet)
    return run.out


def of_preset(weights: tuple[str, ...], options: list[str]) -> str:
    """The weights of a preset's networks, which take no further options."""
    if options or any(of_role(text)[0] for text in weights):
        raise UsageError(
            "--weights ROLE=..., --weights-key, --arg and --transform are of networks that --network names"
        )
    return weights[-1] if weights else "pretrained"


def own_roles(
    networks: tuple[str, ...],
    weights: tuple[str, ...],
    keys: tuple[str, ...],
    args: tuple[str, ...],
    transforms: tuple[str, ...],
) -> Roles:
    """The networks for each role, from the options."""
    from repsim.paper.roles import Roles

    of_all = [text for text in weights if not of_role(text)[0]]
    if wrong := [text for text in of_all if text not in ("pretrained", "random")]:
        raise UsageError(
            f"say whose weights these are, --weights ROLE={wrong[0]}; only pretrained and random go without a role"
        )
    models = by_role("--network", networks)
    own = by_role("--weights", [text for text in weights if text not in of_all], models)
    its_keys, its_args = by_role("--weights-key", keys, models), by_role("--arg", args, models, ".")
    its_transforms = by_role("--transform", transforms, models)
    return Roles.of(
        {
            role: each_model(
                tuple(names),
                tuple(own.get(role) or of_all[-1:]),
                tuple(its_keys.get(role, ())),
                tuple(its_args.get(role, ())),
                tuple(its_transforms.get(role, ())),
                role=role,
            )
            for role, names in models.items()
        }
    )


def by_role(
    option: str, values: tuple[str, ...] | list[str], roles: Mapping[str, Any] | None = None, separator: str = "="
) -> dict[str, list[str]]:
    """The values of an option for each of the known roles, in the order of the roles."""
    from repsim.paper.roles import ROLES

    by_name: dict[str, list[str]] = {}
    for text in values:
        role, value = of_role(text, separator)
        if not role or not value:
            before = text.partition(separator)[0]
            if separator in text and before not in ROLES:
                raise one_of("role", before, ROLES)
            raise UsageError(f"{option} takes ROLE{separator}..., got {text!r}; roles are {', '.join(ROLES)}")
        if roles is not None and role not in roles:
            raise UsageError(f"{option} {text} belongs to no network; give --network {role}=MODEL")
        by_name.setdefault(role, []).append(value)
    return {role: by_name[role] for role in ROLES if role in by_name}


def called(roles: Roles, players: list[Asked]) -> str | None:
    """The name of a run's directory: after its preset, or after its networks, as with all commands."""
    from repsim.paper.roles import OWN

    if roles.preset == OWN:
        return "-".join(["figures", *(label(player.model, player.weights, player.key) for player in players)])
    return f"figures-{roles.preset}" + ("-random" if players[0].weights == "random" else "")


def finish(out: Path, exhibits: list[Any], result: Any, quiet: bool) -> None:
    """Draw pictures, write claims and the page, and print the findings."""
    from repsim.paper.findings import in_lines
    from repsim.paper.report import conclude

    redraw_figures(out, exhibits, quiet)
    _, reason = conclude(out)
    if reason:
        say(f"there is no page: {reason}", quiet)
    if len(result.claims):
        say(in_lines(result.findings), quiet)


def redraw_figures(out: Path, wanted: list[Any], quiet: bool) -> None:
    """Draw the pictures of figures from their tables: of the wanted figures, or of all figures in the directory."""
    from repsim.paper.files import draw_figures

    folders = dict.fromkeys(path.parent.name for path in draw_figures(out, wanted))
    say(f"figures {', '.join(name.removeprefix('figure-') for name in folders)} are in {out}", quiet)


@main.command(short_help="Check the paper's claims by the figures in a directory.")
@click.argument("directory", type=Place())
@click.option("--quiet", is_flag=True, help="Write the files only.")
@AS_JSON
def claims(directory: Path, quiet: bool, as_json: bool) -> None:
    """Check the paper's claims against the figures in DIRECTORY.

    A claim is the side of a boundary on which the paper finds a number. It agrees or disagrees if the number's 95 %
    interval lies on one side of it, and is undecided otherwise. Also writes claims.csv and claims.md.
    """
    from repsim.paper.claims import check, markdown
    from repsim.paper.files import save_claims

    table = check(directory)
    save_claims(directory)
    if as_json:
        print_json(json.loads(table.to_json(orient="records")))
    elif not quiet:
        click.echo(markdown(table), nl=False)


@main.command(short_help="Make one page of the figures and claims in a directory.")
@click.argument("directory", type=Place())
@click.option("--out", type=Place(), metavar="FILE", help="The page.  [default: DIRECTORY/report.html]")
@click.option("--quiet", is_flag=True, help="Errors only.")
@AS_JSON
def report(directory: Path, out: Path | None, quiet: bool, as_json: bool) -> None:
    """Make one page of the figures in DIRECTORY, with their claims, that opens offline; it needs plotly.

    Heatmaps can be hovered over and zoomed into.
    """
    from repsim.paper.report import write_report

    page = write_report(directory, out)
    if as_json:
        print_json({"directory": str(directory), "files": [str(page)]})
    say(f"wrote {page}", quiet)
