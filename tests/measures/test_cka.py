"""CKA against its definition, in float64, and where float32 implementations fail."""

import numpy as np
import pytest
import torch

from repsim.measures.cka import MinibatchCKA, cka, gram_row


def hsic_from_definition(x, y):
    """HSIC_1 in its three terms (Song et al. 2012), float64."""
    n = len(x)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    k.fill_diagonal_(0)
    l.fill_diagonal_(0)
    one = torch.ones(n, dtype=torch.float64)
    total = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return ((k @ l).trace() + total - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))


def cka_from_definition(x, y):
    x, y = (t.double() - t.double().mean(0) for t in (x, y))
    return hsic_from_definition(x, y) / (hsic_from_definition(x, x) * hsic_from_definition(y, y)).sqrt()


@pytest.mark.parametrize("n, p, mean", [(64, 768, 0), (32, 100_000, 100), (64, 10, 10), (128, 5000, 1000)])
def test_engine_equals_the_definition(n, p, mean):
    torch.manual_seed(0)
    x = mean + torch.randn(n, p)
    y = mean + torch.randn(n, p) + 0.5 * (x - mean)
    table, _ = MinibatchCKA().update([gram_row(x), gram_row(y)], n).compute()
    assert table[0, 1].item() == pytest.approx(cka_from_definition(x, y).item(), abs=1e-6)
    assert table[0, 0].item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("n, biased", [(64, 0.92), (256, 0.75), (1024, 0.43)])
def test_independent_gaussians(n, biased):
    x, y = np.random.default_rng(0).normal(size=(2, n, 768))
    assert cka(x, y) == pytest.approx(0, abs=0.04)
    assert cka(x, y, unbiased=False) == pytest.approx(biased, abs=0.01)
