"""The common parts of surveys of networks: attempts that may be refused or fail, and tables that grow row by row."""

from __future__ import annotations

import csv
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import repsim as rs


class Attempts:
    """The studies that apply to a network, and the reasons for which others do not apply."""

    def __init__(self) -> None:
        self.applies: list[str] = []
        self.refused: list[str] = []

    def __call__(self, study: str, run: Callable[[], Any]) -> Any:
        """The result of a study; None if the study is refused or fails."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = run()
        except rs.RepsimError as error:
            self.refused.append(f"{study}: {error}")
            return None
        except Exception:
            self.refused.append(f"{study} failed: {traceback.format_exc().strip().splitlines()[-1]}")
            return None
        self.applies.append(study)
        return result


def rows_of(table: Path) -> list[dict[str, str]]:
    """The rows of a table; none if there is no table."""
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return list(csv.DictReader(file))
