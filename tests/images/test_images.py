"""The sources of images, the choice among them, and the sharing of images by networks."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

import repsim as rs
from repsim.images.image_set import BrokenImage, Counts, ImageSet

GREY = rs.EvalTransform(input_size=(1, 28, 28), mean=(0.0,), std=(1.0,), crop_pct=1.0)
COLOUR = rs.EvalTransform(input_size=(3, 32, 32))


def write_images(folder, names, broken=()):
    rng = np.random.default_rng(0)
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)).save(path)
        if name in broken:
            path.write_bytes(path.read_bytes()[:200])


def test_training_images_are_parted_from_test_images_by_class_seed_and_name(tmp_path):
    sizes = {"cat": 10, "dog": 15, "eel": 1, "fox": 2}
    write_images(tmp_path / "a", [f"{name}/{i}.png" for name, count in sizes.items() for i in range(count)])
    train, test = ImageSet(tmp_path / "a").parted()
    assert not set(train.ids) & set(test.ids) and len(train) + len(test) == 28
    assert np.bincount(test.labels, minlength=4).tolist() == [
        2,
        3,
        0,
        1,
    ]  # a fifth of each class, at least one image, never all
    again, reseeded = ImageSet(tmp_path / "a").parted()[1], ImageSet(tmp_path / "a", seed=1).parted()[1]
    assert again.ids == test.ids and set(reseeded.ids) != set(test.ids)
    write_images(tmp_path / "b", [f"{name}/{i}.png" for name, count in sizes.items() for i in range(count)])
    write_images(tmp_path / "b", [f"ape/{i}.png" for i in range(7)])
    elsewhere = ImageSet(tmp_path / "b").parted()[1]  # the images of other classes change nothing
    assert {name for name in elsewhere.ids if not name.startswith("ape")} == set(test.ids)
    few, fewer = ImageSet(tmp_path / "b", images=5).parted(train_images=8)
    assert (len(few), len(fewer)) == (8, 5) and set(few.ids).isdisjoint(test.ids)
    assert test.record(Counts())["split_here"] == {"test_share": 0.2, "seed": 0, "training": 22, "test": 6}


def test_images_that_belong_together_are_not_parted(tmp_path):
    write_images(tmp_path, [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(30)])
    plain = ImageSet(tmp_path)
    photographs = np.array([i // 3 for i in range(60)])  # ten of each class, with three crops each
    train, test = ImageSet(tmp_path, groups=photographs).parted()
    of_train, of_test = (set(photographs[images.chosen]) for images in (train, test))
    assert not of_train & of_test and np.bincount(test.labels).tolist() == [6, 6]
    assert len(set(photographs[plain.parted()[1].chosen])) > 4
    with pytest.raises(rs.UsageError, match="name folders of other images for training with --train-data"):
        ImageSet(tmp_path, groups="class").parted()
    with pytest.raises(rs.UsageError, match="parted by class only"):
        ImageSet("noise", images=40).parted()


def test_the_bundled_sample():
    test, train = ImageSet("sample"), ImageSet("sample", split="train")
    assert len(test) == 5000 and len(train) == 3000
    assert np.bincount(train.labels).tolist() == [300] * 10 and len(np.unique(test.labels)) == 10


def test_a_seeded_choice_without_replacement():
    a, b, c = (ImageSet(images=1000, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(a.chosen, b.chosen) and not np.array_equal(a.chosen, c.chosen)
    assert len(set(a.chosen)) == 1000
    assert np.array_equal(a.redrawn(1).chosen, c.chosen)
    assert np.array_equal(ImageSet(images=10).chosen, a.chosen[:10])


def test_pixels_and_order_of_batches():
    images = ImageSet("sample", images=20)
    batches = list(images.batches([GREY], 8, counts=(counts := Counts())))
    assert [len(b.positions) for b in batches] == [8, 8]
    assert (counts.used, counts.dropped, counts.batches) == (16, 4, 2)
    raw = torch.from_numpy(images.source.images[images.chosen[:8]]).float() / 255
    torch.testing.assert_close(batches[0].inputs[GREY][:, 0], raw)


def test_every_network_sees_the_same_images_each_decoded_once(monkeypatch):
    images = ImageSet("sample", images=16)
    loaded = []
    load = images.source.load
    monkeypatch.setattr(images.source, "load", lambda index: loaded.append(index) or load(index))
    (batch,) = images.batches([GREY, COLOUR, GREY], 16)
    assert set(batch.inputs) == {GREY, COLOUR} and batch.inputs[COLOUR].shape == (16, 3, 32, 32)
    assert loaded == list(images.chosen)


@pytest.mark.parametrize("workers", [0, 2])
def test_folders_of_classes_and_flat_ones(tmp_path, workers):
    write_images(tmp_path, [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(4)])
    classes = ImageSet(tmp_path)
    assert sorted(classes.labels) == [0] * 4 + [1] * 4
    flat = ImageSet(tmp_path, split="cat")
    assert len(flat) == 4 and flat.labels is None
    (batch,) = classes.batches([COLOUR], 8, workers=workers)
    expected = COLOUR(Image.open(classes.source.paths[classes.chosen[3]]))
    assert torch.equal(batch.inputs[COLOUR][3], expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image(tmp_path, workers):
    write_images(tmp_path, [f"{i}.png" for i in range(13)], broken={"4.png", "7.png"})
    with pytest.raises(BrokenImage, match=r"cannot read image .*[47]\.png: .*--skip-broken"):
        list(ImageSet(tmp_path).batches([COLOUR], 4, workers=workers))
    counts = Counts()
    batches = list(ImageSet(tmp_path).batches([COLOUR, GREY], 4, counts=counts, workers=workers, skip_broken=True))
    assert (counts.used, counts.dropped, len(counts.broken), len(batches)) == (8, 3, 2, 2)
    images = ImageSet(tmp_path)
    for batch in batches:
        for row, position in enumerate(batch.positions.tolist()):
            image = Image.open(images.source.paths[images.chosen[position]])
            assert torch.equal(batch.inputs[COLOUR][row], COLOUR(image))
            assert torch.equal(batch.inputs[GREY][row], GREY(image))


def test_an_error_of_the_caller_ends_the_loading_thread():
    before, during = set(threading.enumerate()), set()
    with pytest.raises(ZeroDivisionError):
        for _ in ImageSet("sample", images=64).batches([GREY], 8):
            during = set(threading.enumerate()) - before
            raise ZeroDivisionError
    assert during and not any(thread.is_alive() for thread in during)


def test_fashion_mnist_files(tmp_path):
    import gzip

    pixels = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pixels.tobytes()))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(bytes(8) + bytes(range(10)))
    images = ImageSet("fashion-mnist", root=tmp_path)
    assert np.array_equal(images.source.images, pixels)
    assert np.array_equal(np.sort(images.labels), np.arange(10))
    with pytest.raises(rs.RepsimError, match="train-images-idx3-ubyte.gz"):
        ImageSet("fashion-mnist", split="train", root=tmp_path)


def test_noise_is_a_function_of_seed_and_index():
    a, b = ImageSet("noise", images=8), ImageSet("noise", images=8, seed=1)
    assert a.source.load(3).tobytes() == ImageSet("noise", images=5).source.load(3).tobytes()
    assert a.source.load(3).tobytes() != b.source.load(3).tobytes()


def test_classes_of_ones_own():
    images = ImageSet("noise", images=6)
    labelled = images.labelled(np.arange(6) % 2)
    assert images.labels is None and labelled.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert labelled.only(np.array([1, 2])).labels.tolist() == [1, 0]
    with pytest.raises(rs.UsageError, match="one for each of the 6 images, got shape \\(4,\\)"):
        images.labelled(np.zeros(4))


def test_timm_data_sets(tmp_path):
    """Data sets of timm come through timm's own factory, here from files as torchvision writes them."""
    write_images(tmp_path, [f"validation/{c}/{i}.png" for c in "ab" for i in range(3)])
    images = ImageSet("torch/image_folder", root=tmp_path, split="validation")
    assert len(images) == 6 and sorted(images.labels) == [0, 0, 0, 1, 1, 1]
    (batch,) = images.batches([COLOUR], 6)
    assert batch.inputs[COLOUR].shape == (6, 3, 32, 32)
    with pytest.raises(rs.RepsimError, match="timm cannot open the data set 'torch/nonesuch'"):
        ImageSet("torch/nonesuch", root=tmp_path)


