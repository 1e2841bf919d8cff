"""Features as arrays with a row for each image, and the stand-in for a network in a pass over images."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repsim.errors import RepsimError, UsageError
from repsim.networks.models import Network, Stands
from repsim.networks.tokens import Reading, Tokens

HASHED = 2**30
"""Bytes of arrays in files up to which they are hashed; of more, the files' names, sizes and times of change are."""
CHUNK = 2**24
"""Bytes that are read at once."""


@dataclass(frozen=True)
class Known:
    """The origin of a layer's features, where repsim took them from a network."""

    kind: str
    depth: float
    tokens: Tokens
    """The tokens of the layer that they hold."""
    reading: Reading
    """Which of their axes is which."""

    def record(self) -> dict[str, Any]:
        """The entry as JSON; `of` reads it."""
        axes = {name: getattr(self.reading, name) for name in READ}
        return {"kind": self.kind, "depth": self.depth, "tokens": self.tokens, "axes": axes}

    @staticmethod
    def of(record: Mapping[str, Any], shape: tuple[int, ...]) -> Known:
        """Read a record, for an array whose rows have this shape."""
        axes = ((name, record["axes"][name]) for name in READ)
        read: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in axes}
        reading = Reading(shape=shape, batch_axis=0, **read)
        return Known(record["kind"], float(record["depth"]), record["tokens"], reading)


READ = ("channels", "positions", "order", "prefix", "names", "grid", "unknown")


