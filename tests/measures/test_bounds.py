"""Numbers that are zero in exact arithmetic are zero, by the same bounds everywhere, and no other numbers are."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import repsim as rs
from repsim.measures import bounds
from repsim.measures.cka import centred_gram, gram_row, minibatch_cka, stacked_hsic, u_centre
from repsim.measures.localization import bordered_hsic, normalise, patch_grams
from repsim.measures.neighbours import soft_nearest_neighbour, squared_distances
from repsim.measures.probe import ProbeRows, ProbeSums, Standard


def alone(n, p, seed, size=1.0, offset=0.0):
    """Features (n, p) of images of which all but one are alike."""
    rng = np.random.default_rng(seed)
    x = np.tile(rng.normal(size=p) + offset, (n, 1))
    x[rng.integers(n)] = size * rng.normal(size=p)
    return x


def every_cka(x, y):
    """CKA by the function, by minibatches, and by tokens with patches."""
    x32, y32 = (torch.from_numpy(features).float() for features in (x, y))
    table = minibatch_cka().update(stacked_hsic([gram_row(x32), gram_row(y32)], len(x))).compute()[0]
    located = normalise(bordered_hsic(x32[:, None], patch_grams(y32[:, None])))
    return rs.cka(x, y), table[0, 1].item(), located.item()


@pytest.mark.parametrize("n, p", [(4, 3), (8, 1), (64, 50), (300, 700)])
@pytest.mark.parametrize("size, offset", [(1, 0), (1e-3, 0), (1e5, 0), (1, 100)])
def test_an_outlier_alone_has_no_cka(n, p, size, offset):
    for seed in range(5):
        x, y = alone(n, p, seed, size, offset), np.random.default_rng(seed + 99).normal(size=(n, 5))
        assert all(map(math.isnan, every_cka(x, y))) and all(map(math.isnan, every_cka(y, x)))
        assert math.isnan(rs.cka(x, x)) and not math.isnan(rs.cka(x, y, unbiased=False))


def test_images_at_right_angles_have_no_cka():
    x, y = 1 + np.diag(np.arange(1.0, 13)), np.random.default_rng(0).normal(size=(12, 5))
    assert all(map(math.isnan, every_cka(x, y)))


def test_two_that_differ_from_the_rest_have_one():
    x = np.zeros((12, 3))
    x[3], x[5] = [1, 2, 3], [3, 1, 0]
    y = np.random.default_rng(0).normal(size=(12, 5))
    function, minibatch, located = every_cka(x, y)
    assert rs.cka(x, x) == pytest.approx(1, abs=1e-12)
    assert minibatch == pytest.approx(function, abs=1e-6) and located == pytest.approx(function, abs=1e-6)


def test_a_far_outlier_beside_images_that_vary_leaves_them_their_cka():
    x = np.random.default_rng(0).normal(size=(32, 20))
    x[3] *= 1e6
    assert all(abs(value - 1) < 1e-6 for value in every_cka(x, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_rounding_leaves_of_a_u_centred_gram(dtype):
    """Rounding leaves less than 2 eps trace, a fifth of the constant c of `measures/bounds.py` that counts as zero."""
    worst = 0.0
    for seed, (n, p) in enumerate([(4, 1), (4, 5000), (16, 2048), (64, 10), (128, 4095), (256, 20_000), (512, 768)]):
        x = torch.from_numpy(alone(n, p, seed, 10.0 ** (seed % 5 - 2))).to(dtype)
        gram = centred_gram(x)[0]
        worst = max(worst, (torch.linalg.matrix_norm(u_centre(gram)) / gram.trace()).item() / bounds.eps_of(dtype))
    assert 0 < worst < 2


def test_a_layer_that_is_an_outlier_alone_is_undefined_in_the_table():
    images = torch.rand(8, 1, 8, 8) * 0.1
    images[2] += 0.5
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Threshold(0.3, 0.0), nn.Linear(1, 4)).eval()
    network = rs.Network(module, name="net")
    with pytest.warns(UserWarning, match="as where all images of a batch but one are alike"):
        table = rs.layer_cka(network, images=images, layers="all", batch_size=8).table
    own = table[table.layer_a == table.layer_b].set_index("layer_a").cka
    assert own[["2", "3"]].isna().all() and own["1"] == pytest.approx(1)


def test_constant_is_one_bound_in_function_minibatch_tokens_and_probes():
    """Numbers of float32 that differ in their last bit alone are constant; the same numbers in float64 are not."""
    torch.manual_seed(0)
    x = (1 + torch.rand(20)) * (1 + 1.2e-7 * torch.randint(2, (64, 20)))
    y = torch.randn(64, 5)
    assert math.isnan(rs.cka(x, y)) and gram_row(x).norm == 0
    assert normalise(bordered_hsic(x[:, None], patch_grams(y[:, None]))).isnan().all()
    assert math.isnan(soft_nearest_neighbour(squared_distances(x), torch.arange(64) % 2).loss)
    for kind in (ProbeSums, ProbeRows):
        assert (Standard.of(kind(2).update(x, torch.arange(64) % 2)).scale == 1).all()
        assert (Standard.of(kind(2).update(x.double(), torch.arange(64) % 2)).scale < 1e-6).all()
    assert not math.isnan(rs.cka(x.double(), y)) and gram_row(x.double()).norm > 0


@pytest.mark.parametrize("kind", [ProbeSums, ProbeRows])
def test_constant_features_of_a_probe_stay_constant_over_many_batches(kind):
    data = kind(2)
    for size in (3, 70, 4097, 20_000):
        data.update(torch.tensor([0.1, 1e8 + 0.1], dtype=torch.float64).expand(size, 2), torch.arange(size) % 2)
    assert (Standard.of(data).scale == 1).all()


@pytest.mark.parametrize("scale", [1e-300, 1e-100, 1e100, 1e300])
def test_magnitudes_beyond_float64s_fourth_root_are_computed_or_refused(scale):
    x = np.random.default_rng(0).normal(size=(16, 4))
    y = x + np.random.default_rng(1).normal(size=(16, 4))
    assert rs.cka(scale * x, y) == pytest.approx(rs.cka(x, y), abs=1e-12)
    for measure in (gram_row, squared_distances, lambda z: ProbeSums(2).update(z, np.arange(16) % 2)):
        with pytest.raises(rs.RepsimError, match="must lie between 1e-70 and 1e\\+70 in magnitude"):
            measure(scale * x)


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e30, 1e37])
def test_every_magnitude_of_float32_is_computed(scale):
    x = (np.random.default_rng(0).integers(-9, 10, (16, 4)) * scale).astype(np.float32)
    y = np.random.default_rng(1).normal(size=(16, 4)).astype(np.float32)
    assert every_cka(x.astype(np.float64), y.astype(np.float64)) == pytest.approx([rs.cka(x, y)] * 3, abs=1e-5)
