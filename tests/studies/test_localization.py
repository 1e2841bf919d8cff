"""Localization of tokens equals one CKA per pair of activations, and holds for networks that must or cannot have it."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FAMILIES, noise
from measures.test_localization import one_by_one
from pandas.testing import assert_frame_equal
from torch import nn

import repsim as rs
from repsim.measures.localization import cut
from repsim.networks.layers import grid_of
from repsim.passes.plan import limited
from repsim.passes.sweep import sweep
from repsim.studies import localization as study
from repsim.studies.localization import Localization
from repsim.studies.similarity import LayerSimilarity
from repsim.studies.token_tables import all_tokens
from repsim.tables import LOCALIZATION, LOCALIZATION_SUMMARY


def chosen(images):
    """The images in the order in which a sweep takes them."""
    return images[torch.from_numpy(rs.ImageSet(images).chosen)]


def maps(table, layer=None):
    """CKA of the tokens of one layer with the patches, (t, j)."""
    part = table if layer is None else table[table.layer == layer]
    count = len(part[["patch_row", "patch_col"]].drop_duplicates())
    return part.cka.to_numpy().reshape(-1, count)


@pytest.mark.parametrize(
    "family, layers, grid",
    [
        ("vit", "blocks", (4, 4)),
        ("vit_registers", ["blocks.1", "norm"], (4, 4)),
        ("vit_gap", ["stem", "blocks.1"], (4, 4)),
        ("resnet18", ["stem", "layer2.0", "layer4.1"], (2, 2)),
        ("swin", "blocks", (2, 2)),
    ],
)
def test_every_pair_equals_a_cka_of_its_own(family, layers, grid):
    network = FAMILIES[family].load()
    images = noise(network, 16)
    result = rs.token_localization(network, images, layers=layers, batch_size=8)
    table = result.table
    assert list(table.columns) == LOCALIZATION and result.protocol["patch_grids"] == {network.name: grid}
    by_name = {layer.name: layer for layer in rs.find_layers(network, layers)}
    with torch.no_grad(), rs.capture(network, layers) as seen:
        network.module(chosen(images))
    assert set(table.layer) == set(by_name)
    for name, layer in by_name.items():
        part = table[table.layer == name]
        assert len(part) == (grid[0] * grid[1]) ** 2 and (part.depth == layer.depth).all()
        columns = grid_of(layer, network)[1]
        places = part[["token_row", "token_col"]].drop_duplicates()
        tokens = layer.tokens(seen[name])[:, layer.prefix :][
            :, (places.token_row * columns + places.token_col).tolist()
        ]
        expected = one_by_one(tokens, cut(chosen(images), grid), 8)
        assert maps(part) == pytest.approx(expected, abs=1e-5), name


def test_positions_of_a_finer_map_are_those_nearest_to_the_centres_of_patches():
    network = FAMILIES["resnet18"].load()
    table = rs.token_localization(network, noise(network, 8), layers=["layer2.0", "layer4.1"]).table
    places = table[["layer", "token_row", "token_col", "patch_row", "patch_col"]]
    for name, rows in {"layer2.0": [2, 6], "layer4.1": [0, 1]}.items():
        part = places[places.layer == name]
        assert sorted(part.token_row.unique()) == sorted(part.token_col.unique()) == rows
        assert sorted(part.patch_row.unique()) == [0, 1]


class Cells(nn.Module):
    """A network whose tokens are its patches, each scaled and shifted in its own way, or are all the patches' mean."""

    def __init__(self, grid, *, average=False):
        super().__init__()
        self.grid, self.average = grid, average
        self.tokens = nn.Identity()
        self.pooled = nn.Flatten()

    def forward(self, images):
        tokens = cut(images, self.grid)
        if self.average:
            tokens = 0 * tokens + tokens.mean(1, keepdim=True)
        scale = torch.arange(1.0, tokens.shape[1] + 1)[:, None]
        return self.pooled(self.tokens(tokens * scale + scale).mean(1))


