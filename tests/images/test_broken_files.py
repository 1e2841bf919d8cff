"""Image files of many kinds are read as they are meant to be seen, or named in the error."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import repsim as rs
from repsim.images.image_set import Counts, ImageSet

RED = (250, 10, 20)


def picture(mode="RGB", size=(20, 10), colour=RED):
    return Image.new(mode, size, colour)


def truncated(path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1500])


def sixteen_bits(path):
    Image.fromarray(np.full((10, 20), 40_000, np.uint16)).save(path)


def palette(path):
    image = picture().quantize(4)
    image.save(path, transparency=bytes([255, 0, 255, 255]))


def animated(path):
    picture().save(path, save_all=True, append_images=[picture(colour=(0, 0, 255))])


def rotated(path):
    """Write an image of red above blue, stored on its side."""
    image = Image.new("RGB", (10, 20), (0, 0, 255))
    image.paste(RED, (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.rotate(90, expand=True).save(path, exif=exif, quality=95)


READ = {
    "cmyk.jpg": (lambda path: picture().convert("CMYK").save(path, quality=100), RED),
    "sixteen.png": (sixteen_bits, (156, 156, 156)),
    "palette.png": (palette, RED),
    "animated.gif": (animated, RED),
    "one.png": (lambda path: picture(size=(1, 1)).save(path), RED),
    "long.png": (lambda path: picture(size=(20_000, 10)).save(path), RED),
    "rotated.jpg": (rotated, None),
}
BROKEN = {
    "truncated.png": truncated,
    "empty.jpg": lambda path: path.touch(),
    "text.jpg": lambda path: path.write_text("this is no image"),
    "float.tiff": lambda path: Image.fromarray(np.ones((10, 20), np.float32)).save(path),
    "forbidden.jpg": lambda path: picture().save(path),
}


def to_tensor(image):
    return torch.from_numpy(np.array(image.convert("RGB").resize((8, 8)))).permute(2, 0, 1).float()


@pytest.fixture
def forbidden(monkeypatch):
    """`forbidden.jpg` cannot be opened, even by users who may read every file."""
    from repsim.images import sources

    def open_(file):
        if str(file).endswith("forbidden.jpg"):
            raise PermissionError(13, "Permission denied", str(file))
        return Image.open(file)

    monkeypatch.setattr(sources, "Image", SimpleNamespace(**{**vars(Image), "open": open_}))


def filled(folder, name, make):
    for i in range(4):
        picture().save(folder / f"{i}.png")
    make(folder / name)
    return ImageSet(folder)


@pytest.mark.parametrize("name", READ)
def test_kinds_that_are_read(name, tmp_path):
    make, colour = READ[name]
    (batch,) = filled(tmp_path, name, make).batches([to_tensor], 5, workers=0)
    images = ImageSet(tmp_path)
    position = [os.path.basename(images.source.paths[i]) for i in images.chosen].index(name)
    seen = batch.inputs[to_tensor][batch.positions.tolist().index(position)]
    if colour is None:  # rotated: red above blue
        assert seen[0, 1].mean() > 200 > 50 > seen[0, -2].mean() and seen[2, -2].mean() > 200
    else:
        assert (seen - torch.tensor(colour)[:, None, None]).abs().max() <= 6


@pytest.mark.parametrize("name", BROKEN)
def test_kinds_that_are_named(name, tmp_path, forbidden):
    images = filled(tmp_path, name, BROKEN[name])
    with pytest.raises(rs.images.image_set.BrokenImage, match=f"cannot read image .*{name}: .+--skip-broken"):
        list(images.batches([to_tensor], 4, workers=0))
    counts = Counts()
    (batch,) = images.batches([to_tensor], 4, workers=0, skip_broken=True, counts=counts)
    assert len(batch.positions) == 4 and counts.record()["broken_count"] == 1 and name in counts.broken[0]


def test_a_directory_of_an_images_name(tmp_path):
    (tmp_path / "x.jpg").mkdir()
    images = filled(tmp_path, "y.png", lambda path: picture().save(path))
    assert len(images) == 5 and all(path.endswith(".png") for path in images.source.paths)
