"""The group of commands: how they speak, how their help is grouped, and the types of their options."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from repsim.cli.words import (
    of_echo,
    say,
    streams,
    without,
)
from repsim.errors import RepsimError, Stopped, UsageError, first_line
from repsim.passes.ranks import rank, world_size


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


def given(option: str) -> bool:
    """Whether an option of the command was given instead of left to its default."""
    source = click.get_current_context().get_parameter_source(option)
    return source not in (None, click.core.ParameterSource.DEFAULT)
