"""The group of commands, the options they share, and the steps before and after each study."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import click

from repsim.cli.words import (
    PROCESSES,
    check_range,
    command_line,
    of_echo,
    print_json,
    progress_bar,
    say,
    streams,
    without,
)
from repsim.errors import RepsimError, Stopped, UsageError, first_line
from repsim.passes.ranks import rank, world_size


class Asked(NamedTuple):
    """A network with its options, before it is loaded."""

    model: str
    weights: str
    args: tuple[str, ...] = ()
    key: str | None = None
    """The key of the weights in a file."""
    transform: str | None = None
    """The preparation of its images, where the user gives one."""


class Commands(click.Group):
    """Turns repsim's errors into one line and an exit code: 2 for a wrong call, 1 for the rest."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        with streams(), without("MPLBACKEND"):  # pictures go into files, on no screen
            try:
                return super().main(*args, **kwargs)
            except OSError as error:
                if not of_echo(error):
                    raise
                say(f"Error: cannot write to standard output: {error.strerror}", False)
                sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as error:  # all processes find the same fault with a call
            for_torchrun(f"Error: {error.format_message()}")
            if _speaks(error):
                raise
            ctx.exit(error.exit_code)
        except RepsimError as error:
            for_torchrun(f"Error: {error}")
            if _speaks(error):
                say(f"Error: {error}", False)
            ctx.exit(2 if isinstance(error, UsageError) else 1)
        except ImportError as error:
            line = f"Error: {error.name or 'a library'} cannot be loaded: {first_line(error)}"
            for_torchrun(line)
            say(line, False)
            ctx.exit(1)
        except Stopped as stopped:
            say(str(stopped), False)
            ctx.exit(130)
        except KeyboardInterrupt:
            say(
                "stopped; nothing new was saved: the same command goes on from the sums saved before, if there are any",
                False,
            )
            ctx.exit(130)
        except SystemExit as ended:  # which click never raises in here
            line = f"Error: code that is not repsim's ended the program with exit({ended.code!r})"
            for_torchrun(line)
            say(line, False)
            ctx.exit(1)


def _speaks(error: Exception) -> bool:
    """Whether this process reports an error: all find the same fault with a call, and one report is enough."""
    try:
        return is_first() or not isinstance(error, (click.ClickException, UsageError))
    except UsageError:  # the fault is that it cannot know its own number
        return True


class Command(click.Command):
    """Treats an option with an empty value as not given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        for param in self.params:
            given = ctx.params.get(param.name)
            values = given if isinstance(given, tuple) else (given,)
            if any(isinstance(value, str) and not value.strip() for value in values):
                raise UsageError(f"{param.opts[0]} is empty")
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options in groups, under the titles of these."""
        rows: dict[str, list[tuple[str, str]]] = {title: [] for title in GROUPS}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if isinstance(param, click.Option) and record is not None:
                rows[group_of(param)].append(record)
        for title, options in rows.items():
            if options:
                with formatter.section(title):
                    formatter.write_dl(options)


OWN = "Options"
"""The title of options that only one command has."""
GROUPS = {
    "Networks": ("model", "weights", "weights-key", "arg", "transform", "features", "network", "preset"),
    OWN: (),
    "Images": (
        *("data", "data-dir", "split", "images", "seed", "skip-broken", "groups"),
        *("train-data", "train-split", "train-images"),
    ),
    "Computing": (
        *("batch-size", "workers", "device", "precision", "compile", "seed-each-pass", "memory"),
        *("checkpoint-every", "fresh"),
    ),
    "Output": ("out", "redraw", "overwrite", "quiet", "json", "help"),
}
"""Title of a group -> its options in a command's help."""


def group_of(option: click.Option) -> str:
    """The title under which an option stands in the help; options of one side stand with those of both."""
    # click 8.2.0 has -h and --help in any order
    name = max(option.opts, key=len).removeprefix("--").removesuffix("-a").removesuffix("-b")
    return next((title for title, names in GROUPS.items() if name in names), OWN)


Commands.command_class = Command


