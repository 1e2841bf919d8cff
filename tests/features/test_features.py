"""Features in the place of networks: rows find their images, values are the network's, every format is read."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

import repsim as rs
from repsim.features.aligned import of_features_alone, rows_of
from repsim.passes.study import check_study
from repsim.passes.sweep import inputs_of
from repsim.studies.similarity import LayerSimilarity

PAGE = Path(__file__).parents[2] / "docs" / "features.md"
IMAGES = rs.ImageSet("sample", images=64)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def taken(vit, resnet, tmp_path_factory):
    """Features of the same images, from two networks."""
    return rs.extract_features([vit, resnet], IMAGES, tmp_path_factory.mktemp("taken"), batch_size=32)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of twelve images of two classes, a third of them one folder deeper, with names that are not ASCII."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        path = folder / ("Kühe", "dog")[number % 2] / ("" if number % 3 else "deep er") / f"bild {number}é.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 255, (28, 28), dtype=np.uint8)).save(path)
    return folder


def vectors(n, *widths, seed=0):
    rng = np.random.default_rng(seed)
    return {f"layer {width}": rng.normal(size=(n, width)).astype(np.float32) for width in widths}


# The same values as from the network


def test_cka_from_features_is_that_of_the_network(vit, resnet, taken):
    expected = rs.layer_cka([vit, resnet], IMAGES, batch_size=16).table
    for networks in ([vit, taken["resnet_mini"]], [taken["vit_mini"], resnet], list(taken.values())):
        table = rs.layer_cka(networks, IMAGES, batch_size=16).table
        assert np.allclose(table[["cka", "se"]], expected[["cka", "se"]], rtol=0, atol=1e-6)
        other_columns = [column for column in expected if column not in ("cka", "se")]
        assert table[other_columns].equals(expected[other_columns])  # kinds and depths too


def test_matched_cka_and_names_that_tell_both_apart(vit, taken):
    table = rs.matched_cka([vit, taken["vit_mini"]], IMAGES, batch_size=16).table
    assert len(table) == 13 and np.allclose(table["cka"], 1, rtol=0, atol=1e-6)
    assert set(table.model_a) == {"vit_mini#1"} and set(table.model_b) == {"vit_mini#2"}


@pytest.mark.parametrize("tokens", ["cls", "spatial", "pooled"])
def test_tokens_of_all_and_tokens_that_were_chosen_before(tokens, vit, taken, tmp_path):
    expected = rs.layer_cka(vit, IMAGES, layers="blocks.[05]", tokens=tokens, batch_size=16).table
    chosen = rs.extract_features(vit, IMAGES, tmp_path / "chosen", layers="blocks.[05]", tokens=tokens)["vit_mini"]
    assert chosen.layers["blocks.0"].shape == {"cls": (64, 96), "spatial": (64, 49, 96), "pooled": (64, 96)}[tokens]
    for features in (taken["vit_mini"], chosen):
        table = rs.layer_cka(features, IMAGES, layers="blocks.[05]", tokens=tokens, batch_size=16).table
        assert np.allclose(table["cka"], expected["cka"], rtol=0, atol=1e-6)
    if tokens != "spatial":
        other = {"cls": "pooled", "pooled": "cls"}[tokens]
        with pytest.raises(rs.UsageError, match=f"holds the {tokens} tokens of its network, and not its {other}"):
            rs.find_layers(chosen, tokens=other)


def test_probes_from_features_are_those_of_the_network(vit, resnet, tmp_path):
    test = rs.ImageSet("sample", images=100)
    train = rs.ImageSet("sample", split="train", images=300)
    few = {"layers": ["blocks.3", "blocks.11"], "shots": [3], "seeds": 2, "neighbours": 40}
    expected = rs.linear_probes(vit, test, train=train, **few)
    of_test, of_train = (
        rs.extract_features(vit, images, tmp_path / name, layers=few["layers"])["vit_mini"]
        for name, images in (("test", test), ("train", train))
    )
    both = of_test.join(of_train)
    assert len(both) == 400 and both.ids[:100] == tuple(test.ids) and both.ids[100:] == tuple(train.ids)
    probes = rs.linear_probes(both, test, train=train, **few)
    for name in ("probe", "probe_summary", "neighbours"):
        one, other = ({"probe": result.table, **result.tables}[name] for result in (expected, probes))
        numbers = one.select_dtypes("number").columns
        assert np.allclose(one[numbers].astype(float), other[numbers].astype(float), rtol=0, atol=1e-6, equal_nan=True)
        assert one["layer"].equals(other["layer"]) and one["aggregation"].equals(other["aggregation"])
    with pytest.raises(
        rs.UsageError, match="'vit_mini' are of other images than those of sample: their ids are numbers"
    ):
        rs.linear_probes(of_test, test, train=train, **few)


def test_probes_of_vectors_are_one_for_each_layer(vit, tmp_path):
    test, train = rs.ImageSet("sample", images=100), rs.ImageSet("sample", split="train", images=300)
    few = {"layers": "blocks.11", "shots": [5], "seeds": 1, "neighbours": 0}
    expected = rs.linear_probes(vit, test, train=train, tokens=False, **few).summary
    parts = [
        rs.extract_features(vit, images, tmp_path / str(number), layers="blocks.11", tokens="cls")["vit_mini"]
        for number, images in enumerate((test, train))
    ]
    summary = rs.linear_probes(parts[0].join(parts[1]), test, train=train, **few).summary
    assert list(summary["aggregation"]) == ["cls"]
    assert summary["accuracy"][0] == pytest.approx(expected["accuracy"][expected["aggregation"] == "cls"].item())
    stranger = rs.Features({"a": RNG.normal(size=(400, 7))}, [*test.ids, *train.ids])
    summary = rs.linear_probes(stranger, test, train=train, **{**few, "layers": "all"}).summary
    assert list(summary["aggregation"]) == ["spatial_mean"] and summary["accuracy"][0] < 0.4


def test_a_study_finds_the_same_in_all_ways(vit, taken):
    networks = [vit, taken["resnet_mini"].as_network()]
    layers = [rs.find_layers(network, "blocks")[-4:] for network in networks]
    check_study(LayerSimilarity(networks, layers), IMAGES)


def test_rows_are_the_networks_own_activations(vit, taken):
    network = taken["vit_mini"].as_network()
    (batch,) = inputs_of(IMAGES, [vit, network], 64)
    with rs.capture(vit, "blocks.3") as seen, torch.no_grad():
        vit.module(batch.inputs[vit.transform])
    rows = taken["vit_mini"].rows("blocks.3", batch.inputs[network.transform].numpy())
    assert torch.allclose(rows, seen["blocks.3"], atol=1e-5)
    with rs.capture(network, "blocks.3") as kept:
        network.module(batch.inputs[network.transform])
    assert torch.equal(kept["blocks.3"], rows)


# Layers, shapes and types


def test_shapes_types_and_layers():
    given = {
        "four": np.ones((5, 2, 3, 4)),
        "one": np.arange(5),
        "half": np.ones((5, 2), np.float16),
        "a/b": torch.ones(5, 3),
    }
    features = rs.Features(given, name="mine")
    assert repr(features) == "Features 'mine': 5 images without ids; four (2x3x4), one (1), half (2), a/b (3)"
    layers = rs.find_layers(features)
    assert [(layer.kind, layer.index, round(layer.depth, 2)) for layer in layers] == [
        ("features", 0, 0.0), ("features", 1, 0.33), ("features", 2, 0.67), ("features", 3, 1.0)
    ]  # fmt: skip
    assert rs.find_layers(features, ["a/b", "one"])[0].name == "one"
    assert [layer.depth for layer in rs.find_layers(features, "a/.*")] == [1.0]
    assert features.rows("one", np.array([3, 1])).tolist() == [[3.0], [1.0]]
    assert features.rows("one", np.array([0])).dtype == torch.float64  # float32 does not hold all of them
    assert features.rows("half", np.array([0])).dtype == torch.float32
    assert list(rs.Features(np.ones((5, 2))).layers) == ["features"]
    with pytest.raises(rs.UsageError, match="no layer of mine matches 'blocks.0'; there are four, one"):
        rs.find_layers(features, "blocks.0")
    with pytest.raises(rs.UsageError, match="'four' of mine.* has no pooled tokens: nothing says which axes"):
        rs.find_layers(features, tokens="pooled")
    assert len(rs.find_layers(features, ["one", "half"], tokens="cls")) == 2  # a vector is its own CLS token


@pytest.mark.parametrize(
    "layers, ids, says",
    [
        ({}, None, "need at least one layer"),
        ({"a": np.ones((4, 2)), "b": np.ones((5, 2))}, None, "'a' has 4 rows and 'b' has 5"),
        ({"a": np.ones(())}, None, r"got shape \(\)"),
        ({"a": np.ones((4, 0))}, None, r"got shape \(4, 0\)"),
        ({"a": np.ones((4, 2), complex)}, None, "real numbers, got complex128"),
        ({"a": np.array(["x", "y"])}, None, "real numbers, got <U1"),
        ({"a": [[1, 2], [3]]}, None, "ragged"),
        ({"a": np.ones((4, 2))}, ["x", "y"], "have 4 rows, and 2 ids"),
        ({"a": np.ones((4, 2))}, ["x", "y", "x", "z"], "'x' is the id of 2 rows"),
    ],
)
def test_what_are_no_features_is_refused(layers, ids, says):
    with pytest.raises(rs.UsageError, match=says):
        rs.Features(layers, ids)


def test_a_row_that_is_not_finite_is_named(vit):
    values = RNG.normal(size=(64, 5))
    values[17, 2] = np.nan
    with pytest.raises(
        rs.RepsimError, match=f"layer 'features', hold NaN or infinite values in row 17 .image '{IMAGES.ids[17]}'"
    ):
        rs.layer_cka(rs.Features(values, IMAGES.ids), IMAGES, batch_size=16)


def test_what_needs_a_network_says_so(taken):
    features = taken["vit_mini"]
    for study in (
        rs.attention_distance,
        rs.attention_maps,
        rs.residual_norms,
        rs.lesions,
        rs.receptive_fields,
        rs.token_localization,
        lambda features, images: rs.head_similarity([features, features], images),
    ):
        with pytest.raises(
            rs.UsageError, match="vit_mini.* holds features alone, and this study needs the network itself"
        ):
            study(features, IMAGES)


def test_records_know_which_features_they_are_of(taken, tmp_path):
    values = vectors(64, 5)
    one, other = rs.Features(values, IMAGES.ids), rs.Features({"layer 5": values["layer 5"] + 1}, IMAGES.ids)
    record = rs.layer_cka([one, other], batch_size=16).record
    first, second = record["networks"]
    assert (first["name"], second["name"]) == ("features#1", "features#2")
    assert first["weights_sha256"] == one.sha256 != other.sha256 == second["weights_sha256"]
    assert first["sha256_of"] == "values" and first["layers"] == {"layer 5": ["float32", 5]} and not record["random"]
    again = rs.Features(values, IMAGES.ids)
    assert again.sha256 == one.sha256 != rs.Features(values, IMAGES.ids[::-1]).sha256
    untrained = rs.extract_features(rs.load_model("vit_micro", weights="random"), IMAGES, tmp_path)["vit_micro-random"]
    assert rs.layer_cka(untrained, batch_size=16).record["random"]


# Which row belongs to which image


def test_rows_are_matched_by_ids_whatever_their_order(pictures):
    images = rs.ImageSet(pictures, images=10, seed=3)
    assert images.available_ids == sorted(
        images.available_ids, key=lambda name: images.source.paths.index(str(pictures / name))
    )
    assert "Kühe/deep er/bild 0é.png" in images.available_ids and len(set(images.ids)) == 10
    order = RNG.permutation(12)
    ids = [*(images.available_ids[i] for i in order), "of no image"]
    rows = rows_of(rs.Features(np.ones((13, 2)), ids), images)
    assert [ids[row] for row in rows] == images.available_ids
    below = rs.ImageSet(pictures.parent, split=pictures.name)
    assert below.available_ids == [f"{pictures.name}/{name}" for name in images.available_ids]
    whole_paths = rs.Features(np.ones((13, 2)), [os.path.relpath(pictures / name) for name in ids])
    assert rows_of(whole_paths, images).tolist() == rows.tolist()


def test_images_without_features_are_left_out(pictures, vit):
    images = rs.ImageSet(pictures)
    features = rs.Features(vectors(7, 5), images.available_ids[:7])
    with pytest.warns(rs.Notice, match=r"features has features of 7 of the 12 chosen images; .*\(it has 7 of all 12"):
        result = rs.layer_cka([vit, features], images, batch_size=4, repeats=2)
    assert result.record["images"]["chosen"] == 7
    values = {
        number: features.layers["layer 5"][row] for number, row in enumerate(rows_of(features, images)) if row >= 0
    }
    left = images.known_to(rows_of(features, images) >= 0)
    expected = torch.from_numpy(np.stack([values[number] for number in left.chosen]))
    alone = rs.layer_cka(rs.Features(expected, left.ids), left, batch_size=4).table["cka"]
    assert alone.equals(rs.layer_cka(features, images, batch_size=4).table["cka"])
    assert set(left.redrawn(9).chosen) == set(left.chosen)
    few = rs.Features(vectors(3, 5), images.available_ids[:3])
    with pytest.raises(rs.UsageError, match="has features of 3 of the 12 .*give ids as"):
        rs.layer_cka([vit, few], images, batch_size=4)
    stems = rs.Features(vectors(12, 5), [os.path.basename(name) for name in images.available_ids])
    with pytest.raises(rs.UsageError, match="has features of 0 of the 12 chosen images of .*such as 'bild"):  # no guess
        rs.layer_cka([vit, stems], images, batch_size=4)


def test_without_ids_the_order_of_all_images_counts(pictures):
    images = rs.ImageSet(pictures, images=8, seed=1)
    assert rows_of(rs.Features(np.ones((12, 2))), images).tolist() == list(range(12))
    with pytest.raises(rs.UsageError, match="no ids, so rows belong to images by their order, .*: there are 8 rows"):
        rows_of(rs.Features(np.ones((8, 2))), images)


def test_numbers_of_images_count_in_their_own_data_only(vit, tmp_path):
    noise = rs.ImageSet("noise", images=8)
    features = rs.extract_features(vit, noise, tmp_path, layers="blocks.0")["vit_mini"]
    assert features.ids == tuple(noise.ids)
    assert (rows_of(features, noise) >= 0).all()
    with pytest.raises(rs.UsageError, match="of other images than those of noise: their ids are numbers in other data"):
        rows_of(features, rs.ImageSet("noise", images=8, seed=1))


def test_features_alone_need_no_images():
    one, other = rs.Features(vectors(30, 5), [f"i{n}" for n in range(30)], "one"), vectors(40, 5, 6, seed=1)
    by_id = rs.Features(other, [f"i{n}" for n in range(39, -1, -1)], "other")
    assert len(of_features_alone([one, by_id])) == 30
    same = rs.Features({"flipped": one.layers["layer 5"][::-1].copy()}, one.ids[::-1], "same")
    table = rs.layer_cka([one, same], batch_size=10).table
    assert np.allclose(table["cka"], 1, atol=1e-6)  # rows are matched by ids, whatever their order
    blind = rs.Features({"flipped": one.layers["layer 5"][::-1].copy()}, name="blind")
    cross = rs.layer_cka([one, blind], batch_size=10).table.query("model_a != model_b")["cka"]
    assert (cross < 0.5).all()  # rows are matched by their order
    with pytest.raises(rs.UsageError, match="'one' has 30 rows and 'short' has 29"):
        rs.layer_cka([one, rs.Features(vectors(29, 5), name="short")])
    with pytest.raises(rs.UsageError, match="'blind' have no ids, and the others have ids in different orders"):
        rs.layer_cka([one, same, blind])
    with pytest.raises(rs.UsageError, match="have 0 ids in common, such as 'i0' and 'x0'"):
        rs.layer_cka([one, rs.Features(vectors(30, 5), [f"x{n}" for n in range(30)], "x")])


def test_what_cannot_be_joined():
    one = rs.Features(vectors(5, 3), "abcde")
    assert one.join(rs.Features(vectors(2, 3, seed=1), "fg")).rows("layer 3", np.array([6, 0])).shape == (2, 3)
    with pytest.raises(rs.UsageError, match="'layer 3' of 'features' is .3,. in one and not there in the other"):
        one.join(rs.Features(vectors(2, 4), "fg"))
    with pytest.raises(rs.UsageError, match="joined by ids, and some"):
        one.join(rs.Features(vectors(2, 3)))
    with pytest.raises(rs.UsageError, match="'e' is the id of 2 rows"):
        one.join(rs.Features(vectors(2, 3), "ef"))


# Files


def of_npz(path, layers, ids):
    np.savez(path, **layers, ids=np.array(ids))


def of_compressed(path, layers, ids):
    np.savez_compressed(path, **layers, ids=np.array(ids))


def of_safetensors(path, layers, ids):
    save_file(layers, path, metadata={"ids": json.dumps(ids)})


def of_hdf5(path, layers, ids):
    with pytest.importorskip("h5py").File(path, "w") as file:
        for name, values in layers.items():
            file[name] = values
        file["ids"] = ids


def of_chunks(path, layers, ids):
    with pytest.importorskip("h5py").File(path, "w") as file:
        for name, values in layers.items():
            file.create_dataset(name, data=values, compression="gzip")
        file["ids"] = ids


FORMATS = {
    ".npz": (of_npz, True),
    ".compressed.npz": (of_compressed, False),
    ".safetensors": (of_safetensors, True),
    ".h5": (of_hdf5, True),
    ".hdf5": (of_chunks, False),
}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64"])
def test_what_is_written_is_read(suffix, dtype, tmp_path):
    write, mapped = FORMATS[suffix]
    layers = {"conv1": RNG.normal(size=(6, 2, 3, 4)) * 9, "a/b": RNG.normal(size=(6, 5)) * 9, "one": RNG.normal(size=6)}
    layers = {name: values.astype(dtype) for name, values in layers.items() if suffix != ".npz" or "/" not in name}
    ids = [f"bild {n}é.png" for n in range(6)]
    write(tmp_path / f"mine{suffix}", layers, ids)
    features = rs.load_features(tmp_path / f"mine{suffix}")
    assert (
        features.ids == tuple(ids)
        and set(features.layers) == set(layers)
        and features.name == f"mine{suffix}".rpartition(".")[0]
    )
    for name, values in layers.items():
        array = features.layers[name]
        assert np.array_equal(array.reshape(values.shape), values) and array.dtype == dtype
        assert isinstance(array, np.memmap) is mapped


def test_npy_and_thingsvision(tmp_path):
    values = RNG.normal(size=(6, 2, 3)).astype(np.float32)
    np.save(tmp_path / "mine.npy", np.asfortranarray(values))
    features = rs.load_features(tmp_path / "mine.npy")
    assert (
        list(features.layers) == ["mine"] and features.ids is None and np.array_equal(features.layers["mine"], values)
    )
    assert isinstance(features.layers["mine"], np.memmap)
    np.save(tmp_path / "features.npy", values)
    names = [f"pictures/cat/Käse {n}.jpg" for n in range(6)]
    (tmp_path / "file_names.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    for path in (tmp_path, tmp_path / "features.npy"):
        assert rs.load_features(path, name="tv").ids == tuple(names)
    (tmp_path / "file_names.txt").write_text("one\n")
    with pytest.raises(rs.UsageError, match="have 6 rows, and 1 ids"):
        rs.load_features(tmp_path)


def test_parts_of_thingsvision_in_hdf5(tmp_path):
    values = RNG.normal(size=(9, 4)).astype(np.float32)
    with pytest.importorskip("h5py").File(tmp_path / "features.hdf5", "w") as file:
        for number, part in enumerate(np.split(values, [2, 5]), 1):
            file.create_dataset(f"features_{number:02d}", data=part)
    features = rs.load_features(tmp_path)
    assert np.array_equal(features.rows("features", np.arange(9)), values)
    assert len(rs.layer_cka(features, batch_size=4).table) == 1


@pytest.mark.parametrize("texts, known", [(["a", "b", "c", "d", "é"], True), (["a", "b", "c", "d", "d"], False)])
def test_a_dataset_of_rsatoolbox(texts, known, tmp_path):
    """A dataset is read as rsatoolbox 0.3.2 writes it, with texts as bytes; texts that occur twice are no ids."""
    values = RNG.normal(size=(5, 3))
    with pytest.importorskip("h5py").File(tmp_path / "data.h5", "w") as file:
        file.attrs["rsatoolbox_version"] = "0.3.2"
        file["measurements"] = values
        file["obs_descriptors/stimulus"] = np.array([text.encode() for text in texts])
        file["obs_descriptors/session"] = np.arange(5)
        file["descriptors/x"] = 1
        file.create_group("channel_descriptors")
    features = rs.load_features(tmp_path / "data.h5")
    assert list(features.layers) == ["measurements"] and np.array_equal(features.layers["measurements"], values)
    assert features.ids == (tuple(texts) if known else None)


def test_bfloat16_of_safetensors(tmp_path):
    from safetensors.torch import save_file

    values = torch.randn(5, 3, dtype=torch.bfloat16)
    save_file({"x": values}, tmp_path / "x.safetensors")
    assert torch.equal(rs.load_features(tmp_path / "x.safetensors").rows("x", np.arange(5)), values.float())


def test_hdf5_without_h5py_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    (tmp_path / "x.h5").write_bytes(b"")
    with pytest.raises(rs.UsageError, match=r"need h5py, .*pip install 'repsim-vision\[features\]'"):
        rs.load_features(tmp_path / "x.h5")


def test_what_cannot_be_read_is_refused_in_a_sentence(tmp_path):
    for name in ("x.npy", "x.npz", "x.safetensors"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(rs.RepsimError, match=f"cannot read features from .*{name}: "):
            rs.load_features(tmp_path / name)
    np.save(tmp_path / "objects.npy", np.array([{}, 1, 2, 3], dtype=object), allow_pickle=True)
    with pytest.raises(rs.RepsimError, match="cannot read features from .*objects.npy: "):
        rs.load_features(tmp_path / "objects.npy")
    with pytest.raises(rs.UsageError, match="there are no features at .*nothing.npy"):
        rs.load_features(tmp_path / "nothing.npy")
    (tmp_path / "x.csv").write_text("1,2\n")
    with pytest.raises(rs.UsageError, match="must be features in one of .npy, .npz"):
        rs.load_features(tmp_path / "x.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(rs.UsageError, match="must hold features.json, which `repsim extract` writes last"):
        rs.load_features(tmp_path / "empty")
    (tmp_path / "empty" / "features.json").write_text("{}")
    with pytest.raises(rs.RepsimError, match="not an index of features that repsim wrote"):
        rs.load_features(tmp_path / "empty")


def test_large_files_are_told_apart_by_their_times(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.ones((5, 3)))
    by_values = rs.load_features(tmp_path / "x.npy").sha256
    monkeypatch.setattr("repsim.features.arrays.HASHED", 10)
    large = rs.load_features(tmp_path / "x.npy")
    assert large.sha256 != by_values and large.record()["sha256_of"].startswith("names, sizes and times")
    np.save(tmp_path / "x.npy", np.zeros((5, 3)))
    os.utime(tmp_path / "x.npy", ns=(1, 1))
    assert rs.load_features(tmp_path / "x.npy").sha256 != large.sha256


def test_what_does_not_fit_is_read_in_pieces(taken, tmp_path):
    """Memory is planned for the rows of a batch, as for those of a network, and not for the file itself."""
    from repsim.passes.plan import limited

    said = []
    rows = np.lib.format.open_memmap(tmp_path / "wide.npy", "w+", np.float32, (64, 200_000))
    rows[:] = np.random.default_rng(1).normal(size=rows.shape)
    rows.flush()
    wide = rs.load_features(tmp_path / "wide.npy")
    whole = rs.layer_cka(wide, batch_size=16).table["cka"]
    with limited("48M", said.append):  # the file has 49 MiB, a batch 24 MiB as it is read
        pieces = rs.layer_cka(wide, batch_size=16)
    assert "images at a time" in said[-1] and np.allclose(pieces.table["cka"], whole, atol=1e-6)


def test_the_page_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    exec(code, shown := {})
    assert repr(shown["brain"]).startswith("Features 'brain': 256 images with ids") and len(shown["features"]) == 256
