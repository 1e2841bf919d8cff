"""What the paper claims, and whether the tables of `repsim figures` agree. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd

from repsim.errors import UsageError
from repsim.tables import NUMBERS, RECORD, load_record, load_table

COVERED = (
    "Intervals are over images, or over draws of training images for probes; none covers how another training run of "
    "the same network would come out."
)
"""What intervals say, and what they do not."""
CLAIMS_COLUMNS = ["claim", "source", "measured", "low", "high", "direction", "verdict"]
HEAD = "| the paper claims | measured | 95 % interval | the paper finds | |"
"""The first line of `claims.md`, by which repsim knows it as its own."""
Verdict = Literal["agrees", "disagrees", "undecided"]


@dataclass(frozen=True)
class Claim:
    """One statement of the paper as the side of a boundary on which a number lies.

    Attributes:
        claim: the paper's statement.
        figure: where it is made; its `numbers.csv` is read.
        number: its name there; `*` is the name of a network, whatever that is, or a word.
        above: whether the paper finds it above the boundary.
        boundary: 0 for differences.
        caution: what the interval leaves out.
    """

    claim: str
    figure: str
    number: str
    above: bool
    boundary: float = 0.0
    caution: str = ""

    @property
    def direction(self) -> str:
        return f"{'>' if self.above else '<'} {self.boundary:g}"

    def verdict(self, low: float, high: float) -> Verdict:
        """By whether the interval excludes the boundary; undecided also where there is no interval."""
        if not (np.isfinite(low) and np.isfinite(high)) or low <= self.boundary <= high:
            return "undecided"
        return "agrees" if (low > self.boundary) == self.above else "disagrees"


CLAIMS = [
    Claim("Representations of ViTs are more uniform than those of ResNets", "1", "low with high layers, * - *", True),
    Claim(
        "The lower half of a ResNet resembles the lowest quarter of a ViT",
        "2",
        "likest of * to lower half of * lowest quarter - rest",
        True,
    ),
    Claim(
        "The last third of a ViT resembles no layer of a ResNet as the rest does",
        "2",
        "likest of * to * last third - rest",
        False,
    ),
    Claim(
        "Low blocks have local heads: the nearest of the first block looks less than half as far as that of the last",
        "3",
        "nearest head, first / last block, *",
        False,
        boundary=0.5,
    ),
    Claim(
        "With little data heads of the first block are less local", "4", "nearest head of the first block, * - *", True
    ),
    Claim(
        "Heads that look farther resemble lower ResNet units less",
        "5",
        "rank correlation, * against *",
        False,
        caution=" (too narrow: windows share heads)",
    ),
    Claim(
        "Low ViT layers have larger receptive fields than low ResNet layers",
        "6",
        "half-mass radius, lowest third, * - *",
        True,
    ),
    Claim("Receptive fields grow with depth", "6", "half-mass radius, highest - lowest third, *", True),
    Claim(
        "The own patch counts more after a residual sum than in the branch",
        "C.4",
        "share of the own patch, after the sum - branch, *",
        True,
    ),
    Claim("CLS is carried more than other tokens in the first half", "7", "CLS - spatial ratio, first half, *", True),
    Claim(
        "CLS is carried less than other tokens in the second half", "7", "CLS - spatial ratio, second half, *", False
    ),
    Claim("Skips carry more in ViTs than in ResNets", "7", "skip over branch, * - *", True),
    Claim(
        "Without its skips a block divides the layers", "8", "CKA across block * without its skips - untouched", False
    ),
    Claim(
        "ViT tokens keep their place to the last block, ResNet positions less",
        "9",
        "own patch - rest, interior, * - *",
        True,
    ),
    Claim("Without CLS, tokens are less localized", "10", "own patch - rest, interior, * - *", False),
    Claim(
        "Single tokens probe better in GAP than in CLS models",
        "11",
        "accuracy, single tokens, last layer, GAP - CLS",
        True,
    ),
    Claim(
        "Low layers of little data are more like those of all data than high ones",
        "12",
        "lowest - highest third, *",
        True,
    ),
    Claim(
        "More data makes better representations in the middle",
        "13",
        "accuracy, aggregated, middle third, more data",
        True,
        caution=" (of mini: two training runs on the same images differ as much)",
    ),
    Claim(
        "ViTs have better representations in the middle than ResNets",
        "13",
        "accuracy, aggregated, middle third, ViT - ResNet",
        True,
    ),
    Claim("Fine-tuning preserves low layers more than high ones", "G.1", "lowest - highest third, *", True),
    Claim("MLP-Mixer is closer to ViT than to ResNet", "H.2", "likest layers, * with * - with *", True),
]
"""The directional checks; each is read off every number of its name, so that no network is left out."""


def check(directory: Path) -> pd.DataFrame:
    """Every claim against a directory of `repsim figures`; one row per claim and number of its name.

    Raises:
        UsageError: there are no figures with numbers in it.
    """
    rows = []
    for claim in CLAIMS:
        file = directory / f"figure-{claim.figure}" / "numbers.csv"
        if not file.exists():
            continue
        table = load_table(file, NUMBERS)
        untrained = " (random weights)" if _random(file.with_name(RECORD)) else ""
        for row in table[table["number"].map(lambda name, claim=claim: matches(claim.number, name))].itertuples():
            source = f"Figure {claim.figure}: {row.number}{claim.caution}{untrained}"
            verdict = claim.verdict(row.low, row.high)
            rows.append((claim.claim, source, row.value, row.low, row.high, claim.direction, verdict))
    if not rows:
        raise UsageError(f"there are no numbers in {directory}; make some with `repsim figures --out {directory}`")
    return pd.DataFrame(rows, columns=CLAIMS_COLUMNS)


def _random(record: Path) -> bool:
    return record.exists() and load_record(record, "random")["random"]


def matches(pattern: str, name: str) -> bool:
    """Whether a number has a name of this form; `*` is a network, whatever its name, or a word."""
    return re.fullmatch(".+".join(map(re.escape, pattern.split("*"))), name, re.DOTALL) is not None


def literal(text: str) -> str:
    """A text as a cell of a table in Markdown, in which nothing is markup: what would be is escaped, lines are broken.

    >>> print(literal("a|b <b> `c` $x_1$ _d"))
    a\\|b &lt;b&gt; \\`c\\` \\$x_1\\$ \\_d
    """
    between_letters = r"(?<=[^\W_])_(?=[^\W_])"  # where an underscore is none but itself
    text = re.sub(rf"(?!{between_letters})([\\`*\[\]|~$_])", r"\\\1", escape(text, quote=False))
    return re.sub(r"\r\n|\r|\n", "<br>", text)


def markdown(table: pd.DataFrame) -> str:
    """The table of `check` as Markdown."""
    lines = [HEAD, "|---|---|---|---|---|"]
    for row in table.itertuples():
        where = literal(f"{row.claim} ({row.source})")
        interval = f"{row.low:.3f} to {row.high:.3f}"
        lines.append(f"| {where} | {row.measured:.3f} | {interval} | {row.direction} | **{row.verdict}** |")
    counts = table["verdict"].value_counts()
    said = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in get_args(Verdict))
    return "\n".join([*lines, "", f"{said}. {COVERED}"]) + "\n"
