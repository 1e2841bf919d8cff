"""The claims of the paper, checked against the tables of `repsim figures`. No torch."""

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
from scipy.stats import t

from repsim.errors import UsageError
from repsim.tables import NUMBERS, RECORD, load_record, load_table

COVERED = (
    "Intervals are over images, and for probes also over draws of training images; no interval covers how another "
    "training run of the same network would come out."
)
"""The sentence on the coverage of intervals."""
CLAIMS_COLUMNS = [
    *("claim", "source", "measured", "low", "high", "direction", "paper", "verdict"),
    *("why", "p", "se", "seeds", "sd_seeds", "p_holm", "verdict_holm"),
]
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
        caution: a limit of the interval, in words.
        paper: the paper's value for its own networks, where it gives one; the paper has no error bars.
        chance: key of the share of permutations that give as much, where intervals do not cover the permuted choice;
            above 5 % the claim stays undecided.
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
        if self.why(low, high, p):
            return "undecided"
        return "agrees" if (low > self.boundary) == self.above else "disagrees"

    def why(self, low: float, high: float, p: float = 0.0, df: float = np.nan) -> str:
        """Why a number with this interval decides nothing; nothing where it does."""
        if not (np.isfinite(low) and np.isfinite(high)):
            return "no interval: one group of images" if df == 0 else "no interval"
        if low <= self.boundary <= high:
            return f"the interval holds {self.boundary:g}"
        return "" if p <= 0.05 else "heads in another order do as much"

    def p_value(self, value: float, se: float, df: float, p: float = 0.0) -> float:
        """How often a number at least so far from the boundary comes where there is nothing, by Student's t.

        Args:
            value, se, df: the number, its standard error, and the degrees of freedom of that.
            p: of the permutations, where the claim has some; the larger of both is taken.

        Returns:
            From 0 to 1; NaN where there is no interval, or no permutations that the claim asks for.
        """
        return float(np.maximum(2 * t.sf(abs(value - self.boundary) / se, df), p))


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
    """Whether a network has random weights."""


def saved_numbers(directory: Path) -> dict[str, Numbers]:
    """The numbers of each figure with a claim, in a directory of `repsim figures`."""
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
    why: str
    """Why it is undecided."""
    p: float
    se: float
    """Standard error over images."""
    seeds: int
    """Number of training runs of the ViT with this number."""
    sd_seeds: float
    """Standard deviation over these training runs."""


def checked(numbers: Mapping[str, Numbers]) -> list[Checked]:
    """Every claim against the numbers of figures."""
    rows = []
    for claim in CLAIMS:
        if claim.figure not in numbers:
            continue
        table, random = numbers[claim.figure]
        untrained = " (random weights)" if random else ""
        for row in table[table["key"] == claim.key].itertuples():
            by_chance = table.loc[(table["key"] == claim.chance) & (table["models"] == row.models), "value"]
            p = next(iter(by_chance), np.nan) if claim.chance else 0.0
            remark = f" (p = {p:.2g}, heads permuted)" if claim.chance else claim.caution
            source = f"Figure {claim.figure}: {row.label}{remark}{untrained}"
            se = float((row.high - row.low) / 2 / t.ppf(0.975, row.df))
            verdict, why = claim.verdict(row.low, row.high, p), claim.why(row.low, row.high, p, row.df)
            decided = verdict, why, claim.p_value(row.value, se, row.df, p)
            described = json.loads(row.models), source, row.value, row.low, row.high
            rows.append(Checked(claim, *described, *decided, se, int(row.seeds), row.sd_seeds))
    return rows


def unchecked(numbers: Mapping[str, Numbers]) -> list[str]:
    """A sentence on the claims of these figures without a number; empty if every claim has one."""
    without = [
        f"{claim.claim} (Figure {claim.figure})"
        for claim in CLAIMS
        if claim.figure in numbers and claim.key not in set(numbers[claim.figure].table["key"])
    ]
    why = "no network plays a role that they compare, or none has the parts that they are about"
    return [f"no number of this run tells of these claims, because {why}: {'; '.join(without)}"] if without else []


