"""Images: where they come from, which are chosen, and batches that several networks share."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import gzip
import hashlib
import io
import os
import queue
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import queues
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils.signal_handling import _remove_worker_pids
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from repsim.errors import RepsimError, UsageError, first_line, one_of
from repsim.images.folders import list_images, said

SAMPLE = Path(__file__).parents[1] / "sample" / "fashion_mnist.npz"
SPLITS = ("train", "test")
FASHION_MNIST_PLACES = (Path("data/fashion-mnist"), Path("/usr/share/datasets/fashion-mnist"))
TIMM_SCHEMES = ("torch/", "hfds/", "hfids/", "wds/", "tfds/")
TEST_FOLDERS = ("val", "validation", "test")
PIECE = 32
"""Images that are loaded together; several pieces, each waiting in shared memory, make a batch."""
FEWEST = 4  # HSIC_1 divides by n - 3

Transform = Callable[[Image.Image], Tensor]


class BrokenImage(RepsimError):
    """An image that cannot be read, and its name."""


class Source(Protocol):
    """Images by number. `labels` is None where there are none."""

    labels: np.ndarray | None

    def __len__(self) -> int: ...
    def load(self, index: int) -> Image.Image | Tensor: ...
    def name(self, index: int) -> str: ...


@dataclass(frozen=True)
class Batch:
    number: int
    positions: Tensor
    """(n,) which images these are, as positions in `ImageSet.chosen`."""
    inputs: dict[Hashable, Tensor]
    """For each transform, (n, c, h, w)."""
    at_once: dict[str, int]
    """Networks through which not all of its images go at once, for lack of memory, and how many do."""


class Share(NamedTuple):
    """One of several processes that share the batches of a pass."""

    rank: int
    of: int


@dataclass
class Counts:
    """What happened to the images of a pass; filled while it runs."""

    used: int = 0
    dropped: int = 0
    """Images of the last, short batch, which is left out."""
    broken: list[str] = dataclasses.field(default_factory=list)
    batches: int = 0
    batch_size: int = 0
    passed: int = 0
    """The chosen images up to this position are done with."""
    at_once: dict[str, int] = dataclasses.field(default_factory=dict)
    """Networks through which not all images of a batch went at once, for lack of memory, and how many did."""

    def merge(self, other: Counts) -> Counts:
        """Of two processes' shares of a pass."""
        added = {name: getattr(self, name) + getattr(other, name) for name in ("used", "dropped", "broken", "batches")}
        largest = {name: max(getattr(self, name), getattr(other, name)) for name in ("batch_size", "passed")}
        least = {
            name: min(of.at_once[name] for of in (self, other) if name in of.at_once)
            for name in {**self.at_once, **other.at_once}
        }
        return Counts(**added, **largest, at_once=least)

    def record(self) -> dict[str, Any]:
        """What `run.json` says of the pass."""
        return {
            "used": self.used,
            "dropped_in_short_batch": self.dropped,
            "broken": self.broken,
            "broken_count": len(self.broken),
            **({"forward_batch_sizes": self.at_once} if self.at_once else {}),
        }


