"""What surveys of networks have in common: attempts that may be refused or fail, and tables that grow row by row."""

from __future__ import annotations

import csv
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import repsim as rs


class Attempts:
    """What can be done with a network, and why the rest cannot."""

    def __init__(self) -> None:
        self.applies: list[str] = []
        self.refused: list[str] = []

    def __call__(self, what: str, run: Callable[[], Any]) -> Any:
        """What it gives; None if it is refused or fails."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = run()
        except rs.RepsimError as error:
            self.refused.append(f"{what}: {error}")
            return None
        except Exception:
            self.refused.append(f"{what} failed: {traceback.format_exc().strip().splitlines()[-1]}")
            return None
        self.applies.append(what)
        return result


def rows_of(table: Path) -> list[dict[str, str]]:
    """Those of a table, if it is there."""
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return list(csv.DictReader(file))
