"""The table of `layer_cka` holds the CKA of saved activations, pair by pair."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FAMILIES, noise
from measures.test_cka import hsic_from_definition
from torch import nn

import repsim as rs
from repsim.tables import MATCHED, SIMILARITY


def reference(networks, images, layers, batch_size, tokens="all"):
    """Minibatch CKA of every ordered pair in float64, from activations that were saved."""
    saved: dict[tuple[str, str], list[torch.Tensor]] = {}
    for network in networks:
        by_name = {layer.name: layer for layer in rs.find_layers(network, layers)}
        with torch.no_grad(), rs.capture(network, layers) as seen:
            for batch in images.split(batch_size):
                network.module(batch)
                for name, x in seen.items():
                    x = by_name[name].select(x, tokens).flatten(1).double()
                    saved.setdefault((network.name, name), []).append(x - x.mean(0))
    hsic: dict[tuple, float] = {}
    for a, b in itertools.combinations_with_replacement(saved, 2):
        hsic[a, b] = np.mean([hsic_from_definition(x, y).item() for x, y in zip(saved[a], saved[b])])
        hsic[b, a] = hsic[a, b]
    return {(a, b): value / (hsic[a, a] * hsic[b, b]) ** 0.5 for (a, b), value in hsic.items()}


@pytest.mark.parametrize(
    "a, b, layers, tokens",
    [
        ("vit", "resnet18", "all", "all"),
        ("vit_registers", "swin", "paper", "all"),
        ("deit_distilled", "pit", r".*blocks\.\d", "cls"),
        ("convnext", "coatnet", "paper", "pooled"),
        ("convnext", "mixer", "blocks", "pooled"),
        ("bit", "pvt_v2", "blocks", "spatial"),
        ("deepvit", "twins", "blocks", "all"),
    ],
)
def test_every_pair_equals_the_reference(a, b, layers, tokens):
    networks = [FAMILIES[a].load(), FAMILIES[b].load()]
    images = noise(networks[0], 16)
    table = rs.layer_cka(networks, images, layers=layers, tokens=tokens, batch_size=8).table
    assert list(table.columns) == SIMILARITY
    # Images are taken in a seeded order; the reference takes them in the same.
    order = torch.from_numpy(rs.ImageSet(images).chosen)
    expected = reference(networks, images[order], layers, 8, tokens)
    measured = {((r.model_a, r.layer_a), (r.model_b, r.layer_b)): r.cka for r in table.itertuples()}
    assert measured.keys() == expected.keys() and len(table) == len(expected)
    worst = max(measured, key=lambda pair: abs(measured[pair] - expected[pair]))
    assert measured[worst] == pytest.approx(expected[worst], abs=1e-5), worst
    own = table[(table.model_a == table.model_b) & (table.layer_a == table.layer_b)]
    assert own.cka.to_numpy() == pytest.approx(1, abs=1e-12)


def test_hidden_units_of_a_layer_that_mixes_tokens_are_no_tokens():
    mixer = FAMILIES["mixer"].load()
    with pytest.raises(
        rs.UsageError, match=r"layer 'blocks.0.mlp_tokens.act' of .* has no pooled tokens: it is not kn"
    ):
        rs.layer_cka(mixer, images=noise(mixer, 8), layers="paper", tokens="pooled", batch_size=8)


def test_the_bundled_networks(vit, resnet):
    images = rs.ImageSet("sample", images=192)
    table = rs.layer_cka([vit, resnet], images, batch_size=64).table
    assert len(table) == (13 + 17) ** 2
    assert (table.se.dropna() < 0.1).all() and table.cka.between(-0.1, 1 + 1e-9).all()
    matrix = table.cka.to_numpy().reshape(30, 30)
    assert np.array_equal(matrix, matrix.T)
    again = rs.layer_cka([vit, resnet], rs.ImageSet("sample", images=192), batch_size=64).table
    pd.testing.assert_frame_equal(table, again)


def test_one_network_alone(vit):
    table = rs.layer_cka(vit, images=rs.ImageSet(images=64), batch_size=16, layers=r"blocks\.\d").table
    assert set(table.model_b) == {"vit_mini"} and len(table) == 100


def test_two_networks_of_one_name_are_told_apart(vit):
    table = rs.layer_cka([vit, vit], rs.ImageSet(images=32), batch_size=16, layers="stem").table
    assert set(table.model_a) == {"vit_mini#1", "vit_mini#2"}
    assert table.cka.to_numpy() == pytest.approx(1, abs=1e-12)


def test_repeats_average_over_newly_chosen_images(vit):
    images = rs.ImageSet(images=64, seed=3)
    options = {"layers": ["stem", "blocks.11"], "batch_size": 16}
    table = rs.layer_cka(vit, images=images, repeats=3, **options).table
    single = [rs.layer_cka(vit, images=images.redrawn(3 + r), **options).table.cka for r in range(3)]
    assert table.cka.to_numpy() == pytest.approx(np.mean(single, 0))
    assert table.se.to_numpy() == pytest.approx(np.std(single, 0, ddof=1) / 3**0.5) and table.se[1] > 0


def test_flags_are_on_cells_near_zero_or_of_few_batches():
    """Pairs with a layer that varies in two of twelve batches only are flagged, and a pair of related layers is not."""
    torch.manual_seed(0)
    images = torch.randn(12 * 16, 3, 8, 8)
    rest = torch.from_numpy(rs.ImageSet(images).chosen[32:])  # the order is drawn, for any images of this number
    images[rest, 2] = images[:1, 2] + 1e-3 * images[rest, 2]

    class Channels(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Identity() for _ in range(3))

        def forward(self, x):
            return self.a(x[:, :1]) + self.b(x[:, 1:2] + x[:, :1]) + self.c(x[:, 2:] + 1e-3 * x[:, :1])

    net = rs.Network(Channels(), "toy", transform=rs.EvalTransform(input_size=(3, 8, 8)))
    found = rs.layer_cka(net, images, batch_size=16, layers=["a", "b", "c"])
    flags = found.table.pivot(index="layer_a", columns="layer_b", values="skewed")
    cka = found.table.pivot(index="layer_a", columns="layer_b", values="cka")
    assert cka.loc["a", "b"] > 0.05 and flags.loc["a", "b"] == 0
    assert flags.loc["a", "c"] == flags.loc["b", "c"] == 1
    assert any("intervals of" in notice and "skewed" in notice for notice in found.notices)
    alone = rs.layer_cka(net, images[:16], batch_size=16, layers=["a", "c"]).table
    assert not alone.skewed.any()  # one batch, and no interval


class Toy(nn.Module):
    """Two layers, the second of which can be made constant."""

    def __init__(self, constant=False):
        super().__init__()
        self.first = nn.Linear(12, 5)
        self.second = nn.Linear(5, 4)
        if constant:
            nn.init.zeros_(self.second.weight)

    def forward(self, x):
        return self.second(self.first(x.flatten(1)))


def test_a_constant_layer_is_nan_with_a_reason():
    with pytest.warns(UserWarning, match="layer 'second' of Toy is constant"):
        table = rs.layer_cka(Toy(constant=True), images=torch.randn(16, 3, 2, 2), batch_size=8).table
    undefined = (table.layer_a == "second") | (table.layer_b == "second")
    assert table.cka.isna().equals(undefined)


def test_broken_activations_name_network_layer_and_batch():
    images = torch.randn(24, 3, 2, 2)
    order = rs.ImageSet(images).chosen
    images[order[17]] = torch.inf
    with pytest.raises(rs.RepsimError, match=r"of Toy, layer 'first', are NaN or infinite in batch 2"):
        rs.layer_cka(Toy(), images=images, batch_size=8)


def test_identity_shares_a_gram_but_an_in_place_operation_does_not():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Identity(), nn.ReLU(inplace=True), nn.Dropout(), nn.Flatten())
    images = torch.randn(16, 3, 4, 4)
    table = rs.layer_cka(module, images=images, batch_size=16).table
    cka = table.pivot(index="layer_a", columns="layer_b", values="cka")
    assert cka.loc["0", "1"] == pytest.approx(1, abs=1e-12) and cka.loc["2", "3"] == pytest.approx(1, abs=1e-12)
    x = module[0](images[torch.from_numpy(rs.ImageSet(images).chosen)])
    assert cka.loc["1", "2"] == pytest.approx(rs.cka(x, x.relu()), abs=1e-5) and cka.loc["1", "2"] < 0.99


def test_networks_keep_their_mode_and_their_hooks(vit):
    module = Toy().train()
    rs.layer_cka(module, images=torch.randn(8, 3, 2, 2), batch_size=8)
    assert module.training and not module.first._forward_hooks


def test_it_runs_inside_inference_mode(vit):
    images = rs.ImageSet(images=16)
    with torch.inference_mode():
        inside = rs.layer_cka(vit, images=images, batch_size=16).table
    pd.testing.assert_frame_equal(inside, rs.layer_cka(vit, images=images, batch_size=16).table)


def test_bad_calls(vit):
    with pytest.raises(rs.UsageError, match="repeats must be at least 1"):
        rs.layer_cka(vit, images=rs.ImageSet(images=8), repeats=0)
    with pytest.raises(rs.UsageError, match="at least 4 images, got batch_size=3"):
        rs.layer_cka(vit, images=rs.ImageSet(images=8), batch_size=3)
    with pytest.raises(rs.UsageError, match="takes 5 channels"):
        five = rs.Network(nn.Conv2d(5, 2, 1), "five", transform=rs.EvalTransform(input_size=(5, 8, 8)))
        rs.layer_cka(five, images=rs.ImageSet(images=8))


def test_matched_is_the_diagonal_of_the_full_table(vit):
    images = rs.ImageSet("sample", images=96)
    untrained = [rs.load_model("vit_mini", weights="random", seed=seed) for seed in (0, 1)]
    matched = rs.matched_cka([vit, *untrained], images, batch_size=32).table
    assert list(matched.columns) == MATCHED and len(matched) == 2 * 13
    assert list(matched.model_b.unique()) == ["vit_mini-random#1", "vit_mini-random#2"]
    for other, (_, part) in zip(untrained, matched.groupby("model_b")):
        full = rs.layer_cka([vit, other], images, batch_size=32).table
        full = full[(full.model_a == "vit_mini") & (full.model_b == other.name) & (full.layer_a == full.layer_b)]
        np.testing.assert_allclose(part.cka, full.cka, atol=1e-9)
        np.testing.assert_allclose(part.se, full.se, atol=1e-9)


def test_a_network_matches_itself(vit):
    matched = rs.matched_cka([vit, vit], rs.ImageSet("sample", images=32), batch_size=16, repeats=2).table
    np.testing.assert_allclose(matched.cka, 1, rtol=1e-7)
    assert list(matched.columns) == MATCHED


def test_matched_needs_the_same_layers(vit, resnet):
    with pytest.raises(rs.UsageError, match="resnet_mini and vit_mini do not have the same layers"):
        rs.matched_cka([vit, resnet], rs.ImageSet("sample", images=8), batch_size=4)


def test_means_that_a_command_says_last_have_joint_errors(vit, resnet):
    """Each is a mean over CKA of the table, and its error that of leaving out a batch of all of them at once."""
    images = rs.ImageSet("sample", images=64)
    result = rs.layer_cka([vit, resnet], images, batch_size=16)
    names = {name: list(part.layer_a.unique()) for name, part in result.table.groupby("model_a", sort=False)}
    cka = result.table.set_index(["model_a", "layer_a", "model_b", "layer_b"]).cka

    def mean(values, row):
        size = -(-len(names[row["model_a"]]) // 3)
        thirds = {"lowest third": slice(size), "middle third": slice(size, -size), "highest third": slice(-size, None)}
        sides = []
        for side in "ab":
            layers = names[row[f"model_{side}"]]
            chosen = row[f"layers_{side}"]
            sides.append(layers[thirds[chosen]] if chosen in thirds else [chosen])
        a, b = row["model_a"], row["model_b"]
        return np.mean([values[a, i, b, j] for i in sides[0] for j in sides[1]])

    means = result.record["means"]
    assert [row["layers_a"] for row in means] == [*["lowest third"] * 3, "middle third", "highest third"]
    without = []
    for left_out in range(4):
        rest = images.only(np.setdiff1d(np.arange(64), np.arange(16 * left_out, 16 * left_out + 16)))
        table = rs.layer_cka([vit, resnet], rest, batch_size=16).table
        without.append(table.set_index(["model_a", "layer_a", "model_b", "layer_b"]).cka)
    for row in means:
        assert row["cka"] == pytest.approx(mean(cka, row), abs=1e-9) and row["df"] == 3
        left = np.array([mean(values, row) for values in without])
        assert row["se"] == pytest.approx(np.sqrt(3 / 4 * ((left - left.mean()) ** 2).sum()), rel=1e-4)
    like = [row for row in means if row["model_a"] != row["model_b"]]
    for row in like:
        others = [mean(cka, {**row, "layers_b": layer}) for layer in names[resnet.name]]
        assert row["cka"] == pytest.approx(max(others), abs=1e-9)
    (matched,) = rs.matched_cka([vit, vit], images, batch_size=16).record["means"]
    assert matched["cka"] == pytest.approx(1) and matched["layers_a"] == "all"
    assert rs.layer_cka(vit, images, batch_size=16, layers="blocks.[012]", repeats=2).record["means"][0]["df"] == 1
