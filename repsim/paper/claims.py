"""What the paper claims, and whether the tables of `repsim figures` agree. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd

from repsim.errors import UsageError
from repsim.tables import NUMBERS, RECORD, load_record, load_table

COVERED = (
    "Intervals are over images, or over draws of training images for probes; none covers how another training run of "
    "the same network would come out."
)
"""What intervals say, and what they do not."""
CLAIMS_COLUMNS = ["claim", "source", "measured", "low", "high", "direction", "paper", "verdict"]
OWN_TABLE = ",".join(CLAIMS_COLUMNS[:6])
"""How `claims.csv` begins, by which repsim knows it as its own, and an older version's."""
OWN_PAGE = "| the paper claims | measured | 95 % interval | the paper finds |"
"""How `claims.md` begins."""
Verdict = Literal["agrees", "disagrees", "undecided"]


@dataclass(frozen=True)
class Claim:
    """One statement of the paper as the side of a boundary on which a number lies.

    Attributes:
        claim: the paper's statement.
        figure: where it is made; its `numbers.csv` is read.
        key: of its numbers there.
        above: whether the paper finds it above the boundary.
        boundary: 0 for differences.
        caution: what the interval leaves out.
        paper: what the paper gives for its own networks, where it gives a value; none of them has an error bar.
        chance: key of the share of permutations that give as much, where intervals do not cover what is permuted; of
            more than 5 % the claim stays undecided.
    """

    claim: str
    figure: str
    key: str
    above: bool
    boundary: float = 0.0
    caution: str = ""
    chance: str = ""
    paper: str = ""

    @property
    def direction(self) -> str:
        return f"{'>' if self.above else '<'} {self.boundary:g}"

    def verdict(self, low: float, high: float, p: float = 0.0) -> Verdict:
        """By whether the interval excludes the boundary; undecided also where there is no interval, or by chance."""
        if not (np.isfinite(low) and np.isfinite(high) and p <= 0.05) or low <= self.boundary <= high:
            return "undecided"
        return "agrees" if (low > self.boundary) == self.above else "disagrees"


CLAIMS = [
    Claim(
        "Representations of ViTs are more uniform than those of ResNets",
        figure="1",
        key="low_with_high_difference",
        above=True,
    ),
    Claim(
        "The lower half of a ResNet resembles the lowest quarter of a ViT",
        figure="2",
        key="lowest_quarter_minus_rest",
        above=True,
        paper="60 layers of ResNet50 to the lowest quarter of ViT-L/16",
    ),
    Claim(
        "The last third of a ViT resembles no layer of a ResNet as the rest does",
        figure="2",
        key="last_third_minus_rest",
        above=False,
    ),
    Claim(
        "Low blocks have local heads: the nearest of the first block looks less than half as far as that of the last",
        figure="3",
        key="nearest_head_ratio",
        above=False,
        boundary=0.5,
    ),
    Claim(
        "With little data heads of the first block are less local",
        figure="4",
        key="nearest_head_first_difference",
        above=True,
    ),
    Claim(
        "Heads that look farther resemble lower ResNet units less",
        figure="5",
        key="rank_correlation",
        above=False,
        chance="rank_correlation_p",
        paper="-1: CKA falls with distance throughout",
    ),
    Claim(
        "Low ViT layers have larger receptive fields than low ResNet layers",
        figure="6",
        key="radius_lowest_third_difference",
        above=True,
    ),
    Claim("Receptive fields grow with depth", figure="6", key="radius_highest_minus_lowest_third", above=True),
    Claim(
        "The own patch counts more after a residual sum than in the branch",
        figure="C.4",
        key="own_patch_sum_minus_branch",
        above=True,
    ),
    Claim(
        "CLS is carried more than other tokens in the first half",
        figure="7",
        key="cls_minus_spatial_first_half",
        above=True,
    ),
    Claim(
        "CLS is carried less than other tokens in the second half",
        figure="7",
        key="cls_minus_spatial_second_half",
        above=False,
    ),
    Claim("Skips carry more in ViTs than in ResNets", figure="7", key="skip_over_branch_difference", above=True),
    *(
        Claim(
            "Without its skips a block divides the layers",
            figure="8",
            key=f"across_block_{block}_difference",
            above=False,
        )
        for block in (1, 5, 9)
    ),
    Claim(
        "ViT tokens keep their place to the last block, ResNet positions less",
        figure="9",
        key="own_minus_rest_difference",
        above=True,
    ),
    Claim("Without CLS, tokens are less localized", figure="10", key="own_minus_rest_difference", above=False),
    Claim(
        "Single tokens probe better in GAP than in CLS models",
        figure="11",
        key="accuracy_gap_minus_cls",
        above=True,
        paper="about 0.5: 57 to 58 % against 6 to 10 %, read off the scales of Figure D.4",
    ),
    Claim(
        "Low layers of little data are more like those of all data than high ones",
        figure="12",
        key="lowest_minus_highest_third",
        above=True,
    ),
    Claim(
        "More data makes better representations in the middle",
        figure="13",
        key="accuracy_more_data",
        above=True,
        caution=" (of mini: two training runs on the same images differ as much)",
        paper="0.30, JFT-300M against ImageNet",
    ),
    Claim(
        "ViTs have better representations in the middle than ResNets",
        figure="13",
        key="accuracy_vit_minus_resnet",
        above=True,
    ),
    Claim(
        "Fine-tuning preserves low layers more than high ones",
        figure="G.1",
        key="lowest_minus_highest_third",
        above=True,
        paper="the first four or five blocks are preserved",
    ),
    Claim("MLP-Mixer is closer to ViT than to ResNet", figure="H.2", key="likest_difference", above=True),
]
"""The directional checks; each is read off every number of its key, so that no network is left out."""


