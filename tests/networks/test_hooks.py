"""Capturing changes nothing and leaves nothing behind."""

import pytest
import torch
from conftest import Family, noise
from test_layers import unseen

import repsim as rs


def hooks_on(module: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_outputs_are_bit_identical(family: Family):
    network = family.load()
    images = noise(network, 2)
    with torch.no_grad():
        before = network.module(images)
        with rs.capture(network, "all"):
            during = network.module(images)
        assert torch.equal(before, during) and torch.equal(before, network.module(images))
    assert hooks_on(network.module) == 0


def test_hooks_are_gone_after_a_failure(vit):
    with pytest.raises(ZeroDivisionError), rs.capture(vit, "all", lambda layer, x: 1 / 0):
        vit.module(noise(vit, 2))
    with pytest.raises(rs.UsageError), rs.capture(vit, ["blocks.0", "blocks.99"]):
        pass
    assert hooks_on(vit.module) == 0


def test_an_in_place_operation_does_not_corrupt_what_was_captured():
    network = unseen()
    images = noise(network, 4)
    with torch.no_grad(), rs.capture(network, ["conv", "relu"]) as seen:
        network.module(images)
        assert torch.equal(seen["conv"], network.module.conv(images))
    assert seen["conv"].min() < 0 and torch.equal(seen["relu"], seen["conv"].relu())


def test_the_activation_is_seen_before_later_modules_write_into_it():
    network = unseen()
    images = noise(network, 4)
    with torch.no_grad(), rs.capture(network, "conv", lambda layer, x: x.sum().item()) as seen:
        network.module(images)
        assert seen["conv"] == network.module.conv(images).sum().item()


def test_each_forward_pass_starts_anew(vit):
    with torch.no_grad(), rs.capture(vit, "blocks.11") as seen:
        vit.module(noise(vit, 2))
        vit.module(noise(vit, 5))
    assert seen["blocks.11"].shape[0] == 5


def test_the_stem_is_what_enters_the_first_block(vit):
    images = noise(vit, 2)
    with torch.no_grad(), rs.capture(vit, ["stem"]) as seen:
        vit.module(images)
        embedded = vit.module.norm_pre(vit.module._pos_embed(vit.module.patch_embed(images)))
    torch.testing.assert_close(seen["stem"], embedded)


def test_blocks_of_a_bare_list_are_its_residual_stream():
    """A block of vit-pytorch is a list of two modules that is never called; its layer is the stream after it."""
    from conftest import FAMILIES

    network = FAMILIES["deepvit"].load()
    images = noise(network, 2)
    with torch.no_grad(), rs.capture(network) as seen:
        network.module(images)
        x = seen["stem"]
        for index, (attention, mlp) in enumerate(network.module.transformer.layers):
            x = attention(x) + x
            x = mlp(x) + x
            torch.testing.assert_close(seen[f"transformer.layers.{index}"], x)
