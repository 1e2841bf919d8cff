"""Tables of the tokens of a map: choosing tokens for a table, and making the table of all from arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from repsim.tables import LOCALIZATION

Grid = tuple[int, int]
PAPER_TOKENS = {
    7: [(0, 0), (2, 1), (4, 2), (4, 4)],
    14: [(0, 0), (2, 3), (2, 7), (4, 5)],
    16: [(0, 0), (2, 5), (5, 10), (5, 11)],
}
"""Side of the grid -> row and column of the tokens that the paper shows (Figures 9, 10, D.1 to D.3)."""


def paper_tokens(rows: int, columns: int) -> list[tuple[int, int]]:
    """The tokens that the paper shows for a grid; for further grids, the tokens nearest to its choice for 7 x 7."""
    if rows == columns and rows in PAPER_TOKENS:
        return PAPER_TOKENS[rows]
    return list(dict.fromkeys(((2 * r + 1) * rows // 14, (2 * c + 1) * columns // 14) for r, c in PAPER_TOKENS[7]))


def token_rows(
    model: str, layer: str, tokens: Sequence[Grid], grid: Grid, cka: np.ndarray, se: np.ndarray, skewed: np.ndarray
) -> pd.DataFrame:
    """Rows without index and depth: of each of the tokens with each patch of a grid, both (tokens, patches)."""
    count = grid[0] * grid[1]
    token = np.repeat(np.array(tokens), count, axis=0)
    patch = np.tile(np.array([divmod(j, grid[1]) for j in range(count)]), (len(tokens), 1))
    return pd.DataFrame(
        {
            "model": model,
            "layer": layer,
            "token_row": token[:, 0],
            "token_col": token[:, 1],
            "patch_row": patch[:, 0],
            "patch_col": patch[:, 1],
            "cka": np.asarray(cka).flatten(),
            "se": np.asarray(se).flatten(),
            "skewed": np.asarray(skewed).flatten(),
        }
    )


def all_tokens(arrays: Mapping[str, np.ndarray], table: pd.DataFrame, layer: str | None = None) -> pd.DataFrame:
    """The table of all tokens of one layer of each network, from the arrays beside a table of chosen tokens.

    Args:
        layer: which, of the networks that have it; None: the last of each.
    """
    parts = []
    for (model, name, index, depth), rows in table.groupby(LOCALIZATION[:4], sort=False):
        last = table.loc[table["model"] == model, "layer"].iloc[-1]
        if name != (last if layer is None else layer):
            continue
        grid = (int(rows["patch_row"].max()) + 1, int(rows["patch_col"].max()) + 1)
        tokens, *values = (arrays[f"{model}/{name}/{kind}"] for kind in ("tokens", "cka", "se", "skewed"))
        of_layer = token_rows(model, name, [tuple(at) for at in tokens], grid, *values)
        parts.append(of_layer.assign(index=index, depth=depth))
    return pd.concat(parts, ignore_index=True)[LOCALIZATION] if parts else table
