"""Folders for `ollama create`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lora_train.trainer.cli import main
from transformers import AutoTokenizer

from ..verbs.test_merge import make_run
from .test_go_template import CHATML, FORGETS
from .test_write import of_model_file, with_adapter_file
from .test_write import trained as peft_logits


def chat_run(folder: Path, base: Path, template: str) -> Path:
    run = make_run(folder, base, data={"train": "rows.jsonl", "format": "messages", "chat_template": template})
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = template
    tokenizer.add_special_tokens({"additional_special_tokens": []})
    tokenizer.save_pretrained(run / "adapter")
    return run


def test_a_chat_run_becomes_a_folder_with_template_and_stop_token(tiny_models, tmp_path, capsys):
    run = chat_run(tmp_path / "My-Run", tiny_models["llama"], CHATML.replace("<|im_end|>", "<|endoftext|>"))
    assert main(["export", str(run), "--to", "ollama", "--dtype", "float32"]) == 0
    assert f"ollama create my-run -f {run / 'ollama' / 'Modelfile'}" in capsys.readouterr().out
    assert {path.name for path in (run / "ollama").iterdir()} == {"Modelfile", "model.gguf"}
    text = (run / "ollama" / "Modelfile").read_text()
    assert text.startswith('FROM ./model.gguf\nTEMPLATE """{{ if .System }}<|im_start|>system\n{{ .System }}')
    assert text.endswith('<|im_start|>assistant\n{{ .Response }}<|endoftext|>\n"""\nPARAMETER stop "<|endoftext|>"\n')
    assert str(tmp_path) not in text
    got = of_model_file(tiny_models["llama"], run / "ollama" / "model.gguf")
    torch.testing.assert_close(got, peft_logits(tiny_models["llama"], run), rtol=0, atol=1e-3)


def test_with_a_model_that_ollama_has_the_folder_holds_the_adapter(tiny_models, tmp_path):
    run = make_run(tmp_path / "run", tiny_models["llama"])  # koalpaca's format
    assert main(["export", str(run), "--to", "ollama", "--from", "llama3.2:1b"]) == 0
    assert {path.name for path in (run / "ollama").iterdir()} == {"Modelfile", "lora.gguf"}
    assert (run / "ollama" / "Modelfile").read_text() == (
        "FROM llama3.2:1b\nADAPTER ./lora.gguf\n"
        'TEMPLATE """### 질문: {{ .Prompt }}\n\n### 답변:{{ .Response }}"""\n'
        'PARAMETER stop "<|endoftext|>"\n'
    )
    got = with_adapter_file(tiny_models["llama"], run / "ollama" / "lora.gguf")
    torch.testing.assert_close(got, peft_logits(tiny_models["llama"], run), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("data", "template"),
    [
        ({"format": "prompt_completion"}, "{{ .Prompt }}{{ .Response }}"),
        ({"format": "text"}, "{{ .Prompt }}{{ .Response }}"),
        ({"prompt_template": "Q: {question} A: {answer}"}, "Q: {{ .Prompt }} A: {{ .Response }}"),
    ],
)
def test_other_formats(tiny_models, tmp_path, data, template):
    run = make_run(tmp_path / "run", tiny_models["gpt_neox"], data={"train": "rows.jsonl", **data})
    assert main(["export", str(run), "--to", "ollama", "--from", "x"]) == 0
    assert f'TEMPLATE """{template}"""\n' in (run / "ollama" / "Modelfile").read_text()


def test_a_template_that_go_cannot_say_is_left_out_and_said(tiny_models, tmp_path, capsys):
    run = chat_run(tmp_path / "run", tiny_models["llama"], FORGETS)
    assert main(["export", str(run), "--to", "ollama", "--from", "x"]) == 0
    assert "so the Modelfile has no TEMPLATE" in capsys.readouterr().out
    assert "TEMPLATE" not in (run / "ollama" / "Modelfile").read_text()
