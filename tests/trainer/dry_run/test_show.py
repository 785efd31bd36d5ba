"""The dry run as a whole, and what it finds in a model that overflows."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from lora_train.trainer.config.schema import Config
from lora_train.trainer.console import Console
from lora_train.trainer.data.load import load_data
from lora_train.trainer.dry_run.headroom import measure
from lora_train.trainer.dry_run.memory import longest
from lora_train.trainer.dry_run.show import dry_run
from lora_train.trainer.loop.components import build
from lora_train.trainer.loop.engine import Engine
from lora_train.trainer.model.load import load_tokenizer, trainable
from safetensors.torch import load_file, save_file

from ...conftest import DATA
from ..test_cli import write_config

DOWN = "gpt_neox.layers.1.mlp.dense_4h_to_h"


def config_of(model, folder, **sections) -> Config:
    values = {
        "model": {"name_or_path": str(model)},
        "lora": {"r": 4},
        "data": {"train": str(DATA), "format": "koalpaca", "limit": 40, "cutoff_len": 64},
        "training": {"output_dir": str(folder / "run"), "per_device_train_batch_size": 3, "fp16": True},
    }
    return Config.model_validate(
        {name: {**values.get(name, {}), **sections.get(name, {})} for name in values | sections}
    )


@pytest.fixture(scope="module")
def overflowing(tiny_models, tmp_path_factory):
    """A model whose last down projection leaves the range of fp16."""
    folder = tmp_path_factory.mktemp("overflowing") / "model"
    shutil.copytree(tiny_models["gpt_neox"], folder)
    weights = load_file(folder / "model.safetensors")
    weights[f"{DOWN}.weight"] *= 1e6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_command_line_prints_everything_and_leaves_no_run(cli, tiny_models, tmp_path):
    config = write_config(tmp_path, tiny_models["gpt_neox"], fp16=True, max_steps=9, gradient_accumulation_steps=2)
    result = cli("--config", config, "--dry-run", "data.eval_fraction=0.1", "training.eval_strategy=epoch")
    assert result.returncode == 0, result.stderr
    out = result.stdout
    assert "⟦ ⟧" in out
    assert re.findall(r"^batch (\d) \(step (\d)\), (\d) rows$", out, re.M) == [("1", "1", "2"), ("2", "1", "2")]
    assert len(re.findall(r"^row \d+ of .*koalpaca_mini.jsonl: \d+ tokens, \d+ trained on$", out, re.M)) == 4
    counts = [int(count) for count in re.findall(r"^ +\d+-\d+ +(\d+)  ?#*$", out, re.M)]
    assert sum(counts) == 36
    assert "longest row: 128 tokens (row" in out
    assert "4 rows are cut at data.cutoff_len=128" in out
    assert "steps: 9 an epoch of 4 rows each, 9 in all; evaluation rows: 4" in out
    assert "trainable params: 7,168 || all params: 156,288 || trainable%: 4.5864" in out
    assert re.search(r"^  total +\d+\.\d MiB  [\d,.]+ GiB are free$", out, re.M)
    assert "fits: 36 of 36 rows" in out
    shares = [
        float(share) for share in re.findall(r"^ +([\d.]+)% +[\d,.e+-]+  gpt_neox\S+:(?:in|out|grad_\w+)$", out, re.M)
    ]
    assert len(shares) == 10
    assert shares == sorted(shares, reverse=True)
    assert "loss and gradients are finite" in out
    assert not (tmp_path / "run").exists()
    assert result.stderr == ""


def test_config_without_weights_is_predicted_and_runs_no_batch(tiny_models, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny_models["llama"], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    nf4 = {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}
    assert dry_run(config_of(folder, tmp_path, quantization=nf4)) == 0
    out = capsys.readouterr().out
    assert "has a config but no weights" in out
    assert re.search(r"^  frozen weights +0\.2 MiB  float16 0\.1 MiB, nf4 0\.0 MiB", out, re.M)
    assert "one forward and backward" not in out


def test_overflow_exits_3_and_names_the_module(overflowing, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LORA_TRAIN_LANG", "ko")
    assert dry_run(config_of(overflowing, tmp_path)) == 3
    out = capsys.readouterr().out
    assert f"유한하지 않음: 순전파, 처음 나타난 곳은 {DOWN}" in out
    assert re.search(r"^  out: [\d,]+개 중 inf [1-9][\d,]*개, NaN [\d,]+개$", out, re.M)


def headroom_of(config):
    console, engine = Console(silent=True), Engine()
    data, _ = load_data(config, load_tokenizer(config), console)
    components = build(config, engine, data, None, 0, console)
    return components, longest([[example] for example in data.examples], 3)


def test_peaks_are_the_largest_magnitudes_whatever_the_compute_dtype(overflowing, tmp_path):
    components, rows = headroom_of(config_of(overflowing, tmp_path, training={"fp16": False}))
    found = measure(components, rows)
    assert found.phase is None
    nearest = found.peaks[0]
    assert (nearest.module, nearest.tensor) == (DOWN, "out")
    assert nearest.share == nearest.absmax / 65504 > 1
    seen = []
    handle = dict(components.model.named_modules())[f"base_model.model.{DOWN}"].register_forward_hook(
        lambda module, args, output: seen.append(float(output.abs().max()))
    )
    measure(components, rows)
    handle.remove()
    assert nearest.absmax == seen[0]


def test_nothing_is_applied_and_the_loss_scale_falls_only_on_paper(tiny_models, tmp_path):
    components, rows = headroom_of(config_of(tiny_models["llama"], tmp_path))
    before = {name: parameter.detach().clone() for name, parameter in trainable(components.model).items()}
    components.loss_scale.scale.fill_(2.0**40)
    found = measure(components, rows)
    assert found.phase is None
    assert found.loss_scale == 2.0 ** (40 - found.halvings) < 2.0**40
    assert float(components.loss_scale.scale) == 2.0**40
    assert all(torch.equal(before[name], parameter) for name, parameter in trainable(components.model).items())
    assert all(parameter.grad is None for parameter in trainable(components.model).values())


def test_weights_quantized_by_others_are_said_not_to_be_predictable(tiny_models, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny_models["llama"], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(settings))
    assert dry_run(config_of(folder, tmp_path)) == 0
    assert "cannot be predicted from its config: quantization_config" in capsys.readouterr().out
