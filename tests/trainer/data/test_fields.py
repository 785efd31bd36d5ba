"""What the fields of a row mean, from the file to what is said."""

from __future__ import annotations

import json

import pytest
from lora_train.trainer.config.schema import Config, DataSection
from lora_train.trainer.console import Console
from lora_train.trainer.data.examples import load_examples
from lora_train.trainer.data.fields import needs_chat, question_and_answer
from lora_train.trainer.data.load import load_data, split_held_out
from lora_train.trainer.errors import UserError
from lora_train.trainer.verbs.answers.questions import PLACEHOLDER, asked
from tokenizers import ByteLevelBPETokenizer, processors
from transformers import PreTrainedTokenizerFast

from ...conftest import DATA
from .test_conversations import CHATML, FORGETFUL, PLAIN, TAGGED, TURNS

ASKED = {"instruction": "물은?", "output": "100도"}


def make_tokenizer(template: str | None = None, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    bpe.train([str(DATA)], vocab_size=400, special_tokens=special, show_progress=False)
    if adds_bos:
        bpe._tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", bpe.token_to_id("<s>"))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def chatting():
    return make_tokenizer(CHATML)


def write(folder, rows, name="rows.jsonl") -> str:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def load(folder, rows, tokenizer, **settings):
    source = write(folder, rows)
    section = DataSection.model_validate({"train": source, "cache": False, **settings})
    return load_examples(source, section, tokenizer)


def errors(folder, rows, tokenizer, **settings) -> list[str]:
    with pytest.raises(UserError) as raised:
        load(folder, rows, tokenizer, **settings)
    return [problem.error.partition("rows.jsonl")[2] for problem in raised.value.problems]


def lines(folder, capsys, rows, tokenizer, **settings) -> str:
    config = {"model": {"name_or_path": "x/y"}, "data": {"train": write(folder, rows), "cache": False, **settings}}
    load_data(Config.model_validate(config), tokenizer, Console())
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "chosen"),
        ({"chosen": TURNS, "rejected": TURNS}, "chosen"),
        ({"prompt": "a", "completion": "b", "label": True}, "label"),
        ({"prompt": "a", "completion": "b", "label": "false"}, "label"),
        ({"prompt": "a", "completion": "b", "reward": 0.5}, "reward"),
        ({"prompt": "a", "completions": ["b"], "labels": [True]}, "labels"),
        ({"conversations": TURNS, "chosen": TURNS[0], "rejected": TURNS[0]}, "chosen"),
        ({**ASKED, "kto_tag": False}, "kto_tag"),
    ],
)
def test_preference_and_feedback_rows_are_refused_with_what_the_tool_does(tmp_path, chatting, row, field):
    found = errors(tmp_path, [row], chatting)
    assert found[0].startswith(f" line 1: {field} says which answer is better or how good one is; this tool trains on")


def test_a_class_beside_plain_text_is_no_feedback(tmp_path, capsys, tokenizer):
    said = lines(tmp_path, capsys, [{"text": "좋은 영화", "label": 1}], tokenizer)
    assert "fields that are not used: label" in said


def test_the_users_own_template_and_columns_may_take_one_of_two_answers(tmp_path, tokenizer):
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    own = load(tmp_path, [row], tokenizer, prompt_template="{prompt} {chosen}")
    mapped = {"completion": "chosen", "rejected": None}
    renamed = load(tmp_path, [{**row, "prompt": "a "}], tokenizer, columns=mapped)
    assert own.examples[0].input_ids.tolist() == renamed.examples[0].input_ids.tolist()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "물은?", "answer": "100도"}, ASKED),
        ({"input": "물은?", "output": "100도"}, ASKED),
        ({"query": "물은?", "response": "100도"}, ASKED),
        ({"질문": "물은?", "답변": "100도"}, ASKED),
        ({"prompt": "물은?", "response": "100도"}, ASKED),
        (
            {"instruction": "물은?", "context": "섭씨", "response": "100도", "category": "qa"},
            {"instruction": "물은?", "input": "섭씨", "output": "100도"},
        ),
    ],
)
def test_questions_and_answers_by_other_names_are_read(tmp_path, tokenizer, row, expected):
    found, wanted = (load(tmp_path, [one], tokenizer).examples[0] for one in (row, expected))
    assert found.input_ids.tolist() == wanted.input_ids.tolist()
    assert found.supervised.tolist() == wanted.supervised.tolist()


