"""Measures of any input: sizes from 1 to 64, scales from 1e-20 to 1e20, repeated rows, constant columns, offsets.

Each measure gives a value in its documented range, NaN where it is undefined, or its documented error.
"""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import repsim as rs
from repsim.measures.attention import distances, grid_positions, head_statistics
from repsim.measures.catalogue import MEASURES
from repsim.measures.cka import cka, gram_row, normalise, stacked_hsic
from repsim.measures.localization import bordered_hsic, patch_grams
from repsim.measures.localization import normalise as normalise_bordered
from repsim.measures.neighbours import nearest_neighbours, soft_nearest_neighbour, squared_distances
from repsim.measures.probe import Ridge, training_data
from repsim.measures.receptive import field_statistics
from repsim.measures.residual import skip_statistics

settings.register_profile("measures", max_examples=50, deadline=None, database=None, derandomize=True)
settings.load_profile("measures")

SIZES = st.integers(1, 64)
SCALES = st.integers(-20, 20).map(lambda exponent: 10.0**exponent)


@st.composite
def features(draw, n: int) -> torch.Tensor:
    """Features (n, p) in float64 that float32 holds exactly."""
    p, scale = draw(SIZES), draw(SCALES)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.normal(size=(n, p))
    if draw(st.booleans()):  # some images occur several times
        x = x[rng.integers(0, draw(st.integers(1, n)), n)]
    if draw(st.booleans()):
        constant = rng.random(p) < draw(st.floats(0, 1))
        x[:, constant] = x[:1, constant]
    x += draw(st.sampled_from([0, 1, 100]))
    return torch.from_numpy((x * scale).astype(np.float32).astype(np.float64))


@st.composite
def pairs(draw) -> tuple[torch.Tensor, torch.Tensor]:
    n = draw(st.integers(4, 64))
    return draw(features(n)), draw(features(n))


def varies(x: torch.Tensor) -> bool:
    """Whether at least two images differ from the rest: an outlier alone has a U-centred Gram of zero."""
    _, counts = x.unique(dim=0, return_counts=True)
    return len(counts) > 1 and not (len(counts) == 2 and counts.min() == 1)


@given(pairs())
def test_cka_is_at_most_one_or_undefined(pair):
    x, y = pair
    value, biased = cka(x, y), cka(x, y, unbiased=False)
    if np.isnan(value):
        assert not (varies(x) and varies(y))
    else:
        assert -1 - 1e-9 <= value <= 1 + 1e-9
    if not np.isnan(biased):
        assert -1e-9 <= biased <= 1 + 1e-9
    assert np.isnan(cka(x, x)) or abs(cka(x, x) - 1) < 1e-9


@given(pairs(), SCALES)
def test_cka_does_not_depend_on_scale(pair, scale):
    x, y = pair
    np.testing.assert_allclose(cka(x * scale, y), cka(x, y), atol=1e-9)


@given(st.integers(1, 3), SIZES)
def test_cka_of_too_few_images_is_an_error(n, p):
    with pytest.raises(rs.UsageError, match="at least 4"):
        cka(torch.ones(n, p), torch.ones(n, p))


@given(pairs())
def test_minibatch_cka_of_float32_is_that_of_float64(pair):
    rows = [gram_row(x.float()) for x in pair]
    table = normalise(stacked_hsic(rows, len(pair[0])))
    assume(varies(pair[0]) and varies(pair[1]))
    expected = cka(*pair)
    assert abs(table[0, 1].item() - expected) < 2e-5 and abs(table.diagonal() - 1).max() < 1e-6


@given(pairs())
def test_tokens_against_patches_are_as_cka(pair):
    tokens, patches = (x[:, None] for x in pair)
    value = normalise_bordered(bordered_hsic(tokens.float(), patch_grams(patches.float()))).item()
    if np.isnan(value):
        assert not (varies(pair[0]) and varies(pair[1]))
    else:
        assert abs(value - cka(*pair)) < 2e-5


