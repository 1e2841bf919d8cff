"""CKA of all pairs of tokens and patches at once equals CKA of one pair after another."""

import numpy as np
import pytest
import torch

import repsim as rs
from repsim.measures import localization
from repsim.measures.cka import hsic, u_centre
from repsim.measures.localization import (
    bordered_hsic,
    cut,
    nearest,
    own_minus_rest,
    patch_grams,
    places,
    token_patch_cka,
    u_centred_grams,
    undefined,
)


def one_by_one(tokens, patches, batch_size):
    """Minibatch CKA of every pair in float64, one at a time: (t, j) of tokens (n, t, d) and patches (n, j, q)."""

    def grams(features):
        centred = [batch - batch.mean(0) for batch in features.double().split(batch_size)]
        return [batch @ batch.T for batch in centred]

    def mean_hsic(a, b):
        return np.mean([hsic(*pair).item() for pair in zip(a, b)])

    rows, columns = ([grams(features) for features in x.unbind(1)] for x in (tokens, patches))
    cross = np.array([[mean_hsic(a, b) for b in columns] for a in rows])
    own = [np.sqrt([mean_hsic(a, a) for a in side]) for side in (rows, columns)]
    return cross / np.outer(*own)


def at_once(tokens, patches, batch_size=None):
    """Sums of the same CKA, by the code under test."""
    sums = token_patch_cka()
    size = batch_size or len(tokens)
    for x, y in zip(tokens.split(size), patches.split(size)):
        sums.update(bordered_hsic(x, patch_grams(y)))
    return sums


def related(n, t, d, *, mean=0.0, scale=1.0, seed=0):
    """Tokens (n, t, d), each a random map of a patch with noise, and the patches (n, 4, 9)."""
    torch.manual_seed(seed)
    patches = torch.randn(n, 4, 9)
    tokens = torch.stack([patches[:, i % 4] @ torch.randn(9, d) + torch.randn(n, d) for i in range(t)], 1)
    return (mean + tokens) * scale, patches


