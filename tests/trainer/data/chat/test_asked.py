"""What templates ask of a turn, in the ways in which they are written."""

from __future__ import annotations

import pytest
from lora_train.trainer.data.chat.asked import fields_of_turns

LOOP = "{% for message in messages %}BODY{% endfor %}"
# Qwen, Llama and Mistral take apart calls and tools, whose names are not a speaker's.
CALLS = """
{%- if tools %}{% for tool in tools %}{{ tool.function.name }}{{ tool['name'] }}{% endfor %}{% endif %}
{%- macro described(spec) %}{{ spec.name }}{% endmacro %}
{%- for message in messages %}
  {%- for tool_call in message.tool_calls %}
    {%- set fn = tool_call.function %}{{ fn.name }}{{ fn['text'] }}
    {%- set tool_call = tool_call.function %}{{ tool_call.name }}
  {%- endfor %}
  {%- for part in message['content'] %}{{ part.type }}{{ part['text'] }}{% endfor %}
  {%- for one in message.content %}{{ one.url }}{% endfor %}
{%- endfor %}
"""


@pytest.mark.parametrize(
    "body",
    [
        "{{ message.name }}",
        "{{ message['name'] }}",
        '{% if message.get("name") %}{% endif %}',
        "{% if 'name' in message %}{% endif %}",
        "{{ messages[0].name }}",
        "{% set last = messages[-1] %}{{ last['name'] }}",
        "{% generation %}{{ message.name }}{% endgeneration %}{% break %}",
    ],
)
def test_a_field_is_asked_for(body: str):
    assert "name" in fields_of_turns(LOOP.replace("BODY", body))


def test_fields_of_calls_tools_and_parts_are_not_a_turns():
    assert fields_of_turns(CALLS) == {"tool_calls", "content"}


def test_a_word_that_stands_somewhere_is_not_asked_for():
    assert fields_of_turns(LOOP.replace("BODY", "your name: {{ message.content }} {# message.name #}")) == {"content"}


def test_what_is_no_jinja_asks_for_every_word():
    assert fields_of_turns("{% for name") == {"for", "name"}
