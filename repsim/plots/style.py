"""One look for all figures, how names are written on them, and how they are saved.

Names are text: `$x_1$`, `_x`, `100 %` or `\\alpha` is written as it is, since every title, label, tick and legend with
a name in it goes through `entitle`, `label`, `tick_names` or `legend`, and none of them lets matplotlib read markup.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import matplotlib.figure
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text
from scipy.stats import t

from repsim.errors import UsageError
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


class Figure(matplotlib.figure.Figure):
    """A figure of its own, not pyplot's: nothing has to be closed, and notebooks show it without `%matplotlib`."""

    def _repr_png_(self) -> bytes:
        with look(), io.BytesIO() as file:
            self.savefig(file, format="png", dpi=110)
            return file.getvalue()

    def draw(self, renderer: Any) -> None:
        """Draw; a character that the font lacks is a box, which `undrawn` reports once instead of once per text."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+|Matplotlib currently does not support")
            super().draw(renderer)


# Intervals on pictures

GROUPS = 32
"""The largest number of groups of batches in the jackknife of `measures/running.py`."""


def groups_of(record: Mapping[str, Any]) -> int | None:
    """The number of groups of batches, or of images, behind standard errors, by a run's record; None: not recorded."""
    batches, repeats = record.get("images", {}).get("batches"), record.get("protocol", {}).get("repeats", 1)
    if repeats > 1:  # standard errors are over these
        return repeats
    if (own := groups_of_images(record)) is not None:
        return own
    return min(batches, GROUPS) if isinstance(batches, int) else None


def groups_of_images(record: Mapping[str, Any]) -> int | None:
    """In how many groups of the jackknife images of their own groups were dealt; None: images had no groups."""
    groups = record.get("images", {}).get("groups")
    count = groups.get("jackknife") if isinstance(groups, dict) else None
    return count if isinstance(count, int) else None


def half_widths(se: pd.Series, df: int | pd.Series | None = None) -> pd.Series:
    """Half of the 95 % interval of each value, by Student's t.

    Args:
        se: standard errors.
        df: degrees of freedom of each, see `freedom`; None: many, or nobody knows, and the interval is that of the
            normal distribution, which is too narrow if they are few.

    Returns:
        NaN, for which nothing is drawn, where a standard error is unknown or zero.
    """
    return (t.ppf(0.975, np.inf if df is None else np.asarray(df, dtype=float)) * se).where(se > 0)


def freedom(groups: int | pd.Series | None) -> int | pd.Series | None:
    """Degrees of freedom of a standard error over this number of groups of images; None: not known."""
    return None if groups is None else groups - 1


# Names on pictures

NAMES = ("model", "model_a", "model_b", "layer", "layer_a", "layer_b")
LITERAL = {"parse_math": False, "usetex": False}
"""Properties of a text in which dollars, underscores and backslashes are plain characters."""
FILLED = 0.95
"""The most of a line's room that a text fills, so that no two texts touch, however a font is rounded to pixels."""
BREAKS = re.compile(r"(?<=[/:_@.\-])")
"""Where a word that is longer than a line can be broken: after such a character of a network's name."""
LONGEST = 200
"""The most characters of a name at a tick; in longer names `…` stands for the middle."""
ROOM = 16
"""The number of characters of a name at a tick for which every figure has room."""


def named(table: pd.DataFrame) -> pd.DataFrame:
    """The table, if its names are text; pandas, left to guess, reads 0.10 as 0.1 and NA as nothing.

    Raises:
        UsageError: they are not.
    """
    for column in table.columns.intersection(NAMES):
        for name in table[column].unique():
            if not isinstance(name, str):
                raise UsageError(
                    f"names must be text, and column {column} holds {name!r}; read the table with "
                    "repsim.tables.load_table(FILE), which guesses nothing"
                )
    return table


def literal(name: object) -> str:
    """A name as matplotlib can write it: bytes of a file name that are not UTF-8 are written out."""
    return str(name).encode("utf-8", "backslashreplace").decode()


@lru_cache(maxsize=4096)
def _advance(character: str) -> float:
    """The width of a character, in sizes of the font."""
    font = get_font(findfont(FontProperties(family=FontProperties().get_family()[:1])))
    font.set_size(100, 72)
    # Of a character that the font has not, the glyph is number 0, a box.
    return font.load_glyph(font.get_char_index(ord(character))).linearHoriAdvance / 65536 / 100


def inches_of(text: str, points: float) -> float:
    """The width of the widest line of a text in a size of the font."""
    return max(sum(map(_advance, line)) for line in text.split("\n")) * points / 72


def fold(text: str, inches: float, points: float) -> str:
    """Break a text into lines that fit into a width; lines that fit already stay as they are.

    A word that is longer than a line is broken too, after a mark of a name if possible.
    """
    lines = []
    for line in text.split("\n"):
        lines.append("")
        fits = inches_of(line, points) <= FILLED * inches
        for piece in [line] if fits else _pieces(line, FILLED * inches, points):
            if lines[-1] and not fits and inches_of((lines[-1] + piece).rstrip(), points) > FILLED * inches:
                lines[-1:] = [lines[-1].rstrip(), ""]
            lines[-1] += piece
    return "\n".join(lines)


def further(text: str, inches: float, points: float) -> float:
    """Inches that a text takes for the lines after its first, where it has so many for a width."""
    return fold(literal(text), inches, points).count("\n") * 1.25 * points / 72


