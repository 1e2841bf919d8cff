"""Other people's files are kept, and so are the sums of a run, or a line says why not."""

import importlib
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from every_study import STUDIES
from PIL import Image
from test_resume import Interrupting, call  # noqa: F401

import repsim as rs
from repsim.cli import main
from repsim.errors import Stopped
from repsim.passes import sealed
from repsim.passes.resume import FOLDER, Resume
from repsim.studies import results
from repsim.tables import load_record, save_record

PASS = f"{FOLDER}/pass-0-of-1-0.pt"
ABOUT = f"{FOLDER}/about.json"
CKA = ["cka", "--model-a", "vit_micro", "--images", "16", "--batch-size", "4", "--quiet", "--workers", "0"]


def repsim(*arguments, code=0, says=""):
    """Call the command in this process; give its text on standard error, one line if the call is refused."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.exception, result.output)
    assert says in result.stderr, result.stderr
    if code in (1, 2):
        errors = [line for line in result.stderr.splitlines() if not line.startswith(("Usage", "Try"))]
        assert isinstance(result.exception, SystemExit) and len([line for line in errors if line]) == 1, result.stderr
    return result.stderr


# Files of other people, where results of finished runs are read


@pytest.fixture
def finished(finished):
    """The run of `conftest`, with a record that lists its files."""
    save_record({"random": False, "files": ["matched.csv", "run.json"]}, finished / "run.json")
    return finished


@pytest.mark.parametrize(
    "command, name", [("claims", "claims.md"), ("claims", "claims.csv"), ("report", "report.html")]
)
def test_claims_and_reports_replace_their_own_files_only(command, name, finished):
    (finished / name).write_text("| my own | notes |")
    before = {path: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    repsim(command, "--quiet", finished, code=2, says=f"{name} as its own; move it away")
    assert before == {path: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    (finished / name).unlink()
    for _ in range(2):
        repsim(command, "--quiet", finished)


def test_a_page_is_not_written_over_another_file(finished, tmp_path):
    page = tmp_path / "thesis.html"
    page.write_text("<!doctype html><html><p>mine")
    repsim("report", finished, "--out", page, code=2, says="thesis.html as its own; move it away")
    assert page.read_text().endswith("mine")


@pytest.mark.parametrize("suffix", [".png", ".pdf"])
def test_a_picture_is_redrawn_over_its_own_file_only(suffix, finished):
    picture = finished / f"matched{suffix}"
    picture.write_text("mine")
    redraw = ["cka", "--matched", "--quiet", "--redraw", finished]
    repsim(*redraw, code=2, says=f"holds matched{suffix}, which repsim does not know as its own")
    assert picture.read_text() == "mine"
    picture.unlink()
    for _ in range(2):
        repsim(*redraw)
    assert {"matched.png", "matched.pdf"} < {*load_record(finished / "run.json")["files"]}


def test_a_picture_without_a_record_is_somebodys_own(finished):
    (finished / "run.json").unlink()
    (finished / "matched.pdf").symlink_to("nowhere")
    repsim("cka", "--matched", "--redraw", finished, code=2, says="holds matched.pdf")
    assert (finished / "matched.pdf").is_symlink()


def test_figures_are_redrawn_over_their_own_files_only(tmp_path):
    out = tmp_path / "o"
    repsim("figures", "1", "--images", "8", "--batch-size", "4", "--quiet", "--out", out)
    repsim("figures", "--quiet", "--redraw", out)
    record = load_record(out / "run.json")
    save_record({**record, "files": [name for name in record["files"] if "png" not in name]}, out / "run.json")
    repsim("figures", "--redraw", out, code=2, says="holds figure-1/figure-1.png, which repsim does not know")


# Files of other people, where results go

OTHERS = [
    *("resume/cv.pdf", "resume/pass-0-of-1-0.pt", ".film.part.mp4", ".cka.part.csv", "film.part", "about.json"),
    *("pass-0-of-1-0.pt", ".repsim-notes.part.txt", ".repsim-0123456789ab.txt", ".repsim-resume.txt", ".repsim/x"),
    *("cka.csv~", "cka-old.csv", "matched.csv", "figure-1/figure-1.png", "run.json.bak", "CKA.CSV.txt", "resume.lock"),
    *("sub/cka.csv", "sub/.repsim-resume/about.json", "sub/.repsim-0123456789ab-cka.part.csv", ".git/HEAD", "-rf"),
]


def everything(folder) -> dict[str, tuple]:
    """The files below a folder, with the content and the time of change of each."""
    return {
        path.relative_to(folder).as_posix(): (path.is_file() and path.read_bytes(), path.lstat().st_mtime_ns)
        for path in Path(folder).rglob("*")
        if not path.is_dir()
    }


@pytest.fixture
def crowded(tmp_path):
    """A directory with many files of other people."""
    for name in OTHERS:
        (tmp_path / "o" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "o" / name).write_text(f"somebody's {name}")
    (tmp_path / "o" / "link").symlink_to("nowhere")
    return tmp_path / "o"


def stopped(monkeypatch, *arguments):
    """A run that is stopped after its first batch, as by Ctrl-C."""
    after = Resume.after

    def at_once(self, *args):
        self._stop = True
        after(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Resume, "after", at_once)
        return repsim(*arguments, code=130, says="the sums are kept")


def test_whatever_others_keep_in_a_directory_is_as_it_was(crowded, monkeypatch):
    before = everything(crowded)

    def as_before():
        now = everything(crowded)
        assert before == {name: now.get(name) for name in before}
        return now.keys() - before.keys()

    stopped(monkeypatch, *CKA, "--out", crowded)
    assert as_before() == {PASS, ABOUT}
    results = {"cka.csv", "cka.png", "cka.pdf", "run.json"}
    for more in ([], ["--seed", "1", "--overwrite"], ["--seed", "1", "--fresh"]):
        repsim(*CKA, "--out", crowded, *more)
        assert as_before() == results
    stopped(monkeypatch, *CKA, "--seed", "2", "--overwrite", "--out", crowded)
    repsim(*CKA, "--seed", "3", "--overwrite", "--fresh", "--out", crowded)
    assert as_before() == results


@pytest.mark.parametrize(
    "name, says",
    [
        ("cka.csv", "holds cka.csv, which repsim does not know as its own"),
        ("cka.pdf", "holds cka.pdf, which repsim does not know as its own"),
        ("cka.png/mine", "holds cka.png, which repsim does not know as its own"),
        ("run.json", "run.json is not the record of a repsim run"),
        (FOLDER, "is not a folder that repsim made"),
        (f"{FOLDER}/mine", "holds 'mine', which repsim did not write"),
        (f"{FOLDER}/pass-0-of-1-0.pt.bak", "which repsim did not write"),
        (f"{FOLDER}.lock", ".repsim-resume.lock in it is not a lock that repsim made"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--fresh"]], ids=str)
def test_a_name_that_somebody_has_is_refused(name, says, more, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = everything(tmp_path)
    code = 1 if name.endswith("lock") else 2
    assert "--out" in repsim(*CKA, *more, "--out", tmp_path, code=code, says=says)
    assert everything(tmp_path) == before


def test_links_in_place_of_the_folder_are_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "pass-0-of-1-0.pt").write_text("mine")
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / FOLDER).symlink_to(tmp_path / "mine")
    repsim(*CKA, "--fresh", "--out", tmp_path / "o", code=2, says="is not a folder that repsim made")
    assert (tmp_path / "mine" / "pass-0-of-1-0.pt").read_text() == "mine"


def test_results_of_another_run_are_refused_or_replaced(tmp_path):
    repsim(*CKA, "--out", tmp_path)
    before = everything(tmp_path)
    other = ["attention", "--model", "vit_micro", *CKA[3:], "--out", tmp_path]
    for command in ([*CKA, "--seed", "1", "--out", tmp_path], other):
        repsim(*command, code=2, says="replace them with --overwrite, or choose another directory with --out")
        assert everything(tmp_path) == before
    repsim(*other, "--overwrite")
    left = {path.name for path in tmp_path.iterdir()}
    assert "attention.csv" in left and not left & {"cka.csv", "cka.png", "cka.pdf", FOLDER}


# Going on with the same computation only


@pytest.fixture
def images(tmp_path):
    """A folder of 16 images whose times of change are long past."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(16):
        picture(folder / f"{i:02d}.png", i)
    return folder


