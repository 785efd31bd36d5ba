"""The verdicts of the table of chat templates, on templates whose verdict is known."""

from __future__ import annotations

import json

import pytest

from benchmarks.templates import ROWS, main, verdict

from ..trainer.data.chat.test_templates import ALWAYS, FIELDS, TOOLS
from ..trainer.data.test_conversations import CHATML, FORGETFUL, PLAIN, TAGGED


@pytest.mark.parametrize(
    ("template", "kind", "expected"),
    [
        (CHATML, "plain", {"verdict": "exact", "rows": 1, "ends": ["<|im_end|>"]}),
        (FORGETFUL, "plain", {"verdict": "exact", "rows": 2, "notes": ["row_per_answer"]}),
        (FIELDS, "reasoning", {"verdict": "exact", "rows": 2}),
        (TOOLS, "tools", {"verdict": "exact", "rows": 1}),
        (CHATML, "tools", {"verdict": "refused", "why": "data.not_written", "field": "messages[1].tool_calls[0]"}),
        (CHATML, "reasoning", {"verdict": "refused", "field": "messages[1].reasoning_content"}),
        (ALWAYS, "plain", {"verdict": "refused", "why": "data.not_prefix", "field": "messages[1]"}),
        # no header asks for an answer, although one has it
        (PLAIN, "plain", {"verdict": "inexact", "turns": [1, 3], "ends": []}),
        (TAGGED, "plain", {"verdict": "as marked"}),
    ],
)
def test_verdicts(template, kind, expected):
    found = verdict(template, ROWS[kind])
    assert {name: found[name] for name in expected} == expected


def test_a_folder_becomes_a_table(tmp_path, capsys):
    (tmp_path / "owner__repository__a.jinja").write_text(CHATML, encoding="utf-8")
    (tmp_path / "again.jinja").write_text(CHATML, encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TOOLS}), encoding="utf-8")
    assert main([str(tmp_path), "-o", str(tmp_path / "table.jsonl")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["file"] for line in lines] == ["again.jinja", "tokenizer_config.json"]
    assert "plain {'exact': 2}" in capsys.readouterr().out
