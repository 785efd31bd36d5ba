"""How two runs of PEFT's tests are compared, on lines as the plugin writes them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModel

from benchmarks.peft_tests.models import MODELS, fill_cache
from benchmarks.peft_tests.outcomes import differences, n_fused, read_outcomes, summary


def write(folder: Path, **tests: tuple[str, str, int]) -> Path:
    folder.mkdir()
    for index, (name, (outcome, reason, fused)) in enumerate(tests.items()):
        line = {"test": name, "outcome": outcome, "reason": reason, "fused": fused, "made": 2}
        line["why"] = {} if fused else {"adapter off": 1, "merged": 2}
        with (folder / f"{index % 2}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    return folder


def test_a_test_that_ends_otherwise_is_a_difference_with_its_reasons(tmp_path):
    plain = write(
        tmp_path / "plain",
        lora_same=("passed", "", 0),
        merged=("passed", "", 0),
        lora_other=("passed", "", 0),
        skipped=("skipped", "no GPU", 0),
        gone=("failed", "offline", 0),
    )
    fused = write(
        tmp_path / "fused",
        lora_same=("passed", "", 3),
        merged=("passed", "", 0),
        lora_other=("failed", "IndexError: list\nindex", 2),
        skipped=("skipped", "no GPU", 0),
    )
    (fused / "2.jsonl").write_text('{"test": "torn", "outco')
    before, after = read_outcomes(plain), read_outcomes(fused)
    assert [one.test for one in differences(before, after)] == ["lora_other"]
    lines = summary(before, after)
    assert n_fused(after) == 1
    assert lines[:7] == [
        "3 passed, 1 failed, 1 skipped with PEFT's own forward",
        "2 passed, 1 failed, 1 skipped with the fused forward",
        "3 tests ran, 1 only in one of the two runs",
        "3 of them made LoRA linears",
        "1 passed and computed LoRA linears with the fused operator, 3 layers",
        "    1 made some and fused none: merged",
        "1 differences",
    ]
    assert "IndexError: list" in lines[-1]
    assert "index" not in lines[-1].replace("IndexError", "").splitlines()[-1]


def test_every_new_lora_linear_is_fused_and_counted(monkeypatch):
    import peft
    from lora_train.instrument.record import patch

    from benchmarks.peft_tests import plugin

    monkeypatch.setattr(plugin.peft_layer.Linear, "__init__", plugin.peft_layer.Linear.__init__)
    monkeypatch.setattr(patch, "_fused", patch._fused)
    monkeypatch.setattr(patch.FusedForward, "forward", patch.FusedForward.forward)
    plugin._watch_new_layers(True)
    model: Any = peft.get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)), peft.LoraConfig(target_modules=["0", "1"])
    )
    plugin._fused_layers.clear()
    model(torch.ones(1, 4))
    assert len(plugin._fused_layers) == 2
    plugin._fused_layers.clear()
    with model.disable_adapter():
        model(torch.ones(1, 4))
    assert not plugin._fused_layers
    assert {reason: len(layers) for reason, layers in plugin._unfused.items()} == {"adapter off": 2}


def test_tests_of_another_tuner_are_left_out():
    import peft

    from benchmarks.peft_tests.plugin import _of_another_tuner

    def item(**parameters: Any) -> Any:
        return SimpleNamespace(callspec=SimpleNamespace(params=parameters))

    assert _of_another_tuner(item(config_cls=peft.LoHaConfig, test_name="LoRA"))
    assert not _of_another_tuner(item(config_cls=peft.LoraConfig))
    assert not _of_another_tuner(item(first=peft.LoHaConfig, second=peft.LoraConfig))
    assert not _of_another_tuner(item(dtype=torch.float16))
    assert not _of_another_tuner(SimpleNamespace())


def test_the_models_of_the_hub_are_found_without_it(tmp_path):
    fill_cache(tmp_path)
    for name, (_, config) in MODELS.items():
        model = AutoModel.from_pretrained(name, cache_dir=tmp_path, local_files_only=True)
        assert model.config.model_type == config.model_type
