"""One look for all figures, and how they are saved."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import matplotlib.figure

from repsim.tables import whole

SIMILARITY_CMAP = "magma"
UNDEFINED = "0.75"

LOOK = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "figure.titlesize": 10,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}


@contextmanager
def look() -> Iterator[None]:
    """Draw in repsim's look, and leave the user's settings as they were."""
    with mpl.rc_context(LOOK):
        yield


CHARACTERS = 12
"""Of a title, per inch."""


class Figure(matplotlib.figure.Figure):
    """A figure of its own, not pyplot's: nothing has to be closed, and notebooks show it without `%matplotlib`."""

    def _repr_png_(self) -> bytes:
        with look(), io.BytesIO() as file:
            self.savefig(file, format="png", dpi=110)
            return file.getvalue()


def entitle(figure: matplotlib.figure.Figure, title: str | None) -> None:
    """Write a title above a figure, in lines no wider than it."""
    width = int(CHARACTERS * figure.get_size_inches()[0])
    if title:
        figure.suptitle("\n".join(line for part in title.splitlines() for line in textwrap.wrap(part, width)))


def save(figure: matplotlib.figure.Figure, path: Path) -> list[Path]:
    """Write `path`.png and `path`.pdf, each whole or not at all."""
    written = []
    with look():
        for suffix in (".png", ".pdf"):
            target = path.with_name(path.name + suffix)
            with whole(target) as part:
                figure.savefig(part, metadata={"CreationDate": None} if suffix == ".pdf" else None)
            written.append(target)
    return written
