"""Heads of every family: what is new is trained and saved, and PEFT alone loads the same model."""

from __future__ import annotations

import warnings

import pytest
import torch
from lora_train.trainer.config.schema import Config
from lora_train.trainer.loop.checkpoint import save_adapter
from lora_train.trainer.model.classify import head_of_config
from lora_train.trainer.model.heads import NO_LIMIT, linears_in, n_places, new_modules
from lora_train.trainer.model.load import MODEL_CLASSES, add_lora, load_base, trainable
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig

from ..classifiers import FAMILIES, tiny

# The layers that are adapted in every block, by the last part of their names.
TARGETS = {
    "bert": {"query", "key", "value", "dense"},
    "roberta": {"query", "key", "value", "dense"},
    "xlm-roberta": {"query", "key", "value", "dense"},
    "distilbert": {"q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"},
    "deberta-v2": {"query_proj", "key_proj", "value_proj", "dense", "pos_key_proj", "pos_query_proj"},
    "modernbert": {"Wqkv", "Wo", "Wi"},
    "electra": {"query", "key", "value", "dense", "embeddings_project"},
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "qwen2": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "gpt_neox": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
}
# What a checkpoint of the body alone lacks beside the last layer.
NEW = {"distilbert": {"pre_classifier"}, "deberta-v2": {"pooler"}, "modernbert": {"head"}}


def config_of(path, task: str = "seq_cls") -> Config:
    sections = {"model": {"name_or_path": str(path), "task": task}, "lora": {"r": 4}}
    return Config.model_validate({**sections, "data": {"train": "x", "labels": ["a", "b", "c"]}})


@pytest.mark.parametrize("task", ["seq_cls", "token_cls"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_new_is_trained_and_peft_loads_it(family, task, tmp_path):
    config = config_of(tiny(tmp_path, family), task)
    head = head_of_config(config)
    base = load_base(config, torch.device("cpu"), head)
    missing = {name for name in new_modules(base) if name not in ("classifier", "score")}
    assert missing == (NEW.get(family, set()) if task == "seq_cls" or family == "modernbert" else set())
    model = add_lora(base, config)
    adapted = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    assert {name.rpartition(".")[2] for name in adapted} == TARGETS[family]
    assert not any("modules_to_save" in name for name in adapted)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_adapter(model, tmp_path / "adapter")
    ids = torch.tensor([[2, 5, 9, 12, 3]])
    mask = torch.ones_like(ids)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = model.eval()(input_ids=ids, attention_mask=mask).logits
        torch.manual_seed(7)  # another head than ours was
        plain = MODEL_CLASSES[head.task].from_pretrained(config.model.name_or_path, **head.settings)
        theirs = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()(input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(theirs.logits, ours, rtol=1e-5, atol=1e-5)


def test_the_head_of_a_seed_is_always_the_same(tmp_path):
    config = config_of(tiny(tmp_path, "bert"))
    first, second = (load_base(config, torch.device("cpu"), head_of_config(config)) for _ in range(2))
    assert torch.equal(first.classifier.weight, second.classifier.weight)  # pyright: ignore


def test_a_pooler_that_the_checkpoint_has_is_kept(tmp_path):
    config = config_of(tiny(tmp_path, "bert"))
    base = load_base(config, torch.device("cpu"), head_of_config(config))
    assert new_modules(base) == ["classifier"]
    assert linears_in(base, ["classifier"]) == ["classifier"]


@pytest.mark.parametrize(
    ("family", "places"),
    [("bert", 40), ("roberta", 39), ("electra", 40), ("llama", NO_LIMIT), ("modernbert", NO_LIMIT)],
)
def test_places_of_a_row(family, places):
    assert n_places(AutoConfig.for_model(family, **FAMILIES[family])) == places
