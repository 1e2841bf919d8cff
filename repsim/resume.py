"""Sums saved every so often, so that a run that was stopped goes on where it was.

A folder holds what the sums belong to (`about.json`) and, for every pass of the run and each of its processes, the
sums after the last batch saved (`pass-0-of-1-0.pt`). Each file is written whole or not at all.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from repsim import processes
from repsim.errors import RepsimError, Stopped, UsageError, first_line
from repsim.images import Batch, Counts
from repsim.measures import probe, running
from repsim.tables import replacing

ABOUT = "about.json"
KINDS = [
    running.GroupedSums,
    running.Moments,
    running.Quantiles,
    running.Joined,
    running.Total,
    running.Known,
    probe.ProbeSums,
    probe.ProbeRows,
    Counts,
]
"""All that is ever saved, beside tensors, numbers, texts and what holds them: no file can bring other code to run."""


class Resume:
    """Where a run saves its sums, and finds those of the run it goes on from.

    Args:
        folder: made if it is not there.
        about: what the sums belong to; anything JSON can hold.
        every: seconds between two saves.
        fresh: forget what is there.

    Raises:
        UsageError: what is there belongs to something else, or another run is at it.
    """

    def __init__(self, folder: Path, about: dict[str, Any], *, every: float = 60.0, fresh: bool = False) -> None:
        self.folder, self.every = folder, every
        self.done = False
        """Whether the pass that was begun last had been finished before."""
        self._pass, self._saved = -1, time.monotonic()
        self._stop = False
        share = processes.share()
        self._name = "1-0" if share is None else f"{share.of}-{share.rank}"
        about = json.loads(json.dumps(about, default=str))
        if share is None or share.rank == 0:
            self._lock = _locked(folder)
            for half in folder.parent.glob(".*.part.*"):  # of a run that was killed while it wrote
                half.unlink(missing_ok=True)
            if fresh:
                _empty(folder)
            self._check(about)
        if share is not None:
            processes.wait()

    def _check(self, about: dict[str, Any]) -> None:
        file = self.folder / ABOUT
        if not any(self.folder.glob("pass-*.pt")):  # nothing was saved of an earlier run, if there was one
            _write(file, lambda part: part.write_text(json.dumps(about, indent=2) + "\n"))
            return
        try:
            before = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise RepsimError(f"cannot read {file}: {first_line(error)}; start over with --fresh") from None
        other = sorted(key for key in {**before, **about} if before.get(key) != about.get(key))
        if other:
            raise UsageError(
                f"{self.folder} holds the sums of another run, with other {', '.join(other)}; give the same command "
                "again, choose another directory with --out, or start over with --fresh"
            )

    def begin(self, summing: Sequence[Any]) -> Counts:
        """Begin the next pass of the run: with the sums that were saved of it, if some were."""
        self._pass, self._saved, self.done = self._pass + 1, time.monotonic(), False
        file = self._file
        if not file.exists():
            return Counts()
        try:
            with torch.serialization.safe_globals(_safe(summing)):
                saved = torch.load(file, weights_only=True)
        except Exception as error:
            raise RepsimError(f"cannot read {file}: {first_line(error)}; start over with --fresh") from None
        for of, sums in zip(summing, saved["sums"], strict=True):
            of.sums = sums
        self.done = saved["done"]
        return saved["counts"]

    def after(self, batch: Batch, summing: Sequence[Any], counts: Counts) -> None:
        """After a batch: save if it is time to, and stop if that was asked for."""
        if self._stop:
            self._save(summing, counts, done=False)
            raise Stopped(f"stopped after batch {batch.number}; the sums are kept: the same command goes on from there")
        if time.monotonic() - self._saved >= self.every:
            self._save(summing, counts, done=False)
            self._saved = time.monotonic()

    def end(self, summing: Sequence[Any], counts: Counts) -> None:
        """After a pass: its sums over all processes."""
        self._save(summing, counts, done=True)

    @property
    def _file(self) -> Path:
        return self.folder / f"pass-{self._pass}-of-{self._name}.pt"

    def _save(self, summing: Sequence[Any], counts: Counts, *, done: bool) -> None:
        saved = {"sums": [of.sums for of in summing], "counts": counts, "done": done}
        _write(self._file, lambda part: torch.save(saved, part))

    def release(self) -> None:
        """Let others write here, whether the run is over or not."""
        if hasattr(self, "_lock"):
            self._lock.release()

    def finish(self) -> None:
        """The run is over: its results are written, its sums are not needed."""
        if hasattr(self, "_lock"):
            _empty(self.folder)
            shutil.rmtree(self.folder, ignore_errors=True)
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self.release()

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Within it, Ctrl-C (and SIGTERM, as schedulers send it) stops after the batch; a second one at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def ask(number: int, frame: Any) -> None:
            self._stop = True
            for each, handler in before.items():
                signal.signal(each, handler)

        for number in before:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _safe(summing: Sequence[Any]) -> list[type]:
    """The classes that a file of sums may hold; studies name those of their own."""
    return [*KINDS, *(kind for of in summing for kind in getattr(of, "kinds", ()))]


def lock_of(folder: Path) -> Path:
    """The file that the run which is at work in a folder has locked."""
    return folder.with_name(f".{folder.name}.lock")


def _locked(folder: Path) -> FileLock:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_of(folder))
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"another run is writing into {folder.parent}; choose another directory with --out") from None
    except OSError as error:
        raise RepsimError(f"cannot write into {folder}: {error.strerror}; choose another directory") from None
    return lock


def _empty(folder: Path) -> None:
    """Last of all what the sums belong to: a run that is killed meanwhile leaves none that belong to nothing known."""
    for file in (*folder.glob("pass-*.pt"), folder / ABOUT):
        file.unlink(missing_ok=True)


def _write(file: Path, how: Any) -> None:
    """Write a file whole or not at all; what was there before stays if that fails."""
    try:
        with replacing(file) as part:
            how(part)
    except (OSError, RuntimeError) as error:
        raise RepsimError(
            f"cannot save the sums to {file}: {first_line(error)}; those saved before, if any, are as they were"
        ) from None
