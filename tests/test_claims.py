"""Verdicts on planted numbers."""

import numpy as np
import pandas as pd
import pytest

import repsim as rs
from repsim.claims import CLAIMS_COLUMNS, Claim, check, markdown, matches


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


def test_nothing_to_check(tmp_path):
    with pytest.raises(rs.UsageError, match="there are no numbers in"):
        check(tmp_path)
