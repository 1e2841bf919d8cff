"""Attention as networks compute it, fused or not."""

import math

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
    assert first.distance_px.to_numpy() == pytest.approx(second.distance_px.to_numpy(), rel=1e-5)
    assert (first.entropy - second.entropy).abs().max() < 1e-5


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


def test_pit_pools_its_grid_and_keeps_real_pixels():
    network = rs.load_model("pit_ti_224", weights="random", depth=(1, 1, 1))
    table = table_of(network, 4)
    # Nearly uniform before training: the same reach in pixels on grids of 27, 14 and 7.
    assert table.groupby("block").distance_px.mean().to_numpy() == pytest.approx([112.7, 116.5, 115.5], abs=4)


def test_windows_reach_no_further_than_a_window():
    network = rs.load_model("swin_tiny_patch4_window7_224", weights="random", depths=(2, 1, 1, 1))
    reach = table_of(network, 4).groupby("block").distance_px.max()
    assert reach[0] < 28 and reach[1] < 28 and reach[0] == pytest.approx(14.4, abs=1)
    assert reach[4] == pytest.approx(115.5, abs=4)


def test_twins_at_its_own_size():
    """Heads reach as far as windows of 7 x 7 cells of 4 px allow, and then as far as keys pooled to 7 x 7."""
    network = rs.load_model("twins_svt_small", weights="random", depths=(1, 2, 1, 1))
    reach = table_of(network, 4).groupby("block").distance_px.mean()
    assert reach[0] == pytest.approx(14.4, abs=1) and reach[2] == pytest.approx(115.5, abs=5)


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
