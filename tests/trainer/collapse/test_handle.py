"""A run that collapses, through the command line: named, kept, remedied; stopped, healed, rolled back, killed."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lora_train.instrument.read.load import load_run
from lora_train.instrument.read.store import read_metrics
from lora_train.instrument.record.ring import Ring
from lora_train.trainer.collapse.handle import namer
from lora_train.trainer.collapse.recorded import recorded_rows
from lora_train.trainer.config.schema import Config
from lora_train.trainer.data.batches import StepRows
from lora_train.trainer.data.examples import Dataset, Example, load_examples
from lora_train.trainer.loop.components import order_of
from lora_train.trainer.loop.train import train_step
from lora_train.trainer.run.start import run
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from benchmarks.collapse.model import MODULE, write_work

from ...conftest import COMMAND_ENVIRONMENT, DATA, ROOT
from ...forked import Command

# the collapse comes about half way
N_STEPS = 24


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with a model whose float16 overflows while it trains, and its configuration."""
    folder = tmp_path_factory.mktemp("collapse")
    path = write_work(folder, seed=0)
    values = yaml.safe_load(path.read_text())
    values["training"] |= {"max_steps": N_STEPS, "lr_scheduler_type": "constant"}
    path.write_text(yaml.safe_dump(values))
    return folder


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_metrics(folder) if "learning_rate" in row]


def diagnosis_of(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("incidents/*/diagnosis.json")
    return json.loads(path.read_text(encoding="utf-8"))


def assert_every_checkpoint_is_finite(folder: Path) -> None:
    files = [*folder.glob("checkpoint-*/*.safetensors"), *folder.glob("adapter/*.safetensors")]
    assert files
    for file in files:
        for name, tensor in load_file(file).items():
            assert not tensor.is_floating_point() or tensor.isfinite().all(), f"{file} {name}"


@pytest.fixture(scope="module")
def stopped(work, cli) -> tuple[Path, subprocess.CompletedProcess]:
    folder = work / "stopped"
    settings = ("precision.on_collapse=stop", f"training.output_dir={folder}")
    return folder, cli("--config", work / "collapse.yaml", *settings)


def test_stop_names_module_step_and_rows_and_loses_nothing(stopped, device):
    folder, result = stopped
    assert result.returncode == 3, result.stderr
    diagnosis = diagnosis_of(folder)
    step, rows = diagnosis["step"], diagnosis["rows"]
    assert (diagnosis["kind"], diagnosis["module"], diagnosis["phase"]) == ("forward_overflow", MODULE, "forward")
    assert diagnosis["action"] == "stop"
    last = steps_of(folder)[-1]
    assert (last["step"], last["rows"], last["loss"], last["skipped"]) == (step, rows, None, True)
    evidence = diagnosis["evidence"]
    assert evidence["n_inf"] > 0
    assert 60000 < evidence["absmax"] <= 65504
    assert evidence["input_absmax"] < 100
    assert evidence["adapter_nonfinite"] == 0
    assert set(evidence["rows_alone"]) <= set(rows)
    verified = [remedy["change"] for remedy in diagnosis["remedies"] if remedy["verified"]]
    assert verified == [f"precision.fp32_modules=[{MODULE}]"]
    assert [path.name for path in folder.glob("checkpoint-*")] == [f"checkpoint-{step - 1}"]
    assert_every_checkpoint_is_finite(folder)
    for text in (
        f"COLLAPSE at step {step}",
        MODULE,
        "its inputs are finite",
        "<- recommended",
        "Exit code 3",
        "Go on:",
    ):
        assert text in result.stdout


def test_replay_gives_the_recorded_numbers_and_a_reproduction(stopped, cli, tmp_path, device):
    folder, _ = stopped
    step = diagnosis_of(folder)["step"]
    result = cli("replay", folder, "--step", step, "--extract", tmp_path / "report", "--what-if")
    assert result.returncode == 3, result.stderr
    # attention's backward adds in any order on a GPU
    assert device == "cuda" or "recorded statistics are equal to the last bit" in result.stdout
    assert f"forward_overflow in the forward pass: {MODULE}" in result.stdout
    repro = tmp_path / "report" / "repro.py"
    assert len(repro.read_text().splitlines()) <= 25
    alone = subprocess.run([sys.executable, str(repro)], capture_output=True, text=True, check=True, timeout=60).stdout
    # it multiplies on the CPU, where a value next to the limit may fall on its other side
    assert (
        "inf and 0 nan" if device == "cuda" else f"{diagnosis_of(folder)['evidence']['n_inf']} inf and 0 nan"
    ) in alone
    assert "inputs finite: True" in alone
    # a healthy step, from the beginning of the run; and a change that helps
    result = cli("replay", folder, "--step", 3, "--dump", MODULE)
    assert result.returncode == 0, result.stderr
    assert device == "cuda" or "equal to the last bit" in result.stdout
    dumped = load_file(folder / "replay" / f"step-3-{MODULE}.safetensors")
    assert {"input.0", "output.0", "grad_out", "weight.base_layer.weight"} <= dumped.keys()
    result = cli("replay", folder, "--step", step, "--set", f"precision.fp32_modules=[{MODULE}]")
    assert result.returncode == 0, result.stderr
    assert "every gradient is finite" in result.stdout


def test_replay_says_what_is_wrong_with_its_input(stopped, cli, tmp_path):
    folder, _ = stopped
    for arguments, sentence in [
        ((tmp_path, "--step", 1), "holds no run"),
        ((folder, "--step", 999), "never came to step 999"),
        ((folder, "--step", 2, "--set", "lora.rnak=2"), "lora.rnak is not a known key"),
        ((folder, "--step", 2, "--dump", "no.such"), "has no module no.such"),
    ]:
        result = cli("replay", *arguments)
        assert (result.returncode, sentence in result.stderr) == (2, True), result.stderr


def test_the_recommended_command_goes_on_to_the_end(stopped, cli, work):
    folder, result = stopped
    other = work / "resumed"
    shutil.copytree(folder, other)
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("Go on:")]
    arguments = line.replace(str(folder), str(other)).replace("'", "").split()[3:]
    result = cli(*arguments, f"training.output_dir={other}")
    assert result.returncode == 0, result.stderr
    assert (steps_of(other)[-1]["step"], steps_of(other)[-1]["start"]) == (N_STEPS, 1)


