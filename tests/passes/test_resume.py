"""Runs that are stopped or killed go on, and their result is that of an undisturbed run."""

import contextlib
import multiprocessing
import os
import random
import re
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from every_study import STUDIES
from torch import nn

import repsim as rs
from repsim.cli import main
from repsim.images.image_set import Batch, ImageSet
from repsim.passes import resume as resuming
from repsim.passes import sealed
from repsim.passes.resume import FOLDER, Resume, Stopped
from repsim.tables import writer

CKA = ["cka", "--model-a", "vit_mini", "--images", "96", "--batch-size", "8", "--quiet", "--checkpoint-every", "0"]


def start(server, arguments) -> multiprocessing.Process:
    process = server.Process(target=exec, args=(f"from repsim.cli import main; main({list(map(str, arguments))})",))
    process.start()
    return process


def finished(server, arguments) -> float:
    """Run to the end, and give the seconds that it took."""
    began = time.monotonic()
    process = start(server, arguments)
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - began


def test_killed_twenty_times_a_run_ends_as_if_undisturbed(server, tmp_path):
    finished(server, [*CKA, "--out", tmp_path / "whole"])  # the first starts the server
    seconds = finished(server, [*CKA, "--out", tmp_path / "whole"])
    rng, killed, went_on = random.Random(0), 0, 0
    while killed < 20:
        process = start(server, [*CKA, "--out", tmp_path / "killed"])
        process.join(rng.uniform(0, seconds))
        if process.exitcode is not None:  # it ended before it could be killed
            assert process.exitcode == 0
            continue
        process.kill()
        process.join()
        killed += 1
        went_on += (tmp_path / "killed" / FOLDER / "pass-0-of-1-0.pt").exists()
    finished(server, [*CKA, "--out", tmp_path / "killed"])
    assert went_on >= 5  # fewer would show nothing
    whole, again = ((tmp_path / name / "cka.csv").read_bytes() for name in ("whole", "killed"))
    assert whole == again
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {"cka.csv", "cka.png", "cka.pdf", "run.json"}


def test_killed_while_the_sums_are_thrown_away(tmp_path, monkeypatch):
    """A run that is killed while it removes its sums can be started again, whichever file was the last."""
    names = ["pass-0-of-1-0.pt", "pass-1-of-1-0.pt", "about.json"]
    for survivors in range(len(names) + 1):
        folder = tmp_path / str(survivors)
        resume = Resume(folder, {"seed": 0})
        for name in names[:2]:
            (folder / name).write_bytes(b"sums")
        gone = []

        def unlink(path, missing_ok=False, gone=gone, survivors=survivors):
            if len(gone) == survivors:
                raise KeyboardInterrupt
            gone.append(path.name)
            os.unlink(path)

        monkeypatch.setattr(Path, "unlink", unlink)
        with contextlib.suppress(KeyboardInterrupt):
            resume.finish()
        monkeypatch.undo()
        resume.release()
        assert "about.json" not in gone[:2]
        Resume(folder, {"seed": 0}).release()


def test_two_runs_into_one_directory(tmp_path):
    first = Resume(tmp_path / FOLDER, {"seed": 0})
    with pytest.raises(rs.UsageError, match="another run is writing into"):
        Resume(tmp_path / FOLDER, {"seed": 0})
    first.finish()
    Resume(tmp_path / FOLDER, {"seed": 1}).finish()


class Interrupting(Resume):
    """A run that is asked to stop after a number of batches."""

    def __init__(self, *args, batches, **more):
        super().__init__(*args, **more)
        self.batches = batches

    def after(self, batch, summing, counts, gave=None):
        self.batches -= 1
        self._stop = self.batches == 0
        super().after(batch, summing, counts, gave)


def interrupted(tmp_path, function):
    """The result of a function of `resume` that is stopped after every second batch, and started again."""
    for _ in range(100):
        resume = Interrupting(tmp_path / FOLDER, {}, batches=2)
        try:
            result = function(resume)
            resume.finish()
            return result
        except Stopped:
            resume._lock.release()
    raise AssertionError("it never ended")


