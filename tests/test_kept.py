"""What is kept: other people's files, and the sums of a run, or else a line that says why not."""

import pandas as pd
import pytest
from click.testing import CliRunner

from repsim.cli import main
from repsim.tables import MATCHED, NUMBERS, load_record, save_record, save_table


def repsim(*arguments, code=0, says=""):
    """A call in this process; what it says on standard error, one line if it is refused."""
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    assert result.exit_code == code, (result.exception, result.output)
    assert says in result.stderr, result.stderr
    if code in (1, 2):
        errors = [line for line in result.stderr.splitlines() if not line.startswith(("Usage", "Try"))]
        assert isinstance(result.exception, SystemExit) and len([each for each in errors if each]) == 1, result.stderr
    return result.stderr


# Files of other people, where results of finished runs are read


@pytest.fixture
def finished(tmp_path):
    """A run of `cka --matched`, and a figure with one number, as their records list them."""
    save_table(pd.DataFrame([["a", "b", "layer", 0, 0.0, 0.5, 0.1]], columns=MATCHED), tmp_path / "matched.csv")
    (tmp_path / "figure-1").mkdir()
    numbers = pd.DataFrame([["low with high layers, a - b", 1.0, 0.5, 1.5]], columns=NUMBERS)
    save_table(numbers, tmp_path / "figure-1" / "numbers.csv")
    save_record({"random": False, "preset": "mini"}, tmp_path / "figure-1" / "run.json")
    save_record({"random": False, "files": ["matched.csv", "run.json"]}, tmp_path / "run.json")
    return tmp_path


@pytest.mark.parametrize(
    "command, name", [("claims", "claims.md"), ("claims", "claims.csv"), ("report", "report.html")]
)
def test_claims_and_reports_replace_their_own_files_only(command, name, finished):
    (finished / name).write_text("| my own | notes |")
    before = {path: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    repsim(command, "--quiet", finished, code=2, says=f"{name} is not known as repsim's own; move it away")
    assert before == {path: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    (finished / name).unlink()
    for _ in range(2):
        repsim(command, "--quiet", finished)


def test_a_page_is_not_written_over_another_file(finished, tmp_path):
    page = tmp_path / "thesis.html"
    page.write_text("<!doctype html><html><p>mine")
    repsim("report", finished, "--out", page, code=2, says="thesis.html is not known as repsim's own")
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
