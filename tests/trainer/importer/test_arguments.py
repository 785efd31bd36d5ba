from __future__ import annotations

import dataclasses

import pytest
import transformers
from lora_train.trainer.config.schema import sections
from lora_train.trainer.importer.arguments import arguments
from lora_train.trainer.importer.left_out import weight


def test_names_are_ours_already():
    given = {"output_dir": "out", "learning_rate": 1e-4, "max_grad_norm": 0.3, "warmup_ratio": 0.03, "seed": 7}
    found = arguments(given).values
    assert {key: found[f"training.{key}"] for key in given} == given


def test_sft_trains_on_whole_rows_unless_it_says_otherwise():
    assert arguments({"max_length": 2048}).values["data.train_on_inputs"] is True
    assert arguments({"max_length": 2048, "assistant_only_loss": True}).values["data.train_on_inputs"] is False
    assert arguments({"max_length": 2048, "completion_only_loss": False}).values["data.train_on_inputs"] is True
    assert "data.train_on_inputs" not in arguments({"learning_rate": 1e-4, "output_dir": "o"}).values


def test_length_of_sft_config():
    assert arguments({"max_seq_length": 512}).values["data.cutoff_len"] == 512
    assert arguments({"packing": True}).values["data.cutoff_len"] == 1024


def test_defaults_of_sft_config_where_the_file_is_silent():
    found = arguments({"max_length": 512}).values
    assert (found["training.learning_rate"], found["training.bf16"]) == (2e-5, True)
    assert found["training.gradient_checkpointing"] is True
    found = arguments({"max_length": 512, "fp16": True, "learning_rate": 1e-4, "gradient_checkpointing": False}).values
    assert (found["training.learning_rate"], found.get("training.bf16"), found["training.fp16"]) == (1e-4, None, True)
    assert found["training.gradient_checkpointing"] is False
    assert "training.learning_rate" not in arguments({"output_dir": "o", "seed": 1}).values


@pytest.mark.parametrize("tool", [{}, {"max_length": 512}])
@pytest.mark.parametrize("value", [True, False])
def test_the_new_name_of_gradient_checkpointing(tool, value):
    found = arguments({**tool, "activation_checkpointing": value, "activation_checkpointing_kwargs": {"x": 1}})
    assert found.values["training.gradient_checkpointing"] is value
    assert [left.weight for left in found.left] == ["harmless"]


def test_flags_of_trl():
    found = arguments(
        {"model_name_or_path": "o/m", "dataset_name": "o/d", "use_peft": True, "lora_target_modules": "all-linear"}
    ).values
    assert (found["model.name_or_path"], found["data.train"]) == ("o/m", "o/d")
    assert (found["lora.r"], found["lora.lora_alpha"], found["lora.lora_dropout"]) == (16, 32, 0.05)


def test_evaluation_waits_for_rows():
    draft = arguments({"eval_strategy": "steps", "eval_steps": 10, "load_best_model_at_end": True, "output_dir": "o"})
    assert not [key for key in draft.values if "eval" in key or "best" in key]
    assert [left.key for left in draft.left] == ["eval_strategy"]


@pytest.mark.parametrize("cls", [transformers.TrainingArguments])
def test_every_argument_is_ours_or_weighed(cls):
    ours = {key for schema in sections().values() for key in schema.model_fields}
    fields = {field.name for field in dataclasses.fields(cls)} - ours
    assert sorted(name for name in fields if weight(name) == "unknown") == []


def test_default_arguments_leave_nothing_that_matters(tmp_path):
    draft = arguments(transformers.TrainingArguments(str(tmp_path), use_cpu=True).to_dict())
    assert [(left.key, left.value) for left in draft.left if left.weight != "harmless"] == []
    assert (draft.values["training.learning_rate"], draft.values["training.optim"]) == (5e-5, "adamw_torch_fused")


@pytest.mark.parametrize(("task", "ours"), [("SEQ_CLS", "seq_cls"), ("TOKEN_CLS", "token_cls"), ("CAUSAL_LM", None)])
def test_a_task_beside_the_arguments(task, ours):
    assert arguments({"output_dir": "o", "learning_rate": 1e-4, "task_type": task}).values.get("model.task") == ours
