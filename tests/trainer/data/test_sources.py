from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_train.trainer.checks.data_checks import data_problems
from lora_train.trainer.config.schema import DataSection
from lora_train.trainer.data.sources import BadRow, open_source
from lora_train.trainer.errors import UserError

ROWS = [{"instruction": "수도는?", "output": 'a "b",\nc'}, {"instruction": "x", "output": "💙"}]


def read(source: Path) -> list:
    return [row for _, row in open_source(str(source)).rows()]


def places(source: Path) -> list[str]:
    return [where().replace(str(source), "SOURCE") for where, _ in open_source(str(source)).rows()]


def write_all(folder: Path) -> None:
    (folder / "b.jsonl").write_text("\n\n".join(map(json.dumps, ROWS)), encoding="utf-8-sig")
    (folder / "a.json").write_text(json.dumps({"data": ROWS}, indent=1), encoding="utf-8")
    (folder / "c.csv").write_text(
        'instruction,output\n수도는?,"a ""b"",\nc"\n\nx,💙\n', encoding="utf-8-sig", newline=""
    )
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "d.parquet")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("b.jsonl", ["SOURCE line 1", "SOURCE line 3"]),
        ("a.json", ["SOURCE row 0", "SOURCE row 1"]),
        ("c.csv", ["SOURCE line 2", "SOURCE line 5"]),
        ("d.parquet", ["SOURCE row 0", "SOURCE row 1"]),
    ],
)
def test_every_kind_of_file_gives_the_same_rows_with_their_places(tmp_path, name, expected):
    write_all(tmp_path)
    assert read(tmp_path / name) == ROWS
    assert places(tmp_path / name) == expected


def test_a_folder_is_its_data_files_sorted(tmp_path):
    write_all(tmp_path)
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / ".hidden.jsonl").write_text("not data")
    assert read(tmp_path) == ROWS * 4
    names = [place.split("/")[1].split(" ")[0] for place in places(tmp_path)]
    assert names == ["a.json"] * 2 + ["b.jsonl"] * 2 + ["c.csv"] * 2 + ["d.parquet"] * 2


def test_a_saved_data_set_is_its_train_split(tmp_path):
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": table.select([0]), "train": table}).save_to_disk(tmp_path / "dict")
    datasets.DatasetDict({"test": table}).save_to_disk(tmp_path / "test")
    assert read(tmp_path / "one") == read(tmp_path / "dict") == ROWS
    assert places(tmp_path / "one") == ["SOURCE row 0", "SOURCE row 1"]
    with pytest.raises(UserError, match="has no train split; it has: test"):
        open_source(str(tmp_path / "test"))
    (tmp_path / "one" / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="one cannot be read"):
        open_source(str(tmp_path / "one"))


