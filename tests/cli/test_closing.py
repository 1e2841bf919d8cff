"""The closing sentences of commands, on tables made by hand."""

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from repsim.cli.closing import SENTENCES, said
from repsim.plots import pictures
from repsim.studies.results import Result


def square(values, a="A", b="A", kind="block") -> pd.DataFrame:
    """A table of CKA from a matrix."""
    return pd.DataFrame(
        [
            {"model_a": a, "layer_a": f"{a.lower()}{i}", "index_a": i, "model_b": b, "layer_b": f"{b.lower()}{j}",
             "index_b": j, "cka": value, "se": 0.01}
            for i, row in enumerate(values) for j, value in enumerate(row)
        ]
    )  # fmt: skip


def one(result: Result) -> str:
    (sentence,) = said(result)
    return sentence


def test_every_study_that_is_drawn_has_its_sentences():
    assert set(SENTENCES) >= set(pictures.DRAWINGS) - {"attention_maps"}


def test_cka():
    own = np.full((6, 6), 0.5)
    own[:2, 4:] = [[0.1, 0.2], [0.3, 0.4]]  # lowest with highest third
    across = np.full((6, 3), 0.2)
    across[:2, 1], across[2:4, 0], across[4:, 2] = 0.6, 0.7, [0.8, 0.9]
    table = pd.concat([square(own), square(np.eye(3), "B", "B"), square(across, "A", "B"), square(across.T, "B", "A")])
    low, none, likest = said(Result("cka", table.sample(frac=1, random_state=0).sort_values("model_a", kind="stable")))
    assert low.startswith("A: CKA of the lowest with the highest third of its layers is 0.25 on average (no interval")
    assert none.startswith("B: ") and " is 0.00 on average" in none
    assert likest.endswith("the lowest like b1 (0.60), the middle like b0 (0.70), the highest like b2 (0.85).")


def test_means_of_cka_have_the_intervals_of_the_record():
    half = t.ppf(0.975, 9) * 0.02
    low = {"model_a": "A", "layers_a": "lowest third", "model_b": "A", "layers_b": "highest third"}
    record = {"means": [{**low, "cka": 0.5, "se": 0.02, "df": 9}]}
    assert one(Result("cka", square(np.full((6, 6), 0.5)), record)).endswith(
        f"third of its layers is 0.50 [{0.5 - half:.2f}, {0.5 + half:.2f}] on average."
    )
    record["means"][0]["se"] = None
    assert "0.50 on average (no interval" in one(Result("cka", square(np.full((6, 6), 0.5)), record))


def test_cka_of_few_or_undefined_layers():
    assert said(Result("cka", square(np.eye(2)))) == []
    assert said(Result("cka", square(np.full((3, 3), np.nan)))) == []


def test_matched():
    cka = [0.9, 0.3, 0.6]
    table = pd.DataFrame({"model_a": "A", "model_b": "B", "layer": list("xyz"), "cka": cka, "se": 0.05})
    found = one(Result("matched", table))
    assert "is 0.60 on average" in found and "in y, the lowest of 3 layers, 0.30 (se 0.05)" in found
    half = t.ppf(0.975, 9) * 0.05
    found = one(Result("matched", table, {"images": {"batches": 10}}))
    assert f"layers, 0.30 [{0.3 - half:.2f}, {0.3 + half:.2f}]" in found


def test_attention():
    table = pd.DataFrame(
        {"model": "A", "block": [0, 0, 1, 1, 5, 5], "head": [0, 1, 0, 1, 0, 1],
         "distance_px": [30.0, 10.0, 1.0, 99.0, 50.0, 60.0], "distance_px_se": [1.0, 0.5, 1.0, 1.0, 2.0, np.nan]}
    )  # fmt: skip
    assert said(Result("attention", table)) == [
        "In block 0, of 2 heads, head 1 looks nearest, 10.0 (se 0.5) px, and head 0 farthest, 30.0 (se 1.0) px.",
        "In block 5, of 2 heads, head 0 looks nearest, 50.0 (se 2.0) px, and head 1 farthest, 60.0 (se not known) px.",
    ]


