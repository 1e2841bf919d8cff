"""Verdicts on planted numbers."""

import html
import json
import re

import numpy as np
import pytest
from conftest import planted
from scipy.stats import t

import repsim as rs
from repsim.paper.claims import CLAIMS_COLUMNS, Claim, by_chance, check, markdown
from repsim.tables import NUMBERS, load_table, save_table


def plant(directory, figure, *rows, df=19):
    (directory / f"figure-{figure}").mkdir()
    save_table(planted(*rows, df=df), directory / f"figure-{figure}" / "numbers.csv")


@pytest.mark.parametrize(
    "above, low, high, verdict",
    [
        (True, 0.1, 0.3, "agrees"),
        (True, -0.3, -0.1, "disagrees"),
        (True, -0.1, 0.3, "undecided"),
        (False, -0.3, -0.1, "agrees"),
        (False, 0.1, 0.3, "disagrees"),
        (False, np.nan, np.nan, "undecided"),
    ],
)
def test_verdicts(above, low, high, verdict):
    assert Claim("", figure="1", key="", above=above).verdict(low, high) == verdict


def test_a_planted_table_disagrees(tmp_path):
    both = ("low_with_high_difference", ("vit", "resnet"), "low with high layers, vit - resnet", -0.2, -0.3, -0.1)
    plant(tmp_path, "1", both, ("low_with_high", ("vit",), "low with high layers, vit", 1, 0, 2))
    likest = "likest layers, mixer with vit - with resnet"
    plant(tmp_path, "H.2", ("likest_difference", ("mixer", "vit", "resnet"), likest, 0.2, 0.1, 0.3))
    table = check(tmp_path)
    assert list(table) == CLAIMS_COLUMNS
    assert table["verdict"].tolist() == ["disagrees", "agrees"]
    assert table["direction"].tolist() == ["> 0", "> 0"]
    text = markdown(table)
    assert "**disagrees**" in text and "\n1 agrees, 1 disagrees, 0 undecided. Intervals are over" in text
    assert table["paper"].tolist() == ["", ""]


def test_values_of_the_papers_own_networks_stand_beside(tmp_path):
    plant(tmp_path, "13", ("accuracy_more_data", ("vit", "little"), "more data", 0.1, 0.05, 0.15))
    table = check(tmp_path)
    assert table["paper"].tolist() == ["0.30, JFT-300M against ImageNet"]
    assert "| > 0 | 0.30, JFT-300M against ImageNet | **agrees** |" in markdown(table)


@pytest.mark.parametrize(
    "name", ["NA", "0.10", "a b", "a - b", "x,y", 'a"b', "two\nlines", "[x]", "a*", "<b>", "$x_1$", "|"]
)
def test_networks_of_any_name(tmp_path, name):
    label = f"low with high layers, {name} - b"
    plant(tmp_path, "1", ("low_with_high_difference", (name, "b"), label, 0.2, 0.1, 0.3))
    (number,) = load_table(tmp_path / "figure-1" / "numbers.csv", NUMBERS).itertuples()
    assert json.loads(number.models) == [name, "b"] and number.label == label
    (row,) = check(tmp_path).itertuples()
    assert row.source == f"Figure 1: low with high layers, {name} - b" and row.verdict == "agrees"
    lines = markdown(check(tmp_path)).splitlines()
    cells = re.split(r"(?<!\\)\|", lines[2])
    assert len(lines) == 5 and len(cells) == 8  # a row, and no cell more
    written = cells[1].replace("<br>", "\n")
    assert not re.search(r"<|(?<!\\)[$*\[\]]", written)
    assert html.unescape(re.sub(r"\\(.)", r"\1", written)) == f" {row.claim} ({row.source}) "


def test_a_network_called_na_is_no_missing_number(tmp_path):
    plant(tmp_path, "1", ("low_with_high_difference", ("NA",), "NA", 0.2, 0.1, 0.3))
    assert check(tmp_path)["source"].tolist() == ["Figure 1: NA"]


@pytest.mark.parametrize("p, verdict", [(0.01, "agrees"), (0.06, "undecided"), (None, "undecided")])
def test_heads_agree_only_where_permuted_ones_would_not(tmp_path, p, verdict):
    rows = [("rank_correlation", ("vit", "resnet"), "rank correlation", -0.6, -0.9, -0.3)]
    rows += [("rank_correlation_p", ("vit", "b"), "of another pair", 0.0, np.nan, np.nan)]
    rows += [("rank_correlation_p", ("vit", "resnet"), "orders", p, np.nan, np.nan)] if p is not None else []
    plant(tmp_path, "5", *rows)
    assert check(tmp_path)["verdict"].tolist() == [verdict]


def test_undecided_says_why(tmp_path):
    key, models, label = "low_with_high_difference", ("vit", "resnet"), "vit - resnet"
    cases = {"holds": (0.1, -0.1, 0.3, 19), "nothing": (0.1, np.nan, np.nan, 19), "alone": (0.1, np.nan, np.nan, 0)}
    said = {}
    for name, (*number, df) in cases.items():
        (tmp_path / name).mkdir()
        plant(tmp_path / name, "1", (key, models, label, *number), df=df)
        table = check(tmp_path / name)
        assert table["verdict"].tolist() == ["undecided"]
        said[name] = table["why"].iloc[0]
        assert f"**undecided** ({said[name]})" in markdown(table) and "nan" not in markdown(table)
    assert said == {
        "holds": "the interval holds 0",
        "nothing": "no interval",
        "alone": "no interval: one group of images",
    }


def test_p_values_are_those_of_the_intervals_and_adjusted_as_holm_does(tmp_path):
    df, se = 9, [0.05, 0.08, 0.2]
    figures = {
        "1": ("low_with_high_difference", 0.15),
        "C.4": ("own_patch_sum_minus_branch", 0.2),
        "G.1": ("lowest_minus_highest_third", 0.1),
    }
    expected = []
    for (figure, (key, value)), error in zip(figures.items(), se):
        half = t.ppf(0.975, df) * error
        plant(tmp_path, figure, (key, ("a", "b"), key, value, value - half, value + half), df=df)
        expected.append(2 * t.sf(value / error, df))
    table = check(tmp_path)
    assert table["p"].tolist() == pytest.approx(expected)
    assert table["p_holm"].tolist() == pytest.approx([3 * expected[0], 2 * expected[1], expected[2]])
    assert table["verdict"].tolist() == ["agrees", "agrees", "undecided"]
    assert 0.025 < expected[1] < 0.05  # decided alone, and not among three
    assert table["verdict_holm"].tolist() == ["agrees", "undecided", "undecided"]
    assert "agrees**, undecided after Holm" in markdown(table)
    assert "chance would decide 0.15 of these 3 numbers" in by_chance(table) and "1 stay decided" in by_chance(table)


def test_nothing_to_check(tmp_path):
    with pytest.raises(rs.UsageError, match="there are no numbers in"):
        check(tmp_path)
