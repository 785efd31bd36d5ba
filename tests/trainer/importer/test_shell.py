from __future__ import annotations

import pytest
from lora_train.trainer.errors import UserError
from lora_train.trainer.importer.recognize import read_foreign
from lora_train.trainer.importer.shell import flags

FACTORY = r"""#!/bin/bash
MODEL="owner/model"
export OUT=saves/$NAME   # told by a run
pip install --quiet x
CUDA_VISIBLE_DEVICES=0 llamafactory-cli train \
    --stage sft --do_train \
    --finetuning_type lora --lora_target q_proj,v_proj --lora-rank=16 \
    --model_name_or_path ${MODEL} --dataset identity \
    --learning_rate 1e-4 --fp16 --output_dir $OUT
"""


def test_flags_of_the_longest_command():
    given, unknown = flags(FACTORY)
    assert given == {
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_target": "q_proj,v_proj",
        "lora_rank": "16",
        "model_name_or_path": "owner/model",
        "dataset": "identity",
        "learning_rate": "1e-4",
        "fp16": True,
    }
    assert unknown == {"output_dir": "saves/$NAME"}


def test_a_script_of_llama_factory(tmp_path):
    path = tmp_path / "train.sh"
    path.write_text(FACTORY)
    draft = read_foreign(path)
    expected = {"lora.r": 16, "lora.target_modules": ["q_proj", "v_proj"], "training.fp16": True}
    assert {key: draft.values[key] for key in expected} == expected
    assert draft.values["training.learning_rate"] == 1e-4
    assert [(left.key, left.value) for left in draft.left if left.weight == "unknown"] == [
        ("output_dir", "saves/$NAME")
    ]


@pytest.mark.parametrize(("text", "error"), [("a --b 'c", "cannot be read"), ("ls -l\n", "no configuration that")])
def test_what_is_no_command_of_a_trainer(tmp_path, text, error):
    path = tmp_path / "train.sh"
    path.write_text(text)
    with pytest.raises(UserError, match=error):
        read_foreign(path)
