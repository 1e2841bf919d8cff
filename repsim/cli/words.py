"""The output of commands: messages, progress, rows, and the command line for the record."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import click

from repsim.errors import UsageError


def say(text: str, quiet: bool) -> None:
    """Print a message on standard error; the run goes on if that is closed."""
    if not quiet:
        with contextlib.suppress(OSError):
            click.echo(text, err=True)


MANY = 100_000_000
"""The largest number for counts of images, neighbours or channels."""
PROCESSES = 256
"""The largest number of processes that decode images; each is a copy of this process."""
PASSES = 10_000
"""The largest number of passes over images, or of draws."""


def check_range(option: str, value: int, least: int, most: int = MANY) -> None:
    """Raise `UsageError` for a number that is out of bounds."""
    if value < least:
        raise UsageError(f"{option} must be at least {least}, got {value}")
    if value > most:
        raise UsageError(f"{option} must be at most {most}, got {value}")


@contextlib.contextmanager
def streams() -> Iterator[None]:
    """While active, there are streams to write to; letters that their encoding lacks are written as `\\u03b1`.

    A closed stream is opened, so that no file that is opened later gets its number: standard error takes all and shows
    nothing, standard output takes nothing.
    """
    for number, name, mode in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, mode), "w" if number else "r", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):  # which Python would meet once more at the end, with an exit code of its own
                with contextlib.suppress(OSError, ValueError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def of_echo(error: OSError) -> bool:
    """Whether an error comes from writing to standard output; `say` handles errors of standard error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code is click.echo.__code__


@contextlib.contextmanager
def without(variable: str) -> Iterator[None]:
    """While active, a variable of the environment is not set."""
    before = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[variable] = before


def progress_bar(quiet: bool, repeats: int = 1) -> Callable | None:
    """tqdm on stderr, one bar per repeat; nothing when quiet or not on a terminal."""
    from tqdm import tqdm

    if quiet or not sys.stderr.isatty():
        return None
    counter = iter(range(1, repeats + 1))

    def bar(batches: Iterable, **more: Any) -> Iterable:
        title = f"repeat {next(counter)} of {repeats}" if repeats > 1 else "images"
        options: dict[str, Any] = {"desc": title, "unit": "batch", "dynamic_ncols": True, **more}
        return tqdm(batches, **options)

    return bar


def print_json(value: Any) -> None:
    """Write a value to standard output as JSON."""
    click.echo(json.dumps(value, indent=2))


def print_columns(rows: Sequence[tuple[str, ...]]) -> None:
    """Write rows to standard output, their cells below each other."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def print_rows_as_json(rows: Sequence[tuple[str, ...]]) -> None:
    """The first row names the columns."""
    print_json([dict(zip(rows[0], row)) for row in rows[1:]])


def command_line() -> str:
    """The command line of the run, as it may be typed again."""
    return shlex.join(["repsim", *sys.argv[1:]])
