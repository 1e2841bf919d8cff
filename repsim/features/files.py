"""Reading features from files: those of `repsim extract`, and formats of further tools."""

from __future__ import annotations

import json
import math
import os
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors import SafetensorError

from repsim.errors import RepsimError, UsageError, first_line, one_of
from repsim.features.arrays import Features, Known, Stacked
from repsim.tables import regular

INDEX = "features.json"
"""Name of the index in a folder of `repsim extract`."""
MADE_BY = "repsim"
IDS = "ids"
"""The array, or the entry of metadata, that holds ids in `.npz`, HDF5 and safetensors."""
NAMES = "file_names.txt"
"""Where thingsvision writes the images of its `features.npy`, a line for each row."""
SPLIT = re.compile(r"features_\d+")
"""Names of thingsvision for parts of features that were too large to save at once; their rows follow each other."""

Read = tuple[dict[str, Any], list[str] | None]
"""Arrays by the names of layers, and ids."""


def load_features(path: str | os.PathLike[str], *, model: str | None = None, name: str | None = None) -> Features:
    """Features from a file or a folder; arrays are mapped to memory where their format allows it.

    Args:
        path: a folder that `repsim extract` made, or one of thingsvision (`features.npy` and `file_names.txt`); a
            file `.npy` (one layer), `.npz` or `.safetensors` (a layer for each array), `.h5` or `.hdf5` (a layer for
            each data set, or a Dataset of rsatoolbox). An array `ids` of text holds ids, in safetensors an entry `ids`
            of its metadata, a list as JSON. Of rsatoolbox's descriptors of observations, the one of text that tells all
            apart does.
        model: the network, in a folder with features of several.
        name: their name in tables; None: the name of the network or the file.

    Raises:
        UsageError: there is nothing there, or no features.
        RepsimError: they cannot be read.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/it.npy", np.zeros((100, 20), np.float32))
    ...     load_features(f"{folder}/it.npy")
    Features 'it': 100 images without ids; it (20)
    """
    path = Path(path).expanduser()
    try:
        if (path / INDEX).is_file():
            return _extracted(path, model, name)
        if model is not None:
            raise UsageError(f"{path} does not say which networks its features come from, so {model!r} chooses nothing")
        file = _inside(path) if path.is_dir() else path
        if not os.path.lexists(file):
            raise UsageError(f"there are no features at {path}; give a file, or a folder that `repsim extract` made")
        suffix = file.suffix.lower()
        if suffix not in READERS:
            raise UsageError(f"{path} must be features in one of {', '.join(READERS)}, or a folder of `repsim extract`")
        layers, ids = READERS[suffix](regular(file))
    except RepsimError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise RepsimError(f"cannot read features from {path}: {reason}") from None
    if ids is None and file.stem == "features" and (file.parent / NAMES).is_file():
        ids = regular(file.parent / NAMES).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return Features(layers, ids, name or path.stem, source=str(path))


def _inside(folder: Path) -> Path:
    """The file of thingsvision's in a folder."""
    present = [folder / f"features{suffix}" for suffix in (".npy", ".hdf5") if (folder / f"features{suffix}").is_file()]
    if len(present) != 1:
        raise UsageError(
            f"{folder} must hold {INDEX}, which `repsim extract` writes last, or one features.npy or features.hdf5 of "
            "thingsvision; name the file of the features itself"
        )
    return present[0]


# Files of repsim


