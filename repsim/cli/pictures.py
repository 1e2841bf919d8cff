"""Drawing the pictures of a run from its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repsim.cli.base import is_first
from repsim.cli.words import say

PICTURES = {
    "cka": ("SIMILARITY", "heatmap"),
    "matched": ("MATCHED", "matched"),
    "heads": ("HEADS", "head_similarity"),
    "residual": ("RESIDUAL", "residual"),
    "lesion": ("LESION", "lesion"),
}
"""Name of a table -> its columns in `tables`, and what draws it in `plots`."""


SUFFIXES = (".png", ".pdf")


def pictures(*names: str) -> list[str]:
    """The files of pictures of these names, of trained and of untrained networks."""
    return [f"{name}{of}{suffix}" for name in names for of in ("", "-random") for suffix in SUFFIXES]


def draw(directory: Path, name: str, quiet: bool) -> None:
    """Draw a run's picture from its table and say where everything is."""
    from repsim import plots, tables

    columns, plot = PICTURES[name]
    table = tables.load_table(directory / f"{name}.csv", getattr(tables, columns))
    models = [
        model for column in ("model", "model_a", "model_b") if column in table for model in table[column].unique()
    ]
    finish(directory, name, getattr(plots, plot)(table).figure, models, quiet)


def untrained(directory: Path, models: list[str]) -> bool:
    """Whether some network is, by the run's record; of tables without a record, by the names in them."""
    from repsim.tables import RECORD, load_record

    record = directory / RECORD
    return load_record(record, "random")["random"] if record.exists() else any("-random" in name for name in models)


def finish(directory: Path, name: str, figure: Any, models: list[str], quiet: bool) -> None:
    """Save a figure under its name, and once more with `random` in it for untrained networks; say where it is."""
    if not is_first():
        return
    from repsim.plots.style import save, undrawn
    from repsim.tables import RECORD

    written = save(figure, directory / name)
    if boxes := undrawn(figure):
        say(f"the font of the pictures has no {boxes!r}: boxes stand for these (matplotlib's font.family)", quiet)
    if untrained(directory, models):
        written += save(figure, directory / f"{name}-random")
    found = [*sorted(directory.glob(f"{name}*.csv")), directory / RECORD, *written]
    say("wrote " + ", ".join(str(path) for path in found if path.exists()), quiet)
