"""Features in files are the activations of the images, also after a kill, or from several processes."""

import filecmp
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from conftest import FAMILIES, noise
from PIL import Image
from torch import nn

import repsim as rs
from repsim.cli import main
from repsim.features.arrays import Known
from repsim.passes.study import check_study
from repsim.passes.sweep import inputs_of
from repsim.studies.extract import Extraction, File, Writing, named

IMAGES = rs.ImageSet("sample", images=54)
FEW = [
    "--model",
    "vit_micro",
    "--model",
    "vit_mini",
    "--layers",
    "blocks.[01]|stem",
    "--images",
    "54",
    "--batch-size",
    "8",
]


def repsim(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def same_files(one: Path, other: Path) -> None:
    """Check that features and their index are the same to the byte."""
    assert files_of(one) == files_of(other)
    arrays = [name for name in files_of(one) if name != "run.json"]
    assert len(arrays) > 1
    assert filecmp.cmpfiles(one, other, arrays, shallow=False) == (arrays, [], [])


def activations(network, images, layer):
    with rs.capture(network, layer) as seen, torch.no_grad():
        (batch,) = inputs_of(images, [network], len(images))
        network.module(batch.inputs[network.transform])
    return seen[layer].numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty images of three classes, two of which have their images one folder deeper; three images are broken."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("images")
    for number in range(20):
        path = root / ("cat", "dog/big", "Kuh/böse")[number % 3] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (28, 28), dtype=np.uint8)).save(path)
        if number in (3, 8, 19):
            path.write_bytes(b"no image")
    return root


# The content of the files


def test_rows_are_activations_in_the_order_of_the_choice(vit, tmp_path):
    features = rs.extract_features(vit, IMAGES, tmp_path, layers=["blocks.3", "norm"], batch_size=16)["vit_mini"]
    assert files_of(tmp_path) == [
        "features.json",
        "layers/vit_mini--blocks.3.npy",
        "layers/vit_mini--norm.npy",
        "run.json",
    ]
    array = np.load(tmp_path / "layers/vit_mini--blocks.3.npy")  # as any other program reads it
    assert array.dtype == np.float32 and np.allclose(array, activations(vit, IMAGES, "blocks.3"), atol=1e-5)
    assert features.ids == tuple(IMAGES.ids) and isinstance(features.layers["norm"], np.memmap)
    index = json.loads((tmp_path / "features.json").read_text())
    assert index["images"]["labels"] == IMAGES.labels.tolist() and index["images"]["data"] == "sample"
    (network,) = index["networks"]
    assert network["weights_sha256"] == vit.weights_sha256
    assert [(layer["layer"], layer["shape"], layer["tokens"]) for layer in network["layers"]] == [
        ("blocks.3", [54, 50, 96], "all"), ("norm", [54, 50, 96], "all")
    ]  # fmt: skip
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["images"]["used"] == 54 and record["protocol"]["layers"] == ["blocks.3", "norm"]


@pytest.mark.parametrize("name", ["vit_registers", "deit_distilled", "swin", "resnet18", "twins"])
def test_what_is_stored_is_read_as_the_layer_is(name):
    network = FAMILIES[name].load()
    layers = rs.find_layers(network, "blocks")
    with rs.capture(network, layers) as seen, torch.no_grad():
        network.module(noise(network, 2))
    chosen = 0
    for layer in layers:
        x = seen[layer.name]
        for tokens in ("all", "cls", "spatial", "pooled"):
            try:
                expected = layer.select(x, tokens)
            except rs.UsageError:
                continue
            stored = layer.selected(tokens)
            assert stored.shape == expected.shape[1:]
            assert torch.equal(layer.selected("all").select(x, tokens), expected)
            known = Known.of(json.loads(json.dumps(Known("", 0.0, tokens, stored).record())), stored.shape).reading
            assert known.grid == stored.grid and known.order == stored.order and known.cls == stored.cls
            if tokens == "spatial":
                pooled = known.select(expected, "pooled")
                assert torch.allclose(pooled, layer.select(x, "pooled"), atol=1e-5)
                chosen += 1
    assert chosen


def test_float16_is_rounded_and_says_so(vit, tmp_path):
    with pytest.warns(rs.Notice, match="rounded to float16"):
        half = rs.extract_features(vit, IMAGES, tmp_path, layers=["blocks.3"], dtype="float16")["vit_mini"]
    whole = activations(vit, IMAGES, "blocks.3")
    assert half.layers["blocks.3"].dtype == np.float16
    assert np.allclose(half.layers["blocks.3"], whole, rtol=1e-3, atol=1e-4)
    assert not np.allclose(half.layers["blocks.3"], whole, rtol=1e-5, atol=1e-5)
    with pytest.warns(rs.Notice, match="'vit_mini' are rounded to float16: about three digits .all layers"):
        rs.layer_cka(half, IMAGES, batch_size=16)


