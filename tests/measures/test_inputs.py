"""Measures take input of any kind without loss, or refuse it in a sentence."""

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch

import repsim as rs
from repsim.measures.attention import distances, grid_positions, head_statistics
from repsim.measures.cka import gram_row, hsic, minibatch_cka, stacked_hsic
from repsim.measures.inputs import tensor
from repsim.measures.localization import bordered_hsic, own_minus_rest, patch_grams
from repsim.measures.neighbours import nearest_neighbours, squared_distances
from repsim.measures.probe import ProbeRows, ProbeSums
from repsim.measures.receptive import field_statistics
from repsim.measures.residual import skip_statistics
from repsim.measures.running import Moments

X = np.random.default_rng(0).normal(size=(8, 3))
TAKEN = {
    "list": X.tolist(),
    "list of arrays": list(X),
    "list of tensors": [torch.from_numpy(row) for row in X],
    "list of series": [pd.Series(row) for row in X],
    "frame": pd.DataFrame(X),
    "frame of objects": pd.DataFrame(X).astype(object),
    "nullable frame": pd.DataFrame(X).astype("Float64"),
    "objects": X.astype(object),
    "decimals": [[Decimal(float(x)) for x in row] for row in X],
    "big-endian": X.astype(">f8"),
    "backwards": X[::-1].copy()[::-1],
    "transposed": X.T.copy().T,
    "read-only": np.frombuffer(X.tobytes()).reshape(X.shape),
    "longdouble": X.astype(np.longdouble),
    "requires grad": torch.from_numpy(X).requires_grad_(),
}
REFUSED = {
    "complex": (X + 1j, "imaginary part would be lost"),
    "complex tensor": (torch.from_numpy(X) + 1j, "imaginary part would be lost"),
    "list of complex": ([1j] * 8, "imaginary part would be lost"),
    "masked": (np.ma.masked_array(X, X > 0), "mask would be lost"),
    "list of masked": ([np.ma.masked_array(row, row > 0) for row in X], "mask would be lost"),
    "sparse": (torch.from_numpy(X).to_sparse(), "dense"),
    "meta": (torch.empty(8, 3, device="meta"), "holds no numbers"),
    "float4": (torch.zeros(8, 3, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "pass float32"),
    "string": ("abc", r"got str \('abc'\)"),
    "strings": (X.astype(str), "real numbers"),
    "list of strings": (["1.5"] * 8, "real numbers"),
    "none": (None, "got NoneType"),
    "missing": (np.array([1.0, pd.NA] * 4, dtype=object), "got NAType"),
    "ragged": ([[1.0, 2.0], [3.0]], "full array"),
    "dates": (np.full((8, 3), np.datetime64("2020-01-01")), "real numbers"),
    "dictionary": ({"x": 1.0}, "got dict"),
    "long integers": (np.full((8, 3), 2**60 + 1), "float64 would round"),
    "beyond float64": (X.astype(np.longdouble) * np.longdouble("1e4000"), "cannot hold"),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_the_same_numbers_in_any_container_are_the_same(kind):
    taken = tensor(TAKEN[kind], "x")
    assert taken.dtype == torch.float64 and np.array_equal(taken.numpy(), X) and not taken.requires_grad


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int32, torch.bool, torch.uint16])
def test_types_that_nothing_is_computed_in_become_float64(dtype):
    given = torch.tensor([0.0, 1.0, 1.0]).to(dtype)
    assert tensor(given, "x").tolist() == [0, 1, 1] and tensor(given, "x").dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_are_taken_as_they_are(dtype):
    x = torch.zeros(3, dtype=dtype)
    assert tensor(x, "x") is x


def takers(x):
    """Calls of every public measure of features, positions, weights or fields, with x in their place."""
    labels = np.arange(8) % 2
    return [
        lambda: rs.cka(x, X),
        lambda: rs.cka(X, x),
        lambda: hsic(x, X @ X.T),
        lambda: gram_row(x),
        lambda: minibatch_cka().update(stacked_hsic([x], 8)),
        lambda: bordered_hsic(x, patch_grams(X[:, None])),
        lambda: patch_grams(x),
        lambda: own_minus_rest(x),
        lambda: squared_distances(x),
        lambda: nearest_neighbours(x, labels, 1),
        lambda: ProbeSums(2).update(x, labels),
        lambda: ProbeRows(2).update(x, labels),
        lambda: ProbeSums(2).update(X, x),
        lambda: head_statistics(x, np.zeros((2, 2))),
        lambda: distances(x, X),
        lambda: field_statistics(x, (1, 1)),
        lambda: skip_statistics(x, X[:, None]),
        lambda: Moments().update(x),
    ]


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_lose_something_is_refused_in_a_sentence(kind):
    x, message = REFUSED[kind]
    with pytest.raises(rs.UsageError, match=message):
        rs.cka(x, X)
    for number, measure in enumerate(takers(x)):
        with pytest.raises(rs.RepsimError) as error:
            measure()
            raise AssertionError(f"taken by measure {number}")
        assert len(str(error.value).splitlines()) == 1


def test_a_list_of_floats_is_float64():
    far = 1e8 + X
    assert rs.cka(far.tolist(), X) == rs.cka(far, X) == pytest.approx(1, abs=1e-6)


def test_a_missing_value_is_not_a_number():
    with pytest.raises(rs.RepsimError, match="finite features: x holds NaN"):
        rs.cka(pd.Series([1, 2, None, 4] * 2, dtype="Int64"), X)


def test_empty_and_few_are_refused():
    for x, message in (
        (np.zeros((5, 0)), "holds none"),
        (np.zeros((0, 5)), "at least 4"),
        (np.zeros(()), "same images"),
    ):
        with pytest.raises(rs.UsageError, match=message):
            rs.cka(x, x)


def test_measures_take_lists_and_frames_as_they_take_tensors():
    labels, x = np.arange(8) % 2, torch.from_numpy(X)
    for given in (X.tolist(), pd.DataFrame(X)):
        assert torch.equal(squared_distances(given), squared_distances(x))
        assert torch.equal(gram_row(given).direction, gram_row(x).direction)
        sums = ProbeSums(2).update(given, labels.tolist())
        assert torch.equal(sums.squares, ProbeSums(2).update(x, torch.from_numpy(labels)).squares)
    positions = grid_positions(2, 2, 16)
    far = distances(positions.tolist(), positions)
    assert head_statistics(torch.eye(4).view(1, 1, 4, 4).tolist(), far.numpy()).distance_px.item() == 0


def test_minibatches_of_other_layers_or_images_are_refused():
    rows, sums = [gram_row(X), gram_row(X)], minibatch_cka()
    with pytest.raises(rs.UsageError, match="not all are of n = 9"):
        stacked_hsic(rows, 9)
    with pytest.raises(rs.UsageError, match=r"got \(1, 1\) after \(2, 2\)"):
        sums.update(stacked_hsic(rows, 8)).update(stacked_hsic(rows[:1], 8))


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, 1] * 3, "one class for each of 8"),
        ([0.5] * 8, "whole numbers"),
        ([0, 2] * 4, "from 0 to 1, got"),
        ([-1, 0] * 4, "got -1 to 0"),
    ],
)
def test_labels_are_classes(labels, message):
    with pytest.raises(rs.UsageError, match=message):
        ProbeSums(2).update(X, labels)