def read_index(folder: Path) -> dict[str, Any]:
    """Read the index of a folder of `repsim extract`.

    Raises:
        RepsimError: it cannot be read, or is not repsim's.
    """
    file = folder / INDEX
    try:
        index = json.loads(regular(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RepsimError(f"cannot read {file}: {first_line(error)}") from None
    if not isinstance(index, dict) or index.get("made_by") != MADE_BY or not index.get("networks"):
        raise RepsimError(f"cannot read {file}: it is not an index of features that repsim wrote")
    return index


def _extracted(folder: Path, model: str | None, name: str | None) -> Features:
    index = read_index(folder)
    networks = {network["name"]: network for network in index["networks"]}
    if model is None and len(networks) > 1:
        if name not in networks:
            raise UsageError(f"{folder} holds features of {', '.join(networks)}; choose one: DIR:MODEL (model=...)")
        model = name
    if model is not None and model not in networks:
        raise one_of(f"network in {folder}", model, networks)
    network, images = networks[model or next(iter(networks))], index["images"]
    layers, known = {}, {}
    for layer in network["layers"]:
        array = np.load(regular(folder / _within(layer["file"])), mmap_mode="r", allow_pickle=False)
        if list(array.shape) != layer["shape"] or array.dtype.name != layer["dtype"]:
            raise RepsimError(
                f"cannot read features from {folder}: {layer['file']} is {array.dtype} {array.shape}, and {INDEX} says "
                f"{layer['dtype']} {tuple(layer['shape'])}; extract them again"
            )
        layers[layer["layer"]] = array
        known[layer["layer"]] = Known.of(layer, array.shape[1:])
    origin = {key: network[key] for key in ("name", "source", "weights", "weights_sha256") if key in network}
    numbered = [images["numbered_in"]] if images["numbered_in"] else []
    named = {"source": str(folder), "known": known, "of": origin, "numbered_in": numbered}
    return Features(layers, images["ids"], name or network["name"], **named)


def _within(file: str) -> str:
    """A path that leads nowhere else."""
    if Path(file).is_absolute() or ".." in Path(file).parts:
        raise RepsimError(f"{INDEX} names {file!r}, which is not in its folder")
    return file


# Files of further tools


def _npy(file: Path) -> Read:
    return {file.stem: np.load(file, mmap_mode="r", allow_pickle=False)}, None


def _npz(file: Path) -> Read:
    try:
        with zipfile.ZipFile(file) as archive:
            arrays = {
                entry.filename.removesuffix(".npy"): _member(file, archive, entry) for entry in archive.infolist()
            }
    except zipfile.BadZipFile as error:
        raise ValueError(first_line(error)) from None
    return _apart(arrays)


def _member(file: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """An array of an `.npz`, mapped to memory where it was not compressed."""
    with archive.open(member) as opened:
        version = np.lib.format.read_magic(opened)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(opened)
        header = opened.tell()
    if member.compress_type == zipfile.ZIP_STORED and dtype.kind in "biuf" and math.prod(shape):
        with file.open("rb") as opened:
            opened.seek(member.header_offset + 26)  # of the lengths of the member's name and extra field
            lengths = struct.unpack("<HH", opened.read(4))
        start = member.header_offset + 30 + sum(lengths)
        return np.memmap(file, dtype, "r", start + header, shape, "F" if fortran else "C")
    with archive.open(member) as opened:
        return np.lib.format.read_array(opened, allow_pickle=False)


SAFETENSORS = {
    **{f"F{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    "BOOL": np.dtype(bool),
}


def _safetensors(file: Path) -> Read:
    try:
        with safetensors.safe_open(file, framework="pt") as opened:  # which checks the header
            ids = json.loads((opened.metadata() or {}).get(IDS, "null"))
            names = list(opened.keys())
            with file.open("rb") as raw:
                size = int.from_bytes(raw.read(8), "little")
                header = json.loads(raw.read(size))
            arrays = {}
            for name in names:
                entry = header[name]
                if entry["dtype"] in SAFETENSORS and math.prod(entry["shape"]):
                    start = 8 + size + entry["data_offsets"][0]
                    arrays[name] = np.memmap(file, SAFETENSORS[entry["dtype"]], "r", start, tuple(entry["shape"]))
                else:  # bfloat16, which numpy has not
                    arrays[name] = opened.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(first_line(error)) from None
    return arrays, ids


def _hdf5(file: Path) -> Read:
    try:
        import h5py
    except ImportError:
        raise UsageError(
            f"features in HDF5 need h5py, which is not installed, to read {file}: pip install 'repsim-vision[features]'"
        ) from None
    arrays: dict[str, Any] = {}

    def take(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            arrays[name] = _data_set(file, item)

    with h5py.File(file, "r") as opened:
        opened.visititems(take)
        if opened.attrs.get("rsatoolbox_version") is not None and "measurements" in arrays:
            return _rsatoolbox(arrays)
    if arrays and all(SPLIT.fullmatch(name) for name in arrays):
        return {"features": Stacked([arrays[name] for name in sorted(arrays)])}, None
    return _apart(arrays)


def _data_set(file: Path, data: Any) -> np.ndarray:
    """A data set of HDF5, mapped to memory where it lies in the file in one piece."""
    start = data.id.get_offset() if data.chunks is None else None
    if start is not None and data.external is None and data.dtype.kind in "iuf":
        return np.memmap(file, data.dtype, "r", start, data.shape) if data.ndim else data[()]
    return np.asarray(data.asstr(errors="surrogateescape")[()] if data.dtype.kind == "O" else data[()])


def _rsatoolbox(entries: Mapping[str, Any]) -> Read:
    """The measurements of a Dataset; its ids, if just one descriptor of its observations tells them all apart."""
    layers = {"measurements": entries["measurements"]}
    texts = [
        value
        for name, value in entries.items()
        if name.startswith("obs_descriptors/") and value.dtype.kind in "SU" and len(set(value.tolist())) == len(value)
    ]
    return layers, texts[0].tolist() if len(texts) == 1 else None


def _apart(entries: dict[str, Any]) -> Read:
    """Arrays, and the one of ids among them."""
    ids = entries.pop(IDS, None)
    return entries, None if ids is None else np.asarray(ids).ravel().tolist()


READERS: dict[str, Callable[[Path], Read]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
}
