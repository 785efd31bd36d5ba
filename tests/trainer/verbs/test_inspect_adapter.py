"""In-process, except for what only a fresh process shows: no torch, no traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_train.trainer.cli import main
from lora_train.trainer.saved.sums import write_sums
from lora_train.trainer.verbs.inspect_adapter import read_report, require_finite, update_norm
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj", "model.layers.2.mlp.up_proj")
SETTINGS = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "owner/model"}


def make_tensors(r: int = 4) -> dict[str, np.ndarray]:
    """Three LoRA layers: the first has moved, the second has not, the third has moved further."""
    generator = np.random.default_rng(0)
    tensors = {}
    for layer, size in zip(LAYERS, (1.0, 0.0, 3.0), strict=True):
        tensors[f"base_model.model.{layer}.lora_A.weight"] = generator.standard_normal((r, 24)).astype(np.float32)
        tensors[f"base_model.model.{layer}.lora_B.weight"] = np.float32(size) * generator.standard_normal(
            (16, r)
        ).astype(np.float32)
    return tensors


def save(folder: Path, tensors: dict[str, np.ndarray], settings: dict | None = SETTINGS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    if settings is not None:
        (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def key(layer: int, matrix: str) -> str:
    return f"base_model.model.{LAYERS[layer]}.lora_{matrix}.weight"


def test_update_norm_is_that_of_the_product():
    generator = np.random.default_rng(1)
    a, b = generator.standard_normal((3, 50)), generator.standard_normal((40, 3))
    assert update_norm(a, b, -2.5) == pytest.approx(2.5 * np.linalg.norm(b @ a), rel=1e-12)
    assert update_norm(a, np.zeros_like(b), 2.5) == 0.0


def test_a_healthy_adapter(tmp_path, capsys):
    tensors = make_tensors()
    report = read_report(save(tmp_path / "a", tensors))
    assert [module.module for module in report.modules] == [LAYERS[1], LAYERS[2], LAYERS[0]]  # dead, then by size
    assert [module.dead for module in report.modules] == [True, False, False]
    for module, layer in zip(report.modules, (1, 2, 0), strict=True):
        a, b = tensors[key(layer, "A")], tensors[key(layer, "B")]
        assert (module.r, module.scaling, module.n_nonfinite) == (4, 2.0, 0)
        assert module.update_norm == pytest.approx(2 * np.linalg.norm(b.astype(np.float64) @ a), rel=1e-6)
        assert module.lora_A.norm == pytest.approx(np.linalg.norm(a.astype(np.float64)), rel=1e-12)
        assert module.lora_B.absmax == np.abs(b).max()
    totals = report.totals()
    assert (totals["modules"], totals["values"], totals["dead_modules"], totals["nonfinite"]) == (3, 480, 1, 0)
    norms = [module.update_norm or 0.0 for module in report.modules]
    assert totals["update_norm"] == pytest.approx(np.linalg.norm(norms), rel=1e-12)

    assert main(["inspect", str(tmp_path / "a")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == ["layers  3 (r 4, scaling 2), 480 values", "finite  every value",
                          "unmoved 1 layers (lora_B is all zero)"]  # fmt: skip
    assert [line.split()[-1] for line in lines[-3:]] == [LAYERS[1], LAYERS[2], LAYERS[0]]
    assert lines[-3].split()[4] == "dead"


def test_values_that_are_not_finite_come_first_and_exit_3(tmp_path, capsys):
    tensors = make_tensors()
    tensors[key(0, "A")][1, 2:5] = np.nan
    tensors[key(0, "B")][0, 0] = -np.inf
    tensors[f"base_model.model.{LAYERS[0]}.lora_magnitude_vector"] = np.array([1, np.inf], np.float32)
    folder = save(tmp_path, tensors)
    assert main(["inspect", str(folder), "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    worst = report["modules"][0]
    assert (worst["module"], worst["n_nonfinite"], worst["update_norm"], worst["dead"]) == (LAYERS[0], 4, None, False)
    finite = tensors[key(0, "A")][np.isfinite(tensors[key(0, "A")])].astype(np.float64)
    assert worst["lora_A"] == {
        "n": 96, "n_nonfinite": 3, "norm": pytest.approx(np.linalg.norm(finite)), "absmax": np.abs(finite).max()
    }  # fmt: skip
    assert (report["totals"]["nonfinite"], report["totals"]["nonfinite_modules"]) == (5, 1)
    assert report["other"][f"{LAYERS[0]}.lora_magnitude_vector"]["n_nonfinite"] == 1
    assert main(["inspect", str(folder)]) == 3
    out = capsys.readouterr().out
    assert "DEAD    5 values are not finite (1.0373%), in 1 layers" in out
    assert f"1 of them in {LAYERS[0]}.lora_magnitude_vector" in out


def test_on_a_terminal_it_is_a_table_in_the_same_order(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["inspect", str(save(tmp_path, make_tensors()))]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in re.sub(r"\x1b\[[\d;]*m", "", out).splitlines()[-4:]]
    assert rows[0] == ["bad_A", "bad_B", "|A|", "|B|", "|sBA|", "r", "module"]
    assert [row[-1] for row in rows[1:]] == [LAYERS[1], LAYERS[2], LAYERS[0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_read_as_they_are(tmp_path, dtype):
    tensors = {name: torch.from_numpy(values).to(dtype) for name, values in make_tensors().items()}
    tensors[key(0, "A")][0, 0] = torch.nan
    folder = save(tmp_path, make_tensors())
    save_torch_file(tensors, folder / "adapter_model.safetensors")
    report = read_report(folder)
    assert report.totals()["nonfinite"] == 1
    moved = report.modules[-1]
    assert moved.module == LAYERS[2]
    expected = torch.linalg.norm(tensors[key(2, "B")].double() @ tensors[key(2, "A")].double()).item()
    assert moved.update_norm == pytest.approx(2 * expected, rel=1e-12)


def test_values_whose_squares_leave_float32(tmp_path):
    tensors = make_tensors()
    tensors[key(2, "B")] *= np.float32(1e30)
    norm = read_report(save(tmp_path, tensors)).modules[1].lora_B.norm
    assert norm == pytest.approx(np.linalg.norm(tensors[key(2, "B")].astype(np.float64)), rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"use_rslora": True}, 4.0),
        ({"alpha_pattern": {"q_proj": 2}}, 0.5),
        ({"alpha_pattern": {"layers.0.*": 6}}, 1.5),
        ({"alpha_pattern": {"k_proj": 2}}, 2.0),
    ],
)
def test_scaling_as_peft_computes_it(tmp_path, settings, expected):
    report = read_report(save(tmp_path, make_tensors(), {**SETTINGS, **settings}))
    assert {module.module: module.scaling for module in report.modules}[LAYERS[0]] == expected


EXPERTS = "model.layers.0.mlp.experts"


def experts(folder: Path, **settings) -> tuple[Path, dict[str, float]]:
    """An adapter on two parameters that hold 3 experts each, as peft saves it, and the norms of its updates."""
    generator = np.random.default_rng(0)
    tensors, norms = {}, {}
    for place, r, scale, n_in, n_out in ((f"{EXPERTS}.base_layer", 2, 4.0, 5, 7), (EXPERTS, 2, 4.0, 6, 5)):
        a, b = generator.standard_normal((3, r, n_in)), generator.standard_normal((3, n_out, r))
        tensors[f"base_model.model.{place}.lora_A.weight"] = a.reshape(3 * r, n_in)
        tensors[f"base_model.model.{place}.lora_B.weight"] = np.moveaxis(b, 0, 2).reshape(n_out, 3 * r)
        norms[place] = float(np.linalg.norm(scale * b @ a))
    named = {"target_parameters": ["experts.down_proj", "mlp.experts.gate_up_proj"], "r": 2, "lora_alpha": 8}
    return save(folder, tensors, {**SETTINGS, **named, **settings}), norms


def test_experts_whose_weights_are_one_parameter_are_so_many_products(tmp_path):
    folder, norms = experts(tmp_path)
    for module in read_report(folder).modules:
        assert (module.r, module.n, module.scaling) == (2, 3, 4.0)
        assert module.update_norm == pytest.approx(norms[module.module], rel=1e-12)


def test_the_only_parameter_of_a_module_has_its_name_and_pattern(tmp_path):
    folder, norms = experts(tmp_path, target_parameters=["experts.down_proj"], alpha_pattern={"down_proj": 16})
    found = {module.module: module for module in read_report(folder).modules}[f"{EXPERTS}.down_proj"]
    assert found.scaling == 8.0
    assert found.update_norm in [pytest.approx(2 * norm, rel=1e-12) for norm in norms.values()]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"alpha_pattern": {"down_proj": 2}},
            " is one of model.layers.0.mlp.experts.down_proj, model.layers.0.mlp.experts.gate_up_proj",
        ),
        ({"rank_pattern": {"gate_up_proj": 6}}, "to which rank_pattern or alpha_pattern give different values"),
        ({"r": 4}, "has 6 rows, no multiple of r 4"),
        ({"r": 0}, "does not give the adapter's scaling"),
    ],
)
def test_experts_that_the_settings_do_not_tell_are_refused(tmp_path, capsys, settings, sentence):
    folder, _ = experts(tmp_path, **settings)
    assert main(["inspect", str(folder)]) == 2
    assert sentence in capsys.readouterr().err
    require_finite(folder)  # merge and chat need no scaling for that


def test_what_the_norms_leave_out_is_said(tmp_path, capsys):
    tensors = make_tensors()
    for layer in LAYERS:
        tensors[f"base_model.model.{layer}.lora_magnitude_vector.weight"] = np.ones(16, np.float32)
    assert main(["inspect", str(save(tmp_path, tensors, {**SETTINGS, "use_dora": True}))]) == 0
    assert "DoRA: |sBA| is the update before 48 magnitudes in 3 layers rescale" in capsys.readouterr().out
    assert (
        main(["inspect", str(save(tmp_path, make_tensors(), {**SETTINGS, "init_lora_weights": "pissa_niter_4"}))]) == 0
    )
    assert "what it put into sBA was taken out of the base's weights" in capsys.readouterr().out
    assert read_report(save(tmp_path, make_tensors(), {**SETTINGS, "init_lora_weights": "gaussian"})).notes == []


def test_a_file_that_is_not_as_it_was_written_is_told(tmp_path, capsys):
    folder = save(tmp_path / "checkpoint-9", make_tensors())
    file = folder / "adapter_model.safetensors"
    for name in ("optimizer.safetensors", "trainer_state.json"):
        (folder / name).write_bytes(b"")
    write_sums(folder)
    assert read_report(file).notes == []
    values = bytearray(file.read_bytes())
    values[-3] ^= 1
    file.write_bytes(values)
    assert main(["inspect", str(tmp_path)]) == 0
    assert "damaged adapter_model.safetensors is not as it was written: its SHA-256 is" in capsys.readouterr().out


def test_a_run_means_its_adapter_else_its_newest_checkpoint(tmp_path):
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11.start-1", "checkpoint-12.tmp"):
        save(tmp_path / name, make_tensors())
    assert read_report(tmp_path).file == str(tmp_path / "checkpoint-10" / "adapter_model.safetensors")
    save(tmp_path / "adapter", make_tensors())
    assert read_report(tmp_path).file == str(tmp_path / "adapter" / "adapter_model.safetensors")


def test_a_bare_file_says_that_its_scaling_is_unknown(tmp_path, capsys):
    save(tmp_path, make_tensors(), None)
    assert main(["inspect", str(tmp_path / "adapter_model.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "scaling 1)" in out
    assert "no adapter_config.json beside it" in out


def torn(folder: Path) -> None:
    file = save(folder, make_tensors()) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def no_pair(folder: Path) -> None:
    tensors = make_tensors()
    del tensors[key(1, "B")]
    save(folder, tensors)


def two_ranks(folder: Path) -> None:
    save(folder, make_tensors() | {key(1, "B"): np.zeros((16, 5), np.float32)})


def scalar(folder: Path) -> None:
    save(folder, make_tensors() | {key(1, "A"): np.array(1, np.float32)})


def whole_numbers(folder: Path) -> None:
    save(folder, make_tensors() | {key(1, "A"): np.zeros((4, 24), np.int64)})


def pickled(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"")


def broken_settings(folder: Path) -> None:
    (save(folder, make_tensors()) / "adapter_config.json").write_text("{")


BAD = [
    (lambda folder: folder.rmdir(), "there is no folder"),
    (lambda folder: None, "holds no adapter"),
    (
        lambda folder: save(folder / "run" / "adapter", make_tensors()),
        "holds no adapter itself; 1 runs in it do, the newest",
    ),
    (pickled, "a pickle"),
    (torn, "is not a whole safetensors file"),
    (lambda folder: (folder / "adapter_model.safetensors").write_text("x"), "is not a whole safetensors file"),
    (lambda folder: (folder / "adapter_model.safetensors").write_text(""), "is not a whole safetensors file"),
    (lambda folder: save(folder, {"model.weight": np.zeros(3)}), "holds no LoRA tensors; it holds model.weight"),
    (no_pair, f"{LAYERS[1]} has no lora_B"),
    (two_ranks, "lora_A (4, 24) and lora_B (16, 5) do not belong together"),
    (scalar, "lora_A () and lora_B (16, 4) do not belong together"),
    (whole_numbers, "is of dtype I64"),
    (broken_settings, "adapter_config.json cannot be read"),
    (
        lambda folder: save(folder, make_tensors(), {**SETTINGS, "lora_alpha": "8"}),
        "does not give the adapter's scaling",
    ),
    (lambda folder: save(folder, make_tensors(), {**SETTINGS, "alpha_pattern": {"(": 1}}), "adapter's scaling"),
]


@pytest.mark.parametrize(("make", "error"), BAD)
def test_what_is_no_adapter_is_an_error(tmp_path, capsys, make, error):
    folder = tmp_path / "adapter"
    folder.mkdir()
    make(folder)
    assert main(["inspect", str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert error in captured.err
    assert "\nhint: " in captured.err


def test_imports_no_torch(tmp_path):
    folder = save(tmp_path, make_tensors())
    code = f"""
import sys
from lora_train.trainer.cli import main
print(main(["inspect", {str(folder)!r}]), {{"torch", "transformers", "pydantic"}} & sys.modules.keys())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.endswith("\n0 set()\n")


def test_a_closed_pipe_is_no_traceback(tmp_path):
    folder = save(tmp_path, make_tensors())
    code = f"""
import os, sys
from lora_train.trainer.cli import main
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 1)
sys.exit(main(["inspect", {str(folder)!r}]))
"""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=buffered)
    assert (result.returncode, result.stderr) == (141, "")
