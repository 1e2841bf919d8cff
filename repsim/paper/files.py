"""The files of each figure: a folder with its tables, arrays and record. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repsim import tables
from repsim.errors import RepsimError
from repsim.paper.exhibits import Exhibit, Made
from repsim.paper.figures import PRESETS
from repsim.tables import RECORD, load_arrays, load_record, load_table, prepare, save_arrays, save_record, save_table

COLUMNS = {
    "numbers": tables.NUMBERS,
    "cka": tables.SIMILARITY,
    "matched": tables.MATCHED,
    "attention": tables.ATTENTION,
    "heads": tables.HEADS,
    "receptive": tables.RECEPTIVE,
    "residual": tables.RESIDUAL,
    "localization": tables.LOCALIZATION,
    "localization_summary": tables.LOCALIZATION_SUMMARY,
    "probe": tables.PROBE,
    "probe_summary": tables.PROBE_SUMMARY,
}
"""Name of a table -> what must be in it."""
MAPS = "maps.npz"


def folder(exhibit: Exhibit, out: Path) -> Path:
    """Where the files of a figure lie."""
    return out / f"figure-{exhibit.number}"


def save_figure(exhibit: Exhibit, made: Made, out: Path, preset: str, of_run: dict[str, Any]) -> None:
    """The tables, arrays and record of one figure, in a folder of its own, from which an earlier one's are removed.

    Args:
        of_run: what the run's record says of all its figures: command, date, images, random.
    """
    where = prepare(folder(exhibit, out))
    pictures = [f"{where.name}{of}{suffix}" for of in ("", "-random") for suffix in (".png", ".pdf")]
    for old in (*_files(where), *pictures):
        (where / old).unlink(missing_ok=True)
    for name, table in made.tables.items():
        save_table(table, where / f"{name}.csv")
    if made.arrays:
        save_arrays(made.arrays, where / "maps.npz")
    record = {"number": exhibit.number, "title": exhibit.title, "paper_shows": exhibit.shows, "preset": preset}
    networks = {"networks": exhibit.networks[preset], "differs": exhibit.note(preset)}
    files = [*(f"{name}.csv" for name in made.tables), *([MAPS] if made.arrays else [])]
    save_record({**record, **networks, **of_run, "files": files}, where / RECORD)


def _files(where: Path) -> list[str]:
    """The tables and arrays of the figure in a folder: those that its record lists, or that it may have had."""
    possible = [*(f"{name}.csv" for name in COLUMNS), MAPS]
    if not (where / RECORD).exists():
        return []
    try:
        listed = load_record(where / RECORD).get("files")
    except RepsimError:
        return possible
    listed = possible if listed is None else listed
    return [name for name in listed if isinstance(name, str) and Path(name).name == name]


def load_figure(exhibit: Exhibit, out: Path) -> Made | None:
    """What was saved of a figure; None if it was not."""
    where = folder(exhibit, out)
    if not (where / RECORD).exists():
        return None
    record = load_record(where / RECORD, "random", "preset")
    if record["preset"] not in PRESETS:
        must = f"its preset must be {' or '.join(PRESETS)}, got {record['preset']!r}"
        raise RepsimError(f"cannot read {where / RECORD}: {must}")
    files = [where / name for name in sorted(_files(where)) if name.endswith(".csv") and (where / name).exists()]
    found = {file.stem: load_table(file, COLUMNS.get(file.stem, [])) for file in files}
    maps = where / MAPS
    return Made(found, load_arrays(maps) if maps.exists() else {}, record)


def picture_file(exhibit: Exhibit, made: Made, out: Path) -> Path:
    """Where its picture is, without the suffix; untrained networks are named in it."""
    return folder(exhibit, out) / f"figure-{exhibit.number}{'-random' if made.record['random'] else ''}"
