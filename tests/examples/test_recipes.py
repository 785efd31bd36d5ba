"""Every recipe: its own words are valid, and on a tiny model of its family it says what it would do and trains.

What needs a GPU (16-bit compute, the sizes) is replaced; the rest of the file stays as it is.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lora_train.trainer.checks.read_config import read_config

from ..conftest import COMMAND_ENVIRONMENT, DATA, ROOT

FOLDER = ROOT / "examples" / "recipes"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_there_is_one_for_each_use():
    assert set(RECIPES) == {
        "koalpaca-t4", "koalpaca-3090", "koalpaca-4090", "llama-chat", "qwen-chat", "gemma-chat", "packing", "nf4",
        "bf16",
    }  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_valid_and_says_how_it_is_run(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    notes: list[str] = []
    config = read_config(FOLDER / f"{name}.yaml", [], notes.append)
    assert notes == []
    assert f"lora-train --config examples/recipes/{name}.yaml" in text
    assert text.startswith("# yaml-language-server: $schema=../../docs/config.schema.json\n")
    assert config.training.fp16 != config.training.bf16
    assert config.data.eval_fraction > 0
    if name.startswith("koalpaca"):
        assert config.training.per_device_train_batch_size * config.training.gradient_accumulation_steps == 16
        assert config.quantization.load_in_4bit


@pytest.fixture
def chats(tmp_path) -> Path:
    rows = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()[:40]]
    path = tmp_path / "chats.jsonl"
    talks = [
        [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        for row in rows
    ]
    path.write_text("\n".join(json.dumps({"messages": talk}) for talk in talks), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_a_tiny_model(cli, tiny_models, tmp_path, chats, name):
    config = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    is_chat = config["data"]["format"] == "messages"
    model = tiny_models["gpt_neox" if "koalpaca" in name else "llama"]
    changes = [
        f"model.name_or_path={model}",
        f"data.train={chats if is_chat else DATA}",
        *([f"data.chat_template={json.dumps(CHATML)}"] if is_chat else []),
        *([] if is_chat else ["data.limit=40"]),
        "data.cutoff_len=128",
        "data.eval_fraction=0.2",
        f"training.output_dir={tmp_path / 'run'}",
        "training.max_steps=2",
        "training.eval_steps=1",
        "training.save_steps=1",
        "training.fp16=false",
        "training.bf16=false",
        "training.gradient_accumulation_steps=1",
    ]
    if config.get("quantization", {}).get("load_in_4bit") and importlib.util.find_spec("bitsandbytes") is None:
        changes.append("quantization.load_in_4bit=false")
    said = cli("--config", FOLDER / f"{name}.yaml", "--dry-run", *changes)
    assert said.returncode == 0, said.stderr
    assert re.search(r"trainable|parameters", said.stdout)
    trained = cli("--config", FOLDER / f"{name}.yaml", *changes)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_trl_is_recorded_in_one_line(tiny_models, tmp_path):
    script = FOLDER / "trl_sft.py"
    compile(script.read_text(encoding="utf-8"), str(script), "exec")
    if importlib.util.find_spec("trl") is None:
        pytest.skip("trl is not installed: the script is compiled and not run")
    command = [sys.executable, str(script), str(tiny_models["llama"]), str(DATA), str(tmp_path / "out")]
    result = subprocess.run(command, env=COMMAND_ENVIRONMENT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "instrument" / "metrics.jsonl").is_file()
