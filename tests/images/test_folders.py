"""Which files of a folder are images, which classes they have, and which files are reported as left out."""

import json
import os
import random
import shutil
import socket
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets

import repsim as rs
from repsim.cli import main
from repsim.cli.job import about
from repsim.images import sources
from repsim.images.folders import KINDS, list_images, natural, said
from repsim.images.image_set import ImageSet
from repsim.studies.probe import linear_probes

SUFFIXES = {".png", ".jpg"}
GREY = rs.EvalTransform(input_size=(1, 28, 28), mean=(0.0,), std=(1.0,))


def touch(root, *names):
    for name in names:
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def images(root, *names):
    """Write images; each folder directly inside the root has a brightness of its own."""
    rng = np.random.default_rng(0)
    tops = sorted({Path(name).parts[0] for name in names})
    for name in names:
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.normal(60 + 130 * tops.index(Path(name).parts[0]) / len(tops), 20, (28, 28))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def listed(root):
    return list_images(Path(root), SUFFIXES)


def below(root, listing):
    return [os.path.relpath(path, root) for path in listing.paths]


@contextmanager
def a_folder():
    with tempfile.TemporaryDirectory() as folder:
        yield Path(os.path.realpath(folder))


# Order and classes


FOLDERS = ["a", "B", "b b", "b-1", "b10", "b9", "é"]
FILES = st.lists(
    st.tuples(st.sampled_from(FOLDERS), st.text(st.sampled_from("aBc019 _-é"), min_size=1, max_size=6)),
    min_size=1,
    max_size=12,
    unique_by=lambda file: str(natural(file[1])[0]),  # timm leaves the order of equal names open
)


@settings(max_examples=40, deadline=None)
@given(FILES, st.booleans())
def test_ordinary_folders_are_in_the_order_of_timm(files, flat):
    with a_folder() as root:
        touch(root, *(f"{name}.png" if flat else f"{top}/{name}.PNG" for top, name in files))
        listing = listed(root)
        expected, classes = find_images_and_targets(str(root), types=SUFFIXES)
        assert list(zip(listing.paths, listing.labels)) == [(path, -1 if flat else label) for path, label in expected]
        assert listing.classes == ([] if flat else list(classes)) and listing.left_out == {}


def test_names_that_count_alike_are_in_one_order_everywhere(tmp_path):
    names = ["01.png", "1.PNG", "1.png", "A/1.png", "a/1.png"]
    touch(tmp_path, *names)
    assert below(tmp_path, listed(tmp_path)) == names == below(tmp_path, listed(tmp_path))
    assert listed(tmp_path).classes == ["A", "a"]


@pytest.mark.parametrize("name", ["1²2.png", "٣.png", "a\nb.png", b"\xff\xfe.png", "x" * 200 + ".png", "-rf.png"])
def test_any_name_that_a_file_can_have(name, tmp_path):
    images(tmp_path, *(f"{i}.png" for i in range(4)))
    shutil.copy(tmp_path / "0.png", os.path.join(os.fsencode(tmp_path), os.fsencode(name)))
    image_set = ImageSet(tmp_path)
    assert os.fsdecode(name) in below(tmp_path, image_set.source) and not image_set.left_out
    (batch,) = image_set.batches([GREY], 5, workers=0)
    assert len(batch.positions) == 5


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), min_size=1, max_size=8))
def test_classes_are_the_folders_directly_inside_whatever_is_below(places):
    with a_folder() as root:
        touch(root, *("/".join([*place, f"{i}.png"]) for i, place in enumerate(places)))
        listing = listed(root)
        assert listing.classes == sorted({place[0] for place in places})
        assert [listing.classes[label] for label in listing.labels] == [name[0] for name in below(root, listing)]


@pytest.mark.parametrize("folders, known", [([], False), (["cat"], False), (["cat", "dog"], True)])
def test_images_beside_the_folders_of_classes_have_none(folders, known, tmp_path, vit):
    images(tmp_path, *(f"{i}.png" for i in range(4)), *(f"{name}/{i}.png" for name in folders for i in range(4)))
    image_set = ImageSet(tmp_path)
    assert len(image_set) == 4 + 4 * len(folders) and image_set.classes == (folders or None) and not image_set.left_out
    assert (image_set.labels is not None) == known
    if known:
        assert sorted(image_set.labels) == [-1] * 4 + [0] * 4 + [1] * 4
        with pytest.raises(
            rs.UsageError, match="4 of the training images of .* have negative labels; images that lie beside"
        ):
            linear_probes(vit, image_set, train=image_set, shots=1)