def textured(n, side, seed=0):
    """Images whose neighbouring patches are alike."""
    images = torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(seed))
    return nn.functional.avg_pool2d(images, 3, stride=1, padding=1)


def test_tokens_that_are_patches_are_localized_perfectly():
    images = textured(32, 12)
    result = rs.token_localization(Cells((4, 4)), images, layers=["tokens"], batch_size=32)
    cka = maps(result.table)
    patches = cut(chosen(images), (4, 4)).unbind(1)
    expected = np.array([[rs.cka(a, b) for b in patches] for a in patches])
    assert cka == pytest.approx(expected, abs=1e-5) and cka.diagonal() == pytest.approx(1, abs=1e-6)
    rest = [(row.sum() - 1) / 15 for row in expected]
    assert result.summary.own_minus_rest.mean() > 0.8
    corners = result.summary.set_index("where").own_minus_rest["corner"]
    assert corners == pytest.approx(1 - np.mean([rest[i] for i in (0, 3, 12, 15)]), abs=1e-5)


def test_tokens_that_are_all_one_mean_are_not_localized():
    result = rs.token_localization(Cells((4, 4), average=True), textured(32, 12), layers=["tokens"])
    cka = maps(result.table)
    assert cka == pytest.approx(np.tile(cka[0], (16, 1)), abs=1e-5) and cka.max() > 0.05
    values = result.summary.set_index("where").own_minus_rest
    # Over all tokens, each patch is the own patch once, and one of the other patches as often as any patch.
    assert 4 * values["interior"] + 8 * values["edge"] + 4 * values["corner"] == pytest.approx(0, abs=1e-4)


