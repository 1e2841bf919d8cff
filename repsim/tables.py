"""Tables and run records: their columns, and files that appear whole or not at all. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from repsim.errors import RepsimError, UsageError

SIMILARITY = [
    *("model_a", "layer_a", "kind_a", "index_a", "depth_a"),
    *("model_b", "layer_b", "kind_b", "index_b", "depth_b"),
    *("cka", "se"),
]
"""One row per ordered pair of layers. `depth`: 0 first to 1 last; `se`: standard error of `cka`."""

MATCHED = ["model_a", "model_b", "layer", "index", "depth", "cka", "se"]
"""One row per network compared with `model_a`, the reference, and layer: the same layer of both."""

ATTENTION = [
    *("model", "layer", "block", "head"),
    *("distance_px", "distance_se", "entropy", "cls_share", "self_share"),
]
"""One row per attention head. `block` counts attention modules from 0; `entropy` is in nats."""

RECEPTIVE = ["model", "layer", "index", "depth", "radius50_px", "radius95_px", "centre_share"]
"""One row per layer: radii around the centre in pixels, share of the centre's own patch."""

LOCALIZATION = ["model", "layer", "depth", "token_row", "token_col", "patch_row", "patch_col", "cka", "se"]
"""One row per token and input patch: the token's place on its layer's grid, the patch's on the grid of patches."""
LOCALIZATION_SUMMARY = ["model", "layer", "depth", "where", "own_minus_rest", "se"]
"""One row per layer and `where` (interior, edge, corner): CKA with the own patch minus the mean over the others."""

HEADS = ["model_a", "heads", "distance_px", "model_b", "layer_b", "cka", "se"]
"""One row per window of attention heads and layer."""
HEAD_CORRELATION = ["model_a", "model_b", "layer_b", "spearman", "low", "high"]
"""Rank correlation of distance and CKA over windows, with a 95 % bootstrap interval."""

RESIDUAL = [
    *("model", "layer", "block", "sublayer", "token"),
    *("ratio", "ratio_se", "ratio_median", "cos_output", "cos_branch", "skip_norm", "branch_norm"),
]
"""One row per residual sum and token: `cls`, other tokens before the grid by name, positions by number from 0."""
OUTLIERS = ["model", "layer", "block", "sublayer", "token", "share", "times_median"]
"""Tokens on the skip connection whose norm is over a multiple of the image's median; in what `share` of images."""

LESION = ["model", "removed", "block", "agreement", "kl", "accuracy", "layer", "cka", "se"]
"""One row per lesion and later layer; agreement, kl (nats) and accuracy are the lesion's. Block -1: nothing removed."""

PROBE = [
    *("model", "layer", "index", "depth", "aggregation", "token_row", "token_col"),
    *("shots", "seed", "l2", "accuracy"),
]
"""One row per layer, aggregation (of `token`: position) and draw of `shots` training images per class, or `all`."""
PROBE_SUMMARY = [*PROBE[:8], "seeds", "accuracy", "se"]
"""Mean and standard error over seeds; `token_mean`: of all single tokens."""
NEIGHBOURS = [*PROBE[:5], "images", "k", "knn_accuracy", "knn_se", "soft_loss", "soft_se", "temperature"]
"""One row per layer and aggregation: leave-one-out nearest neighbours, soft nearest neighbour loss (nats)."""

RECORD = "run.json"


def prepare(directory: str | os.PathLike[str]) -> Path:
    """Make the output directory, and find out before anything runs whether it can be written to."""
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".writable-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise RepsimError(
            f"cannot write into {directory}: {error.strerror}; choose another directory with --out"
        ) from None
    return directory


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place if all goes well, and vanishes if not."""
    part = path.with_name(f".{path.stem}-{os.getpid()}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """`replacing`, for results: an error says what a user can do about it."""
    try:
        with replacing(path) as part:
            yield part
    except OSError as error:
        raise RepsimError(
            f"cannot write {path}: {error.strerror or error}; choose another directory with --out"
        ) from None


def save_table(table: pd.DataFrame, path: Path) -> None:
    with whole(path) as part:
        table.to_csv(part, index=False, float_format="%.12g")


def save_arrays(arrays: dict[str, np.ndarray], path: Path) -> None:
    with whole(path) as part:
        np.savez_compressed(part, **arrays)


def save_record(record: dict[str, Any], path: Path) -> None:
    save_text(json.dumps(record, indent=2, default=str) + "\n", path)


def save_text(text: str, path: Path) -> None:
    with whole(path) as part:
        part.write_text(text)


def load_table(path: Path, columns: list[str]) -> pd.DataFrame:
    """A saved table; an error that names what is wrong with it if it is not one."""
    try:
        table = pd.read_csv(path)
    except FileNotFoundError:
        raise UsageError(f"there is no {path.name} in {path.parent}; give the directory of a finished run") from None
    except (OSError, ValueError) as error:
        raise RepsimError(f"cannot read {path}: {error}") from None
    missing = [column for column in columns if column not in table]
    if missing:
        raise RepsimError(f"{path} lacks the columns {', '.join(missing)}")
    return table
