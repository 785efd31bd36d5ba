"""Miniatures of public chat templates, and the table of the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lora_train.trainer.data.chat.turns import talk_of
from lora_train.trainer.data.conversations import ChatFormat
from lora_train.trainer.data.readers import BadRow

from ..as_before import fingerprints
from ..test_conversations import CHATML, FORGETFUL, TURNS

TABLE = Path(__file__).parents[1] / "templates.jsonl"
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
# As DeepSeek R1's: the header opens a reasoning, and every answer is written without.
R1 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<A>' + m.content.split('</think>')[-1] + eos_token }}"
    "{% else %}{{ '<U>' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<A><think>\n' }}{% endif %}"
)
# As Gemma 4's: the header closes an empty reasoning that no answer has.
CLOSED = R1.replace("<A><think>\n", "<A><think>\n</think>\n")
# As Qwen3.5's: reasoning in a field of its own, kept behind the last question only, and a switch for it.
FIELDS = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}"
    "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% if enable_thinking is false %}"
    "{{ '\n</think>\n\n' }}{% endif %}{% endif %}"
)
# As Phi-3's: the end of the text stands behind the last turn only.
ENDS_ONCE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# As Mistral's: the system prompt stands in front of the last question.
MOVES = (
    "{% set rest = messages[1:] if messages[0].role == 'system' else messages %}{% for m in rest %}"
    "{% if m.role == 'user' %}{{ '[INST] ' }}{% if messages[0].role == 'system' and loop.index0 + 2 >= rest|length %}"
    "{{ messages[0].content + '\n\n' }}{% endif %}{{ m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
# As Gemma's: no system prompt, and roles that alternate.
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content + '<end>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
# As Command A's: it always asks for an answer.
ALWAYS = (
    "{% for m in messages %}{{ '<TURN>' + ('<BOT><ANSWER>' if m.role == 'assistant' else '<USER>') }}"
    "{{ m.content + '<END>' }}{% endfor %}{{ '<TURN><BOT>' }}"
)
# As SmolVLM's: content is a list of parts.
PARTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% for part in m.content %}{% if part.type == 'text' %}"
    "{{ part.text }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}" + ASK
)
TOOLS = (
    "{% for tool in tools or [] %}{{ '[' + tool.function.name + ']' }}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% for c in m.tool_calls or [] %}"
    "{{ '<call>' + c.function.name + ' ' + (c.function.arguments | tojson) + '</call>' }}{% endfor %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}" + ASK
)
TEXT_ARGUMENTS = TOOLS.replace("(c.function.arguments | tojson)", "c.function.arguments")


def form(template: str) -> ChatFormat:
    return ChatFormat("messages", template, SPECIALS)


def exact(template: str, row: dict, n_answers: int = 2) -> list[str]:
    """The answers that are trained on, each behind exactly what the template asks with."""
    rendered = form(template).render(row)
    found = []
    for part in (*rendered.earlier, rendered):
        for start, end in part.spans:
            found.append((part.text[:start], part.text[start:end]))
    assert len(found) == n_answers
    runner = form(template).runner
    fitted = runner.fitted(talk_of("messages", row))
    for i, (before, _) in zip(fitted.answers, found, strict=True):
        asked = [form(template)._upto(fitted, i, header=True, **values) for values in ({}, {"enable_thinking": False})]
        assert before in asked
    return [answer for _, answer in found]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (FORGETFUL, ["<think>\n\n</think>\n\n{}<|im_end|>"] * 2),
        (R1, ["\n</think>\n\n{}</s>"] * 2),
        (CLOSED, ["{}</s>"] * 2),
        (FIELDS, ["\n</think>\n\n{}<|im_end|>"] * 2),
        (ENDS_ONCE, ["{}<|end|>\n</s>"] * 2),
        (MOVES, [" {}</s>"] * 2),
        (NO_SYSTEM, ["{}<end>"] * 2),
        (PARTS, ["{}<|im_end|>"] * 2),
    ],
    ids=["forgetful", "r1", "closed", "fields", "ends_once", "moves", "no_system", "parts"],
)
@pytest.mark.parametrize("system", [True, False])
def test_both_answers_are_trained_on_as_they_will_be_asked_for(template, expected, system):
    row = {"messages": TURNS if system else TURNS[1:]}
    assert exact(template, row) == [
        text.format(said) for text, said in zip(expected, ("서울입니다.", "파리입니다."), strict=True)
    ]


def test_a_template_that_asks_behind_every_answer_is_refused_and_one_that_cannot_ask_is_not():
    with pytest.raises(BadRow) as raised:
        form(ALWAYS).render({"messages": TURNS})
    assert raised.value.faults[0] == ("data.not_prefix", {"turn": 3, "field": "messages[2]"})
    rendered = form(ALWAYS.replace("{{ '<TURN><BOT>' }}", "")).render({"messages": TURNS})
    assert [rendered.text[start:end] for start, end in rendered.spans] == ["서울입니다.<END>", "파리입니다.<END>"]


def test_a_system_prompt_that_the_template_refuses_stands_in_front_of_the_question():
    rendered = form(NO_SYSTEM).render({"messages": TURNS})
    assert rendered.text.startswith("<turn>user\nAnswer in Korean.\n\n수도는?<end>\n<turn>model\n서울입니다.<end>\n")
    assert ("data.system_in_user", ()) in rendered.notes


def test_reasoning_is_trained_on_in_every_answer_that_has_one():
    thoughts = iter(("한국", "프랑스"))
    turns = [turn | ({"reasoning_content": next(thoughts)} if turn["role"] == "assistant" else {}) for turn in TURNS]
    written = ["한국\n</think>\n\n서울입니다.", "프랑스\n</think>\n\n파리입니다."]
    assert exact(FIELDS, {"messages": turns}) == [f"{text}<|im_end|>" for text in written]
    assert exact(R1, {"messages": turns}) == [f"{text}</s>" for text in written]
    inline = [
        {"role": turn["role"], "content": f"<think>\n{turn['reasoning_content']}\n</think>\n\n{turn['content']}"}
        if "reasoning_content" in turn
        else turn
        for turn in turns
    ]
    assert exact(R1, {"messages": inline}) == [f"{text}</s>" for text in written]
    assert exact(CHATML, {"messages": inline}) == [f"<think>\n{text}<|im_end|>" for text in written]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_that_the_template_never_writes_is_refused_by_its_field(name):
    turns = [*TURNS[:2], TURNS[2] | {name: "한국이니까"}]
    with pytest.raises(BadRow) as raised:
        form(CHATML).render({"messages": turns})
    assert raised.value.faults == (("data.reasoning_not_written", {"field": f"messages[2].{name}"}),)


CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "서울"}'}}
TOOL = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
OPENAI = {
    "messages": [
        {"role": "user", "content": "서울 날씨는?"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": '{"t": 3}'},
        {"role": "assistant", "content": "3도입니다."},
    ],
    "tools": [{"type": "function", "function": TOOL}],
}
SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "서울 날씨는?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "서울"}}'},
        {"from": "observation", "value": '{"t": 3}'},
        {"from": "gpt", "value": "3도입니다."},
    ],
    "tools": json.dumps([TOOL]),
}


@pytest.mark.parametrize("template", [TOOLS, TEXT_ARGUMENTS])
@pytest.mark.parametrize("row", [OPENAI, SHAREGPT])
def test_calls_of_tools_are_trained_on_and_their_results_are_not(template, row):
    rendered = form(template).render(row)
    assert rendered.text.startswith("[weather]<|im_start|>user\n")
    assert [rendered.text[start:end] for start, end in rendered.spans] == [
        '<call>weather {"city": "서울"}</call><|im_end|>',
        "3도입니다.<|im_end|>",
    ]
    assert not rendered.notes


@pytest.mark.parametrize("content", [None, "", "..."])
def test_a_call_may_have_content_or_none(content):
    messages = [OPENAI["messages"][0], {**OPENAI["messages"][1], "content": content}]
    (span,) = form(TOOLS).render({"messages": messages}).spans
    rendered = form(TOOLS).render({"messages": messages})
    assert rendered.text[slice(*span)] == f'<call>weather {{"city": "서울"}}</call>{content or ""}<|im_end|>'


def test_what_a_template_leaves_out_of_tools_is_said_and_a_call_it_leaves_out_is_refused():
    partly = TOOLS.replace("tools or []", "[]").replace(" + ' ' + (c.function.arguments | tojson)", "")
    notes = {key for key, _ in form(partly).render(OPENAI).notes}
    assert notes == {"data.tools_not_written", "data.arguments_not_written"}
    with pytest.raises(BadRow) as raised:
        form(CHATML).render(OPENAI)
    assert ("data.not_written", {"field": "messages[1].tool_calls[0]"}) in raised.value.faults


def test_a_turn_that_the_template_leaves_out_is_refused_by_its_field():
    template = CHATML.replace(
        "{% for message in messages %}", "{% for message in messages if message.role != 'tool' %}"
    )
    turns = [*TURNS[:3], {"role": "tool", "content": "3"}, *TURNS[3:]]
    with pytest.raises(BadRow) as raised:
        form(template).render({"messages": turns})
    assert raised.value.faults == (("data.not_written", {"field": "messages[3].content"}),)


@pytest.mark.parametrize("knows", [True, False])
def test_developer_is_system_where_the_template_knows_none(knows):
    template = CHATML.replace("{% for message in messages %}", "{% for message in messages if message.role in ROLES %}")
    roles = "('system', 'user', 'assistant', 'developer')" if knows else "('system', 'user', 'assistant')"
    rendered = form(template.replace("ROLES", roles)).render(
        {"messages": [{"role": "developer", "content": "짧게."}, *TURNS[1:3]]}
    )
    assert f"<|im_start|>{'developer' if knows else 'system'}\n짧게.<|im_end|>" in rendered.text
    assert rendered.notes == (() if knows else (("data.developer_is_system", ()),))


def test_rows_that_were_read_before_give_the_tokens_and_masks_they_gave():
    recorded = json.loads(TABLE.with_name("as_before.json").read_text(encoding="utf-8"))
    assert fingerprints() == recorded


def test_the_table_of_real_templates_has_enough_that_are_exact_and_names_what_is_refused():
    lines = [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]
    assert len({line["sha256"] for line in lines}) == len(lines) >= 60
    assert sum(line["plain"]["verdict"] == "exact" for line in lines) >= 50
    for line in lines:
        for kind in ("plain", "system", "reasoning", "tools"):
            found = line[kind]
            assert found["verdict"] in ("exact", "refused", "as marked")
            assert (found["verdict"] == "as marked") <= line["marks"]
            assert found["verdict"] != "refused" or (found["why"] and found["field"])
