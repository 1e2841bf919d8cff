"""The files of each figure: a folder with its tables, arrays and record. No torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from repsim.paper.exhibits import Exhibit, Made
from repsim.tables import RECORD, prepare, save_arrays, save_record, save_table


def folder(exhibit: Exhibit, out: Path) -> Path:
    return out / f"figure-{exhibit.number}"


def save_figure(exhibit: Exhibit, made: Made, out: Path, preset: str) -> None:
    """The tables, arrays and record of one figure, in a folder of its own."""
    where = prepare(folder(exhibit, out))
    for name, table in made.tables.items():
        save_table(table, where / f"{name}.csv")
    if made.arrays:
        save_arrays(made.arrays, where / "maps.npz")
    record = {"number": exhibit.number, "title": exhibit.title, "paper_shows": exhibit.shows, "preset": preset}
    networks = getattr(exhibit, preset)
    save_record(
        {**record, "networks": networks, "stand_in": exhibit.stand_in, "made_by": f"../{RECORD}"}, where / RECORD
    )


def load_figure(exhibit: Exhibit, out: Path) -> Made | None:
    """What was saved of a figure; None if it was not."""
    where = folder(exhibit, out)
    if not (where / RECORD).exists():
        return None
    arrays = {}
    if (where / "maps.npz").exists():
        with np.load(where / "maps.npz") as file:
            arrays = dict(file)
    return Made({file.stem: pd.read_csv(file) for file in sorted(where.glob("*.csv"))}, arrays)
