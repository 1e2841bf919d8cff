"""Norm ratios and cosines of skips and branches."""

import pytest
import torch

import repsim as rs
from repsim.measures.residual import skip_statistics


def test_by_hand():
    z, f = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 4.0]]])
    statistics = skip_statistics(z, f)
    assert [round(x.item(), 6) for x in statistics] == [0.75, 0.6, 0.0, 3.0, 4.0]


def test_scaling_a_branch_divides_the_ratio():
    z, f = torch.randn(2, 5, 7, 16, dtype=torch.float64)
    once, thrice = skip_statistics(z, f), skip_statistics(z, 3 * f)
    torch.testing.assert_close(thrice.ratio, once.ratio / 3)
    torch.testing.assert_close(thrice.cos_branch, once.cos_branch)


def test_cosines_follow_from_the_definition():
    z, f = torch.randn(2, 5, 7, 16, dtype=torch.float64)
    statistics = skip_statistics(z, f)
    torch.testing.assert_close(statistics.cos_output, torch.cosine_similarity(z, z + f, dim=-1))
    torch.testing.assert_close(statistics.cos_branch, torch.cosine_similarity(z, f, dim=-1))


def test_nothing_added():
    statistics = skip_statistics(torch.ones(1, 1, 4), torch.zeros(1, 1, 4))
    assert (
        statistics.ratio.item() == float("inf")
        and statistics.cos_output.item() == 1
        and statistics.cos_branch.isnan().all()
    )
    with pytest.raises(rs.UsageError, match="that can be added"):
        skip_statistics(torch.ones(1, 2, 4), torch.ones(1, 3, 4))
