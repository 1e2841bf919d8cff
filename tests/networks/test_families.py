"""A sample of timm's families has the numbers of its rows in `benchmarks/families.csv`; all take an hour."""

import csv

import pytest
from benchmarks.families import TABLE, examine

with TABLE.open(newline="") as file:
    ROWS = {row["family"]: row for row in csv.DictReader(file)}

SAMPLE = """byobnet convnext efficientnet efficientvit_mit efficientvit_msra ghostnet inception_next levit mambaout
maxxvit nfnet pit pvt_v2 regnet resnet rexnet shvit starnet vision_transformer vision_transformer_relpos""".split()


@pytest.mark.parametrize("family", SAMPLE)
def test_a_family_is_measured_as_its_row_says(family):
    row = ROWS[family]
    measured = examine(row["model"])
    assert "failed" not in measured["refused"]
    for column in ("blocks_found", "blocks_run", "paper_layers", "applies"):
        assert str(measured[column]) == row[column]


BETWEEN = {"efficientvit_msra": 8}
"""Numbers of modules that are blocks by the name of their class, but belong to the downsampling between stages."""


@pytest.mark.parametrize("family", ROWS)
def test_half_of_the_blocks_that_run_are_found_and_nothing_failed(family):
    row = ROWS[family]
    assert 2 * int(row["blocks_found"]) >= int(row["blocks_run"]) - BETWEEN.get(family, 0)
    assert "failed" not in row["refused"]
