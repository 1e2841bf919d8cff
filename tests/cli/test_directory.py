"""Without `--out` every run has a directory of its own, and no run silently takes the directory of another."""

import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import repsim as rs
from repsim.cli import main
from repsim.cli.directory import LONGEST, SETTINGS, digest, holder, own_directory
from repsim.errors import Stopped
from repsim.passes.resume import FOLDER, Resume
from repsim.tables import RECORD

A, B = digest({"seed": 0}), digest({"seed": 1})
SETUPS = st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.text(max_size=3) | st.booleans())


def finish(directory: Path, setup: str) -> None:
    """Write the record that a run of this set-up leaves."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / RECORD).write_text(json.dumps({SETTINGS: setup}))


@given(SETUPS, SETUPS)
def test_digests_tell_set_ups_apart(one, other):
    assert (digest(one) == digest(other)) == (json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True))
    assert digest(json.loads(json.dumps(one))) == digest(one)
    assert digest({"layers": ("a", "b")}) == digest({"layers": ["a", "b"]})  # as they are read back


@settings(max_examples=50, deadline=None)
@given(runs=st.lists(st.tuples(st.sampled_from(["cka-a", "cka-b", "cka-a-b"]), st.integers(0, 5)), max_size=12))
def test_whatever_runs_there_were_each_finds_its_own(runs, tmp_path_factory):
    root, places = tmp_path_factory.mktemp("runs"), {}
    for name, seed in runs:
        place = own_directory(name, digest({"name": name, "seed": seed}), root)
        assert places.setdefault((name, seed), place) == place
        if sum(taken == name for taken, _ in places) == 1:
            assert place == root / name
        finish(place, digest({"name": name, "seed": seed}))
    assert len(set(places.values())) == len(places)


def test_what_is_not_known_to_be_its_own_is_left_alone(tmp_path):
    for number, content in enumerate(["{}", "{", "[]", json.dumps({"command": "of an older version"})]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / RECORD).write_text(content)
        assert own_directory(str(number), A, tmp_path) == tmp_path / f"{number}-{A[:8]}"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    assert own_directory("notes", A, tmp_path) == tmp_path / f"notes-{A[:8]}"
    (tmp_path / "empty").mkdir()
    assert own_directory("empty", A, tmp_path) == tmp_path / "empty"


def test_nothing_is_free(tmp_path):
    finish(tmp_path / "x", B)
    finish(tmp_path / f"x-{A[:8]}", B)
    with pytest.raises(rs.UsageError, match=r"hold files of other runs; choose a directory with --out"):
        own_directory("x", A, tmp_path)


def test_sums_belong_to_a_run_and_so_does_a_directory_in_which_one_is_at_work(tmp_path):
    run = Resume(tmp_path / "x" / FOLDER, {"seed": 0}, settings=A)
    assert holder(tmp_path / "x") == A and own_directory("x", B, tmp_path) == tmp_path / f"x-{B[:8]}"
    run.release()
    assert not (tmp_path / "x").exists()  # the run left before it had written anything
    run = Resume(tmp_path / "x" / FOLDER, {"seed": 0}, settings=A)
    (run.folder / "pass-0-of-1-0.pt").write_bytes(b"sums")
    run.release()
    assert holder(tmp_path / "x") == A and own_directory("x", A, tmp_path) == tmp_path / "x"
    Resume(tmp_path / "x" / FOLDER, {"seed": 0}, settings=A).finish()
    assert holder(tmp_path / "x") is None


@pytest.mark.parametrize("name", ["x" * 300, "cka-" + "é" * 150, "cka-net@\udcff"])
def test_names_are_no_longer_than_file_systems_take(tmp_path, name):
    place = own_directory(name, A, tmp_path)
    finish(place, A)
    assert len(os.fsencode(place.name)) <= LONGEST + 9 and own_directory(name, A, tmp_path) == place
    assert own_directory(name, B, tmp_path) != place


def repsim(*arguments) -> None:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


@pytest.fixture
def somewhere(tmp_path, monkeypatch) -> Path:
    """A folder with two of each thing whose names may coincide: weights, networks and images."""
    monkeypatch.chdir(tmp_path)
    for number, folder in enumerate(("one", "two")):
        torch.manual_seed(number)
        network = timm.create_model("test_resnet", num_classes=5)
        (tmp_path / folder / "net").mkdir(parents=True)
        torch.save(network.state_dict(), tmp_path / folder / "best.pt")
        torch.save(network.state_dict(), tmp_path / folder / "net" / "pytorch_model.bin")
        config = {"architecture": "test_resnet", "num_classes": 5, "pretrained_cfg": {"input_size": [3, 32, 32]}}
        (tmp_path / folder / "net" / "config.json").write_text(json.dumps(config))
        (tmp_path / folder / "images").mkdir()
        for i in range(16):
            pixels = np.random.default_rng(16 * number + i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / "images" / f"{i}.png")
    return tmp_path


FILE = ["--model-a", "test_resnet", "--arg-a", "num_classes=5", "--weights-a"]
APART = {
    "weights of one file name": [[*FILE, "one/best.pt"], [*FILE, "two/best.pt"]],
    "networks of one last name": [["--model-a", "local-dir:one/net"], ["--model-a", "local-dir:two/net"]],
    "arguments": [["--model-a", "vit_tiny_patch16_224", "--weights-a", "random", "--arg-a", "img_size=32",
                   "--arg-a", f"depth={depth}"] for depth in (1, 2)],
    "seeds": [["--model-a", "vit_mini", "--weights-a", "random", "--seed", seed] for seed in (0, 1)],
    "images": [["--data", "one/images"], ["--data", "two/images"], ["--data", "one/images", "--images", "12"]],
    "settings": [[], ["--layers", "blocks.[12]"], ["--tokens", "pooled"], ["--tokens", "spatial"],
                 ["--precision", "bf16"], ["--batch-size", "4"], ["--repeats", "2"], ["--split", "train"]],
}  # fmt: skip


@pytest.mark.parametrize("kind", APART)
def test_what_is_apart_lies_apart_and_is_found_again(kind, somewhere):
    few = ["cka", "--quiet", "--images", "8", "--batch-size", "8"]
    if kind not in ("images", "settings", "seeds"):
        few += ["--data", "noise"]
    commands = [[*few, *call, *([] if "--model-a" in call else ["--model-a", "vit_mini"])] for call in APART[kind]]

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in Path("runs").glob("*/*") if path.suffix in (".csv", ".json")}

    for number, command in enumerate(commands, start=1):
        before = files()
        repsim(*command)
        assert before.items() < files().items() and len(list(Path("runs").iterdir())) == number
    assert sum("-" not in path.name.removeprefix("cka-").replace("-random", "").replace("local-dir-", "")
               for path in Path("runs").iterdir()) == 1  # fmt: skip
    before, written = files(), {path: path.stat().st_mtime_ns for path in files()}
    for command in (commands[-1], commands[0]):  # each runs again in its own directory
        repsim(*command)
    assert files().keys() == before.keys() and len(list(Path("runs").iterdir())) == len(commands)
    changed = {path.parent for path in before if path.name == RECORD and written[path] != path.stat().st_mtime_ns}
    assert len(changed) == 2


def test_a_stopped_run_goes_on_in_its_own_directory(somewhere, monkeypatch):
    def stop(self, batch, summing, counts, gave):
        self._save(summing, counts, done=False)
        raise Stopped("stopped")

    few = ["cka", "--model-a", "vit_mini", "--images", "32", "--batch-size", "8", "--quiet"]
    monkeypatch.setattr(Resume, "after", stop)
    for seed in ("0", "1"):
        assert CliRunner().invoke(main, [*few, "--seed", seed]).exit_code == 130
    monkeypatch.undo()
    os.chdir(somewhere)
    first, second = sorted(Path("runs").iterdir())
    assert first.name == "cka-vit_mini" and all(any(run.glob(".repsim-resume/pass-*.pt")) for run in (first, second))
    for seed, place in (("1", second), ("0", first)):
        repsim(*few, "--seed", seed)
        assert (place / "cka.csv").exists() and not (place / ".repsim-resume").exists()
        assert json.loads((place / RECORD).read_text())["images"]["seed"] == int(seed)
    assert len(list(Path("runs").iterdir())) == 2


def test_other_contents_under_the_same_names_lie_apart(somewhere):
    few = ["cka", *FILE, "one/best.pt", "--data", "one/images", "--images", "8", "--batch-size", "8", "--quiet"]
    repsim(*few)
    before = {path: path.read_bytes() for path in Path("runs/cka-test_resnet@best").glob("*.*")}
    shutil.copy("two/best.pt", "one/best.pt")
    repsim(*few)
    shutil.copy("two/images/0.png", "one/images/another.png")
    repsim(*few)
    assert len(list(Path("runs").iterdir())) == 3
    assert before == {path: path.read_bytes() for path in Path("runs/cka-test_resnet@best").glob("*.*")}


def test_probes_of_other_training_images(somewhere):
    few = ["probe", "--model", "vit_mini", "--images", "20", "--layers", "blocks.3", "--no-tokens", "--shots", "1"]
    few += ["--neighbours", "0", "--batch-size", "20", "--seeds", "1", "--quiet"]
    for count in ("100", "120", "100"):
        repsim(*few, "--train-images", count)
    assert len(list(Path("runs").iterdir())) == 2


def test_probes_of_a_folder_of_training_images_that_has_grown(somewhere):
    for number, (split, kind) in enumerate(itertools.product(("train", "val"), ("cat", "dog"))):
        Path("data", split, kind).mkdir(parents=True)
        for i in range(6):
            shutil.copy(f"{('one', 'two')[number % 2]}/images/{i}.png", f"data/{split}/{kind}")
    few = ["probe", "--model", "vit_mini", "--data", "data", "--split", "val", "--train-data", "data"]
    few += ["--train-split", "train", "--train-images", "12", "--layers", "blocks.3", "--no-tokens", "--shots", "1"]
    few += ["--neighbours", "0", "--images", "12", "--batch-size", "6", "--seeds", "1", "--quiet"]
    repsim(*few)
    shutil.copy("one/images/9.png", "data/train/cat")
    repsim(*few)
    repsim(*few)
    assert len(list(Path("runs").iterdir())) == 2


def test_another_directory_than_expected_is_told(somewhere):
    few = ["cka", "--model-a", "vit_mini", "--images", "8", "--batch-size", "8"]
    outputs = [CliRunner().invoke(main, [*few, "--seed", seed]).output for seed in ("0", "1")]
    assert "the results go into" not in outputs[0] and "the results go into runs/cka-vit_mini-" in outputs[1]


def test_a_file_of_weights_called_random_is_no_untrained_network(somewhere):
    shutil.copy("one/best.pt", "a-random.pt")
    repsim("cka", *FILE, "a-random.pt", "--data", "noise", "--images", "8", "--batch-size", "8", "--quiet")
    (place,) = Path("runs").iterdir()
    assert {path.name for path in place.glob("cka*")} == {"cka.csv", "cka.png", "cka.pdf"}
