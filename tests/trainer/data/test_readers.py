"""Every kind of file gives the same rows, or is named with what it is."""

from __future__ import annotations

import contextlib
import gzip
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lora_train.trainer.data.readers import DEEPEST, BadRow, kind_of, parse_row, read_rows
from lora_train.trainer.data.sources import open_source
from lora_train.trainer.errors import UserError

ROWS = [{"instruction": "수도는?", "output": "서울, 대한민국"}, {"instruction": "색은?", "output": '"파랑"\n'}]


def csv_text(delimiter: str, newline: str = "\n") -> str:
    quoted = [[f'"{value}"'.replace('"파랑"', '""파랑""') for value in row.values()] for row in ROWS]
    return newline.join(delimiter.join(cells) for cells in [["instruction", "output"], *quoted]) + newline


def arrow_bytes(as_file: bool) -> bytes:
    sink, table = pa.BufferOutputStream(), pa.Table.from_pylist(ROWS)
    writer = pa.ipc.new_file(sink, table.schema) if as_file else pa.ipc.new_stream(sink, table.schema)
    with writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


JSONL = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
FILES = {
    "rows.jsonl": JSONL.encode(),
    "bom.jsonl": JSONL.encode("utf-8-sig"),
    "crlf.jsonl": JSONL.replace("\n", "\r\n").encode(),
    "utf16.jsonl": JSONL.encode("utf-16"),
    "big.jsonl": b"\xfe\xff" + JSONL.encode("utf-16-be"),
    "rows.json": json.dumps(ROWS).encode("utf-16"),
    "data.json": json.dumps({"data": ROWS}).encode(),
    "splits.json": json.dumps({"train": ROWS, "test": ROWS[:1]}).encode(),
    "named.json": json.dumps({"version": 2, "train": ROWS}).encode(),
    "rows.csv": csv_text(",").encode(),
    "bom.csv": csv_text(",").encode("utf-8-sig"),
    "crlf.csv": csv_text(",", "\r\n").encode(),
    "semicolon.csv": csv_text(";").encode(),
    "utf16.csv": csv_text(";").encode("utf-16"),
    "rows.tsv": csv_text("\t").encode(),
    "stream.arrow": arrow_bytes(as_file=False),
    "file.arrow": arrow_bytes(as_file=True),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", [*FILES, "rows.parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name, packed):
    if name == "rows.parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / name)
        content = (tmp_path / name).read_bytes()
    else:
        content = FILES[name]
    path = tmp_path / (name + (".gz" if packed else ""))
    path.write_bytes(gzip.compress(content) if packed else content)
    assert [row for _, row in read_rows(path.name, path)] == ROWS
    assert [row for _, row in open_source(str(path)).rows()] == ROWS


def test_a_text_file_is_a_row_a_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("첫 줄\r\n\r\n둘째 줄".encode())
    assert [row for _, row in read_rows("a.txt", tmp_path / "a.txt")] == [{"text": "첫 줄"}, {"text": "둘째 줄"}]


@pytest.mark.parametrize(
    ("encoding", "named"), [("cp949", "cp949"), ("utf-16-le", "utf-16le"), ("utf-16-be", "utf-16be")]
)
def test_another_encoding_is_named(tmp_path, encoding, named):
    text = JSONL.replace("서울, 대한민국", "서울, 대한민국의 수도입니다")
    (tmp_path / "a.jsonl").write_bytes(text.encode(encoding))
    _, row = next(iter(read_rows("a.jsonl", tmp_path / "a.jsonl")))
    assert isinstance(row, BadRow)
    (found,) = row.problems(lambda: "a.jsonl line 1")
    assert f"it looks like {named}" in found.error
    assert f"iconv -f {named} -t utf-8" in found.hint
    if encoding == "cp949":
        (tmp_path / "a.csv").write_bytes(csv_text(",").encode(encoding))
        with pytest.raises(UserError, match="it looks like cp949"):
            list(read_rows("a.csv", tmp_path / "a.csv"))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet.gz", "a.csv.gz"])