class Place(click.ParamType):
    """The path of a file or folder, in which `~` is its user's home."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return value if isinstance(value, Path) else Path(at_home(str(value), param.opts[0] if param else "the path"))


class Source(click.ParamType):
    """A known word, or the path of a file or folder, in which `~` is its user's home."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return at_home(str(value), param.opts[0] if param else "the path")


def at_home(text: str, option: str) -> str:
    """A path, with `~` replaced; an empty path is refused."""
    if not text.strip() or "\0" in text:
        raise UsageError(f"{option} is empty" if not text.strip() else f"{option} holds a zero byte, as no path does")
    if not text.startswith("~") or Path(text).exists():
        return text
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise UsageError(f"{option}: there is no home directory {text.split(os.sep)[0]}, as in {text}")
    return expanded


class Model(click.ParamType):
    """The name of a network; a name that is surely wrong is refused before anything heavy is imported."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value.strip():  # `Command` reports empty values
            from repsim.networks.known import check_early

            check_early(value)
        return value


class Seconds(click.FloatRange):
    """A length of time; `nan` and `inf` are refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = super().convert(value, param, ctx)
        return seconds if math.isfinite(seconds) else self.fail(f"{value} is not a number of seconds", param, ctx)


FIRST = """\
repsim compares what vision networks compute, layer by layer. These need no download:
  repsim cka       compares the layers of the bundled ViT and ResNet, and draws them.
  repsim compare   compares three bundled networks by several measures.
  repsim doctor    says what is installed, where images and weights are looked for, and what is missing.
Get help with `repsim --help` on all commands, and with `repsim COMMAND --help` on one of them."""
"""The introduction that is shown without a command."""


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="repsim-vision", prog_name="repsim")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Compare what vision networks compute, layer by layer (Raghu et al., NeurIPS 2021)."""
    if ctx.invoked_subcommand is None:
        click.echo(FIRST)
        return
    try:
        tempfile.gettempdir()  # which torch does when it is imported
    except FileNotFoundError as error:
        raise RepsimError(
            f"{error.strerror}: the disk is full, or repsim may write into none of these directories; name another in "
            "TMPDIR"
        ) from None
    if world_size() > 1:
        from repsim.passes import processes

        processes.join()


RUN = "repsim.run"
"""Key of the run under way in click's context."""


def is_first() -> bool:
    """Whether this process prints and writes: the only one, or torchrun's first."""
    return rank() == 0