def test_noise_images_share_nothing_between_patches():
    images = torch.randn(256, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    cka = maps(rs.token_localization(Cells((4, 4)), images, layers=["tokens"]).table)
    elsewhere = cka[~np.eye(16, dtype=bool)]
    assert abs(elsewhere.mean()) < 0.01 and elsewhere.min() < 0 and np.abs(elsewhere).max() < 0.1


def test_the_summary_is_that_of_the_table(vit):
    result = rs.token_localization(vit, rs.ImageSet(images=48), layers=["blocks.0", "blocks.11"], batch_size=16)
    assert list(result.summary.columns) == LOCALIZATION_SUMMARY and len(result.summary) == 2 * 3
    for layer, values in result.summary.groupby("layer"):
        cka = maps(result.table, layer)
        own_minus_rest = cka.diagonal() - (cka.sum(1) - cka.diagonal()) / 48
        outer = np.array([[(r in (0, 6)) + (c in (0, 6)) for c in range(7)] for r in range(7)]).flatten()
        expected = [own_minus_rest[outer == borders].mean() for borders in range(3)]
        assert values["where"].tolist() == ["interior", "edge", "corner"]
        assert values.own_minus_rest.tolist() == pytest.approx(expected, abs=1e-12)
        assert values.se.between(1e-6, 0.2).all()


def test_the_bundled_networks(vit, resnet):
    """In the last block interior tokens are localized, of a CLS network most and of a ResNet least (Figures 9, 10)."""
    images = rs.ImageSet("sample", images=128)
    layers = r"stem|blocks\.11|layer4\.2"
    result = rs.token_localization([vit, "vit_mini_gap", resnet], images, layers=layers, batch_size=64)
    assert ["intervals of CKA cannot be trusted" in notice for notice in result.notices] == [True]  # cells near zero
    assert result.record["images"]["used"] == 128 and result.table.cka.max() < 1
    last = result.summary[(result.summary.depth == 1) & (result.summary["where"] == "interior")].set_index("model")
    values = last.own_minus_rest
    assert list(values.index) == ["vit_mini", "vit_mini_gap", "resnet_mini"]
    assert values["vit_mini"] > values["vit_mini_gap"] + 0.05 > values["resnet_mini"] + 0.1 > 0.1
    finest = result.table[(result.table.model == "resnet_mini") & (result.table.layer == "stem")]
    assert finest.token_row.unique().tolist() == [2, 6, 10, 14, 18, 22, 26]
    alone = rs.token_localization("vit_mini_gap", images, layers=layers, batch_size=64)
    together = result.table[result.table.model == "vit_mini_gap"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone.table, together)


def test_another_study_shares_the_sweep(vit):
    images = rs.ImageSet(images=16)
    layers = [rs.find_layers(vit, ["blocks.3", "blocks.11"])]
    study = Localization([vit], layers)
    sweep(images, [LayerSimilarity([vit], layers), study], batch_size=16)
    alone = rs.token_localization(vit, images, layers=["blocks.3", "blocks.11"], batch_size=16)
    pd.testing.assert_frame_equal(study.table(), alone.table)
    pd.testing.assert_frame_equal(study.summary(), alone.summary)


def test_constant_patches_and_tokens_are_nan_with_a_reason():
    images = textured(32, 8)
    images[:, :, :2, :4] = 0.5  # the first two of 16 patches
    result = rs.token_localization(Cells((4, 4)), images, layers=["tokens"], batch_size=16)
    undefined = np.zeros((16, 16), dtype=bool)
    undefined[:2] = undefined[:, :2] = True
    assert np.array_equal(np.isnan(maps(result.table)), undefined)
    assert [reason.split(" do not")[0] for reason in result.notices[:2]] == [
        "input patches (0, 0), (0, 1) of Cells",
        "tokens (0, 0), (0, 1) of Cells, layer 'tokens',",
    ]
    assert f"{result.table.skewed.sum()} of 256 intervals of CKA cannot be trusted" in result.notices[2]
    assert "own_minus_rest leaves them out" in result.notices[0]
    cka = maps(result.table)
    corners = [cka[i, i] - np.nanmean(np.delete(cka[i], i)) for i in (3, 12, 15)]
    values = result.summary.set_index("where").own_minus_rest
    assert values["corner"] == pytest.approx(np.mean(corners))


def test_many_undefined_patches_are_counted():
    images = textured(16, 16)
    images[:, :, :4] = 0
    reasons = rs.token_localization(Cells((8, 8)), images, layers=["tokens"], batch_size=16).notices
    assert "(0, 5) and 10 more of Cells" in reasons[-1]


def test_layers_without_positions():
    cells, images = Cells((4, 4)), textured(8, 8)
    result = rs.token_localization(cells, images, layers="all")
    assert set(result.table.layer) == {"tokens"}
    assert result.protocol["layers_without_positions"] == {"Cells": ["pooled"]}
    for layers in (["pooled"], ["tokens", "pooled"], ".*"):
        with pytest.raises(rs.UsageError, match=r"layer 'pooled' of Cells has no positions in the image; .*`blocks`"):
            rs.token_localization(cells, images, layers=layers)


def test_patches_must_tile_the_image():
    module = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2))
    with pytest.raises(rs.UsageError, match="images of 9 x 9 cannot be cut into 4 x 4 patches.* of Sequential"):
        rs.token_localization(module, textured(8, 9))


def test_broken_activations_name_network_layer_and_batch():
    images = textured(24, 8)
    images[rs.ImageSet(images).chosen[17]] = torch.nan
    with pytest.raises(rs.RepsimError, match=r"of Cells, layer 'tokens', are NaN or infinite in batch 2"):
        rs.token_localization(Cells((4, 4)), images, layers=["tokens"], batch_size=8)


def test_networks_keep_their_mode_and_their_hooks():
    module = Cells((4, 4)).train()
    with torch.inference_mode():
        rs.token_localization(module, textured(8, 8), layers=["tokens"])
    assert module.training and not module._forward_pre_hooks and not module.tokens._forward_hooks


def test_one_batch_has_no_standard_error(vit):
    result = rs.token_localization(vit, rs.ImageSet(images=16), layers=["blocks.11"], batch_size=16)
    assert result.table.se.isna().all() and result.summary.se.isna().all() and result.table.cka.notna().all()


