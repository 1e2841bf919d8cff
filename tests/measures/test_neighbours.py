"""Neighbours are those of scikit-learn, and the soft nearest neighbour loss is that of its formula."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

import repsim as rs
from repsim.measures.neighbours import nearest_neighbours, soft_nearest_neighbour, squared_distances


def made_up(n=90, d=6, classes=3, apart=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    x = rng.normal(size=(n, d)) + apart * rng.normal(size=(classes, d))[labels] + 100
    return torch.from_numpy(x), torch.from_numpy(labels)


def loss_by_the_formula(x, labels, temperature):
    """Frosst et al. (2019), eq. 1, term by term."""
    terms = []
    for i in range(len(x)):
        weights = {j: np.exp(-float(((x[i] - x[j]) ** 2).sum()) / temperature) for j in range(len(x)) if j != i}
        same = sum(weight for j, weight in weights.items() if labels[j] == labels[i])
        terms.append(-np.log(same / sum(weights.values())))
    return float(np.mean(terms))


def test_distances():
    x, _ = made_up()
    expected = torch.cdist(x, x).square()
    squared = squared_distances(x)
    assert torch.isinf(squared.diagonal()).all()
    torch.testing.assert_close(squared.fill_diagonal_(0), expected.fill_diagonal_(0), rtol=1e-9, atol=1e-9)


def test_the_soft_loss_is_that_of_the_formula_and_no_temperature_has_a_smaller_one():
    x, labels = made_up(n=45)
    result = soft_nearest_neighbour(squared_distances(x), labels)
    assert result.loss == pytest.approx(loss_by_the_formula(x, labels, result.temperature), rel=1e-9)
    for times in (0.25, 0.5, 0.9, 1.1, 2, 4):
        assert loss_by_the_formula(x, labels, times * result.temperature) > result.loss


def test_the_soft_loss_does_not_depend_on_scale():
    x, labels = made_up()
    result, scaled = (soft_nearest_neighbour(squared_distances(features), labels) for features in (x, 1000 * x))
    assert scaled.loss == pytest.approx(result.loss, rel=1e-6)
    assert scaled.temperature == pytest.approx(1e6 * result.temperature, rel=1e-2)


def test_the_soft_loss_is_zero_of_classes_apart_and_their_entropy_of_noise():
    x, labels = made_up(apart=100)
    assert soft_nearest_neighbour(squared_distances(x), labels).loss < 1e-9
    x, labels = made_up(n=600, apart=0)
    result = soft_nearest_neighbour(squared_distances(x), labels)
    assert result.loss == pytest.approx(np.log(3), abs=0.02)


def test_constant_representations_have_no_soft_loss():
    assert np.isnan(
        soft_nearest_neighbour(squared_distances(torch.ones(6, 3)), torch.tensor([0, 0, 0, 1, 1, 1]))[:3]
    ).all()


@pytest.mark.parametrize("k", [1, 5, 10])
def test_nearest_neighbours_are_those_of_scikit_learn_left_out_one_by_one(k):
    x, labels = made_up(n=120)
    everyone = np.arange(120)
    predicted = [
        KNeighborsClassifier(k).fit(x[everyone != i], labels[everyone != i]).predict(x[i : i + 1])[0] for i in everyone
    ]
    np.testing.assert_array_equal(nearest_neighbours(squared_distances(x), labels, k), predicted == labels.numpy())


def test_what_cannot_be_computed():
    x, labels = made_up(n=9)
    with pytest.raises(rs.UsageError, match="two or more images of each class"):
        soft_nearest_neighbour(squared_distances(x), torch.arange(9))
    with pytest.raises(rs.UsageError, match="k must be from 1 to 8"):
        nearest_neighbours(squared_distances(x), labels, 9)
