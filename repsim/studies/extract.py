"""Features of layers as files: each layer's is one `.npy`, written in place while images pass."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from repsim.errors import RepsimError, UsageError, one_of
from repsim.features.arrays import CHUNK, Features, Known
from repsim.features.files import INDEX, MADE_BY, load_features
from repsim.images.image_set import Batch
from repsim.measures.running import Joined
from repsim.networks.layers import Layer, find_layers
from repsim.networks.models import Network
from repsim.networks.tokens import Tokens
from repsim.passes import processes
from repsim.passes.plan import Takes, size_in_words, tell
from repsim.passes.resume import ROWS
from repsim.passes.seen import Seen
from repsim.passes.study import Study
from repsim.passes.sweep import Passing, require_finite, sweep
from repsim.studies.results import AnyImages, AnyNetwork, Begun, begin, study
from repsim.tables import RECORD, place, prepare, save_record, save_text, why

MOST = 2560
"""Images of the bundled sample, where none are given."""
BATCH = 50
"""Images in a batch; fewer if images are few, see `passes.sweep.fitting`."""
Dtype = Literal["float32", "float16"]
LAYERS = "layers"
"""The folder of the arrays, in that of the results."""
UNDER_WAY = ".repsim-rows"
"""The folder of arrays that are not whole yet, in that of the results, of a run that does not save its sums."""
FILLING, WHOLE, MOVING, PLACED = "rows-{}.filling", "rows-{}.whole", "rows-{}.moving", "rows-placed"
"""What files under way are called (see `resume.ROWS`): of an array by its number, while rows come in, when all are in,
and while some are left out; and what is there from when all are whole."""
LONGEST = 100
"""Letters of a file's name, of a network's name and of a layer's."""


# Files


@dataclass(frozen=True)
class File:
    """Where the features of a layer are written."""

    network: Network
    layer: Layer
    shape: tuple[int, ...]
    """Shape of one image's row."""
    dtype: np.dtype
    name: str
    """Path in the folder of the results."""

    @property
    def row(self) -> int:
        """Bytes of an image."""
        return math.prod(self.shape) * self.dtype.itemsize

    def header(self, rows: int) -> bytes:
        """The header of an `.npy` with this number of rows; numpy leaves room in it for any number."""
        buffer = io.BytesIO()
        described = {"descr": self.dtype.str, "fortran_order": False, "shape": (rows, *self.shape)}
        np.lib.format.write_array_header_1_0(buffer, described)
        return buffer.getvalue()


