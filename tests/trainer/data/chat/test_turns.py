"""Rows of other data sets and programs, as conversations."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_train.trainer.data.chat.turns import talk_of
from lora_train.trainer.data.formats import detect
from lora_train.trainer.data.readers import BadRow

from ..test_formats import JSON

PAIR = [("user", "물은?"), ("assistant", "100도")]
ROLES_AND_TEXTS = [{"role": role, "content": text} for role, text in PAIR]


def said(row, name="messages", columns=None) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in talk_of(name, row, columns).turns]


def refused(row, name="messages") -> list[tuple[str, str]]:
    with pytest.raises(BadRow) as raised:
        talk_of(name, row)
    raised.value.problems(lambda: "HERE")  # every placeholder of the sentences is filled
    return [(key, values["field"]) for key, values in raised.value.faults]


@pytest.mark.parametrize("name", ["messages", "sharegpt"])
@pytest.mark.parametrize("field", ["messages", "conversations"])
@pytest.mark.parametrize(("who", "what"), [("role", "content"), ("from", "value"), ("role", "value"), ("from", "text")])
@pytest.mark.parametrize(
    ("asks", "answers"),
    [
        ("user", "assistant"),
        ("human", "gpt"),
        ("prompter", "bot"),
        ("User", "chatgpt"),
        ("human", "model"),
        ("user", "ai"),
    ],
)
def test_speakers_and_fields_by_any_name_are_one_conversation(name, field, who, what, asks, answers):
    row = {field: [{who: asks, what: "물은?"}, {who: answers, what: "100도"}]}
    assert said(row, name) == PAIR
    assert talk_of(name, row).answers == (1,)


def test_content_in_text_parts_is_joined_and_other_parts_are_refused_by_their_place():
    parts = [{"type": "text", "text": "물"}, {"type": "text", "text": "은?"}]
    assert said({"messages": [{"role": "user", "content": parts}, ROLES_AND_TEXTS[1]]}) == PAIR
    image = [*parts, {"type": "image_url", "image_url": {"url": "cat.jpg"}}]
    row = {"messages": [{"role": "user", "content": image}, ROLES_AND_TEXTS[1]]}
    assert refused(row) == [("data.part", "messages[0].content[2]")]
    assert refused({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}) == [
        ("data.part", "messages[0].content[0]")
    ]
    assert refused({"messages": [{**ROLES_AND_TEXTS[0], "images": ["a.jpg"]}]}) == [
        ("data.media", "messages[0].images")
    ]


def test_prompt_and_completion_in_turns_train_on_the_completion_only():
    shot = [*ROLES_AND_TEXTS, {"role": "user", "content": "얼음은?"}]
    talk = talk_of("messages", {"prompt": shot, "completion": [{"role": "assistant", "content": "0도"}]})
    assert [turn["content"] for turn in talk.turns] == ["물은?", "100도", "얼음은?", "0도"]
    assert (talk.answers, talk.places[3]) == ((3,), "completion[0]")


def test_system_and_history_stand_before_the_question():
    row = {"instruction": "물은?", "input": "섭씨로", "output": "100도", "system": "짧게", "history": [["안녕", "네"]]}
    talk = talk_of("messages", row)
    assert said(row) == [
        ("system", "짧게"),
        ("user", "안녕"),
        ("assistant", "네"),
        ("user", "물은?\n섭씨로"),
        ("assistant", "100도"),
    ]
    assert talk.answers == (4,)
    assert refused({**row, "history": [["안녕"]]}) == [("data.not_pair", "history[0]")]
    assert refused({**row, "history": "x"}) == [("data.not_turns", "history")]
    beside = {
        "system": "짧게",
        "conversations": [{"from": "human", "value": "물은?"}, {"from": "gpt", "value": "100도"}],
    }
    assert said(beside, "sharegpt") == [("system", "짧게"), *PAIR]
    twice = {"system": "짧게", "messages": [{"role": "system", "content": "길게"}, *ROLES_AND_TEXTS]}
    assert refused(twice) == [("data.two_systems", "system")]
    assert said({**twice, "system": "길게"}) == [("system", "길게"), *PAIR]


@pytest.mark.parametrize(
    ("mark", "trained"),
    [
        ({"weight": 0}, ()),
        ({"weight": 1}, (1,)),
        ({"train": False}, ()),
        ({"loss": False}, ()),
        ({"masked": True}, ()),
        ({"mask": False}, (1,)),
        ({"trainable": True}, (1,)),
        ({"weight": None}, (1,)),
        ({"training": 0}, ()),
    ],
)
def test_what_a_turn_says_of_itself_is_honoured(mark, trained):
    for answer in ({"role": "assistant", "content": "100도"}, {"from": "gpt", "value": "100도"}):
        name = "messages" if "role" in answer else "sharegpt"
        row = {"messages" if "role" in answer else "conversations": [ROLES_AND_TEXTS[0], answer | mark]}
        assert talk_of(name, row).answers == trained


@pytest.mark.parametrize(
    ("turn", "mark", "key"),
    [
        (1, {"weight": 0.5}, "counts"),
        (1, {"train_detail": [{"begin_offset": 0}]}, "counts"),
        (1, {"mask": "x"}, "counts"),
        (0, {"train": True}, "counts_question"),
        (0, {"loss": True}, "counts_question"),
        (1, {"loss_mask": [1]}, "counts"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_field(turn, mark, key):
    turns = [dict(turn) for turn in ROLES_AND_TEXTS]
    turns[turn] |= mark
    assert refused({"messages": turns}) == [(f"data.{key}", f"messages[{turn}].{next(iter(mark))}")]


@pytest.mark.parametrize(
    ("field", "value", "key"),
    [
        ("chosen", "x", "preference"),
        ("reward", 0.3, "preference"),
        ("label", True, "preference"),
        ("label", 0, "preference"),
        ("images", ["a"], "media"),
        ("audio", "a.wav", "media"),
        ("weight", 0.3, "counts"),
        ("loss_mask", [1, 0], "counts"),
        ("masked", True, "counts"),
        ("train", False, "counts"),
    ],
)
def test_fields_of_a_row_that_say_how_it_counts_are_refused(field, value, key):
    assert refused({"messages": ROLES_AND_TEXTS, field: value}) == [(f"data.{key}", field)]


def test_remarks_are_named_and_empty_fields_are_not():
    row = {"messages": ROLES_AND_TEXTS, "id": 7, "url": "x", "images": [], "system": "", "weight": 1, "chosen": None}
    assert [dict(values)["field"] for _, values in talk_of("messages", row).notes] == ["id", "url"]


def test_columns_name_a_turns_fields():
    row = {"messages": [{"speaker": "human", "utterance": "물은?"}, {"speaker": "bot", "utterance": "100도"}]}
    assert said(row, columns={"role": "speaker", "content": "utterance"}) == PAIR


@pytest.mark.parametrize("name", ["messages", "sharegpt"])
@pytest.mark.parametrize(("who", "what"), [("role", "content"), ("from", "value")])
def test_fields_that_a_table_fills_with_null_are_not_there(name, who, what):
    """Data sets put together have every column of each in every row."""
    empty = dict.fromkeys(["role", "content", "from", "value"])
    turns = [{**empty, who: role, what: text} for role, text in PAIR]
    for row in ({"messages": turns, "conversations": None}, {"messages": None, "conversations": turns}):
        assert said(row, name) == PAIR
    assert refused({"messages": None}) == [("data.not_turns", "messages")]
    assert refused({"messages": [{"role": "user", "content": None}]}) == [("data.not_text", "messages[0].content")]


def test_turns_as_json_and_one_part_alone_are_read():
    assert said({"messages": json.dumps(ROLES_AND_TEXTS)}) == PAIR
    assert refused({"messages": "[{"}) == [("data.bad_json", "messages")]
    assert refused({"messages": "Hello"}) == [("data.not_turns", "messages")]
    assert (
        said({"messages": [{"role": "user", "content": {"type": "text", "text": "물은?"}}, ROLES_AND_TEXTS[1]]}) == PAIR
    )


@given(
    row=JSON
    | st.fixed_dictionaries(
        {"messages": st.lists(st.fixed_dictionaries({"role": JSON, "content": JSON, "weight": JSON}))}
    )
    | st.fixed_dictionaries({"instruction": JSON, "output": JSON, "history": JSON, "system": JSON, "tools": JSON})
)
def test_any_row_is_a_conversation_or_refused(row):
    for name in ("messages", "sharegpt"):
        try:
            talk = talk_of(name, row)
        except BadRow as bad:
            bad.problems(lambda: "HERE")
        else:
            assert all(isinstance(turn["content"], str) for turn in talk.turns)


@pytest.mark.parametrize(("question", "answer"), [("instruction", "output"), ("prompt", "completion")])
def test_columns_of_another_format_that_hold_nothing_decide_nothing(question, answer):
    row = {"messages": None, "conversations": [], question: "a", answer: "b"}
    assert [turn["content"] for turn in talk_of("messages", row).turns] == ["a", "b"]
    assert detect([row]) != "messages"


def test_a_completion_that_begins_with_its_question_gets_no_empty_one_before_it():
    row = {"prompt": "", "completion": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert [turn["role"] for turn in talk_of("messages", row).turns] == ["user", "assistant"]


CALL = {"name": "f", "arguments": {"a": 1}}


def unused(row) -> set[str]:
    return {value for key, values in talk_of("messages", row).notes if key == "data.not_used" for _, value in values}


@pytest.mark.parametrize(
    ("turn", "field"),
    [
        (
            {"role": "user", "content": [{"type": "text", "text": "물은?", "context": "C"}]},
            "messages[].content[].context",
        ),
        ({"role": "tool", "content": {"text": "100", "score": 3}}, "messages[].content[].score"),
        ({"role": "user", "content": "물은?", "function_call": CALL}, "messages[].function_call"),
        (
            {"role": "assistant", "content": "", "tool_calls": [CALL], "function_call": {**CALL, "name": "g"}},
            "messages[].function_call",
        ),
        ({"role": "assistant", "tool_calls": [{"function": {**CALL, "why": "W"}}]}, "messages[].tool_calls[].why"),
        ({"role": "assistant", "tool_calls": [{**CALL, "input": {"b": 2}}]}, "messages[].tool_calls[].input"),
    ],
)
def test_what_a_turn_holds_besides_is_told(turn, field):
    assert unused({"messages": [turn, ROLES_AND_TEXTS[1]]}) == {field}


@pytest.mark.parametrize("row", [{"input": ["C"]}, {"input": 7}, {"system": "S", "system_prompt": "T"}])
def test_what_cannot_stand_beside_a_question_is_refused(row):
    (_, field), *_ = refused({"instruction": "물은?", "output": "100도", **row})
    assert field in row


def test_what_stands_beside_turns_and_is_not_among_them_is_told():
    turns = {"prompt": ROLES_AND_TEXTS[:1], "completion": ROLES_AND_TEXTS[1:]}
    assert unused({**turns, "input": "C"}) == {"input"}
    assert unused({"messages": ROLES_AND_TEXTS, "tools": [{"name": "f"}], "functions": [{"name": "g"}]}) == {
        "functions"
    }


def test_media_within_a_part_is_refused_and_nulls_are_nothing():
    part = {"type": "text", "text": "물은?", "image": "cat.jpg"}
    assert refused({"messages": [{"role": "user", "content": [part]}]}) == [
        ("data.media", "messages[0].content[0].image")
    ]
    assert unused({"messages": [{"role": "user", "content": [{**part, "image": None}]}, ROLES_AND_TEXTS[1]]}) == set()


def test_a_system_prompt_in_parts_and_the_reasoning_of_a_call_are_kept():
    row = {"system": [{"type": "text", "text": "짧게"}], "messages": ROLES_AND_TEXTS}
    assert said(row)[0] == ("system", "짧게")
    assert unused({**row, "system": {"text": "짧게", "lang": "ko"}}) == {"system[].lang"}
    call = {"from": "function_call", "value": json.dumps(CALL), "reasoning": "왜냐하면"}
    (turn,) = talk_of("sharegpt", {"conversations": [call]}).turns
    assert turn["reasoning"] == "왜냐하면"
