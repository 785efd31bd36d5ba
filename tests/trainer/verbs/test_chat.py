"""Prompts and answers in-process on a tiny model; the real command line once."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from lora_train.trainer.cli import main
from lora_train.trainer.data.formats import FORMATS
from lora_train.trainer.data.masks import tokenize
from lora_train.trainer.verbs import chat as chat_module
from lora_train.trainer.verbs.chat import prompt_ids
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from .test_merge import change_config, change_weights, make_run, set_nan

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)
QUESTION = "하늘은 왜 파란가요?"


@pytest.fixture(scope="module")
def run(tiny_models, tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("chat") / "run", tiny_models["llama"])


@pytest.fixture
def tokenizer(tiny_models):
    return AutoTokenizer.from_pretrained(tiny_models["llama"])


def says(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize("form", ["koalpaca", "alpaca"])
def test_the_prompt_is_what_training_saw_before_the_answer(tokenizer, form):
    row = {"instruction": QUESTION, "input": "", "output": "빛이 흩어지기 때문입니다."}
    ((trained_on, supervised),) = tokenize([FORMATS[form].render(row)], tokenizer, train_on_inputs=False)
    ids = prompt_ids(form, tokenizer, [says("not this"), says(QUESTION)])
    assert ids == trained_on[: supervised.argmax()].tolist()


@pytest.mark.parametrize("form", ["text", "prompt_completion"])
def test_plain_formats_take_the_text_as_it_is(tokenizer, form):
    assert tokenizer.decode(prompt_ids(form, tokenizer, [says(QUESTION)])) == QUESTION


def test_chat_formats_take_the_whole_conversation_in_the_tokenizers_template(tokenizer):
    tokenizer.chat_template = TEMPLATE
    messages = [says("a"), {"role": "assistant", "content": "b"}, says("c")]
    for form in ("messages", "sharegpt", None):
        assert tokenizer.decode(prompt_ids(form, tokenizer, messages)) == "<user>a<assistant>b<user>c<bot>"


def test_a_tokenizer_that_ends_every_text_does_not_end_the_prompt(tokenizer):
    class Ending:
        eos_token_id, bos_token_id = tokenizer.eos_token_id, None

        def __call__(self, text: str) -> dict:
            return {"input_ids": [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]}

    assert prompt_ids("koalpaca", Ending(), [says("a")]) == prompt_ids("koalpaca", tokenizer, [says("a")])


def test_a_prompt_that_begins_with_the_begin_token_gets_no_second_one(tokenizer):
    class Beginning:
        eos_token_id, bos_token_id = tokenizer.eos_token_id, 7

        def __call__(self, text: str) -> dict:
            return {"input_ids": [7, *([7] if text.startswith("<s>") else []), *tokenizer("a")["input_ids"]]}

    assert prompt_ids("text", Beginning(), [says("<s>a")]) == prompt_ids("text", Beginning(), [says("a")])


def greedy(run: Path, base: Path, n: int) -> str:
    """The answer as peft and torch alone give it, token by token."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run / "adapter").eval()
    ids = tokenizer(f"### 질문: {QUESTION}\n\n### 답변:")["input_ids"]
    answer = []
    for _ in range(n):
        with torch.no_grad():
            answer.append(model(input_ids=torch.tensor([ids + answer])).logits[0, -1].argmax().item())
        if answer[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(answer, skip_special_tokens=True).strip()


def test_a_prompt_template_asks_in_its_first_field(tokenizer):
    template = "### Q: {question}\n{hint}### A: {answer}!"
    ids = prompt_ids("auto", tokenizer, [says("why?")], template)
    assert tokenizer.decode(ids) == "### Q: why?\n### A: "
    assert tokenizer.decode(prompt_ids("auto", tokenizer, [says("why?")], "> {answer}")) == "why?"


def test_one_prompt_is_answered_greedily_by_base_and_adapter(run, tiny_models, capsys):
    assert main(["chat", str(run), "--prompt", QUESTION, "--max-new-tokens", "12"]) == 0
    assert capsys.readouterr().out == greedy(run, tiny_models["llama"], 12) + "\n"


def test_the_seed_decides_a_sampled_answer(run, capsys):
    answers = []
    for seed in ("1", "1", "2"):
        sampling = ["--temperature", "1.5", "--seed", seed, "--max-new-tokens", "16"]
        assert main(["chat", str(run), "--prompt", QUESTION, *sampling]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != answers[2]


def test_a_run_in_4_bits_and_fp16_is_answered_on_this_machine(tiny_models, tmp_path, capsys):
    sections = {"quantization": {"load_in_4bit": True}, "training": {"fp16": True}}
    run = make_run(tmp_path / "run", tiny_models["gpt_neox"], **sections)
    assert main(["chat", str(run), "--prompt", QUESTION, "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.strip()


def test_lines_of_a_pipe_are_questions_of_their_own(run, capsys, monkeypatch):
    few = ["--max-new-tokens", "5"]
    alone = []
    for question in ("하나", "둘"):
        main(["chat", str(run), "--prompt", question, *few])
        alone.append(capsys.readouterr().out)
    monkeypatch.setattr(sys, "stdin", io.StringIO("하나\n\n  둘  \n/exit\n셋\n"))
    assert main(["chat", str(run), *few]) == 0
    assert capsys.readouterr().out == "".join(alone)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("end", ["/exit", "/bye", "quit", EOFError, KeyboardInterrupt])
def test_a_conversation_goes_on_until_it_is_ended(run, capsys, monkeypatch, end):
    typed = iter(["", "x" * 5000, "안녕", end])

    def type_line(prompt: str) -> str:
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", type_line)
    assert main(["chat", str(run), "--max-new-tokens", "3"]) == 0
    out = capsys.readouterr().out
    assert "every line is a question of its own" in out
    assert "tokens, the model takes 512 together with the answer" in out  # said, and the next question is answered
    assert next(typed, None) is None


def test_a_chat_format_remembers_the_conversation(tiny_models, tmp_path, capsys, monkeypatch):
    base = tmp_path / "base"
    shutil.copytree(tiny_models["llama"], base)
    (base / "chat_template.jinja").write_text(TEMPLATE)
    run = make_run(tmp_path / "run", base)
    (run / "config.yaml").unlink()  # an adapter made elsewhere
    asked = []
    monkeypatch.setattr(
        chat_module, "prompt_ids", lambda form, _, messages, template: asked.append(list(messages)) or [1, 2]
    )
    lines = iter(["one", "two", "/exit"])
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert main(["chat", str(run), "--max-new-tokens", "2"]) == 0
    out = capsys.readouterr().out
    assert [message["content"] for message in asked[0]] == ["one"]
    assert [message["role"] for message in asked[1]] == ["user", "assistant", "user"]
    assert asked[1][1]["content"] in out


BAD = [
    (["--prompt", ""], "the prompt is empty"),
    (["--prompt", "half \ud83d"], "the prompt is not UTF-8 text"),
    (["--prompt", "x" * 5000], "the model takes 512"),
    (["--prompt", "a", "--max-new-tokens", "0"], "must be a whole number of at least 1, not 0"),
    (["--prompt", "a", "--max-new-tokens", "many"], "must be a whole number of at least 1, not many"),
    (["--prompt", "a", "--temperature", "-1"], "must be a number of at least 0, not -1"),
    (["--prompt", "a", "--temperature", "inf"], "must be a number of at least 0, not inf"),
    (["--prompt", "a", "--seed", "1.5"], "must be a number of at least 0, not 1.5"),
    (["--tone", "kind"], "unrecognized arguments: --tone kind"),
]


@pytest.mark.parametrize(("arguments", "error"), BAD)
def test_wrong_arguments_are_errors(run, capsys, arguments, error):
    assert main(["chat", str(run), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert error in captured.err
    assert "\nhint: " in captured.err


def test_what_cannot_be_talked_to_is_an_error(tiny_models, tmp_path, capsys):
    run = make_run(tmp_path / "run", tiny_models["llama"])
    assert main(["chat", str(tmp_path / "nowhere"), "--prompt", "a"]) == 2
    assert "there is no folder" in capsys.readouterr().err
    change_config(run, data={"train": "x", "format": "sharegpt"})
    assert main(["chat", str(run), "--prompt", "a"]) == 2
    assert "format" in capsys.readouterr().err
    change_config(run, data={"train": "x", "format": "text"}, model={"name_or_path": "owner/model"})
    assert main(["chat", str(run), "--prompt", "a"]) == 2
    assert "owner/model cannot be loaded" in capsys.readouterr().err
    change_weights(run, "model.layers.0.mlp.up_proj.lora_A", set_nan)
    assert main(["chat", str(run), "--prompt", "a"]) == 2
    assert "is dead: 1 of its values" in capsys.readouterr().err


def test_the_real_command_line(cli, run):
    result = cli("chat", run, "--prompt", QUESTION, "--max-new-tokens", "4")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert result.stderr == "(cut off at 4 tokens: --max-new-tokens takes more)\n"


@pytest.mark.skipif(os.name == "nt", reason="a pseudo-terminal")
def test_ctrl_c_in_a_terminal_ends_it_with_0(cli, run):
    import pty

    ours, theirs = pty.openpty()
    command = [str(Path(sys.executable).with_name("lora-train")), "chat", str(run), "--max-new-tokens", "3"]
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # a shell starts what it puts into the background with Ctrl-C ignored, and that is inherited
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    seen = b""
    while b"> " not in seen:
        seen += os.read(ours, 1000)
    os.write(ours, "안녕\n".encode())
    while seen.count(b"> ") < 2:
        seen += os.read(ours, 1000)
    for _ in range(5):  # one that comes just before input() waits is seen at the next, as for a person
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
            break
    _, err = process.communicate(timeout=30)
    os.close(ours)
    assert (process.returncode, err) == (0, b"(cut off at 3 tokens: --max-new-tokens takes more)\n")
