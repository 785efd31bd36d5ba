"""explain, report and compare as a user calls them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
from lora_train.instrument.show import report as report_module
from lora_train.trainer.cli import main
from lora_train.trainer.verbs import read_run

from ...conftest import COMMAND_ENVIRONMENT, ROOT

RUNS = ROOT / "tests" / "runs"


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """The command in a process that must not have imported torch when it ends."""
    program = (
        "import sys; from lora_train.trainer.cli import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(code)"
    )
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(
        command, cwd=RUNS, env={**COMMAND_ENVIRONMENT, **environment}, capture_output=True, text=True, check=False
    )


def test_explain_in_both_languages_without_torch():
    for lang in ("en", "ko"):
        result = run("explain", "healed", "--lang", lang)
        assert result.returncode == 0, result.stderr
        assert result.stdout == (RUNS / "healed" / f"explain.{lang}.txt").read_text(encoding="utf-8")
    assert run("explain", "stock", LORA_TRAIN_LANG="ko").stdout.startswith("stock/trainer_state.json: 기록된 스텝 60개")


def test_the_page_of_a_checkpoint_is_the_page_of_its_run(tmp_path):
    copy = shutil.copytree(RUNS / "healthy", tmp_path / "run")
    state = copy / "checkpoint-4" / "trainer_state.json"
    state.parent.mkdir()
    state.write_text(json.dumps({"schema_version": 1, "step": 4, "start": 0, "skipped": 0, "heals": []}))
    result = run("report", state.parent)
    assert result.stdout.startswith(f"report {copy}/report.html"), result.stderr
    assert [path.name for path in state.parent.iterdir()] == [state.name]


def test_report_and_compare_write_pages_without_torch(tmp_path):
    copy = shutil.copytree(RUNS / "healthy", tmp_path / "a run")
    result = run("report", copy)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"report {copy}/report.html")
    page = (copy / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "src=http" not in page.replace('"', "")
    parts = [tmp_path / "one.log", tmp_path / "two.log"]
    for start, part in zip((10, 20), parts, strict=True):
        part.write_text("".join(f"{{'loss': 1.5, 'step': {start + i}}}\n" for i in range(10)))
    result = run("report", *parts)
    assert result.returncode == 0, result.stderr
    assert "one.log + two.log" in (tmp_path / "report.html").read_text(encoding="utf-8")
    result = run("compare", copy, RUNS / "overfitting", "-o", tmp_path / "compare.html")
    assert result.returncode == 0, result.stderr
    assert "lora.r" in result.stdout
    assert "settings differ at once" in result.stdout
    assert "uPlot" in (tmp_path / "compare.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("explain", "gone"), "error: there is no file or folder gone"),
        (("explain", "."), "error: . holds no run"),
        (("report", "stock/trainer_state.json", "--follow"), "error: --follow needs a run folder"),
        (("report", "healthy", "stock/trainer_state.json", "--follow"), "error: --follow needs a run folder"),
        (("report", "healthy", "stock/trainer_state.json"), "error: healthy "),
        (("report", "healthy", "-o", "/no/such/folder/x.html"), "error: /no/such/folder/x.html cannot be written"),
        (("report", "healthy", "-o", "."), "error: . cannot be written"),
        (("report", "../instrument", "--follow"), "error: ../instrument holds no run"),
        (("compare", "healthy"), "error: one run cannot be compared"),
        (("compare", "healthy", "gone"), "error: there is no file or folder gone"),
        (("explain", "healthy", "--lang", "fr"), "error: "),
    ],
)
def test_mistakes_are_answered(arguments, error):
    result = run(*arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.startswith(error)
    assert "hint: " in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("verb", ["explain", "report", "compare"])
def test_a_run_that_may_not_be_read_is_said_to_be_unreadable(verb, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(RUNS / "healthy", tmp_path / "run")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(copy / "metrics.jsonl"))

    monkeypatch.setattr(read_run, "read_history", refuse)
    monkeypatch.setattr(report_module, "read_history", refuse)
    assert main([verb, str(copy), *([str(RUNS / "stock")] if verb == "compare" else [])]) == 2
    said = f"error: {copy}/metrics.jsonl cannot be opened: Permission denied\nhint: ask"
    assert capsys.readouterr().err.startswith(said)
    if verb == "explain":  # nothing is known to be wrong with it
        assert main([verb, str(copy), "--exit-code"]) == 3
