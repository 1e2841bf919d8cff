"""Tables and run records: their columns, and files that appear whole or not at all. No torch.

A column means the same in every table (docs/tables.md). Tables of layers have their `depth`; the standard
error of a value is `<value>_se`, or `se` in a table of one value.

Names are text. A layer called `0.10`, `NA` or `1e5`, with commas, quotes or line breaks in it, is read from a file as
it was written into it: which columns hold names and words is stated in `TEXT`, and nothing is guessed from what they
look like.
"""

from __future__ import annotations

import csv
import errno
import functools
import json
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from repsim.errors import RepsimError, UsageError, first_line

SIMILARITY = [
    *("model_a", "layer_a", "kind_a", "index_a", "depth_a"),
    *("model_b", "layer_b", "kind_b", "index_b", "depth_b"),
    *("cka", "se", "skewed"),
]
"""One row per ordered pair of layers."""

MATCHED = ["model_a", "model_b", "layer", "index", "depth", "cka", "se", "skewed"]
"""One row per network compared with `model_a`, the reference, and layer: the same layer of both."""

ATTENTION = [
    *("model", "layer", "depth", "block", "head"),
    *("distance_px", "distance_px_se", "entropy", "cls_share", "self_share"),
]
"""One row per attention head."""
ATTENTION_MAPS = ["model", "image"]
"""One row per image."""

RECEPTIVE = [
    *("model", "layer", "index", "depth"),
    *("radius50_px", "radius50_px_se", "radius95_px", "radius95_px_se", "centre_share", "centre_share_se"),
]
"""One row per layer."""

LOCALIZATION = [
    *("model", "layer", "index", "depth"),
    *("token_row", "token_col", "patch_row", "patch_col", "cka", "se", "skewed"),
]
"""One row per token and input patch."""
LOCALIZATION_SUMMARY = ["model", "layer", "index", "depth", "where", "own_minus_rest", "se"]
"""One row per layer and `where`."""

HEADS = ["model_a", "heads", "distance_px", "model_b", "layer_b", "index_b", "depth_b", "cka", "cka_se"]
"""One row per window of attention heads and layer."""
HEAD_CORRELATION = ["model_a", "model_b", "layer_b", "index_b", "depth_b", "spearman", "low", "high", "p_permuted"]
"""One row per layer."""

RESIDUAL = [
    *("model", "layer", "depth", "block", "sublayer", "token"),
    *("ratio", "ratio_se", "ratio_median", "cos_output", "cos_branch", "skip_norm", "branch_norm"),
]
"""One row per residual sum and token."""
OUTLIERS = [*RESIDUAL[:6], "share", "times_median"]
"""One row per residual sum and token whose norm on the skip connection stands out."""

LESION = [
    *("model", "removed", "block", "agreement", "kl", "accuracy"),
    *("layer", "index", "depth", "cka", "cka_se"),
]
"""One row per lesion and later layer; agreement, kl and accuracy are the lesion's."""

PROBE = [
    *("model", "layer", "index", "depth", "aggregation", "token_row", "token_col"),
    *("shots", "seed", "l2", "accuracy"),
]
"""One row per layer, aggregation (of `token`: position) and draw of training images."""
PROBE_SUMMARY = [*PROBE[:8], "seeds", "accuracy", "se", "df"]
"""One row per probe: mean over its draws, with a standard error over these and test images, its degrees of freedom."""
NEIGHBOURS = [
    *(*PROBE[:5], "images", "k"),
    *("knn_accuracy", "knn_accuracy_se", "soft_loss", "soft_loss_se", "temperature"),
]
"""One row per layer and aggregation."""

COMPARE = ["measure", *SIMILARITY[:10], "value", "se", "df", "low", "high", "null", "null_95", "untrained"]
"""One row per measure and ordered pair of layers."""
COMPARE_NETWORKS = [
    *("measure", "model_a", "model_b", "df"),
    *("last", "last_se", "last_low", "last_high", "best", "best_se", "best_low", "best_high"),
]
"""One row per measure and ordered pair of networks."""
COMPARE_MAP = ["measure", "model", "x", "y", "x_se", "y_se", "xy_cov", "df", "stress"]
"""One row per measure and network."""

