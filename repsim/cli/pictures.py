"""Drawing the pictures of a run from its tables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from repsim.cli.base import is_first
from repsim.cli.words import say
from repsim.errors import UsageError

SUFFIXES = (".png", ".pdf")


def pictures(*names: str) -> list[str]:
    """The files of pictures of these names, of trained and of untrained networks."""
    return [f"{name}{ending}{suffix}" for name in names for ending in ("", "-random") for suffix in SUFFIXES]


@contextmanager
def redrawing(directory: Path) -> Iterator[None]:
    """While active, the pictures of a finished run are drawn anew, over no file that its record does not know.

    Raises:
        UsageError: such a file lies where a picture would.
    """
    from repsim.tables import RECORD, load_record, recording, save_record

    file = directory / RECORD
    record = load_record(file) if file.exists() else {}
    listed = record.get("files")
    older = listed is None and "repsim-vision" in record.get("versions", {})  # older versions kept no list

    def allow(path: Path) -> None:
        name = path.relative_to(directory).as_posix()
        if not older and name not in (listed or ()) and os.path.lexists(path):
            raise UsageError(f"{directory} holds {name}, which repsim does not know as its own; move it away")

    with recording(allow) as written:
        try:
            yield
        finally:
            names = {path.relative_to(directory).as_posix() for path in written}
            if listed is not None and not names <= {*listed}:
                save_record({**record, "files": sorted({*listed, *names})}, file)


def draw(directory: Path, name: str, quiet: bool, **options: Any) -> None:
    """Draw a run's pictures from its tables, and print the paths of tables, arrays, record and pictures.

    Args:
        name: of the study, see `repsim.plots.pictures`.
        options: likewise.
    """
    from repsim.plots.pictures import drawing, pictures
    from repsim.tables import RECORD, load_arrays, load_record, load_table

    drawn = drawing(name)
    tables = {file: load_table(directory / f"{file}.csv", columns) for file, columns in drawn.tables.items()}
    present = [file for file in drawn.arrays if (directory / f"{file}.npz").exists()]
    arrays = {file: load_arrays(directory / f"{file}.npz") for file in present}
    columns = ("model", "model_a", "model_b")
    models = [
        model for table in tables.values() for column in columns if column in table for model in table[column].unique()
    ]
    record = load_record(directory / RECORD) if (directory / RECORD).exists() else {}
    figures = pictures(name, tables, arrays, record, **options)
    if not is_first():
        return
    kept = [*(f"{file}.csv" for file in drawn.tables), *(f"{file}.npz" for file in arrays), RECORD]
    written = [directory / file for file in kept if (directory / file).exists()]
    for file, figure in figures.items():
        written += finished(directory, file, figure, models, quiet)
    say("wrote " + ", ".join(map(str, written)), quiet)


def untrained(directory: Path, models: list[str]) -> bool:
    """Whether some network is untrained, by the run's record; for tables without a record, by the names in them."""
    from repsim.tables import RECORD, load_record

    record = directory / RECORD
    return load_record(record, "random")["random"] if record.exists() else any("-random" in name for name in models)


def finished(directory: Path, name: str, figure: Any, models: list[str], quiet: bool) -> list[Path]:
    """Save a figure under its name, and of untrained networks once more with `random` in it; the paths of both."""
    from repsim.plots.style import save, undrawn

    written = save(figure, directory / name, untrained=untrained(directory, models))
    if boxes := undrawn(figure):
        say(f"the font of the pictures has no {boxes!r}: boxes stand for these (matplotlib's font.family)", quiet)
    return written
