"""Every way a run can die: what is left, and that going on gives what a run that was not interrupted gives."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from lora_train.instrument.read.store import read_metrics
from lora_train.kernels import cpu
from lora_train.trainer.config.settings import with_settings
from lora_train.trainer.errors import UserError
from lora_train.trainer.run.start import run as run_in_process
from lora_train.trainer.saved.whole import what_is_torn

from ...conftest import COMMAND_ENVIRONMENT, ROOT
from ..loop.test_train import make_config
from ..test_cli import start, steps_of, wait_for_step, write_config

# Everything whose state a checkpoint must carry.
STATEFUL: dict[str, Any] = {
    "max_steps": 40,
    "fp16": True,
    "gradient_accumulation_steps": 2,
    "save_steps": 3,
    "save_total_limit": 2,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "load_best_model_at_end": True,
    "lr_scheduler_type": "reduce_lr_on_plateau",
    "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5, "threshold": 0.02},
    "group_by_length": True,
    "logging_steps": 10,
}
RECORDED = ("step", "updates", "loss", "grad_norm", "loss_scale", "learning_rate", "skipped", "tokens")


def newest(folder: Path) -> Path:
    """The last run of a family: a start killed before its first checkpoint leaves a folder without one."""
    runs = [path for path in folder.glob("run*") if (path / "metrics.jsonl").exists()]
    return max(runs, key=lambda path: path.stat().st_ctime_ns)


def test_twenty_kills_at_random_moments_leave_no_trace(cli, tiny_models, tmp_path):
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
        config = write_config(tmp_path / name, tiny_models["gpt_neox"], **STATEFUL)
        content = yaml.safe_load(config.read_text())
        content["data"] |= {"eval_fraction": 0.2, "limit": 60}
        config.write_text(yaml.safe_dump(content))
    result = cli("--config", tmp_path / "straight" / "run.yaml")
    assert result.returncode == 0, result.stderr
    seconds = sum(row["step_seconds"] for row in steps_of(newest(tmp_path / "straight"))) / 10
    config = tmp_path / "killed" / "run.yaml"
    command = [sys.executable, "-m", "tests.trainer.run.kill_often", config, "20", seconds, "1"]
    killed = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=COMMAND_ENVIRONMENT, capture_output=True, text=True, timeout=280
    )
    assert killed.returncode == 0, killed.stdout + killed.stderr
    assert killed.stdout.count("kill ") == 20

    ours, theirs = newest(tmp_path / "killed"), newest(tmp_path / "straight")
    assert len({row["start"] for row in steps_of(ours)}) > 1, killed.stdout
    assert [[row[key] for key in RECORDED] for row in steps_of(ours)] == [
        [row[key] for key in RECORDED] for row in steps_of(theirs)
    ]
    evaluations = [
        [(row["step"], row["eval_loss"], row["eval_token_accuracy"]) for row in read_metrics(run) if "eval_loss" in row]
        for run in (ours, theirs)
    ]
    assert evaluations[0] == evaluations[1]
    assert len({row["learning_rate"] for row in steps_of(ours)}) > 1
    for file in ("adapter/adapter_model.safetensors", "checkpoint-40/optimizer.safetensors"):
        assert (ours / file).read_bytes() == (theirs / file).read_bytes()
    assert [path.name for path in ours.glob("checkpoint-*") if path.suffix in (".tmp", ".old")] == []


def test_a_second_start_in_the_same_folder_is_refused(cli, tiny_models, tmp_path):
    config = write_config(tmp_path, tiny_models["llama"], max_steps=5000, save_steps=5)
    process = start(config)
    try:
        wait_for_step(tmp_path / "run", 12, process)
        for arguments in ([], ["--resume", "auto"]):
            result = cli("--config", config, *arguments)
            assert result.returncode == 2
            assert result.stderr.startswith(f"error: training.output_dir: a run is going on in {tmp_path}/run\nhint: ")
        assert not (tmp_path / "run-2").exists()
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130


def test_a_foreign_checkpoint_is_passed_over(cli, tiny_models, tmp_path):
    """The newest one belongs to another adapter: whole, and of no use."""
    config = write_config(tmp_path, tiny_models["llama"], max_steps=4, save_steps=2)
    assert cli("--config", config).returncode == 0
    (tmp_path / "other").mkdir()
    other = write_config(tmp_path / "other", tiny_models["gpt_neox"], max_steps=9, save_steps=9)
    assert cli("--config", other).returncode == 0
    shutil.copytree(tmp_path / "other" / "run" / "checkpoint-9", tmp_path / "run" / "checkpoint-9")
    result = cli("--config", config, "training.max_steps=6", "--resume", "auto")
    assert result.returncode == 0, result.stderr
    assert "checkpoint-9 cannot be resumed" in result.stdout
    assert "going on after step 4" in result.stdout
    assert [row["step"] for row in steps_of(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("policy", ["continue", "stop"])
def test_a_full_disk(cli, tiny_models, small_disk, tmp_path, policy):
    config = write_config(
        tmp_path, tiny_models["llama"], output_dir=str(small_disk / "run"), max_steps=36, save_steps=2,
        on_write_error=policy,
    )  # fmt: skip
    result = cli("--config", config)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    run = small_disk / "run"
    whole = [path for path in run.glob("checkpoint-*") if not what_is_torn(path)]
    assert len(whole) >= 3
    assert sorted(whole) == sorted(run.glob("checkpoint-*")), "a torn or temporary checkpoint is left"
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["start"] for line in lines] == [0] * len(lines)
    if policy == "continue":
        assert "the checkpoint could not be written" in result.stdout
        kept = max(int(path.name.split("-")[1]) for path in whole)
        assert "adapter could not be written" in result.stdout
        assert f"--resume auto: it goes on after step {kept}\n" in result.stdout
        assert "step 36/36" in result.stdout
    else:
        assert "the run has stopped (training.on_write_error=stop)" in result.stderr
        assert len(steps_of(run)) < 36
    for checkpoint in sorted(whole, key=lambda path: int(path.name.split("-")[1]))[:-1]:
        shutil.rmtree(checkpoint)
    again = cli("--config", config, "training.save_steps=18", "training.save_total_limit=1", "--resume", "auto")
    assert again.returncode == 0, again.stdout + again.stderr
    assert steps_of(run)[-1]["step"] == 36


def test_out_of_memory_names_the_batch_and_saves_what_there_is(tiny_models, tmp_path, capfd):
    """The address space is what this process has and a little more, so that a batch, or the next, does not fit."""
    config = make_config(tiny_models["llama"], per_device_train_batch_size=128, output_dir=str(tmp_path / "run"))
    config = with_settings(config, {"data.cutoff_len": 400, "data.limit": 256, "instrument.enabled": False})
    run_in_process(with_settings(config, {"training.max_steps": 1, "training.per_device_train_batch_size": 1}), None)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (48 << 20), limits[1]))
    try:
        with pytest.raises(UserError, match=r"out of memory on a batch of 12\d x \d+ tokens \(rows [\d, ]+\)") as error:
            run_in_process(config, None)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert "`--dry-run` finds the largest batch that fits" in str(error.value)
    assert run_in_process(with_settings(config, {"training.max_steps": 1}), None) == 0


# The command with a memory that ends in the third step, in one of its first allocations or a later one.
SHORT_OF_MEMORY = """
import sys
from lora_train.kernels import cpu
from lora_train.trainer.loop import train
allocation, inner = int(sys.argv.pop()), train.train_step
def train_step(components, rows):
    cpu.fail_after(allocation if rows.step == 3 else -1)
    return inner(components, rows)