def for_torchrun(line: str) -> None:
    """Leave a line where torchrun looks for the cause of a failure, which it prints last, after much else."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": line, "timestamp": int(time.time())}))


AS_JSON = click.option("--json", "as_json", is_flag=True, help="Say what was made as JSON, on standard output.")


def options(*decorators: Callable) -> Callable:
    """Several click options as one decorator, shared by commands."""

    def decorate(command: Callable) -> Callable:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


@dataclass(frozen=True)
class Job:
    """The options that every study shares, and the steps before and after it."""

    command: str
    data: str | None
    data_dir: str | None
    split: str | None
    images: int | None
    seed: int
    workers: int | None
    skip_broken: bool
    groups: str | None
    batch_size: int | None
    device: str | None
    precision: str | None
    compiled: bool
    seed_each_pass: bool
    memory: str | None
    out: Path | None
    redraw: Path | None
    checkpoint_every: float
    fresh: bool
    overwrite: bool
    quiet: bool
    as_json: bool

    def start(
        self,
        asked: list[Asked],
        writes: Sequence[str],
        *,
        train: Any = None,
        called: str | None = None,
        beside: Collection[str] = (),
        features: Sequence[Any] = (),
        images: Any = None,
    ) -> Run:
        """Load networks, see `ready`, and make the directory.

        Args:
            asked: the networks.
            writes: the files and folders that the run will write beside `run.json`.
            features: features beside the networks, after them.
            train: training images, if the run has some.
            called: name of the directory without `--out`; None: the command and its networks.
            beside: options that may differ between runs whose results lie in one directory.
            images: those that are looked at, where they are chosen already.
        """
        from repsim.cli.directory import before, digest, own_directory
        from repsim.passes import processes
        from repsim.passes.resume import FOLDER, Resume
        from repsim.tables import prepare, recording

        started = time.perf_counter()
        context = click.get_current_context()
        networks, chosen = self.ready(asked, features, images)
        apart = about(self, networks, chosen, train)
        common = {name: value for name, value in apart["options"].items() if name not in beside}
        settings, out, old = digest({**apart, "options": common}), self.out, {}
        if out is None:
            labels = [
                *(label(one.model, one.weights, one.key) for one in asked),
                *(label(one.name) for one in features),
            ]
            name = called or "-".join([self.command, *labels])
            out = processes.agreed(own_directory(name, settings) if is_first() else None)
            if out.name != name:
                say(f"the results go into {out}", self.quiet)

        def allow(known: Collection[str], out: Path = out) -> None:
            old.update(before(out, settings, writes, known, self.overwrite))
            prepare(out)

        resume = Resume(
            out / FOLDER,
            {**apart, **bound("images", chosen), **(bound("training images", train) if train is not None else {})},
            every=self.checkpoint_every,
            fresh=self.fresh,
            settings=settings,
            files=writes,
            allow=allow,
            say=lambda text: say(text, False),
        )
        context.call_on_close(resume.release)
        context.with_resource(resume.stoppable())
        written = context.with_resource(recording())
        if not is_first():  # every process makes the results, and only the first one writes them
            out = Path(context.with_resource(tempfile.TemporaryDirectory()))
        run = Run(self, networks, chosen, out, started, resume, settings, old, written)
        context.meta[RUN] = run
        context.call_on_close(run.let_go_of_what_nobody_would_know)
        return run

    def ready(self, asked: list[Asked], features: Sequence[Any] = (), images: Any = None) -> tuple[list[Any], Any]:
        """Check first everything that is cheap to check, then load the networks and images. Nothing is written.

        For features alone, without data, the images are those that they have in common.
        """
        if self.images is not None:
            check_range("--images", self.images, 4)
        if self.batch_size is not None:
            check_range("--batch-size", self.batch_size, 4)
        if self.workers is not None:
            check_range("--workers", self.workers, 0, PROCESSES)

        from repsim.cli.introducing import differences, introduced
        from repsim.networks.memory import give_back_blocks
        from repsim.networks.models import check_name, told_apart
        from repsim.networks.transforms import read_words
        from repsim.passes.plan import limited
        from repsim.studies.results import hearing

        context = click.get_current_context()
        give_back_blocks()
        context.with_resource(limited(self.memory, lambda text: say(text, self.quiet)))
        for network in asked:
            check_name(network.model)
            if network.transform is not None:
                read_words(network.transform, network.model)
        if images is not None:
            chosen = images
        elif asked or self.data:
            chosen = self.chosen(self.data or default_data([network.model for network in asked]), self.split)
        else:
            chosen = self.known_to(features)
        options = {name: getattr(self, name) for name in ("precision", "compiled", "seed_each_pass")}
        networks = [*load(asked, self.device, self.seed, **options), *standing(features, self.device)]
        networks = told_apart(networks)
        for line in (*map(introduced, networks), *differences(networks)):
            say(line, self.quiet)
        heard: set[str] = set()

        def hear(notice: str) -> None:
            if notice not in heard:
                heard.add(notice)
                say(notice, self.quiet)

        context.with_resource(hearing(hear))
        return networks, chosen

    def chosen(self, data: str, split: str | None) -> Any:
        """The images that are looked at, of some data."""
        from repsim.images.image_set import ImageSet

        place = {"split": split, "root": self.data_dir}
        images = ImageSet(data, **place, images=self.images, seed=self.seed, groups=self.groups)
        return images if given("images") else images.at_most_all()

    def known_to(self, features: Sequence[Any]) -> Any:
        """The images that all features have in common, where there are no networks and no data."""
        from repsim.features.aligned import of_features_alone

        options_of_images = {"--split": self.split, "--data-dir": self.data_dir, "--groups": self.groups}
        for option, value in options_of_images.items():
            if value is not None:
                raise UsageError(f"{option} is for images, and there are only features; name the images with --data")
        return of_features_alone(features, images=self.images, seed=self.seed)


@dataclass(frozen=True)
class Run:
    """A run of a command that is under way."""

    job: Job
    networks: list[Any]
    images: Any
    out: Path
    started: float
    resume: Any
    settings: str
    """Digest of the settings that tell the run apart."""
    old: dict[str, Any]
    """The record of the run whose results are replaced."""
    written: set[Path]
    """The results that this run has written."""
    said: list[str] = field(default_factory=list)
    """The closing sentences on the result."""

    def pass_options(self, repeats: int = 1) -> dict[str, Any]:
        """Options of the passes over images, by the names that every study takes."""
        progress = progress_bar(self.job.quiet, repeats)
        options = {"workers": self.job.workers, "skip_broken": self.job.skip_broken}
        return {"progress": progress, **options, "resume": self.resume}

    def let_go_of_what_nobody_would_know(self) -> None:
        """Remove the results of a run that failed where no record could be written, as on a full disk.

        The next run could not tell them from files of the user, and would be refused.
        """
        from repsim.passes.resume import ABOUT
        from repsim.tables import RECORD

        if not ((self.out / RECORD).exists() or (self.resume.folder / ABOUT).exists()):
            for path in self.written:
                path.unlink(missing_ok=True)

    def finish(self) -> None:
        """End the run once everything is written."""
        from repsim.cli.directory import settle
        from repsim.passes import processes

        if is_first():
            settle(self.out, self.old, self.written)
        self.resume.finish()
        processes.leave()

    def save(self, result: Any, **options: Any) -> None:
        """Write tables, `run.json` and pictures, and print their paths and the closing sentences.

        Args:
            result: the result of a study.
            options: options of the pictures, see `draw`.
        """
        from repsim.cli.closing import said
        from repsim.cli.pictures import draw

        result.save_tables(self.out)
        self.record(result.record)
        draw(self.out, result.name, self.job.quiet, **options)
        self.said.extend(said(result))
        for sentence in self.said:
            say(sentence, self.job.quiet)

    def record(self, record_of_result: dict[str, Any]) -> dict[str, Any]:
        """Write `run.json`, and return it: it holds everything that is needed to repeat the run."""
        from repsim.cli.directory import SETTINGS, drop_tables
        from repsim.tables import RECORD, save_record

        record = {
            "command": command_line(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **record_of_result,
            SETTINGS: self.settings,
            "seconds": round(time.perf_counter() - self.started, 2),
        }
        drop_tables(self.out, self.old, self.written)
        save_record(record, self.out / RECORD)
        return record


def job_options(command: str, images: int | None, batch: int | str, batch_kind: str) -> Callable:
    """The options of a `Job`, which the command gets as its first argument.

    Args:
        command: its name.
        images: the default number of images; None: all images.
        batch: the batch size where there are many images, see `fitting`.
        batch_kind: the kind of batch.
    """
    drawn = "How many, drawn at random." + ("" if images else "  [default: all]")
    decorate = options(
        click.option(
            "--data",
            type=Source(),
            metavar="DATA",
            help="Folder of images, `sample`, `fashion-mnist`, `noise`, or a timm data set such as torch/cifar10.  "
            "[default: the bundled sample for bundled networks, else data/imagenet/val or $REPSIM_IMAGENET]",
        ),
        click.option("--data-dir", type=Source(), metavar="DIR", help="Folder of timm's data sets or Fashion-MNIST."),
        click.option("--split", help="A split, or a folder inside DATA."),
        click.option("--images", type=int, default=images, show_default=True, help=drawn),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**63 - 1),
            default=0,
            show_default=True,
            help="Seed for choosing images and for untrained weights.",
        ),
        click.option("--workers", type=int, help="Processes that decode images.  [default: one per core, up to 8]"),
        click.option("--skip-broken", is_flag=True, help="Go on without images that cannot be read, and count them."),
        click.option(
            "--groups",
            type=click.Choice(["class"]),
            help="Images of a class are not independent, as crops of a photograph: intervals are over classes.",
        ),
        click.option(
            "--batch-size",
            type=int,
            help=f"Images per {batch_kind}.  [default: {batch}; fewer if images are few, so that there are 8 batches]",
        ),
        click.option("--device", help="cpu, cuda, cuda:1, mps ...  [default: cuda where there is one]"),
        click.option(
            "--precision",
            type=click.Choice(["fp32", "tf32", "bf16"]),
            help="Precision of the networks; tf32 on CUDA only.  [default: tf32 on CUDA, else fp32]",
        ),
        click.option("--compile", "compiled", is_flag=True, help="Have torch.compile run the networks."),
        click.option(
            "--seed-each-pass",
            is_flag=True,
            help="Begin every pass with the same seed, for networks that draw at random while they run.",
        ),
        click.option(
            "--memory",
            metavar="SIZE",
            help="Main memory that may be used, such as 8G or 50%.  [default: three quarters of the free memory]",
        ),
        click.option(
            "--out",
            type=Place(),
            help=f"Directory of the results.  [default: runs/{command}-..., and digits if another run has that]",
        ),
        click.option(
            "--redraw",
            type=Place(),
            metavar="DIR",
            help="Only draw the pictures of a finished run anew.",
        ),
        click.option(
            "--checkpoint-every",
            type=Seconds(0),
            default=60.0,
            show_default=True,
            metavar="SECONDS",
            help="Time between two saves of the sums; the same command, given again, goes on from the last save.",
        ),
        click.option("--fresh", is_flag=True, help="Start over, without saved sums."),
        click.option("--overwrite", is_flag=True, help="Replace the results of another run in --out."),
        click.option("--quiet", is_flag=True, help="Print errors only."),
        AS_JSON,
    )
    shared = [f.name for f in fields(Job) if f.name != "command"]

    def with_job(function: Callable) -> Callable:
        @functools.wraps(function)
        def called(**given: Any) -> Any:
            job = Job(command, **{name: given.pop(name) for name in shared})
            if not is_first():
                job = replace(job, quiet=True, as_json=False)
            if job.redraw is None:
                out = function(job, **given)
            else:
                from repsim.cli.pictures import redrawing

                with redrawing(job.redraw):
                    out = function(job, **given)
            run = click.get_current_context().meta.get(RUN)
            if run is not None:
                run.finish()
            if job.as_json and out is not None:
                print_json({"directory": str(out), **said_of(out), "said": [] if run is None else run.said})

        return decorate(called)

    return with_job


def given(option: str) -> bool:
    """Whether an option of the command was given instead of left to its default."""
    source = click.get_current_context().get_parameter_source(option)
    return source not in (None, click.core.ParameterSource.DEFAULT)


def said_of(out: Path) -> dict[str, Any]:
    """The files and notices of a run, from its record."""
    from repsim.cli.directory import read

    record = read(out)
    return {"files": [str(out / name) for name in record.get("files", [])], "notices": record.get("notices", [])}


def known_models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of networks, for the completion of shells."""
    from repsim.networks.aliases import ALIASES, BUNDLED

    return [name for name in (*BUNDLED, *ALIASES) if name.startswith(incomplete)]


