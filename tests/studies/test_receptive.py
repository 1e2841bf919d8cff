"""Receptive fields are those known in closed form, and those of one backward pass per image and channel."""

import pytest
import torch
from conftest import FAMILIES, noise
from test_sums import COUNTS
from torch import nn

import repsim as rs
from repsim.networks.layers import residual_layers
from repsim.tables import RECEPTIVE


def network(module: nn.Module, side: int = 16) -> rs.Network:
    return rs.Network(module, "toy", transform=rs.EvalTransform(input_size=(3, side, side)))


@pytest.mark.filterwarnings("ignore::repsim.errors.Notice")
def test_layers_of_a_class_token_alone_are_left_out_unless_they_are_asked_for():
    cait = rs.load_model("cait_xxs24_224", weights="random", img_size=32, depth=2)
    images = noise(cait, 4)
    result = rs.receptive_fields(cait, images, channels=1)
    assert len(result.table) == 5 and not result.table.layer.str.startswith("blocks_token_only").any()
    assert any("without a centre, which are left out: blocks_token_only.0" in said for said in result.notices)
    with pytest.raises(rs.UsageError, match=r"blocks_token_only\.0"):
        rs.receptive_fields(cait, images, layers="blocks_token_only.0")


def test_identity_depends_on_its_own_pixel_alone():
    fields = rs.receptive_fields(network(nn.Sequential(nn.Identity())), torch.randn(4, 3, 16, 16), layers="0")
    assert list(fields.table.columns) == RECEPTIVE
    expected = torch.zeros(16, 16)
    expected[8, 8] = 1 / 3  # each of three channels depends on one of three colours
    torch.testing.assert_close(torch.from_numpy(fields.maps["0"]), expected)
    assert fields.table[["radius50_px", "radius95_px", "centre_share"]].values.tolist() == [[0, 0, 1]]


def test_a_stack_of_convolutions_sees_exactly_its_receptive_field():
    """Layer l of 3 x 3 convolutions sees l pixels in each direction; a stride doubles the steps after it."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, stride=2), nn.Conv2d(4, 4, 3, padding=1)
    )
    maps = rs.receptive_fields(network(module, 32), torch.randn(4, 3, 32, 32), layers="all").maps
    # Cell 8 of a map of stride 2 is centred on pixel 16; reaches are 1, 1 + 1, 1 + 1 + 2.
    for name, reach in (("0", 1), ("1", 2), ("2", 4)):
        inside = torch.zeros(32, 32, dtype=torch.bool)
        inside[16 - reach : 17 + reach, 16 - reach : 17 + reach] = True
        field = torch.from_numpy(maps[name])
        assert (field[inside] > 0).all() and (field[~inside] == 0).all()


def test_uniform_attention_sees_everything():
    vit = FAMILIES["vit"].load()
    attention = vit.module.blocks[0].attn
    width = attention.num_heads * attention.head_dim
    with torch.no_grad():
        attention.qkv.weight[: 2 * width] = 0
        attention.qkv.bias[: 2 * width] = 0
    fields = rs.receptive_fields(vit, noise(vit, 4), layers=["blocks.0.attn", "stem"], channels=8)
    # All patches alike: each of 4 x 4 holds a sixteenth, up to the norm before attention.
    assert fields.table.centre_share.tolist() == pytest.approx([1, 1 / 16], abs=0.01)


@pytest.mark.parametrize("name", ["vit", "resnet18", "swin"])
def test_against_one_backward_pass_per_image_and_channel(name):
    net = FAMILIES[name].load()
    images = noise(net, 4)
    layer = {"vit": "blocks.1", "resnet18": "layer2.1", "swin": "layers.1.blocks.0"}[name]
    fields = rs.receptive_fields(net, images, layers=[layer], channels=5, seed=1)
    expected = torch.zeros(images.shape[2:])
    for image in images:
        x = image[None].requires_grad_()
        with rs.capture(net, [layer], lambda captured, z: z.clone()) as seen:
            net.module(x)
        z = seen[layer][0]
        if name == "vit":
            z = z[1:].T.view(-1, 4, 4)
        elif name == "swin":
            z = z.movedim(-1, 0)
        for channel in fields.protocol["channels"][layer]:
            (gradient,) = torch.autograd.grad(z[channel, z.shape[1] // 2, z.shape[2] // 2], x, retain_graph=True)
            expected += gradient[0].abs().mean(0) / (5 * len(images))
    torch.testing.assert_close(torch.from_numpy(fields.maps[layer]), expected, rtol=1e-3, atol=1e-7)


def test_residual_sums_are_the_stream_and_branches_what_is_added():
    vit = FAMILIES["vit"].load()
    sums, branches = residual_layers(vit), residual_layers(vit, branch=True)
    assert [layer.name for layer in sums[:3]] == ["stem", "blocks.0.attn+skip", "blocks.0"]
    assert [layer.name for layer in branches[:3]] == ["stem", "blocks.0.attn", "blocks.0.mlp"]
    images = noise(vit, 2)
    with torch.no_grad(), rs.capture(vit, sums) as stream, rs.capture(vit, branches) as added:
        vit.module(images)
    x = stream["stem"]
    for name, branch in zip((layer.name for layer in sums[1:]), (layer.name for layer in branches[1:])):
        x = x + added[branch]
        torch.testing.assert_close(stream[name], x)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_residual_sums(name):
    net = FAMILIES[name].load()
    sums, branches = residual_layers(net), residual_layers(net, branch=True)
    assert len(sums) == len(branches) == 1 + sum(COUNTS[name].values())  # the stem comes first


def test_the_network_is_left_as_it_was():
    net = FAMILIES["resnet18"].load()
    net.module.train()
    net.module.fc.weight.requires_grad_(False)
    rs.receptive_fields(net, noise(net, 4), layers="layer1.0", channels=2)
    assert net.module.training and all(p.grad is None for p in net.module.parameters())
    assert not net.module.fc.weight.requires_grad and net.module.conv1.weight.requires_grad


def test_layers_without_a_centre():
    net = FAMILIES["resnet18"].load()
    with pytest.raises(rs.UsageError, match="layer 'fc' of resnet18-random, .* is not a map"):
        rs.receptive_fields(net, noise(net, 4), layers="fc")
    with pytest.raises(rs.UsageError, match="either layers or branch"):
        rs.receptive_fields(net, noise(net, 4), layers="fc", branch=True)


def test_channels_are_sixteen_and_all_are_asked_for_by_zero():
    net = FAMILIES["vit"].load()
    images = noise(net, 4)
    chosen = [rs.receptive_fields(net, images, layers="blocks.0", **options) for options in ({}, {"channels": 0})]
    assert len(chosen[0].protocol["channels"]["blocks.0"]) == 16 and chosen[1].protocol["channels"] == {
        "blocks.0": "all"
    }
    exact = rs.receptive_fields(net, images, layers="blocks.0", channels=None)
    assert chosen[1].table.equals(exact.table) and not chosen[0].table.equals(exact.table)
    with pytest.raises(rs.UsageError, match="channels must be 0 or more, where 0 takes all, got channels=-1"):
        rs.receptive_fields(net, images, channels=-1)
