"""The measures agree with other people's code on the same features; `make_peers.py` names that code."""

import json
from functools import partial
from pathlib import Path

import pytest
from measures.make_peers import CASES, WIDE, inputs

from repsim.measures.catalogue import MEASURES
from repsim.measures.rsa import rsa

PEERS = json.loads((Path(__file__).parent / "peers.json").read_text())
OTHERS = {
    "rsa-spearman euclidean": partial(rsa, correlation="spearman", dissimilarity="euclidean"),
    "rsa-spearman resi": partial(rsa, correlation="spearman"),
    "cca netrep": MEASURES["cca"].value,
    "pwcca turned": lambda x, y: MEASURES["pwcca"].value(y, x),
}


@pytest.mark.parametrize("case, measure", [(case, measure) for case, measures in PEERS.items() for measure in measures])
def test_other_peoples_code_gives_the_same(case, measure):
    value = OTHERS[measure] if measure in OTHERS else MEASURES[measure].value
    # platonic-rep's mutual_knn and ReSi's count neighbours in float32.
    assert value(*inputs(*(CASES | WIDE)[case])) == pytest.approx(PEERS[case][measure], abs=1e-7)