IMAGES = ImageSet("sample", images=52)


@pytest.fixture
def call(vit, resnet):
    """A function that runs a study by its name, and saves its sums."""

    def run(name, resume=None):
        result = STUDIES[name].result(vit, resnet, IMAGES, batch_size=16 if name == "probe" else 8, resume=resume)
        return {result.name: result.table, **result.tables}, result.record["images"]

    return run


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_goes_on_where_it_was(study, call, tmp_path):
    whole, images = call(study)
    again, images_again = interrupted(tmp_path, lambda resume: call(study, resume))
    assert images == images_again
    for name, table in whole.items():
        assert again[name].to_csv() == table.to_csv(), name


def test_repeats_go_on_where_they_were(vit, tmp_path):
    def repeated(resume):
        return rs.layer_cka(vit, IMAGES, layers="blocks.[38]", batch_size=8, repeats=2, resume=resume).table

    assert interrupted(tmp_path, repeated).to_csv() == repeated(None).to_csv()


@pytest.mark.parametrize("study", STUDIES)
def test_other_code_is_found_by_the_first_batch(study, call, tmp_path, monkeypatch):
    at = Interrupting(tmp_path / FOLDER, {}, batches=2)
    with pytest.raises(Stopped):
        call(study, at)
    at._lock.release()
    for kind in (nn.GELU, nn.ReLU):  # the weights stay the same
        code = kind.forward
        monkeypatch.setattr(kind, "forward", lambda self, x, code=code: code(self, x) + 0.01)
    again = Resume(tmp_path / FOLDER, {})
    with pytest.raises(rs.UsageError, match="first batch gives other values now .* --fresh"):
        call(study, again)
    again.finish()


