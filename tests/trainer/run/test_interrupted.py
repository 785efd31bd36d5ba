"""A signal or a full disk at every moment: words, the right exit code, nothing half written, and going on works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lora_train.trainer.loop.checkpoint import checkpoints
from lora_train.trainer.saved.sums import STATE
from lora_train.trainer.saved.whole import what_is_torn

from ...conftest import COMMAND_ENVIRONMENT, DATA, ROOT
from ...forked import Command
from ...runs import earlier
from ..test_cli import steps_of, write_config

INT, TERM = (f"os.kill(os.getpid(), signal.{name})" for name in ("SIGINT", "SIGTERM"))


# The command in a process where a function, once it is called, first does what a line of Python says.
DISTURBED = """
import importlib, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
where, name, calls, line = (sys.argv.pop() for _ in range(4))
module = importlib.import_module("lora_train." + where)
inner, called = getattr(module, name), 0
line = compile(line, "<line>", "exec")  # of a string, exec takes an interruption for one that nobody caught
def disturbed(*arguments, **keywords):
    global called
    called += 1
    if called == int(calls):
        exec(line, {"os": os, "signal": signal, "arguments": arguments})
    return inner(*arguments, **keywords)
setattr(module, name, disturbed)
from lora_train.trainer.cli import main
sys.exit(main())
"""


def disturbed(where: str, calls: int, line: str, *arguments: object) -> subprocess.CompletedProcess:
    """Runs the command; `line` comes before the `calls`-th call of a function."""
    module, name = where.split(":")
    command = Command(*arguments, line, calls, name, module, environment=COMMAND_ENVIRONMENT, cwd=ROOT, code=DISTURBED)
    return command.finished(timeout=180)


def assert_in_words(result: subprocess.CompletedProcess, code: int, run: Path) -> None:
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert [what_is_torn(path) for path in checkpoints(run) if what_is_torn(path)] == []
    assert list(run.rglob("*.tmp")) == []


@pytest.fixture
def config(tiny_models, tmp_path) -> Path:
    settings = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 1}
    path = write_config(tmp_path, tiny_models["llama"], max_steps=6, save_steps=3, **settings)
    path.write_text(path.read_text().replace("limit: 40", "limit: 40\n  eval_fraction: 0.2"))
    return path


SAVE, EVALUATE = "trainer.saved.sums:sha256_of", "trainer.loop.evaluate:collate"


@pytest.mark.parametrize(
    ("where", "calls", "line", "code", "step"),
    [
        (EVALUATE, 3, INT, 130, 2),
        (EVALUATE, 3, f"{INT}; {INT}", 130, None),
        (SAVE, 2, TERM, 143, 4),
        (SAVE, 2, f"{TERM}; {TERM}", 143, None),
        ("trainer.run.start:build", 1, TERM, 143, None),
    ],
)
def test_a_signal_at_any_moment(config, tmp_path, cli, where, calls, line, code, step):
    run = tmp_path / "run"
    result = disturbed(where, calls, line, "--config", config)
    assert_in_words(result, code, run)
    assert (f"config.yaml --resume {run}" in result.stdout) or ("interrupted; `--resume auto`" in result.stderr)
    assert [path.name for path in checkpoints(run)][-1:] == ([f"checkpoint-{step}"] if step else [])
    if step is not None:
        again = cli("--config", config, "--resume", "auto")
        assert_in_words(again, 0, run)
        assert f"going on after step {step}" in again.stdout


def test_an_evaluation_that_was_cut_short_is_made_when_the_run_goes_on(config, tmp_path, cli):
    assert cli("--config", config, f"training.output_dir={tmp_path / 'straight'}").returncode == 0
    assert disturbed(EVALUATE, 3, INT, "--config", config).returncode == 130
    state = json.loads((tmp_path / "run" / "checkpoint-2" / STATE).read_text())
    assert (state["evaluation_due"], state["evaluations"]) == (True, [])
    assert cli("--config", config, "--resume", "auto").returncode == 0
    states = [json.loads((tmp_path / run / "checkpoint-6" / STATE).read_text()) for run in ("run", "straight")]
    assert states[0]["evaluations"] == states[1]["evaluations"]
    assert [step for step, _ in states[0]["evaluations"]] == [2, 4, 6]
    losses = [[row["loss"] for row in steps_of(tmp_path / run)] for run in ("run", "straight")]
    assert losses[0] == losses[1]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, kib_left: int) -> str:
    """A line that fills a disk."""
    return (
        f"f = open({str(disk / 'fill')!r}, 'wb', 0)\n"
        f"free = os.statvfs({str(disk)!r}).f_bfree * 4096 - {kib_left} * 1024\n"
        "f.write(bytes(max(free, 0)))"
    )


POISON = "arguments[0].model.base_model.model.model.layers[0].mlp.down_proj.base_layer.weight.data[0, 0] = float('inf')"


@pytest.mark.parametrize("kib_left", [0, 8])
def test_a_collapse_on_a_full_disk_keeps_its_diagnosis(config, small_disk, cli, kib_left):
    run = small_disk / "run"
    line = f"{POISON}\n{fill(small_disk, kib_left)}"
    settings = [f"training.output_dir={run}", "precision.on_collapse=stop"]
    result = disturbed("trainer.loop.train:train_step", 5, line, "--config", config, *settings)
    assert_in_words(result, 3, run)
    for text in (
        "COLLAPSE at step 5: a frozen weight",
        "model.layers.0.mlp.down_proj",
        "  batch    rows ",
        "Exit code 3",
    ):
        assert text in result.stdout
    whole = (run / "checkpoint-4").is_dir()
    assert ("Nothing is lost" in result.stdout) == whole == ("checkpoint-4 written" in result.stdout)
    assert ("the steps after checkpoint-3, the newest whole checkpoint" in result.stdout) == (not whole)
    (small_disk / "fill").unlink()
    again = cli("--config", config, settings[0], "--resume", "auto")
    assert_in_words(again, 0, run)


@pytest.mark.parametrize(
    ("where", "calls", "code", "said"),
    [
        ("trainer.run.start:open_folder", 1, 2, "cannot be written: No space left on device"),
        ("trainer.run.start:open_streams", 1, 2, "cannot be written: No space left on device"),
        ("trainer.loop.session:write_rows", 1, 1, "the losses of the evaluation rows could not be written"),
        ("trainer.loop.session:save_checkpoint", 1, 1, "the checkpoint could not be written"),
        ("trainer.run.finish:write_adapter", 1, 1, "adapter could not be written"),
        ("trainer.loop.session:save_checkpoint", 1, 1, "no checkpoint was kept either, so what was learned is lost"),
        ("trainer.run.finish:compact_stats", 1, 0, "the statistics could not be made smaller"),
    ],
)
def test_a_disk_that_is_full_from_one_moment_on(config, small_disk, where, calls, code, said):
    run = small_disk / "run"
    result = disturbed(where, calls, fill(small_disk, 0), "--config", config, f"training.output_dir={run}")
    assert_in_words(result, code, run)
    assert said in result.stdout + result.stderr
    if code < 2:
        assert "step 6/6" in result.stdout


def test_a_folder_that_nobody_may_write_in_is_said(config, small_disk, cli):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    result = cli("--config", config, f"training.output_dir={small_disk / 'run'}")
    assert (result.returncode, "Traceback" in result.stderr) == (2, False)
    assert "cannot be written: Read-only file system" in result.stderr
    assert os.listdir(small_disk) == []


HEALING = "trainer.collapse.handle:"


@pytest.fixture
def collapsing(tmp_path, monkeypatch) -> Path:
    """A run whose step 6 overflows float16, checkpoint-4 before it; a remedy heals it."""
    earlier.prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings = earlier.settings("collapsed")
    for section, key in (("model", "name_or_path"), ("data", "train"), ("data", "eval"), ("training", "output_dir")):
        settings[section][key] = str(tmp_path / settings[section][key])
    settings["precision"]["on_collapse"] = "heal"
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize("policy", ["heal", "stop"])
@pytest.mark.parametrize("moment", ["diagnose", "write_capsule", "try_out", "write_diagnosis", "show"])
def test_a_signal_while_a_collapse_is_looked_at(collapsing, tmp_path, cli, moment, policy):
    """The run is at its end in any case, or stops before it goes on healed: what was found and the state are kept."""
    run = tmp_path / "collapsed"
    result = disturbed(f"{HEALING}{moment}", 1, TERM, "--config", collapsing, f"precision.on_collapse={policy}")
    assert_in_words(result, {"heal": 143, "stop": 3}[policy], run)
    assert "COLLAPSE at step 6" in result.stdout
    assert (run / "checkpoint-5").is_dir()
    assert len(list(run.glob("incidents/*/diagnosis.json"))) == 1
    if policy == "heal":
        assert "--resume auto" in result.stdout.splitlines()[-1]
        again = cli("--config", collapsing, "--resume", "auto")
        assert_in_words(again, 0, run)
        assert [row["step"] for row in steps_of(run)] == list(range(1, 9))
        assert [bool(row["skipped"]) for row in steps_of(run)] == [False] * 8


@pytest.mark.parametrize("moment", ["diagnose", "write_capsule", "try_out", "write_diagnosis", "show"])
def test_a_second_signal_while_a_collapse_is_looked_at(collapsing, tmp_path, cli, moment):
    run = tmp_path / "collapsed"
    result = disturbed(f"{HEALING}{moment}", 1, f"{INT}; {INT}", "--config", collapsing)
    assert_in_words(result, 130, run)
    assert "interrupted; `--resume auto`" in result.stderr
    again = cli("--config", collapsing, "--resume", "auto")
    assert_in_words(again, 0, run)
    assert [row["step"] for row in steps_of(run)] == list(range(1, 9))


# Bytes: more than what is printed, less than a checkpoint and its statistics.
NO_LARGE_FILE = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))"
NO_QUOTA = """
def over(*_, **__):
    raise OSError(122, os.strerror(122))
