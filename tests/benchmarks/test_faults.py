"""The cases of a seed, and a small spread of them through the trainer."""

import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_train.instrument.messages import say
from lora_train.trainer.config.schema import Config
from transformers import AutoModelForCausalLM

from benchmarks.faults import models, weights
from benchmarks.faults.check import FORECAST
from benchmarks.faults.draw import ARCHITECTURES, FAULTS, HEALTHY, IN_WEIGHTS, draw

from ..conftest import COMMAND_ENVIRONMENT, ROOT


def test_a_seed_gives_the_same_cases_and_another_one_others():
    assert repr(draw(7, 60, 20)) == repr(draw(7, 60, 20))
    assert repr(draw(7, 60, 20)) != repr(draw(8, 60, 20))
    assert repr(draw(7, 12, 4)[:12]) == repr(draw(7, 60, 20)[:12])


def test_every_fault_is_drawn_as_often_on_both_architectures():
    cases = draw(3, 60, 20)
    for fault in FAULTS:
        own = [case for case in cases if case.fault == fault]
        assert len(own) == 6
        assert {case.arch for case in own} == set(ARCHITECTURES)
    assert {case.name.rpartition("-")[0] for case in cases if case.fault is None} == set(HEALTHY)
    assert len({(case.arch, case.precision) for case in cases if case.fault is None}) == 8
    assert len({case.name for case in cases}) == 80


def test_only_keeps_one_fault_or_one_kind():
    assert {case.fault for case in draw(1, 6, 2, "norm")} == {"norm"}
    assert {case.fault for case in draw(1, 6, 2, "forward_overflow")} == {"norm", "mlp_output", "scores"}
    assert {case.fault for case in draw(1, 6, 2, "healthy")} == {None}


@pytest.mark.parametrize("seed", range(3))
def test_every_case_is_a_valid_configuration(seed: int, tmp_path: Path):
    for case in draw(seed, 60, 20):
        config = models.make_config(case, tmp_path, tmp_path / "run", "stop")
        assert isinstance(config, Config)
        assert config.compute_dtype == {"fp16": "float16", "bf16": "bfloat16"}.get(
            case.precision.rpartition("+")[2], "float32"
        )


def test_the_forecast_is_recognised():
    assert FORECAST in say("warn.forecast", module="x", peak=1.0, limit=2.0, rate=0.1, step=7)


@pytest.mark.parametrize("fault", [fault for fault in IN_WEIGHTS if fault != "scores"])
def test_a_broken_weight_shows_at_its_token_alone(fault: str, tiny_models: dict[str, Path], tmp_path: Path):
    for case in draw(1, 2, 0, fault):
        folder = tmp_path / case.name
        (folder / "models").mkdir(parents=True)
        sound = folder / "models" / f"{case.arch}-{case.layers}"
        sound.symlink_to(tiny_models[case.arch])
        if case.layers != 2:
            case = next(c for c in draw(1, 60, 0, fault) if c.arch == case.arch and c.layers == 2)
            (folder / "models" / f"{case.arch}-2").symlink_to(tiny_models[case.arch])
        plan = models.plan_of(models.make_config(case, folder / "models", folder / "run", "stop"))
        token, step, example = weights.lone_token(plan, case.n_steps, random.Random(case.seed))
        assert token in example.input_ids
        weights.break_weight(tiny_models[case.arch], folder / "broken", case, token, example)

        model: Any = AutoModelForCausalLM.from_pretrained(folder / "broken")
        peaks: list[float] = []
        model.get_submodule(case.module or "").register_forward_hook(
            lambda _module, _args, output, peaks=peaks: peaks.append(float(output.abs().max()))
        )
        rows = plan.rows(step).examples
        with torch.no_grad():
            for row in rows:
                model(input_ids=torch.from_numpy(row.input_ids).long()[None])
        for row, peak in zip(rows, peaks, strict=True):
            if row is not example:
                assert peak < weights.FP16_MAX / 10
            elif fault == "embedding":
                assert peak == math.inf
            else:
                assert peak == pytest.approx(case.size * weights.FP16_MAX, rel=0.01)


def test_a_spread_of_faults_is_found_named_and_healed():
    """Every kind of fault once or twice, and healthy runs, through the trainer."""
    command = [sys.executable, "-m", "benchmarks.faults", "--seed", "5", "--cases", "10", "--healthy", "2"]
    result = subprocess.run(
        command, cwd=ROOT, env=COMMAND_ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("  OK") == 12
    assert "WRONG" not in result.stdout
