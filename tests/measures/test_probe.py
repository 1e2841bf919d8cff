"""Ridge probes agree with scikit-learn, and keep their laws."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

import repsim as rs
from repsim.measures.probe import GRID, ProbeRows, ProbeSums, Ridge, refit, stacked, training_data


def made_up(n=200, d=12, classes=5, seed=0, spread=1.0):
    """Classes around centres of their own, in features of very different sizes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = np.random.default_rng(99).normal(size=(classes, d))
    x = (centres[labels] + spread * rng.normal(size=(n, d))) * np.logspace(-2, 2, d) + 7
    return torch.from_numpy(x), torch.from_numpy(labels)


@pytest.fixture(params=[ProbeSums, ProbeRows])
def kind(request):
    """The two ways of keeping images."""
    return request.param


def collected(kind, x, labels, classes=5):
    """Data of probes, collected in batches as in a sweep."""
    data = kind(classes)
    for start in range(0, len(x), 64):
        data.update(x[start : start + 64], labels[start : start + 64])
    return data


def predicted(probe, x):
    """Predicted classes (n, m)."""
    return probe.scores(x).argmax(2)


@pytest.mark.parametrize("l2", [2.0**-10, 1.0, 2.0**10])
@pytest.mark.parametrize("d", [12, 300])
def test_weights_and_predictions_are_those_of_scikit_learn(kind, l2, d):
    x, labels = made_up(d=d)
    data = collected(kind, x, labels)
    probe = Ridge(data).fit(l2)
    scaler = StandardScaler().fit(x.numpy())
    standard = scaler.transform(x.numpy())
    targets = 2 * np.eye(5)[labels] - 1
    oracle = SklearnRidge(alpha=l2, solver="svd" if d > 200 else "cholesky").fit(standard, targets)
    new, _ = made_up(d=d, seed=1)
    unseen = scaler.transform(new.numpy())
    for fitted in (probe, refit(data, torch.tensor([l2]))):
        np.testing.assert_allclose(fitted.weight[0].T.numpy() * scaler.scale_, oracle.coef_, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(fitted.scores(new)[:, 0], oracle.predict(unseen), rtol=1e-7, atol=1e-8)
    classifier = RidgeClassifier(alpha=l2).fit(standard, labels.numpy())
    np.testing.assert_array_equal(probe.scores(new)[:, 0].argmax(1), classifier.predict(unseen))


@pytest.mark.parametrize("held_kind", [ProbeSums, ProbeRows])
def test_held_out_errors_of_all_strengths_are_those_of_the_fitted_probes(kind, held_kind):
    x, labels = made_up()
    other, other_labels = made_up(seed=1, n=70)
    ridge, held_out = Ridge(collected(kind, x, labels)), collected(held_kind, other, other_labels)
    targets = 2 * torch.nn.functional.one_hot(other_labels, 5).double() - 1
    direct = [((targets - ridge.fit(l2).scores(other)[:, 0]) ** 2).sum(1).mean().item() for l2 in GRID]
    errors = ridge.errors(held_out)[:, 0].numpy()
    np.testing.assert_allclose(errors - errors[0], np.array(direct) - direct[0], atol=1e-9)
    assert ridge.best(held_out).item() == GRID[int(np.argmin(direct))]


def test_what_is_kept_is_the_smaller():
    assert isinstance(training_data(100, 512, 10), ProbeRows)
    assert isinstance(training_data(10_000, 768, 1000), ProbeSums)


def test_separable_classes_are_told_apart_and_shuffled_labels_are_not(kind):
    x, labels = made_up(n=500, spread=0.05)
    new, new_labels = made_up(n=500, spread=0.05, seed=1)
    assert (predicted(Ridge(collected(kind, x, labels)).fit(1.0), new)[:, 0] == new_labels).all()
    shuffled = labels[torch.randperm(500, generator=torch.Generator().manual_seed(0))]
    other_labels = new_labels[torch.randperm(500, generator=torch.Generator().manual_seed(1))]
    predictions = predicted(Ridge(collected(kind, x, shuffled)).fit(1.0), new)[:, 0]
    right = (predictions == other_labels).double().mean().item()
    assert abs(right - 0.2) < 4 * (0.2 * 0.8 / 500) ** 0.5


def test_several_probes_at_once_are_several_probes(kind):
    x, labels = made_up()
    both = torch.stack([x, x.flip(1).square()], 1)
    strengths = torch.tensor([1.0, 8.0])
    probe = Ridge(collected(kind, both, labels)).fit(strengths)
    for m in range(2):
        alone = Ridge(collected(kind, both[:, m], labels)).fit(strengths[m].item())
        torch.testing.assert_close(probe.weight[m], alone.weight[0])
        assert torch.equal(predicted(probe, both)[:, m], predicted(alone, both[:, m])[:, 0])


def test_probes_stacked_are_the_probes(kind):
    x, labels = made_up()
    probes = [
        Ridge(collected(kind, x[half], labels[half])).fit(l2) for half, l2 in ((slice(100), 1.0), (slice(100, 200), 8))
    ]
    both = stacked(probes).scores(x).unflatten(2, (2, 5))
    for i, probe in enumerate(probes):
        torch.testing.assert_close(both[:, :, i], probe.scores(x))


def test_merged_data_are_the_data_of_all(kind):
    x, labels = made_up()
    merged = collected(kind, x[:50], labels[:50]).merge(kind(5)).merge(collected(kind, x[50:], labels[50:]))
    torch.testing.assert_close(Ridge(merged).fit(1.0).weight, Ridge(collected(kind, x, labels)).fit(1.0).weight)


def test_few_images_merge_into_the_sums_of_many():
    x, labels = made_up()
    merged = collected(ProbeSums, x[:150], labels[:150]).merge(collected(ProbeRows, x[150:], labels[150:]))
    torch.testing.assert_close(Ridge(merged).fit(1.0).weight, Ridge(collected(ProbeSums, x, labels)).fit(1.0).weight)


def test_constant_features_and_a_large_mean_do_no_harm(kind):
    x, labels = made_up()
    widened = torch.cat([x, torch.full((len(x), 1), 1e4)], 1)
    plain = Ridge(collected(kind, x, labels)).fit(1.0)
    probe = Ridge(collected(kind, widened, labels)).fit(1.0)
    assert probe.weight[0, -1].abs().max() < 1e-6
    torch.testing.assert_close(probe.weight[:, :-1], plain.weight, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        Ridge(collected(kind, x + 1e4, labels)).fit(1.0).weight, plain.weight, rtol=1e-4, atol=1e-7
    )


def test_a_class_without_images(kind):
    x, labels = made_up()
    with pytest.raises(rs.UsageError, match="there are none of class 5"):
        Ridge(collected(kind, x, labels, classes=6))