SENSITIVITY = ["measure", "model", "layer", "index", "depth", "change", "amount", "value"]
"""One row per measure, layer, change and amount."""

NUMBERS = ["key", "models", "label", "value", "low", "high", "df", "seeds", "sd_seeds"]
"""One row per number that the paper makes a claim about: its quantity (`key`, by which claims find it), its networks
(`models`, a JSON list of names), both in words (`label`), its 95 % interval, if there is one, the degrees of freedom of
the interval, and, for a ViT that was trained several times, the spread over its training runs."""

DATA_SCALE = ["network", "quantity", "layers", "value", "se", "df", "architecture"]
UNIFORMITY = ["weights", "seed", "vit", "vit_se", "resnet", "resnet_se", "difference", "difference_se"]
TRAINING = ["name", "architecture", "task", "images", "seed", "steps", "test_accuracy", "minutes", "device"]
"""These three are written by `analyses/`."""

TABLES = {
    "cka": SIMILARITY,
    "matched": MATCHED,
    "attention": ATTENTION,
    "attention_maps": ATTENTION_MAPS,
    "heads": HEADS,
    "heads_correlation": HEAD_CORRELATION,
    "residual": RESIDUAL,
    "residual_outliers": OUTLIERS,
    "receptive": RECEPTIVE,
    "receptive_proxy": RECEPTIVE,
    "localization": LOCALIZATION,
    "localization_summary": LOCALIZATION_SUMMARY,
    "lesion": LESION,
    "probe": PROBE,
    "probe_summary": PROBE_SUMMARY,
    "neighbours": NEIGHBOURS,
    "compare": COMPARE,
    "networks": COMPARE_NETWORKS,
    "networks_map": COMPARE_MAP,
    "sensitivity": SENSITIVITY,
    "numbers": NUMBERS,
    "data_scale": DATA_SCALE,
    "uniformity": UNIFORMITY,
    "training": TRAINING,
}
"""Name of a file without `.csv` -> its columns; docs/tables.md explains them."""
TEXT = frozenset(
    [
        *("model", "model_a", "model_b", "layer", "layer_a", "layer_b", "kind_a", "kind_b", "heads"),
        *("measure", "change", "removed", "where", "sublayer", "token", "aggregation", "shots"),
        *("key", "models", "label", "claim", "source", "direction", "paper", "verdict", "why", "verdict_holm"),
        *("name", "architecture", "task", "device", "network", "quantity", "layers", "weights"),
    ]
)
"""The columns that hold names and words, in whatever table; all others hold numbers. The last line is of `analyses/`.

Some hold numbers and words: `token` (`cls` or a position), `shots` (a number or `all`), `heads` (numbers with blanks).
"""
MISSING = ["", "nan", "NaN"]
"""Texts for a missing number in a file; repsim writes the first."""

RECORD = "run.json"


def prepare(directory: str | os.PathLike[str]) -> Path:
    """Make the output directory, and find out before anything runs whether it can be written to."""
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        if error.errno not in FULL:  # it may have room again when there is something to write
            raise RepsimError(
                f"cannot write into {directory}: {why(error, directory)}; choose another directory with --out"
            ) from None
    return directory


FULL = (errno.ENOSPC, errno.EDQUOT)


def why(error: OSError, place: Path) -> str:
    """The error of a file in words; for a full disk, with its place and free space."""
    if error.errno not in FULL:
        return error.strerror or str(error)
    return full(place)


