"""The two readings of public configurations agree, a wrong one is seen, and the table that is kept holds its bars."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from lora_train.trainer.checks.read_config import read_config
from lora_train.trainer.importer.recognize import TOOLS
from lora_train.trainer.importer.write import as_yaml

from benchmarks.imports.__main__ import judged, ours, table
from benchmarks.imports.independent import facts, is_lora, kind

KEPT = [json.loads(line) for line in Path(__file__).with_name("imports.jsonl").read_text(encoding="utf-8").splitlines()]
ELIGIBLE = [row for row in KEPT if row["kind"] == "sft"]
AXOLOTL = {
    "base_model": "owner/model",
    "adapter": "lora",
    "datasets": [{"path": "owner/data", "type": "alpaca"}],
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_target_modules": ["v_proj", "q_proj"],
    "learning_rate": "1e-4",
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "bf16": "auto",
}


def test_the_table_that_is_kept_has_every_public_lora_example():
    assert Counter(row["repository"] for row in KEPT) == {"axolotl": 192, "LLaMA-Factory": 28}
    assert len({row["name"] for row in KEPT}) == len(KEPT)
    assert all(len(row["sha256"]) == 64 for row in KEPT)


def test_of_causal_language_models_with_lora_at_least_85_in_100_are_imported():
    accepted = [row for row in ELIGIBLE if "values" in row]
    assert len(accepted) >= 0.85 * len(ELIGIBLE)
    assert all(row["dry_run"].startswith("ok") for row in accepted)


def test_what_decides_a_run_equals_what_the_independent_reader_reads():
    assert [row["name"] for row in KEPT if row.get("different")] == []
    assert [row["name"] for row in KEPT if row.get("unknown")] == []


def test_the_rest_name_what_they_cannot():
    assert all(row["why"] for row in KEPT if row["verdict"] == "refused")
    assert {row["verdict"] for row in KEPT} == {"imported", "imported, with differences", "refused"}
    assert not [row for row in KEPT if row["kind"] in ("preferences", "pictures") and row["verdict"] != "refused"]


def as_theirs(repository: str, values: dict) -> dict:
    """Keys of the other trainer that say what the kept values say: the way back."""
    one, amount = values["steps"]
    warmup = {f"warmup_{values['warmup'][0]}": values["warmup"][1]}
    common = {"learning_rate": values["rate"], "lora_alpha": values["alpha"], **warmup}
    precision = {"bf16": values["precision"] == "bf16", "fp16": values["precision"] == "fp16"}
    targets, is_all = values["targets"], values["targets"] == "all-linear"
    if repository == "axolotl":
        rows = [{"path": "owner/data", "type": "completion" if values["mask"] == "all" else "alpaca"}]
        return common | precision | {
            "base_model": "owner/model", "adapter": "lora", "datasets": rows, "lora_r": values["rank"],
            "lora_target_linear": is_all, "lora_target_modules": None if is_all else targets,
            "micro_batch_size": 1, "gradient_accumulation_steps": values["batch"], "sequence_len": values["length"],
            "lr_scheduler": values["schedule"], "max_steps" if one == "steps" else "num_epochs": amount,
        }  # fmt: skip
    return common | precision | {
        "model_name_or_path": "owner/model", "finetuning_type": "lora", "stage": "sft", "dataset": "owner/data",
        "lora_rank": values["rank"], "lora_target": "all" if is_all else ",".join(targets), "do_train": True,
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": values["batch"],
        "train_on_prompt": values["mask"] == "all", "cutoff_len": values["length"],
        "lr_scheduler_type": values["schedule"], "max_steps" if one == "steps" else "num_train_epochs": amount,
    }  # fmt: skip


def test_the_values_that_are_kept_come_back_the_same_from_files_that_say_them(tmp_path):
    path, seen = tmp_path / "c.yaml", set()
    for row in KEPT:
        key = json.dumps([row["repository"], row.get("values")])
        if "values" not in row or key in seen:
            continue
        seen.add(key)
        theirs = as_theirs(row["repository"], row["values"])
        path.write_text(as_yaml(TOOLS[row["repository"]](theirs), "theirs.yaml"))
        assert ours(read_config(path)) == row["values"] == facts(theirs), row["name"]
    assert len(seen) > 50


@pytest.mark.parametrize(("change", "verdict"), [({}, "imported"), ({"use_dora": True}, "imported, with differences")])
def test_verdict(tmp_path, change, verdict):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(AXOLOTL | change))
    row = judged(path, tmp_path)
    assert (row["verdict"], row["different"], row["kind"]) == (verdict, {}, "sft")
    assert row["values"]["batch"] == 8
    assert "axolotl         sft           " + verdict in table([row | {"repository": "axolotl", "name": "c.yaml"}])


def test_a_wrong_reading_is_seen(tmp_path, monkeypatch):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(AXOLOTL))
    monkeypatch.setitem(
        TOOLS, "axolotl", lambda raw: TOOLS["LLaMA-Factory"](raw | {"finetuning_type": "lora", "dataset": "d"})
    )
    assert judged(path, tmp_path)["different"]["rank"] == [16, 8]


def test_refusals_have_a_reason(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(AXOLOTL | {"rl": "dpo"}))
    row = judged(path, tmp_path)
    assert (row["kind"], row["verdict"]) == ("preferences", "refused")
    assert row["why"] == ["it is no supervised fine-tuning of a language model (dpo)"]


def test_what_is_a_lora_example():
    assert is_lora({"adapter": "qlora"})
    assert is_lora({"peft_config": {"name": "lora"}})
    assert not is_lora({"finetuning_type": "full"})
    assert kind({"stage": "rm"}) == "preferences"