@pytest.mark.parametrize(
    ("form", "context", "read"), [("koalpaca", {}, {}), ("alpaca", {"context": "섭씨"}, {"input": "섭씨"})]
)
def test_a_file_that_is_evaluated_may_call_them_otherwise_too(tmp_path, tokenizer, form, context, read):
    """The format of the training rows is settled by then."""
    row = {"질문": "물은?", "답변": "100도", **context}
    wanted = {**ASKED, **read}
    found = load(tmp_path, [row], tokenizer, format=form).examples[0]
    assert found.input_ids.tolist() == load(tmp_path, [wanted], tokenizer, format=form).examples[0].input_ids.tolist()
    data = DataSection.model_validate({"train": "x", "format": form})
    assert asked({"질문": "물은?"}, data) == {"질문": "물은?", "답변": PLACEHOLDER}


def test_what_was_read_as_what_is_said(tmp_path, capsys, tokenizer):
    said = lines(tmp_path, capsys, [{"question": "물은?", "answer": "100도", "url": "x"}], tokenizer)
    assert "instruction=question, output=answer" in said
    assert said.count("fields that are not used: url") == 1
    assert question_and_answer([{"a": 1}]) == {}


def test_turns_and_parts_as_gemini_takes_them(tmp_path, chatting):
    said = {"system": "짧게", "user": "물은?", "assistant": "100도"}
    ours = {"messages": [{"role": role, "content": text} for role, text in said.items()]}
    contents = [{"role": role, "parts": [{"text": text}]} for role, text in (("user", "물은?"), ("model", "100도"))]
    theirs = {"systemInstruction": {"role": "system", "parts": [{"text": "짧게"}]}, "contents": contents}
    found, wanted = (load(tmp_path, [one], chatting).examples[0] for one in (theirs, ours))
    assert found.input_ids.tolist() == wanted.input_ids.tolist()
    assert found.supervised.tolist() == wanted.supervised.tolist()
    contents[0]["parts"].append({"inlineData": {"mimeType": "image/png"}})
    (error,) = errors(tmp_path, [theirs], chatting)
    assert "messages[0].parts[1] is a part of type inlineData" in error


def test_columns_map_and_a_column_that_is_not_there_is_named(tmp_path, tokenizer):
    rows = [{"q": "물은?", "a": "100도"}]
    found = load(tmp_path, rows, tokenizer, columns={"instruction": "q", "output": "a"})
    assert found.examples[0].input_ids.tolist() == load(tmp_path, [ASKED], tokenizer).examples[0].input_ids.tolist()
    assert errors(tmp_path, rows, tokenizer, columns={"instruction": "q", "output": "b"}) == [
        " line 1 has no column b, which data.columns names; it has: q, a"
    ]


@pytest.mark.parametrize(
    "row",
    [
        {**ASKED, "system": "짧게"},
        {**ASKED, "history": [["안녕", "네"]]},
        {"prompt": "a", "completion": "b", "system": "c"},
    ],
)
def test_system_and_history_take_the_chat_template_or_are_refused_by_name(tmp_path, tokenizer, chatting, row):
    assert needs_chat(row)
    field = "history" if "history" in row else "system"
    assert errors(tmp_path, [row], tokenizer) == [f" line 1: data.format has no place for {field}"]
    dataset = load(tmp_path, [row], chatting)
    assert dataset.format == "messages"
    text = chatting.decode(dataset.examples[0].input_ids)
    assert (row.get("system") or "안녕") in text
    assert load(tmp_path, [{**row, field: type(row[field])()}], chatting).format != "messages"