def model_options(
    side: str = "", model: str = "", default: str | tuple[str, ...] | None = None, *, several: bool = False
) -> Callable:
    """`--model`, `--weights`, `--weights-key`, `--arg` and `--transform`, or those of a side: `--model-a` ...

    Options of side A may be written without the side. With `several`, any number of networks may be given, and
    `each_model` reads them.
    """
    end = f"-{side}" if side else ""
    asked = click.option(
        *named("model", end),
        type=Model(),
        metavar="MODEL",
        multiple=several or side == "a",
        callback=the_only if side == "a" else None,
        default=(default,) if side == "a" and default else default,
        show_default=default is not None,
        help=f"{MODEL}{model}",
        shell_complete=known_models,
    )
    return options(asked, weights_options(end, several=several))


def named(option: str, end: str) -> list[str]:
    """Spellings of an option of a side, and the name of its value: `--model-a`, also `--model`, and `model_a`."""
    short = [f"--{option}"] if end == "-a" else []
    return [f"--{option}{end}", *short, f"{option}{end}".replace("-", "_")]


def the_only(ctx: click.Context, param: click.Parameter, models: tuple[str, ...]) -> str | None:
    """The one network of side A; a second one belongs to side B.

    Raises:
        UsageError: several networks are given.
    """
    if len(models) > 1:
        raise UsageError(
            f"--model-a, or --model, is one network, and {len(models)} were given ({', '.join(models)}); "
            "give the second with --model-b"
        )
    return models[0] if models else None