def test_a_folder_without_images_is_no_class(tmp_path, vit):
    images(tmp_path, *(f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(4)))
    images(tmp_path, *(f"val/{name}/{i}.png" for name in ("cat", "owl") for i in range(4)))
    touch(tmp_path, "val/dog/._1.png", "val/__MACOSX/cat/._1.png")
    val = ImageSet(tmp_path, split="val")
    assert val.classes == ["cat", "owl"] and val.left_out == {"hidden": 2, "folders_without_images": 2}
    with pytest.raises(rs.UsageError, match="'dog' is in one of them only"):
        linear_probes(vit, val, train=ImageSet(tmp_path, split="train"), shots=1)


# Files that are left out


def pipe(path):
    os.mkfifo(path)


def a_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


def link(to):
    return lambda path: path.symlink_to(to)


def file(path):
    Image.new("L", (28, 28)).save(path, format="png")


def folder(*inside):
    def make(path):
        for name in inside or ("1.png",):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            file(path / name)

    return make


def chained(path):
    path.with_name("between").symlink_to("0.png")
    path.symlink_to("between")


LEFT_OUT = {
    "hidden image": (".1.png", file, {"hidden": 1}),
    "AppleDouble": ("._0.png", file, {"hidden": 1}),
    "hidden folder": (".ipynb_checkpoints", folder("1.png", "x/2.png"), {"hidden": 1}),
    "hidden further down": ("sub/.git", folder("1.png"), {"hidden": 1, "folders_without_images": 1}),
    "hidden link": (".latest", link("/dev"), {"hidden": 1}),
    "text": ("README.txt", file, {"other_files": 1}),
    "no suffix": ("png", file, {"other_files": 1}),
    "Windows": ("Thumbs.db", file, {"other_files": 1}),
    "pipe": ("x.png", pipe, {"special_files": 1}),
    "socket": ("x.png", a_socket, {"special_files": 1}),
    "link to a device": ("x.png", link("/dev/zero"), {"special_files": 1}),
    "pipe of no image's name": ("x", pipe, {"special_files": 1}),
    "folder of an image's name": ("x.png", Path.mkdir, {"folders_without_images": 1}),
    "link to oneself": ("latest", link("."), {"duplicates_by_link": 1}),
    "link to a file here": ("x.png", link("0.png"), {"duplicates_by_link": 1}),
    "link to a link": ("x.png", chained, {"other_files": 1, "duplicates_by_link": 1}),
    "link to nothing": ("x", link("nowhere"), {"dead_links": 1}),
    "links in a circle": ("x", link("x"), {"dead_links": 1}),
    "nothing": ("x.PNG", file, {}),
    "folder of images, named as one": ("x.png", folder(), {}),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_what_is_left_out_is_counted(kind, tmp_path, monkeypatch):
    name, make, left_out = LEFT_OUT[kind]
    folder("0.png", "2.png", "3.png", "4.png")(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    make(tmp_path / name)
    image_set = ImageSet(tmp_path)
    assert len(image_set) == 4 + (not left_out) and image_set.left_out == left_out
    assert image_set.record(rs.images.image_set.Counts()).get("left_out", {}) == left_out
    if left_out:
        assert said(tmp_path, left_out) == image_set.left_out_in_words
    for i in range(len(image_set)):
        assert image_set.source.load(i).size == (28, 28)


def test_every_kind_is_said_on_one_line():
    words = said(Path("photos"), dict.fromkeys(KINDS, 1))
    assert words.startswith("left out of photos: 1 hidden, 1 file not named as an image, 1 special file, 1 duplicate")
    assert words.count(",") == len(KINDS) - 1 and "\n" not in words
    assert "2 links that lead nowhere" in said(Path("photos"), {"dead_links": 2})


def test_a_link_that_is_named_as_an_image_and_leads_nowhere_is_an_image_that_cannot_be_read(tmp_path):
    folder("0.png", "2.png", "3.png", "4.png")(tmp_path)
    (tmp_path / "1.png").symlink_to("gone/1.png")
    found = ImageSet(tmp_path)
    assert len(found) == 5 and list(found.unreadable(workers=0).values()) == [
        f"cannot read image {tmp_path}/1.png: [Errno 2] No such file or directory: '{tmp_path}/1.png'"
    ]


def test_what_has_become_a_pipe_is_not_opened(tmp_path, monkeypatch):
    folder("0.png", "1.png", "2.png", "3.png")(tmp_path)
    image_set = ImageSet(tmp_path)
    (tmp_path / "2.png").unlink()
    os.mkfifo(tmp_path / "2.png")
    monkeypatch.setattr(sources, "read", lambda path: None if not path.endswith("2.png") else pytest.fail("opened"))
    with pytest.raises(OSError, match="no longer a regular file"):
        [image_set.source.load(i) for i in range(4)]


@pytest.mark.parametrize("given", [".cache/imgs", ".cache/.imgs", "link"])
def test_the_roots_own_name_does_not_matter(given, tmp_path):
    folder("1.png", "2.png", "3.png", "4.png")(tmp_path / ".cache" / "imgs")
    (tmp_path / ".cache" / ".imgs").symlink_to("imgs")
    (tmp_path / "link").symlink_to(".cache/imgs")
    image_set = ImageSet(tmp_path / given)
    assert len(image_set) == 4 and not image_set.left_out
    assert all(path.startswith(str(tmp_path / given)) for path in image_set.source.paths)
    assert len(ImageSet(tmp_path, split=given)) == 4


@pytest.fixture
def closed(monkeypatch):
    """Folders called `closed` cannot be read, even by users who may read every file; folders called `gone` fail."""
    scandir = os.scandir

    def scan(path):
        for name, error in (("closed", PermissionError(13, "Permission denied")), ("gone", OSError(116, "Stale file"))):
            if os.path.basename(path) == name:
                raise error
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)


def test_folders_that_may_not_be_read(tmp_path, closed):
    for name in ("cat", "dog", "closed", "cat/closed"):
        folder("1.png", "2.png")(tmp_path / name)
    found = ImageSet(tmp_path)
    assert len(found) == 4 and found.classes == ["cat", "dog"] and found.left_out == {"closed_folders": 2}
    assert found.left_out_in_words.endswith("2 folders that may not be read")
    with pytest.raises(rs.UsageError, match=f"cannot read the folder {tmp_path}/closed: .*Permission denied"):
        ImageSet(tmp_path / "closed")


def test_a_folder_that_fails_is_named(tmp_path, closed):
    folder("1.png", "2.png")(tmp_path / "cat" / "gone")
    with pytest.raises(rs.RepsimError, match=f"cannot read the folder {tmp_path}/cat/gone: .*Stale file"):
        ImageSet(tmp_path)


def test_too_few_images_are_told_with_what_was_left_out(tmp_path):
    folder(".0.png", ".1.png")(tmp_path)
    with pytest.raises(rs.UsageError, match="there are no images in .*; left out of .*: 2 hidden; it may hold"):
        ImageSet(tmp_path)
    folder("2.png")(tmp_path)
    with pytest.raises(rs.UsageError, match="at least 4 images are needed; .* has 1; left out of .*: 2 hidden"):
        ImageSet(tmp_path)


# Links


def test_an_image_is_where_it_really_lies_and_otherwise_where_links_find_it_first(tmp_path):
    root, store = tmp_path / "root", tmp_path / "store"
    folder("1.png", "cats/2.png", "cats/3.png", "more/4.png")(store)
    folder("dog/5.png")(root)
    links = {"best/5.png": "../dog/5.png", "cat": "../store/cats", "ant/2.png": "../../store/cats/2.png"}
    links |= {"dog/all": "../../store", "dog/6.png": "../../store/.hidden", "owl": "dog"}
    shutil.copy(store / "1.png", store / ".hidden")  # the name by which it is found is not hidden
    for name, to in links.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(to)
    listing = listed(root)
    assert below(root, listing) == [
        *("ant/2.png", "cat/3.png", "dog/5.png", "dog/6.png", "dog/all/1.png", "dog/all/more/4.png")
    ]
    assert listing.classes == ["ant", "cat", "dog"]
    # The duplicates are best/5.png, owl, cats/2.png of the store, and cats of the store when it is met again.
    assert listing.left_out == {"hidden": 1, "duplicates_by_link": 4, "folders_without_images": 1}


PLACES = ["in", "in/a", "in/a/c", "in/b", "out", "out/d", "in/.h", "out/x.png"]
TREES = st.tuples(
    st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(["1.png", "2.PNG", "3.txt", ".4.png"])), max_size=10),
    st.lists(
        st.tuples(
            st.sampled_from(PLACES),
            st.sampled_from(["l", "m", "n.png", ".o", "1.png", "z"]),
            st.sampled_from([*PLACES, ".", "in/l", "in/a/m", "in/1.png", "out/1.png", "out/d/3.txt", "in/.h/1.png"]),
            st.booleans(),
        ),
        max_size=8,
    ),
)