train.train_step = train_step
from lora_train.trainer.cli import main
sys.exit(main())
"""


@pytest.mark.skipif(not cpu.AVAILABLE, reason="the C extension was not built")
@pytest.mark.parametrize("allocation", [20, 120])  # of 87 forward and 150 backward
def test_compiled_loops_without_memory_end_as_torch_does(cli, tiny_models, tmp_path, allocation):
    config = write_config(tmp_path, tiny_models["llama"], max_steps=6, save_strategy="no")
    command = [sys.executable, "-c", SHORT_OF_MEMORY, "--config", str(config), str(allocation)]
    result = subprocess.run(command, capture_output=True, text=True, env=COMMAND_ENVIRONMENT, timeout=120, check=False)
    assert result.returncode == 2, result.stdout + result.stderr
    assert re.search(r"error: out of memory on a batch of \d+ x \d+ tokens \(rows [\d, ]+\)", result.stderr)
    assert "Traceback" not in result.stderr
    run = tmp_path / "run"
    assert what_is_torn(run / "checkpoint-2") == ""
    assert cli("--config", config, "training.max_steps=4", "--resume", "auto").returncode == 0
    assert [row["step"] for row in steps_of(run)] == [1, 2, 3, 4]


def launch(config: Path, *arguments: str) -> subprocess.Popen:
    """Two processes, as torchrun starts them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "lora_train.trainer.cli", "--config", str(config), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=COMMAND_ENVIRONMENT)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_ends_the_other_with_a_checkpoint(cli, tiny_models, tmp_path, victim):
    config = write_config(tmp_path, tiny_models["llama"], max_steps=5000, save_strategy="no", fp16=True)
    launcher = launch(config)
    run = tmp_path / "run"
    wait_for_step(run, 8, launcher)
    ranks = {int(child.environ()["RANK"]): child for child in psutil.Process(launcher.pid).children()}
    ranks[victim].kill()
    _, errors = launcher.communicate(timeout=90)
    assert launcher.returncode != 0
    told = re.search(
        rf"another process of the run is gone; this one \(rank {1 - victim}\) stops after step (\d+)", errors
    )
    assert told is not None, errors
    step = int(told[1])
    assert what_is_torn(run / f"checkpoint-{step}") == ""
    result = cli("--config", config, f"training.max_steps={step + 3}", "--resume", "auto")  # on one process
    assert result.returncode == 0, result.stderr
    assert f"going on after step {step}" in result.stdout
    assert "the number of processes (2 before, 1 now)" in result.stdout
    assert [row["step"] for row in steps_of(run)] == list(range(1, step + 4))