def weights_options(end: str = "", *, several: bool = False) -> Callable:
    """`--weights`, `--weights-key`, `--arg` and `--transform` of the networks that a command is given."""
    explanation = f": once for all, or once per model{end.replace('-', ' ')}" if several else ""
    weights = f"`pretrained`, `random`, or a file{explanation}."
    return options(
        click.option(
            *named("weights", end),
            type=Source(),
            metavar="WEIGHTS",
            multiple=several,
            default=None if several else "pretrained",
            show_default=not several,
            help=f"{weights}  [default: pretrained]" if several else weights,
        ),
        click.option(
            *named("weights-key", end),
            metavar="KEY",
            multiple=several,
            help=f"Which of the weights in a file, such as state_dict_ema or model.teacher{explanation}.",
        ),
        click.option(
            *named("arg", end),
            metavar="KEY=VALUE",
            multiple=True,
            help=f"{'Argument of each model' if several else 'Model argument'}, such as img_size=384; repeatable.",
        ),
        transform_option(end, explanation, several=several),
    )


def transform_option(end: str = "", explanation: str = "", *, several: bool = False) -> Callable:
    """`--transform`, with or without a side."""
    return click.option(
        *named("transform", end),
        metavar="WORDS",
        multiple=several,
        help="How images are prepared, where the network does not say, or otherwise than it says: `imagenet`, or "
        f"'size=224 mean=0.5,0.5,0.5 std=0.5,0.5,0.5 crop=1.0 interpolation=bicubic'{explanation}.",
    )


