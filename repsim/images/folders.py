"""Find the images in a folder and their classes, and count the files that are left out."""

from __future__ import annotations

import functools
import os
import re
import stat
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from repsim.errors import RepsimError, UsageError, first_line

KINDS = {
    "hidden": ("hidden", "hidden"),
    "other_files": ("file not named as an image", "files not named as images"),
    "special_files": ("special file", "special files"),
    "duplicates_by_link": ("duplicate by link", "duplicates by link"),
    "dead_links": ("link that leads nowhere", "links that lead nowhere"),
    "folders_without_images": ("folder without images", "folders without images"),
    "closed_folders": ("folder that may not be read", "folders that may not be read"),
}
"""Kinds of files that are left out: the name in `run.json` -> the words of a sentence, for one and for several."""

Kind = Literal["file", "folder", "link", "special"]


@dataclass(frozen=True)
class Listing:
    """It holds the images of a folder, in natural order of their names."""

    root: Path
    paths: list[str]
    classes: list[str]
    """These are the folders directly inside that hold images, at whatever depth."""
    labels: np.ndarray
    """(n,) numbers of the classes; images that lie beside the folders of classes have -1."""
    left_out: dict[str, int]
    """So much was left out of each of `KINDS`; a kind is not named if there was none of it."""


def list_images(root: Path, suffixes: Container[str]) -> Listing:
    """Find the images of a folder without opening any file.

    Names below the root that begin with a dot are hidden, and what is in a hidden folder is not looked at. The root's
    own name does not matter. What has another suffix is no image, and neither is a pipe, a socket or a device.

    Links are followed after all that is there without them, in natural order, and each leads only to what was not
    found before: an image belongs to the folder it really lies in, and where only links lead to it, to the first.
    A link that is named as an image and leads nowhere counts as an image: one that cannot be read.

    Args:
        root: the folder.
        suffixes: which suffixes images have, in lower case and with their dot.

    Raises:
        UsageError: the root itself may not be read.
        RepsimError: a folder could not be read for another reason than that it may not be.
    """
    walk = _Walk(root, suffixes)
    walk.folder("", os.path.realpath(root))
    while walk.links:
        links, walk.links = sorted(walk.links, key=natural), []
        for link in links:
            walk.link(link)
    names = sorted(walk.images.values(), key=natural)
    class_of = [_top(name) for name in names]
    classes = sorted({top for top in class_of if top}, key=natural)
    number = {name: label for label, name in enumerate(classes)}
    directly_inside = {name for name in walk.folders.values() if name and not _top(name)}
    walk.left_out["folders_without_images"] = len(directly_inside - set(classes))
    return Listing(
        root=root,
        paths=[os.path.join(root, name) for name in names],
        classes=classes,
        labels=np.array([number.get(top, -1) for top in class_of], dtype=np.int64),
        left_out={kind: walk.left_out[kind] for kind in KINDS if walk.left_out[kind]},
    )


def said(root: Path, left_out: dict[str, int]) -> str:
    """Say on one line what was left out of a folder.

    >>> said(Path("photos"), {"hidden": 3, "dead_links": 1})
    'left out of photos: 3 hidden, 1 link that leads nowhere'
    """
    kinds = (f"{count} {KINDS[kind][count != 1]}" for kind, count in left_out.items())
    return f"left out of {root}: {', '.join(kinds)}"


def natural(name: str) -> tuple[list[str | int], str]:
    """Give the key that sorts names as people do it: 2 comes before 10, and upper case stands beside lower case.

    >>> sorted(["b10", "B9", "a"], key=natural)
    ['a', 'B9', 'b10']
    """
    parts: list[str | int] = re.split(r"(\d+)", name.lower())
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def _top(name: str) -> str:
    """Name the folder directly inside the root that holds a path; the name is empty if the root itself holds it."""
    return name.partition(os.sep)[0] if os.sep in name else ""


class _Walk:
    """A walk through a folder. Paths are relative to the root, and every file is kept by its real path."""

    def __init__(self, root: Path, suffixes: Container[str]) -> None:
        self.root, self.suffixes = root, suffixes
        self.images: dict[str, str] = {}
        self.folders: dict[str, str] = {}
        self.links: list[str] = []
        """These links were met and have not been followed yet."""
        self.left_out: Counter[str] = Counter()
        self.real_folder = functools.cache(os.path.realpath)

    def folder(self, name: str, real: str) -> None:
        """Take in the files of a folder, at every depth; links are only noted."""
        waiting = [(name, real)]
        while waiting:
            name, real = waiting.pop()
            if real in self.folders:
                self.left_out["duplicates_by_link"] += 1
                continue
            entries = self.entries(name)
            if entries is None:
                self.left_out["closed_folders"] += 1
                continue
            self.folders[real] = name
            for entry, kind in entries:
                inside = os.path.join(name, entry)
                if entry.startswith("."):
                    self.left_out["hidden"] += 1
                elif kind == "link":
                    self.links.append(inside)
                elif kind == "folder":
                    waiting.append((inside, os.path.join(real, entry)))
                else:
                    self.file(inside, os.path.join(real, entry), regular=kind == "file")

    def entries(self, name: str) -> list[tuple[str, Kind]] | None:
        """List the entries directly in a folder; None where it may not be read."""
        path = os.path.join(self.root, name) if name else self.root
        try:
            with os.scandir(path) as entries:
                return [(entry.name, _kind(entry)) for entry in entries]
        except OSError as error:
            may_not = isinstance(error, PermissionError)
            if may_not and name:
                return None
            raise (UsageError if may_not else RepsimError)(
                f"cannot read the folder {path}: {first_line(error)}"
            ) from None

    def file(self, name: str, real: str, *, regular: bool = True) -> None:
        if not regular:
            self.left_out["special_files"] += 1
        elif not self.is_named_as_image(name):
            self.left_out["other_files"] += 1
        elif real in self.images:
            self.left_out["duplicates_by_link"] += 1
        else:
            self.images[real] = name

    def link(self, name: str) -> None:
        path = os.path.join(self.root, name)
        try:
            mode, real = os.stat(path).st_mode, self.target(path)
        except OSError:  # there is nothing, or links go round in a circle, or one may not look
            if self.is_named_as_image(name):
                self.file(name, os.path.realpath(path))
            else:
                self.left_out["dead_links"] += 1
            return
        if stat.S_ISDIR(mode):
            self.folder(name, real)
        else:
            self.file(name, real, regular=stat.S_ISREG(mode))

    def target(self, link: str) -> str:
        """Give the real path of a link. `os.path.realpath` is slow, and asked once per folder that links lead to."""
        folder, name = os.path.split(os.path.join(os.path.dirname(link), os.readlink(link)))
        path = os.path.join(self.real_folder(folder), name)
        return os.path.realpath(link) if name in ("", ".", "..") or os.path.islink(path) else path

    def is_named_as_image(self, name: str) -> bool:
        return os.path.splitext(name)[1].lower() in self.suffixes


def _kind(entry: os.DirEntry[str]) -> Kind:
    if entry.is_symlink():
        return "link"
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    return "file" if entry.is_file(follow_symlinks=False) else "special"
