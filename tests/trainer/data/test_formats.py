from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_train.trainer.data.formats import (
    FORMATS,
    alpaca_prompt,
    custom_format,
    detect,
    koalpaca_prompt,
    template_fields,
)
from lora_train.trainer.data.sources import BadRow

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def answer(rendered) -> str:
    ((start, end),) = rendered.spans
    return rendered.text[start:end]


def test_alpaca_and_koalpaca_templates():
    prompt, output = alpaca_prompt({"instruction": "Add", "input": "1 2", "output": "3"})
    assert prompt.endswith("### Instruction:\nAdd\n\n### Input:\n1 2\n\n### Response:\n")
    assert output == "3"
    assert "Input" not in alpaca_prompt({"instruction": "Add", "input": "", "output": "3"})[0]
    assert koalpaca_prompt({"instruction": "수도는?", "output": "서울"}) == ("### 질문: 수도는?\n\n### 답변:", " 서울")


@pytest.mark.parametrize("value", ["", None])
def test_an_input_may_be_empty_or_null(value):
    rendered = FORMATS["alpaca"].render({"instruction": "Add", "input": value, "output": "3"})
    assert rendered == FORMATS["alpaca"].render({"instruction": "Add", "output": "3"})


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"instruction": "a", "output": "b"}], "koalpaca"),
        ([{"instruction": "a", "output": "b"}, {"instruction": "a", "output": "b", "input": ""}], "alpaca"),
        ([{"instruction": "a", "input": "", "output": "b", "text": "c"}], "alpaca"),
        ([{"messages": [], "text": "c"}], "messages"),
        ([{"conversations": []}], "sharegpt"),
        ([{"prompt": "a", "completion": "b", "id": 3}], "prompt_completion"),
        ([{"instruction": "a", "output": [{"role": "assistant", "content": "b"}]}], "messages"),
        ([{"instruction": "a", "output": ["b"]}], "koalpaca"),
        ([{"text": "a"}], "text"),
        ([{"txt": "a"}, {"text": "a"}, 3], "text"),
        ([{"instruction": "a"}], None),
        ([], None),
    ],
)
def test_format_is_detected_by_the_fields_of_the_first_rows(rows, expected):
    assert detect(rows) == expected


def test_custom_template_trains_from_the_last_field_on():
    form = custom_format("### Q: {instruction}\n\n### A: {output} [END] {{}}")
    rendered = form.render({"instruction": "two {braces}", "output": "yes"})
    assert rendered.text == "### Q: two {braces}\n\n### A: yes [END] {}"
    assert answer(rendered) == "yes [END] {}"
    with pytest.raises(BadRow) as raised:
        form.render({"question": "x", "output": ""})
    assert {key for key, _ in raised.value.faults} == {"data.no_field", "data.empty_field"}


@pytest.mark.parametrize("template", ["{", "}", "{}", "{a.b}", "{a[0]}", "{a!r}", "{a:>3}"])
def test_fields_that_are_not_plain_names_are_refused(template):
    with pytest.raises(ValueError, match=r"[{}]|brace"):
        template_fields(template)
    assert template_fields("{{x}} {질문} {a b}") == ["질문", "a b"]


@given(row=JSON | st.fixed_dictionaries({"instruction": JSON, "output": JSON, "input": JSON}))
def test_any_row_is_rendered_or_refused(row):
    for form in (*FORMATS.values(), custom_format("{input} {output}")):
        try:
            rendered = form.render(row)
        except BadRow as bad:
            bad.problems(lambda: "row 1")  # every placeholder of the sentences is filled
        else:
            rendered.text.encode()
            assert answer(rendered).strip()


@given(template=st.text(alphabet="{}ab!:.[ "), row=st.fixed_dictionaries({"a": st.text(min_size=1), "b": st.text()}))
def test_any_template_is_refused_or_fills(template, row):
    try:
        fields = template_fields(template)
    except ValueError:
        return
    if fields:
        try:
            rendered = custom_format(template).render(row)
        except BadRow:
            return
        assert answer(rendered).startswith(row[fields[-1]])