def test_heal_goes_on_and_says_so_everywhere(work, cli, device):
    folder = work / "healed"
    result = cli("--config", work / "collapse.yaml", f"training.output_dir={folder}", env={"LORA_TRAIN_LANG": "ko"})
    assert result.returncode == 0, result.stderr
    diagnosis = diagnosis_of(folder)
    step = diagnosis["step"]
    assert (diagnosis["action"], diagnosis["module"]) == ("heal", MODULE)
    rows = steps_of(folder)
    assert [row["step"] for row in rows] == list(range(1, N_STEPS + 1))
    assert [row["start"] for row in rows] == [0] * (step - 1) + [1] * (N_STEPS + 1 - step)
    before, after = (sum(r["loss"] for r in part) / 5 for part in (rows[step - 6 : step - 1], rows[-5:]))
    assert after < before
    assert "붕괴" in result.stdout
    assert f"{step}스텝" in result.stdout
    assert f"1번 스스로 고쳤습니다: {step} forward_overflow {MODULE}" in result.stdout
    assert yaml.safe_load((folder / "config.yaml").read_text())["precision"]["fp32_modules"] == [MODULE]
    assert MODULE in (folder / "adapter" / "README.md").read_text()
    assert_every_checkpoint_is_finite(folder)


@pytest.mark.parametrize("when", ["went wrong", "Goes on"])
def test_a_run_killed_while_it_heals_goes_on(work, cli, when):
    folder = work / ("killed-" + when.split()[0])
    arguments = ["--config", str(work / "collapse.yaml"), f"training.output_dir={folder}"]
    process = Command(*arguments, environment=COMMAND_ENVIRONMENT, cwd=ROOT)
    while when not in process.printed():
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    for path in folder.glob("checkpoint-*[0-9]"):
        assert_every_checkpoint_is_finite(folder)
        assert (path / "trainer_state.json").exists()
    result = cli(*arguments, "--resume", "auto")
    assert result.returncode == 0, result.stderr
    last = steps_of(folder if when == "Goes on" else _newest(folder))[-1]
    assert last["step"] == N_STEPS
    assert last["loss"] is not None