import lora_train.instrument.read.store as store, lora_train.trainer.loop.checkpoint as checkpoint
import lora_train.instrument.record.capsule as capsule
store.MetricsLog.write = store.StatsWriter.write = over
checkpoint.save_file = capsule.save_file = capsule.write_text = over
"""


@pytest.mark.parametrize("policy", ["continue", "stop"])
@pytest.mark.parametrize(
    ("moment", "line", "what"),
    [
        ("trainer.loop.train:train_step", NO_LARGE_FILE, "File too large"),
        (f"{HEALING}diagnose", NO_LARGE_FILE, "File too large"),
        ("trainer.loop.train:train_step", NO_QUOTA, "Disk quota exceeded"),
    ],
    ids=["large files", "large files after it", "quota"],
)
def test_a_collapse_where_nothing_can_be_written_keeps_its_diagnosis(
    collapsing, tmp_path, cli, moment, line, what, policy
):
    run = tmp_path / "collapsed"
    calls = 6 if moment.endswith("train_step") else 1
    result = disturbed(moment, calls, line, "--config", collapsing, f"training.on_write_error={policy}")
    assert_in_words(result, 3, run)
    for text in ("COLLAPSE at step 6", what, "the steps after checkpoint-4, the newest whole checkpoint"):
        assert text in result.stdout
    again = cli("--config", collapsing, "--resume", "auto")
    assert_in_words(again, 0, run)
    assert [row["step"] for row in steps_of(run)] == list(range(1, 9))


def test_a_log_on_a_full_disk_does_not_end_the_run(config, tmp_path):
    """`lora-train ... > log`: what is said is lost, nothing else."""
    line = "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"
    result = disturbed("trainer.loop.train:train_step", 3, line, "--config", config)
    assert_in_words(result, 0, tmp_path / "run")
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert result.stderr == ""
    collapse = "\n".join((line, POISON))
    settings = [f"training.output_dir={tmp_path / 'again'}", "precision.on_collapse=stop"]
    result = disturbed("trainer.loop.train:train_step", 5, collapse, "--config", config, *settings)
    assert_in_words(result, 3, tmp_path / "again")
    assert len(list(tmp_path.glob("again/incidents/*/diagnosis.json"))) == 1


@pytest.mark.parametrize(("line", "code"), [(INT, 130), (TERM, 143)])
def test_a_signal_while_a_verb_writes_leaves_nothing_half_written(config, tmp_path, cli, line, code):
    run = tmp_path / "run"
    assert cli("--config", config).returncode == 0
    before = sorted(tmp_path.rglob("*"))
    result = disturbed("trainer.verbs.merge:commit", 1, line, "merge", run)
    assert_in_words(result, code, run)
    assert result.stderr == "interrupted; nothing was left half written\n"
    output = ["-o", tmp_path / "answers.jsonl"]
    result = disturbed("trainer.verbs.answers.predict:_texts", 1, line, "predict", run, DATA, *output)
    assert_in_words(result, code, run)
    assert sorted(tmp_path.rglob("*")) == before