def make_tree(root, files, links):
    for place in PLACES:
        (root / place).mkdir(parents=True)
    touch(root, *(f"{place}/{name}" for place, name in files))
    for place, name, to, relative in links:
        path = root / place / name
        if not path.is_symlink() and not path.exists():
            path.symlink_to(os.path.relpath(root / to, path.parent) if relative else root / to)


def reachable(root):
    """Find the real paths of all images by following every link of every folder."""
    folders, real_paths, waiting = set(), set(), [os.path.realpath(root)]
    while waiting:
        here = waiting.pop()
        if here in folders:
            continue
        folders.add(here)
        for name in os.listdir(here):
            path = os.path.join(here, name)
            if not name.startswith(".") and os.path.isdir(path):
                waiting.append(os.path.realpath(path))
            elif not name.startswith(".") and name.lower().endswith(".png"):
                real_paths.add(os.path.realpath(path))
    return real_paths


@settings(max_examples=80, deadline=None)
@given(TREES, st.randoms(use_true_random=False))
def test_every_image_that_can_be_reached_counts_once(tree, rng):
    with a_folder() as root:
        make_tree(root, *tree)
        listing = listed(root / "in")
        real = [os.path.realpath(path) for path in listing.paths]
        assert len(set(real)) == len(real) and set(real) == reachable(root / "in")
        assert not any(part.startswith(".") for name in below(root / "in", listing) for part in Path(name).parts)
        assert listed_in_another_order(root / "in", rng) == (listing.paths, listing.classes, listing.left_out)