def claims_of(numbers: Mapping[str, Numbers]) -> pd.DataFrame:
    """The table of claims, from the numbers of figures."""
    rows = [
        (
            *(row.claim.claim, row.source, row.measured, row.low, row.high, row.claim.direction, row.claim.paper),
            *(row.verdict, row.why, row.p, row.se, row.seeds, row.sd_seeds),
        )
        for row in checked(numbers)
    ]
    table = pd.DataFrame(rows, columns=CLAIMS_COLUMNS[:-2])
    adjusted = holm(table["p"].to_numpy(float))
    return table.assign(p_holm=adjusted, verdict_holm=table["verdict"].where(adjusted <= 0.05, "undecided"))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p values, which bound the probability that any of them is as small by chance.

    Args:
        p: (n,) p values of tests that may depend on each other; NaN stands for no test.

    Reference: Holm (1979), "A simple sequentially rejective multiple test procedure".

    >>> holm(np.array([0.01, np.nan, 0.04, 0.03])).round(3).tolist()
    [0.03, nan, 0.06, 0.06]
    """
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return adjusted


def by_chance(table: pd.DataFrame) -> str:
    """Sentences on how many of the table of `check` chance alone would decide, and how many stay decided after Holm."""
    tested, stay = int(table["p"].notna().sum()), int((table["verdict_holm"] != "undecided").sum())
    return (
        f"If there were nothing to find, chance would decide {0.05 * tested:.2g} of these {tested} numbers; with p "
        f"values adjusted for their number (Holm), {stay} stay decided."
    )


def _random(record: Path) -> bool:
    return record.exists() and load_record(record, "random")["random"]


def literal(text: str) -> str:
    """A text as a cell of a Markdown table: markup is escaped, and lines are broken by `<br>`.

    >>> print(literal("a|b <b> `c` $x_1$ _d"))
    a\\|b &lt;b&gt; \\`c\\` \\$x_1\\$ \\_d
    """
    between_letters = r"(?<=[^\W_])_(?=[^\W_])"  # an underscore here is no markup
    text = re.sub(rf"(?!{between_letters})([\\`*\[\]|~$_])", r"\\\1", escape(text, quote=False))
    return re.sub(r"\r\n|\r|\n", "<br>", text)


def markdown(table: pd.DataFrame) -> str:
    """The table of `check` as Markdown."""
    lines = [f"{OWN_PAGE} of its own networks | |", "|---|---|---|---|---|---|"]
    for row in table.itertuples():
        claim = literal(f"{row.claim} ({row.source})")
        interval = interval_in_words(row.low, row.high)
        verdict = f"**{row.verdict}**" + (f" ({row.why})" if row.why else "")
        verdict += after_holm(row.verdict, row.verdict_holm) + between_runs(row.seeds, row.sd_seeds, row.se)
        of_paper = f"{row.direction} | {literal(row.paper)} | {verdict} |"
        lines.append(f"| {claim} | {row.measured:.3f} | {interval} | {of_paper}")
    counts = table["verdict"].value_counts()
    verdicts = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in get_args(Verdict))
    return "\n".join([*lines, "", f"{verdicts}. {COVERED} {by_chance(table)}"]) + "\n"


def after_holm(verdict: str, adjusted: str) -> str:
    """The adjusted verdict, where it is another one.

    >>> after_holm("agrees", "undecided"), after_holm("agrees", "agrees")
    (', undecided after Holm', '')
    """
    return f", {adjusted} after Holm" if adjusted != verdict else ""


def between_runs(seeds: int, sd: float, se: float) -> str:
    """How far training runs differ, against images; nothing of a single run.

    >>> between_runs(3, 0.02, 0.005), between_runs(1, np.nan, 0.005)
    ('; sd over 3 training runs 0.02, se over images 0.005', '')
    """
    return f"; sd over {seeds} training runs {sd:.2g}, se over images {se:.2g}" if seeds > 1 else ""


def interval_in_words(low: float, high: float) -> str:
    """Both ends, if there is an interval.

    >>> interval_in_words(0.25, 0.5), interval_in_words(np.nan, np.nan)
    ('0.250 to 0.500', 'no interval')
    """
    return f"{low:.3f} to {high:.3f}" if np.isfinite(low) and np.isfinite(high) else "no interval"
