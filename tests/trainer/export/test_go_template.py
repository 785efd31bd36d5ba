"""Chat templates in Ollama's language, compared with Jinja's rendering of other conversations than found them."""

from __future__ import annotations

import pytest
from lora_train.trainer.export.go_template import go_template
from transformers.utils.chat_template_utils import render_jinja_template

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
BEGINS = "{{ bos_token }}" + CHATML
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
FOLDED = (
    "{% set s = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ s if loop.first }}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
DATED = "{{ strftime_now('%H:%M:%S.%f') }}" + CHATML
FORGETS = CHATML.replace("{{ m.content }}", "{{ m.content if loop.last else '...' }}")
BRACES = CHATML.replace("<|im_end|>", "{{ '}}' }}")


def renderer(template: str):
    def render(messages, asked):
        rendered = render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=asked, bos_token="<s>", eos_token="</s>"
        )
        return rendered[0][0]

    return render


TALKS = [
    [{"role": "user", "content": "수도는?"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
        {"role": "user", "content": "e"},
    ],
]


@pytest.mark.parametrize("template", [CHATML, DEFAULT, BEGINS, NO_SYSTEM])
def test_what_is_found_says_what_jinja_says(template):
    found = go_template(renderer(template), "<s>")
    assert found is not None
    talks = [*TALKS]
    if template is not NO_SYSTEM:
        talks += [[{"role": "system", "content": "Be brief."}, *talk] for talk in TALKS]
    for talk in talks:
        assert found.render(talk) == renderer(template)(talk, True).removeprefix("<s>")
    assert found.default == ("Be kind." if template is DEFAULT else "")


def test_the_text_in_gos_language():
    found = go_template(renderer(CHATML), None)
    assert found is not None
    assert found.text() == (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
        "{{ if .Prompt }}<|im_start|>user\n{{ .Prompt }}<|im_end|>\n{{ end }}"
        "<|im_start|>assistant\n{{ .Response }}<|im_end|>\n"
    )


@pytest.mark.parametrize("template", [DATED, FORGETS, BRACES, "always the same"])
def test_what_cannot_be_said_is_not_said(template):
    assert go_template(renderer(template), None) is None


def test_a_system_prompt_within_the_question_stands_before_it_or_is_not_said():
    found = go_template(renderer(FOLDED), None)
    assert found is None or all(found.render(talk) == renderer(FOLDED)(talk, True) for talk in TALKS)
