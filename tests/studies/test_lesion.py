"""Lesions have the numbers of networks that are built without the part that was removed."""

import numpy as np
import pytest
import torch
from conftest import noise
from test_hooks import hooks_on
from timm.models.vision_transformer import Block
from torch import nn

import repsim as rs
from repsim.networks.minis import BlockWithoutSkips
from repsim.tables import LESION

SAMPLE = {"images": 64}


def rebuilt(change) -> rs.Network:
    network = rs.load_model("vit_mini")
    change(network.module.blocks)
    return network


def logits(network, images):
    inputs = torch.cat([batch.inputs[network.transform] for batch in images.batches([network.transform], 32)])
    with torch.no_grad():
        return network.module(inputs).double()


def cut_skips(blocks):
    blocks[5].__class__ = BlockWithoutSkips


class WithoutOneSkip(Block):
    """A pre-norm block in which one of the two skip connections is cut."""

    def forward(self, x, **_):
        f = self.attn(self.norm1(x))
        x = f if self.cut == "attention" else x + f
        f = self.mlp(self.norm2(x))
        return f if self.cut == "mlp" else x + f


def cut_one(sublayer):
    def change(blocks):
        blocks[5].__class__, blocks[5].cut = WithoutOneSkip, sublayer

    return change


def drop(part):
    def change(blocks):
        if part == "block":
            blocks[5] = nn.Identity()
        else:
            branch = blocks[5].attn.proj if part == "attention branch" else blocks[5].mlp.fc2
            nn.init.zeros_(branch.weight), nn.init.zeros_(branch.bias)

    return change


@pytest.mark.parametrize(
    "removed, kind, change",
    [
        ("attention skip", "skip", cut_one("attention")),
        ("mlp skip", "skip", cut_one("mlp")),
        ("all skips", "skips", cut_skips),
        ("block", "block", drop("block")),
        ("attention branch", "branch", drop("attention branch")),
        ("mlp branch", "branch", drop("mlp branch")),
    ],
)
def test_a_lesion_is_the_network_without_it(vit, removed, kind, change):
    """A lesion has the outputs, and the CKA at each later layer, of a network that is built without the part."""
    images = rs.ImageSet("sample", **SAMPLE)
    table = rs.lesions(vit, images, remove=[kind], blocks=[5], batch_size=32).table
    rows = table[table.removed == removed].set_index("layer")
    other = rebuilt(change)
    before, after = (logits(network, images).log_softmax(1) for network in (vit, other))
    assert rows.agreement.iloc[0] == (before.argmax(1) == after.argmax(1)).double().mean().item()
    assert rows.accuracy.iloc[0] == (after.argmax(1).numpy() == images.labels).mean()
    kl = (before.exp() * (before - after)).sum(1).mean().item()
    assert rows.kl.iloc[0] == pytest.approx(kl, rel=1e-4)
    if removed != "block":  # an Identity has no layers to compare
        assert list(rows.index) == [f"blocks.{b}" for b in range(5, 12)]
        direct = rs.layer_cka([vit, other], images, batch_size=32).table
        for layer, row in rows.iterrows():
            pair = direct[(direct.model_a == "vit_mini#1") & (direct.model_b == "vit_mini#2")]
            pair = pair[(pair.layer_a == layer) & (pair.layer_b == layer)].iloc[0]
            assert row.cka == pytest.approx(pair.cka, abs=2e-5) and row.cka_se == pytest.approx(pair.se, abs=2e-5)


def test_nothing_removed_changes_nothing(vit):
    table = rs.lesions(vit, rs.ImageSet("sample", **SAMPLE), blocks=[0], remove=["skip"], batch_size=16).table
    assert list(table.columns) == LESION
    rows = table[table.removed == "nothing"]
    assert (rows.block == -1).all() and len(rows) == 13
    assert (rows.agreement == 1).all() and (rows.kl == 0).all()
    np.testing.assert_allclose(rows.cka, 1, rtol=1e-7)
    assert set(table[table.block == 0].removed) == {"attention skip", "mlp skip"}