def _pieces(line: str, inches: float, points: float) -> Iterator[str]:
    """What of a line may stand on lines of its own: words with the space behind them, or parts of long words."""
    for word in re.findall(r"\S*\s*", line):
        for part in [word] if inches_of(word.rstrip(), points) <= inches else BREAKS.split(word):
            yield from [part] if inches_of(part.rstrip(), points) <= inches else part


def entitle(figure: matplotlib.figure.Figure, title: str | None) -> None:
    """Write a title above a figure, in lines no wider than it."""
    if title:
        figure.suptitle(fold(literal(title), figure.get_size_inches()[0], LOOK["figure.titlesize"]), **LITERAL)


def note(figure: matplotlib.figure.Figure, record: Mapping[str, Any]) -> None:
    """Write in small type the number of images and the data behind a figure, if a run's record has them.

    It stands at the foot, or below the title where there is a legend at the foot.
    """
    images = record.get("images", {})
    if images.get("used") is None or images.get("data") is None:
        return
    split = f", {images['split']}" if images.get("split") else ""
    text = f"{images['used']:,} image{'s' * (images['used'] != 1)} of {images['data']}{split}"
    small = {"fontsize": LOOK["xtick.labelsize"], "color": "0.4"}
    with look():
        if figure.legends and (title := figure.get_suptitle()):
            entitle(figure, f"{title}\n{text}")
            return
        write = figure.suptitle if figure.legends else figure.supxlabel
        write(fold(literal(text), figure.get_size_inches()[0], small["fontsize"]), **small, **LITERAL)


def label(
    ax: Axes,
    *,
    title: str | None = None,
    x: str | None = None,
    y: str | None = None,
    inches: float,
    size: float = LOOK["axes.titlesize"],
) -> None:
    """Write the title of a panel and the labels of its axes, in lines no longer than the panel is wide.

    Args:
        ax: the panel.
        title, x, y: the texts; None leaves the present text.
        inches: width of the panel with its labels.
        size: of the title, in points.
    """

    def lines(text: str, points: float) -> str:
        return fold(literal(text), inches, points)

    if title is not None:
        ax.set_title(lines(title, size), fontsize=size, **LITERAL)
    if x is not None:
        ax.set_xlabel(lines(x, LOOK["axes.labelsize"]), **LITERAL)
    if y is not None:
        ax.set_ylabel(lines(y, LOOK["axes.labelsize"]), **LITERAL)


def tick_names(axis: Axis, positions: Sequence[float], names: Iterable[object]) -> None:
    """Write names at ticks."""
    axis.set_ticks(positions, [shortened(name) for name in names], **LITERAL)


def shortened(name: object) -> str:
    """A name, but for the middle of a very long one."""
    text = literal(name)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}…{text[1 - LONGEST // 2 :]}"


def room(names: Iterable[object]) -> float:
    """Inches that the longest of these names takes at a tick, beyond the room that every figure has."""
    lines = (line for name in names for line in shortened(name).split("\n"))
    return max(max(map(len, lines), default=0) - ROOM, 0) * 0.055


def figure_of(drawn: Axes | matplotlib.figure.FigureBase) -> Figure:
    """The whole figure that something is drawn in, which is one of ours unless the caller gave other axes."""
    inner: Any = drawn.figure  # perhaps a part of one; get_figure(root=True) is there from matplotlib 3.10 on
    return cast("Figure", inner.figure)


def legend(target: Axes | matplotlib.figure.FigureBase, entries: Iterable[tuple[Any, str]], **options: Any) -> None:
    """Write a legend of all handles and names; matplotlib itself leaves out names that begin with `_`.

    The lines of names are no wider than a panel, or the figure, and its columns leave room for.
    """
    entries = list(entries)
    if not entries:
        return
    drawn_legend = target.legend([drawn for drawn, _ in entries], ["-"] * len(entries), frameon=False, **options)
    width = figure_of(target).get_size_inches()[0]
    if isinstance(target, Axes) and (place := target.get_subplotspec()) is not None:
        width /= place.get_gridspec().ncols
    width = (width - 0.4) / options.get("ncols", 1) - 0.6  # beside what was drawn
    for text, (_, name) in zip(drawn_legend.get_texts(), entries):
        text.set(text=fold(literal(name), width, LOOK["font.size"]), **LITERAL)


def undrawn(figure: matplotlib.figure.Figure) -> str:
    """The characters on a figure that its font has not, and that boxes stand for on the picture."""
    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in FontProperties().get_family()]
    known = {character for font in fonts for character in font.get_charmap()} | {ord("\n")}
    written = {character for text in figure.findobj(Text) for character in text.get_text()}
    return "".join(sorted(character for character in written if ord(character) not in known))


def save(figure: matplotlib.figure.Figure, path: Path, *, untrained: bool = False) -> list[Path]:
    """Write `path`.png and `path`.pdf, each whole or not at all; of untrained networks also `path`-random.

    The figure is laid out once, as for the first of them.
    """
    written: list[Path] = []
    with look():
        for suffix in (".png", ".pdf", *(("-random.png", "-random.pdf") if untrained else ())):
            target = path.with_name(path.name + suffix)
            with whole(target) as part:
                figure.savefig(part, metadata={"CreationDate": None} if target.suffix == ".pdf" else None)
            figure.set_layout_engine("none")  # which would draw it once more before each further file
            written.append(target)
    return written
