"""The six findings of the paper, each with a sentence made from the numbers of a run. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from repsim.paper.claims import CLAIMS, Checked, Numbers, checked

FINDINGS_COLUMNS = ["finding", "verdict", "found"]
MOST = 2
"""The most numbers of one kind in a sentence; it counts the rest."""


class Phrase(NamedTuple):
    """The words for a number; `{a}` and `{b}` are its networks."""

    figure: str
    key: str
    more: str
    """The words for a positive number."""
    less: str = ""
    """The words for a negative number, which is given without its sign; empty: `more`, with the sign."""


class Finding(NamedTuple):
    """One of the contributions that the paper lists in its introduction."""

    paper: str
    told: tuple[Phrase, ...]
    """The numbers in its sentence."""
    counted: tuple[tuple[str, str], ...] = ()
    """Figures and keys of further numbers that its verdict counts."""

    @property
    def checks(self) -> set[tuple[str, str]]:
        return {(phrase.figure, phrase.key) for phrase in self.told} | set(self.counted)


FINDINGS = (
    Finding(
        "ViTs have more uniform representations than ResNets: low and high layers are more alike",
        (
            Phrase(
                *("1", "low_with_high_difference"),
                "low and high layers are more alike in {a} than in {b}, by a CKA of {value}",
                "low and high layers are less alike in {a} than in {b}, by a CKA of {value}",
            ),
        ),
        (("2", "lowest_quarter_minus_rest"), ("2", "last_third_minus_rest")),
    ),
    Finding(
        "ViTs take in more global information in low layers, and so have other features than ResNets",
        (
            Phrase(
                *("6", "radius_lowest_third_difference"),
                "low layers of {a} see farther than those of {b}, half of the gradient by {value} px",
                "low layers of {a} see less far than those of {b}, half of the gradient by {value} px",
            ),
            Phrase(
                *("5", "rank_correlation"),
                "how far heads of {a} look and how they resemble low layers of {b} have a rank correlation of {value}",
            ),
        ),
    ),
    Finding(
        "Low layers of ViTs look at what is near too, which attention learns from much data",
        (
            Phrase(
                *("3", "nearest_head_ratio"),
                "the nearest head of the first block of {a} looks {value} times as far as that of the last",
            ),
            Phrase(
                *("4", "nearest_head_first_difference"),
                "the nearest head of the first block looks {value} px farther in {a}, of less data, than in {b}",
                "the nearest head of the first block looks {value} px less far in {a}, of less data, than in {b}",
            ),
        ),
    ),
    Finding(
        "Skip connections carry more in ViTs than in ResNets, and layers resemble each other through them",
        (
            Phrase(
                *("7", "skip_over_branch_difference"),
                "the skip is longer beside its branch in {a} than in {b}, by {value} branches",
                "the skip is shorter beside its branch in {a} than in {b}, by {value} branches",
            ),
        ),
        (
            ("7", "cls_minus_spatial_first_half"),
            ("7", "cls_minus_spatial_second_half"),
            ("C.4", "own_patch_sum_minus_branch"),
            *(("8", claim.key) for claim in CLAIMS if claim.figure == "8"),
        ),
    ),
    Finding(
        "ViTs keep where things are in the image to the last block, by way of CLS",
        (
            Phrase(
                *("9", "own_minus_rest_difference"),
                "tokens stand out at their own place more in {a} than in {b}, by a CKA of {value}",
                "tokens stand out at their own place less in {a} than in {b}, by a CKA of {value}",
            ),
            Phrase(
                *("10", "own_minus_rest_difference"),
                "and more in {a}, without CLS, than in {b}, by {value}",
                "and less in {a}, without CLS, than in {b}, by {value}",
            ),
        ),
        (("11", "accuracy_gap_minus_cls"),),
    ),
    Finding(
        "More data makes better representations in the middle of ViTs, better than those of ResNets",
        (
            Phrase(
                *("13", "accuracy_vit_minus_resnet"),
                "probes of the middle layers of {a} are right more often than those of {b}, by {value}",
                "probes of the middle layers of {a} are right less often than those of {b}, by {value}",
            ),
            Phrase(
                *("13", "accuracy_more_data"),
                "and those of {a} more often than those of {b}, of less data, by {value}",
                "and those of {a} less often than those of {b}, of less data, by {value}",
            ),
        ),
        (("12", "lowest_minus_highest_third"),),
    ),
)
"""In the order of the paper's introduction."""


def findings(numbers: Mapping[str, Numbers]) -> pd.DataFrame:
    """The table of findings, from the numbers of figures: finding, verdict and found, a sentence."""
    rows = checked(numbers)
    table = []
    for finding in FINDINGS:
        own = [row for row in rows if (row.claim.figure, row.claim.key) in finding.checks]
        untrained = " Weights are random." if any(numbers[row.claim.figure].random for row in own) else ""
        table.append((finding.paper, _verdict(own), _sentence(finding, own) + untrained))
    return pd.DataFrame(table, columns=FINDINGS_COLUMNS)


def _verdict(own: Sequence[Checked]) -> str:
    verdicts = {row.verdict for row in own}
    if not verdicts:
        return "not measured"
    if "agrees" in verdicts:
        return "seen" if len(verdicts) == 1 else "seen in part"
    return "not seen" if "disagrees" in verdicts else "undecided"


def _sentence(finding: Finding, own: Sequence[Checked]) -> str:
    if not own:
        figures = sorted({figure for figure, _ in finding.checks}, key=lambda number: (len(number), number))
        return f"No number of this run tells of it; figures {', '.join(figures)} would."
    clauses = []
    for phrase in finding.told:
        of_phrase = [row for row in own if (row.claim.figure, row.claim.key) == (phrase.figure, phrase.key)]
        clauses += [_clause(phrase, row) for row in of_phrase[:MOST] if np.isfinite(row.measured)]
        if infinite := [row.source for row in of_phrase[:MOST] if not np.isfinite(row.measured)]:
            clauses.append(f"no number is defined of {infinite[0]}")
        if len(of_phrase) > MOST:
            clauses.append(f"and so on for {len(of_phrase) - MOST} more numbers")
    counts = Counter(row.verdict for row in own)
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    told = "; ".join(clauses).removeprefix("and ")
    checks = f"{len(own)} check{'s' * (len(own) > 1)}: {verdicts}"
    return f"{told[0].upper()}{told[1:]}. {checks}." if told else f"{checks}."


def _clause(phrase: Phrase, check: Checked) -> str:
    value, low, high, text = check.measured, check.low, check.high, phrase.more
    if value < 0 and phrase.less:
        value, low, high, text = -value, -high, -low, phrase.less
    a, b = (check.models + check.models)[:2]
    interval = f" ({low:.3g} to {high:.3g})" if np.isfinite([low, high]).all() else ""
    undecided = ", undecided" if check.verdict == "undecided" else ""
    return text.format(a=a, b=b, value=f"{value:.3g}") + interval + undecided


def in_lines(table: pd.DataFrame) -> str:
    """The table of findings as people read it in a terminal."""
    lines = [
        f"{number}. {row.finding}: {row.verdict}.\n   {row.found}" for number, row in enumerate(table.itertuples(), 1)
    ]
    return "\n".join(["The six findings of the paper, and the results here:", *lines])
