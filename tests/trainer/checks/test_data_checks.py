from __future__ import annotations

import pytest
from lora_train.trainer.checks.data_checks import data_problems
from lora_train.trainer.config.schema import DataSection

from ...conftest import DATA


def found(**changes) -> list[str]:
    data = DataSection(**{"train": str(DATA), **changes})
    return [problem.error for problem in data_problems(data, lambda key: "FILE")]


def test_nothing_is_wrong_with_data_that_is_there(tmp_path):
    (tmp_path / "a.csv").touch()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").touch()
    (tmp_path / "chat.jinja").touch()
    for train in (str(DATA), str(DATA.parent), "owner/rows", str(tmp_path), str(tmp_path / "saved")):
        assert found(train=train) == []
    assert found(train=[str(DATA), str(tmp_path)]) == found(train=str(DATA.parent / "*.jsonl")) == []
    assert found(columns={"instruction": "q", "label": None, "id": None}) == []
    assert found(chat_template="{{ messages }}") == found(chat_template=str(tmp_path / "chat.jinja")) == []
    assert found(prompt_template="{q} {a}", eval="owner/rows", eval_limit=3) == []


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"train": "./x.jsonl"}, "data.train: there is no file ./x.jsonl"),
        (
            {"eval": "EMPTY"},
            "data.eval: the folder EMPTY holds no data files (.jsonl, .json, .csv, .tsv, .parquet, .arrow, .txt)",
        ),
        ({"train": "EMPTY/../rows.xlsx"}, "data.train: EMPTY/../rows.xlsx is not a kind of file that rows are read"),
        ({"train": ["./x.jsonl"]}, "data.train: there is no file ./x.jsonl"),
        ({"eval": ["owner/rows"]}, "data.eval: there is no file owner/rows"),
        ({"train": "./nowhere*.jsonl"}, "data.train: no data file fits ./nowhere*.jsonl"),
        ({"eval": []}, "data.eval is an empty list"),
        ({"columns": {"instruction": "q", "output": "q"}}, "data.columns reads the column q twice"),
        ({"prompt_template": "{q"}, "data.prompt_template cannot be read: expected '}' before end of string"),
        ({"prompt_template": "{q.x}"}, "data.prompt_template cannot be read: {q.x}"),
        ({"prompt_template": "Q A"}, "data.prompt_template names no field of the rows"),
        ({"prompt_template": "{a}", "format": "text"}, "data.prompt_template and data.format=text are both given"),
        ({"chat_template": "{{ x }}", "format": "text"}, "data.chat_template has no effect on rows that are not"),
        ({"chat_template": "nowhere.jinja"}, "data.chat_template: there is no file nowhere.jinja"),
        ({"packing": True, "padding_free": False}, "data.packing=true needs data.padding_free=true"),
        ({"eval_limit": 3}, "data.eval_limit has no effect: there are no evaluation rows"),
    ],
)
def test_what_is_wrong_is_said_before_any_row_is_read(tmp_path, changes, error):
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.xlsx").touch()
    empty = str(tmp_path / "empty")
    changes = {
        key: value.replace("EMPTY", empty) if isinstance(value, str) else value for key, value in changes.items()
    }
    (message,) = found(**changes)
    assert message.replace(empty, "EMPTY").startswith(f"FILE: {error}")


def test_a_lost_link_hides_nothing_that_is_wrong_elsewhere(tmp_path):
    (tmp_path / "train.jsonl").symlink_to("nowhere")
    lost, unused = found(train=str(tmp_path), eval_limit=3)
    assert lost == f"{tmp_path}/train.jsonl is a link to a file that is not there"
    assert unused.startswith("FILE: data.eval_limit has no effect")