def test_a_branch_that_is_zero_is_not_missed():
    network = rs.load_model("vit_tiny_patch16_224", weights="random", img_size=64, depth=2, init_values=1.0)
    with torch.no_grad():
        network.module.blocks[1].ls2.gamma.zero_()
    table = rs.lesions(network, noise(network, 16), blocks=[1], batch_size=8).table
    rows = table[table.removed == "mlp branch"]
    assert (rows.agreement == 1).all() and (rows.kl == 0).all()
    np.testing.assert_allclose(rows.cka, 1, rtol=1e-7)
    without_skip = table[table.removed == "mlp skip"]  # nothing at all is left
    assert without_skip.cka.isna().all() and (without_skip.kl > 0).all()


def test_units_of_a_resnet(resnet):
    images = rs.ImageSet("sample", **SAMPLE)
    table = rs.lesions(resnet, images, blocks=[3], batch_size=32).table
    assert list(dict.fromkeys(table.removed)) == ["nothing", "unit skip", "unit branch"]
    other = rs.load_model("resnet_mini")
    nn.init.zeros_(other.module.layer2[0].bn3.weight), nn.init.zeros_(other.module.layer2[0].bn3.bias)
    after = logits(other, images).argmax(1).numpy()
    rows = table[table.removed == "unit branch"]
    assert rows.accuracy.iloc[0] == (after == images.labels).mean() and rows.layer.iloc[0] == "layer2.0"


def test_a_block_of_one_sum_can_be_removed_by_either_name(resnet):
    images = rs.ImageSet("sample", images=16)
    tables = [
        rs.lesions(resnet, images, remove=[kind], blocks=[3, 3], batch_size=8).table for kind in ("branch", "block")
    ]
    branch, block = (table[table.block == 3].reset_index(drop=True) for table in tables)
    assert set(branch.removed) == {"unit branch"} and set(block.removed) == {"block"}
    np.testing.assert_array_equal(branch[["kl", "cka"]], block[["kl", "cka"]])
    assert not branch.duplicated(["removed", "layer"]).any()


def test_the_network_is_left_as_it_came(vit):
    rs.lesions(vit, rs.ImageSet("sample", images=8), blocks=[1], batch_size=4)
    assert hooks_on(vit.module) == 0


def test_accuracy_needs_labels_that_are_the_outputs(vit):
    found = rs.lesions(vit, noise(vit, 8), blocks=[0], remove=["block"], batch_size=8)
    assert found.table.accuracy.isna().all()
    assert found.notices[-1] == "the images have no labels, so there is no accuracy"
    assert found.table.agreement.notna().all()
    many = rs.load_model("vit_tiny_patch16_224", weights="random", img_size=28, patch_size=4, depth=1)
    found = rs.lesions(many, rs.ImageSet("sample", images=8), remove=["block"], batch_size=8)
    assert "the images have 10 classes and" in found.notices[-1] and "1000 outputs" in found.notices[-1]


def test_outputs_that_are_no_scores():
    network = rs.load_model("vit_tiny_patch16_224", weights="random", img_size=64, depth=2, num_classes=0)
    found = rs.lesions(network, noise(network, 8), blocks=[0], remove=["block"], batch_size=8)
    assert found.table[["agreement", "kl", "accuracy"]].isna().all(axis=None) and found.table.cka.notna().all()
    assert ["not scores of classes" in notice for notice in found.notices].count(True) == 1


def test_broken_outputs_are_no_agreement():
    network = rs.load_model("vit_mini")
    with torch.no_grad():
        network.module.head.bias[0] = torch.nan
    with pytest.raises(
        rs.RepsimError, match=r"layer 'output \(with nothing removed\)', are NaN or infinite in batch 0"
    ):
        rs.lesions(network, rs.ImageSet("sample", images=8), blocks=[1], batch_size=4)


def test_bad_calls(vit):
    images = rs.ImageSet("sample", images=8)
    with pytest.raises(rs.UsageError, match="there is no block 12 with residual sums; they are 0, 1, "):
        rs.lesions(vit, images, blocks=[12])
    with pytest.raises(rs.UsageError, match="unknown kind of lesion 'skp'; did you mean 'skip'"):
        rs.lesions(vit, images, remove=["skp"])
    with pytest.raises(
        rs.UsageError,
        match="none of the layers to compare .blocks.0. runs after the attention skip of block 5 is removed",
    ):
        rs.lesions(vit, images, blocks=[5], layers="blocks.0")
    with pytest.raises(rs.UsageError, match="has no blocks with residual sums"):
        rs.lesions(rs.load_model("mobilenetv1_100", weights="random"), images)