def picture(file, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (28, 28), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    os.utime(file, (1e9, 1e9))


CHANGES = {
    "another image under the same name": ("sizes", lambda f: picture(f / "03.png", 99) or grow(f / "03.png")),
    "another image of the same size": ("times of change", lambda f: os.utime(f / "03.png", (1e9, 1e9 + 1))),
    "one added and one removed": ("names", lambda f: (f / "03.png").rename(f / "99.png")),
    "one added": ("images", lambda f: picture(f / "99.png", 99)),
    "one removed": ("images", lambda f: (f / "03.png").unlink()),
}


def grow(file):
    with file.open("ab") as end:
        end.write(b"more")
    os.utime(file, (1e9, 1e9))


@pytest.mark.parametrize("change", CHANGES)
def test_images_that_are_others_now(change, images, tmp_path, monkeypatch):
    what, make = CHANGES[change]
    run = [*CKA, "--data", images, "--out", tmp_path / "o"]
    stopped(monkeypatch, *run)
    make(images)
    before = everything(tmp_path / "o")
    assert "start over with --fresh" in repsim(*run, code=2, says=f"sums of another run, with other {what}")
    assert everything(tmp_path / "o") == before
    repsim(*run, "--fresh")


def test_training_images_that_are_others_now(tmp_path, monkeypatch):
    for split in ("train", "val"):
        for number in range(16):
            file = tmp_path / "data" / split / f"{number % 2}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture(file, number)
    run = ["probe", "--model", "vit_micro", *CKA[3:], "--data", tmp_path / "data", "--no-tokens", "--shots", "1"]
    run += ["--neighbours", "0", "--out", tmp_path / "o"]
    stopped(monkeypatch, *run)
    picture(tmp_path / "data" / "train" / "0" / "2.png", 99)
    os.utime(tmp_path / "data" / "train" / "0" / "2.png")
    repsim(*run, code=2, says="with other times of change of training images")


NETWORK = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    small = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())
    return nn.Sequential(small, nn.Sequential(nn.Linear(48, 8), nn.{act}()), nn.Linear(8, 8))