class Large(nn.Module):
    """A network whose second part makes numbers that float16 does not hold."""

    def __init__(self, factor):
        super().__init__()
        self.first, self.second, self.factor = nn.Flatten(), nn.Linear(784, 4), factor

    def forward(self, x):
        return self.second(self.first(x)) * self.factor

    @staticmethod
    def network(value):
        module = Large(1.0)
        with torch.no_grad():
            module.second.bias.fill_(value)
        return rs.Network(module, "large")


def test_what_float16_does_not_hold_is_refused(tmp_path):
    images = torch.rand(12, 1, 28, 28)
    with pytest.raises(rs.RepsimError, match="float16 goes to 6.55e.04, and features of large, layer 'second', to 7e"):
        rs.extract_features(Large.network(7e4), images, tmp_path, layers=["second"], dtype="float16")
    assert files_of(tmp_path) == []  # nothing is left
    with pytest.raises(rs.RepsimError, match="activations of large, layer 'second', are NaN or infinite in batch 0"):
        rs.extract_features(Large.network(float("nan")), images, tmp_path, layers=["second"])
    assert (
        rs.extract_features(Large.network(7e4), images, tmp_path, layers=["second"])["large"].layers["second"].min()
        > 6e4
    )


def test_names_that_no_disk_takes():
    taken = set()
    names = [named(*pair, taken) for pair in (("a/b:c", "x y"), ("a-b-c", "x-y"), ("A-b-c", "X-y"), ("é", "ü" * 300))]
    assert names[:3] == ["layers/a-b-c--x-y.npy", "layers/a-b-c--x-y~2.npy", "layers/A-b-c--X-y~3.npy"]
    assert names[3].isascii() and len(names[3]) < 230


def test_two_networks_of_one_name(vit, tmp_path):
    features = rs.extract_features([vit, vit], IMAGES, tmp_path, layers=["blocks.0"])
    assert list(features) == ["vit_mini#1", "vit_mini#2"] and len(files_of(tmp_path / "layers")) == 2
    assert rs.load_features(tmp_path, model="vit_mini#2", name="mine").name == "mine"
    with pytest.raises(rs.UsageError, match="holds features of vit_mini#1, vit_mini#2; choose one"):
        rs.load_features(tmp_path)
    with pytest.raises(rs.UsageError, match="unknown network in .* 'vit'"):
        rs.load_features(tmp_path, model="vit")


# The contract


class Shown(Extraction):
    """The study, with the content of its files as its result."""

    def result(self, counts):
        self.writing.close()
        file = self.writing.files[0]
        path = self.writing.folder / "rows-0.filling"
        rows = np.memmap(
            path, file.dtype, "r", len(file.header(self.writing.images)), (self.writing.images, *file.shape)
        )
        table = pd.DataFrame({"position": self.sums.values.numpy()})
        return rs.Result("features", table, arrays={"rows": {"rows": np.array(rows)}})


def test_it_writes_the_same_in_all_ways(vit, tmp_path):
    (layer,) = rs.find_layers(vit, ["blocks.2"])
    images = IMAGES.only(np.arange(48))  # whole batches
    writing = Writing(tmp_path, tmp_path / "rows", [File(vit, layer, layer.shape, np.dtype("<f4"), "layers/x.npy")], 48)
    writing.begin(again=False)
    result = check_study(Shown([vit], [[layer]], writing), images)
    assert result.table["position"].tolist() == list(range(48))
    assert np.allclose(result.arrays["rows"]["rows"], activations(vit, images, "blocks.2"), atol=1e-5)


# Runs that are stopped, shared, or given broken images


KILL = """
import os
from repsim.studies.extract import Extraction
def killed(self, seen, batch, update=Extraction.update, batches=[], end=os._exit):
    update(self, seen, batch)
    batches.append(batch.number)
    if len(batches) == 3:
        end(9)
Extraction.update = killed
"""
KILL_WHILE_PLACING = """
import os
from repsim.studies import extract
def killed(part, path, place=extract.place, placed=[], end=os._exit):
    placed.append(place(part, path))
    if len(placed) == 3:
        end(9)
extract.place = killed
"""
KILL_AFTER_INDEX = """
import os
from repsim.studies import extract
extract.save_text = lambda *given, save=extract.save_text, end=os._exit: (save(*given), end(9))
"""
COUNT = """
from repsim.studies.extract import Extraction
def counted(self, seen, batch, update=Extraction.update):
    update(self, seen, batch)
    with open({file!r}, "a") as file:
        file.write(str(batch.number) + " ")
Extraction.update = counted
"""