def full(place: Path, needed: int = 0) -> str:
    """The sentence on a full disk, with its free space and, if known, the space that is needed."""
    wants = f", {needed / 1e6:.1f} MB are needed" if needed else ""
    try:
        folder = next(folder for folder in (place, *place.parents) if folder.exists())
        free = f"{shutil.disk_usage(folder).free / 1e6:.1f} MB"
    except OSError:
        return f"the disk of {place} is full{wants}"
    return f"the disk of {place} is full ({free} free{wants})"


@functools.cache
def _writer(process: int) -> str:
    """A name for the files of one process, unique among all processes."""
    return uuid4().hex[:12]


def writer() -> str:
    """The name that this process gives to its unfinished files, `.repsim-NAME-...`."""
    return _writer(os.getpid())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place if all goes well, and vanishes if not."""
    part = path.with_name(f".repsim-{writer()}-{path.stem}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


_WRITTEN: ContextVar[set[Path] | None] = ContextVar("written", default=None)
_ALLOW: ContextVar[Callable[[Path], None] | None] = ContextVar("allow", default=None)


@contextmanager
def recording(allow: Callable[[Path], None] | None = None) -> Iterator[set[Path]]:
    """While active, every result that is written is added to a set.

    Args:
        allow: called with each before it is written; raises where it must not be.
    """
    files: set[Path] = set()
    before, allowed = _WRITTEN.set(files), _ALLOW.set(allow)
    try:
        yield files
    finally:
        _WRITTEN.reset(before)
        _ALLOW.reset(allowed)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """`replacing`, for results: an error advises the user."""
    if (allow := _ALLOW.get()) is not None:
        allow(path)
    try:
        with replacing(path) as part:
            yield part
    except OSError as error:
        raise RepsimError(
            f"cannot write {path}: {why(error, path.parent)}; choose another directory with --out"
        ) from None
    if (files := _WRITTEN.get()) is not None:
        files.add(path)


def place(part: Path, path: Path) -> None:
    """Move a whole file on the same disk to the place of a result; an error advises the user."""
    if (allow := _ALLOW.get()) is not None:
        allow(path)
    try:
        os.replace(part, path)
    except OSError as error:
        raise RepsimError(
            f"cannot write {path}: {why(error, path.parent)}; choose another directory with --out"
        ) from None
    if (files := _WRITTEN.get()) is not None:
        files.add(path)


def save_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV; `load_table` reads the same table, but for digits of numbers after the twelfth."""
    # The csv module quotes a carriage return only from Python 3.13 on, and unquoted it ends the row.
    names = [column for column in table if column in TEXT]
    returns = any("\r" in str(name) for column in names for name in table[column].unique())
    quoting = csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
    with whole(path) as part:
        try:
            table.to_csv(part, index=False, float_format="%.12g", quoting=quoting, errors=SURROGATES)
        except csv.Error:
            raise RepsimError(
                f"cannot write {path}: a name in it holds a NUL, which Python before 3.11 cannot write into a CSV "
                "file; give another name"
            ) from None


SURROGATES = "surrogatepass"
"""File names that are no UTF-8 are text with lone surrogates in Python; with this they too come back as they were."""


