"""The script for bash, run by bash; those for zsh and fish by theirs where they are there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lora_train.trainer.cli import VERBS, main

from ...conftest import COMMAND_ENVIRONMENT

# A Tab behind each line, in a zsh on a terminal of its own.
ZPTY = r"""
zmodload zsh/zpty
zpty z zsh -f -i
zpty -w z "PS1='% '; autoload -U compinit; compinit -u -D; source script.zsh; lora-train() { :; }; print ready"
zpty -r -m z said '*ready*ready*'
for words in TYPED; do
    zpty -w -n z "$words"$'\t'
    sleep 1
    zpty -w -n z $'\x15'
done
zpty -w z 'print end'
zpty -r -m z said '*end*end*'
print -r -- "$said"
"""


@pytest.fixture
def script(capsys) -> str:
    assert main(["completion", "bash"]) == 0
    return capsys.readouterr().out


def completed(script: str, words: list[str], cwd: Path) -> list[str]:
    """What a Tab behind the last word offers. bash splits words at =."""
    quoted = " ".join(f"'{word}'" for word in words)
    asked = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _lora_train"
    program = f"{script}\n{asked}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
    ran = subprocess.run(["bash", "--norc", "-c", program], capture_output=True, text=True, cwd=cwd, check=False)
    assert ran.stderr == ""
    return ran.stdout.split()


def test_verbs_and_keys(script, tmp_path):
    assert completed(script, ["lora-train", "ex"], tmp_path) == ["explain", "export"]
    assert set(VERBS) | {"train"} <= set(completed(script, ["lora-train", ""], tmp_path))
    assert completed(script, ["lora-train", "train", "training.learning"], tmp_path) == ["training.learning_rate="]
    assert completed(script, ["lora-train", "--config", "x.yaml", "lora.r"], tmp_path) == ["lora.r="]


def test_values_of_keys(script, tmp_path):
    assert completed(script, ["lora-train", "model.dtype", "=", "fl"], tmp_path) == ["float32", "float16"]
    assert completed(script, ["lora-train", "model.dtype", "="], tmp_path)[0] == "auto"
    assert completed(script, ["lora-train", "training.bf16=t"], tmp_path) == ["training.bf16=true"]


def test_options_and_their_values(script, tmp_path):
    assert completed(script, ["lora-train", "--dry"], tmp_path) == ["--dry-run"]
    assert completed(script, ["lora-train", "merge", "--dt"], tmp_path) == ["--dtype"]
    assert completed(script, ["lora-train", "export", "x", "--to", "m"], tmp_path) == ["merged-gguf"]
    assert completed(script, ["lora-train", "explain", "--lang", ""], tmp_path) == ["en", "ko"]
    assert completed(script, ["lora-train", "completion", "z"], tmp_path) == ["zsh"]
    assert completed(script, ["lora-train", "help", "me"], tmp_path) == ["merge"]


def test_run_folders_before_other_files(script, tmp_path):
    for name in ("runs/one", "runs/two", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.jsonl").touch()
    (tmp_path / "log.txt").touch()
    assert sorted(set(completed(script, ["lora-train", "explain", "ru"], tmp_path))) == ["runs/one", "runs/two"]
    assert completed(script, ["lora-train", "merge", "else"], tmp_path) == ["elsewhere"]
    assert completed(script, ["lora-train", "explain", "lo"], tmp_path) == ["log.txt"]
    assert completed(script, ["lora-train", "--config", "lo"], tmp_path) == ["log.txt"]


def test_a_run_folder_with_a_space_is_one_word(script, tmp_path):
    for name in ("runs/my first", "runs/my second"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.jsonl").touch()
    (tmp_path / "my rows.jsonl").touch()
    runs = ["runs/my", "first", "runs/my", "second"]  # as split by `completed`
    for typed in ("ru", "runs/my\\ ", '"runs/my '):
        assert completed(script, ["lora-train", "explain", typed], tmp_path) == runs
    assert completed(script, ["lora-train", "explain", "runs/my\\ s"], tmp_path) == ["runs/my", "second"]
    assert completed(script, ["lora-train", "--config", "my\\ r"], tmp_path) == ["my", "rows.jsonl"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_zsh_completes(capsys, tmp_path):
    assert main(["completion", "zsh"]) == 0
    (tmp_path / "script.zsh").write_text(capsys.readouterr().out)
    (tmp_path / "runs" / "my first").mkdir(parents=True)
    (tmp_path / "runs" / "my first" / "metrics.jsonl").touch()
    typed = ("lora-train expl", "lora-train merge ru", "lora-train export r --to gg")
    program = ZPTY.replace("TYPED", " ".join(f"'{words}'" for words in typed))
    ended = subprocess.run(["zsh", "-f", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    said = ended.stdout
    assert "lora-train explain" in said, said + ended.stderr
    assert "lora-train merge runs/my\\ first" in said, said
    assert "lora-train export r --to gguf-adapter" in said, said


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells(capsys, tmp_path, shell):
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    for verb in VERBS:
        assert verb in text
    assert "training.learning_rate=" in text or "training.learning_rate" in text
    if shell == "zsh":
        assert "bashcompinit" in text
    else:
        assert "complete -c lora-train -n '__fish_seen_subcommand_from export' -l to -x -a 'gguf-adapter " in text
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here: its script is looked at and not run")
    file = tmp_path / "script"
    file.write_text(text)
    flag = "-n" if shell == "zsh" else "--no-execute"
    assert subprocess.run([shell, flag, str(file)], capture_output=True, check=False).returncode == 0


FISH = shutil.which("fish")


@pytest.mark.skipif(FISH is None, reason="no fish here")
@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("lora-train exp", {"explain", "export"}),
        ("lora-train export run --to ", {"gguf-adapter", "merged-gguf", "ollama", "safetensors"}),
        ("lora-train --config koalpaca.yaml training.learning", {"training.learning_rate="}),
        ("lora-train help training.learning_", {"training.learning_rate"}),
        ("lora-train help exp", {"explain", "export"}),
    ],
)
def test_fish_completes(capsys, tmp_path, typed, found):
    assert main(["completion", "fish"]) == 0
    (tmp_path / "script.fish").write_text(capsys.readouterr().out)
    environment = {**COMMAND_ENVIRONMENT, "PATH": f"{Path(sys.executable).parent}:{COMMAND_ENVIRONMENT['PATH']}"}
    command = [FISH, "--no-config", "-c", "source script.fish; complete -C $argv", typed]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    said = {line.split("\t")[0] for line in ended.stdout.splitlines()}
    assert found <= said, ended.stderr
    assert " help " not in typed or not any("=" in word for word in said)