def test_a_stream_is_sampled_without_replacement(monkeypatch):
    import timm.data

    items = [(Image.new("L", (28, 28), i), i) for i in range(50)]
    monkeypatch.setattr(timm.data, "create_dataset", lambda *a, **k: iter(items))
    first, second = (ImageSet("wds/whatever", images=10, seed=seed) for seed in (0, 1))
    assert len(set(first.labels)) == 10 and set(first.labels) != set(second.labels)
    (batch,) = first.batches([GREY], 10)
    assert torch.equal((batch.inputs[GREY][:, 0, 0, 0] * 255).round().long(), torch.from_numpy(first.labels))


def test_arrays_and_tensors():
    tensors = torch.randn(6, 3, 8, 8)
    images = ImageSet(tensors)
    (batch,) = images.batches([COLOUR], 6)
    assert torch.equal(batch.inputs[COLOUR], tensors[torch.from_numpy(images.chosen)])
    assert len(ImageSet(np.zeros((5, 28, 28), np.uint8))) == 5


@pytest.mark.parametrize(
    "data, options, message",
    [
        ("no/such/folder", {}, "there is no folder 'no/such/folder'"),
        ("sample", {"split": "tset"}, "unknown split 'tset'; did you mean 'test'"),
        ("sample", {"images": 3}, "at least 4 images are needed, got images=3"),
        (torch.randn(3, 3, 8, 8), {}, "at least 4 images are needed"),
        (torch.randn(8, 8), {}, r"float \(n, c, h, w\)"),
        (np.zeros((5, 28, 28)), {}, "uint8"),
    ],
)
def test_bad_input(data, options, message):
    with pytest.raises(rs.UsageError, match=message):
        ImageSet(data, **options)


def test_an_empty_folder(tmp_path):
    with pytest.raises(rs.UsageError, match="there are no images in"):
        ImageSet(tmp_path)


def test_an_image_set_says_on_one_line_what_it_is():
    assert repr(ImageSet("sample", images=100, split="train", seed=3)) == (
        "ImageSet of sample (train): 100 of 3000 images, 10 classes, seed 3"
    )
    assert repr(ImageSet(torch.zeros(5, 3, 8, 8))) == (
        "ImageSet of Tensor (5, 3, 8, 8): 5 of 5 images, no classes, seed 0"
    )
