"""Tools and their calls, whatever form they come in."""

from __future__ import annotations

import json

import pytest
from lora_train.trainer.data.chat.tools import calls_of, tools_of
from lora_train.trainer.data.chat.turns import talk_of

from .test_turns import ROLES_AND_TEXTS, refused


def test_calls_of_tools_in_every_form_are_one():
    function = {"name": "f", "arguments": {"a": 1}}
    call = {"type": "function", "function": function}
    turns = [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "x", "function": {**function, "arguments": '{"a": 1}'}}],
        },
        {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": '{"a": 1}'}},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
        {"from": "tool_call", "value": '[{"name": "f", "arguments": "{\\"a\\": 1}"}]'},
    ]
    turns += [{"from": "function_call", "value": {"name": "f", name: {"a": 1}}} for name in ("args", "input")]
    for turn in turns:
        (made,) = talk_of("messages", {"messages": [turn]}).turns
        assert [{name: value for name, value in one.items() if name != "id"} for one in made["tool_calls"]] == [call]
        assert made["content"] == ""
    assert refused({"messages": [{"from": "function_call", "value": "f()"}]}) == [
        ("data.bad_json", "messages[0].value")
    ]
    assert refused({"messages": [{"role": "assistant", "tool_calls": [{}]}]}) == [
        ("data.not_call", "messages[0].tool_calls")
    ]
    assert refused({"messages": ROLES_AND_TEXTS, "tools": "["}) == [("data.bad_json", "tools")]
    assert refused({"messages": ROLES_AND_TEXTS, "tools": 3}) == [("data.not_tools", "tools")]


def test_tools_as_json_of_all_or_of_each_are_the_same():
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    for tools in ([tool], json.dumps([tool]), [json.dumps(tool)], json.dumps(tool), [json.dumps(tool["function"])]):
        assert tools_of({"tools": tools}) == (tool,)
    assert refused({"messages": ROLES_AND_TEXTS, "tools": ["f"]}) == [("data.bad_json", "tools[0]")]


@pytest.mark.parametrize("name", ["arguments", "parameters", "args", "input"])
def test_arguments_go_by_several_names(name):
    (call,), unread = calls_of("HERE", [{"name": "f", name: {"a": 1}, "id": "7", "index": 0}])
    assert (call["function"]["arguments"], call["id"], unread) == ({"a": 1}, "7", ())


def test_a_null_that_was_written_is_kept_and_one_that_a_table_fills_in_is_not():
    (written,), _ = calls_of("HERE", [{"name": "f", "arguments": '{"a": null, "b": 1}'}])
    (filled,), _ = calls_of("HERE", [{"name": "f", "arguments": {"a": None, "b": 1}}])
    assert written["function"]["arguments"] == {"a": None, "b": 1}
    assert filled["function"]["arguments"] == {"b": 1}
