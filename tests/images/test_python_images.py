"""Lists, data sets and loaders of images in Python give the same as a tensor or a folder of the same images."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import repsim as rs
from repsim.images.image_set import BrokenImage, ImageSet

GREY = rs.EvalTransform(input_size=(1, 28, 28), mean=(0.0,), std=(1.0,), crop_pct=1.0)
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
PICTURES = [Image.fromarray(pixels) for pixels in PIXELS]
TENSORS = torch.randn(12, 1, 28, 28, generator=torch.Generator().manual_seed(0))
CLASSES = [0, 1, 2] * 4


class Given(Dataset):
    """A data set that notes which items are asked for."""

    def __init__(self, items, targets=None):
        self.items, self.asked = items, []
        if targets is not None:
            self.targets = targets

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.asked.append(index)
        return self.items[index]


class HuggingFace:
    """A stand-in for `datasets.Dataset`: columns by name, rows by number."""

    def __init__(self, **columns):
        self.columns, self.column_names = columns, list(columns)
        self.shape = (len(self), len(columns))

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key):
        return (
            self.columns[key] if isinstance(key, str) else {name: column[key] for name, column in self.columns.items()}
        )


class Stream(IterableDataset):
    def __iter__(self):
        return iter(PICTURES)


def inputs(images, transform=GREY):
    """Inputs (12, c, h, w), in the order of the data."""
    images = ImageSet(images)
    (batch,) = images.batches([transform], 12)
    return batch.inputs[transform][np.argsort(images.chosen)]


def files(folder):
    paths = [folder / f"{number}.png" for number in range(12)]
    for path, picture in zip(paths, PICTURES):
        picture.save(path)
    return paths


@pytest.mark.parametrize(
    "images",
    [
        PICTURES,
        tuple(PICTURES),
        Given(PICTURES),
        Given([(picture, 3) for picture in PICTURES]),
        HuggingFace(image=PICTURES, label=CLASSES),
        DataLoader(Given(PICTURES), batch_size=5, shuffle=True),
        DataLoader(Given(PICTURES), batch_size=None),
    ],
    ids=["list", "tuple", "dataset", "pairs", "hugging_face", "loader", "unbatched"],
)
def test_pictures_go_through_transforms_as_arrays_do(images):
    assert torch.equal(inputs(images), inputs(PIXELS))
    assert ImageSet(images).tensor_size is None and ImageSet(images).available_ids == [str(n) for n in range(12)]


def test_a_list_of_files_is_read_as_its_folder(tmp_path):
    paths = files(tmp_path)
    assert torch.equal(inputs(paths), inputs(PIXELS)) and torch.equal(inputs(list(map(str, paths))), inputs(PIXELS))
    listed, folder = ImageSet(paths), ImageSet(tmp_path)
    assert listed.available_ids == [str(path) for path in paths] and listed.labels is None
    assert listed.data == "12 files" and listed.identity().keys() == folder.identity().keys()
    before = listed.identity()
    PICTURES[1].save(paths[0], compress_level=0)
    assert ImageSet(paths).identity() != before
    features = rs.Features(np.arange(24.0).reshape(12, 2), ids=map(str, paths))
    assert len(rs.layer_cka([features], listed, batch_size=12).table) == 1
    with pytest.raises(rs.UsageError, match="each file of a list must exist, and there is no file '.*none.png'"):
        ImageSet([*paths, tmp_path / "none.png"])


@pytest.mark.parametrize(
    "images", [Given(TENSORS), TensorDataset(TENSORS, torch.tensor(CLASSES)), DataLoader(TensorDataset(TENSORS))]
)
def test_tensors_of_a_dataset_go_in_as_they_are(images):
    assert torch.equal(inputs(images), TENSORS) and ImageSet(images).tensor_size == (1, 28, 28)
    table, same = (rs.layer_cka("vit_mini", data, batch_size=6).table for data in (images, TENSORS))
    assert table.equals(same)


def test_items_are_read_when_they_are_needed_and_only_those_chosen():
    given = Given(PICTURES, CLASSES)
    images = ImageSet(given, images=4)
    assert given.asked == [0]
    assert images.labels.tolist() == [CLASSES[number] for number in images.chosen]
    assert repr(images) == "ImageSet of Given of 12: 4 of 12 images, 3 classes, seed 0"
    (_,) = images.batches([GREY], 4)
    assert given.asked == [0, *images.chosen]


def test_classes_are_what_a_data_set_says():
    expected = np.array(CLASSES)
    for images in (
        Given(PICTURES, CLASSES),
        Given(PICTURES, torch.tensor(CLASSES)),
        TensorDataset(TENSORS, torch.tensor(CLASSES)),
        HuggingFace(image=PICTURES, label=CLASSES),
        DataLoader(Given(PICTURES, CLASSES)),
    ):
        assert np.array_equal(ImageSet(images).source.labels, expected)
    assert ImageSet(Subset(Given(PICTURES, CLASSES), [0, 1, 2, 4])).source.labels.tolist() == [0, 1, 2, 1]
    assert ImageSet(Given(PICTURES)).labels is None and ImageSet(Given(PICTURES, ["a"] * 12)).labels is None
    assert ImageSet(TensorDataset(TENSORS, torch.zeros(12, 2))).labels is None


def test_digests_tell_images_apart():
    other = [PICTURES[1], *PICTURES[1:]]
    assert ImageSet(PICTURES).identity() == ImageSet(list(PICTURES)).identity() != ImageSet(other).identity()
    last = [*PICTURES[:-1], PICTURES[0]]
    assert ImageSet(PICTURES).numbered_in != ImageSet(last).numbered_in
    assert ImageSet(Given(PICTURES)).numbered_in != ImageSet(Given(other)).numbered_in


def test_an_item_unlike_the_first_is_named():
    small = Image.fromarray(PIXELS[0])
    mixed = Given([TENSORS[0], *TENSORS[1:5], small])
    with pytest.raises(
        BrokenImage, match=r"image number 5: it is a PIL image, and the first of them is a tensor \(1, 28"
    ):
        inputs_of = ImageSet(mixed)
        list(inputs_of.batches([GREY], 6))
    text = Given([*PICTURES[:5], "a name"])
    with pytest.raises(BrokenImage, match="image number 5: the image is a str; give PIL images"):
        list(ImageSet(text).batches([GREY], 6))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (3, "images are a folder or the name .*; got int$"),
        ([*PICTURES, "a.png"], "images are a folder .*; got a list of Image and str$"),
        ([TENSORS[0]] * 4, "list of PIL images or of files.*; got a list of Tensor$"),
        (iter(PICTURES), "and list_iterator can only be iterated; give a list"),
        (Stream(), "and Stream can only be iterated; give a list"),
        ({"train": PICTURES}, "got a dict of 'train'; try one of its values"),
        (
            Given(TENSORS.to(torch.uint8)),
            r"in the first item the image is a tensor torch.uint8 \(1, 28, 28\); give float",
        ),
        (Given(["name"] * 5), "items of Given of 5 must be images; in the first item the image is a str"),
        (Given([{"img": PICTURES[0]}] * 5), "in the first item there is no `image`, but 'img'; rename"),
        (HuggingFace(img=PICTURES), "its column 'image', and its columns are 'img'; rename"),
        (Given(PICTURES[:3]), "at least 4 images are needed; Given of 3 has 3"),
        ([], "at least 4 images are needed"),
        (DataLoader(Stream()), "the items of this one can only be iterated"),
        (DataLoader(Given(PICTURES), sampler=SubsetRandomSampler([1, 2, 3, 4])), "by a SubsetRandomSampler; give its"),
        (DataLoader(Given(PICTURES), sampler=WeightedRandomSampler([1.0] * 12, 12)), "by a WeightedRandomSampler"),
        (DataLoader(Given(PICTURES), sampler=RandomSampler(PICTURES, replacement=True)), "chosen by a RandomSampler"),
        (DataLoader(Given(PICTURES), sampler=RandomSampler(PICTURES, num_samples=5)), "chosen by a RandomSampler"),
    ],
)
def test_what_else_there_is_gets_a_sentence(images, message):
    with pytest.raises(rs.UsageError, match=message):
        rs.layer_cka("vit_mini", images)


def test_a_loader_with_batches_of_its_own_and_items_that_cannot_be_read_get_a_sentence():
    class Halves(BatchSampler):
        pass

    own = DataLoader(Given(PICTURES), batch_sampler=Halves(SequentialSampler(PICTURES), 6, False))
    with pytest.raises(rs.UsageError, match="chosen by a Halves"):
        ImageSet(own)

    class Broken(Given):
        def __getitem__(self, index):
            raise KeyError("no such row")

    with pytest.raises(rs.RepsimError, match="cannot read the first item of Broken of 12: KeyError: 'no such row'"):
        ImageSet(Broken(PICTURES))


def test_a_network_is_no_transform():
    with pytest.raises(rs.UsageError, match="from an image to a tensor, got a Network; give `network.transform`"):
        next(ImageSet("sample", images=8).batches([rs.load_model("vit_mini")], 8))
