"""Sums saved at intervals, so that a stopped run can go on from its last save.

A folder, `.repsim-resume` in the output directory, holds the run's settings (`about.json`) and, for every pass of
the run and each of its processes, the sums after the last batch saved (`pass-0-of-1-0.pt`). Each of these files is
written whole or not at all, and each file of sums ends with a checksum and with the id of its run. Rows of features
that are being extracted lie beside them. Only files of these names in this folder are removed, and unfinished files
under the names of processes that `about.json` lists.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from repsim.errors import RepsimError, Stopped, UsageError, first_line
from repsim.images.image_set import Batch, Counts
from repsim.measures.running import all_kept
from repsim.networks.older_torch import safe_globals
from repsim.passes import processes, sealed
from repsim.tables import FULL, full, replacing, writer

FOLDER = ".repsim-resume"
ABOUT = "about.json"
MADE_BY = "repsim"
SUMS = re.compile(r"pass-\d+-of-\d+-\d+\.pt")
LEFT = ("files", "writers")
"""Names that a killed run leaves to the next one: of its results, and of the processes that wrote them."""
ROWS = re.compile(r"rows-(\d+\.(filling|whole|moving)|placed)")
"""Further files of a run here, which are removed with its sums: features under way."""
PART = re.compile(r"\.repsim-[0-9a-f]{12}-.*\.part.*")
WORTH = 50e6 / 60
"""The most bytes of sums for each second of work; larger sums of a short pass are made again instead of saved."""
STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name))
"""Signals of Ctrl-C, schedulers, closed terminals and Ctrl-\\."""
ONE_STOP = 2
"""Seconds within which signals count as one: `timeout` and `torchrun` signal a process and its group."""


class Resume:
    """The folder where a run saves its sums, and finds the sums of the run that it continues.

    Args:
        folder: made if it is missing.
        about: settings that the sums depend on, by their names in messages; any JSON values.
        every: seconds between two saves.
        fresh: remove the sums of an earlier run.
        settings: the digest that tells the run apart from runs whose results may lie beside its own.
        files: names of files and folders that the run will write beside the folder.
        allow: called before anything is written, with the files that an unfinished earlier run was to write; it raises
            where files lie that neither run may replace.
        say: gets a sentence, once, if the sums cannot be saved; None: a warning.

    Raises:
        UsageError: the sums in the folder have other settings, or a different run is using the folder.
        RepsimError: the sums in the folder cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        about: dict[str, Any],
        *,
        every: float = 60.0,
        fresh: bool = False,
        settings: str = "",
        files: Collection[str] = (),
        allow: Callable[[Collection[str]], None] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.folder, self.every = Path(folder), every
        self.done = False
        """Whether the pass that was begun last had been finished before."""
        self.goes_on = False
        """Whether sums of an earlier run are there, from which this one goes on."""
        self.say = say or (lambda text: warnings.warn(text, stacklevel=2))
        self._run = uuid4().hex
        self._pass, self._saved, self._wait = -1, time.monotonic(), every
        self._first: list[Any] | None = None
        self._stop = self._complained = False
        self._made: list[Path] = []
        share = processes.share()
        self._name = "1-0" if share is None else f"{share.of}-{share.rank}"
        self._lock: FileLock | None = None
        self._about: dict[str, Any] | None = None
        """The content of `about.json`, once it is this run's."""
        if share is None or share.rank == 0:
            self._made = [
                folder_above for folder_above in (self.folder, *self.folder.parents) if not folder_above.exists()
            ]
            try:
                self._take()
                before = self._check(json.loads(json.dumps(about, default=str)), fresh)
                if allow is not None:
                    allow(before["files"])
                self._run, self.goes_on = before["run"] or self._run, bool(before["run"])
                if fresh:
                    self._forget()
                self._about = {
                    "made_by": MADE_BY,
                    "run": self._run,
                    "writers": sorted({*before["writers"], writer()}),
                    "files": sorted({*before["files"], *files}),
                    "settings_sha256": settings,
                    "about": about,
                }
                self._write_about()
                self._clear(before["writers"])
            except BaseException:
                self.release()
                raise
        self._run, self.goes_on = processes.agreed((self._run, self.goes_on))

    def _take(self) -> None:
        """Lock the folder for this run."""
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise UsageError(f"{self.folder} is not a folder that repsim made; choose another directory with --out")
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self._lock = locked(self.folder)
            self.folder.mkdir(exist_ok=True)
        except Timeout:
            raise UsageError(
                f"another run is writing into {self.folder.parent}; choose another directory with --out"
            ) from None
        except (OSError, NotImplementedError) as error:
            reason = (error.strerror if isinstance(error, OSError) else "") or first_line(error)
            raise RepsimError(
                f"cannot write into {self.folder.parent}: {reason}; choose another directory with --out"
            ) from None

    def _check(self, about: dict[str, Any], fresh: bool) -> dict[str, Any]:
        """Entries on the earlier run: `run`, the id with which this run goes on, `writers`, `files`."""
        names = [path.name for path in self.folder.iterdir()]
        sums = any(map(SUMS.fullmatch, names))
        unknown: dict[str, Any] = {"run": "", "writers": [], "files": []}
        if ABOUT not in names:
            kinds = (SUMS, ROWS, PART)
            strangers = sorted(name for name in names if not any(kind.fullmatch(name) for kind in kinds))
            if strangers:
                raise UsageError(
                    f"{self.folder} holds {strangers[0]!r}, which repsim did not write; choose another directory with "
                    "--out"
                )
            if sums and not fresh:
                raise RepsimError(
                    f"there are sums in {self.folder}, but no {ABOUT} that says what they belong to; "
                    "start over with --fresh"
                )
            return unknown
        try:
            before = read_about(self.folder)
        except RepsimError:
            if fresh:  # its results and its writers are known from its sums too
                beside = [sealed.beside(self.folder / name) for name in names if SUMS.fullmatch(name)]
                return unknown | {kind: [name for left in beside for name in left.get(kind, ())] for kind in LEFT}
            raise
        known = {kind: before[kind] for kind in LEFT}
        if fresh or not sums:  # nothing was saved of an earlier run, if there was one
            return unknown | known
        of_run = before["about"]
        other = sorted(key for key in {**of_run, **about} if of_run.get(key) != about.get(key))
        if other:
            raise UsageError(
                f"{self.folder} holds the sums of another run, with other {', '.join(other)}; give the same command "
                "again, choose another directory with --out, or start over with --fresh"
            )
        return known | {"run": before["run"]}

    def begin(
        self, summing: Sequence[Any], once_more: Callable[[], Any] | None = None, rounding: float = 1e-4
    ) -> Counts:
        """Begin the next pass of the run, with its saved sums if there are some.

        Args:
            summing: the sums to fill, before the first batch.
            once_more: computes the first batch of the pass again and returns the value that `after` got; both are
                compared with the saved ones; None if there is no batch.
            rounding: the share by which they may differ; see `sealed.alike`.

        Raises:
            UsageError: the first batch gives different values now.
            RepsimError: the saved sums cannot be read.
        """
        self._pass, self.done, self._first = self._pass + 1, False, None
        if not self._file.exists():
            return Counts()
        saved = self._load(summing)
        self._first = saved["first"]
        unfinished_or_first = not saved["done"] or not self._pass
        values = once_more() if unfinished_or_first and self._first is not None and once_more is not None else None
        if values is not None:
            now = sealed.fingerprint([summed.sums for summed in summing], values)
            if not sealed.alike(now, self._first, rounding):
                raise UsageError(
                    f"{self.folder} holds the sums of another computation: its first batch gives other values now "
                    "than it gave then, so the code of a network, of its transform or of a library has changed; "
                    "start over with --fresh, or choose another directory with --out"
                )
        for summed, sums in zip(summing, saved["sums"], strict=True):
            summed.sums = sums
        self.done = saved["done"]
        return saved["counts"]

    def _load(self, summing: Sequence[Any]) -> dict[str, Any]:
        try:
            with safe_globals([*all_kept(), Counts]):
                saved = sealed.load(self._file, self._mark)
            if {"sums", "counts", "done", "first"} != set(saved) or len(saved["sums"]) != len(summing):
                raise ValueError("it holds something other than the sums of this pass")
        except Exception as error:
            raise RepsimError(
                f"cannot read {self._file}: {first_line(error)}; start over with --fresh, or choose another directory "
                "with --out"
            ) from None
        return saved

    def after(self, batch: Batch, summing: Sequence[Any], counts: Counts, values: Any = None) -> None:
        """After a batch: save if it is time, and stop if a signal asked for it.

        Args:
            values: the values that were computed from the batch.
        """
        if counts.batches == 1:
            self._first = sealed.fingerprint([summed.sums for summed in summing], values)
        if self._stop:
            if self._save(summing, counts, done=False):
                kept = "the sums are kept: the same command goes on from there"
            else:
                kept = "the sums could not be saved; those that were saved before, if any, are as they were"
            raise Stopped(f"stopped after batch {batch.number}; {kept}")
        if time.monotonic() - self._saved >= self._wait:
            self._wait = self.every if self._save(summing, counts, done=False) else 2 * self._wait
            self._saved = time.monotonic()

    def end(self, summing: Sequence[Any], counts: Counts) -> None:
        """After a pass: its sums over all processes, if it took long enough for their size."""
        seconds = time.monotonic() - self._saved
        if seconds >= self.every or sealed.size([summed.sums for summed in summing]) <= WORTH * seconds:
            self._save(summing, counts, done=True)
            self._saved = time.monotonic()

    @property
    def _file(self) -> Path:
        return self.folder / f"pass-{self._pass}-of-{self._name}.pt"

    @property
    def _mark(self) -> dict[str, Any]:
        """The description of a file of sums in its own last line."""
        return {"run": self._run, "pass": self._pass, "process": self._name}

    def _save(self, summing: Sequence[Any], counts: Counts, *, done: bool) -> bool:
        """Save, or say that it was not possible, which does not end a run."""
        sums = [summed.sums for summed in summing]
        saved = {"sums": sums, "counts": counts, "done": done, "first": self._first}
        try:
            if self._about is not None and not (self.folder / ABOUT).exists():
                self._write_about(again=True)
            with replacing(self._file) as part:
                left = {kind: self._about[kind] for kind in LEFT} if self._about else {}
                sealed.save(saved, part, self._mark, left)
        except (OSError, RuntimeError) as error:
            self._complain(error, sealed.size(sums))
            return False
        return True

    def _write_about(self, again: bool = False) -> None:
        try:
            with replacing(self.folder / ABOUT) as part:
                part.write_text(json.dumps(self._about, indent=2, default=str) + "\n")
        except OSError as error:
            if again:
                raise
            self._complain(error, 0)

    def _complain(self, error: Exception, needed: int) -> None:
        """Say once why the sums cannot be saved."""
        if self._complained:
            return
        self._complained = True
        reason = (error.strerror if isinstance(error, OSError) else "") or first_line(error)
        if getattr(error, "errno", None) in FULL:
            reason = full(self.folder, needed)
        self.say(
            f"the sums cannot be saved in {self.folder}: {reason}; those saved before, if any, are as they were; "
            "the run goes on, and tries again at its end"
        )

    def release(self) -> None:
        """Let further runs write here, whether this run is over or not; its empty files and folders are removed."""
        if self._lock is None:
            return
        with suppress(OSError):
            if self._about is not None and not any(SUMS.fullmatch(path.name) for path in self.folder.iterdir()):
                self._forget()
            self.folder.rmdir()  # fails unless it is empty
        lock, self._lock = self._lock, None
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()

    def finish(self) -> None:
        """The run is over: its results are written, its sums are not needed."""
        if self._lock is not None:
            self._forget()
            self.release()

    def _forget(self) -> None:
        """Remove the sums, and their settings last, so that a run killed meanwhile leaves no sums without settings."""
        names = sorted(path.name for path in self.folder.iterdir())
        for name in [name for name in names if any(kind.fullmatch(name) for kind in (SUMS, ROWS, PART))]:
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / ABOUT).unlink(missing_ok=True)

    def _clear(self, writers: Collection[str]) -> None:
        """Remove unfinished files of the processes of a run that was killed."""
        for path in self.folder.glob(".repsim-*.part*"):
            if PART.fullmatch(path.name) and path.is_file():
                path.unlink(missing_ok=True)
        for process in writers:
            for folder in ("", "*/"):
                for path in self.folder.parent.glob(f"{folder}.repsim-{process}-*.part*"):
                    with suppress(OSError):
                        path.unlink()

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """While active, `STOPS`, unless ignored (nohup), stop after the batch; a second signal stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.getsignal(number) for number in STOPS}
        before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}

        asked: list[float] = []

        def ask(number: int, frame: Any) -> None:
            self._stop = True
            asked.append(time.monotonic())
            if asked[-1] - asked[0] > ONE_STOP:
                for signal_number, handler in before.items():
                    signal.signal(signal_number, handler)
                os.kill(os.getpid(), number)

        for number in before:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def read_about(folder: Path) -> dict[str, Any]:
    """Read `about.json`, which describes the sums beside it.

    Raises:
        RepsimError: it cannot be read, or repsim did not write it.
    """
    file, again = folder / ABOUT, "start over with --fresh, or choose another directory with --out"
    try:
        text = file.read_bytes().decode()
        content = json.loads(text) if text.strip() else None
    except OSError as error:
        raise RepsimError(f"cannot read {file}: {error.strerror}; {again}") from None
    except ValueError:
        raise RepsimError(f"cannot read {file}: it is damaged, cut off or not JSON; {again}") from None
    if not text.strip():
        raise RepsimError(f"cannot read {file}: it is empty; {again}")
    texts = {"run": str, "settings_sha256": str, "about": dict, "writers": list, "files": list}
    if (
        not isinstance(content, dict)
        or content.get("made_by") != MADE_BY
        or any(not isinstance(content.get(name), kind) for name, kind in texts.items())
    ):
        raise RepsimError(f"cannot read {file}: it holds something other than repsim writes there; {again}")
    content["writers"] = [writer for writer in content["writers"] if re.fullmatch(r"[0-9a-f]{12}", str(writer))]
    content["files"] = [str(name) for name in content["files"]]
    return content


def lock_of(folder: Path) -> Path:
    """The file that the run which is at work in a folder has locked."""
    return folder.with_name(f"{folder.name}.lock")


def locked(folder: Path) -> FileLock:
    """The lock of a folder.

    Raises:
        Timeout: a different run holds it.
    """
    while True:
        file = lock_of(folder)
        if file.is_symlink() or (file.exists() and (not file.is_file() or file.stat().st_size)):
            raise OSError(0, f"{file.name} in it is not a lock that repsim made")
        lock = FileLock(file)
        lock.acquire(timeout=0)
        with suppress(OSError):
            held = lock._context.lock_file_fd
            if held is not None and file.stat().st_ino == os.fstat(held).st_ino:  # else its last holder removed it
                return lock
        lock.release()
