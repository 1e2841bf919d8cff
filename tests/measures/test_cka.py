"""CKA equals its definition in float64, also where float32 implementations fail."""

import numpy as np
import pytest
import torch
from sklearn.preprocessing import KernelCenterer

import repsim as rs
from repsim.measures import cka as cka_of_layers
from repsim.measures.cka import cka, flatten, gram, gram_row, hsic, minibatch_cka, normalise, stacked_hsic, u_centre


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


def engine(*features):
    """The (L, L) table that minibatch CKA gives for one batch."""
    return minibatch_cka().update(stacked_hsic([gram_row(x) for x in features], len(features[0]))).compute()[0]


def correlated(n, p, mean=0.0, scale=1.0, seed=0):
    torch.manual_seed(seed)
    x, noise = torch.randn(2, n, p)
    return (mean + x) * scale, (mean + noise + 0.5 * x) * scale


@pytest.mark.parametrize("p, q", [(3, 7), (50, 20)])
def test_hsic_equals_its_definition(p, q):
    torch.manual_seed(0)
    x, y = torch.randn(12, p, dtype=torch.float64), torch.randn(12, q, dtype=torch.float64)
    expected = hsic_from_definition(x, y).item()
    assert hsic(x @ x.T, y @ y.T).item() == pytest.approx(expected, rel=1e-10)


def test_biased_hsic_equals_scikit_learns_centred_kernels():
    torch.manual_seed(0)
    x, y = torch.randn(2, 12, 5, dtype=torch.float64)
    k, l = (KernelCenterer().fit_transform((t @ t.T).numpy()) for t in (x, y))  # noqa: E741
    assert hsic(x @ x.T, y @ y.T, unbiased=False).item() == pytest.approx((k * l).sum() / 11**2, rel=1e-10)


def test_u_centred_rows_sum_to_zero_and_the_diagonal_is_zero():
    x = torch.randn(9, 4, dtype=torch.float64)
    centred = u_centre(x @ x.T)
    assert centred.sum(0).abs().max() < 1e-12 and centred.diagonal().abs().max() == 0


NUMERICS = {
    "plain": (64, 768, 0, 1),
    "wide": (32, 100_000, 0, 1),
    "mean 10": (64, 1000, 10, 1),
    "mean 10, wide": (256, 20_000, 10, 1),
    "mean 100": (32, 100_000, 100, 1),
    "mean 1000": (128, 5000, 1000, 1),
    "logits": (64, 10, 10, 1),
    "tiny": (64, 500, 0, 1e-18),
    "huge": (64, 500, 0, 1e18),
    "odd sizes": (130, 2049, 3, 1),
    "four examples": (4, 300, 1, 1),
}


@pytest.mark.parametrize("case", NUMERICS)
def test_engine_in_float32_equals_the_definition_in_float64(case):
    x, y = correlated(*NUMERICS[case])
    table = engine(x, y)
    assert table[0, 1].item() == pytest.approx(cka_from_definition(x, y).item(), abs=1e-5)
    assert table.diagonal().tolist() == pytest.approx([1, 1], abs=1e-12)
    assert torch.equal(table, table.T)


@pytest.fixture
def centrings(monkeypatch):
    """The shapes of features that were centred before their product."""
    shapes, centred = [], cka_of_layers.centred_gram
    monkeypatch.setattr(
        cka_of_layers,
        "centred_gram",
        lambda x, *more, **options: shapes.append(tuple(x.shape)) or centred(x, *more, **options),
    )
    return shapes


def test_features_are_centred_first_only_where_it_matters(centrings):
    gram_row(correlated(64, 5000)[0])
    assert not centrings
    gram_row(correlated(64, 5000, mean=100)[0])
    assert centrings == [(64, 5000)]


