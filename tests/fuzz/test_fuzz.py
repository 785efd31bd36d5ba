"""The fuzzer finds crashes that were there once, each within its two minutes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ..copied import copied
from . import run

# Target: (file, what stands there now, what lets the crash through).
PUT_BACK = {
    "log": ("instrument/read/logs/values.py", "except OverflowError:  # an", "except ZeroDivisionError:  # an"),
    "config": ("trainer/checks/read_config.py", "except YAML_ERRORS as error:", "except ZeroDivisionError as error:"),
    "import": ("trainer/importer/sources.py", "except (SyntaxError, ValueError) as", "except ZeroDivisionError as"),
    "data": (
        "trainer/data/readers.py",
        "except ValueError as error:  # a number",
        "except ZeroDivisionError as error:  # a number",
    ),
    "run": (
        "instrument/read/logs/run_folder.py",
        "except (OSError, ValueError, RecursionError, yaml.YAMLError):",
        "except ZeroDivisionError:",
    ),
    "checkpoint": (
        "trainer/saved/state.py",
        "except ValueError as error:  # not JSON",
        "except ZeroDivisionError as error:  # not JSON",
    ),
    "adapter": (
        "trainer/verbs/adapter_folder.py",
        "except (OSError, ValueError, RecursionError) as error:  # Unicode",
        "except OSError as error:  # Unicode",
    ),
    "replay": (
        "trainer/collapse/recorded.py",
        "except ValidationError as error:",
        "except ZeroDivisionError as error:",
    ),
}


@pytest.mark.parametrize("target", PUT_BACK)
def test_a_crash_put_back_is_found(target: str, tmp_path: Path):
    copied(tmp_path, [PUT_BACK[target]], "tests")
    command = [sys.executable, "-m", "tests.fuzz", "--target", target, "--first", "--seed", "1"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert re.search(rf"--target {target} --input \d+ .*Error", done.stdout), done.stdout[-2000:]


@pytest.mark.parametrize("wait", [False, True], ids=["computes", "waits"])
def test_what_does_not_answer_is_ended(monkeypatch, wait: bool):
    monkeypatch.setattr(run, "HANG", 0.2 if not wait else 3600)
    monkeypatch.setattr(run, "WAITS", 0.2 if wait else 3600)

    def never() -> None:
        with run._watched():
            while True:
                time.sleep(int(wait))

    with pytest.raises(run.Hangs):
        never()