def test_a_tree_of_messages_is_refused(tmp_path, tokenizer):
    rows = [{"message_id": "q", "parent_id": None, "role": "prompter", "text": "물은?"}]
    rows += [{"message_id": "a", "parent_id": "q", "role": "assistant", "text": "100도"}]
    said = [f" line {n} is one message of a tree (parent_id), not a conversation" for n in (1, 2)]
    assert errors(tmp_path, rows, tokenizer) == said
    assert errors(tmp_path, rows, tokenizer, on_bad_row="skip")[1:] == said


def test_rows_of_several_answers_keep_their_number_and_are_held_out_whole(tmp_path, capsys):
    forgetful = make_tokenizer(FORGETFUL)
    rows = [{"messages": TURNS}, {"messages": TURNS[:3]}] * 4
    dataset = load(tmp_path, rows, forgetful)
    assert [example.row for example in dataset.examples] == [0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7]
    assert dataset.n_rows == 8
    train, held_out = split_held_out(dataset, 0.3, seed=1)
    assert {example.row for example in train.examples}.isdisjoint(example.row for example in held_out.examples)
    assert "4 rows are trained on as one row for each answer" in lines(tmp_path, capsys, rows, forgetful)
    whole = load(tmp_path, rows[:1], forgetful, train_on_inputs=True)
    assert len(whole.examples) == 1
    short = load(tmp_path, [{"messages": TURNS}], forgetful, cutoff_len=60)
    assert ([example.row for example in short.examples], list(short.dropped)) == ([0], [])


def test_answers_without_an_end_are_counted(tmp_path, capsys, chatting):
    rows = [{"messages": TURNS}, {"messages": TURNS[1:3]}]
    assert "2 answers end with no token that ends a turn" in lines(
        tmp_path, capsys, rows, chatting, chat_template=PLAIN
    )
    assert "no token that ends a turn" not in lines(tmp_path, capsys, rows, chatting)
    assert "no token that ends a turn" not in lines(tmp_path, capsys, [ASKED], chatting)


def test_white_space_behind_the_end_is_no_end_of_its_own(tmp_path, capsys, chatting):
    marked = TAGGED.replace("'<|im_end|>' }}{% endgeneration %}{{ '\n' }}", "'<|im_end|>\n' }}{% endgeneration %}")
    assert marked != TAGGED
    said = lines(tmp_path, capsys, [{"messages": TURNS}], chatting, chat_template=marked)
    assert "no token that ends a turn" not in said


def test_a_text_that_begins_with_the_begin_token_gets_no_second_one(tmp_path):
    adds = make_tokenizer(adds_bos=True)
    for text in ("<s>물은 100도", "물은 100도"):
        (example,) = load(tmp_path, [{"text": text}], adds).examples
        assert adds.decode(example.input_ids) == "<s>물은 100도</s>"
        assert example.supervised.tolist() == [False] + [True] * (len(example.input_ids) - 1)
    (example,) = load(
        tmp_path, [{"q": "물은?", "a": "100도"}], adds, prompt_template="<s>[INST] {q} [/INST] {a}"
    ).examples
    assert (example.input_ids == adds.bos_token_id).sum() == 1


def test_a_conversation_that_begins_with_the_assistant_trains_on_the_later_answers(tmp_path, capsys):
    template = CHATML.replace("if messages and messages[0]", "if messages[0]")
    rows = [{"messages": TURNS[2:]}]
    said = lines(tmp_path, capsys, rows, make_tokenizer(template))
    assert "1 rows begin with the assistant: messages[0] is not trained on" in said


@pytest.mark.parametrize(
    ("skip", "message"),
    [([0, 1], "data.skip_rows leaves no row to train on"), ([0, 7], "data.skip_rows names rows that are not there: 7")],
)
def test_skip_rows_that_leaves_nothing_or_names_no_row_is_an_error(tmp_path, capsys, tokenizer, skip, message):
    with pytest.raises(UserError, match=message):
        lines(tmp_path, capsys, [ASKED, ASKED], tokenizer, skip_rows=skip)