def test_json_holds_a_list_or_lines(tmp_path):
    path = tmp_path / "rows.json"
    for text in (json.dumps(ROWS), "\n".join(map(json.dumps, ROWS))):
        path.write_text(text)
        assert read(path) == ROWS
    path.write_text(json.dumps(ROWS[0]))
    assert read(path) == ROWS[:1]
    path.write_text('[{"a": 1},\n{"b"}]')
    with pytest.raises(UserError, match=r"rows.json is not JSON: .*line 2"):
        read(path)
    path.write_text("3")
    with pytest.raises(UserError, match="holds a whole number, not a list of rows"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.jsonl", b'{"a": 1}\n\xff\n{"a": 2}', "x.jsonl line 2 is not UTF-8 text (byte 0)"),
        ("x.jsonl", b"{}\n" + b"[" * 100_000, "x.jsonl line 2: nested more than 100 levels deep"),
        ("x.jsonl", b"{}\n" + b"9" * 5000, "x.jsonl line 2 is not JSON: Exceeds the limit"),
        ("x.csv", b"a,b\n1,2\n3\n4,5", "x.csv line 3 has 1 fields, the header has 2"),
        ("x.csv", b'a,b\n1,2\n3,"4\n5,6', "x.csv line 3 is not CSV: unexpected end of data"),
    ],
)
def test_a_bad_line_takes_the_place_of_its_row(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    source = open_source(str(tmp_path / name))
    (index,) = [index for index, (_, row) in enumerate(source.rows()) if isinstance(row, BadRow)]
    where, row = list(source.rows())[index]
    assert index == 1
    assert row.problems(where)[0].error.replace(f"{tmp_path}/", "").startswith(expected)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.parquet", b"PAR1 not really", "x.parquet cannot be read: "),
        ("x.csv", b"a,b\n\xff", "x.csv is not UTF-8 text (byte 4)"),
        ("x.json", b"\xff", "x.json is not UTF-8 text (byte 0)"),
        (
            "x.xlsx",
            b"",
            "x.xlsx is not a kind of file that rows are read from (.jsonl, .json, .csv, .tsv, .parquet, .arrow, .txt)",
        ),
        ("folder/x.md", b"", "folder holds no data files"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error(tmp_path, name, content, expected):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read(path if path.parent == tmp_path else path.parent)
    assert raised.value.problems[0].error.replace(f"{tmp_path}/", "").startswith(expected)


@pytest.mark.parametrize("name", ["rows.jsonl", "none"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="is a pipe or a device"):
        open_source(str(tmp_path / name))
    data = DataSection(train=str(tmp_path / name))
    assert "is a pipe or a device" in next(str(found) for found in data_problems(data, str))


def test_a_file_of_a_folder_that_is_not_there_is_named_and_not_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}', encoding="utf-8")
    (tmp_path / "lost.txt").symlink_to("nowhere")  # no data beside a .jsonl
    assert [path.name for path in open_source(str(tmp_path)).files] == ["a.jsonl"]
    (tmp_path / "b.jsonl").symlink_to("nowhere.jsonl")
    for name in (str(tmp_path), str(tmp_path / "*.jsonl")):
        with pytest.raises(UserError, match=r"b\.jsonl is a link to a file that is not there"):
            open_source(name)
    (tmp_path / "b.jsonl").unlink()
    os.mkfifo(tmp_path / "b.jsonl")
    with pytest.raises(UserError, match=r"b\.jsonl is a pipe or a device"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("train", "test"), [("train.jsonl", "test.jsonl"), ("train-0-of-2.csv", "validation-0-of-1.csv")]
)
def test_rows_to_test_on_are_not_trained_on_because_they_lie_beside(tmp_path, train, test):
    for name in (train, test):
        (tmp_path / name).write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=f"rows to evaluate on beside those to train on: {test}") as refused:
        open_source(str(tmp_path))
    assert f"data.train is {tmp_path / train}," in str(refused.value)
    assert [path.name for path in open_source(str(tmp_path / "train*")).files] == [train]
    assert len(open_source(str(tmp_path / "*")).files) == 2


def test_content_hash_changes_with_any_byte(tmp_path, monkeypatch):
    write_all(tmp_path)
    before = open_source(str(tmp_path)).content_hash()
    assert open_source(str(tmp_path)).content_hash() == before
    with (tmp_path / "c.csv").open("a") as file:
        file.write(" ")
    assert open_source(str(tmp_path)).content_hash() != before
    tables = {"a/b": datasets.Dataset.from_list(ROWS), "a/c": datasets.Dataset.from_list(ROWS[:1])}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: tables[name])
    assert open_source("a/b").content_hash() == open_source("a/b").content_hash() != open_source("a/c").content_hash()


@given(
    suffix=st.sampled_from([".jsonl", ".json", ".csv", ".parquet"]),
    content=st.binary(max_size=60)
    | st.text(alphabet='{}[]",:\n\r ab1\\u\ufeff').map(str.encode)
    | st.text(alphabet='{"a": 1}\n').map(str.encode),
)
def test_any_bytes_give_rows_or_an_error(suffix, content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        path.write_bytes(content)
        try:
            rows = list(open_source(str(path)).rows())
        except UserError:
            return
        for where, row in rows:
            assert where()
            assert not isinstance(row, BadRow) or row.problems(where)