# A process of two that is killed before the call of a function that comes at a certain step.
KILLED = """
import importlib, os, signal, sys
victim, where, step = sys.argv.pop(), sys.argv.pop(), int(sys.argv.pop())
owner, name = where.rsplit(".", 1)
module, _, kind = owner.partition(":")
owner = importlib.import_module("lora_train." + module)
owner = getattr(owner, kind) if kind else owner
inner, called = getattr(owner, name), 0
def killed(*arguments, **keywords):
    global called
    called += 1
    if called == step and os.environ["RANK"] == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(*arguments, **keywords)
setattr(owner, name, killed)
from lora_train.trainer.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("where", "calls", "step", "victim"),
    [
        # the state is that after the step, and its line was not written
        ("trainer.loop.engine:Engine.any", 4, 4, 0),
        ("trainer.loop.engine:Engine.any", 4, 4, 1),
        ("trainer.loop.run_log:RunLog.evaluation", 1, 3, 0),
    ],
)
def test_a_checkpoint_of_a_step_has_its_lines(tiny_models, tmp_path, where, calls, step, victim):
    """Whichever process is lost, and whoever writes the checkpoint."""
    config = write_config(
        tmp_path, tiny_models["llama"], max_steps=9, save_strategy="no", eval_strategy="steps", eval_steps=3
    )
    config.write_text(config.read_text().replace("limit: 40", "limit: 40\n  eval_fraction: 0.2"))
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(script), "--config", str(config), str(calls), where, str(victim)]
    ended = subprocess.run(command, capture_output=True, text=True, env=COMMAND_ENVIRONMENT, timeout=120, check=False)
    run = tmp_path / "run"
    told = re.search(rf"\(rank {1 - victim}\) stops after step (\d+), checkpoint ", ended.stderr)
    assert told is not None, ended.stderr
    assert int(told[1]) == step
    assert what_is_torn(run / f"checkpoint-{step}") == ""
    assert [row["step"] for row in steps_of(run)] == list(range(1, step + 1))
    state = json.loads((run / f"checkpoint-{step}" / "trainer_state.json").read_text())
    evaluated = [row["step"] for row in read_metrics(run) if "eval_loss" in row]
    assert evaluated == [at for at, _ in state["evaluations"]] == [3]


def test_a_launcher_that_starts_one_process_of_two_is_told(tiny_models, tmp_path):
    """`accelerate launch --cpu --num_processes 2` sets the address of a group and starts one process."""
    config = write_config(tmp_path, tiny_models["llama"], max_steps=1)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += ["-m", "lora_train.trainer.cli", "--config", str(config)]
    result = subprocess.run(command, capture_output=True, text=True, env=COMMAND_ENVIRONMENT, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert "(1 process)" in result.stdout
    assert "only this one was started: with or without GPUs use `accelerate launch --multi_gpu --num" in result.stdout


def test_ignore_data_skip_begins_the_rows_again(cli, tiny_models, tmp_path):
    config = write_config(tmp_path, tiny_models["llama"], max_steps=3, save_steps=3, learning_rate=0.0)
    assert cli("--config", config, "lora.lora_dropout=0").returncode == 0
    arguments = ["lora.lora_dropout=0", "training.max_steps=6", "training.ignore_data_skip=true"]
    result = cli("--config", config, *arguments, "training.resume_from_checkpoint=true")
    assert result.returncode == 0, result.stderr
    steps = steps_of(tmp_path / "run")
    assert [row["tokens"] for row in steps[3:]] == [row["tokens"] for row in steps[:3]]
    assert [row["loss"] for row in steps[3:]] == [row["loss"] for row in steps[:3]]
    assert os.path.isdir(tmp_path / "run" / "checkpoint-6")
