"""The first configuration: by flags, by questions, and refused."""

from __future__ import annotations

import builtins
import sys

import pytest
import yaml
from lora_train.trainer.checks.read_config import problems_of
from lora_train.trainer.cli import main

from ...conftest import DATA


def test_flags_write_a_file_that_trains(cli, tiny_models, tmp_path):
    """init, dry run and training, as a newcomer types them."""
    path = tmp_path / "first.yaml"
    arguments = ("--model", tiny_models["llama"], "--data", DATA, "--gpu", "cpu", "-o", path)
    written = cli("init", *arguments, cwd=tmp_path)
    assert written.returncode == 0, written.stderr
    assert f"(next: lora-train --config {path} --dry-run)" in written.stdout
    config = yaml.safe_load(path.read_text())
    assert config["model"]["name_or_path"] == str(tiny_models["llama"])
    on = [config["training"]["bf16"], config["training"]["fp16"], config["quantization"]["load_in_4bit"]]
    assert on == [False] * 3
    small = ("training.max_steps=2", "data.limit=40", "data.cutoff_len=128", "training.gradient_accumulation_steps=1")
    trained = cli("--config", path, *small, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "runs" / "first" / "adapter" / "adapter_model.safetensors").is_file()
    again = cli("init", *arguments, cwd=tmp_path)
    assert again.returncode == 2
    assert "is there already" in again.stderr


def test_questions_are_asked_until_they_are_answered(monkeypatch, tmp_path, capsys, tiny_models):
    answers = iter(["", str(tiny_models["gpt_neox"]), "rosw.jsonl", str(DATA), "a big one", "24 GB"])
    asked = []

    def reply(question: str) -> str:
        asked.append(question)
        return next(answers)

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "input", reply)
    path = tmp_path / "run.yaml"
    assert main(["init", "-o", str(path)]) == 0
    assert [question.split()[0] for question in asked] == ["Model", "Model", "Training", "Training", "GPU", "GPU"]
    said = capsys.readouterr().out
    assert "rosw.jsonl" in said
    assert "a big one is neither a size" in said
    config = yaml.safe_load(path.read_text())
    assert (config["training"]["bf16"], config["data"]["train"]) == (True, str(DATA))
    assert config["training"]["per_device_train_batch_size"] == 8
    assert problems_of(config, "run.yaml") == []
    lines = path.read_text().splitlines()
    assert all("  # " in line for line in lines if line.startswith("  "))


def test_the_file_speaks_korean(monkeypatch, tmp_path, tiny_models):
    monkeypatch.setenv("LORA_TRAIN_LANG", "ko")
    path = tmp_path / "run.yaml"
    model = str(tiny_models["llama"])
    assert main(["init", "--model", model, "--data", str(DATA), "--gpu", "T4", "-o", str(path)]) == 0
    text = path.read_text()
    assert "어댑터의 rank" in text
    assert yaml.safe_load(text)["training"]["fp16"] is True


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        ([], "what is missing: --model, --data, --gpu", "lora-train init --model NAME --data NAME --gpu 24"),
        (["--model", "a/b", "--data", "c/d"], "what is missing: --gpu", ""),
        (["--model", "a/b", "--data", "c/d", "--gpu", "5"], None, ""),
        (["--model", "a/b", "--data", "c/d", "--gpu", "GTX"], "GTX is neither a size in GiB", "a number such as 24"),
        (["--model", "./nowhere", "--data", "c/d", "--gpu", "8"], "there is no file or folder ./nowhere", ""),
        (["--model", "a/b", "--data", "rows.jsonl", "--gpu", "8"], "there is no file or folder rows.jsonl", ""),
    ],
)
def test_without_a_terminal_what_is_missing_or_wrong_is_said(monkeypatch, tmp_path, capsys, arguments, error, hint):
    monkeypatch.chdir(tmp_path)
    if error is None:
        arguments = [*arguments, "-o", str(tmp_path)]
        error = "is there already"
    assert main(["init", *arguments]) == 2
    captured = capsys.readouterr().err
    assert error in captured
    assert hint in captured
    assert list(tmp_path.iterdir()) == []