def save_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Write arrays under their names as `np.savez_compressed` does, which takes some names for arguments of its own."""
    for name in arrays:
        if "\0" in name or not _encodes(name):
            raise RepsimError(f"cannot write {path}: no file inside it can be called {name!r}")
    with whole(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as file:
        for name, array in arrays.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def _encodes(name: str) -> bool:
    return name == name.encode("utf-8", "replace").decode()


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read arrays of `save_arrays` or numpy, by name; `np.load` itself drops `.npy` at the end of a name."""
    try:
        with zipfile.ZipFile(regular(path)) as file:
            arrays = {}
            for name in file.namelist():
                with file.open(name) as member:
                    arrays[name.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
            return arrays
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RepsimError(f"cannot read {path}: {error}") from None


def save_record(record: dict[str, Any], path: Path) -> None:
    """Write the record of a run."""
    save_text(json.dumps(record, indent=2, default=str) + "\n", path)


RECORDED = {"random": bool, "preset": str, "notices": list, "images": dict, "files": list, "versions": dict}
"""Entry of a record that is read again -> its type."""


def load_record(path: Path, *needed: str) -> dict[str, Any]:
    """A saved record.

    Args:
        path: the JSON file.
        needed: entries that must be in it.

    Raises:
        RepsimError: it cannot be read, or lacks what is needed.
    """
    try:
        record = json.loads(regular(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RepsimError(f"cannot read {path}: {first_line(error)}") from None
    if not isinstance(record, dict):
        raise RepsimError(f"cannot read {path}: a run's record is a JSON object, this is a {type(record).__name__}")
    if missing := [name for name in needed if name not in record]:
        raise RepsimError(f"{path} lacks {', '.join(missing)}; give the directory of a finished run")
    for name, kind in RECORDED.items():
        if not isinstance(record.get(name, kind()), kind):
            raise RepsimError(f"cannot read {path}: {name!r} must be a {kind.__name__}, got {record[name]!r}")
    return record


def save_text(text: str, path: Path) -> None:
    """Write text in UTF-8 with its line breaks as they are; characters that UTF-8 lacks are written as `\\udcff`."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def check_own(path: Path, begins: str) -> None:
    """Check that a path is free, or holds a file that begins as repsim's does.

    Raises:
        UsageError: the file begins differently, so it is the user's own.
    """
    if not os.path.lexists(path):
        return
    try:
        with regular(path).open("rb") as file:
            own = file.read(len(begins.encode())) == begins.encode()
    except OSError as error:
        raise RepsimError(f"cannot read {path}: {error.strerror}") from None
    if not own:
        raise UsageError(f"repsim does not know {path} as its own; move it away")


def load_table(path: str | os.PathLike[str], columns: Sequence[str] = ()) -> pd.DataFrame:
    """A saved table: names as they stand in the file (`TEXT`), numbers as numbers, NaN only where a number is missing.

    Args:
        path: the CSV file.
        columns: columns that must be in it.

    Raises:
        UsageError: there is no such file.
        RepsimError: it is no table, lacks a column, or holds words where numbers must be.
    """
    path = regular(Path(path))
    try:
        names = pd.read_csv(path, nrows=0, encoding_errors=SURROGATES).columns
        numbers = [name for name in names if name not in TEXT]
        table = pd.read_csv(
            path,
            dtype={name: str for name in names if name in TEXT},
            keep_default_na=False,
            na_values=dict.fromkeys(numbers, MISSING),
            encoding_errors=SURROGATES,
        )
    except FileNotFoundError:
        raise UsageError(f"there is no {path.name} in {path.parent}; give the directory of a finished run") from None
    except (OSError, ValueError) as error:
        raise RepsimError(f"cannot read {path}: {error}") from None
    if not isinstance(table.index, pd.RangeIndex):
        raise RepsimError(f"cannot read {path}: its rows have more fields than its first line has names")
    missing = [column for column in columns if column not in table]
    if missing:
        raise RepsimError(f"{path} lacks the columns {', '.join(missing)}")
    for column in set(columns) - TEXT:
        if len(table) and (not is_numeric_dtype(table[column]) or is_bool_dtype(table[column])):
            raise RepsimError(f"cannot read {path}: its column {column} holds words, and it must hold numbers")
    return table


# Files, before they are opened: to open a pipe is to wait, and a device may have no end.

KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a directory",
}
"""Kinds of things other than regular files that may be at a path, in words."""


def kind(path: str | os.PathLike[str]) -> str | None:
    """The thing at a path that is no regular file, in words; None: a regular file, or nothing."""
    try:
        return KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    except (OSError, ValueError):
        return None


def regular(path: Path) -> Path:
    """The path, unless something other than a regular file is there; opening it reveals a missing file.

    Raises:
        RepsimError: it is a pipe, a device or a directory.
    """
    if instead := kind(path):
        raise RepsimError(f"cannot read {path}: it must be a regular file, and it is {instead}")
    return path