def check(directory: Path) -> pd.DataFrame:
    """Every claim against a directory of `repsim figures`; one row per claim and number of its key.

    Raises:
        UsageError: there are no figures with numbers in it.
    """
    table = claims_of(saved_numbers(directory))
    if not len(table):
        raise UsageError(f"there are no numbers in {directory}; make some with `repsim figures --out {directory}`")
    return table


class Numbers(NamedTuple):
    """The numbers of a figure."""

    table: pd.DataFrame
    random: bool
    """Whether weights are random."""


def saved_numbers(directory: Path) -> dict[str, Numbers]:
    """Those of each figure in a directory of `repsim figures` of which something is claimed."""
    files = {claim.figure: directory / f"figure-{claim.figure}" / "numbers.csv" for claim in CLAIMS}
    return {
        figure: Numbers(load_table(file, NUMBERS), _random(file.with_name(RECORD)))
        for figure, file in files.items()
        if file.exists()
    }


class Checked(NamedTuple):
    """A claim, one of its numbers and the verdict."""

    claim: Claim
    models: list[str]
    source: str
    measured: float
    low: float
    high: float
    verdict: Verdict


def checked(found: Mapping[str, Numbers]) -> list[Checked]:
    """Every claim against the numbers of figures."""
    rows = []
    for claim in CLAIMS:
        if claim.figure not in found:
            continue
        table, random = found[claim.figure]
        untrained = " (random weights)" if random else ""
        for row in table[table["key"] == claim.key].itertuples():
            by_chance = table.loc[(table["key"] == claim.chance) & (table["models"] == row.models), "value"]
            p = next(iter(by_chance), np.nan) if claim.chance else 0.0
            said = f" (p = {p:.2g}, heads permuted)" if claim.chance else claim.caution
            source = f"Figure {claim.figure}: {row.label}{said}{untrained}"
            verdict = claim.verdict(row.low, row.high, p)
            rows.append(Checked(claim, json.loads(row.models), source, row.value, row.low, row.high, verdict))
    return rows


def unchecked(found: Mapping[str, Numbers]) -> list[str]:
    """A sentence on the claims of figures that were made, of which there is no number; none if there are no such."""
    without = [
        f"{claim.claim} (Figure {claim.figure})"
        for claim in CLAIMS
        if claim.figure in found and claim.key not in set(found[claim.figure].table["key"])
    ]
    why = "a role that they compare is not played, or no network has what they are about"
    return [f"claims that no number of this run tells of, for {why}: {'; '.join(without)}"] if without else []


def claims_of(found: Mapping[str, Numbers]) -> pd.DataFrame:
    """The table of claims, from the numbers of figures."""
    rows = [
        (of.claim.claim, of.source, of.measured, of.low, of.high, of.claim.direction, of.claim.paper, of.verdict)
        for of in checked(found)
    ]
    return pd.DataFrame(rows, columns=CLAIMS_COLUMNS)


def _random(record: Path) -> bool:
    return record.exists() and load_record(record, "random")["random"]


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
    lines = [f"{OWN_PAGE} of its own networks | |", "|---|---|---|---|---|---|"]
    for row in table.itertuples():
        where = literal(f"{row.claim} ({row.source})")
        interval = f"{row.low:.3f} to {row.high:.3f}"
        of_paper = f"{row.direction} | {literal(row.paper)} | **{row.verdict}** |"
        lines.append(f"| {where} | {row.measured:.3f} | {interval} | {of_paper}")
    counts = table["verdict"].value_counts()
    said = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in get_args(Verdict))
    return "\n".join([*lines, "", f"{said}. {COVERED}"]) + "\n"