@given(pairs())
def test_skip_statistics(pair):
    width = min(x.shape[1] for x in pair)
    skip, branch = (x[:, None, :width].float() for x in pair)
    statistics = skip_statistics(skip, branch)
    assert (statistics.ratio >= 0).all()
    exact = torch.linalg.vector_norm(skip.double(), dim=-1) / torch.linalg.vector_norm(branch.double(), dim=-1)
    seen = (exact > 1e-37) & (exact < 1e37)  # ratios that float32 can hold
    torch.testing.assert_close(statistics.ratio.double()[seen], exact[seen], rtol=1e-5, atol=0)
    for cosine in (statistics.cos_output, statistics.cos_branch):
        known = cosine[~cosine.isnan()]
        assert (known.abs() <= 1 + 1e-5).all()
    assert not statistics.cos_branch[(statistics.skip_norm > 0) & (statistics.branch_norm > 0)].isnan().any()


@given(st.integers(1, 8), st.integers(0, 2), SCALES, st.integers(0, 99))
def test_attention_distance_is_within_the_image(side, prefix, sharpness, seed):
    scores = torch.randn(2, 3, *2 * [prefix + side**2], generator=torch.Generator().manual_seed(seed))
    positions = grid_positions(side, side, 16)
    far = distances(positions, positions)
    statistics = head_statistics((scores * sharpness).softmax(-1), far, prefix=prefix, cls=prefix > 0)
    assert (statistics.distance_px >= 0).all() and (statistics.distance_px <= far.max() * (1 + 1e-5)).all()
    assert (statistics.entropy >= 0).all() and (statistics.entropy <= np.log(prefix + side**2) + 1e-5).all()
    assert (statistics.self_share >= 0).all() and (statistics.self_share <= 1 + 1e-5).all()
    assert statistics.cls_share.isnan().all() if not prefix else (statistics.cls_share <= 1 + 1e-5).all()


@given(SIZES, SIZES, SCALES, st.integers(0, 99), st.booleans())
def test_receptive_fields_are_no_larger_than_the_image(height, width, scale, seed, empty):
    rng = np.random.default_rng(seed)
    field = torch.from_numpy(rng.random((height, width)) * scale).float() * (not empty)
    grid = (int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1)))
    statistics = field_statistics(field, grid)
    if empty:
        assert all(map(np.isnan, statistics))
    else:
        assert 0 <= statistics.radius50_px <= statistics.radius95_px <= np.hypot(height, width)
        assert 0 <= statistics.centre_share <= 1 + 1e-9


@given(st.data())
def test_neighbours(data):
    n = data.draw(st.integers(4, 64))
    x, classes = data.draw(features(n)), data.draw(st.integers(1, n // 2))
    labels = torch.arange(n) % classes
    far = squared_distances(x)
    right = nearest_neighbours(far, labels, data.draw(st.integers(1, n - 1)))
    assert right.shape == (n,) and (classes > 1 or right.all())
    loss = soft_nearest_neighbour(far, labels)
    assert np.isnan(loss.loss) == (len(x.unique(dim=0)) == 1)
    assert np.isnan(loss.loss) or (loss.loss >= -1e-9 and loss.temperature > 0)


@given(st.data())
def test_probes(data):
    n, classes = data.draw(st.integers(4, 64)), data.draw(st.integers(2, 4))
    x, labels = data.draw(features(n)), torch.arange(n) % classes
    fitted = training_data(n, x.shape[1], classes).update(x, labels)
    probe = Ridge(fitted).fit(data.draw(st.sampled_from([2.0**-10, 1.0, 2.0**20])))
    scores = probe.scores(x)
    assert scores.shape == (n, 1, classes) and torch.isfinite(scores).all()
    assert (scores.sum(-1) - (2 - classes)).abs().max() < 1e-6  # as targets sum


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "cka"])
@settings(max_examples=25)
@given(pairs())
def test_a_measure_between_representations_is_in_its_range_or_undefined(name, pair):
    measure, (x, y) = MEASURES[name], pair
    if len(x) < measure.fewest:
        with pytest.raises(rs.UsageError, match="at least"):
            measure.value(x, y)
        return
    value, own = measure.value(x, y), measure.value(x, x)
    assert np.isnan(value) or measure.range[0] - 1e-9 <= value <= measure.range[1] + 1e-9
    if name != "linear-r2":  # images are not in the span of fewer others
        assert np.isnan(own) or own == pytest.approx(1, abs=1e-6)