def listed_in_another_order(root, rng: random.Random):
    """List a folder as if the file system handed out names in another order."""
    scandir = os.scandir

    @contextmanager
    def shuffled(path):
        with scandir(path) as entries:
            entries = list(entries)
        rng.shuffle(entries)
        yield entries

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "scandir", shuffled)
        listing = listed(root)
    return listing.paths, listing.classes, listing.left_out


# Commands


def test_commands_say_once_what_was_left_out_of_each_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        images(split, *(f"{name}/{sub}/{i}.png" for name in ("cat", "dog") for sub in ("in", "out") for i in range(4)))
    touch(tmp_path, "train/.DS_Store", "val/cat/README.txt", "val/cat/.x.png")
    options = ["--no-tokens", "--shots", 5, "--seeds", 1, "--neighbours", 0, "--workers", 0, "--layers", "layer1.0"]
    result = CliRunner().invoke(
        main, [*map(str, ["probe", "--model", "resnet_mini", "--data", ".", *options]), "--out=o"]
    )
    assert result.exit_code == 0, result.output
    assert (pd.read_csv("o/probe_summary.csv").accuracy == 1).all()
    lines = [line for line in result.output.splitlines() if "left out of" in line]
    assert lines == ["left out of val: 1 hidden, 1 file not named as an image", "left out of train: 1 hidden"]
    record = json.loads(Path("o/run.json").read_text())
    assert record["images"]["left_out"] == {"hidden": 1, "other_files": 1} and set(lines) <= set(record["notices"])
    assert record["protocol"]["training_images"]["left_out"] == {"hidden": 1}


def test_what_appears_beside_the_images_does_not_keep_a_run_from_going_on(tmp_path, vit):
    folder("0.png", "1.png", "2.png", "3.png")(tmp_path)

    def now():
        with click.Context(main):
            return about(SimpleNamespace(command="cka"), [vit], ImageSet(tmp_path))

    before = now()
    touch(tmp_path, ".DS_Store", "notes.txt")
    assert now() == before
    folder("5.png")(tmp_path)
    assert now() != before
