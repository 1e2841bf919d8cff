"""Attention as networks compute it, fused or not."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FAMILIES, noise
from test_hooks import hooks_on

import repsim as rs
from repsim.networks.attention_weights import attention_modules, watch_attention
from repsim.tables import ATTENTION

READABLE = ["vit", "vit_gap", "vit_registers", "deit_distilled", "vit_hybrid", "convit", "pit", "pvt_v2", "swin"]


def table_of(network, n=8):
    return rs.attention_distance(network, noise(network, n), batch_size=n).table


@pytest.mark.parametrize("name", READABLE)
def test_fused_equals_unfused_and_nothing_changes(name):
    network = FAMILIES[name].load()
    images = noise(network, 4)
    fused = [module for module in network.module.modules() if hasattr(module, "fused_attn")]
    for module in fused:  # not every family is fused by default
        module.fused_attn = True
    with torch.no_grad():
        before = network.module(images)
        with watch_attention(network, lambda layer, number, attention: None):
            assert torch.equal(network.module(images), before)
    assert hooks_on(network.module) == 0 and all(module.fused_attn for module in fused)
    first = table_of(network)
    for module in fused:
        module.fused_attn = False
    second = table_of(network)
    assert list(first.columns) == ATTENTION
    # Unfused, attention of Swin has a module of its own for the softmax, which is the layer then.
    first, second = (table.drop(columns=["layer", "depth"]) for table in (first, second))
    pd.testing.assert_frame_equal(first, second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", READABLE)
def test_rows_of_attention_sum_to_one(name):
    network = FAMILIES[name].load()
    sums = []
    with (
        torch.no_grad(),
        watch_attention(network, lambda layer, number, a: sums.append((a.sum(-1) - 1).abs().max().item())),
    ):
        network.module(noise(network, 2))
    assert len(sums) == len(attention_modules(network)) and max(sums) < 1e-5


@pytest.mark.parametrize(
    "model, distance, renormalized",
    [
        ("vit_large_patch16_224", 115.90, 116.49),
        ("vit_base_patch32_224", 113.19, 115.50),
        ("vit_huge_patch14_224", 116.11, 116.57),
    ],
)
def test_a_real_network_with_zeroed_queries_attends_uniformly(model, distance, renormalized):
    network = rs.load_model(model, weights="random", depth=1)
    attention = network.module.blocks[0].attn
    width = attention.num_heads * attention.head_dim
    with torch.no_grad():
        attention.qkv.weight[:width] = 0
        attention.qkv.bias[:width] = 0
    table = table_of(network, 4)
    tokens = network.module.patch_embed.num_patches + 1
    assert table.distance_px.to_numpy() == pytest.approx(distance, abs=0.005)
    assert table.entropy.to_numpy() == pytest.approx(math.log(tokens), rel=1e-4)
    assert table.cls_share.to_numpy() == pytest.approx(1 / tokens, rel=1e-4)
    assert table.self_share.to_numpy() == pytest.approx(1 / tokens, rel=1e-4)
    assert len(table) == attention.num_heads
    again = rs.attention_distance(network, noise(network, 4), batch_size=4, renormalize=True).table
    assert again.distance_px.to_numpy() == pytest.approx(renormalized, abs=0.005)


def even(model, **settings):
    """An untrained network that attends evenly, without queries and without biases of places."""
    network = rs.load_model(model, weights="random", **settings)
    with torch.no_grad():
        for name, parameter in network.module.named_parameters():
            if name.endswith("relative_position_bias_table"):
                parameter.zero_()
            elif name.endswith((".qkv.weight", ".qkv.bias")):
                parameter[: len(parameter) // 3] = 0
            elif name.endswith((".q.weight", ".q.bias")):
                parameter.zero_()
    return network


def apart(queries, keys=None, columns=None):
    """The mean distance in px from each cell of a grid to each of another, of n rows of `side` px each, by (n, side).

    There are as many columns as rows, unless `columns` says otherwise.
    """

    def along(queries, keys):
        return np.subtract.outer(*((np.arange(n) + 0.5) * side for n, side in (queries, keys or queries)))

    y, x = along(queries, keys), along(columns or queries, keys)
    return np.hypot(y[:, None, :, None], x[None, :, None, :]).mean()


def test_pit_pools_its_grid_and_keeps_real_pixels():
    reach = table_of(even("pit_ti_224", depth=(1, 1, 1)), 4).groupby("block").distance_px.mean()
    expected = [apart((n, side)) * n**2 / (n**2 + 1) for n, side in ((27, 8), (14, 16), (7, 32))]  # 0 px to CLS
    assert reach.to_numpy() == pytest.approx(expected, abs=0.005)


def test_windows_reach_no_further_than_a_window():
    reach = table_of(even("swin_tiny_patch4_window7_224", depths=(2, 1, 1, 1)), 4).groupby("block").distance_px.mean()
    assert reach[[0, 2, 3, 4]].to_numpy() == pytest.approx([apart((7, side)) for side in (4, 8, 16, 32)], abs=0.005)
    # Shifted by 3 cells, the last window of each row and column holds 4 and 3 cells that do not attend to each other.
    sides = [7] * 7 + [4, 3]
    shifted = sum(r * c * apart((r, 4), columns=(c, 4)) for r in sides for c in sides) / 56**2
    assert reach[1] == pytest.approx(shifted, abs=0.005)


def test_twins_at_its_own_size():
    """Heads reach as far as windows of 7 x 7 cells allow, and then as far as keys pooled to 7 x 7."""
    reach = table_of(even("twins_svt_small", depths=(1, 2, 1, 1)), 4).groupby("block").distance_px.mean()
    expected = [apart((7, 4)), apart((7, 8)), apart((28, 8), (7, 32)), apart((7, 16)), apart((7, 32))]
    assert reach.to_numpy() == pytest.approx(expected, abs=0.005)


def test_standard_errors_over_images(vit):
    images = rs.ImageSet("sample", images=64)
    table = rs.attention_distance(vit, images, batch_size=16).table
    seen = []

    def take(layer, number, attention):
        if layer.path == "blocks.3.attn":
            seen.append(attention)

    with torch.no_grad(), watch_attention(vit, take):
        for batch in images.batches([vit.transform], 64):
            vit.module(batch.inputs[vit.transform])
    from repsim.measures.attention import distances, grid_positions, head_statistics

    positions = grid_positions(7, 7, 4)
    per_image = head_statistics(seen[0][:, :, 0, 1:, 1:], distances(positions, positions)).distance_px
    block = table[table.block == 3]
    assert block.distance_px.to_numpy() == pytest.approx(per_image.mean(0).numpy(), abs=1e-4)
    assert block.distance_px_se.to_numpy() == pytest.approx((per_image.std(0) / 8).numpy(), rel=1e-3)


@pytest.mark.parametrize("name", ["resnet18", "mixer", "convnext"])
def test_networks_without_attention(name):
    with pytest.raises(rs.UsageError, match="has no attention to measure"):
        table_of(FAMILIES[name].load())


def test_attention_among_channels_or_of_a_class_token_alone_is_refused():
    network = rs.load_model("xcit_nano_12_p16_224", weights="random")
    with pytest.raises(rs.UsageError, match="have no positions in the image"):
        table_of(network, 4)