def test_two_networks_of_one_name_are_told_apart(vit):
    result = rs.token_localization([vit, vit], rs.ImageSet(images=16), layers=["blocks.11"])
    first, second = (part.drop(columns="model") for _, part in result.table.groupby("model"))
    assert set(result.table.model) == {"vit_mini#1", "vit_mini#2"}
    pd.testing.assert_frame_equal(first, second.reset_index(drop=True))


def test_tokens_that_are_not_in_the_order_of_the_image():
    """Tokens of Hiera, in the order of its mask units, are put into that of the image, as by Hiera's own function."""
    network = rs.load_model("hiera_tiny_224", weights="random")
    layers = rs.find_layers(network)[1:]
    with torch.no_grad(), rs.capture(network, layers) as seen:
        network.module(torch.randn(2, 3, 224, 224))
    for number, layer in enumerate(layers):
        in_order = network.module.reroll(seen[layer.name], number)
        assert grid_of(layer, network) == in_order.shape[1:3]
        assert torch.equal(layer.tokens(seen[layer.name]), in_order.flatten(1, 2))


def fine(side):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU())
    return rs.Network(module, "fine", transform=rs.EvalTransform(input_size=(3, side, side)))


def test_more_pairs_than_memory_holds_are_refused():
    images = torch.zeros(4, 3, 224, 224)
    with limited("4G"), pytest.raises(rs.UsageError, match=r"takes .* GiB of memory .* a coarser grid of .*--grid"):
        rs.token_localization(fine(224), images, layers=["0"], batch_size=4, finest=224)


@pytest.mark.parametrize(
    ("side", "pixels", "finest", "expected"),
    [
        (14, 224, 32, 14),  # as fine as it is
        (37, 518, 32, 14),  # DINOv2 at 518 px: 37 is prime, and of 518 = 2 * 7 * 37 there is 14
        (56, 224, 32, 28),
        (64, 512, 32, 32),
        (56, 224, 8, 8),
        (113, 226, 32, 2),
    ],
)
def test_the_grid_of_a_fine_map_is_a_coarser_one(side, pixels, finest, expected):
    assert study._coarser(side, pixels, finest) == expected


def test_tokens_of_a_coarser_grid_are_those_of_a_finer_map_at_the_patches_centres():
    network, images = fine(32), torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    result = rs.token_localization(network, images, layers=["0"], batch_size=32, finest=8)
    assert result.protocol["patch_grids"] == {"fine": (8, 8)} and not result.arrays
    row = result.table.query("token_row == 6 and token_col == 10 and patch_row == 0 and patch_col == 5")
    with torch.no_grad():
        tokens = network.module[0](chosen(images))[:, :, 6, 10]
    patches = chosen(images)[:, :, 0:4, 20:24].flatten(1)
    assert row["cka"].item() == pytest.approx(one_by_one(tokens[:, None], patches[:, None], 32).item(), abs=1e-6)


def test_of_more_tokens_than_a_table_holds_those_shown_are_listed_and_all_are_kept(monkeypatch):
    network = FAMILIES["vit"].load()
    images = noise(network, 16)
    options = {"layers": "blocks", "batch_size": 8}
    whole = rs.token_localization(network, images, **options)
    monkeypatch.setattr(study, "ROWS", 100)
    some = rs.token_localization(network, images, **options, tokens=[(1, 2), (3, 3)])
    places = whole.table[["token_row", "token_col"]].apply(tuple, axis=1)
    assert_frame_equal(some.table, whole.table[places.isin([(1, 2), (3, 3)])].reset_index(drop=True))
    assert_frame_equal(some.summary, whole.summary)
    layers = list(whole.table.layer.unique())
    for layer in (None, layers[0]):
        again = all_tokens(some.arrays["localization"], some.table, layer)
        of_layer = whole.table[whole.table.layer == (layer or layers[-1])].reset_index(drop=True)
        assert_frame_equal(again, of_layer, check_exact=False, atol=1e-6, check_dtype=False)
