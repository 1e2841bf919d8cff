"""Files, before they are opened: to open a pipe is to wait, and a device may have no end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from repsim.errors import RepsimError

KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a directory",
}
"""What else than a regular file may be where one is looked for."""


def kind(path: str | os.PathLike[str]) -> str | None:
    """What is there instead of a regular file; None if one is there, or nothing."""
    try:
        return KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    except (OSError, ValueError):
        return None


def regular(path: Path) -> Path:
    """The path, unless something else than a regular file is there; whoever opens it finds out that nothing is.

    Raises:
        RepsimError: it is a pipe, a device or a directory.
    """
    if instead := kind(path):
        raise RepsimError(f"cannot read {path}: it must be a regular file, and it is {instead}")
    return path