class ImageSet:
    """A fixed, seeded choice of images, in an order that all networks share.

    Args:
        data: `sample` (the bundled part of Fashion-MNIST), `fashion-mnist`, `noise`, a folder of
            images or of folders named after classes, a data set as timm names them (`torch/cifar10`,
            `hfds/owner/name`, `wds/name`, `tfds/name`), a float tensor (n, c, h, w) that goes into the
            networks as it is, or a uint8 array (n, h, w) or (n, h, w, 3) that goes through their transforms.
            The classes of a folder are the folders directly inside it, whatever is below them. Hidden files, what is
            no image and what links lead to a second time are left out, and counted in `left_out`.
        split: `test` (default) or `train` of the sample and fashion-mnist; of timm's data sets what they
            call it (default `validation`); of a folder, a folder inside it.
        root: where timm's data sets lie.
        images: how many, chosen at random without replacement; None takes all (2,560 of `noise`).
            Where there are fewer, all are taken.
        seed: of the choice and its order, and of the noise.

    Raises:
        UsageError: no such data, or fewer than 4 images.

    >>> len(ImageSet("sample", images=100))
    100
    """

    def __init__(
        self,
        data: str | os.PathLike[str] | Tensor | np.ndarray = "sample",
        *,
        split: str | None = None,
        root: str | os.PathLike[str] | None = None,
        images: int | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 <= seed < 2**63:
            raise UsageError(f"seed must be from 0 to 2**63 - 1, got {seed}")
        if images is not None and images < FEWEST:
            raise UsageError(f"at least {FEWEST} images are needed, got images={images}")
        self.data = f"{type(data).__name__} {tuple(data.shape)}" if hasattr(data, "shape") else os.fspath(data)
        self.split, self.seed, self.asked = split, seed, images
        self.source = _source(data, split, root, images, seed)
        if len(self.source) < FEWEST:
            without = f"; {self.left_out_in_words}" if self.left_out else ""
            raise UsageError(f"at least {FEWEST} images are needed; {self.data} has {len(self.source)}{without}")
        self.chosen = _choose(len(self.source), images, seed)

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def labels(self) -> np.ndarray | None:
        """(n,) class of each chosen image, or None where classes are not known.

        A folder has classes where two or more folders in it hold images; images that lie beside these have -1.
        """
        return None if self.source.labels is None else self.source.labels[self.chosen]

    @property
    def tensor_size(self) -> tuple[int, int, int] | None:
        """(c, h, w) of images that go into the networks as they are; None if transforms make them."""
        return tuple(self.source.tensors.shape[1:]) if isinstance(self.source, _Tensors) else None

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes where the data set has some: folders, in the order of the labels."""
        return (list(self.source.classes) or None) if isinstance(self.source, _Files) else None

    @property
    def left_out(self) -> dict[str, int]:
        """Count what a folder holds beside its images, by `folders.KINDS`; it is empty if there is nothing."""
        return self.source.left_out if isinstance(self.source, _Files) else {}

    @property
    def left_out_in_words(self) -> str:
        """Say so on one line; it is empty if nothing is left out."""
        return said(self.source.root, self.left_out) if self.left_out else ""

    def identity(self) -> dict[str, str]:
        """Digests that tell the images apart from others which were chosen in the same way, without decoding any.

        Of files: their `names`, `sizes` and `times of change`; of images in memory: their `pixels`. It is empty for
        data sets that tell neither.
        """
        if isinstance(self.source, _Arrays):
            pixels = self.source.images
            pixels = pixels.cpu().contiguous().view(torch.uint8).numpy() if isinstance(pixels, Tensor) else pixels
            return {"pixels": hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()}
        if not isinstance(self.source, _Files | _TimmDataset):
            return {}
        files = [self.source.name(index) for index in self.chosen.tolist()]
        states = [os.stat(file) if os.path.exists(file) else None for file in files]
        values = {
            "names": files,
            "sizes": [state and state.st_size for state in states],
            "times of change": [state and state.st_mtime_ns for state in states],
        }
        return {what: hashlib.sha256(repr(each).encode()).hexdigest() for what, each in values.items()}

    def only(self, positions: np.ndarray) -> ImageSet:
        """Some of the chosen images, by their positions in `chosen`."""
        other = object.__new__(ImageSet)
        other.__dict__ = {**self.__dict__, "chosen": self.chosen[positions]}
        return other

    def labelled(self, labels: np.ndarray) -> ImageSet:
        """The same images with other classes: (n,) integers from 0 on, one for each chosen image."""
        if np.shape(labels) != (len(self),):
            raise UsageError(f"labels must be one for each of the {len(self)} images, got shape {np.shape(labels)}")
        of_all = np.full(len(self.source), -1)
        of_all[self.chosen] = labels
        other = object.__new__(ImageSet)
        other.__dict__ = {**self.__dict__, "source": copy.copy(self.source)}
        other.source.labels = of_all
        return other

    def redrawn(self, seed: int) -> ImageSet:
        """Another choice of as many images from the same source."""
        other = object.__new__(ImageSet)
        other.__dict__ = {**self.__dict__, "seed": seed, "chosen": _choose(len(self.source), len(self), seed)}
        return other

    def record(self, counts: Counts) -> dict[str, Any]:
        """What `run.json` says of the images and of a pass over them."""
        kept = {"data": self.data, "split": self.split, "seed": self.seed, "asked": self.asked}
        left_out = {"left_out": self.left_out} if self.left_out else {}
        return {**kept, "available": len(self.source), **left_out, "chosen": len(self), **counts.record()}

    def batches(
        self,
        transforms: Iterable[Transform],
        batch_size: int,
        *,
        counts: Counts | None = None,
        workers: int | None = None,
        skip_broken: bool = False,
        short: bool = False,
        share: Share | None = None,
        device: torch.device | None = None,
    ) -> Iterator[Batch]:
        """Whole batches of the chosen images, each image read and decoded once for all transforms.

        Loading goes on in the background while the caller computes. A last short batch is dropped
        and counted, unless `short`.

        Args:
            transforms: what the networks want done to an image; equal ones are done once.
            batch_size: images per batch, at least 4.
            counts: filled while batches are handed out; those of an earlier pass: what came after its last batch.
            workers: processes that decode; None: one per core up to 8 for files, none for images in memory.
            skip_broken: go on without images that cannot be read.
            short: hand out the last short batch as well.
            share: only those batches that are one process's; there must be no broken images then.
            device: a CUDA device to which each batch is copied while the one before it is computed.

        Raises:
            BrokenImage: one cannot be read; the message names it.
            RepsimError: broken ones left fewer than 4.
        """
        transforms = list(dict.fromkeys(transforms))
        counts = counts if counts is not None else Counts()
        counts.batch_size = batch_size
        wanted = self._wanted(batch_size, share, counts.passed, short)
        if isinstance(self.source, _Tensors):
            items = self._slices(transforms, batch_size, wanted)
        else:
            items = self._decoded(transforms, batch_size, workers, wanted)
        formed = _formed(items, batch_size)
        on_gpu = isinstance(self.source, _Tensors) and self.source.tensors.is_cuda
        if device is not None and not on_gpu:
            formed = _ahead(_copied(formed, device, torch.cuda.current_stream(device)))
        unreadable: list[tuple[int, str]] = []

        def batch(positions: Tensor, tensors: list[Tensor]) -> Batch:
            number = counts.batches if share is None else int(positions[0]) // batch_size
            counts.used, counts.batches = counts.used + len(positions), counts.batches + 1
            counts.passed = int(positions[-1]) + 1
            counts.broken += [message for position, message in unreadable if position < counts.passed]
            unreadable[:] = [each for each in unreadable if each[0] >= counts.passed]
            return Batch(number, positions, dict(zip(transforms, tensors)), counts.at_once)

        for positions, tensors, broken in formed:
            if broken and not skip_broken:
                raise BrokenImage(f"{broken[0][1]}; leave such images out with --skip-broken (skip_broken=True)")
            unreadable += broken
            less_than_one = not counts.batches and len(positions) >= FEWEST  # broken images left no whole batch
            if len(positions) == batch_size:
                yield batch(positions, tensors)
            elif less_than_one or (short and len(positions)):
                yield batch(positions, tensors)
                counts.batch_size = min(batch_size, counts.used)
            elif len(positions):
                counts.dropped = len(positions)
        counts.broken += [message for _, message in unreadable]
        if not counts.batches and share is None:
            raise RepsimError(
                f"at least {FEWEST} images are needed; {len(positions)} are left, {len(counts.broken)} are broken"
            )

    def _wanted(self, batch_size: int, share: Share | None, passed: int, short: bool) -> Tensor:
        """Positions of the images to load, in order."""
        positions = torch.arange(passed, len(self))
        if share is None:
            return positions
        number = positions // batch_size
        mine = number % share.of == share.rank
        if not short and share.rank:  # the first process counts the last, short batch
            mine &= number < len(self) // batch_size
        elif not short:
            mine |= number >= len(self) // batch_size
        return positions[mine]

    def unreadable(self, workers: int | None = None, share: Share | None = None) -> dict[int, str]:
        """Which of one process's part of the images cannot be read: position -> what is wrong with it."""
        part = torch.arange(share.rank if share else 0, len(self), share.of if share else 1)
        if isinstance(self.source, _Tensors):
            return {}
        return dict(each for _, _, broken in self._decoded([], PIECE, workers, part) for each in broken)

    def _slices(self, transforms: Sequence[Transform], batch_size: int, wanted: Tensor) -> Iterator[_Loaded]:
        for positions in wanted.split(batch_size) if len(wanted) else ():
            tensors = self.source.tensors[torch.from_numpy(self.chosen)[positions]]
            yield positions, [tensors for _ in transforms], []

    def _decoded(
        self, transforms: Sequence[Transform], batch_size: int, workers: int | None, wanted: Tensor
    ) -> Iterator[_Loaded]:
        if workers is None:
            workers = min(_cores(), 8) if isinstance(self.source, _Files) else 0
        decoding = _Decoding(self.source, self.chosen, transforms)
        size = min(batch_size, PIECE)
        if workers:
            return _undying(lambda done: _Processes(_loader(decoding, wanted.tolist()[done * size :], size, workers)))
        return _ahead(_loader(decoding, wanted.tolist(), size))


def as_image_set(images: ImageSet | Tensor | np.ndarray | None, most: int | None = None) -> ImageSet:
    """An `ImageSet`, whatever stands for one; None: the bundled sample, or `most` images of it."""
    if isinstance(images, ImageSet):
        return images
    return ImageSet("sample", images=most) if images is None else ImageSet(images)


_Loaded = tuple[Tensor, list[Tensor], list[tuple[int, str]]]
"""Positions, their images after each transform, and what is wrong with those that cannot be read."""


def _loader(decoding: _Decoding, wanted: list[int], size: int, workers: int = 0) -> DataLoader:
    """Pieces of the images at these positions, in order."""
    return DataLoader(
        decoding,
        batch_size=size,
        sampler=wanted,
        num_workers=workers,
        collate_fn=_stacked,
        worker_init_fn=_undisturbed,
        generator=torch.Generator(),  # it draws a seed that nothing uses, and torch's own generator is the caller's
    )


def _undying(begin: Callable[[int], Any]) -> Iterator[_Loaded]:
    """The pieces that processes decode. Where one of these dies, others begin anew with the piece it owes, once.

    Args:
        begin: what has processes begin, after so many pieces.

    Raises:
        RepsimError: one died again, or the system does not give what they need.
    """
    first = begin(0)  # now, and not in the thread that may ask for the pieces

    def pieces(at_work: Any) -> Iterator[_Loaded]:
        done, anew = 0, False
        while True:
            try:
                piece = next(at_work)
            except StopIteration:
                return
            except Exception as error:
                code = _ended(at_work, wait=isinstance(error, (OSError, EOFError)))
                if code is None:
                    raise _no_room(error) or error from None
                if anew:
                    raise RepsimError(
                        f"a process that decodes images {_how(code)}, and one that began in its place did so too; "
                        "take fewer --workers, or --workers 0"
                    ) from None
                at_work, anew = begin(done), True
                continue
            yield piece
            done += 1

    return pieces(first)


class _Processes(_MultiProcessingDataLoaderIter):
    """The pieces of a loader. One that asks for a piece learns that a process died; torch raises wherever it is."""

    def __init__(self, loader: DataLoader) -> None:
        self._shutdown, self._workers_status = True, [False] * loader.num_workers  # torch reads them if not all begin
        try:
            super().__init__(loader)
        except (OSError, RuntimeError) as error:
            for worker in getattr(self, "_workers", ()):  # those that did begin; asked to end, they would wait for work
                worker.kill()
                worker.join()
            raise _no_room(error) or error from None
        _remove_worker_pids(id(self))
        self._worker_pids_set = False


def _ended(at_work: Any, *, wait: bool) -> int | None:
    """The exit code of a process that died, if one did; a connection to it may break a moment earlier."""
    until = time.monotonic() + wait
    while True:
        codes = [worker.exitcode for worker in at_work._workers if worker.exitcode]
        if codes or time.monotonic() >= until:
            return codes[0] if codes else None
        time.sleep(0.01)


def _how(code: int) -> str:
    """How a process ended, by its exit code."""
    if code == -signal.SIGKILL:
        return "was killed, as the system does where memory runs out"
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"could not go on ({os.strerror(code)})" if code in LACKS else f"ended with exit code {code}"


GRACE = 60
"""Seconds for which a process that decodes goes on after it was asked to end: it ends with the one it works for."""
LACKS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC}
"""Errors that say nothing of an image: the system has no more files, memory, processes or room in /dev/shm."""
SAID = {"ancillary data": errno.EMFILE, os.strerror(errno.EMFILE): errno.EMFILE, "start new thread": errno.EAGAIN}
"""What errors of Python and torch that have no number say of these."""


