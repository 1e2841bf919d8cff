"""The tables of `compare` hold measures of captured activations, and agree with other studies of the same images."""

import numpy as np
import pytest
import torch

import repsim as rs
from repsim.measures.catalogue import MEASURES, Held, Streamed
from repsim.plots.compare import networks_map, networks_matrix
from repsim.tables import COMPARE, COMPARE_MAP, COMPARE_NETWORKS

NETWORKS = ["vit_mini", "resnet_mini", "mixer_mini"]


@pytest.fixture(scope="module")
def images():
    return rs.ImageSet("sample", images=96)


@pytest.fixture(scope="module")
def networks():
    return [rs.load_model(name) for name in NETWORKS]


@pytest.fixture(scope="module")
def features(networks, images):
    """Name -> (n, d) float64 pooled features of the last block, in the order of the images."""
    pooled = {}
    for network in networks:
        layer = rs.find_layers(network)[-1]
        with torch.no_grad(), rs.capture(network, [layer.name]) as seen:
            (batch,) = images.batches([network.transform], len(images), workers=0)
            network.module(batch.inputs[network.transform])
        pooled[network.name] = layer.select(seen[layer.name], "pooled")
    return pooled


def one(table, a, b, measure=None):
    rows = table[(table.model_a == a) & (table.model_b == b)]
    (row,) = (rows if measure is None else rows[rows.measure == measure]).itertuples()
    return row


def test_every_measure_is_that_of_the_features(networks, images, features):
    measures = [
        name for name, measure in MEASURES.items() if name not in ("cca", "pwcca")
    ]  # fewer images than features
    result = rs.compare(networks, images, measures=measures, batch_size=len(images))
    assert list(result.table.columns) == COMPARE and list(result.networks.columns) == COMPARE_NETWORKS
    assert list(result.networks_map.columns) == COMPARE_MAP
    for name in measures:
        for a in NETWORKS:
            for b in NETWORKS:
                value = MEASURES[name].value(features[a], features[b])
                assert one(result.table, a, b, name).value == pytest.approx(value, abs=1e-5), (name, a, b)


def test_cka_over_minibatches_is_that_of_layer_cka(networks, images):
    options = {"layers": "blocks", "tokens": "pooled", "batch_size": 24}
    result = rs.compare(networks[:2], images, **options)
    again = rs.layer_cka(networks[:2], images, **options).table
    np.testing.assert_allclose(result.table.value, again.cka, atol=1e-6)
    apart = (again.layer_a != again.layer_b) | (again.model_a != again.model_b)
    np.testing.assert_allclose(result.table.se[apart], again.se[apart], atol=1e-6)
    assert (result.table.se[~apart] == 0).all()
    assert (result.table.df == 3).all()


def test_networks_are_of_last_layers_and_best_matches(networks, images):
    result = rs.compare(networks, images, measures=["cka", "linear-r2"], layers="blocks", batch_size=48)
    for measure in ("cka", "linear-r2"):
        table = result.table[result.table.measure == measure]
        for a, b in (("vit_mini", "resnet_mini"), ("resnet_mini", "mixer_mini")):
            matrix = table[(table.model_a == a) & (table.model_b == b)].pivot(
                index="index_a", columns="index_b", values="value"
            )
            row = one(result.networks, a, b, measure)
            assert row.last == pytest.approx(matrix.to_numpy()[-1, -1], abs=1e-12)
            assert row.best == pytest.approx(matrix.max(axis=1).mean(), abs=1e-12)
            assert row.last_se > 0 and row.best_se > 0


def test_the_order_of_images_is_what_is_shared(networks, images):
    table = rs.compare(
        networks[:2], images, measures=["cka", "rsa-pearson", "mutual-knn"], null=30, batch_size=32
    ).table
    for measure in ("cka", "rsa-pearson"):
        row = one(table, "vit_mini", "resnet_mini", measure)
        assert abs(row.null) < 0.02 < row.null_95 < 0.1 < row.value
    row = one(table, "vit_mini", "resnet_mini", "mutual-knn")
    assert row.null == pytest.approx(10 / 95, abs=0.02) and row.null_95 < row.value  # k of n - 1
    assert np.isnan(one(table, "vit_mini", "vit_mini", "cka").null)


