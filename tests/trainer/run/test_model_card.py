"""What lies beside an adapter's weights: the snippet of the card is run as it stands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from lora_train.trainer.config.schema import Config
from lora_train.trainer.run.model_card import describe, model_card
from transformers import AutoTokenizer

from ...conftest import COMMAND_ENVIRONMENT
from ..model.test_gguf_header import write_gguf
from ..test_cli import write_config
from ..verbs.test_merge import make_run

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def config_of(base: str, **sections) -> Config:
    return Config.model_validate({"model": {"name_or_path": base}, "data": {"train": "owner/rows"}, **sections})


def front(card: str) -> dict:
    return yaml.safe_load(card.removeprefix("---\n").partition("---\n")[0])


def snippet(card: str) -> str:
    return card.split("```python\n")[1].split("```")[0]


def test_the_snippet_loads_what_a_run_left(cli, tiny_models, tmp_path):
    """The real command; then, in another process, what a reader of the card types."""
    result = cli("--config", write_config(tmp_path, tiny_models["llama"], max_steps=2, save_steps=1))
    assert result.returncode == 0, result.stderr
    folder = next(tmp_path.glob("run/adapter"))
    code = snippet((folder / "README.md").read_text()).replace("path/to/this/folder", str(folder))
    code += "print(type(model).__name__, len(tokenizer), model.active_adapter)\n"
    ran = subprocess.run(
        [sys.executable, "-c", code], env=COMMAND_ENVIRONMENT, capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["PeftModelForCausalLM", "512", "default"]
    for file in (folder, *tmp_path.glob("run/checkpoint-*")):
        written = (file / "adapter_config.json").read_text()
        assert '"lora_alpha": 8,' in written
        assert isinstance(json.loads(written)["r"], int)
    # nothing of this machine in what is read and shared
    assert not [p.name for p in folder.iterdir() if p.suffix in (".md", ".jinja") and str(tmp_path) in p.read_text()]
    assert str(tiny_models["llama"].parent) not in (folder / "tokenizer_config.json").read_text()


def test_a_base_on_disk_is_not_a_name_on_the_hub(tiny_models):
    base = tiny_models["llama"]
    card = model_card(
        config_of(
            str(base),
            data={"train": ["/home/someone/rows.jsonl", "owner/rows"], "chat_template": TEMPLATE},
            training={"output_dir": "~/runs/x"},
        ),
        0.5,
    )
    assert "base_model" not in front(card)
    assert "# LoRA adapter for llama\n" in card
    assert "`rows.jsonl, owner/rows`" in card
    assert "put the folder of `llama` somewhere" in card
    assert not [word for word in ("/home", "~", str(base.parent)) if word in card]
    folded = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert (folded["training"]["output_dir"], folded["model"]["name_or_path"]) == ("x", "llama")
    assert (folded["data"]["chat_template"], folded["lora"]["lora_alpha"]) == (TEMPLATE, 8)
    compile(snippet(card), "card", "exec")


def test_a_base_on_the_hub_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card = model_card(config_of("owner/model"), None)
    assert front(card)["base_model"] == "owner/model"
    assert "somewhere" not in card
    (tmp_path / "owner" / "model").mkdir(parents=True)  # now it is a folder that looks like an id
    assert "base_model" not in front(model_card(config_of("owner/model"), None))


def test_the_hub_takes_the_front_matter(tmp_path, monkeypatch):
    """huggingface_hub reads it as a card, with the data sets that are on the hub and no others."""
    from huggingface_hub import ModelCard

    monkeypatch.chdir(tmp_path)
    config = config_of("owner/model", data={"train": ["owner/rows", "/home/someone/rows.jsonl"]})
    data: Any = ModelCard(model_card(config, 0.5)).data
    assert (data.base_model, data.library_name, data.pipeline_tag) == ("owner/model", "peft", "text-generation")
    assert data.datasets == ["owner/rows"]
    assert data.tags == ["lora", "lora-train"]
    local: Any = ModelCard(model_card(config_of("owner/model", data={"train": "rows.jsonl"}), 0.5)).data
    assert local.datasets is None


def test_a_gguf_file_whose_repository_is_known_is_named_by_it(tmp_path):
    path = write_gguf(tmp_path, lambda writer: writer.add_source_repo_url("https://huggingface.co/owner/model"))
    card = model_card(config_of(str(path)), None)
    assert front(card)["base_model"] == "owner/model"
    assert "gguf_file='model.gguf'" in card
    assert str(tmp_path) not in card
    assert "base_model" not in front(model_card(config_of(str(write_gguf(tmp_path, lambda writer: None))), None))


def test_the_tokenizer_lies_beside_the_adapter_with_the_template_of_the_run(tiny_models, tmp_path):
    config = config_of(str(tiny_models["llama"]), data={"train": "owner/rows", "chat_template": TEMPLATE})
    (tmp_path / "with").mkdir()
    describe(tmp_path / "with", config, 1.0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "with")
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer("질문")["input_ids"] == AutoTokenizer.from_pretrained(tiny_models["llama"])("질문")["input_ids"]
    (tmp_path / "without").mkdir()
    describe(tmp_path / "without", config_of("owner/is-not-cached"), 1.0)
    assert [path.name for path in (tmp_path / "without").iterdir()] == ["README.md"]
    assert "from_pretrained(model.peft_config" in (tmp_path / "without" / "README.md").read_text()


def test_a_merge_takes_the_tokenizer_of_the_adapter(tiny_models, tmp_path):
    from lora_train.trainer.cli import main

    run = make_run(tmp_path / "run", tiny_models["llama"])
    describe(run / "adapter", config_of(str(tiny_models["llama"]), data={"train": "x", "chat_template": TEMPLATE}), 1.0)
    assert main(["merge", str(run)]) == 0
    assert AutoTokenizer.from_pretrained(run / "merged").chat_template == TEMPLATE
    assert Path(run / "merged" / "model.safetensors").is_file()
