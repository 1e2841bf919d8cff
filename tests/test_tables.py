"""Tables and arrays come back from their files as they were, and docs/tables.md describes every column."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import repsim as rs
from repsim.paper.claims import CLAIMS_COLUMNS
from repsim.tables import (
    TABLES,
    TEXT,
    load_arrays,
    load_table,
    prepare,
    save_arrays,
    save_record,
    save_table,
    whole,
)

FIRST = "\0" if sys.version_info >= (3, 11) else "\1"
ANY = st.text(st.characters(min_codepoint=ord(FIRST)), max_size=6)
"""Names of any characters, lone surrogates among them."""
GUESSED = [
    "0.10",
    "NA",
    "null",
    "nan",
    "",
    "1e5",
    "True",
    "007",
    " a ",
    "a,b",
    'a "b"',
    "two\nlines",
    "a\r",
    "a\r\n",
    "#",
]


def test_tables_keep_their_digits(tmp_path):
    table = pd.DataFrame({"cka": [1 / 3, -1e-5, float("nan")]})
    save_table(table, tmp_path / "t.csv")
    pd.testing.assert_frame_equal(load_table(tmp_path / "t.csv", ["cka"]), table, rtol=1e-11)
    save_record({"a": 1}, tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text()) == {"a": 1}
    assert sorted(os.listdir(tmp_path)) == ["run.json", "t.csv"]


def test_files_appear_whole_or_not_at_all(tmp_path):
    target = tmp_path / "t.csv"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), whole(target) as part:
        part.write_text("half")
        raise ZeroDivisionError
    with (
        pytest.raises(rs.RepsimError, match=r"cannot write .*: the disk of .* is full \(.* free\)"),
        whole(target) as part,
    ):
        raise OSError(28, "No space left on device")
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["t.csv"]


def test_a_directory_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(rs.RepsimError, match="cannot write into .*choose another directory with --out"):
        prepare(tmp_path / "file" / "below")


def test_what_is_not_a_table(tmp_path):
    with pytest.raises(rs.UsageError, match="there is no cka.csv"):
        load_table(tmp_path / "cka.csv", [])
    (tmp_path / "cka.csv").write_text("a,b\n1,2\n")
    with pytest.raises(rs.RepsimError, match="lacks the columns cka"):
        load_table(tmp_path / "cka.csv", ["a", "cka"])


@settings(deadline=None)  # the first call imports
@given(st.lists(st.tuples(ANY, ANY, st.none() | st.floats(-9, 9)), min_size=1, max_size=6))
@example([(name, name, 0.5) for name in GUESSED])
@example([("0.10", "NA", None)])
def test_names_come_back_as_they_were(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "names.csv"
    table = pd.DataFrame([("a", *row) for row in rows], columns=["model", "layer", "label", "value"])
    save_table(table, path)
    loaded = load_table(path, ["layer", "value"])
    assert [loaded[column].tolist() for column in ("layer", "label")] == [[row[i] for row in rows] for i in (0, 1)]
    np.testing.assert_allclose(loaded["value"], [np.nan if row[2] is None else row[2] for row in rows], rtol=1e-11)


@pytest.mark.skipif(FIRST == "\0", reason="this Python writes a NUL into CSV, and reads it")
def test_a_name_that_csv_cannot_hold_is_refused(tmp_path):
    with pytest.raises(rs.RepsimError, match="a name in it holds a NUL"):
        save_table(pd.DataFrame({"model": ["a\0"]}), tmp_path / "t.csv")
    assert not os.listdir(tmp_path)


ROOT = Path(__file__).parents[1]
WRITTEN = {**TABLES, "claims": CLAIMS_COLUMNS}
PLACES = {
    *("index", "block", "head", "image", "depth", "token_row", "token_col", "patch_row", "patch_col"),
    *("seed", "seeds", "shots", "images", "k"),
    *("df", "skewed", "sd_seeds"),
    *("low", "high", "null", "null_95", "untrained"),
}
"""Columns of numbers that place a row, or that qualify its value or its standard error."""


def documented() -> tuple[dict[str, list[str]], list[str]]:
    """The columns of each table, and all columns that have a line of their own, in docs/tables.md."""
    page = (ROOT / "docs" / "tables.md").read_text()
    lines = [re.split(r" \|", line)[:-1] for line in page.splitlines() if line.startswith("| `")]
    assert all(len(cells) == 4 and cells[1] and cells[3] for cells in lines)
    files = {cells[0][3:-5]: re.findall("`(.+?)`", cells[3]) for cells in lines if ".csv`" in cells[0]}
    return files, [cells[0][3:-1] for cells in lines if ".csv`" not in cells[0]]


def test_the_page_of_tables_has_every_table_and_column_and_no_other():
    files, columns = documented()
    assert files == WRITTEN
    assert len(columns) == len(set(columns))
    assert set(columns) == {re.sub("_[ab]$", "", name) for listed in files.values() for name in listed}


@pytest.mark.parametrize("name", TABLES)
def test_columns_mean_the_same_in_every_table(name):
    columns = TABLES[name]
    assert len(set(columns)) == len(columns)
    for side in ("", "_a", "_b"):
        assert f"layer{side}" not in columns or f"depth{side}" in columns
    errors = [column for column in columns if column == "se" or column.endswith("_se")]
    if errors == ["se"]:
        places = TEXT | {f"{place}{side}" for place in PLACES for side in ("", "_a", "_b")}
        assert len([column for column in columns if column not in places and column != "se"]) == 1
    else:
        assert all(error.endswith("_se") and error.removesuffix("_se") in columns for error in errors)


OLDER = {"data_scale/data_scale": {"df"}, "data_scale/probe_summary": {"df"}}
"""Columns that tables lack, because networks must be trained before these tables can be made anew."""


@pytest.mark.parametrize("name", ["uniformity", "training", *OLDER])
def test_tables_of_the_analyses(name):
    file = ROOT / "figures" / f"{name}.csv"
    lacking = OLDER.get(name, set())
    assert list(load_table(file)) == [column for column in TABLES[file.stem] if column not in lacking]


def test_every_column_of_every_table_is_names_or_numbers():
    """A column that names models, layers or kinds is text: whoever adds a column of names states it in TEXT."""
    numeric = {name for columns in TABLES.values() for name in columns} - TEXT
    assert not any(word in name for name in numeric for word in ("model", "layer", "kind")), numeric


@pytest.mark.parametrize("rows, error", [("0.1,vit", "its column cka holds words"), ("a,0.1,b", "more fields")])
def test_tables_that_cannot_be_what_they_should(tmp_path, rows, error):
    (tmp_path / "t.csv").write_text(f"layer,cka\n{rows}\n")
    with pytest.raises(rs.RepsimError, match=error):
        load_table(tmp_path / "t.csv", ["layer", "cka"])


@given(st.lists(st.text(max_size=6).filter(lambda name: "\0" not in name), unique=True, max_size=4))
@example(["file", "a.npy", "a", "args", "allow_pickle", "a/b", "../a", "0.10"])
def test_arrays_are_found_under_their_names(tmp_path_factory, names):
    path = tmp_path_factory.getbasetemp() / "maps.npz"
    save_arrays({name: np.full((2, i), i) for i, name in enumerate(names)}, path)
    arrays = load_arrays(path)
    assert list(arrays) == names and all((arrays[name] == i).all() for i, name in enumerate(names))


def test_arrays_that_no_file_can_hold_or_holds(tmp_path):
    for name in ("a\0b", "a\udcff"):
        with pytest.raises(rs.RepsimError, match="no file inside it can be called"):
            save_arrays({name: np.zeros(2)}, tmp_path / "maps.npz")
    assert os.listdir(tmp_path) == []
    (tmp_path / "maps.npz").write_text("no archive")
    with pytest.raises(rs.RepsimError, match="cannot read .*maps.npz"):
        load_arrays(tmp_path / "maps.npz")