def test_killed_and_resumed_it_writes_the_same_bytes(server, tmp_path):
    from test_processes import run

    assert run(server, 1, ["extract", *FEW, "--quiet", "--out", str(tmp_path / "whole")]) == [0]
    arguments = ["extract", *FEW, "--quiet", "--checkpoint-every", "0", "--out", str(tmp_path / "killed")]
    assert run(server, 1, arguments, KILL) == [9]
    assert not any(name.startswith(("layers", "features")) for name in files_of(tmp_path / "killed"))
    under_way = tmp_path / "killed" / ".repsim-resume"
    assert {"rows-0.filling", "about.json", "pass-0-of-1-0.pt"} <= set(os.listdir(under_way))
    assert run(server, 1, arguments, COUNT.format(file=str(tmp_path / "batches"))) == [0]
    assert (tmp_path / "batches").read_text().split() == [
        "0",
        "2",
        "3",
        "4",
        "5",
        "6",
    ]  # batch 0 runs again for its check
    same_files(tmp_path / "whole", tmp_path / "killed")


def test_killed_while_files_are_put_in_place(server, tmp_path):
    from test_processes import run

    assert run(server, 1, ["extract", *FEW, "--quiet", "--out", str(tmp_path / "whole")]) == [0]
    arguments = ["extract", *FEW, "--quiet", "--out", str(tmp_path / "killed")]
    assert run(server, 1, arguments, KILL_WHILE_PLACING) == [9]
    assert len(os.listdir(tmp_path / "killed" / "layers")) == 3 and not (tmp_path / "killed/features.json").exists()
    assert run(server, 1, arguments, KILL_AFTER_INDEX) == [9]  # with an index, without a record
    assert run(server, 1, arguments) == [0]
    same_files(tmp_path / "whole", tmp_path / "killed")


def test_rows_that_are_gone_are_not_taken_for_written(server, tmp_path):
    from test_processes import run

    arguments = ["extract", *FEW, "--quiet", "--checkpoint-every", "0", "--out", str(tmp_path / "out")]
    assert run(server, 1, arguments, KILL) == [9]
    (tmp_path / "out" / ".repsim-resume" / "rows-1.filling").unlink()
    found = repsim(*arguments)
    assert found.exit_code == 1 and "are gone or have changed; start over with --fresh" in found.output
    assert repsim(*arguments, "--fresh").exit_code == 0


def test_two_processes_write_the_same_bytes(server, tmp_path):
    from test_processes import run

    for count in (1, 2):
        out = ["--out", str(tmp_path / str(count)), "--quiet"]
        assert run(server, count, ["extract", *FEW, *out]) == [0] * count
    same_files(tmp_path / "1", tmp_path / "2")


@pytest.mark.parametrize("count", [1, 2])
def test_broken_images_have_no_rows(count, server, folder, tmp_path):
    from test_processes import run

    arguments = ["extract", "--model", "vit_mini", "--layers", "blocks.2", "--data", str(folder), "--batch-size", "6"]
    if count == 1:
        found = repsim(*arguments, "--out", tmp_path / "refused")
        assert found.exit_code == 1 and "leave such images out with --skip-broken" in found.output
    arguments += ["--skip-broken", "--workers", "0", "--quiet", "--out", str(tmp_path / "out")]
    assert run(server, count, arguments) == [0] * count
    features = rs.load_features(tmp_path / "out")
    assert len(features) == 17 and not set(features.ids) & {"cat/03.jpg", "Kuh/böse/08.jpg", "dog/big/19.jpg"}
    assert (tmp_path / "out/layers/vit_mini--blocks.2.npy").stat().st_size == 128 + 17 * 50 * 96 * 4
    images = rs.ImageSet(folder)
    good = images.only(np.flatnonzero([name in features.ids for name in images.ids]))
    assert list(features.ids) == good.ids
    expected = activations(rs.load_model("vit_mini"), good, "blocks.2")
    assert np.allclose(features.layers["blocks.2"], expected, atol=1e-5)
    index = json.loads((tmp_path / "out" / "features.json").read_text())["images"]
    assert index["labels"] == good.labels.tolist() and index["classes"] == ["cat", "dog", "Kuh"]


# The disk


def test_a_disk_without_room_is_refused_in_one_line(vit, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 2**20))
    with pytest.raises(rs.UsageError, match=r"take 3 MiB, and 1 MiB are free on the disk of .*; take fewer layers"):
        rs.extract_features(vit, IMAGES, tmp_path / "a", layers=["blocks.0", "blocks.1", "blocks.2"])
    result = repsim("extract", *FEW, "--out", tmp_path / "b")
    assert result.exit_code == 2 and len([line for line in result.output.splitlines() if "Error" in line]) == 1
    assert files_of(tmp_path) == []