def test_untrained_is_what_random_weights_give(networks, images):
    both = [rs.load_model(name, weights="random") for name in NETWORKS[:2]]
    noise = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
    beside = rs.Features({"any": noise}, images.ids, numbered_in=[images.numbered_in])
    options = {"measures": ["cka", "procrustes"], "batch_size": 48}
    table = rs.compare([networks[0], beside, networks[1]], images, untrained=True, **options).table
    random = rs.compare(both, images, **options).table
    for measure in options["measures"]:
        value = one(random, "vit_mini-random", "resnet_mini-random", measure).value
        assert one(table, "vit_mini", "resnet_mini", measure).untrained == pytest.approx(value, abs=1e-9)
        assert np.isnan(one(table, "vit_mini", "features", measure).untrained)


def test_features_stand_for_their_network(networks, images, features):
    stands = rs.Features({"last": features["resnet_mini"]}, images.ids, "resnet", numbered_in=[images.numbered_in])
    options = {"measures": list(set(MEASURES) - {"cca", "pwcca"}), "batch_size": 48}
    table = rs.compare([networks[0], stands], images, **options).table
    again = rs.compare(networks[:2], images, **options).table
    for measure in options["measures"]:
        a, b = one(table, "vit_mini", "resnet", measure), one(again, "vit_mini", "resnet_mini", measure)
        assert (a.value, a.se) == pytest.approx((b.value, b.se), abs=1e-5), measure


def test_intervals_are_over_groups_where_images_come_in_groups(networks):
    grouped = rs.ImageSet("sample", images=96, groups=np.arange(5000) // 8)
    options = {"layers": "blocks", "tokens": "pooled", "batch_size": 24}
    table = rs.compare(networks[:1], grouped, measures=["cka", "cka-rbf", "procrustes"], **options).table
    again = rs.layer_cka(networks[:1], grouped, **options).table
    cka, apart = table[table.measure == "cka"], again.layer_a != again.layer_b
    np.testing.assert_allclose(cka.value, again.cka, atol=1e-6)
    np.testing.assert_allclose(cka.se[apart.to_numpy()], again.se[apart], atol=1e-5)
    groups = grouped.groups.at(grouped.chosen).unique()
    assert (table.df == len(groups) - 1).all()


def test_a_map_shows_the_angles_of_three_networks(networks, images):
    result = rs.compare(networks, images, measures="procrustes", batch_size=48)
    places = result.networks_map.set_index("model")[["x", "y"]]
    for a, b in (("vit_mini", "resnet_mini"), ("vit_mini", "mixer_mini"), ("resnet_mini", "mixer_mini")):
        angle = np.arccos(one(result.table, a, b).value)
        assert np.linalg.norm(places.loc[a] - places.loc[b]) == pytest.approx(angle, abs=1e-6)
    assert (result.networks_map.stress < 1e-6).all() and (result.networks_map.x_se > 0).all()
    (ax,) = networks_map(result.networks_map).axes
    assert len(ax.patches) == 3 and {text.get_text() for text in ax.texts} == set(NETWORKS)
    assert rs.compare(networks[:2], images, batch_size=48).networks_map.empty


def test_a_matrix_has_its_networks_in_the_order_of_the_dendrogram(networks, images):
    result = rs.compare(networks, images, batch_size=48)
    figure = networks_matrix(result.networks)
    tree, cells = figure.axes
    names = [label.get_text() for label in cells.get_yticklabels()]
    assert sorted(names) == sorted(NETWORKS) and tree.collections
    shown = cells.collections[0].get_array().reshape(3, 3)
    for row, a in enumerate(names):
        for column, b in enumerate(names):
            expected = 1 if a == b else one(result.networks, a, b).last
            assert shown[row, column] == pytest.approx(expected)


def test_what_cannot_be_compared_is_said(networks, images):
    with pytest.raises(rs.UsageError, match="unknown measure 'ckaa'; did you mean 'cka'"):
        rs.compare(networks, images, measures="ckaa")
    with pytest.raises(rs.UsageError, match="two or more networks, or several layers of one"):
        rs.compare(networks[0], images)
    with pytest.raises(rs.UsageError, match="mutual-knn needs at least 12 images"):
        rs.compare(networks, rs.ImageSet("sample", images=8), measures="mutual-knn", batch_size=4)
    module = rs.Network(networks[0].module, "mine", transform=networks[0].transform)
    with pytest.raises(rs.UsageError, match="mine was handed over as a module"):
        rs.compare([module, networks[1]], images, untrained=True)


def test_an_undefined_measure_is_a_notice(networks, images):
    with pytest.warns(rs.Notice, match="cca is undefined for 9 of 9 pairs"):
        result = rs.compare(networks, images, measures="cca", batch_size=48)
    assert result.table.value.isna().all() and result.networks_map.x.isna().all()
    assert result.plot() is not None


def test_every_measure_is_streamed_or_held():
    assert all(isinstance(measure, (Streamed, Held)) for measure in MEASURES.values())
