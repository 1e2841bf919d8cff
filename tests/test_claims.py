"""Verdicts on planted numbers."""

import html
import re

import numpy as np
import pandas as pd
import pytest

import repsim as rs
from repsim.paper.claims import CLAIMS_COLUMNS, Claim, check, markdown, matches


def plant(directory, figure, *rows):
    (directory / f"figure-{figure}").mkdir()
    table = pd.DataFrame(rows, columns=["number", "value", "low", "high"])
    table.to_csv(directory / f"figure-{figure}" / "numbers.csv", index=False)


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
    assert Claim("", "1", "", above).verdict(low, high) == verdict


def test_a_planted_table_disagrees(tmp_path):
    plant(
        tmp_path, "1", ("low with high layers, vit - resnet", -0.2, -0.3, -0.1), ("low with high layers, vit", 1, 0, 2)
    )
    plant(tmp_path, "H.2", ("likest layers, mixer with vit - with resnet", 0.2, 0.1, 0.3))
    table = check(tmp_path)
    assert list(table) == CLAIMS_COLUMNS
    assert table["verdict"].tolist() == ["disagrees", "agrees"]
    assert table["direction"].tolist() == ["> 0", "> 0"]
    text = markdown(table)
    assert "**disagrees**" in text and "\n1 agrees, 1 disagrees, 0 undecided. Intervals are over" in text


def test_names_of_numbers():
    assert matches("low with high layers, * - *", "low with high layers, a - b")
    assert not matches("low with high layers, * - *", "low with high layers, a")
    assert not matches("lowest - highest third, *", "highest - lowest third, a")


@pytest.mark.parametrize(
    "name", ["NA", "0.10", "a b", "a - b", "x,y", 'a"b', "two\nlines", "[x]", "a*", "<b>", "$x_1$", "|"]
)
def test_networks_of_any_name(tmp_path, name):
    assert matches("low with high layers, * - *", f"low with high layers, {name} - {name}")
    plant(tmp_path, "1", (f"low with high layers, {name} - b", 0.2, 0.1, 0.3))
    (row,) = check(tmp_path).itertuples()
    assert row.source == f"Figure 1: low with high layers, {name} - b" and row.verdict == "agrees"
    lines = markdown(check(tmp_path)).splitlines()
    cells = re.split(r"(?<!\\)\|", lines[2])
    assert len(lines) == 5 and len(cells) == 7  # a row, and no cell more
    written = cells[1].replace("<br>", "\n")
    assert not re.search(r"<|(?<!\\)[$*\[\]]", written)
    assert html.unescape(re.sub(r"\\(.)", r"\1", written)) == f" {row.claim} ({row.source}) "


def test_a_network_called_na_is_no_missing_number(tmp_path):
    plant(tmp_path, "1", ("NA", 0.2, 0.1, 0.3), ("low with high layers, a - b", 0.2, 0.1, 0.3))
    assert len(check(tmp_path)) == 1


def test_nothing_to_check(tmp_path):
    with pytest.raises(rs.UsageError, match="there are no numbers in"):
        check(tmp_path)
