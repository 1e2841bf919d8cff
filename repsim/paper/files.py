"""The files of figures: of each a folder with its tables, arrays, record and picture; of all, claims. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repsim import plots, tables
from repsim.errors import RepsimError, UsageError
from repsim.paper.claims import CLAIMS, OWN_PAGE, OWN_TABLE, Numbers, check, markdown
from repsim.paper.exhibits import Exhibit, Made
from repsim.paper.figures import FIGURES, PRESETS
from repsim.paper.roles import OWN
from repsim.tables import (
    RECORD,
    check_own,
    load_arrays,
    load_record,
    load_table,
    prepare,
    save_arrays,
    save_record,
    save_table,
    save_text,
)

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
"""Name of a table -> its columns."""
MAPS = "maps.npz"


def folder(exhibit: Exhibit, out: Path) -> Path:
    """Where the files of a figure lie."""
    return out / f"figure-{exhibit.number}"


def save_figure(exhibit: Exhibit, results: Made, out: Path, of_run: dict[str, Any]) -> list[Path]:
    """The tables, arrays and record of one figure, in a folder of its own, from which an earlier one's are removed.

    Args:
        of_run: entries for the record that all figures of the run share.

    Returns:
        The files.
    """
    directory = prepare(folder(exhibit, out))
    pictures = [f"{directory.name}{ending}{suffix}" for ending in ("", "-random") for suffix in (".png", ".pdf")]
    for old in (*_files(directory), *pictures):
        (directory / old).unlink(missing_ok=True)
    for name, table in results.tables.items():
        save_table(table, directory / f"{name}.csv")
    if results.arrays:
        save_arrays(results.arrays, directory / "maps.npz")
    files = [*(f"{name}.csv" for name in results.tables), *([MAPS] if results.arrays else [])]
    save_record({**results.record, **of_run, "files": files}, directory / RECORD)
    return [directory / name for name in (*files, RECORD)]


def _files(folder: Path) -> list[str]:
    """Files of the tables and arrays of the figure in a folder, by its record, or else by all possible names."""
    possible = [*(f"{name}.csv" for name in COLUMNS), MAPS]
    if not (folder / RECORD).exists():
        return []
    try:
        listed = load_record(folder / RECORD).get("files")
    except RepsimError:
        return possible
    listed = possible if listed is None else listed
    return [name for name in listed if isinstance(name, str) and Path(name).name == name]


def load_figure(exhibit: Exhibit, out: Path) -> Made | None:
    """The saved tables and arrays of a figure; None if it was not saved."""
    directory = folder(exhibit, out)
    if not (directory / RECORD).exists():
        return None
    record = load_record(directory / RECORD, "random", "preset")
    if record["preset"] not in (*PRESETS, OWN):
        must = f"its preset must be {', '.join(PRESETS)} or {OWN}, got {record['preset']!r}"
        raise RepsimError(f"cannot read {directory / RECORD}: {must}")
    files = [
        directory / name for name in sorted(_files(directory)) if name.endswith(".csv") and (directory / name).exists()
    ]
    tables = {file.stem: load_table(file, COLUMNS.get(file.stem, [])) for file in files}
    maps = directory / MAPS
    return Made(tables, load_arrays(maps) if maps.exists() else {}, record)


def picture_file(exhibit: Exhibit, results: Made, out: Path) -> Path:
    """Where its picture is, without the suffix; untrained networks are named in it."""
    return folder(exhibit, out) / f"figure-{exhibit.number}{'-random' if results.record['random'] else ''}"


def draw_figures(out: Path, wanted: Sequence[Exhibit] = ()) -> list[Path]:
    """Draw the pictures of figures from their tables; of all that are there, unless some are wanted.

    Returns:
        The pictures.

    Raises:
        UsageError: there are no figures, or a wanted one is missing.
    """
    drawn: list[Path] = []
    for exhibit in wanted or FIGURES.values():
        figure = load_figure(exhibit, out)
        if figure is None and wanted:
            raise UsageError(f"there is no figure {exhibit.number} in {out}; make it first")
        if figure is not None:
            drawn += plots.save(
                exhibit.draw(figure, exhibit.caption(figure.record)), picture_file(exhibit, figure, out)
            )
    if not drawn:
        raise UsageError(f"there are no figures in {out}; give the directory of a finished run")
    return drawn


def numbers_of(figures: Sequence[tuple[Exhibit, Made]]) -> dict[str, Numbers]:
    """The numbers of the figures that have claims."""
    claimed = {claim.figure for claim in CLAIMS}
    return {
        exhibit.number: Numbers(figure.tables["numbers"], figure.record["random"])
        for exhibit, figure in figures
        if exhibit.number in claimed
    }


def check_claims_own(directory: Path) -> None:
    """Raise `UsageError` where claims are to be written, and a file lies there that is not repsim's."""
    check_own(directory / "claims.csv", OWN_TABLE)
    check_own(directory / "claims.md", OWN_PAGE)


def save_claims(directory: Path) -> list[Path]:
    """Check the claims against the figures in a directory, and write `claims.csv` and `claims.md` into it.

    Raises:
        UsageError: there are no numbers in it.
    """
    table = check(directory)
    check_claims_own(directory)
    save_table(table, prepare(directory) / "claims.csv")
    save_text(markdown(table), directory / "claims.md")
    return [directory / "claims.csv", directory / "claims.md"]
