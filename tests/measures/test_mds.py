"""Positions in a plane from distances."""

import pytest
import torch

import repsim as rs
from repsim.measures.mds import mds, turned


def distances(positions):
    return torch.cdist(positions, positions)


def test_positions_in_a_plane_come_back():
    positions = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    placed, stress = mds(distances(positions))
    torch.testing.assert_close(distances(placed), distances(positions), atol=1e-5, rtol=0)
    assert stress < 1e-5
    about = positions - positions.mean(0)
    torch.testing.assert_close(turned(placed, about), about, atol=1e-5, rtol=0)


def test_the_stress_of_what_no_plane_holds():
    """The stress of four points at distance 1 from each other is that of the best square, of side a."""
    given = 1 - torch.eye(4, dtype=torch.float64)
    placed, stress = mds(given)
    side = (4 + 2 * 2**0.5) / 8  # where 4 (a - 1)^2 + 2 (root 2 a - 1)^2 is smallest
    expected = ((4 * (side - 1) ** 2 + 2 * (2**0.5 * side - 1) ** 2) / (4 * side**2 + 4 * side**2)) ** 0.5
    assert stress.item() <= expected + 1e-6
    assert stress.item() == pytest.approx(expected, abs=1e-4)


def test_it_never_gets_worse_than_where_it_began():
    given = torch.rand(9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    given = ((given + given.T) / 2).fill_diagonal_(0)
    start = torch.randn(9, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    before = (distances(start) - given).square().sum()
    placed, _ = mds(given, start)
    assert (distances(placed) - given).square().sum() < before


def test_what_are_no_distances():
    with pytest.raises(rs.UsageError, match="not negative, and 0 on the diagonal"):
        mds(torch.ones(3, 3))
    placed, stress = mds(torch.full((3, 3), torch.nan).fill_diagonal_(0))
    assert placed.isnan().all() and stress.isnan()