class Writing:
    """Arrays under way, into which several processes may write.

    Args:
        out: the folder of the results.
        folder: where arrays are until they are whole.
        files: the arrays that are written.
        images: rows of each, some of which may stay empty.
    """

    def __init__(self, out: Path, folder: Path, files: Sequence[File], images: int) -> None:
        self.out, self.folder, self.files, self.images = out, folder, files, images
        self._opened: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(len(file.header(self.images)) + self.images * file.row for file in self.files)

    def begin(self, again: bool) -> None:
        """Make the files, as large as they will be.

        Args:
            again: go on with the files that are there.

        Raises:
            RepsimError: they are not there.
            UsageError: the disk has no room.
        """
        if not again:
            self.clear()
        elif (self.folder / PLACED).exists():
            return
        have = sum(path.stat().st_blocks * 512 for path in self._there())
        free = shutil.disk_usage(self.out).free
        if self.bytes - have > free:
            raise UsageError(
                f"these features take {size_in_words(self.bytes)}, and {size_in_words(free)} are free on the disk of "
                f"{self.out}; take fewer layers or images, --tokens cls or pooled, --dtype float16, or another --out"
            )
        if again:
            self._check()
            return
        with _writing(self.folder):
            self.folder.mkdir(exist_ok=True)
            for number, file in enumerate(self.files):
                header = file.header(self.images)
                with self._path(FILLING, number).open("xb") as opened:
                    opened.write(header)
                    opened.truncate(len(header) + self.images * file.row)

    def write(self, number: int, positions: Tensor, rows: np.ndarray) -> None:
        """Put rows of a file at their places, (n,); a file that has all rows stays as it is.

        Raises:
            RepsimError: the disk is full, or the file cannot be written.
        """
        path, file = self._path(FILLING, number), self.files[number]
        with _writing(path):
            if number not in self._opened:
                if (self.folder / PLACED).exists() or self._path(WHOLE, number).exists():
                    return
                self._opened[number] = os.open(path, os.O_WRONLY)
            start = len(file.header(self.images))
            for first, last in _runs(positions):
                at, data = start + int(positions[first]) * file.row, rows[first:last].data.cast("B")
                while len(data):
                    done = os.pwrite(self._opened[number], data, at)
                    at, data = at + done, data[done:]

    def finish(self, kept: np.ndarray) -> None:
        """Put all files in their places, with only the kept rows, (n,), in order."""
        placed = self.folder / PLACED
        with _writing(self.out / LAYERS):
            if not placed.exists():
                for number in range(len(self.files)):
                    if not self._path(WHOLE, number).exists():
                        self._make_whole(number, kept)
                placed.touch()
            (self.out / INDEX).unlink(missing_ok=True)  # of a run that this one replaces: it would describe these
            (self.out / LAYERS).mkdir(exist_ok=True)
        for number, file in enumerate(self.files):
            if self._path(WHOLE, number).exists():
                place(self._path(WHOLE, number), self.out / file.name)

    def close(self) -> None:
        """Write no more rows."""
        for opened in self._opened.values():
            os.close(opened)
        self._opened = {}

    def clear(self) -> None:
        """Remove files under way."""
        for path in sorted(self._there()):
            path.unlink()
        with suppress(OSError):
            self.folder.rmdir()  # fails unless it is empty

    def _make_whole(self, number: int, kept: np.ndarray) -> None:
        file, filling, moving = self.files[number], self._path(FILLING, number), self._path(MOVING, number)
        if len(kept) == self.images:
            os.replace(filling, self._path(WHOLE, number))
            return
        rows = np.memmap(filling, file.dtype, "r", len(file.header(self.images)), (self.images, *file.shape))
        at_once = max(1, CHUNK // file.row)
        with moving.open("wb") as opened:
            opened.write(file.header(len(kept)))
            for start in range(0, len(kept), at_once):
                opened.write(np.ascontiguousarray(rows[kept[start : start + at_once]]).data)
        os.replace(moving, self._path(WHOLE, number))
        filling.unlink()

    def _check(self) -> None:
        for number, file in enumerate(self.files):
            header, filling = file.header(self.images), self._path(FILLING, number)
            if self._path(WHOLE, number).exists():
                continue
            right = filling.is_file() and filling.stat().st_size == len(header) + self.images * file.row
            if right:
                with filling.open("rb") as opened:
                    right = opened.read(len(header)) == header
            if not right:
                raise RepsimError(
                    f"the rows that were written into {self.folder} before are gone or have changed; "
                    "start over with --fresh, or choose another directory with --out"
                )

    def _there(self) -> Iterator[Path]:
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise UsageError(f"{self.folder} is not a folder that repsim made; choose another directory with --out")
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if ROWS.fullmatch(path.name) and path.is_file():
                yield path

    def _path(self, kind: str, number: int) -> Path:
        return self.folder / kind.format(number)


def _runs(positions: Tensor) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) of positions that follow one another."""
    gaps = (positions.diff() != 1).nonzero().flatten() + 1
    ends = [0, *gaps.tolist(), len(positions)]
    yield from zip(ends, ends[1:])


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RepsimError(
            f"cannot write {path}: {why(error, path.parent)}; make room and give the same command again, or choose "
            "another directory with --out"
        ) from None


def named(network: str, layer: str, taken: set[str]) -> str:
    """The path of a layer's file, of letters that every disk takes; one that is taken gets a number."""
    stem = "--".join(re.sub(r"[^\w.+-]+", "-", name, flags=re.ASCII)[:LONGEST] for name in (network, layer))
    name, number = stem, 1
    while name.lower() in taken:
        number += 1
        name = f"{stem}~{number}"
    taken.add(name.lower())
    return f"{LAYERS}/{name}.npy"


# The pass