def test_u_centred_grams_are_those_of_the_definition():
    x = torch.randn(3, 12, 5, dtype=torch.float64)
    grams = u_centred_grams(x, torch.float64)
    expected = torch.stack([u_centre(features @ features.T) for features in x])
    torch.testing.assert_close(grams.rows.view(3, 12, 12), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(grams.norms, torch.linalg.matrix_norm(expected))


NUMERICS = {
    "plain": (64, 5, 30, 0, 1),
    "mean 100": (64, 5, 768, 100, 1),
    "mean 1000": (128, 3, 200, 1000, 1),
    "tiny": (32, 3, 20, 0, 1e-18),
    "huge": (32, 3, 20, 0, 1e18),
    "one feature": (32, 3, 1, 1, 1),
    "four examples": (4, 3, 20, 1, 1),
}


@pytest.mark.parametrize("case", NUMERICS)
def test_float32_equals_one_cka_per_pair_in_float64(case):
    n, t, d, mean, scale = NUMERICS[case]
    tokens, patches = related(n, t, d, mean=mean, scale=scale)
    cka = at_once(tokens, patches).compute()[0]
    assert cka.numpy() == pytest.approx(one_by_one(tokens, patches, n), abs=1e-5)


def test_minibatches_average_hsic_before_dividing():
    tokens, patches = related(60, 3, 8)
    cka, se = at_once(tokens, patches, 20).compute()
    assert cka.numpy() == pytest.approx(one_by_one(tokens, patches, 20), abs=1e-6)
    without = [np.setdiff1d(np.arange(60), np.arange(b, b + 20)) for b in (0, 20, 40)]
    left = np.array([one_by_one(tokens[keep], patches[keep], 20) for keep in without])
    assert se.numpy() == pytest.approx(np.sqrt(2 / 3 * ((left - left.mean(0)) ** 2).sum(0)), abs=1e-6)


def test_an_outlier_image_and_a_massive_feature():
    tokens, patches = related(64, 3, 96)
    tokens[7, 0] *= 1e4
    tokens[:, 1, 5] = 8000 * (1 + 0.01 * torch.randn(64))
    patches[3, 2] *= 1e4
    assert at_once(tokens, patches).compute()[0].numpy() == pytest.approx(one_by_one(tokens, patches, 64), abs=1e-5)


def test_float64_is_taken_only_where_float32_does_not_do():
    tokens, _ = related(64, 2, 96)
    tokens[7, 0] *= 1e6
    assert u_centred_grams(tokens.transpose(0, 1), torch.float32).sure.tolist() == [False, True]


def test_bfloat16_and_float64_tokens():
    tokens, patches = related(32, 3, 20, mean=1)
    for dtype, tolerance in ((torch.bfloat16, 1e-5), (torch.float64, 1e-7)):
        given = tokens.to(dtype)
        cka = at_once(given, patches).compute()[0]
        assert cka.numpy() == pytest.approx(one_by_one(given, patches, 32), abs=tolerance)


def test_few_at_a_time_or_all_at_once_is_one(monkeypatch):
    tokens, patches = related(16, 7, 10)
    expected = at_once(tokens, patches).compute()[0]
    monkeypatch.setattr(localization, "BUDGET", 3 * 16**2 * 4)
    torch.testing.assert_close(at_once(tokens, patches).compute()[0], expected, atol=1e-6, rtol=0)


def test_tokens_that_are_patches_have_the_cka_of_patches():
    """Tokens that are rotated, scaled and shifted patches have the CKA of the patches."""
    torch.manual_seed(0)
    patches = torch.randn(48, 1, 9) + torch.randn(48, 4, 9)
    rotations = [torch.linalg.qr(torch.randn(9, 9))[0] for _ in range(4)]
    tokens = torch.stack([10**i * patches[:, i] @ r + i for i, r in enumerate(rotations)], 1)
    cka = at_once(tokens, patches).compute()[0].numpy()
    expected = [[rs.cka(patches[:, i], patches[:, j]) for j in range(4)] for i in range(4)]
    assert cka == pytest.approx(np.array(expected), abs=1e-5)
    assert cka.diagonal() == pytest.approx(1, abs=1e-6) and cka[0, 1] < 0.9


def test_unrelated_tokens_scatter_around_zero():
    torch.manual_seed(0)
    cka = at_once(torch.randn(128, 10, 20), torch.randn(128, 10, 20)).compute()[0]
    assert abs(cka.mean()) < 0.01 and -0.1 < cka.min() < 0 < cka.max() < 0.1


def test_merged_sums_equal_one_run():
    batches = [bordered_hsic(x, patch_grams(y)) for x, y in (related(16, 3, 8, seed=seed) for seed in range(7))]
    whole, first, second = token_patch_cka(), token_patch_cka(), token_patch_cka()
    for number, hsics in enumerate(batches):
        whole.update(hsics, number)
        (first if number < 3 else second).update(hsics, number)
    for expected, merged in zip(whole.compute(), second.merge(first).compute()):
        torch.testing.assert_close(merged, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [4, 64, 512])
def test_what_does_not_vary_is_undefined(n):
    tokens, patches = related(n, 3, 20)
    tokens[:, 1] = torch.randn(20) * (1 + 1.2e-7 * torch.randint(2, (n, 20)))  # constant but for the last bit
    patches[:, 2] = 3.7
    sums = at_once(tokens, patches)
    assert sums.compute()[0].isnan().nonzero().tolist() == [[0, 2], [1, 0], [1, 1], [1, 2], [1, 3], [2, 2]]
    assert [part.tolist() for part in undefined(sums.mean())] == [[False, True, False], [False, False, True, False]]


@pytest.mark.parametrize("n, d", [(512, 1), (1024, 10)])
def test_constant_features_of_any_size_have_no_norm(n, d):
    for seed in range(20):
        torch.manual_seed(seed)
        assert u_centred_grams(torch.randn(1, 1, d).expand(1, n, d), torch.float32).norms == 0


def test_where_all_images_but_one_are_the_same_there_is_no_u_centred_gram():
    tokens, patches = related(64, 3, 20)
    tokens[:, 0], patches[:, 0] = 0.1, 0.1
    tokens[5, 0], patches[5, 0] = torch.randn(20), torch.randn(9)
    cka = at_once(tokens, patches).compute()[0]
    assert cka[0].isnan().all() and cka[:, 0].isnan().all() and not cka[1:, 1:].isnan().any()


def test_broken_features_do_not_pass_for_numbers():
    tokens, patches = related(16, 3, 8)
    tokens[3, 1, 0] = torch.inf
    assert torch.isfinite(bordered_hsic(tokens, patch_grams(patches))).all(1).tolist() == [True, False, True, True]
    tokens, patches = related(16, 3, 8)
    patches[3, 1, 0] = torch.nan
    assert not torch.isfinite(bordered_hsic(tokens, patch_grams(patches))).all()


def test_own_minus_rest_by_hand():
    cka = torch.tensor([[0.9, 0.1, 0.3], [0.2, 0.5, torch.nan], [0.1, 0.3, torch.nan]])
    assert own_minus_rest(cka).tolist() == pytest.approx([0.7, 0.3, float("nan")], nan_ok=True)
    assert own_minus_rest(torch.eye(4).expand(2, 4, 4)).tolist() == [[1] * 4] * 2


def test_patches_are_cells_row_by_row():
    images = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    patches = cut(images, (2, 3))
    assert patches.shape == (2, 6, 12)
    assert torch.equal(patches[1, 4], images[1, :, 2:4, 2:4].flatten())


def test_places():
    assert places((3, 3)) == ["corner", "edge", "corner", "edge", "interior", "edge", "corner", "edge", "corner"]
    assert places((2, 2)) == ["corner"] * 4


def test_the_nearest_position_of_a_finer_map():
    assert nearest((7, 7), (7, 7)) == [(r, c) for r in range(7) for c in range(7)]
    assert [row for row, _ in nearest((28, 1), (7, 1))] == [2, 6, 10, 14, 18, 22, 26]
    assert nearest((8, 14), (7, 7))[-1] == (7, 13)