def _newest(folder: Path) -> Path:
    """The run folder that `--resume auto` went to: without a checkpoint it starts anew beside the old one."""
    beside = folder.with_name(folder.name + "-2")
    return beside if beside.exists() else folder


CONDITIONS = {
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "checkpointing": {"gradient_checkpointing": True},
    "adamw_8bit": {"optim": "adamw_8bit"},
    "paged_adamw_8bit": {"optim": "paged_adamw_8bit"},
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_the_same_under_other_conditions(work, capsys, name, device):
    values = yaml.safe_load((work / "collapse.yaml").read_text())
    folder = work / name
    values["training"] |= {"output_dir": str(folder), **CONDITIONS[name]}
    torch.set_num_threads(1)
    assert run(Config.model_validate(values), None) == 0
    diagnosis = diagnosis_of(folder)
    assert (diagnosis["kind"], diagnosis["module"], diagnosis["action"]) == ("forward_overflow", MODULE, "heal")
    assert [row["step"] for row in steps_of(folder)] == list(range(1, N_STEPS + 1))
    assert all(row["loss"] is not None for row in steps_of(folder))
    assert_every_checkpoint_is_finite(folder)


def test_two_processes_see_the_same_collapse_and_heal_alike(work, stopped):
    folder = work / "two"
    settings = ["training.per_device_train_batch_size=2", f"training.output_dir={folder}"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "lora_train.trainer.cli"]
    result = subprocess.run(
        [sys.executable, *launch, "--config", str(work / "collapse.yaml"), *settings],
        env=COMMAND_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    diagnosis, alone = diagnosis_of(folder), diagnosis_of(stopped[0])
    assert (diagnosis["module"], diagnosis["rows"]) == (MODULE, alone["rows"])
    assert diagnosis["step"] == alone["step"]
    assert sorted(diagnosis["evidence"]["rows_alone"]) == sorted(alone["evidence"]["rows_alone"])
    assert [row["step"] for row in steps_of(folder)] == list(range(1, N_STEPS + 1))
    assert all(row["loss"] is not None for row in steps_of(folder))


class LateRing(Ring):
    """A device that is five steps ahead of the host, as CUDA may be."""

    def ready(self, last: float = math.inf) -> Iterator[tuple[int, torch.Tensor]]:
        while len(self._in_flight) > 5 and self._in_flight[0][0] <= last:
            yield from self._take()


def test_a_host_that_lags_behind_finds_the_state_of_the_step(work, monkeypatch, capsys):
    """What ran after the step was masked on the device, is dropped, and runs again."""
    values = yaml.safe_load((work / "collapse.yaml").read_text())
    torch.set_num_threads(1)
    runs = []
    for name in ("prompt", "late"):
        folder = work / name
        values["training"]["output_dir"] = str(folder)
        assert run(Config.model_validate(values), None) == 0
        runs.append(folder)
        monkeypatch.setattr("lora_train.trainer.loop.train.Ring", LateRing)
        monkeypatch.setattr("lora_train.instrument.record.recorder.Ring", LateRing)
    prompt, late = (steps_of(folder) for folder in runs)
    keys = ("step", "start", "updates", "loss", "grad_norm", "loss_scale", "skipped")
    assert [[row[key] for key in keys] for row in late] == [[row[key] for key in keys] for row in prompt]
    for file in ("checkpoint-*/adapter_model.safetensors", "adapter/adapter_model.safetensors"):
        first, second = (sorted(folder.glob(file)) for folder in runs)
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    frames = [load_run(folder).stats(columns=["sumsq", "n_inf"]) for folder in runs]
    assert frames[0].equals(frames[1])


@pytest.fixture(scope="module")
def one_bad_row(work, tiny_models) -> tuple[Path, int]:
    """A model with an infinite embedding of a token that only one of the rows has, and that row."""
    folder = work / "bad-embedding"
    shutil.copytree(tiny_models["gpt_neox"], folder)
    config = Config.model_validate(yaml.safe_load((work / "collapse.yaml").read_text()))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    examples = load_examples(str(DATA), config.data, tokenizer, config.data.limit).examples
    having = Counter(token for example in examples for token in set(example.input_ids.tolist()))
    order = order_of(config, Dataset(str(DATA), examples), 1)
    third = order.micro_batches(3)[0]
    row, token = next((e.row, t) for e in third for t in e.input_ids.tolist() if having[t] == 1)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["gpt_neox.embed_in.weight"][token, 0] = float("inf")
    save_file(tensors, file, metadata={"format": "pt"})
    return folder, row


@pytest.mark.parametrize("policy", ["heal", "rollback"])
def test_a_row_that_no_model_can_read_is_left_out(work, one_bad_row, policy, capsys):
    model, row = one_bad_row
    values = yaml.safe_load((work / "collapse.yaml").read_text())
    values["model"]["name_or_path"] = str(model)
    values["precision"] = {"on_collapse": policy}
    folder = work / f"row-{policy}"
    values["training"] |= {"output_dir": str(folder), "max_steps": 10}
    torch.set_num_threads(1)
    assert run(Config.model_validate(values), None) == 0
    diagnosis = diagnosis_of(folder)
    assert (diagnosis["kind"], diagnosis["module"], diagnosis["action"]) == (
        "bad_weight",
        "gpt_neox.embed_in",
        policy,
    )
    assert diagnosis["evidence"]["rows_alone"] == [row]
    left_out = yaml.safe_load((folder / "config.yaml").read_text())["data"]["skip_rows"]
    assert left_out == ([row] if policy == "heal" else diagnosis["rows"])
    assert f"skip rows {', '.join(map(str, left_out))}" in capsys.readouterr().out
    assert steps_of(folder)[-1]["step"] == 10


@pytest.mark.parametrize(
    ("kind", "height"),
    [("linear", lambda step: 30000 + 220 * step), ("exponential", lambda step: 2000 * 1.022**step)],
)
def test_a_planted_drift_is_forecast_in_time(tiny_models, tmp_path, monkeypatch, capsys, kind, height):
    """A bias that grows from step to step: warned 50 steps ahead, and within a fifth of what was left."""
    module = "gpt_neox.layers.1.mlp.dense_4h_to_h"
    values = {
        "model": {"name_or_path": str(tiny_models["gpt_neox"])},
        "lora": {"r": 4},
        "data": {"train": str(DATA), "format": "koalpaca", "limit": 40, "cutoff_len": 48},
        "training": {"output_dir": str(tmp_path / "run"), "max_steps": 200, "fp16": True, "save_strategy": "no"},
        "precision": {"on_collapse": "stop"},
    }
    values["training"] |= {"per_device_train_batch_size": 1}
    warned_at: list[int] = []

    def drifting(components: Any, rows: StepRows) -> torch.Tensor:
        step = rows.step
        layer = components.model.get_base_model().get_submodule(module)
        with torch.no_grad():
            layer.base_layer.bias[3] = min(height(step), 65504.0)
            layer.base_layer.weight[3] = 1e3 if height(step) > 65504 else 0.0
        if not warned_at and "overflow near step" in (text := capsys.readouterr().out):
            warned_at.extend([step - 1, int(re.findall(r"overflow near step (\d+)", text)[0])])
            assert module in text
        return train_step(components, rows)

    monkeypatch.setattr("lora_train.trainer.loop.train.train_step", drifting)
    torch.set_num_threads(1)
    assert run(Config.model_validate(values), None) == 3
    diagnosis = diagnosis_of(tmp_path / "run")
    assert (diagnosis["kind"], diagnosis["module"]) == ("forward_overflow", module)
    at, predicted = warned_at
    left = diagnosis["step"] - at
    assert left >= 50
    assert abs(predicted - diagnosis["step"]) <= 0.2 * left


def test_a_capsule_tells_the_answers_of_one_row_apart():
    examples = [Example(7, np.arange(n, dtype=np.int32), np.ones(n, bool)) for n in (2, 3)]
    examples.append(Example(8, np.arange(4, dtype=np.int32), np.ones(4, bool)))
    name = namer()
    names = [name(example) for example in (*examples, *examples)]
    assert names == [7, "7/1", 8] * 2
    tensors = {}
    for called, example in zip(names[:3], examples, strict=True):
        tensors[f"row.{called}.input_ids"] = torch.from_numpy(example.input_ids)
        tensors[f"row.{called}.supervised"] = torch.from_numpy(example.supervised)
    (step,) = recorded_rows(tensors, {3: [[names[:3]]]}).values()
    assert [(example.row, len(example.input_ids)) for example in step[0][0]] == [(7, 2), (7, 3), (8, 4)]