class Extraction(Study):
    """The study: the rows of layers go to files, and their positions are kept."""

    def __init__(
        self,
        networks: Sequence[Network],
        layers: Sequence[Sequence[Layer]],
        writing: Writing,
        tokens: Tokens = "all",
    ) -> None:
        self.networks, self.layers, self.writing, self.tokens = networks, layers, writing, tokens
        self.sums = Joined()

    def watch(self, index: int, network: Network, seen: Seen) -> AbstractContextManager[None]:
        return seen.rows(self.layers[index], lambda layer, x: layer.select(x, self.tokens).clone())

    def update(self, seen: Sequence[Seen], batch: Batch) -> None:
        reduced = [rows[layer.name] for rows, layers in zip(seen, self.layers) for layer in layers]
        names = [(network.name, layer.name) for network, layers in zip(self.networks, self.layers) for layer in layers]
        peaks = [rows.abs().amax().double().cpu() for rows in reduced]
        require_finite(peaks, names, batch)
        for number, (rows, file) in enumerate(zip(reduced, self.writing.files)):
            self._check_range(float(peaks[number]), file)
            if tuple(rows.shape) != (len(batch.positions), *file.shape):
                raise RepsimError(
                    f"layer {file.layer.name!r} of {file.network.name} gives features of shape {tuple(rows.shape)} in "
                    f"batch {batch.number}, where it gave {file.shape} for each image before; choose other layers"
                )
            rows = rows.float() if rows.dtype == torch.bfloat16 else rows
            self.writing.write(number, batch.positions, np.ascontiguousarray(rows.cpu().numpy(), dtype=file.dtype))
        self.sums.update(batch.positions, batch.positions)

    def takes(self, size: int, batches: int) -> Takes:
        rows = sum(math.prod(file.shape) for file in self.writing.files)
        return Takes(sums=16 * size * batches, batch=4 * size * rows, less="fewer --layers")

    @staticmethod
    def _check_range(peak: float, file: File) -> None:
        largest = float(np.finfo(file.dtype).max)
        if peak > largest:
            raise RepsimError(
                f"{file.dtype} goes to {largest:.4g}, and features of {file.network.name}, layer {file.layer.name!r}, "
                f"to {peak:.4g}; take --dtype float32, or other layers"
            )


@study
def extract_features(
    networks: AnyNetwork | Sequence[AnyNetwork],
    images: AnyImages,
    out: str | os.PathLike[str],
    *,
    layers: str | Sequence[str] = "blocks",
    tokens: Tokens = "all",
    dtype: Dtype = "float32",
    batch_size: int | None = None,
    **pass_options: Unpack[Passing],
) -> dict[str, Features]:
    """Write the features of layers into files, from one pass over the images, whatever number of networks there are.

    The folder gets an array (n, ...) for each layer, `layers/NETWORK--LAYER.npy`, whose rows are in the order of the
    choice of images; `features.json`, which says what they are and of which images; and `run.json`. Rows are written
    as they come, so memory does not grow with images; files appear under their names when they are whole.

    Args:
        networks: one or several: networks, modules or names.
        images: as `layer_cka` has it; None: 2,560 of the bundled sample.
        out: the folder; it may hold anything else, but no features.
        layers: a choice of `find_layers`, for all networks.
        tokens: the part of each layer: `all`, `cls`, `spatial` or `pooled`.
        dtype: `float32`, or `float16`, which keeps about three digits, and nothing beyond 65,504.
        batch_size: images per forward pass; a last short batch is kept. None: 50, or fewer if images are few,
            see `layer_cka`.
        pass_options: see `repsim.passes.sweep.Passing`.

    Returns:
        Features of each network, by its name, mapped to memory.

    Raises:
        UsageError: the disk has no room, or features or files of other names are in the folder.
        RepsimError: an activation is NaN, infinite or too large for float16.

    >>> import repsim as rs
    >>> from tempfile import TemporaryDirectory
    >>> images = rs.ImageSet("sample", images=16)
    >>> with TemporaryDirectory() as folder:
    ...     rs.extract_features("vit_mini", images, folder, layers=["blocks.11"], tokens="cls")
    {'vit_mini': Features 'vit_mini': 16 images with ids; blocks.11 (96)}
    """
    out, resume = prepare(Path(out).expanduser()), pass_options.get("resume")
    if resume is None:
        _check_free(out)
    features, record = extract(
        networks, images, out, layers=layers, tokens=tokens, dtype=dtype, batch_size=batch_size, **pass_options
    )
    if resume is None and _first():
        save_record(record, out / RECORD)
    return features


