"""Numbers of figures have the jackknife of its definition: the same studies without one batch after another."""

import numpy as np
import pytest
from scipy.stats import t

import repsim as rs
from repsim.paper.exhibits import Compared
from repsim.paper.figures import FIGURES
from repsim.paper.measurements import Measurements
from repsim.paper.measuring import measure

BATCH, BATCHES = 8, 3
VIT, RESNET = "vit_mini", "resnet_mini"
IMAGES = rs.ImageSet("sample", images=BATCH * BATCHES)


@pytest.fixture(scope="module")
def measured():
    """Figure -> its numbers by key and networks, from one pass."""
    m = Measurements(rs.load_model, IMAGES, None, batch_size=BATCH)
    chosen = {"3": (VIT, "vit_mini_gap"), "5": ((VIT, RESNET),), "7": (VIT, RESNET), "9": (VIT, RESNET)}
    first_two = [Compared("", "", 0, 1)]
    later = {number: measure(FIGURES[number], m, networks, first_two) for number, networks in chosen.items()}
    m.run()
    return {number: make().tables["numbers"].set_index(["key", "models"]) for number, make in later.items()}


def without(find):
    """The numbers of all images, and the numbers without each batch."""
    batches = np.arange(len(IMAGES)).reshape(BATCHES, BATCH)
    rest = [IMAGES.only(np.delete(batches, k, 0).flatten()) for k in range(BATCHES)]
    return find(IMAGES), np.array([find(images) for images in rest])


def same(row, whole, rest):
    """Check for the interval of the textbook: (g - 1)/g sum (theta_(-j) - mean)^2, and t with g - 1 degrees."""
    se = ((BATCHES - 1) / BATCHES * ((rest - rest.mean()) ** 2).sum()) ** 0.5
    assert row["value"] == pytest.approx(whole, rel=1e-5)
    assert row["high"] - row["value"] == pytest.approx(t.ppf(0.975, BATCHES - 1) * se, rel=1e-3)
    assert row["value"] - row["low"] == pytest.approx(row["high"] - row["value"])


def test_ratios_of_tokens(measured):
    def find(images):
        table = rs.residual_norms([VIT, RESNET], images, batch_size=BATCH).table
        of_sums = table.groupby(["model", "block", "sublayer"])["ratio"].mean().groupby("model").mean()
        vit = table[(table["model"] == VIT) & (table["block"] >= 6)]
        cls = vit["token"] == "cls"
        halves = [vit[chosen].groupby(["block", "sublayer"])["ratio"].mean().mean() for chosen in (cls, ~cls)]
        return np.array([of_sums[VIT] - of_sums[RESNET], halves[0] - halves[1], of_sums[RESNET]])

    whole, rest = without(find)
    keys = [
        ("skip_over_branch_difference", f'["{VIT}", "{RESNET}"]'),
        ("cls_minus_spatial_second_half", f'["{VIT}"]'),
        ("skip_over_branch", f'["{RESNET}"]'),
    ]
    for k, key in enumerate(keys):
        same(measured["7"].loc[key], whole[k], rest[:, k])


def test_nearest_heads(measured):
    def find(images):
        tables = [rs.attention_distance(name, images, batch_size=BATCH).table for name in (VIT, "vit_mini_gap")]
        low, high = ([table[table["block"] == block]["distance_px"].min() for table in tables] for block in (0, 11))
        return np.array([low[0], low[0] / high[0], low[0] - low[1]])

    whole, rest = without(find)
    keys = [
        ("nearest_head_first", f'["{VIT}"]'),
        ("nearest_head_ratio", f'["{VIT}"]'),
        ("nearest_head_first_difference", f'["{VIT}", "vit_mini_gap"]'),
    ]
    for k, key in enumerate(keys):
        same(measured["3"].loc[key], whole[k], rest[:, k])


def test_places_of_tokens(measured):
    def find(images):
        summary = rs.token_localization([VIT, RESNET], images, batch_size=BATCH).summary
        interior = summary[summary["where"] == "interior"].groupby("model")["own_minus_rest"].last()
        return np.array([interior[VIT], interior[VIT] - interior[RESNET]])

    whole, rest = without(find)
    same(measured["9"].loc["own_minus_rest", f'["{VIT}"]'], whole[0], rest[:, 0])
    same(measured["9"].loc["own_minus_rest_difference", f'["{VIT}", "{RESNET}"]'], whole[1], rest[:, 1])


def test_ranks_of_heads(measured):
    def find(images):
        table = rs.head_similarity([VIT, RESNET], images, batch_size=BATCH).table
        mean = table.groupby("heads")[["distance_px", "cka"]].mean()
        return mean.corr("spearman").iloc[0, 1]

    whole, rest = without(find)
    rows = measured["5"]
    same(rows.loc["rank_correlation", f'["{VIT}", "{RESNET}"]'], whole, rest)
    p = rows.loc["rank_correlation_p", f'["{VIT}", "{RESNET}"]']
    assert 0 < p["value"] <= 1 and np.isnan(p["low"])
