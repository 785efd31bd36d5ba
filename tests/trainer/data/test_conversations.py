from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_train.trainer.config.schema import DataSection
from lora_train.trainer.data.conversations import ChatFormat, find_template, turns_of
from lora_train.trainer.data.examples import load_examples
from lora_train.trainer.data.masks import tokenize
from lora_train.trainer.data.sources import BadRow
from lora_train.trainer.errors import UserError
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from ...conftest import DATA
from .test_formats import JSON

# As Qwen2's, shortened: a system prompt of its own, a header to ask with, white space behind the end of a turn.
CHATML = (
    "{% if messages and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Llama 2's: no header to ask with, the system prompt inside the first user turn, content without its white space.
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message %}"
    "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# With generation tags; the header of an answer is outside of them.
TAGGED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
)
# No header to ask with, although an answer has one; nothing but a line break ends a turn.
PLAIN = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
# As Qwen3's: reasoning stays in the last answer only.
FORGETFUL = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = [
    {"role": "system", "content": "Answer in Korean."},
    {"role": "user", "content": "수도는?"},
    {"role": "assistant", "content": "서울입니다."},
    {"role": "user", "content": "And of France?"},
    {"role": "assistant", "content": "파리입니다."},
]


@pytest.fixture(scope="module")
def tokenizer():
    bpe = ByteLevelBPETokenizer()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    bpe.train([str(DATA)], vocab_size=512, special_tokens=special, show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="</s>")


def trained(tokenizer, template: str, turns: list) -> list[str]:
    """The runs of supervised tokens, decoded."""
    rendered = ChatFormat("messages", template, tokenizer.special_tokens_map).render({"messages": turns})
    ((ids, supervised),) = tokenize([rendered], tokenizer, is_chat=True)
    assert tokenizer.decode(ids) == rendered.text
    runs, before = [], False
    for token, wanted in zip(ids, supervised, strict=True):
        if wanted:
            runs = [*runs[:-1], [*runs[-1], token]] if before else [*runs, [token]]
        before = wanted
    return [tokenizer.decode(run) for run in runs]


def answers(rendered) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.spans]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, ["서울입니다.<|im_end|>", "파리입니다.<|im_end|>"]),
        (LLAMA2, [" 서울입니다. </s>", " 파리입니다. </s>"]),
        (TAGGED, ["서울입니다.<|im_end|>", "파리입니다.<|im_end|>"]),
        (PLAIN, [" 서울입니다.\n", " 파리입니다.\n"]),
    ],
)
def test_every_answer_with_the_end_of_its_turn_is_trained_on_and_nothing_else(tokenizer, template, expected):
    assert trained(tokenizer, template, TURNS) == expected
    assert trained(tokenizer, template, TURNS[1:3]) == expected[:1]
    assert trained(tokenizer, template, TURNS[:2]) == []


def test_the_system_prompt_and_special_tokens_are_the_templates_own(tokenizer):
    texts = {
        name: ChatFormat("messages", template, tokenizer.special_tokens_map).render({"messages": TURNS[1:3]}).text
        for name, template in (("chatml", CHATML), ("llama2", LLAMA2))
    }
    assert texts["chatml"].startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n수도는?")
    assert texts["llama2"] == "<s>[INST] 수도는? [/INST] 서울입니다. </s>"


def test_thinking_that_the_model_writes_itself_is_trained_on(tokenizer):
    assert trained(tokenizer, FORGETFUL, TURNS[1:3]) == ["<think>\n\n</think>\n\n서울입니다.<|im_end|>"]


def test_a_template_that_rewrites_earlier_turns_trains_on_each_answer_as_it_will_be_asked_for(tokenizer):
    form = ChatFormat("messages", FORGETFUL, tokenizer.special_tokens_map)
    rendered = form.render({"messages": TURNS})
    (earlier,) = rendered.earlier
    assert earlier == form.render({"messages": TURNS[:3]})
    assert answers(earlier) == ["<think>\n\n</think>\n\n서울입니다.<|im_end|>"]
    assert answers(rendered) == ["<think>\n\n</think>\n\n파리입니다.<|im_end|>"]
    assert rendered.notes == (("data.row_per_answer", ()),)


def test_a_template_that_changes_the_answer_is_refused_unless_it_asks_for_it(tokenizer):
    with pytest.raises(BadRow, match="not_prefix"):
        trained(tokenizer, PLAIN.replace("message['content']", "message['content'] | upper"), TURNS)


def test_a_template_that_refuses_a_conversation_is_quoted(tokenizer):
    with pytest.raises(BadRow) as raised:
        trained(tokenizer, LLAMA2, [*TURNS, TURNS[-1]])
    (refusal,) = raised.value.problems(lambda: "HERE")
    assert refusal.error.startswith("HERE: the chat template refuses the conversation: Conversation roles must alter")


def test_a_template_that_prints_the_date_gives_the_same_tokens_tomorrow():
    """Llama 3's way of asking for it."""
    dated = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    template = dated + "{{ 'Today Date: ' + date_string + '\n' }}" + PLAIN
    rendered = ChatFormat("messages", template, {}).render({"messages": TURNS[1:3]})
    assert rendered.text.startswith("Today Date: 26 Jul 2024\n")
    assert [rendered.text[start:end] for start, end in rendered.spans] == ["서울입니다.\n"]