def test_a_small_layer_is_not_hidden_by_large_ones(tmp_path):
    """Other values of a small layer are noticed, though its HSIC is 1e-16 of the largest in the table."""

    def network(other):
        torch.manual_seed(0)
        last = nn.Linear(8, 8)
        last.weight.data *= 1e-4
        first = nn.Linear(48, 8)
        first.weight.data *= 100
        return nn.Sequential(nn.Flatten(), first, nn.Sequential(nn.Tanh() if other else nn.ReLU(), last))

    images = torch.randn(32, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def run(other, at):
        return rs.layer_cka(network(other), images=images, layers=["1", "2"], batch_size=8, resume=at).table

    at = Interrupting(tmp_path / FOLDER, {}, batches=2)
    with pytest.raises(Stopped):
        run(False, at)
    at._lock.release()
    again = Resume(tmp_path / FOLDER, {})
    with pytest.raises(rs.UsageError, match="first batch gives other values now"):
        run(True, again)
    again.finish()


@pytest.mark.parametrize("option", [["--seed", "1"], ["--batch-size", "16"], ["--images", "40"], ["--layers", "all"]])
def test_another_set_up_is_refused(tmp_path, option, monkeypatch):
    def stop(self, batch, summing, counts, gave):
        self._save(summing, counts, done=False)
        raise Stopped("stopped")

    few = ["cka", "--model-a", "vit_mini", "--images", "32", "--batch-size", "8", "--out", str(tmp_path)]
    monkeypatch.setattr(Resume, "after", stop)
    assert CliRunner().invoke(main, few).exit_code == 130
    monkeypatch.undo()
    result = CliRunner().invoke(main, [*few, *option])
    assert result.exit_code == 2 and "holds the sums of another run, with other" in result.output, result.output
    assert CliRunner().invoke(main, [*few, *option, "--fresh"]).exit_code == 0


def test_a_run_goes_on_with_a_full_disk_says_so_once_and_tries_again_at_its_end(tmp_path, monkeypatch):
    said = []
    at = Resume(tmp_path / FOLDER, {}, every=0, say=said.append)

    class One:
        sums = rs.measures.running.Total(1)

    at.begin([One])
    at.end([One], resuming.Counts(batches=1))
    before = at._file.read_bytes()

    def full(value, part):
        part.write(b"half")
        try:
            raise OSError(28, "No space left on device")
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos")  # as PyTorch's writer

    monkeypatch.setattr(sealed.torch, "save", full)
    for number in (2, 3):
        at.after(Batch(number, torch.arange(4), {}, {}), [One], resuming.Counts(batches=number))
    assert len(said) == 1
    assert re.match(r"the sums cannot be saved in .*: the disk of .* is full \(.* free\); .* goes on", said[0])
    assert at._file.read_bytes() == before and len(list(at.folder.iterdir())) == 2
    monkeypatch.undo()
    at.end([One], resuming.Counts(batches=4))
    assert at._file.read_bytes() != before and len(said) == 1


def test_sums_that_cannot_be_read(tmp_path):
    at = Resume(tmp_path / FOLDER, {})
    (at.folder / "pass-0-of-1-0.pt").write_bytes(b"not sums")
    with pytest.raises(rs.RepsimError, match="start over with --fresh"):
        at.begin([])
    at.finish()
    at = Resume(tmp_path / FOLDER, {})
    torch.save({"sums": [os.system], "counts": 0, "done": True}, at.folder / "pass-0-of-1-0.pt")
    with pytest.raises(rs.RepsimError, match="cannot read .*pass-0-of-1-0.pt"):
        at.begin([])
    (at.folder / "about.json").write_text("{")
    at._lock.release()
    with pytest.raises(rs.RepsimError, match="about.json"):
        Resume(tmp_path / FOLDER, {})
    at.finish()


def test_results_are_known_by_the_sums_where_the_record_of_the_run_is_damaged(tmp_path):
    """Results of a run that was killed before its sums were removed are known by the sums, and replaced."""
    asked = ["cka", "--model-a", "vit_micro", "--images", "32", "--batch-size", "16", "--quiet", "--out", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Resume, "_forget", lambda self: None)
        assert CliRunner().invoke(main, asked).exit_code == 0
    (tmp_path / "run.json").unlink()
    (tmp_path / ".repsim-resume" / "about.json").write_text("null")
    (tmp_path / "mine.csv").write_text("1,2")
    half, other = (tmp_path / f".repsim-{name}-cka.part.pdf" for name in (writer(), "0" * 12))
    half.write_text("half of a picture, as a run that is killed leaves it")
    other.write_text("of a run that nobody knows")
    refused = CliRunner().invoke(main, asked)
    assert refused.exit_code == 1 and "--fresh" in refused.stderr
    done = CliRunner().invoke(main, [*asked, "--fresh"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "mine.csv").read_text() == "1,2" and not (tmp_path / ".repsim-resume").exists()
    assert other.exists() and not half.exists()


def test_a_name_that_changed_in_a_file_of_sums_is_not_taken_for_repsims(tmp_path):
    file = tmp_path / "sums.pt"
    sealed.save({"a": torch.ones(2)}, file, {"run": "1"}, {"files": ["cka.csv"]})
    assert sealed.beside(file) == {"files": ["cka.csv"]} and torch.equal(
        sealed.load(file, {"run": "1"})["a"], torch.ones(2)
    )
    file.write_bytes(file.read_bytes().replace(b"cka.csv", b"cka.cst"))
    assert sealed.beside(file) == {}
    with pytest.raises(ValueError, match="checksum has changed"):
        sealed.load(file, {"run": "1"})


def test_results_that_no_record_could_be_written_of_are_not_left_behind(tmp_path):
    """Results are removed where no record fits on the disk, as the next run would not know them for repsim's."""

    def full(*given):
        raise rs.RepsimError("the disk is full")

    (tmp_path / "mine.csv").write_text("1,2")
    asked = ["cka", "--model-a", "vit_micro", "--images", "32", "--batch-size", "16", "--quiet", "--out", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Resume, "_write_about", lambda self, again=False: None)
        patched.setattr("repsim.tables.save_record", full)
        assert CliRunner().invoke(main, asked).exit_code == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["mine.csv"]
    assert CliRunner().invoke(main, [*asked, "--fresh"]).exit_code == 0
