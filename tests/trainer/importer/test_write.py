from __future__ import annotations

import pytest
import yaml
from lora_train.trainer.importer.draft import Draft
from lora_train.trainer.importer.write import as_yaml, in_yaml, nested


def test_the_whole_file():
    draft = Draft("axolotl", {"tf32": True, "deepspeed": "zero3.json", "use_dora": True})
    draft.put("model.name_or_path", "owner/model", "base_model")
    draft.put("lora.r", 16, "lora_r")
    draft.put("training.bf16", True, "bf16", "why")
    draft.put("data.train", "rows.jsonl", "datasets")
    assert as_yaml(draft.close(), "theirs.yml") == (
        "# From theirs.yml (axolotl), by lora-train import. Next: lora-train --config FILE --dry-run\n"
        "#\n"
        "# These have no counterpart, and what is learned would differ without them:\n"
        "# ! use_dora: True -- it is another adapter, or starts from other values\n"
        "#\n"
        "# These have no counterpart; they are about memory, speed or several machines. See whether the run fits\n"
        "#   (--dry-run):\n"
        "# - deepspeed: zero3.json\n"
        "#\n"
        "# Left out, because nothing that is learned depends on it: tf32\n"
        "model:\n"
        "  name_or_path: owner/model               # base_model\n"
        "lora:\n"
        "  r: 16                                   # lora_r\n"
        "data:\n"
        "  train: rows.jsonl                       # datasets\n"
        "training:\n"
        "  bf16: true                              # why\n"
    )


def test_no_value_ends_a_comment_or_a_line():
    draft = Draft("axolotl", {"use_dora\ntraining: {max_steps: 1}": "x\nlora: {r: 99}", "odd": "\u2028lora: {r: 98}"})
    draft.put("data.train", "a\nb: c # d", "x\ny: z", "e\nf: g")
    text = as_yaml(draft.close(), "n\nlora: {r: 97}")
    assert yaml.safe_load(text) == {"model": {"name_or_path": "owner/model"}, "data": {"train": "a\nb: c # d"}}


@pytest.mark.parametrize(
    "value", ["no", "1e-4", "", " a ", "a: b", "#x", 1e-05, 2e-4, True, None, ["q", "on"], {"a": 0.1}]
)
def test_a_value_is_read_back_as_it_was(value):
    assert yaml.safe_load(f"key: {in_yaml(value)}  # note") == {"key": value}


def test_sections_keep_our_order():
    draft = Draft("t", {})
    draft.put("training.seed", 1)
    draft.put("lora.lora_alpha", 2)
    draft.put("lora.r", 1)
    assert list(nested(draft)) == ["model", "quantization", "lora", "data", "training", "precision", "instrument"]
    assert list(nested(draft)["lora"]) == ["r", "lora_alpha"]
