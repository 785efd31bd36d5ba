from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from lora_train.trainer.checks.read_config import read_config
from lora_train.trainer.cli import main

AXOLOTL = """
base_model: someone/some-1b
adapter: qlora
load_in_4bit: true
strict: false
datasets:
  - path: rows.jsonl
    type: alpaca
val_set_size: 0.05
output_dir: ./out
sequence_len: 2048
sample_packing: true
lora_r: 16
lora_alpha: 32
lora_target_linear: true
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 1
optimizer: paged_adamw_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
tf32: false
flash_attention: true
warmup_steps: 10
evals_per_epoch: 4
saves_per_epoch: 1
special_tokens:
  pad_token: '<|endoftext|>'
"""
FACTORY = """
model_name_or_path: someone/some-1b
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: rows
template: qwen3
cutoff_len: 2048
plot_loss: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
"""
ARGUMENTS = {"output_dir": "out", "do_train": True, "learning_rate": 2e-4, "fp16": True, "evaluation_strategy": "steps"}
FILES = {
    "axolotl.yaml": (AXOLOTL, "a configuration of axolotl, not of lora-train"),
    "factory.yaml": (FACTORY, "a configuration of LLaMA-Factory, not of lora-train"),
    "training_args.json": (json.dumps(ARGUMENTS), "a configuration of TrainingArguments, not of lora-train"),
    "adapter_config.json": (
        json.dumps({"peft_type": "LORA", "r": 8, "target_modules": ["q"]}),
        "a configuration of PEFT, not of lora-train",
    ),
    "train.py": ("LoraConfig(r=8, target_modules=['q'])\nSFTConfig(max_length=128)\n", "a script, not a configuration"),
}
REPLACED = ("model.name_or_path=owner/model", "data.train=owner/data")


@pytest.fixture(params=FILES)
def file(request, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / request.param
    path.write_text(FILES[request.param][0])
    return path


def test_a_file_of_another_trainer_is_named_with_the_one_command(file, capsys):
    assert main(["--config", file.name]) == 2
    out, err = capsys.readouterr()
    output = f"{file.stem}-lora-train.yaml"
    assert out == ""
    assert err.splitlines() == [
        f"error: {file.name} is {FILES[file.name][1]}",
        f"hint: lora-train import {file.name} -o {output}  writes it as one of lora-train's and says what has no "
        "counterpart",
    ]


def test_what_is_written_is_a_configuration(file, capsys):
    assert main(["import", file.name]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["name_or_path"]
    assert main(["import", file.name, "-o", "ours.yaml"]) == 0
    assert "ours.yaml is written" in capsys.readouterr().err
    read_config("ours.yaml", REPLACED)


def test_a_command_with_a_space_in_a_path_can_be_pasted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my run.yaml").write_text(AXOLOTL)
    assert main(["--config", "my run.yaml"]) == 2
    assert "lora-train import 'my run.yaml' -o 'my run-lora-train.yaml'  writes it" in capsys.readouterr().err
    assert main(["import", "my run.yaml", "-o", "our run.yaml"]) == 0
    assert "lora-train --config 'our run.yaml' --dry-run" in capsys.readouterr().err
    assert main(["import", "our run.yaml"]) == 2
    assert "hint: lora-train --config 'our run.yaml'" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["axolotl.yaml"], indirect=True)
def test_nothing_is_written_over_unless_asked(file, capsys):
    Path("ours.yaml").write_text("mine")
    assert main(["import", file.name, "-o", "ours.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: ours.yaml is there already and stays as it is")
    assert Path("ours.yaml").read_text() == "mine"
    assert main(["import", file.name, "-o", "ours.yaml", "-f"]) == 0
    assert Path("ours.yaml").read_text() != "mine"
    assert main(["import", file.name, "-o", ".", "-f"]) == 2
    assert main(["import", file.name, "-o", "nowhere/ours.yaml"]) == 2
    assert "nowhere/ours.yaml cannot be written: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["axolotl.yaml"], indirect=True)
def test_what_is_left_to_do_is_said(file, capsys):
    file.write_text(AXOLOTL + "use_dora: true\npeft_use_dora: true\n")
    assert main(["import", file.name]) == 0
    err = capsys.readouterr().err
    assert "(marked ! in the file): use_dora, peft_use_dora" in err
    assert "data.train: there is no file rows.jsonl" in err


@pytest.mark.parametrize("file", ["factory.yaml"], indirect=True)
def test_what_it_cannot_do_is_said_and_nothing_is_written(file, capsys):
    file.write_text(FACTORY.replace("stage: sft", "stage: dpo").replace("template: qwen3", "template: qwen3_vl"))
    assert main(["import", file.name, "-o", "ours.yaml"]) == 2
    err = capsys.readouterr().err
    assert "no supervised fine-tuning of a language model (dpo); it trains on pictures or sound" in err
    assert not Path("ours.yaml").exists()


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize("file", ["axolotl.yaml"], indirect=True)
def test_it_speaks_both_languages(file, capsys, monkeypatch, lang):
    monkeypatch.setenv("LORA_TRAIN_LANG", lang)
    assert main(["import", file.name]) == 0
    head = capsys.readouterr().out.splitlines()[0]
    assert head.startswith("# From axolotl.yaml (axolotl)" if lang == "en" else "# axolotl.yaml(axolotl)에서")