def _lack(error: BaseException) -> int | None:
    """Which of `LACKS` an error comes from."""
    number = getattr(error, "errno", None) or next((n for words, n in SAID.items() if words in str(error)), None)
    return number if number in LACKS else None


def _no_room(error: BaseException) -> RepsimError | None:
    """The error for what the system does not give to processes that decode; None of any other error."""
    lack = _lack(error)
    return lack and RepsimError(
        f"processes that decode images cannot work here: {os.strerror(lack)}; take fewer --workers, --workers 0 or a "
        "smaller --batch-size, or raise the limits of the shell (ulimit -n, ulimit -u)"
    )


def _undisturbed(worker: int) -> None:
    """Leave signals to the process that waits for this one, which must not wait for what cannot be handed to it.

    Schedulers, terminals and `timeout` send them to the whole group, and the batch that is under way is still needed.
    """
    for name in ("SIGINT", "SIGHUP", "SIGQUIT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
    queues.Queue._on_queue_feeder_error = staticmethod(_give_up)
    sys.excepthook = lambda kind, error, trace: _give_up(error)  # of the thread that hands out open files


def _give_up(error: BaseException, piece: Any = None) -> None:
    """End this process, which the one that waits for it notices; Python itself would lose the piece and go on."""
    os._exit(_lack(error) or 1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _choose(available: int, images: int | None, seed: int) -> np.ndarray:
    order = torch.randperm(available, generator=torch.Generator().manual_seed(seed)).numpy()
    return order if images is None else order[:images]


def _formed(items: Iterable[_Loaded], batch_size: int) -> Iterator[_Loaded]:
    """Whole batches of what is loaded, what is broken as soon as it is known, and at the end the rest."""
    waiting: list[tuple[Tensor, list[Tensor]]] = []
    for positions, tensors, broken in items:
        if broken:
            yield torch.empty(0, dtype=torch.int64), [], broken
        waiting.append((positions, tensors))
        while sum(len(p) for p, _ in waiting) >= batch_size:
            positions, tensors = _joined(waiting)
            waiting = [(positions[batch_size:], [t[batch_size:] for t in tensors])]
            yield positions[:batch_size], [t[:batch_size] for t in tensors], []
    yield *_joined(waiting), []


def _copied(formed: Iterable[_Loaded], device: torch.device, computing: torch.cuda.Stream) -> Iterator[_Loaded]:
    """The same on a CUDA device, copied beside what is computed there. For a thread of its own: it waits."""
    stream = torch.cuda.Stream(device)
    for positions, tensors, broken in formed:
        with contextlib.suppress(torch.OutOfMemoryError):  # then it is copied when it is its turn
            with torch.cuda.stream(stream):
                there = [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
            stream.synchronize()
            for tensor in there:  # which the copying stream must not take back before they were used
                tensor.record_stream(computing)
            tensors = there
        yield positions, tensors, broken


def _joined(waiting: list[tuple[Tensor, list[Tensor]]]) -> tuple[Tensor, list[Tensor]]:
    """Join what was loaded; nothing is copied where there is only one piece with images in it."""
    filled = [piece for piece in waiting if len(piece[0])]
    if not filled:
        return torch.empty(0, dtype=torch.int64), []
    if len(filled) == 1:
        return filled[0]
    return torch.cat([p for p, _ in filled]), [torch.cat(pieces) for pieces in zip(*(t for _, t in filled))]


class _Decoding(Dataset):
    """Position -> the image after each transform, or what is wrong with it."""

    def __init__(self, source: Source, chosen: np.ndarray, transforms: Sequence[Transform]) -> None:
        self.source, self.chosen, self.transforms = source, chosen, transforms

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, position: int) -> tuple[int, list[Tensor] | str]:
        index = int(self.chosen[position])
        try:
            image = self.source.load(index)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            if getattr(error, "errno", None) in LACKS:  # nothing is wrong with the image
                if get_worker_info() is not None:
                    _give_up(error)
                raise RepsimError(f"cannot read image {self.source.name(index)} now: {first_line(error)}") from None
            return position, f"cannot read image {self.source.name(index)}: {first_line(error)}"
        return position, [transform(image) for transform in self.transforms]


def _stacked(items: list[tuple[int, list[Tensor] | str]]) -> _Loaded:
    good = [(position, tensors) for position, tensors in items if not isinstance(tensors, str)]
    broken = [(position, message) for position, message in items if isinstance(message, str)]
    if not good:
        return torch.empty(0, dtype=torch.int64), [], broken
    return torch.tensor([p for p, _ in good]), [torch.stack(each) for each in zip(*(t for _, t in good))], broken


def _ahead(items: Iterable[Any]) -> Iterator[Any]:
    """Iterate in a thread, one item ahead of the caller."""
    ready: queue.Queue = queue.Queue(maxsize=1)
    stop = threading.Event()

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((item, None))
                if stop.is_set():
                    return
            put((None, StopIteration()))
        except BaseException as error:  # noqa: BLE001  handed to the caller
            put((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
        thread.join()


# Sources


class _Arrays:
    """uint8 images in memory, (n, h, w) grey or (n, h, w, 3)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray | None = None) -> None:
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
            raise UsageError(
                f"arrays of images are uint8 (n, h, w) or (n, h, w, 3), got {images.dtype} {images.shape}; "
                "give float images that need no transform as a torch tensor (n, c, h, w)"
            )
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def name(self, index: int) -> str:
        return f"number {index}"


class _Tensors(_Arrays):
    """Float images that go into the networks as they are, (n, c, h, w)."""

    def __init__(self, tensors: Tensor) -> None:
        if tensors.ndim != 4 or not tensors.is_floating_point():
            raise UsageError(f"tensors of images are float (n, c, h, w), got {tensors.dtype} {tuple(tensors.shape)}")
        self.tensors = self.images = tensors.detach()
        self.labels = None


def read(file: Any) -> Image.Image:
    """An image as it is meant to be seen: upright, of 8 bits; of an animation the first frame.

    Raises:
        OSError, SyntaxError, ValueError: what is wrong with the file.
    """
    with Image.open(file) as image:
        image.load()
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, which conversion would clip at 255
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating point numbers of no known range")
    return image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image


class _Noise:
    """Uniform noise, a function of (seed, index) alone."""

    labels = None

    def __init__(self, images: int, seed: int, side: int = 224) -> None:
        self.images, self.seed, self.side = images, seed, side

    def __len__(self) -> int:
        return self.images

    def load(self, index: int) -> Image.Image:
        rng = np.random.default_rng((self.seed, index))
        return Image.fromarray(rng.integers(0, 256, (self.side, self.side, 3), dtype=np.uint8))

    def name(self, index: int) -> str:
        return f"noise {index}"


class _Files:
    """A folder of images, flat or by class."""

    def __init__(self, root: Path) -> None:
        readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
        found = list_images(root, readable)
        self.root, self.paths, self.classes, self.left_out = root, found.paths, found.classes, found.left_out
        self.labels = found.labels if len(found.classes) > 1 else None
        if not self.paths:
            without = f"; {said(root, self.left_out)}" if self.left_out else ""
            raise UsageError(
                f"there are no images in {root}{without}; it may hold images, or one folder of images per class"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> Image.Image:
        path = self.paths[index]
        if not stat.S_ISREG(os.stat(path).st_mode):  # it was one when it was found; to open a pipe is to wait
            raise OSError("it is no longer a regular file")
        return read(path)

    def name(self, index: int) -> str:
        return self.paths[index]


class _TimmDataset:
    """A data set made by timm's factory that can be indexed."""

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.labels = dataset, None
        targets = getattr(dataset, "targets", None)
        if targets is not None and len(targets) == len(dataset):
            self.labels = np.asarray(targets)

    def __len__(self) -> int:
        return len(self.dataset)

    def load(self, index: int) -> Image.Image:
        reader = getattr(self.dataset, "reader", None)
        if reader is None:
            return self.dataset[index][0]
        # timm's ImageDataset itself would hand out the next image in place of one that is broken.
        opened, _ = reader[index]
        return read(io.BytesIO(opened) if isinstance(opened, bytes) else opened)

    def name(self, index: int) -> str:
        reader = getattr(self.dataset, "reader", None)
        return f"number {index}" if reader is None else str(reader.filename(index, absolute=True))


class _Streamed(_TimmDataset):
    """Images of a data set that can only be iterated: a seeded reservoir sample, kept in memory."""

    def __init__(self, dataset: Iterable[tuple[Image.Image, Any]], images: int | None, seed: int) -> None:
        rng = np.random.default_rng(seed)
        kept: list[tuple[Image.Image, Any]] = []
        for seen, item in enumerate(dataset):
            if images is None or seen < images:
                kept.append(item)
            elif (place := rng.integers(0, seen + 1)) < images:
                kept[place] = item
        self.dataset = kept
        self.labels = np.array([int(target) for _, target in kept])


def _source(data: Any, split: str | None, root: str | os.PathLike[str] | None, images: int | None, seed: int) -> Source:
    if isinstance(data, Tensor):
        return _Tensors(data)
    if isinstance(data, np.ndarray):
        return _Arrays(data)
    data = os.fspath(data)
    if data == "noise":
        return _Noise(images or 2560, seed)
    if data == "sample":
        with np.load(SAMPLE) as arrays:
            split = _known_split(split)
            return _Arrays(arrays[f"{split}_images"], arrays[f"{split}_labels"].astype(np.int64))
    if data == "fashion-mnist":
        pixels, labels = read_fashion_mnist(_known_split(split), places=[Path(root)] if root else None)
        return _Arrays(pixels, labels.astype(np.int64))
    if data.startswith(TIMM_SCHEMES):
        return _from_timm(data, split, root, images, seed)
    return _Files(_folder(data, split))


def train_and_test(
    data: str, split: str | None = None, train_data: str | None = None, train_split: str | None = None
) -> tuple[tuple[str, str | None], tuple[str, str | None]]:
    """(data, split) of training and of test images, where a data set or a folder holds both.

    The training images are the split `train`, of a folder the folder inside it; its test images are in `val`,
    `validation` or `test`, unless `split` names another. A folder of such a name may also stand beside `train`.

    Raises:
        UsageError: a folder has no such folders, and none are named.
    """
    if not (_is_folder(data) and train_data is None):
        if train_data is None or not _is_folder(train_data):
            train_split = train_split or "train"
        return (train_data or data, train_split), (data, split)
    inside = Path(data).expanduser()
    train_split = train_split or "train"
    if split is None and inside.name in TEST_FOLDERS and (inside.parent / train_split).is_dir():
        return (str(inside.parent), train_split), (data, None)
    split = split or next((name for name in TEST_FOLDERS if (inside / name).is_dir()), None)
    if not (inside / train_split).is_dir() or split is None:
        raise UsageError(
            f"probes need training images beside test images, and {data} has no folders {train_split!r} and "
            f"{split or 'val'!r}; name the folder of the training images with --train-data"
        )
    return (data, train_split), (data, split)


def _is_folder(data: str) -> bool:
    return data not in ("sample", "fashion-mnist", "noise") and not data.startswith(TIMM_SCHEMES)


def _known_split(split: str | None) -> str:
    if split not in (None, *SPLITS):
        raise one_of("split", split, SPLITS)
    return split or "test"


def _folder(data: str, split: str | None) -> Path:
    folder = Path(data).expanduser()
    if split is not None:
        folder = folder / split
    if not folder.is_dir():
        known = ", ".join(("sample", "fashion-mnist", "noise", *(f"{scheme}NAME" for scheme in TIMM_SCHEMES)))
        raise UsageError(f"there is no folder {str(folder)!r}; data is a folder of images or one of {known}")
    return folder


def _from_timm(data: str, split: str | None, root: Any, images: int | None, seed: int) -> Source:
    from timm.data import create_dataset

    try:
        where = os.fspath(root) if root else None
        dataset = create_dataset(data, root=where, split=split or "validation", download=data.startswith("torch/"))
        if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
            return _TimmDataset(dataset)
        return _Streamed(dataset, images, seed)
    except Exception as error:
        reason = first_line(error)
        raise RepsimError(f"timm cannot open the data set {data!r} (root {root}, split {split}): {reason}") from None


def read_fashion_mnist(split: str, *, places: Sequence[Path] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """All images (n, 28, 28) and labels (n,) of Fashion-MNIST, uint8.

    Looked for in `data/fashion-mnist/`, then where Debian's package dataset-fashion-mnist puts it,
    then downloaded through torchvision into `data/`.
    """
    stem = {"train": "train", "test": "t10k"}[split]
    for place in places or FASHION_MNIST_PLACES:
        files = [_zipped_or_not(place / f"{stem}-{what}-ubyte") for what in ("images-idx3", "labels-idx1")]
        if all(files):
            images, labels = (_read_bytes(file) for file in files)
            pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
            return pixels, np.frombuffer(labels, np.uint8, offset=8)
    if places:
        raise RepsimError(f"there is no Fashion-MNIST in {places[0]}; it should hold {stem}-images-idx3-ubyte.gz")
    from torchvision.datasets import FashionMNIST

    try:
        downloaded = FashionMNIST("data", train=split == "train", download=True)
    except Exception as error:
        raise RepsimError(
            f"Fashion-MNIST is not in {' or '.join(map(str, FASHION_MNIST_PLACES))}, and cannot be downloaded "
            f"({first_line(error)}); data/README.md says how to get it"
        ) from None
    return downloaded.data.numpy(), downloaded.targets.numpy().astype(np.uint8)


def _zipped_or_not(file: Path) -> Path | None:
    return next((f for f in (file, file.with_name(f"{file.name}.gz")) if f.is_file()), None)


def _read_bytes(file: Path) -> bytes:
    return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
