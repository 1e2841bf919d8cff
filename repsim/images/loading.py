"""Reading images: in processes or a thread, ahead of the computation, and joined into batches."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import queues
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils.signal_handling import _remove_worker_pids
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from repsim.errors import RepsimError, first_line
from repsim.images.sources import Source

PIECE = 32
"""Images that are loaded together; several pieces, each waiting in shared memory, make a batch."""
Transform = Callable[[Image.Image], Tensor]
Loaded = tuple[Tensor, list[Tensor], list[tuple[int, str]]]
"""Positions, their images after each transform, and the positions that cannot be read with the reasons."""


def decoded(
    source: Source, chosen: np.ndarray, transforms: Sequence[Transform], wanted: list[int], size: int, workers: int
) -> Iterator[Loaded]:
    """Load the images at these positions, in order and piece by piece: by processes, or ahead in a thread.

    Args:
        source: where they are read.
        chosen: (n,) which of its images each position is.
        transforms: the preparations of each image.
        wanted: positions in `chosen`.
        size: images at a time, at most `PIECE`.
        workers: processes; 0: a thread.
    """
    decoding, size = _Decoding(source, chosen, transforms), min(size, PIECE)
    if workers:
        return _undying(lambda done: _Processes(_loader(decoding, wanted[done * size :], size, workers)))
    return ahead(_loader(decoding, wanted, size))


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


def _undying(begin: Callable[[int], Any]) -> Iterator[Loaded]:
    """The pieces that processes decode. Where a process dies, new ones begin with the piece that it owes, once.

    Args:
        begin: starts processes, after the given number of pieces.

    Raises:
        RepsimError: a process died again, or the system lacks the resources that processes need.
    """
    first = begin(0)  # now, and not in the thread that may ask for the pieces

    def pieces(at_work: Any) -> Iterator[Loaded]:
        done, restarted = 0, False
        while True:
            try:
                piece = next(at_work)
            except StopIteration:
                return
            except Exception as error:
                code = _ended(at_work, wait=isinstance(error, (OSError, EOFError)))
                if code is None:
                    raise _no_room(error) or error from None
                if restarted:
                    raise RepsimError(
                        f"a process that decodes images {_how(code)}, and one that began in its place did so too; "
                        "take fewer --workers, or --workers 0"
                    ) from None
                at_work, restarted = begin(done), True
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
        # At exit Python sends SIGTERM and waits, which these take for a scheduler's; see `_undisturbed`.
        Finalize(self, _kill, (self._workers,), exitpriority=10)


def _kill(workers: list[Any]) -> None:
    """End processes of which nothing is wanted any more."""
    for worker in workers:
        worker.kill()


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
"""Errors that have nothing to do with an image: files, memory, processes or room in /dev/shm ran out."""
SAID = {"ancillary data": errno.EMFILE, os.strerror(errno.EMFILE): errno.EMFILE, "start new thread": errno.EAGAIN}
"""Words of such errors of Python and torch where they have no number."""


def _lack(error: BaseException) -> int | None:
    """Which of `LACKS` an error comes from."""
    number = getattr(error, "errno", None) or next((n for words, n in SAID.items() if words in str(error)), None)
    return number if number in LACKS else None


def _no_room(error: BaseException) -> RepsimError | None:
    """The error for resources that the system refuses to processes that decode; None for every other error."""
    code = _lack(error)
    if not code:
        return None
    return RepsimError(
        f"processes that decode images cannot work here: {os.strerror(code)}; take fewer --workers, --workers 0 or a "
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


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def formed(items: Iterable[Loaded], batch_size: int) -> Iterator[Loaded]:
    """Yield whole batches, with broken images as soon as they are known, and at the end the short batch."""
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


def copied(formed: Iterable[Loaded], device: torch.device, computing: torch.cuda.Stream) -> Iterator[Loaded]:
    """The same on a CUDA device, copied while the device computes. It waits, so it needs a thread of its own."""
    stream = torch.cuda.Stream(device)
    for positions, tensors, broken in formed:
        with contextlib.suppress(torch.OutOfMemoryError):  # then it is copied when it is its turn
            with torch.cuda.stream(stream):
                copies = [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
            stream.synchronize()
            for tensor in copies:  # which the copying stream must not take back before they were used
                tensor.record_stream(computing)
            tensors = copies
        yield positions, tensors, broken


def _joined(waiting: list[tuple[Tensor, list[Tensor]]]) -> tuple[Tensor, list[Tensor]]:
    """Join loaded pieces; nothing is copied where only one piece has images in it."""
    filled = [piece for piece in waiting if len(piece[0])]
    if not filled:
        return torch.empty(0, dtype=torch.int64), []
    if len(filled) == 1:
        return filled[0]
    return torch.cat([p for p, _ in filled]), [torch.cat(pieces) for pieces in zip(*(t for _, t in filled))]


class _Decoding(Dataset):
    """Position -> the image after each transform, or the reason why it cannot be read."""

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
        as_it_is = isinstance(image, Tensor)
        return position, [image if as_it_is else transform(image) for transform in self.transforms]


def _stacked(items: list[tuple[int, list[Tensor] | str]]) -> Loaded:
    good = [(position, tensors) for position, tensors in items if not isinstance(tensors, str)]
    broken = [(position, message) for position, message in items if isinstance(message, str)]
    if not good:
        return torch.empty(0, dtype=torch.int64), [], broken
    return torch.tensor([p for p, _ in good]), [torch.stack(images) for images in zip(*(t for _, t in good))], broken


def ahead(items: Iterable[Any]) -> Iterator[Any]:
    """Iterate in a thread, one item ahead of the caller."""
    ready: queue.Queue = queue.Queue(maxsize=1)
    stop = threading.Event()

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

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
