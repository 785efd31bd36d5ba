"""What `lora-train env` says, with whole, missing and broken libraries."""

from __future__ import annotations

import getpass
import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path

import pytest
import torch
from lora_train.kernels import cpu as cpu_kernels
from lora_train.trainer.cli import main
from lora_train.trainer.verbs import environment

HEAVY = ("torch", "triton", "transformers", "peft", "accelerate", "bitsandbytes", "pyarrow")


@pytest.fixture(scope="module")
def facts() -> dict:
    return environment.without_names(environment.environment())


def test_versions_and_hardware_are_those_of_this_process(facts):
    for name in ("torch", "transformers", "peft", "bitsandbytes", "safetensors"):
        assert facts["packages"][name] == {"version": importlib.metadata.version(name)}
    assert facts["python"].endswith(platform.python_version())
    assert facts["torch"]["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert ("avx2" in facts["cpu"]["capabilities"]) == ("AVX" in facts["torch"]["cpu_capability"])
    assert len(facts["gpus"]) == torch.cuda.device_count()
    assert facts["kernels"]["cpu_statistics"].startswith("C extension" if cpu_kernels.AVAILABLE else "ATen")
    assert (facts["kernels"]["cpu_loops"], facts["kernels"]["cpu_best"]) == (cpu_kernels.LEVEL, cpu_kernels.BEST)
    assert facts["bitsandbytes"]["backend"] in ("CPU", "CUDA", "ROCm", "XPU")
    assert 0 < facts["memory"]["available_gib"] <= facts["memory"]["total_gib"]


def test_both_forms_say_the_same(facts, capsys, monkeypatch):
    monkeypatch.setattr(environment, "environment", lambda: facts)
    assert main(["env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == facts
    assert main(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"torch          {torch.__version__}" in lines
    assert f"os             {facts['os']}" in lines
    assert lines[0] == f"lora-train     {importlib.metadata.version('lora-vitals')}"
    assert any(line.startswith("cpu            name ") for line in lines)


def test_nothing_names_the_user_the_host_or_a_home(facts):
    user, host, home = getpass.getuser(), platform.node(), Path.home()
    text = [
        f"{home}/.venv/lib", "/home/kim/lib.so", "/Users/kim/x", r"C:\Users\kim\x", f"/data/{user}/venv", f"on {host}",
    ]  # fmt: skip
    clean = environment.without_names({"errors": text})["errors"]
    assert clean == ["~/.venv/lib", "~/lib.so", "~/x", r"~\x", "/data/USER/venv", "on HOST"]
    everything = json.dumps(facts)
    assert str(home) + "/" not in everything
    assert not re.search(rf"\b{re.escape(host)}\b", everything)


def test_broken_libraries_are_named_with_their_error_and_the_rest_is_there(cli, tmp_path):
    for name in HEAVY:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(
            "print('a hint')\nraise ImportError('libcudart.so.12: cannot open /home/kim/lib\\nsecond line')\n"
        )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    result = cli("env", env={"PYTHONPATH": path})
    assert (result.returncode, result.stderr) == (0, "")
    version = importlib.metadata.version("peft")
    assert f"peft           {version}   BROKEN ImportError: libcudart.so.12: cannot open ~/lib\n" in result.stdout
    assert result.stdout.count("BROKEN") == len(HEAVY)
    assert "second line" not in result.stdout
    assert "a hint" not in result.stdout
    assert "memory         total_gib" in result.stdout
    assert json.loads(cli("env", "--json", env={"PYTHONPATH": path}).stdout)["gpus"] == []


def test_a_library_that_is_not_installed_is_not_imported(monkeypatch, capsys):
    imported = []
    monkeypatch.setattr(environment, "version", lambda name: None)
    monkeypatch.setattr(environment.importlib, "import_module", imported.append)
    assert main(["env"]) == 0
    assert imported == []
    out = capsys.readouterr().out
    assert out.count("not installed") == len(environment.PACKAGES)
    assert "torch          -" in out


def test_a_question_that_a_library_fails_to_answer_is_an_error_line(monkeypatch):
    def broken() -> None:
        raise RuntimeError("driver too old\nupdate it")

    assert environment.attempt(broken) == {"error": "RuntimeError: driver too old"}
    monkeypatch.setattr(environment, "torch_gpus", broken)
    assert environment.environment()["gpus"] == {"error": "RuntimeError: driver too old"}


def test_nvidia_smi_is_asked_where_it_exists(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.nvidia_smi() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA T4, 550.54, 15360 MiB'\n")
    tool.chmod(0o755)
    assert environment.nvidia_smi() == ["NVIDIA T4, 550.54, 15360 MiB"]


def test_the_loops_in_use_stand_beside_the_best_there_are(cli):
    result = cli("env", env={"LORA_TRAIN_CPU": "portable"})
    assert (result.returncode, result.stderr) == (0, "")
    used = "portable" if cpu_kernels.AVAILABLE else "none"
    assert f"cpu_loops {used}, cpu_best {cpu_kernels.BEST or 'none'}," in result.stdout
    assert "\nvariables      " in result.stdout
    assert "LORA_TRAIN_CPU portable" in result.stdout


@pytest.mark.skipif(not cpu_kernels.AVAILABLE, reason="the C extension was not built")
def test_loops_that_do_not_exist_are_a_line_of_it(cli):
    result = cli("env", env={"LORA_TRAIN_CPU": "avx9"})
    assert (result.returncode, result.stderr) == (0, "")
    assert "kernels        error LevelError: LORA_TRAIN_CPU=avx9: the CPU loops that run on" in result.stdout


def test_the_real_command_line_prints_json(cli):
    result = cli("env", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["packages"]["torch"]["version"] == torch.__version__