def test_a_disk_that_fills_up_later(vit, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(rs.RepsimError, match="cannot write .*: the disk of .* is full .*; make room"):
        rs.extract_features(vit, IMAGES, tmp_path / "a", layers=["blocks.0"])
    assert files_of(tmp_path) == []


def test_what_its_user_has_there_stays(vit, tmp_path):
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / "mine.npy").write_text("mine")
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(rs.UsageError, match="holds layers already; move it away"):
        rs.extract_features(vit, IMAGES, tmp_path, layers=["blocks.0"])
    found = repsim("extract", *FEW, "--out", tmp_path)
    assert found.exit_code == 2 and "holds layers, which repsim does not know as its own" in found.output
    assert files_of(tmp_path) == ["layers/mine.npy", "note.txt"]
    (tmp_path / "layers").rename(tmp_path / "others")
    rs.extract_features(vit, IMAGES, tmp_path, layers=["blocks.0"])
    with pytest.raises(rs.UsageError, match="holds features.json already"):
        rs.extract_features(vit, IMAGES, tmp_path, layers=["blocks.0"])
    assert {"others/mine.npy", "note.txt", "features.json"} < set(files_of(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(vit, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(rs.RepsimError, match="cannot write into"):
        rs.extract_features(vit, IMAGES, tmp_path / "out", layers=["blocks.0"])


# The commands


def test_commands_take_what_the_command_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = repsim("extract", *FEW)
    assert found.exit_code == 0, found.output
    assert "features: " in found.output and "free on the disk of" in found.output
    out = Path("runs/extract-vit_micro-vit_mini")
    listed = json.loads((out / "run.json").read_text())["files"]
    assert sorted(listed) == files_of(out) and len(listed) == 8
    assert repsim("extract", *FEW).exit_code == 0  # the same again
    assert repsim("extract", *FEW, "--redraw", out).exit_code == 2
    few = ["--images", "54", "--batch-size", "16", "--layers", "blocks.[01]|stem"]
    assert repsim("cka", "--model-a", "vit_mini", "--features", f"mine={out}:vit_mini", *few).exit_code == 0
    table = pd.read_csv("runs/cka-vit_mini-mine/cka.csv")
    assert set(table.model_b) == {"vit_mini", "mine"}
    own = table.query("model_a == 'vit_mini' and model_b == 'mine' and layer_a == layer_b")["cka"]
    assert len(own) == 3 and np.allclose(own, 1, atol=1e-6)
    assert repsim("cka", "--features", f"a={out}:vit_mini", "--features", f"b={out}:vit_micro", *few).exit_code == 0
    assert json.loads(Path("runs/cka-a-b/run.json").read_text())["images"]["data"] == "features"
    assert repsim("cka", "--matched", "--model-a", "vit_mini", "--features", f"vit_mini={out}", *few).exit_code == 0
    for arguments, says in (
        (["cka", "--features", "x"], "given as --features NAME=PATH, got 'x'"),
        (["cka", "--features", f"x={out}"], "holds features of vit_micro, vit_mini; choose one"),
        (["cka", "--features", "x=nowhere.npy"], "there are no features at nowhere.npy"),
        (["cka", "--model-b", "vit_mini", "--features", f"x={out}:vit_mini"], "name the network with --model-a"),
        (["cka", "--features", f"x={out}:vit_mini", "--split", "train"], "--split is for images"),
        (
            ["cka", "--model-a", "vit_mini", "--model-b", "vit_micro", "--features", f"x={out}:vit_mini"],
            "2 stand for B",
        ),
    ):
        found = repsim(*arguments)
        assert found.exit_code == 2 and says in found.output, found.output


def test_probes_of_features_of_two_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split, images in (("train", 300), ("test", 100)):
        given = [
            "--model",
            "vit_mini",
            "--layers",
            "blocks.11",
            "--tokens",
            "cls",
            "--images",
            images,
            "--split",
            split,
        ]
        assert repsim("extract", *given, "--out", split).exit_code == 0
    few = ["--images", "100", "--train-images", "300", "--shots", "3", "--seeds", "1", "--neighbours", "40"]
    result = repsim("probe", "--features", "mine=test", "--features", "mine=train", *few)
    assert result.exit_code == 0, result.output
    table = pd.read_csv("runs/probe-mine/probe_summary.csv")
    assert list(table.model) == ["mine"] and list(table.aggregation) == ["cls"]
    assert repsim("probe", "--model", "vit_mini", "--layers", "blocks.11", "--no-tokens", *few).exit_code == 0
    expected = pd.read_csv("runs/probe-vit_mini/probe_summary.csv").query("aggregation == 'cls'")
    assert table.accuracy.item() == pytest.approx(expected.accuracy.item(), abs=1e-6)


def test_other_features_are_another_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        np.save("mine.npy", np.random.default_rng(number).normal(size=(40, 5)))
        assert repsim("cka", "--features", "mine=mine.npy", "--batch-size", "8", "--images", "40").exit_code == 0
    assert len(os.listdir("runs")) == 2