def each_model(
    models: tuple[str, ...],
    weights: tuple[str, ...],
    keys: tuple[str, ...],
    args: tuple[str, ...],
    transforms: tuple[str, ...] = (),
    side: str = "",
    role: str = "",
) -> list[Asked]:
    """Each network with its weights; a key that is given once holds for every file.

    Args:
        models, weights, keys, args, transforms: values of the options of one side, or of one role.
        side: ending of the options, where a command has two sides.
        role: prefix of the values, where options are for roles.
    """

    def spread(option: str, values: tuple[str, ...]) -> tuple[str, ...]:
        if len(values) not in (1, len(models)):
            example, per = (f" {role}=", f"network {role}=") if role else (side, f"model{side}")
            raise UsageError(
                f"give --{option}{example} once, or once per --{per}: "
                f"there are {len(models)} models and {len(values)} {option.replace('-', ' ').rstrip('s')}s"
            )
        return values * len(models) if len(values) == 1 else values

    weights = spread("weights", weights or ("pretrained",))
    one_key = len(keys) == 1 and any(source not in NO_FILE for source in weights)
    keys = spread("weights-key", keys or ("",))
    transforms = spread("transform", transforms or ("",))
    return [
        Asked(model, source, args, None if one_key and source in NO_FILE else key or None, transform or None)
        for model, source, key, transform in zip(models, weights, keys, transforms)
    ]


NO_FILE = ("pretrained", "random")
"""Words for weights that are no file and so have no keys."""


FEATURES = click.option(
    "--features",
    "features_of",
    metavar="NAME=PATH",
    multiple=True,
    help="Features that stand for a network, and what they are called: a folder of `repsim extract` (DIR:MODEL of "
    "several networks), .npy, .npz, .safetensors or .h5. Repeatable; those of one NAME are joined, image by image.",
)


def read_features(texts: Sequence[str]) -> list[Any]:
    """The features that `--features` names, in order; features of one name (training and test images) are joined."""
    from repsim.features.files import load_features

    by_name: dict[str, Any] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (equals and name.strip() and path.strip()):
            raise UsageError(f"features are given as --features NAME=PATH, got {text!r}")
        path, model = at_home(path, "--features"), None
        if not Path(path).exists() and Path(path.rpartition(":")[0] or path).is_dir():
            path, _, model = path.rpartition(":")
        features = load_features(path, model=model, name=name)
        by_name[name] = by_name[name].join(features) if name in by_name else features
    return list(by_name.values())


def standing(features: Sequence[Any], device: str | None) -> list[Any]:
    """Features in the places of networks, on the networks' device."""
    import torch

    from repsim.passes import processes

    on = torch.device(processes.own_device() if device is None else device) if features else None
    return [replace(network.as_network(), on=on) for network in features]


