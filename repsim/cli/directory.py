"""Where the results of a run without `--out` go: into a directory that no other run's result lies in.

The directory is called after the command and its networks, `runs/cka-vit_mini-resnet_mini`. Where that one holds what
another run made, with other weights, settings, images or versions, the first digits of this run's digest follow its
name. The same command, given again, finds its own directory, whichever of the two it is.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from repsim.errors import UsageError
from repsim.resume import ABOUT, lock_of
from repsim.tables import RECORD

SETTINGS = "settings_sha256"
"""What a run's record calls the digest of all that tells it apart from others."""
LONGEST = 200
"""Bytes of a name; file systems take 255. A longer one is cut, and the digest follows it."""


def digest(about: dict[str, Any]) -> str:
    """The digest of what a run's sums belong to, the same before and after it was saved as JSON."""
    plain = json.loads(json.dumps(about, default=str))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def own_directory(name: str, settings: str, runs: Path = Path("runs")) -> Path:
    """The directory of a run: the one it made before, else the first that is free.

    Args:
        name: of the command and its networks.
        settings: the run's digest.
        runs: where the directories of all runs are.

    Raises:
        UsageError: others have all that it may be.
    """
    cut = os.fsencode(name)[:LONGEST].decode(errors="ignore")
    names = [name, f"{name}-{settings[:8]}"] if cut == name else [f"{cut}-{settings[:8]}"]
    holders = {runs / each: holder(runs / each) for each in names}
    for wanted in (settings, None):
        for place, found in holders.items():
            if found == wanted:
                return place
    taken = " and ".join(map(str, holders))
    raise UsageError(f"{taken} hold what other runs made; choose a directory with --out")


def holder(directory: Path) -> str | None:
    """The digest of the run whose result or sums are in a directory; empty if that is not known; None: it is free."""
    record = directory / RECORD
    if record.exists():
        return _read(record).get(SETTINGS, "")
    resume = directory / "resume"
    there = directory.iterdir() if directory.is_dir() else ()
    made = [path for path in there if path != resume and not path.name.startswith(".")]
    if made or any(resume.glob("pass-*.pt")) or _at_work(resume):
        about = _read(resume / ABOUT)
        return digest(about) if about else ""
    return None


def _read(file: Path) -> dict[str, Any]:
    """What a JSON file says; nothing if it cannot be read."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _at_work(resume: Path) -> bool:
    """Whether a run that has not made anything yet is under way in a directory."""
    lock = lock_of(resume)
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
