"""Attention distance where it is known by hand."""

import math

import pytest
import torch

import repsim as rs
from repsim.measures.attention import distances, grid_positions, head_statistics


def uniform(side: int, spacing: int, prefix: int, renormalize: bool) -> float:
    positions = grid_positions(side, side, spacing)
    tokens = side**2 + prefix
    attention = torch.full((1, 2, tokens, tokens), 1 / tokens)
    statistics = head_statistics(attention, distances(positions, positions), prefix=prefix, renormalize=renormalize)
    assert statistics.entropy[0].tolist() == pytest.approx([math.log(tokens)] * 2, rel=1e-5)
    return statistics.distance_px[0, 0].item()


@pytest.mark.parametrize(
    "side, spacing, raw, renormalized", [(14, 16, 115.90, 116.49), (7, 32, 113.19, 115.50), (16, 14, 116.11, 116.57)]
)
def test_uniform_attention(side, spacing, raw, renormalized):
    assert uniform(side, spacing, 1, False) == pytest.approx(raw, abs=0.005)
    assert uniform(side, spacing, 1, True) == pytest.approx(renormalized, abs=0.005)


def test_identity_attention_stays_where_it_is():
    positions = grid_positions(3, 3, 16)
    statistics = head_statistics(torch.eye(9).expand(2, 4, 9, 9), distances(positions, positions))
    assert statistics.distance_px.abs().max() == 0 and statistics.entropy.abs().max() == 0
    assert (statistics.self_share == 1).all() and statistics.cls_share.isnan().all()


def test_against_loops():
    torch.manual_seed(0)
    attention = torch.randn(2, 3, 6, 6).softmax(-1)  # 2 prefix tokens, 2 x 2 grid
    positions = grid_positions(2, 2, 10)
    statistics = head_statistics(attention, distances(positions, positions), prefix=2, cls=True)
    for n in range(2):
        for h in range(3):
            reach = entropy = cls = own = 0.0
            for i in range(4):
                for j in range(6):
                    a = attention[n, h, i + 2, j].item()
                    entropy -= a * math.log(a) / 4
                    if j >= 2:
                        reach += a * math.dist(divmod(i, 2), divmod(j - 2, 2)) * 10 / 4
                cls += attention[n, h, i + 2, 0].item() / 4
                own += attention[n, h, i + 2, i + 2].item() / 4
            expected = (reach, entropy, cls, own)
            assert [value[n, h].item() for value in statistics] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype, to_cls", [(torch.bfloat16, 30), (torch.float32, 60), (torch.float64, 300)])
def test_renormalized_rows_are_summed_precisely_however_little_is_on_the_grid(dtype, to_cls):
    torch.manual_seed(0)
    scores = torch.randn(2, 3, 17, 17, dtype=torch.float64)
    scores[..., 0] += to_cls
    attention = scores.softmax(-1).to(dtype)
    positions = grid_positions(4, 4, 16)
    far = distances(positions, positions)
    grid = attention[..., 1:, 1:].double()
    expected = ((grid * far).sum(-1) / grid.sum(-1)).mean(-1)
    distance_px = head_statistics(attention, far, prefix=1, renormalize=True).distance_px
    torch.testing.assert_close(distance_px, expected, rtol=1e-6, atol=0)


def test_what_are_no_weights_is_refused():
    far = torch.zeros(2, 2)
    for attention, message in (
        (torch.full((1, 1, 2, 2), -1.0), "not negative"),
        (torch.ones(1, 1, 2, 2), "sum to 1"),
        (torch.full((1, 1, 3, 3), 0.3), r"distance of 3 queries to 3 keys .* got distance \(2, 2\)"),
    ):
        with pytest.raises(rs.UsageError, match=message):
            head_statistics(attention, far)