LAYERS = click.option(
    "--layers", default="blocks", show_default=True, help="`blocks`, `paper`, `all`, or a regular expression."
)


def tokens_option(default: str) -> Callable:
    """`--tokens`, the part of a layer that stands for an image."""
    choice = click.Choice(["all", "cls", "spatial", "pooled"])
    return click.option("--tokens", type=choice, default=default, show_default=True)


MODEL = "Alias, timm name, hf:..., torchvision:..., open_clip:..., local-dir:... or package.module:factory."


def load(asked: list[Asked], device: str | None, seed: int, **options: Any) -> list[Any]:
    """The networks of a command; equal ones are loaded once."""
    from repsim.networks.models import load_model, parse_model_args, with_values
    from repsim.passes import processes

    device = processes.own_device() if device is None else device
    return [
        with_values(
            load_model(
                network.model,
                weights=network.weights,
                weights_key=network.key,
                device=device,
                seed=seed,
                transform=network.transform,
                **options,
                **parse_model_args(network.args),
            )
        )
        for network in asked
    ]


def about(job: Job, networks: list[Any], images: Any, train: Any = None) -> dict[str, Any]:
    """The settings that the sums of a run depend on, which tell it apart from other runs."""
    from repsim.images.image_set import Counts
    from repsim.networks.models import NO_HASH
    from repsim.studies.results import device_name, versions

    means = {"out", "redraw", "workers", "memory", "checkpoint_every", "fresh", "overwrite", "quiet", "as_json"}
    options_given = click.get_current_context().params

    def seen(images: Any) -> dict[str, Any]:
        """The record of images without their surroundings, which change no sums."""
        return {name: value for name, value in images.record(Counts()).items() if name != "left_out"}

    records = [network.record() for network in networks]
    for record in records:
        if record["weights_sha256"].startswith(NO_HASH):  # whether a second run has the same weights cannot be known
            record["weights_sha256"] = uuid4().hex
    return {
        "command": job.command,
        "options": {name: value for name, value in options_given.items() if name not in means},
        "networks": records,
        "images": seen(images),
        **({} if train is None else {"training images": seen(train)}),
        "versions": versions(networks),
        "device": device_name(networks[0].device),
        "processes": world_size(),
    }


def bound(subject: str, images: Any) -> dict[str, str]:
    """The digests of the images that sums belong to, because files may have been replaced since."""
    return {f"{kind} of {subject}": value for kind, value in images.identity().items()}


IMAGENET = "data/imagenet/val"
"""The folder of ImageNet's validation images, unless REPSIM_IMAGENET names one."""


def default_data(networks: list[str]) -> str:
    """The default data: the bundled sample for bundled networks, else ImageNet.

    Raises:
        UsageError: there is none.
    """
    if (data := data_at_hand(networks)) is not None:
        return data
    raise UsageError(
        "no images: give a folder with --data DIR (data/README.md says how to get some), or put ImageNet's validation "
        f"images into {IMAGENET} or name their folder in REPSIM_IMAGENET; `--data noise` gives a dry run"
    )


def data_at_hand(networks: list[str]) -> str | None:
    """The default data of these networks; None: there is none."""
    from repsim.networks.minis import ARCHITECTURES, bundled

    if all(name in ARCHITECTURES or name in bundled() for name in networks):
        return "sample"
    named = os.environ.get("REPSIM_IMAGENET")
    if named and not Path(named).is_dir():
        raise UsageError(f"REPSIM_IMAGENET names {named!r}, which is not a folder")
    for place in (named, IMAGENET):
        if place and Path(place).is_dir():
            return place
    return None


def label(model: str, weights: str = "pretrained", key: str | None = None) -> str:
    """The name of a network in tables: the model's, and its weights unless these are the pretrained ones."""
    suffix = {"pretrained": "", "random": "-random"}.get(weights, f"@{Path(weights).stem}")
    suffix += re.sub(r"[^\w.@+-]+", "-", f"-{key}") if key else ""
    return re.sub(r"[^\w.@+-]+", "-", model.rstrip("/").split("/")[-1]) + suffix