def test_centring_first_or_not_gives_one_result(centrings):
    x, y = correlated(256, 5000, mean=0.5)
    rows = [[gram_row(t) for t in (x, y)]]
    assert not centrings
    rows.append([cka_of_layers._row(cka_of_layers.centred_gram(t)[0]) for t in (x, y)])
    tables = [minibatch_cka().update(stacked_hsic(r, 256)).compute()[0] for r in rows]
    torch.testing.assert_close(*tables, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype, rtol, atol", [(torch.float32, 1e-6, 5e-4), (torch.float64, 1e-12, 1e-10)])
def test_the_product_of_halves_is_the_product(dtype, rtol, atol):
    x = torch.randn(131, 5000, dtype=dtype, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gram(x)[0], x.double() @ x.double().T, rtol=rtol, atol=atol)


def massive(n, p, size, seed=0):
    """Features one of which is far larger than the others, as transformers have."""
    x, y = correlated(n, p, seed=seed)
    x[:, 7] = size * (1 + 0.01 * torch.randn(n))
    return x, y


@pytest.mark.parametrize("n, p, size", [(256, 38_400, 8000), (256, 20_000, 1000), (64, 10_000, 300)])
def test_massive_activations(n, p, size):
    x, y = massive(n, p, size)
    assert engine(x, y)[0, 1].item() == pytest.approx(cka_from_definition(x, y).item(), abs=1e-5)


def test_an_outlier_image():
    x, y = correlated(16, 20_000)
    x[3] *= 300
    assert engine(x, y)[0, 1].item() == pytest.approx(cka_from_definition(x, y).item(), abs=1e-5)


@pytest.mark.parametrize("n, p", [(512, 1), (512, 10), (1024, 10), (2048, 96)])
def test_constant_features_of_any_size_have_no_norm(n, p):
    for seed in range(10):
        torch.manual_seed(seed)
        assert gram_row(torch.randn(p).expand(n, p).contiguous()).norm == 0


def test_bfloat16_features():
    x, y = (t.bfloat16() for t in correlated(64, 768, mean=1))
    assert engine(x, y)[0, 1].item() == pytest.approx(cka_from_definition(x, y).item(), abs=1e-5)


def test_a_nearly_constant_logit_layer_is_near_zero():
    """CKA of a nearly constant layer is near zero, where three-term float32 code prints 1.0 for -0.002."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 768), 5 + 1e-3 * torch.randn(64, 10)
    expected = cka_from_definition(x, y).item()
    assert abs(expected) < 0.05 and engine(x, y)[0, 1].item() == pytest.approx(expected, abs=1e-5)


def test_negative_values_stay_negative():
    x, y = next(
        (a, b)
        for seed in range(20)
        for a, b in [torch.randn(2, 16, 50, generator=torch.Generator().manual_seed(seed))]
        if cka_from_definition(a, b) < -0.02
    )
    assert engine(x, y)[0, 1] < -0.02 and cka(x, y) < -0.02


@pytest.mark.parametrize("n, biased", [(64, 0.92), (256, 0.75), (1024, 0.43)])
def test_independent_gaussians(n, biased):
    x, y = np.random.default_rng(0).normal(size=(2, n, 768))
    assert cka(x, y) == pytest.approx(0, abs=0.04)
    assert cka(x, y, unbiased=False) == pytest.approx(biased, abs=0.01)


@pytest.mark.parametrize("unbiased", [True, False])
def test_invariances_and_the_lack_of_one(unbiased):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 20))
    y = x[:, :10] + rng.normal(size=(64, 10))
    rotation = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    linear = rng.normal(size=(20, 20)) @ np.diag(np.logspace(0, 2, 20))
    value = cka(x, y, unbiased=unbiased)
    assert cka(x, x, unbiased=unbiased) == pytest.approx(1, abs=1e-12)
    assert cka(y, x, unbiased=unbiased) == pytest.approx(value, abs=1e-12)
    assert cka(-7 * x @ rotation + 3, y, unbiased=unbiased) == pytest.approx(value, abs=1e-10)
    assert abs(cka(x @ linear, y, unbiased=unbiased) - value) > 0.1


def test_numpy_and_torch_agree_and_maps_are_flattened():
    x = torch.randn(8, 3, 4, 4, dtype=torch.float64)
    y = torch.randn(8, 5, dtype=torch.float64)
    assert cka(x, y) == cka(x.numpy(), y.numpy()) == cka(x.reshape(8, 48), y)


def test_minibatches_average_hsic_before_dividing():
    x, y = correlated(60, 30)
    sums = minibatch_cka()
    for a, b in zip(x.split(20), y.split(20)):
        sums.update(stacked_hsic([gram_row(a), gram_row(b)], 20))

    def mean(p, q):
        return sum(hsic_from_definition(a.double(), b.double()) for a, b in zip(p.split(20), q.split(20))) / 3

    expected = mean(x, y) / (mean(x, x) * mean(y, y)).sqrt()
    assert sums.compute()[0][0, 1].item() == pytest.approx(expected.item(), abs=1e-6)


def test_merged_sums_equal_one_run():
    batches = [[gram_row(t) for t in correlated(16, 40, seed=seed)] for seed in range(7)]
    whole, first, second = minibatch_cka(), minibatch_cka(), minibatch_cka()
    for number, rows in enumerate(batches):
        whole.update(stacked_hsic(rows, 16), number)
        (first if number < 3 else second).update(stacked_hsic(rows, 16), number)
    for expected, merged in zip(whole.compute(), second.merge(first).compute()):
        torch.testing.assert_close(merged, expected, rtol=1e-12, atol=1e-12)
    for expected, merged in zip(whole.compute(), whole.merge(minibatch_cka()).compute()):
        assert torch.equal(merged, expected)


def test_standard_error_is_that_of_repeated_experiments():
    """The jackknife over 20 batches gives the spread of CKA over many runs of 20 batches."""
    torch.manual_seed(0)
    results = []
    for _ in range(60):
        sums = minibatch_cka()
        for _ in range(20):
            x = torch.randn(16, 8)
            sums.update(stacked_hsic([gram_row(x), gram_row(x @ torch.eye(8)[:, :4] + torch.randn(16, 4))], 16))
        results.append([part[0, 1].item() for part in sums.compute()])
    values, errors = np.array(results).T
    assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.25)


def test_constant_layers_are_undefined():
    x = torch.randn(32, 10)
    table = engine(x, torch.full((32, 5000), 3.7))
    assert table[0, 0] == pytest.approx(1) and table[0, 1].isnan() and table[1, 1].isnan()
    assert np.isnan(cka(x, torch.ones(32, 4)))
    assert normalise(torch.zeros(1, 1)).isnan().all()


def test_dense_maps_are_flattened_without_a_copy():
    maps = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    assert flatten(maps).data_ptr() == maps.data_ptr()
    x, y = flatten(maps), maps.reshape(4, -1)
    torch.testing.assert_close(x @ x.T, y @ y.T)
    assert flatten(maps[:, :, ::2]).shape == (4, 45)


@pytest.mark.parametrize(
    "x, y, message",
    [
        (np.zeros((64, 3)), np.zeros((63, 3)), "needs the same images in both: got 64 rows and 63 rows"),
        (np.zeros((3, 3)), np.zeros((3, 3)), "at least 4 examples, got 3"),
        (np.full((5, 3), np.nan), np.zeros((5, 3)), "finite features: x holds NaN"),
        (np.zeros((5, 3)), np.full((5, 3), np.inf), "finite features: y holds NaN"),
    ],
)
def test_errors(x, y, message):
    with pytest.raises(rs.RepsimError, match=message):
        cka(x, y)
