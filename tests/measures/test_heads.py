"""Windows of heads agree with SciPy; the permutation test finds sorted heads, and nothing in exchangeable ones."""

import itertools

import pytest
import torch
from scipy.stats import spearmanr

from repsim.measures.heads import distance_correlation, permutation_test, rank_correlation, window_cka, windows_of

LAYERS = 5


def exchangeable(heads, generator):
    """Distances of heads, and HSICs of heads and layers with each other, which are independent of the distances."""
    common = torch.randn(40, generator=generator, dtype=torch.float64)
    grams = torch.randn(heads + LAYERS, 40, generator=generator, dtype=torch.float64)
    grams = grams + torch.rand(heads + LAYERS, 1, generator=generator) * common + 0.5 * common
    return torch.rand(heads, generator=generator), (grams @ grams.T) ** 2


@pytest.mark.parametrize("heads", [8, 12, 16])
def test_no_more_is_found_by_chance_than_five_percent(heads):
    generator = torch.Generator().manual_seed(heads)
    p = torch.stack(
        [
            permutation_test(*exchangeable(heads, generator), heads // 4, seed=seed, exact=0, drawn=199)
            for seed in range(600)
        ]
    )
    assert (p <= 0.05).double().mean(0).max() <= 0.06
    assert (p <= 0.5).double().mean(0).sub(0.5).abs().max() < 0.07


def test_heads_that_are_sorted_by_similarity_are_found():
    """Independent heads whose share of a layer grows from head to head are found: no other order has stronger ranks."""
    share = torch.linspace(0.2, 0.9, 8, dtype=torch.float64)
    hsics = torch.block_diag(torch.eye(8, dtype=torch.float64), torch.ones(1, 1))
    hsics[:8, 8] = hsics[8, :8] = share
    p = permutation_test(-share, hsics, 2)
    assert distance_correlation(-share, hsics, 2).tolist() == [-1, -1]
    assert p[0] < 0.005


@pytest.mark.parametrize("heads, window", [(3, 1), (5, 2)])
def test_few_heads_are_permuted_in_all_ways(heads, window):
    distances, hsics = exchangeable(heads, torch.Generator().manual_seed(0))
    own = distance_correlation(distances, hsics, window)[0]
    nearest = distances.argsort()
    means = [distances[nearest[i : i + window]].mean() for i in range(heads - window + 1)]
    correlations = []
    for order in itertools.permutations(range(heads)):
        cka = [cka_of(hsics, list(order[i : i + window])) for i in range(heads - window + 1)]
        correlations.append(spearmanr(means, cka).statistic)
    strong = sum(abs(rho) >= abs(own) - 1e-9 for rho in correlations)
    assert permutation_test(distances, hsics, window)[0].item() == pytest.approx(strong / len(correlations))


def cka_of(hsics, subset):
    return hsics[subset, -LAYERS].sum() / (hsics[subset][:, subset].sum() * hsics[-LAYERS, -LAYERS]).sqrt()


def test_windows_have_the_cka_of_the_sums_of_their_grams():
    _, hsics = exchangeable(6, torch.Generator().manual_seed(1))
    chosen = windows_of(torch.tensor([3, 1, 0, 5, 4, 2]), 3)
    assert chosen.shape == (4, 6)
    expected = [cka_of(hsics, subset) for subset in ([3, 1, 0], [1, 0, 5], [0, 5, 4], [5, 4, 2])]
    torch.testing.assert_close(window_cka(hsics, chosen)[:, 0], torch.stack(expected))


def test_ranks_equal_scipys_and_undefined_ones_are_nan():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, generator=generator), torch.randint(9, (30, 4), generator=generator)
    expected = [spearmanr(x, column).statistic for column in y.T]
    torch.testing.assert_close(rank_correlation(x, y), torch.tensor(expected, dtype=torch.float64))
    y = y.double()
    y[:, 0], y[3, 1] = 1.0, torch.nan
    assert rank_correlation(x, y).isnan().tolist() == [True, True, False, False]
    assert rank_correlation(x[:2], y[:2]).isnan().all()