def test_a_torn_gz_is_an_error(tmp_path, name):
    for content in (gzip.compress(JSONL.encode() * 50)[:-20], b"no gzip"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            list(read_rows(name, tmp_path / name))


OTHERS = {
    "gzip": gzip.compress(b"{}"),
    "zip": b"PK\x03\x04..",
    "parquet": b"PAR1\x15\x04",
    "zstd": b"\x28\xb5\x2f\xfd..",
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.jsonl.gz"])
def test_a_file_of_another_kind_is_named_and_not_called_badly_encoded(tmp_path, name, kind):
    content = OTHERS[kind]
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(UserError, match=f"{name} is a {kind}.* file, whatever its name says"):
        list(read_rows(name, tmp_path / name))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet", "a.arrow"])
def test_columns_of_one_name_are_refused(tmp_path, name):
    table = pa.Table.from_arrays([pa.array(["q"]), pa.array(["a"]), pa.array(["b"])], ["prompt", "output", "output"])
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    elif name == "a.arrow":
        with pa.ipc.new_stream(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table)
    else:
        rows = (["prompt", "output", "output"], ["q", "a", "b"])
        text = "\n".join(("," if name == "a.csv" else "\t").join(cells) for cells in rows)
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="several columns of one name: output"):
        list(read_rows(name, tmp_path / name))


def test_columns_without_a_name_are_nobodys(tmp_path):
    (tmp_path / "a.csv").write_text("text,,\nq,,\n", encoding="utf-8")
    assert [row for _, row in read_rows("a.csv", tmp_path / "a.csv")] == [{"text": "q", "": ""}]


def test_a_field_that_stands_twice_in_an_object_is_refused(tmp_path):
    for text in ('{"output": "a", "output": "b"}', '{"messages": [{"content": "a", "content": "b"}]}'):
        (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
        ((_, row),) = read_rows("a.jsonl", tmp_path / "a.jsonl")
        assert isinstance(row, BadRow)
        assert row.faults[0][0] == "data.field_twice"
        # of a file of many rows it is that row, and the others are whole
        (tmp_path / "a.json").write_text(f'[{{"output": "c"}}, {text}]', encoding="utf-8")
        (_, whole), (where, bad) = read_rows("a.json", tmp_path / "a.json")
        assert whole == {"output": "c"}
        assert isinstance(bad, BadRow)
        assert re.match(r"error: a\.json row 1 has the field \w+ twice", str(bad.problems(where)[0]))
        (tmp_path / "b.json").write_text(f'{text}\n{{"output": "c"}}\n', encoding="utf-8")  # lines, under another name
        (_, bad), (_, whole) = read_rows("b.json", tmp_path / "b.json")
        assert isinstance(bad, BadRow)
        assert whole == {"output": "c"}


def test_what_begins_like_another_kind_and_is_text_is_read(tmp_path):
    for start in ("PAR1", "BZh", "ARROW1"):
        (tmp_path / "a.csv").write_text(f"{start},답변\n1,2\n", encoding="utf-8")
        assert [row for _, row in read_rows("a.csv", tmp_path / "a.csv")] == [{start: "1", "답변": "2"}]
    (tmp_path / "a.txt").write_bytes(b"abc\0\0\0def\n")
    assert [row for _, row in read_rows("a.txt", tmp_path / "a.txt")] == [{"text": "abc\0\0\0def"}]


def test_a_list_called_data_is_what_is_read_whatever_stands_beside_it(tmp_path):
    (tmp_path / "a.json").write_text('{"data": [{"text": "a"}], "train": [{"epochs": 3}]}', encoding="utf-8")
    assert [row for _, row in read_rows("a.json", tmp_path / "a.json")] == [{"text": "a"}]


def test_a_column_that_python_has_no_value_for_is_named(tmp_path):
    late = pa.array([2**60], pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["a"], "made": late}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: column made cannot be read"):
        list(read_rows("a.parquet", tmp_path / "a.parquet"))


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.json", "a.jsonl"])
def test_utf16_without_its_mark_is_named_though_it_is_utf8_with_zeros(tmp_path, name):
    (tmp_path / name).write_bytes('{"text": "plain ascii"}\n'.encode("utf-16-le"))
    said = ""
    try:
        for where, row in read_rows(name, tmp_path / name):
            said += str(row.problems(where)[0]) if isinstance(row, BadRow) else str(row)
    except UserError as error:
        said = str(error)
    assert "it looks like utf-16le" in said
    (tmp_path / name).write_bytes('{"text": "plain ascii"}'.encode("utf-16-be"))
    with pytest.raises(UserError, match="utf-16be") if name != "a.jsonl" else contextlib.nullcontext():
        ((where, row),) = read_rows(name, tmp_path / name)
        assert "it looks like utf-16be" in str(row.problems(where)[0])


def test_kinds():
    names = {"a.jsonl": ".jsonl", "a.JSONL.GZ": ".jsonl", "a.gz": "", "a.xlsx": "", "a.tar.gz": "", "b.tsv": ".tsv"}
    from pathlib import Path

    assert {name: kind_of(Path(name)) for name in names} == names


def test_several_files_are_read_one_behind_the_other(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}), encoding="utf-8")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "d.csv").write_text("text\nd\n", encoding="utf-8")

    def texts(value) -> list[str]:
        return [row["text"] for _, row in open_source(value).rows()]

    assert texts([str(tmp_path / "c.jsonl"), str(tmp_path / "a.jsonl")]) == ["c", "a"]
    assert texts(str(tmp_path / "[ab].jsonl")) == ["a", "b"]
    assert texts(str(tmp_path / "**" / "*.*")) == ["a", "b", "c", "d"]
    assert texts([str(tmp_path / "more"), str(tmp_path / "*.jsonl")]) == ["d", "a", "b", "c"]
    where, _ = next(iter(open_source([str(tmp_path / "more"), str(tmp_path / "a.jsonl")]).rows()))
    assert where() == f"{tmp_path / 'more' / 'd.csv'} line 2"
    with pytest.raises(UserError, match="no data file fits"):
        open_source(str(tmp_path / "x*.jsonl"))


