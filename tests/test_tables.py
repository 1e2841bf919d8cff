import json
import os

import pandas as pd
import pytest

import repsim as rs
from repsim.tables import load_table, prepare, save_record, save_table, whole


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
    with pytest.raises(rs.RepsimError, match="cannot write .*: No space left"), whole(target) as part:
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