@dataclass(frozen=True, eq=False, init=False)
class Features(Stands):
    """Features of images, of one layer or several: a row for each image, which may stand where a network may.

    `layer_cka`, `matched_cka` and `linear_probes` take them beside networks: responses of a brain, or features that a
    library computed of the same images.

    Args:
        layers: name of a layer -> array (n, ...) of real numbers, in memory or mapped to it; or one such array, whose
            layer is called `features`. (n,) is one number for each image.
        ids: ids of the n images, as `ImageSet.ids` has them: the id of a file is its path from the data's folder
            on. Without ids, row i is image i of the data in its own order.
        name: their name in tables.

    Raises:
        UsageError: there is no array, they are of different numbers of images, of no real numbers, or ids are not one
            for each image.

    >>> Features({"v1": np.zeros((100, 30)), "it": np.zeros((100, 20))}, name="mouse")
    Features 'mouse': 100 images without ids; v1 (30), it (20)
    """

    name: str
    layers: Mapping[str, np.ndarray]
    ids: tuple[str, ...] | None = None
    source: str = ""
    """The file or folder they were read from."""
    known: Mapping[str, Known] = field(default_factory=dict)
    """Layer -> its origin, for layers that repsim took from a network."""
    of: Mapping[str, Any] = field(default_factory=dict)
    """The record of this network."""
    numbered_in: tuple[str, ...] = ()
    """Names of the data that ids count in, where ids are numbers; see `ImageSet.numbered_in`."""

    def __init__(
        self,
        layers: Mapping[str, Any] | np.ndarray,
        ids: Iterable[str] | None = None,
        name: str = "features",
        *,
        source: str = "",
        known: Mapping[str, Known] | None = None,
        of: Mapping[str, Any] | None = None,
        numbered_in: Iterable[str] = (),
    ) -> None:
        given = layers if isinstance(layers, Mapping) else {"features": layers}
        if not given:
            raise UsageError(f"features need at least one layer, and {name!r} have none")
        arrays = {str(layer): _array(array, str(layer), name) for layer, array in given.items()}
        counts = {layer: len(array) for layer, array in arrays.items()}
        first, count = next(iter(counts.items()))
        for layer, other in counts.items():
            if other != count:
                raise UsageError(
                    f"all layers of features must be of the same images: of {name!r}, {first!r} has {count} rows and "
                    f"{layer!r} has {other}; give layers of other images as features of their own"
                )
        values = {
            "name": str(name),
            "layers": arrays,
            "ids": None if ids is None else _ids(ids, count, name),
            "source": source,
            "known": dict(known or {}),
            "of": dict(of or {}),
            "numbered_in": tuple(numbered_in),
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def __len__(self) -> int:
        return len(next(iter(self.layers.values())))

    def __repr__(self) -> str:
        shapes = ", ".join(f"{layer} ({'x'.join(map(str, array.shape[1:]))})" for layer, array in self.layers.items())
        return f"Features {self.name!r}: {len(self)} images {'with' if self.ids else 'without'} ids; {shapes}"

    def rows(self, layer: str, rows: np.ndarray) -> Tensor:
        """Some rows of a layer, (len(rows), ...), in the float32 or float64 that holds its numbers.

        Raises:
            RepsimError: there are NaN or infinite values in them.
        """
        array = self.layers[layer]
        values = torch.from_numpy(np.ascontiguousarray(array[rows], dtype=_computed_in(array.dtype)))
        finite = torch.isfinite(values).flatten(1).all(1)
        if not finite.all():
            row = int(rows[int((~finite).nonzero()[0])])
            known = f" (image {self.ids[row]!r})" if self.ids else ""
            raise RepsimError(
                f"features {self.name!r}, layer {layer!r}, hold NaN or infinite values in row {row}{known}; give "
                "features without such rows and with ids, or choose other layers"
            )
        return values

    def join(self, other: Features) -> Features:
        """Join these rows with the rows of further images, such as training with test images.

        Raises:
            UsageError: they do not have the same layers, or some have no ids, or an image is in both.
        """
        shapes, other_shapes = (
            {layer: array.shape[1:] for layer, array in item.layers.items()} for item in (self, other)
        )
        if shapes != other_shapes:
            misfit = next(layer for layer in {**shapes, **other_shapes} if shapes.get(layer) != other_shapes.get(layer))
            raise UsageError(
                f"features can only be joined where all layers have one shape in both; {misfit!r} of {self.name!r} is "
                f"{shapes.get(misfit, 'not there')} in one and {other_shapes.get(misfit, 'not there')} in the other"
            )
        if self.ids is None or other.ids is None:
            raise UsageError(f"features are joined by ids, and some of {self.name!r} have none; give ids to both")
        layers = {name: Stacked([array, other.layers[name]]) for name, array in self.layers.items()}
        both = {"source": ", ".join(filter(None, (self.source, other.source))), "known": self.known, "of": self.of}
        numbered_in = (*self.numbered_in, *other.numbered_in)
        return Features(layers, (*self.ids, *other.ids), self.name, **both, numbered_in=numbered_in)

    def called(self, name: str) -> Features:
        """The same under another name."""
        kept = {key: getattr(self, key) for key in ("source", "known", "of", "numbered_in")}
        return Features(self.layers, self.ids, name, **kept)

    def as_network(self) -> FeatureNetwork:
        weights = "random" if self.of.get("weights") == "random" else "features"
        return FeatureNetwork(Arrays(self), self.name, self.source, weights, features=self, notices=self._notices())

    def _notices(self) -> tuple[str, ...]:
        half = [layer for layer, array in self.layers.items() if array.dtype.itemsize == 2 and array.dtype.kind == "f"]
        if not half:
            return ()
        layers = "all layers" if len(half) == len(self.layers) else ", ".join(half)
        return (f"features {self.name!r} are rounded to float16: about three digits ({layers})",)

    @cached_property
    def sha256(self) -> str:
        """Hash of names, shapes, ids and values; see `hashed` for arrays in large files."""
        total = hashlib.sha256(json.dumps([self.ids, sorted(self.layers)]).encode())
        for layer in sorted(self.layers):
            for array in _parts(self.layers[layer]):
                total.update(f"{layer} {array.dtype.str} {array.shape}".encode())
                if self.hashed == "values":
                    for start in range(0, len(array), _rows_at_once(array)):
                        total.update(np.ascontiguousarray(array[start : start + _rows_at_once(array)]).data)
                elif (file := _file(array)) is not None:
                    state = os.stat(file)
                    total.update(f"{os.path.abspath(file)} {state.st_size} {state.st_mtime_ns}".encode())
        return total.hexdigest()

    @cached_property
    def hashed(self) -> str:
        """The input of the hash: `values`, or `files` where more than 1 GiB lies in files."""
        arrays = [array for layer in self.layers.values() for array in _parts(layer)]
        return "values" if sum(array.nbytes for array in arrays if _file(array)) <= HASHED else "files"

    def record(self) -> dict[str, Any]:
        """The entry of `run.json` for them."""
        return {
            "name": self.name,
            "source": self.source,
            "class": "repsim.Features",
            "weights": self.as_network().weights,
            "weights_sha256": self.sha256,
            "sha256_of": "values" if self.hashed == "values" else "names, sizes and times of change of the files",
            "images": len(self),
            "ids": self.ids is not None,
            "layers": {layer: [array.dtype.name, *array.shape[1:]] for layer, array in self.layers.items()},
            **({"of": dict(self.of)} if self.of else {}),
        }


def _array(given: Any, layer: str, name: str) -> np.ndarray:
    """Make an array (n, ...) of real numbers; a mapped array stays mapped."""
    place = f"layer {layer!r} of features {name!r}"
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        given = (given.float() if given.dtype == torch.bfloat16 else given).numpy()
    try:
        array: Any = given if isinstance(given, (np.ndarray, Stacked)) else np.asarray(given)
    except ValueError:
        raise UsageError(f"{place} must be an array (n, ...) with a row for each image, got a ragged list") from None
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{place} must hold real numbers, got {array.dtype}; give an array of floats, (n, ...)")
    if array.ndim == 0 or not math.prod(array.shape):
        raise UsageError(f"{place} must be an array (n, ...) with a row for each image, got shape {array.shape}")
    return array[:, None] if array.ndim == 1 else array


def _ids(given: Iterable[str], count: int, name: str) -> tuple[str, ...]:
    ids = tuple(id_.decode("utf-8", "surrogateescape") if isinstance(id_, bytes) else str(id_) for id_ in given)
    if len(ids) != count:
        raise UsageError(f"ids must be one for each image: features {name!r} have {count} rows, and {len(ids)} ids")
    if len(set(ids)) < count:
        twice, times = Counter(ids).most_common(1)[0]
        raise UsageError(
            f"ids must tell images apart, and {twice!r} is the id of {times} rows of features {name!r}; keep or "
            "average one row for each image"
        )
    return ids


def _computed_in(dtype: np.dtype) -> np.dtype:
    """float32 where it holds all numbers of a type, else float64."""
    return np.dtype(np.float32 if np.can_cast(dtype, np.float32) else np.float64)


class Stacked:
    """Arrays whose rows follow each other, without copying them."""

    def __init__(self, parts: Sequence[Any]) -> None:
        parts = [part for array in parts for part in _parts(array)]
        self.parts = [part[:, None] if part.ndim == 1 else part for part in parts]
        if len(shapes := {part.shape[1:] for part in self.parts}) > 1:
            raise ValueError(f"its parts have rows of several shapes: {sorted(shapes)}")
        self.shape = (sum(map(len, self.parts)), *self.parts[0].shape[1:])
        self.ndim = len(self.shape)
        self.dtype = np.result_type(*(part.dtype for part in self.parts))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        rows_out, start = np.empty((len(rows), *self.shape[1:]), self.dtype), 0
        for part in self.parts:
            inside = (rows >= start) & (rows < start + len(part))
            rows_out[inside] = part[rows[inside] - start]
            start += len(part)
        return rows_out


def _parts(array: Any) -> list[np.ndarray]:
    return array.parts if isinstance(array, Stacked) else [array]


def _file(array: np.ndarray) -> str | None:
    """The file from which an array, or the base of a view, is mapped."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and base.filename is not None:
            return os.fspath(base.filename)
        base = base.base
    return None


def _rows_at_once(array: np.ndarray) -> int:
    return max(1, CHUNK // max(array[:1].nbytes, 1))


# In a pass


class Arrays(nn.Module):
    """A module with a child for each layer, which gives the rows whose numbers it gets, (n,)."""

    def __init__(self, features: Features) -> None:
        super().__init__()
        for number, layer in enumerate(features.layers):
            self.add_module(str(number), _Rows(features, layer))

    def forward(self, rows: Tensor) -> Tensor:
        for child in self.children():
            if child._forward_hooks:  # layers without hooks are not read
                child(rows)
        return rows


class _Rows(nn.Module):
    def __init__(self, features: Features, layer: str) -> None:
        super().__init__()
        self.features, self.layer = features, layer

    def forward(self, rows: Tensor) -> Tensor:
        return self.features.rows(self.layer, rows.cpu().numpy()).to(rows.device)


class RowNumbers:
    """Stands for a transform: a pass gives features the numbers of rows instead of pixels."""

    input_size = None


@dataclass(frozen=True, eq=False)
class FeatureNetwork(Network):
    """Features in the place of a network: its layers are theirs, and its inputs are numbers of their rows, (n,)."""

    features: Features = field(kw_only=True)
    on: torch.device = torch.device("cpu")
    """Where its rows go."""

    def __post_init__(self, call: Any) -> None:
        object.__setattr__(self, "transform", self.transform or RowNumbers())

    def __repr__(self) -> str:
        count, images = len(self.features.layers), len(self.features)
        return f"FeatureNetwork {self.name!r}: features of {images} images, {count} layer{'s' * (count != 1)}"

    @property
    def input_size(self) -> tuple[int, int, int]:
        raise needs_network(self)

    @property
    def device(self) -> torch.device:
        return self.on

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers of rows."""
        return torch.int64

    def sized(self, size: tuple[int, int, int] | None) -> FeatureNetwork:
        return self

    @property
    def weights_sha256(self) -> str:
        return self.features.sha256

    @property
    def bytes_of_rows(self) -> int:
        """Bytes of the largest layer for each image, as it is read and as it is computed with."""
        return max(
            math.prod(array.shape[1:]) * (array.dtype.itemsize + _computed_in(array.dtype).itemsize)
            for array in self.features.layers.values()
        )

    def record(self) -> dict[str, Any]:
        notices = {"notices": list(self.notices)} if self.notices else {}
        return {**self.features.record(), "name": self.name, "device": str(self.device), **notices}


def needs_network(network: Network) -> UsageError:
    """The error for studies that features do not allow."""
    return UsageError(
        f"{network.name} holds features alone, and this study needs the network itself "
        "(layer_cka, matched_cka and linear_probes take features)"
    )