def test_turns_that_are_all_marked_as_not_trained_on_are_said_so(tmp_path, chatting):
    rows = [{"messages": [TURNS[1], TURNS[2] | {"weight": 0}]}]
    assert errors(tmp_path, rows, chatting)[0].startswith(": no row has an answer to train on")


@pytest.mark.parametrize("asked", ["물은?", [TURNS[1]]])
def test_a_completion_in_turns_is_a_conversation_whatever_the_prompt_is(tmp_path, chatting, asked):
    found = load(tmp_path, [{"prompt": asked, "completion": [TURNS[2]]}], chatting)
    assert found.format == "messages"
    wanted = load(tmp_path, [{"messages": [{"role": "user", "content": "물은?"}, TURNS[2]]}], chatting)
    if isinstance(asked, str):
        assert found.examples[0].input_ids.tolist() == wanted.examples[0].input_ids.tolist()


def test_a_speaker_that_nobody_knows_is_named(tmp_path, capsys, chatting):
    """A template that writes any role writes a misspelt answer too, and nothing of it would be learned."""
    turns = [*TURNS[1:4], {"role": "asistant", "content": "100도"}]
    said = lines(tmp_path, capsys, [{"messages": turns}, {"messages": TURNS[1:3]}], chatting)
    assert "turns of names that nobody knows are read but not trained on: asistant (1) (rows in brackets)" in said
    cast = [{"messages": [*TURNS[1:3], {"role": f"name{i}", "content": "x"}]} for i in range(40)]
    said = lines(tmp_path, capsys, cast, chatting)  # a play has more names than a warning has room for
    assert (said.count("nobody knows"), "name7 (1), ... (rows" in said) == (1, True)
    picky = CHATML.replace("{% for message in messages %}", "{% for message in messages if message.role in ROLES %}")
    with pytest.raises(UserError) as raised:
        load(tmp_path, [{"messages": turns}], chatting, chat_template=picky.replace("ROLES", "('user', 'assistant')"))
    (found,) = raised.value.problems
    assert "messages[3] is a turn of asistant, which the chat template does not write" in found.error
    assert "gpt, assistant, bot" in found.hint


def test_turns_under_other_names_are_told_the_columns_that_read_them(tmp_path, chatting):
    spoken = [{"speaker": turn["role"], "utterance": turn["content"]} for turn in TURNS[1:3]]
    with pytest.raises(UserError, match=r"data\.columns=\{messages: dialogue\} reads them"):
        load(tmp_path, [{"dialogue": spoken}], chatting)
    for rows in ({"qas": [{"question": "a", "id": 3}]}, {"tokens": [{"t": 1}]}):
        with pytest.raises(UserError) as raised:
            load(tmp_path, [rows], chatting)
        assert "reads them" not in str(raised.value)
    with pytest.raises(UserError, match=r"messages: dialogue\} reads them"):
        load(tmp_path, [{"tools": [{"name": "f", "description": "x"}], "dialogue": spoken}], chatting)
    columns = {"messages": "dialogue"}
    with pytest.raises(UserError, match=r"\{role: NAME, content: NAME\}"):
        load(tmp_path, [{"dialogue": spoken}], chatting, columns=columns)
    columns |= {"role": "speaker", "content": "utterance"}
    found, wanted = (
        load(tmp_path, [row], chatting, columns=own)
        for row, own in (({"dialogue": spoken}, columns), ({"messages": TURNS[1:3]}, {}))
    )
    assert found.examples[0].input_ids.tolist() == wanted.examples[0].input_ids.tolist()


def test_a_turns_fields_that_the_template_does_not_know_are_named(tmp_path, capsys, chatting):
    turns = [{**TURNS[1], "attachments": ["a.pdf"]}, TURNS[2]]
    said = lines(tmp_path, capsys, [{"messages": turns, "id": 3}], chatting)
    assert "fields that are not used: id, messages[].attachments" in said
    knows = CHATML.replace("{% endfor", "{{ message.attachments | length }}{% endfor", 1)
    assert "attachments" not in lines(tmp_path, capsys, [{"messages": turns}], chatting, chat_template=knows)