def test_what_parquet_fills_with_null_is_not_there_for_the_template():
    (turn,) = turns_of("messages", {"messages": [{"role": "user", "content": "x", "tool_calls": None}]})
    assert turn == {"role": "user", "content": "x"}


def write(folder, *rows) -> str:
    path = folder / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def section(**changes) -> DataSection:
    return DataSection(**{"train": "x", "cache": False, **changes})


def test_sharegpt_and_messages_give_the_same_tokens(tmp_path, tokenizer):
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [{"from": names[turn["role"]], "value": turn["content"]} for turn in TURNS]
    (tmp_path / "chat.jinja").write_text(CHATML, encoding="utf-8")
    prints = set()
    for template in (CHATML, str(tmp_path / "chat.jinja")):
        for row in ({"conversations": turns}, {"messages": TURNS}):
            dataset = load_examples(write(tmp_path, row), section(chat_template=template), tokenizer)
            assert dataset.format == ("messages" if "messages" in row else "sharegpt")
            prints.add(dataset.fingerprint())
    assert len(prints) == 1


def test_train_on_inputs_trains_on_the_whole_conversation(tmp_path, tokenizer):
    source = write(tmp_path, {"messages": TURNS})
    (example,) = load_examples(source, section(chat_template=CHATML, train_on_inputs=True), tokenizer).examples
    assert example.supervised.tolist() == [False] + [True] * (len(example.input_ids) - 1)


def test_a_tokenizer_without_a_template_is_an_error_with_what_to_do(tmp_path, tokenizer):
    source = write(tmp_path, {"messages": TURNS})
    with pytest.raises(UserError, match="has no chat template to write conversations with") as raised:
        load_examples(source, section(), tokenizer)
    assert "data.chat_template" in raised.value.problems[0].hint
    with pytest.raises(UserError, match=r"the chat template of data.chat_template cannot be used: Encountered unknown"):
        load_examples(source, section(chat_template="{% nonsense %}"), tokenizer)
    assert find_template(CHATML, tokenizer) == CHATML


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("messages", {"text": "x"}, ["HERE has no field messages; it has: text"]),
        ("messages", {"messages": "x"}, ["HERE: messages is text, not a list of turns"]),
        ("messages", {"messages": []}, ["HERE: messages is empty"]),
        ("messages", {"messages": ["x"]}, ["HERE: messages[0] is text, not an object with role and content"]),
        ("messages", {"messages": [{"role": "user"}]}, ["HERE has no field messages[0].content; it has: role"]),
        (
            "messages",
            {"messages": [{"role": "assistant", "content": None}, {"role": "assistant", "content": " "}]},
            ["HERE: messages[0].content is null, not text", "HERE: messages[1].content is empty"],
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "critic", "value": "x"}]},
            [
                "HERE: nobody knows who critic is in conversations[0].from; known: human, user, prompter, gpt, "
                "assistant, bot, chatbot, chatgpt, model, ai, system, developer, tool, function, observation, ipython, "
                "tool_response, tool_result, tool_results, function_response, function-response, "
                "function_call, tool_call, function-call",
            ],
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "\ud800"}]},
            ["HERE: conversations[0].value holds half a character (a lone surrogate)"],
        ),
    ],
)
def test_turns_that_cannot_be_used_are_named(name, row, expected):
    with pytest.raises(BadRow) as raised:
        turns_of(name, row)
    assert [found.error for found in raised.value.problems(lambda: "HERE")] == expected


TEXT = st.text(alphabet=st.characters(codec="utf-8"))
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3)


def turns(pairs) -> list[dict]:
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


@settings(max_examples=150)
@given(pairs=PAIRS, template=st.sampled_from([CHATML, LLAMA2, TAGGED, PLAIN]))
def test_any_conversation_is_refused_or_its_answers_are_found_exactly(pairs, template):
    specials = {"bos_token": "<s>", "eos_token": "</s>"}
    form = ChatFormat("messages", template, specials)
    if any(not answer.strip() for _, answer in pairs):
        with pytest.raises(BadRow, match="empty_field"):
            form.render({"messages": turns(pairs)})
        return
    rendered = form.render({"messages": turns(pairs)})
    ends = {CHATML: "<|im_end|>", LLAMA2: " </s>", TAGGED: "<|im_end|>", PLAIN: "\n"}
    # the space in front of LLaMA 2's answers is the model's to write
    expected = [(f" {answer.strip()}" if template == LLAMA2 else answer) + ends[template] for _, answer in pairs]
    assert [rendered.text[start:end] for start, end in rendered.spans] == expected


@given(row=JSON | st.fixed_dictionaries({"messages": st.lists(JSON)}))
def test_any_row_is_rendered_or_refused(row):
    for name in ("messages", "sharegpt"):
        try:
            ChatFormat(name, CHATML, {}).render(row).text.encode()
        except BadRow as bad:
            bad.problems(lambda: "HERE")  # every placeholder of the sentences is filled
