"""Ridge probes against scikit-learn, by law, and by hand."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

import repsim as rs
from repsim.measures.probe import GRID, ProbeSums, Ridge


def made_up(n=200, d=12, classes=5, seed=0, spread=1.0):
    """Classes around centres of their own, in features of very different sizes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = np.random.default_rng(99).normal(size=(classes, d))
    x = (centres[labels] + spread * rng.normal(size=(n, d))) * np.logspace(-2, 2, d) + 7
    return torch.from_numpy(x), torch.from_numpy(labels)


def sums(x, labels, classes=5):
    return ProbeSums(classes).update(x, labels)


@pytest.mark.parametrize("l2", [2.0**-10, 1.0, 2.0**10])
@pytest.mark.parametrize("d", [12, 300])
def test_weights_and_predictions_are_those_of_scikit_learn(l2, d):
    x, labels = made_up(d=d)
    probe = Ridge(sums(x, labels)).fit(l2)
    standard = StandardScaler().fit_transform(x.numpy())
    targets = 2 * np.eye(5)[labels] - 1
    oracle = SklearnRidge(alpha=l2, solver="svd" if d > 200 else "cholesky").fit(standard, targets)
    np.testing.assert_allclose(probe.weight[0].T, oracle.coef_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(probe.bias, oracle.intercept_, atol=1e-12)
    others, _ = made_up(d=d, seed=1)
    scaler = StandardScaler().fit(x.numpy())
    classifier = RidgeClassifier(alpha=l2).fit(standard, labels.numpy())
    np.testing.assert_array_equal(
        probe.scores(others)[:, 0].argmax(1), classifier.predict(scaler.transform(others.numpy()))
    )


def test_held_out_errors_of_all_strengths_are_those_of_the_fitted_probes():
    x, labels = made_up()
    other, other_labels = made_up(seed=1, n=70)
    ridge = Ridge(sums(x, labels))
    targets = 2 * torch.nn.functional.one_hot(other_labels, 5).double() - 1
    direct = [((targets - ridge.fit(l2).scores(other)[:, 0]) ** 2).sum(1).mean().item() for l2 in GRID]
    found = ridge.errors(sums(other, other_labels))[:, 0].numpy()
    np.testing.assert_allclose(found - found[0], np.array(direct) - direct[0], atol=1e-9)
    assert ridge.best(sums(other, other_labels)).item() == GRID[int(np.argmin(direct))]


def test_separable_classes_are_told_apart_and_shuffled_labels_are_not():
    x, labels = made_up(n=500, spread=0.05)
    new, new_labels = made_up(n=500, spread=0.05, seed=1)
    assert Ridge(sums(x, labels)).fit(1.0).right(new, new_labels).all()
    shuffled = labels[torch.randperm(500, generator=torch.Generator().manual_seed(0))]
    right = Ridge(sums(x, shuffled)).fit(1.0).right(new, new_labels[torch.randperm(500)]).double().mean().item()
    assert abs(right - 0.2) < 4 * (0.2 * 0.8 / 500) ** 0.5


def test_several_probes_at_once_are_several_probes():
    x, labels = made_up()
    both = torch.stack([x, x.flip(1).square()], 1)
    strengths = torch.tensor([1.0, 8.0])
    probe = Ridge(sums(both, labels)).fit(strengths)
    for m in range(2):
        alone = Ridge(sums(both[:, m], labels)).fit(strengths[m].item())
        torch.testing.assert_close(probe.weight[m], alone.weight[0])
        assert torch.equal(probe.right(both, labels)[:, m], alone.right(both[:, m], labels)[:, 0])


def test_merged_sums_are_the_sums_of_all():
    x, labels = made_up()
    merged = sums(x[:50], labels[:50]).merge(ProbeSums(5)).merge(sums(x[50:], labels[50:]))
    torch.testing.assert_close(Ridge(merged).fit(1.0).weight, Ridge(sums(x, labels)).fit(1.0).weight)


def test_constant_features_and_a_large_mean_do_no_harm():
    x, labels = made_up()
    widened = torch.cat([x, torch.full((len(x), 1), 1e4)], 1)
    probe = Ridge(sums(widened, labels)).fit(1.0)
    assert probe.scale[0, -1] == 1 and probe.weight[0, -1].abs().max() < 1e-6
    torch.testing.assert_close(probe.weight[:, :-1], Ridge(sums(x, labels)).fit(1.0).weight, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(Ridge(sums(x + 1e4, labels)).fit(1.0).weight, probe.weight[:, :-1], rtol=1e-4, atol=1e-7)


def test_a_class_without_images():
    x, labels = made_up()
    with pytest.raises(rs.UsageError, match="there are none of class 5"):
        Ridge(sums(x, labels, classes=6))
