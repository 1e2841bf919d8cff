"""The directory of results, which holds no result of a different run; files that are not repsim's are kept.

Without `--out`, the directory is called after the command and its networks, `runs/cka-vit_mini-resnet_mini`. Where it
holds the result of a run with other weights, settings, images or versions, the first digits of this run's digest
follow its name. The same command, given again, finds its own directory, with or without digits.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import Timeout

from repsim.errors import RepsimError, UsageError
from repsim.passes.resume import FOLDER, SUMS, lock_of, locked, read_about
from repsim.tables import RECORD, load_record, save_record

SETTINGS = "settings_sha256"
"""The entry of a run's record with the digest of its settings."""
LONGEST = 200
"""Bytes of a name; file systems take 255. A longer one is cut, and the digest follows it."""


def digest(about: dict[str, Any]) -> str:
    """The digest of a run's settings, the same before and after they were saved as JSON."""
    plain = json.loads(json.dumps(about, default=str))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def own_directory(name: str, settings: str, runs: Path = Path("runs")) -> Path:
    """The directory of a run: its earlier one, else the first that is free.

    Args:
        name: names of the command and its networks.
        settings: the run's digest.
        runs: folder of the directories of all runs.

    Raises:
        UsageError: different runs have taken all names that it may have.
    """
    cut = os.fsencode(name)[:LONGEST].decode(errors="ignore")
    names = [name, f"{name}-{settings[:8]}"] if cut == name else [f"{cut}-{settings[:8]}"]
    holders = {runs / name: holder(runs / name) for name in names}
    for wanted in (settings, None):
        for place, holder_digest in holders.items():
            if holder_digest == wanted:
                return place
    taken = " and ".join(map(str, holders))
    raise UsageError(f"{taken} hold files of other runs; choose a directory with --out")


def holder(directory: Path) -> str | None:
    """The digest of the run whose result or sums are in a directory; empty if that is not known; None: it is free."""
    if (directory / RECORD).exists():
        return read(directory).get(SETTINGS, "")
    resume = directory / FOLDER
    entries = directory.iterdir() if directory.is_dir() else ()
    paths = [path for path in entries if not path.name.startswith(".")]
    sums = resume.is_dir() and any(SUMS.fullmatch(path.name) for path in resume.iterdir())
    if paths or sums or _at_work(resume):
        try:
            return read_about(resume)["settings_sha256"]
        except RepsimError:
            return ""
    return None


def read(directory: Path) -> dict[str, Any]:
    """The record in a directory; empty if it cannot be read."""
    try:
        return load_record(directory / RECORD)
    except RepsimError:
        return {}


def _at_work(resume: Path) -> bool:
    """Whether a run that has no result yet is under way in a directory."""
    if not lock_of(resume).exists():
        return False
    try:
        locked(resume).release()
    except Timeout:
        return True
    except OSError:
        pass
    return False


# Owners of files


def before(out: Path, settings: str, names: Collection[str], known: Collection[str], overwrite: bool) -> dict[str, Any]:
    """The record of the run whose results a new run replaces, if it may replace them; empty: there are none.

    Args:
        out: the directory of the results.
        settings: the digest of the new run.
        names: files and folders that the new run will write into it.
        known: files and folders that an unfinished run was to write there.
        overwrite: replace results of a different run.

    Raises:
        UsageError: files lie there that repsim has no record of writing, or results of a different run.
    """
    record = out / RECORD
    elsewhere = "choose another directory with --out"
    old: dict[str, Any] = {}
    if os.path.lexists(record):
        old = read(out) if record.is_file() else {}
        if "repsim-vision" not in old.get("versions", {}):
            raise UsageError(f"{record} is not the record of a repsim run; move it away, or {elsewhere}")
        if old.get(SETTINGS) != settings and not overwrite:
            raise UsageError(
                f"{out} holds the results of another run ({old.get('command', 'unknown')}); replace them with "
                f"--overwrite, or {elsewhere}"
            )
    own = {*known, *made_by(old), RECORD}
    if old and "files" not in old:  # an older version's, which kept no list
        own |= {*names}
    for name in names:
        if name not in own and _is_there(out / name, overwrite):
            raise UsageError(f"{out} holds {name}, which repsim does not know as its own; move it away, or {elsewhere}")
    return old


def _is_there(path: Path, overwrite: bool) -> bool:
    """Whether something would be replaced that must not be: a file, or a folder that is neither empty nor a figure."""
    if path.is_dir() and not path.is_symlink():
        return any(path.iterdir()) and not (overwrite and "paper_shows" in read(path))
    return os.path.lexists(path)


def made_by(record: dict[str, Any]) -> list[str]:
    """The files that a record lists as written by its run, and the folders they are in."""
    files = [name for name in record.get("files") or () if isinstance(name, str) and _inside(name)]
    return [*files, *{name.rpartition("/")[0] for name in files if "/" in name}]


def _inside(name: str) -> bool:
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts


def drop_tables(out: Path, old: dict[str, Any], written: Collection[Path]) -> None:
    """Remove the tables and arrays of a run that was replaced, before pictures are drawn from the new ones."""
    if old.get("command") is None:
        return
    for name in made_by(old):
        if "/" not in name and name.endswith((".csv", ".npz")) and out / name not in written:
            (out / name).unlink(missing_ok=True)


def settle(out: Path, old: dict[str, Any], written: Collection[Path]) -> None:
    """Note in the record of a finished run which files it wrote, and remove those of the run that it replaced."""
    record = read(out)
    files = {path.relative_to(out).as_posix() for path in written if path.is_relative_to(out)}
    old_files = {name for name in old.get("files") or () if name in made_by(old)} - files
    if old.get(SETTINGS) == record.get(SETTINGS):  # figures that were made before with the same set-up
        files |= {name for name in old_files if (out / name).exists()}
    else:
        for name in old_files:
            with suppress(OSError):
                (out / name).unlink()
                if "/" in name:
                    (out / name).parent.rmdir()  # a figure's; fails unless it is empty
    save_record({**record, "files": sorted(files)}, out / RECORD)
