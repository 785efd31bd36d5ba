"""What the files beside a state say."""

from __future__ import annotations

import pytest
from lora_train.instrument.advise.beside import read_beside

CARD = """---
library_name: peft
---
# x

- learning_rate: 9 is not in the section

### Training hyperparameters

The following hyperparameters were used during training:
- learning_rate: 0.0002
- train_batch_size: 2
- eval_batch_size: 8
- seed: 42
- distributed_type: multi-GPU
- num_devices: 2
- gradient_accumulation_steps: 4
- total_train_batch_size: 16
- optimizer: Use OptimizerNames.ADAMW_TORCH with betas=(0.9,0.95) and epsilon=1e-06 and optimizer_args=No
- lr_scheduler_type: cosine
- lr_scheduler_warmup_ratio: 0.03
- num_epochs: 3
- mixed_precision_training: Native AMP

### Framework versions

- seed: 1
"""


def test_the_trainers_card_and_the_adapter(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    (tmp_path / "adapter_config.json").write_text(
        '{"r": 8, "lora_alpha": 16, "target_modules": ["v_proj", "q_proj"], "bias": "none", '
        '"base_model_name_or_path": "o/m"}'
    )
    assert read_beside(tmp_path) == {
        "lora.r": 8,
        "lora.lora_alpha": 16,
        "lora.target_modules": ["q_proj", "v_proj"],
        "lora.bias": "none",
        "model.name_or_path": "o/m",
        "training.learning_rate": 0.0002,
        "training.per_device_train_batch_size": 2,
        "training.per_device_eval_batch_size": 8,
        "training.seed": 42,
        "training.num_devices": 2,
        "training.gradient_accumulation_steps": 4,
        "training.total_train_batch_size": 16,
        "training.optim": "adamw_torch",
        "training.adam_beta1": 0.9,
        "training.adam_beta2": 0.95,
        "training.adam_epsilon": 1e-06,
        "training.lr_scheduler_type": "cosine",
        "training.warmup_ratio": 0.03,
        "training.num_train_epochs": 3,
    }


def test_an_older_card_names_its_optimizer_otherwise(tmp_path):
    (tmp_path / "README.md").write_text(
        "### Training hyperparameters\n- learning_rate: 5e-05\n"
        "- optimizer: Adam with betas=(0.9,0.999) and epsilon=1e-08\n"
    )
    found = read_beside(tmp_path)
    assert found["training.optim"] == "adam"
    assert found["training.adam_beta2"] == 0.999
    assert found["training.gradient_accumulation_steps"] == 1  # the card names it only where it is another


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"r": null}', "\ufeff{}"])
def test_what_is_torn_says_nothing(tmp_path, text):
    (tmp_path / "adapter_config.json").write_text(text)
    (tmp_path / "README.md").write_text("no section")
    assert read_beside(tmp_path) == {}


def test_the_nearest_folder_has_the_last_word(tmp_path):
    inner = tmp_path / "checkpoint-10"
    inner.mkdir()
    for folder, r in ((tmp_path, 4), (inner, 8)):
        (folder / "adapter_config.json").write_text(f'{{"r": {r}}}')
    (tmp_path / "README.md").write_text("### Training hyperparameters\n- seed: 3\n")
    assert read_beside(inner) == {"lora.r": 8, "training.seed": 3, "training.gradient_accumulation_steps": 1}
    assert read_beside(tmp_path)["lora.r"] == 4
    assert read_beside(inner / "trainer_state.json")["lora.r"] == 8