"""


def test_the_code_of_a_factory_that_is_another_now(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def write(act):
        (tmp_path / "of_a_user.py").write_text(NETWORK.format(act=act))
        sys.modules.pop("of_a_user", None)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        importlib.invalidate_caches()

    write("GELU")
    run = ["cka", "--model-a", "of_a_user:build", "--weights-a", "random", "--data", "noise", *CKA[3:]]
    run += ["--transform-a", "imagenet", "--layers", "all", "--out", tmp_path / "o"]
    stopped(monkeypatch, *run)
    write("Tanh")
    before = (tmp_path / "o" / PASS).read_bytes()
    assert "--fresh" in repsim(*run, code=2, says="its first batch gives other values now")
    assert (tmp_path / "o" / PASS).read_bytes() == before
    write("GELU")
    repsim(*run)


@pytest.mark.parametrize("library", ["pillow", "safetensors", "torchvision"])
def test_another_version_of_what_decodes_or_computes(library, tmp_path, monkeypatch):
    run = [*CKA, "--out", tmp_path]
    stopped(monkeypatch, *run)
    version = results.version
    monkeypatch.setattr(results, "version", lambda name: "0.0.1" if name == library else version(name))
    assert "--fresh" in repsim(*run, code=2, says="with other versions")


# Saved sums are checked


def test_every_bit_of_saved_sums_counts(tmp_path):
    saved = {"sums": [rs.measures.running.Total(2)], "counts": 3, "done": False, "first": None}
    mark = {"run": "a", "pass": 0, "process": "1-0"}
    sealed.save(saved, tmp_path / "f", mark)
    whole = (tmp_path / "f").read_bytes()
    rng = random.Random(0)
    ends = range(8 * len(whole) - 8 * 60, 8 * len(whole))  # where its checksum and its length stand
    for bit in {*rng.sample(range(8 * len(whole)), 200), *ends}:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "f").write_bytes(damaged)
        with pytest.raises(ValueError, match="^it(s| is) "):
            sealed.load(tmp_path / "f", mark)
    for size in (0, 1, 19, 20, len(whole) // 2, len(whole) - 1):
        (tmp_path / "f").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="^it(s| is) "):
            sealed.load(tmp_path / "f", mark)


def flip(file, bit=None):
    content = bytearray(file.read_bytes())
    bit = 4 * len(content) if bit is None else bit
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


@pytest.mark.parametrize("study", STUDIES)
def test_a_flipped_bit_in_the_sums_of_every_study(study, call, tmp_path):  # noqa: F811
    at = Interrupting(tmp_path / FOLDER, {}, batches=1)
    with pytest.raises(Stopped):
        call(study, at)
    at.release()
    flip(tmp_path / PASS)
    again = Resume(tmp_path / FOLDER, {})
    with pytest.raises(rs.RepsimError, match="cannot read .*: it is damaged: its checksum .* --fresh"):
        call(study, again)
    again.release()
    assert (tmp_path / PASS).exists()


def test_valid_sums_of_another_run_or_pass(tmp_path, monkeypatch):
    for name in ("one", "two"):
        stopped(monkeypatch, *CKA, "--repeats", "2", "--out", tmp_path / name)
    own = (tmp_path / "one" / PASS).read_bytes()
    shutil.copy(tmp_path / "two" / PASS, tmp_path / "one" / PASS)
    run = [*CKA, "--repeats", "2", "--out", tmp_path / "one"]
    wrong = "its sums are those of another run, pass or process; start over with --fresh"
    repsim(*run, code=1, says=wrong)
    (tmp_path / "one" / PASS).write_bytes(own)
    (tmp_path / "one" / FOLDER / "pass-1-of-1-0.pt").write_bytes(own)
    repsim(*run, code=1, says=f"pass-1-of-1-0.pt: {wrong}")
    assert (tmp_path / "one" / PASS).exists() and not (tmp_path / "one" / "cka.csv").exists()


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"[]", "something other than repsim writes there"),
        (b"null", "something other than repsim writes there"),
        (b"{}", "something other than repsim writes there"),
        (b'{"made_by": "repsim"}', "something other than repsim writes there"),
        (b"", "it is empty"),
        (b"\0" * 500, "damaged, cut off or not JSON"),
        (b"my notes", "damaged, cut off or not JSON"),
        (b"\xff\xfe", "damaged, cut off or not JSON"),
        (None, "damaged, cut off or not JSON"),
    ],
    ids=str,
)
def test_what_sums_belong_to_is_damaged(content, reason, tmp_path, monkeypatch):
    stopped(monkeypatch, *CKA, "--out", tmp_path)
    about = tmp_path / ABOUT
    about.write_bytes(about.read_bytes()[:-30] if content is None else content)
    before = everything(tmp_path)
    assert "--fresh" in repsim(*CKA, "--out", tmp_path, code=1, says=reason)
    assert everything(tmp_path) == before
    repsim(*CKA, "--fresh", "--out", tmp_path)
    assert not (tmp_path / FOLDER).exists()


def test_a_flipped_bit_in_what_sums_belong_to(tmp_path, monkeypatch):
    """A flipped bit in `about.json` is refused, unless it is in a place that does not matter, such as a blank."""
    run = [*CKA, "--out", tmp_path / "o"]
    repsim(*CKA, "--out", tmp_path / "whole")
    stopped(monkeypatch, *run)
    shutil.move(tmp_path / "o", tmp_path / "stopped")
    bits, refused = random.Random(0).sample(range(8 * (tmp_path / "stopped" / ABOUT).stat().st_size), 15), 0
    for bit in bits:
        shutil.rmtree(tmp_path / "o", ignore_errors=True)
        shutil.copytree(tmp_path / "stopped", tmp_path / "o")
        flip(tmp_path / "o" / ABOUT, bit)
        result = CliRunner().invoke(main, [str(argument) for argument in run])
        refused += result.exit_code in (1, 2) and "--fresh" in result.stderr and result.stderr.count("\n") == 1
        if result.exit_code == 0:
            assert (tmp_path / "o" / "cka.csv").read_bytes() == (tmp_path / "whole" / "cka.csv").read_bytes()
        else:
            assert (tmp_path / "o" / PASS).read_bytes() == (tmp_path / "stopped" / PASS).read_bytes(), result.output
    assert refused >= 8


# A full disk


def test_a_disk_that_is_full_at_the_end_is_named(tmp_path, monkeypatch):
    def full(self, *args, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    repsim(*CKA, "--out", tmp_path, code=1, says="cka.csv: the disk of")
    monkeypatch.undo()
    assert (tmp_path / PASS).exists()  # so that nothing has to be computed again
    repsim(*CKA, "--out", tmp_path)


def test_a_full_disk_that_has_no_room_for_temporary_files(monkeypatch, tmp_path):
    """A disk without room for temporary files, without which torch cannot be imported, is named."""

    def full():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", full)
    repsim(
        *CKA,
        "--out",
        tmp_path / "o",
        code=1,
        says="found in ['/tmp']: the disk is full, or repsim may write into none of these",
    )
    assert not (tmp_path / "o").exists()


# Runs that might end in silence


@pytest.mark.parametrize(
    "environment, says",
    [
        ({"RANK": "1"}, "RANK is set, and WORLD_SIZE is not"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set, and RANK is not"),
        ({"WORLD_SIZE": "x", "RANK": "0"}, "WORLD_SIZE must be a whole number, got 'x'"),
        ({"WORLD_SIZE": "", "RANK": "0"}, "WORLD_SIZE must be a whole number, got ''"),
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE must be a whole number, got 'x'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE must be a whole number, got ''"),
        ({"RANK": "x"}, "RANK must be a whole number, got 'x'"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK must be a whole number, got '-1'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK must be from 0 to WORLD_SIZE - 1"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK must be from 0 to WORLD_SIZE - 1"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "start several processes with torchrun"),
    ],
    ids=str,
)
def test_an_environment_of_half_a_torchrun(environment, says, tmp_path, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    repsim(*CKA, "--out", tmp_path / "o", code=2, says=says)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("environment", [{"RANK": "0"}, {"WORLD_SIZE": "1"}, {"RANK": "0", "WORLD_SIZE": "1"}], ids=str)
def test_an_environment_of_one_process(environment, tmp_path, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    repsim(*CKA, "--out", tmp_path)
    assert (tmp_path / "cka.csv").exists()


EXITS = """
from torch import nn

