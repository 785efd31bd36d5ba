"""Where bitsandbytes is not installed: 16-bit runs, the callback and every reader work, the rest says what it needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .conftest import COMMAND_ENVIRONMENT, ROOT
from .trainer.test_cli import write_config

RUNS = ROOT / "tests" / "runs"

# Finders that do not see the packages: find_spec says None and an import raises, as where they are not installed.
HIDE = """
import sys
from importlib.machinery import PathFinder

HIDDEN = {hidden!r}
real = PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, *args: None if name.partition(".")[0] in HIDDEN else real(name, *args)
)
"""


def python(script: str, *arguments: object, hidden: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", HIDE.format(hidden=hidden) + script, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=COMMAND_ENVIRONMENT, capture_output=True, text=True, timeout=280, check=False
    )


def command_line(*words: object) -> subprocess.CompletedProcess:
    script = "from lora_train.trainer.cli import main\nsys.exit(main(sys.argv[1:]))"
    return python(script, *words, hidden=("bitsandbytes",))


VERBS = """
from lora_train.trainer.cli import main

run, config, other = sys.argv[1:]
assert main(["--config", config, "data.eval_fraction=0.1"]) == 0
for words in (
    ["--config", config, "--dry-run", "data.eval_fraction=0.1"],
    ["replay", run, "--step", "2"],
    ["inspect", run],
    ["explain", run],
    ["report", run],
    ["compare", run, other],
    ["chat", run, "--prompt", "hello", "--max-new-tokens", "2"],
    ["merge", run],
    ["env"],
):
    assert main(words) == 0, words
    print("done:", words[0])
"""


def test_a_16_bit_run_and_every_verb_after_it(tiny_models, tmp_path):
    settings = {"max_steps": 2, "fp16": True, "eval_strategy": "steps", "eval_steps": 2}
    config = write_config(tmp_path, tiny_models["llama"], **settings)
    result = python(VERBS, tmp_path / "run", config, RUNS / "healthy", hidden=("bitsandbytes",))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("done:") == 9
    assert "largest training.per_device_train_batch_size that fits" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("quantization.load_in_4bit=true", "set quantization.load_in_4bit=false"),
        ("training.optim=paged_adamw_8bit", "set training.optim=adamw_torch_fused"),
    ],
)
def test_what_needs_it_says_so_before_anything_is_loaded(tiny_models, tmp_path, setting, hint):
    result = command_line("--config", write_config(tmp_path, tiny_models["llama"]), setting)
    assert result.returncode == 2
    assert "bitsandbytes, which is not installed" in result.stderr
    assert "pip install bitsandbytes" in result.stderr
    assert hint in result.stderr


LOAD_4_BIT = """
import torch
from lora_train.trainer.config.schema import Config
from lora_train.trainer.errors import UserError
from lora_train.trainer.model.load import load_base

quantization = {"load_in_4bit": True}
data = {"train": "rows", "format": "text"}
config = Config.model_validate({"model": {"name_or_path": sys.argv[1]}, "data": data, "quantization": quantization})
try:
    load_base(config, torch.device("cpu"))
except UserError as error:
    print(error)
"""


def test_a_4_bit_run_that_was_made_elsewhere_says_so_when_it_is_loaded(tiny_models):
    result = python(LOAD_4_BIT, tiny_models["llama"], hidden=("bitsandbytes",))
    assert result.returncode == 0, result.stderr
    assert "quantization needs bitsandbytes, which is not installed" in result.stdout


CALLBACK = """
import torch
from lora_train.instrument import InstrumentCallback, load_run
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
rows = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]} for _ in range(4)]
arguments = TrainingArguments(sys.argv[2], max_steps=2, report_to=[], use_cpu=True, save_strategy="no")
callback = InstrumentCallback(sys.argv[3], fuse=sys.argv[4] == "fuse")
Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train()
print("steps", load_run(sys.argv[3]).metrics()["step"].tolist())
"""


@pytest.mark.parametrize("fuse", ["fuse", "hooks"])
def test_the_callback_needs_neither_it_nor_pydantic(tiny_models, tmp_path, fuse):
    arguments = (tiny_models["llama"], tmp_path / "out", tmp_path / "run", fuse)
    result = python(CALLBACK, *arguments, hidden=("bitsandbytes", "pydantic", "pydantic_core"))
    assert result.returncode == 0, result.stderr
    assert "steps [1, 2]" in result.stdout


READERS = """
from lora_train.trainer.cli import main
run, page, other = sys.argv[1:]
for words in (["explain", run], ["report", run, "-o", page], ["compare", run, other]):
    assert main(words) == 0, words
"""


def test_readers_of_runs_need_neither(tmp_path):
    arguments = (RUNS / "healthy", tmp_path / "page.html", RUNS / "healed")
    result = python(READERS, *arguments, hidden=("bitsandbytes", "pydantic", "pydantic_core", "torch", "transformers"))
    assert result.returncode == 0, result.stderr


IMPORTS = """
import importlib, pkgutil

for part in ("kernels", "instrument", "trainer"):
    package = importlib.import_module(f"lora_train.{part}")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
        print(module.name)
"""


def test_no_module_imports_it():
    result = python(IMPORTS, hidden=("bitsandbytes",))
    assert result.returncode == 0, result.stderr
    assert "lora_train.trainer.dry_run.fake_model" in result.stdout.split()
