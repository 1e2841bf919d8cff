"""Gradients of the centre of a map, and statistics of receptive fields that are known by hand."""

import math

import pytest
import torch

from repsim.measures.receptive import centre_gradients, field_statistics


def test_gradients_of_a_linear_map_are_its_weights():
    torch.manual_seed(0)
    weight = torch.randn(5, 2 * 3 * 3)
    images = torch.randn(4, 2, 3, 3, requires_grad=True)
    z = images.flatten(1) @ weight.T
    gradients = centre_gradients(z, images, torch.tensor([0, 3, 4]), at_once=2)
    expected = weight[[0, 3, 4]].abs().mean(0).view(1, 2, 3, 3).expand(4, 2, 3, 3)
    torch.testing.assert_close(gradients, expected)


def test_statistics_of_known_fields():
    even = field_statistics(torch.ones(8, 8), (2, 2))  # the centre is cell (1, 1), at (6, 6)
    assert even.centre_share == 0.25
    point = torch.zeros(9, 9)
    point[4, 4] = 2
    assert field_statistics(point, (9, 9)) == (0, 0, 1)
    ring = torch.zeros(9, 9)
    ring[4, 0] = ring[4, 8] = 1
    inner = 13**0.5  # the distance of the next nearer pixels, from which it grows linearly
    expected = [inner + share * (4 - inner) for share in (0.5, 0.95)]
    assert field_statistics(ring, (3, 3)) == pytest.approx((*expected, 0))
    assert all(math.isnan(v) for v in field_statistics(torch.zeros(4, 4), (2, 2)))


def test_a_large_uniform_field_has_the_radii_of_a_square():
    statistics = field_statistics(torch.ones(201, 201), (1, 1))
    assert statistics.radius50_px == pytest.approx(201 * math.sqrt(0.5 / math.pi), rel=0.01)
    assert statistics.centre_share == 1