def extract(
    networks: AnyNetwork | Sequence[AnyNetwork],
    images: AnyImages,
    out: Path,
    *,
    layers: str | Sequence[str],
    tokens: Tokens,
    dtype: Dtype,
    batch_size: int | None,
    **pass_options: Any,
) -> tuple[dict[str, Features], dict[str, Any]]:
    """`extract_features`, without `run.json`, whose record it returns; over what is there under these names."""
    if dtype not in get_args(Dtype):
        raise one_of("type of numbers", dtype, get_args(Dtype))
    begun = begin(networks, images, most=MOST, layers=layers, batch_size=batch_size, usual=BATCH)
    chosen = [find_layers(network, layers, tokens=tokens) for network in begun.networks]
    files = list(_files(begun, chosen, tokens, dtype))
    resume = pass_options.get("resume")
    writing = Writing(out, out / UNDER_WAY if resume is None else resume.folder, files, len(begun.images))
    tell(
        f"features: {size_in_words(writing.bytes)} for {len(files)} layers of {len(begun.images)} images in {dtype}; "
        f"{size_in_words(shutil.disk_usage(out).free)} are free on the disk of {out}"
    )
    _by_the_first(lambda: writing.begin(resume is not None and resume.goes_on))
    extraction = Extraction(begun.networks, chosen, writing, tokens)
    try:
        counts = sweep(begun.images, [extraction], batch_size=begun.batch_size, short=True, **pass_options)
    except BaseException:
        if resume is None and _first():  # nothing goes on from there
            writing.clear()
        raise
    finally:
        writing.close()
    kept = extraction.sums.values.numpy()
    if dtype == "float16":
        begun.notices.say("features are rounded to float16: about three digits")
    protocol = {"layers": layers, "tokens": tokens, "dtype": dtype, "batch_size": begun.batch_size}
    record = begun.record(counts, protocol)
    _by_the_first(lambda: _put_in_place(writing, kept, begun, protocol))
    if resume is None:
        _by_the_first(writing.clear)
    return {network.name: load_features(out, model=network.name) for network in begun.networks}, record


def _put_in_place(writing: Writing, kept: np.ndarray, begun: Begun, protocol: dict[str, Any]) -> None:
    writing.finish(kept)
    save_text(
        json.dumps(_index(begun, kept, writing.files, protocol), indent=1, default=str) + "\n", writing.out / INDEX
    )


def _files(begun: Begun, layers: Sequence[Sequence[Layer]], tokens: Tokens, dtype: Dtype) -> Iterator[File]:
    taken: set[str] = set()
    for network, chosen in zip(begun.networks, layers):
        for layer in chosen:
            shape = layer.selected(tokens).shape
            yield File(network, layer, shape, np.dtype(dtype).newbyteorder("<"), named(network.name, layer.name, taken))


def _index(begun: Begun, kept: np.ndarray, files: Sequence[File], protocol: dict[str, Any]) -> dict[str, Any]:
    """The content of `features.json`."""
    images = begun.images.only(kept)
    networks = []
    for network in begun.networks:
        entries = [
            {
                "layer": file.layer.name,
                "file": file.name,
                "shape": [len(kept), *file.shape],
                "dtype": file.dtype.name,
                **Known(
                    file.layer.kind, file.layer.depth, protocol["tokens"], file.layer.selected(protocol["tokens"])
                ).record(),
            }
            for file in files
            if file.network is network
        ]
        record = network.record()
        networks.append({**{key: record[key] for key in NAMED if key in record}, "layers": entries})
    return {
        "made_by": MADE_BY,
        **protocol,
        "networks": networks,
        "images": {
            "data": images.data,
            "split": images.split,
            "seed": images.seed,
            "count": len(kept),
            "numbered_in": images.numbered_in,
            "classes": images.classes,
            "ids": images.ids,
            "labels": None if images.labels is None else images.labels.tolist(),
        },
    }


NAMED = ("name", "source", "class", "origin", "weights", "weights_sha256", "model_args", "transform", "precision")
"""The entry of the index for a network, from its record."""


def _check_free(out: Path) -> None:
    """Raise where features, or a record, would replace existing files."""
    for name in (INDEX, RECORD, LAYERS):
        if os.path.lexists(out / name):
            raise UsageError(f"{out} holds {name} already; move it away, or choose another folder (out)")


def _first() -> bool:
    share = processes.share()
    return share is None or share.rank == 0


def _by_the_first(do: Callable[[], None]) -> None:
    """Have the first process call a function while all processes wait; its error is raised in all."""
    error: RepsimError | None = None
    if _first():
        try:
            do()
        except RepsimError as raised:
            error = raised
    if (error := processes.agreed(error)) is not None:
        raise error