@pytest.mark.parametrize(
    "images, df", [({"used": 8}, 7), ({"used": 500}, 499), ({"used": 90, "groups": {"jackknife": 5}}, 4)]
)
def test_intervals_are_over_as_many_images_as_were_used(images, df):
    near, far = {"distance_px": 10.0, "distance_px_se": 1.0}, {"distance_px": 20.0, "distance_px_se": 1.0}
    table = pd.DataFrame([{"block": 0, "head": 0, **near}, {"block": 0, "head": 1, **far}])
    half = t.ppf(0.975, df)
    found = one(Result("attention", table, {"images": images}))
    assert f"head 0 looks nearest, 10.0 [{10 - half:.1f}, {10 + half:.1f}] px" in found
    table = pd.DataFrame({"model": "A", "layer": ["x"], "index": 0, "radius50_px": 10.0, "radius50_px_se": 1.0})
    half = t.ppf(0.975, min(df, 31))  # the jackknife has 32 groups at most
    assert f"10.0 [{10 - half:.1f}, {10 + half:.1f}] px" in one(Result("receptive", table, {"images": images}))


def test_residual_gives_every_sum_the_same_weight():
    table = pd.DataFrame(
        {"model": "A", "block": [0, 0, 0, 1], "sublayer": "mlp", "token": list("0123"), "ratio": [1.0, 1.0, 1.0, 3.0]}
    )
    assert "A: a skip is 2.00 times as long as its branch" in one(Result("residual", table))


def test_localization():
    summary = pd.DataFrame(
        {"model": "A", "layer": ["x", "x", "y", "z"], "index": [0, 0, 1, 2],
         "where": ["interior", "edge", "interior", "interior"], "own_minus_rest": [0.5, 0.9, 0.3, -0.01], "se": 0.002}
    )  # fmt: skip
    found = one(Result("localization", pd.DataFrame(), tables={"localization_summary": summary}))
    assert "interior" in found and found.endswith(", is 0.500 (se 0.002) in x, -0.010 (se 0.002) in z.")


def test_probe():
    summary = pd.DataFrame(
        {"model": "A", "layer": ["x", "y", "y", "x"], "index": [0, 1, 1, 0], "shots": ["10", "10", "10", "5"],
         "aggregation": ["mean", "cls", "token", "mean"], "accuracy": [0.6, 0.8, 0.95, 0.99],
         "se": 0.01, "df": [4.0, 4.0, 4.0, 4.0]}
    )  # fmt: skip
    found = one(Result("probe", pd.DataFrame(), tables={"probe_summary": summary}))
    half = t.ppf(0.975, 4) * 0.01
    assert f"the probe on y (cls) has accuracy 0.80 [{0.8 - half:.2f}, {0.8 + half:.2f}]" in found
    assert found.endswith("from 10 training images per class, the highest of 2 probes on 2 layers.")
    unknown = one(Result("probe", pd.DataFrame(), tables={"probe_summary": summary.assign(df=math.nan)}))
    assert "0.80 (interval unknown)" in unknown
    every = summary.assign(shots=["all", "10", "10", "10"])
    assert "x (mean)" in one(Result("probe", pd.DataFrame(), tables={"probe_summary": every}))


@pytest.mark.parametrize("name", ["receptive", "receptive_proxy"])
def test_receptive(name):
    table = pd.DataFrame(
        {"model": "A", "layer": list("xyz"), "index": [0, 1, 2], "radius50_px": [3.0, 9.0, 20.0], "radius50_px_se": 0.5}
    )
    assert one(Result(name, table)).endswith("is 3.0 (se 0.5) px in x, and 20.0 (se 0.5) px in z.")


def test_lesion():
    table = pd.DataFrame(
        {"removed": ["nothing", "block", "block", "mlp skip"], "block": [-1, 0, 0, 3], "layer": list("abab"),
         "agreement": [1.0, 0.2, 0.2, 0.1], "kl": [0.0, 2.0, 2.0, 3.0], "cka": [np.nan, 0.1, 0.3, 0.9]}
    )  # fmt: skip
    found = one(Result("lesion", table))
    assert "Of 2 lesions, removing mlp skip of block 3 does the most harm: 10.0 % of predictions stay" in found
    found = one(Result("lesion", table.assign(agreement=np.nan, kl=np.nan)))
    assert "removing block 0 does the most harm: layers have CKA 0.20" in found