def test_a_folder_prefers_what_it_always_read(tmp_path):
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"text": "gz"}'))
    (tmp_path / "README.txt").write_text("no data", encoding="utf-8")
    assert [path.name for path in open_source(str(tmp_path)).files] == ["README.txt", "rows.jsonl.gz"]
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}', encoding="utf-8")
    assert [path.name for path in open_source(str(tmp_path)).files] == ["rows.jsonl"]


@pytest.mark.parametrize("depth", [DEEPEST + 1, 900, 5000])
def test_a_row_that_is_nested_too_deep_is_a_bad_row(tmp_path, depth):
    fine, deep = (f'{{"tools": {"[" * n}1{"]" * n}}}' for n in (DEEPEST - 1, depth))
    (tmp_path / "rows.jsonl").write_text(f"{fine}\n{deep}\n")
    first, second = (row for _, row in read_rows("rows.jsonl", tmp_path / "rows.jsonl"))
    assert not isinstance(first, BadRow)
    assert isinstance(second, BadRow)
    assert second.faults == (("data.too_deep", {"levels": DEEPEST}),)
    with pytest.raises(BadRow):
        parse_row(deep)


def test_a_row_of_a_json_file_that_is_nested_too_deep_is_a_bad_row(tmp_path):
    (tmp_path / "rows.json").write_text(f'[{{"a": 1}}, {{"a": {"[" * 300}{"]" * 300}}}]')
    first, second = (row for _, row in read_rows("rows.json", tmp_path / "rows.json"))
    assert first == {"a": 1}
    assert isinstance(second, BadRow)
    assert second.faults == (("data.too_deep", {"levels": DEEPEST}),)