class Exits(nn.Module):
    def forward(self, x):
        exit({code})

def module():
    return nn.Sequential(nn.Sequential(Exits()))

def factory():
    exit({code})
"""


@pytest.mark.parametrize("code", ["", "0", "3", "'bye'"])
@pytest.mark.parametrize("which", ["factory", "module"])
def test_code_that_ends_the_program_is_an_error(which, code, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "of_a_user.py").write_text(EXITS.format(code=code))
    sys.modules.pop("of_a_user", None)
    model = ["cka", "--model-a", f"of_a_user:{which}", "--weights-a", "random", "--data", "noise", "--quiet"]
    model += ["--transform-a", "imagenet"]
    result = CliRunner().invoke(main, [*model, "--images", "8", "--batch-size", "4", "--out", str(tmp_path / "o")])
    assert result.exit_code in (1, 2) and result.stderr.count("\n") == 1 and "exit(" in result.stderr, result.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "command, option",
    [
        *(("cka", option) for option in ("--data", "--data-dir", "--split", "--model-a", "--model-b", "--weights-a")),
        *(("cka", option) for option in ("--arg-a", "--layers", "--out", "--redraw", "--device")),
        *(("probe", option) for option in ("--model", "--train-data", "--train-split")),
        *(("figures", option) for option in ("--weights", "--train-data", "--layers")),
    ],
)
@pytest.mark.parametrize("value", ["", " "])
def test_nothing_is_no_value_of_an_option(command, option, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    repsim(command, option, value, code=2, says=f"{option} is empty")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "x", ""])
def test_no_length_of_time(seconds, tmp_path):
    repsim(*CKA, "--checkpoint-every", seconds, "--out", tmp_path / "o", code=2, says="--checkpoint-every")
    assert not (tmp_path / "o").exists()


def test_a_tilde_in_quotes_is_the_home(images, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(images)
    repsim(*CKA, "--data", "~/images", "--out", "~/x")
    repsim("cka", "--quiet", "--redraw", "~/x")
    assert (tmp_path / "x" / "cka.csv").exists() and not (images / "~").exists()
    repsim(*CKA, "--out", "~nobody-at-all/x", code=2, says="there is no home directory ~nobody-at-all")
    assert not (images / "~nobody-at-all").exists()


@pytest.mark.parametrize(
    "wrong, code",
    [
        (["--model-a", "nope"], 2),
        (["--data", "nowhere"], 2),
        (["--layers", "nope"], 2),
        (["--images", "3"], 2),
        (["--weights-a", "nowhere.pt"], 1),
        (["--device", "nope"], 2),
        (["--batch-size", "0"], 2),
        (["--arg-a", "depth=-1", "--weights-a", "random"], 2),
    ],
    ids=str,
)
def test_a_refused_call_leaves_nothing_behind(wrong, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in ("o", "deep/er/o"):
        repsim(*CKA, *wrong, "--out", out, code=code)
    assert not os.listdir(tmp_path)


# Signals

RUN = """
import multiprocessing, os, sys
os.setsid()
multiprocessing.set_start_method("fork", force=True)  # as in a process that a user starts
sys.stderr = open({said!r}, "w", buffering=1)
from repsim.cli import main
main({arguments})
"""


def begun(server, tmp_path, images, *more):
    """Start a run in a session of its own, and wait until it has saved sums; it would go on longer than any test."""
    run = [*CKA[:3], "--data", images, "--images", "5000", "--batch-size", "4", "--quiet", "--checkpoint-every", "0"]
    arguments = [str(argument) for argument in [*run, *more, "--out", tmp_path / "o"]]
    process = server.Process(target=exec, args=(RUN.format(said=str(tmp_path / "said"), arguments=arguments),))
    process.start()
    until = time.monotonic() + 60
    while not (tmp_path / "o" / PASS).exists():
        assert process.is_alive() and time.monotonic() < until
        time.sleep(0.02)
    return process


@pytest.fixture
def many(tmp_path):
    """A folder of 5000 images, for a run of several seconds."""
    folder = tmp_path / "many"
    folder.mkdir()
    picture(folder / "0.png", 0)
    for i in range(1, 5000):
        os.link(folder / "0.png", folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"])
def test_a_signal_to_the_whole_group_saves(name, workers, server, tmp_path, many):
    process = begun(server, tmp_path, many, "--workers", workers)
    os.killpg(process.pid, getattr(signal, name))
    check_stopped(process, tmp_path)


def test_timeout_sends_its_signal_to_a_process_and_to_its_group(server, tmp_path, many):
    process = begun(server, tmp_path, many, "--workers", "2")
    os.kill(process.pid, signal.SIGTERM)
    os.killpg(process.pid, signal.SIGTERM)
    check_stopped(process, tmp_path)


def check_stopped(process, tmp_path):
    process.join(30)
    said = (tmp_path / "said").read_text()
    assert process.exitcode == 130 and said.count("\n") == 1 and said.startswith("stopped after batch"), said
    assert "the sums are kept" in said and not (tmp_path / "o" / "cka.csv").exists()
    assert torch.load(tmp_path / "o" / PASS, weights_only=False)["counts"].batches >= 1
    assert not (tmp_path / "o" / f"{FOLDER}.lock").exists()