def test_heads():
    table = pd.DataFrame(
        {"model_a": "A", "model_b": "B", "layer_b": ["x", "y", "z"], "index_b": [0, 1, 2],
         "spearman": [-0.9, 0.0, 0.4], "low": [-1.0, -0.5, np.nan], "high": [-0.8, 0.5, np.nan]}
    )  # fmt: skip
    found = one(Result("heads", pd.DataFrame(), tables={"heads_correlation": table}))
    assert "-0.90 [-1.00, -0.80] for x, and 0.40 (interval unknown) for z;" in found


def test_compare():
    rows = [("cka", "A", "B", 0.3), ("cka", "B", "A", 0.3), ("cka", "A", "C", 0.8), ("cka", "C", "A", 0.8),
            ("cka", "A", "A", 1.0), ("rsa", "A", "B", 0.5), ("rsa", "B", "A", 0.5)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["measure", "model_a", "model_b", "last"])
    table = table.assign(last_low=table["last"] - 0.1, last_high=table["last"] + 0.1)
    assert said(Result("compare", pd.DataFrame(), tables={"networks": table})) == [
        "cka of the last layers, of 2 pairs of networks, is highest for A with C, 0.80 [0.70, 0.90], and lowest for "
        "B with A, 0.30 [0.20, 0.40].",
        "rsa of the last layers: A with B, 0.50 [0.40, 0.60].",
    ]


def test_sensitivity():
    rows = [("cka", "x", "components", 0.9, 1.0), ("cka", "y", "components", 0.9, 0.5),
            ("cka", "x", "components", 0.99, 0.0), ("cka", "x", "outlier", 0.9, 0.0),
            ("cca", "x", "components", 0.9, 0.1), ("cca", "y", "components", 0.9, 0.3)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["measure", "layer", "change", "amount", "value"])
    assert "2 layers still have a mean similarity to themselves of cka 0.75, cca 0.20" in one(
        Result("sensitivity", table)
    )


def test_no_interval_goes_beyond_what_its_number_can_be():
    """Intervals end at the bounds of their number, even of two groups, where half of one is 12.7 standard errors."""
    of_two = {"images": {"used": 2, "batches": 2}}
    summary = pd.DataFrame(
        {"model": "A", "layer": ["x"], "index": 0, "shots": "10", "aggregation": "cls", "accuracy": 0.9, "se": 0.5,
         "df": 1.0, "where": "interior", "own_minus_rest": 0.5}
    )  # fmt: skip
    pair = {"measure": "procrustes", "model_a": "A", "model_b": "B", "last": 0.9, "last_low": -0.5, "last_high": 2.0}
    head = {"model": "A", "block": 0, "head": 0, "distance_px": 3.0, "distance_px_se": 1.0}
    radius = {"model": "A", "layer": "x", "index": 0, "radius50_px": 3.0, "radius50_px_se": 1.0}
    matched = {"model_a": "A", "model_b": "B", "layer": "x", "cka": 0.9, "se": 0.5}
    correlated = {"model_a": "A", "model_b": "B", "layer_b": "x", "index_b": 0, "spearman": -0.5, "low": -3, "high": 2}
    none = pd.DataFrame()
    assert "0.90 [0.00, 1.00]" in one(Result("probe", none, tables={"probe_summary": summary}))
    assert "0.500 [-2.000, 2.000]" in one(
        Result("localization", none, of_two, tables={"localization_summary": summary})
    )
    assert "0.90 [0.00, 1.00]" in one(Result("compare", none, tables={"networks": pd.DataFrame([pair])}))
    assert "3.0 [0.0, 15.7] px" in one(Result("attention", pd.DataFrame([head]), of_two))
    assert "3.0 [0.0, 15.7] px" in one(Result("receptive", pd.DataFrame([radius]), of_two))
    assert "0.90 [-1.00, 1.00]" in one(Result("matched", pd.DataFrame([matched]), of_two))
    assert "-0.50 [-1.00, 1.00] for x" in one(
        Result("heads", none, tables={"heads_correlation": pd.DataFrame([correlated])})
    )


def test_no_torch_is_needed():
    script = "import sys, repsim.cli.closing; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
