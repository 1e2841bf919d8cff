"""Linear probes of layers agree with scikit-learn on the same images, and impossible probes are refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import folder
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

import repsim as rs
from repsim.errors import RepsimError
from repsim.measures.neighbours import soft_nearest_neighbour, squared_distances
from repsim.passes.plan import limited
from repsim.passes.sweep import sweep
from repsim.studies import probe as study
from repsim.studies.probe import linear_probes
from repsim.studies.probe_passes import Draw, Features, Split, class_sample
from repsim.tables import NEIGHBOURS, PROBE, PROBE_SUMMARY


@pytest.fixture(scope="module")
def train():
    return rs.ImageSet("sample", split="train", images=400)


@pytest.fixture(scope="module")
def test_images():
    return rs.ImageSet("sample", split="test", images=210)


def activations(network, images, layer):
    """The activations of all images in their order, through `capture`."""
    parts = []
    with rs.capture(network, [layer]) as seen, torch.no_grad():
        for batch in images.batches([network.transform], 64, short=True):
            network.module(batch.inputs[network.transform])
            parts.append(seen[layer])
    return torch.cat(parts)


@pytest.mark.parametrize("shots", [5, None])
def test_accuracies_are_those_of_scikit_learn_on_the_same_images(vit, train, test_images, shots):
    result = linear_probes(vit, test_images, train=train, layers=["blocks.3"], shots=shots, seeds=2, neighbours=0)
    split = Split.of(train.labels, [shots], 2)
    reduced = {
        "cls": lambda x: x[:, 0],
        "mean": lambda x: x.mean(1),
        "spatial_mean": lambda x: x[:, 1:].mean(1),
        "token": lambda x: x[:, 1 + 3 * 7 + 5],
    }
    seen, new = (activations(vit, images, "blocks.3") for images in (train, test_images))
    for aggregation, reduce in reduced.items():
        x, unseen = reduce(seen), reduce(new)
        rows = result.table[result.table["aggregation"] == aggregation]
        if aggregation == "token":
            rows = rows[(rows["token_row"] == 3) & (rows["token_col"] == 5)]
        assert len(rows) == len(split.draws)
        for row, positions in zip(rows.itertuples(), split.draws.values()):
            fitted = positions if shots else np.concatenate([positions, split.held_out])
            scaler = StandardScaler().fit(x[fitted])
            oracle = RidgeClassifier(alpha=row.l2).fit(scaler.transform(x[fitted]), train.labels[fitted])
            accuracy = (oracle.predict(scaler.transform(unseen)) == test_images.labels).mean()
            assert row.accuracy == pytest.approx(accuracy, abs=1.01 / len(test_images))  # a tie may fall either way


def test_tables_have_a_row_per_probe_and_seed(vit, resnet, train, test_images):
    layers = r"blocks\.[05]|layer[14]\.0"
    result = linear_probes(
        [vit, resnet], test_images, train=train, layers=layers, shots=[1, 5], neighbours=50, batch_size=32
    )
    assert (
        list(result.table) == PROBE and list(result.summary) == PROBE_SUMMARY and list(result.neighbours) == NEIGHBOURS
    )
    draws = 2 * 3
    per_layer = {"vit_mini": 3 + 49, "resnet_mini": 2 + 49}
    assert len(result.table) == sum(2 * draws * n for n in per_layer.values())
    assert len(result.summary) == sum(2 * 2 * (n + 1) for n in per_layer.values())
    assert result.table["accuracy"].between(0, 1).all() and set(result.table["seed"]) == {0, 1, 2}
    cls = result.table[(result.table["aggregation"] == "cls") & (result.table["shots"] == 5)].groupby("layer")[
        "accuracy"
    ]
    summary = result.summary[(result.summary["aggregation"] == "cls") & (result.summary["shots"] == 5)]
    np.testing.assert_allclose(summary["accuracy"], cls.mean())
    assert (summary["se"] >= 0.999 * cls.std().to_numpy() / 3**0.5).all() and summary["df"].between(2, 2 + 6).all()
    assert set(result.summary["aggregation"]) == {"cls", "first", "spatial_mean", "mean", "token", "token_mean"}
    assert (result.record["images"]["used"], result.protocol["training_images"]["used"]) == (
        210,
        len(Split.of(train.labels, [1, 5], 3).used),
    )


def test_neighbours_are_of_the_sampled_test_images(vit, train, test_images):
    result = linear_probes(
        vit, test_images, train=train, layers=["blocks.11"], shots=1, tokens=False, neighbours=100, k=3
    )
    row = result.neighbours.set_index("aggregation").loc["cls"]
    sample = np.sort(class_sample(test_images.labels, 100))
    x = activations(vit, test_images, "blocks.11")[sample, 0]
    expected = soft_nearest_neighbour(squared_distances(x), torch.from_numpy(test_images.labels[sample]))
    assert (row["images"], row["k"]) == (len(sample), 3)
    assert row["soft_loss"] == pytest.approx(expected.loss, rel=1e-4)
    assert row["knn_accuracy"] > 0.6


def test_errors_hold_draws_and_test_images_paired(vit, train, test_images):
    """The standard error is that of the definition, from the accuracies of each batch of images with each draw."""
    options = {"layers": ["blocks.3"], "shots": 3, "seeds": 3, "neighbours": 0, "tokens": False, "batch_size": 30}
    result = linear_probes(vit, test_images, train=train, **options)
    row = result.summary.set_index("aggregation").loc["cls"]
    batches = [test_images.only(np.arange(k, k + 30)) for k in range(0, 210, 30)]
    tables = [linear_probes(vit, batch, train=train, **options).table for batch in batches]
    cells = np.array([part[part["aggregation"] == "cls"]["accuracy"].to_numpy() for part in tables])  # batches x draws
    g, r = cells.shape
    rows, columns = cells.mean(1), cells.mean(0)
    left = cells - rows[:, None] - columns + cells.mean()
    of_g, of_r = rows.var(ddof=1) / g, columns.var(ddof=1) / r
    of_both = (left**2).sum() / (g - 1) / (r - 1) / g / r
    assert min(of_g, of_r) > of_both  # so that the formula of `crossed` is the plain one
    variance = of_g + of_r - of_both
    df = variance**2 / (of_g**2 / (g - 1) + of_r**2 / (r - 1) + of_both**2 / ((g - 1) * (r - 1)))
    assert (row["accuracy"], row["se"]) == pytest.approx((cells.mean(), variance**0.5))
    assert row["df"] == pytest.approx(df)
    alone = linear_probes(vit, test_images, train=train, **{**options, "seeds": 1}).summary.iloc[0]
    assert alone["se"] == pytest.approx((cells[:, 0].var(ddof=1) / g) ** 0.5) and alone["df"] == g - 1
    with pytest.warns(rs.Notice, match="one batch of .*, so there are no standard errors"):
        assert linear_probes(vit, batches[0], train=train, **options).summary["se"].isna().all()


def test_training_images_are_not_tested_on(vit, train, tmp_path):
    asked = {"layers": ["blocks.11"], "tokens": False, "shots": 5, "seeds": 2, "neighbours": 50}
    many = rs.ImageSet("sample", split="train", images=600)  # the same order: the first 400 are those of `train`
    apart = linear_probes(vit, many.only(np.arange(400, 600)), train=train, batch_size=50, **asked)
    with pytest.warns(rs.Notice, match="400 of the 600 test images are training images; probes are tested on the oth"):
        mixed = linear_probes(vit, many, train=train, batch_size=50, **asked)
    assert mixed.record["protocol"]["test_images"] == 200 and mixed.record["images"]["used"] == 600
    for name in ("table", "summary", "neighbours"):
        exact = [getattr(result, name).drop(columns=["se", "loss_se"], errors="ignore") for result in (apart, mixed)]
        pd.testing.assert_frame_equal(*exact, rtol=1e-5)
    with pytest.warns(rs.Notice, match="400 of the 400 test images are training images, so accuracies are too high"):
        assert linear_probes(vit, train, train=train, **asked).table["accuracy"].notna().all()
    copies = folder(tmp_path, {"cat": 10, "dog": 10}, side=28)
    files = [rs.ImageSet(data) for data in (copies, tmp_path / "cat" / "..")]
    assert files[0].shared_with(files[1]).all()
    assert not files[0].shared_with(train).any() and not rs.ImageSet("sample").shared_with(train).any()


def test_shuffled_labels_are_at_chance(vit, train, test_images):
    rng = np.random.default_rng(0)
    shuffled = rs.ImageSet("sample", split="train", images=400)
    shuffled.source.labels = rng.permutation(shuffled.source.labels)
    result = linear_probes(vit, test_images, train=shuffled, layers=["blocks.11"], shots=10, tokens=False, neighbours=0)
    n = len(test_images)
    assert (result.summary["accuracy"] - 0.1).abs().max() < 4 * (0.1 * 0.9 / n) ** 0.5


def test_draws_nest_and_keep_clear_of_the_held_out():
    labels = np.repeat(np.arange(4), 60)
    split = Split.of(labels, [1, 5, 25], seeds=3)
    assert set(split.draws) == {Draw(shots, seed) for shots in (1, 5, 25) for seed in range(3)}
    for draw, positions in split.draws.items():
        assert np.bincount(labels[positions]).tolist() == [draw.shots] * 4
        assert not set(positions) & set(split.held_out)
    for seed in range(3):
        assert set(split.draws[1, seed]) < set(split.draws[5, seed]) < set(split.draws[25, seed])
    assert set(split.draws[5, 0]) != set(split.draws[5, 1])
    assert np.bincount(labels[split.held_out]).tolist() == [6] * 4
    everything = Split.of(labels, [None, 5], seeds=2)
    assert len(everything.held_out) + len(everything.draws[None, 0]) == 240
    assert len(Split.of(np.repeat(np.arange(4), 1000), [3], 1).held_out) == 40  # ten of each class, not a hundred


def test_finer_maps_are_patched_then_pooled_to_the_last(resnet):
    layers = rs.find_layers(resnet, "blocks")
    reducers = {reducer.layer.name: reducer for reducer in Features.of(resnet, layers, single=True)}
    assert [reducers[name].patch for name in ("layer1.0", "layer2.0", "layer3.0", "layer4.2")] == [2, 2, 1, 1]
    first = reducers["layer1.0"]
    x = torch.randn(3, *first.layer.shape)
    reduced = first(x)
    assert {name: tuple(value.shape[1:]) for name, value in reduced.items()} == first.sizes
    assert first.sizes == {"first": (1, 256), "spatial_mean": (1, 256), "token": (49, 256)}
    # The first of 7 x 7 positions: 4 x 4 pixels, of which each of the four phases of a 2 x 2 patch has four.
    corner = x[:, :, :4, :4]
    by_phase = [corner[:, :, row::2, column::2].mean((2, 3)) for row in (0, 1) for column in (0, 1)]
    torch.testing.assert_close(reduced["first"][:, 0], torch.stack(by_phase, 2).flatten(1))


def test_every_family(family, tmp_path):
    network = family.load()
    train = rs.ImageSet(folder(tmp_path / "train", {"dark": 6, "light": 6}))
    test = rs.ImageSet(folder(tmp_path / "test", {"dark": 3, "light": 3}, seed=1))
    result = linear_probes(network, test, train=train, shots=2, seeds=1, neighbours=0, batch_size=12)
    assert (result.table.groupby("layer")["aggregation"].nunique() >= 3).all()
    assert result.table["accuracy"].notna().all() and len(result.table["layer"].unique()) == family.blocks + 1


def test_what_is_refused_before_anything_runs(vit, train, test_images, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "sweep", lambda *args, **kw: pytest.fail("ran"))
    noise = rs.ImageSet("noise", images=8)
    with pytest.raises(rs.UsageError, match="the training images of noise have none"):
        linear_probes(vit, test_images, train=noise)
    with pytest.raises(rs.UsageError, match="the test images of noise have none"):
        linear_probes(vit, noise, train=train)
    with pytest.raises(rs.UsageError, match="class 0 has 52 training images; 50 are needed to fit on, and 5"):
        linear_probes(vit, test_images, train=train, shots=50)
    few = rs.ImageSet("sample", split="train", images=8)
    with pytest.raises(rs.UsageError, match="every class needs training images; there are none of class"):
        linear_probes(vit, test_images, train=few)
    cats = rs.ImageSet(folder(tmp_path / "a", {"cat": 3, "dog": 3}, side=28))
    owls = rs.ImageSet(folder(tmp_path / "b", {"cat": 3, "owl": 3}, side=28))
    with pytest.raises(rs.UsageError, match="'dog' is in one of them only"):
        linear_probes(vit, owls, train=cats)
    with pytest.raises(rs.UsageError, match="class 'cat' has 3 training images; 3 are needed to fit on, and 1"):
        linear_probes(vit, cats, train=cats, shots=3)
    for wrong in ({"shots": 0}, {"shots": []}, {"seeds": 0}, {"neighbours": 3}, {"k": 0}, {"neighbours": 30, "k": 30}):
        with pytest.raises(rs.UsageError, match=f"{list(wrong)[-1]} must be"):
            linear_probes(vit, test_images, train=train, **wrong)
    monkeypatch.undo()
    with limited("100M"), pytest.raises(rs.UsageError, match="may be taken.*probes of no single tokens"):
        linear_probes(vit, test_images, train=train)


def test_probes_of_many_layers_are_fitted_in_several_passes_over_few_images(vit, train, monkeypatch):
    networks = [vit, rs.load_model("vit_mini", weights="random")]
    asked = {"layers": ["blocks.3", "blocks.11"], "shots": 1, "seeds": 2, "neighbours": 0}
    many = rs.ImageSet("sample", split="test", images=1000)
    expected = linear_probes(networks, many, train=train, **asked)
    passes = []
    monkeypatch.setattr(study, "SUMS", 1)
    monkeypatch.setattr(study, "sweep", lambda *args, **options: passes.append(args[1]) or sweep(*args, **options))
    result = linear_probes(networks, many, train=train, **asked)
    assert [len(studies[0].networks) for studies in passes] == [1, 1, 1, 1, 2]
    assert result.table.equals(expected.table)
    passes.clear()
    monkeypatch.setattr(study, "AGAIN", 0)
    linear_probes(networks, many.only(np.arange(110)), train=train, **asked)
    assert len(passes) == 2  # a pass over as many images as there are to test is not made twice


def test_broken_activations_are_named(train, test_images):
    network = rs.load_model("vit_mini", weights="random")
    torch.nn.init.constant_(network.module.blocks[4].mlp.fc2.weight, float("nan"))
    with pytest.raises(RepsimError, match="layer 'blocks.4', are NaN or infinite in batch 0"):
        linear_probes(network, test_images, train=train, shots=1)


def test_classes_may_have_gaps_but_not_be_negative(vit, train, test_images):
    expected = linear_probes(vit, test_images, train=train, layers=["blocks.11"], tokens=False, neighbours=0, seeds=1)
    wide, new = rs.ImageSet("sample", split="train", images=400), rs.ImageSet("sample", split="test", images=210)
    wide.source.labels, new.source.labels = 7 * wide.source.labels + 3, 7 * new.source.labels + 3
    result = linear_probes(vit, new, train=wide, layers=["blocks.11"], tokens=False, neighbours=0, seeds=1)
    assert result.table.equals(expected.table)
    new.source.labels = new.source.labels - 10
    with pytest.raises(rs.UsageError, match="labels must not be negative"):
        linear_probes(vit, new, train=wide)


def test_an_image_alone_in_its_class_has_no_neighbours(vit, train):
    labels = rs.ImageSet("sample", split="test").labels
    alone = np.concatenate([[np.flatnonzero(labels == 0)[0]], np.flatnonzero(labels == 1)[:20]])
    test = rs.ImageSet("sample", split="test").only(alone)
    result = linear_probes(vit, test, train=train, layers=["blocks.11"], shots=1, tokens=False, neighbours=40)
    assert (result.neighbours["images"] == 20).all()
    nothing = linear_probes(vit, test.only(np.arange(2)), train=train, layers=["blocks.11"], shots=1, tokens=False)
    assert len(nothing.neighbours) == 0


def test_broken_images_that_empty_a_class_are_said(vit, tmp_path):
    root = folder(tmp_path / "train", {"cat": 12, "dog": 12}, side=28)
    train = rs.ImageSet(root)
    split = Split.of(train.labels, [1], 1)
    broken = train.source.paths[train.chosen[split.draws[Draw(1, 0)][0]]]
    Path(broken).write_text("no image")
    test = rs.ImageSet(folder(tmp_path / "test", {"cat": 4, "dog": 4}, side=28))
    options = {"layers": ["blocks.11"], "seeds": 1, "neighbours": 0, "skip_broken": True, "workers": 0}
    with pytest.raises(RepsimError, match="left no image of some class in 1 per class, seed 0; take more shots"):
        linear_probes(vit, test, train=train, shots=1, **options)
    result = linear_probes(vit, test, train=train, shots=3, **options)
    assert result.protocol["training_images"]["fitted_on"]["3"] in (5, 6)


def test_a_sample_has_as_many_of_each_class():
    labels = np.repeat(np.arange(10), 30)
    assert np.bincount(labels[class_sample(labels, 100)]).tolist() == [10] * 10
    many = np.repeat(np.arange(200), 20)
    chosen = class_sample(many, 100)
    assert len(chosen) == 100 and sorted(np.unique(many[chosen], return_counts=True)[1].tolist()) == [10] * 10
    assert len(class_sample(labels, 0)) == 0
