"""The three folders are lora_train.*, with names of its own on top; nothing of ours is importable as `kernels`."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from .conftest import ROOT


def test_wheel_maps_the_folders_and_carries_the_catalogue(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("lora_vitals-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "__init__.py",
        "py.typed",
        "kernels/statistics/reduce.py",
        "instrument/read/store.py",
        "trainer/cli.py",
        "instrument/catalogue/ko.json",
        "instrument/py.typed",
        "instrument/board/page/board.html",
        "instrument/board/page/board.js",
        "instrument/board/page/board.css",
        "instrument/show/page/charts/charts.js",
        "instrument/show/page/layers/grid.js",
        "instrument/show/page/vendor/uPlot.iife.min.js",
        "instrument/show/page/vendor/uPlot.min.css",
        "instrument/show/page/vendor/LICENSE",
    ):
        assert f"lora_train/{name}" in names
    assert not [name for name in names if name.startswith(("kernels/", "trainer/", "tests/", "typings/"))]
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    assert names_of(installed) == names_of(ROOT / "typings")


def names_of(path: Path) -> str:
    """What `import lora_train` offers where it is found in a folder, and whether that imports torch or pandas."""
    code = (
        "import sys, lora_train; from lora_train import InstrumentCallback, Run, compare, explain, load_run, train;"
        "print(*(getattr(lora_train, name).__module__ for name in lora_train.__all__ if name != '__version__'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(path)}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_the_package_and_asking_for_help_import_nothing_heavy():
    """Seconds of every command line and of every notebook's first cell."""
    heavy = "{'torch', 'transformers', 'pandas', 'numpy', 'pydantic'} & sys.modules.keys()"
    for code in (f"import sys, lora_train; print({heavy}, lora_train.__version__)", HELP):
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        assert result.stdout.splitlines()[-1] in (f"set() {version('lora-vitals')}", "set()"), result.stdout


HELP = """
import sys
from lora_train.trainer.cli import main
try:
    main(["explain", "--help"])
except SystemExit:
    print({"torch", "transformers"} & sys.modules.keys())
"""


def test_every_name_that_was_importable_before_is():
    import lora_train
    from lora_train import instrument

    for name in ("Instrument", "InstrumentCallback", "watch"):
        assert getattr(lora_train, name) is getattr(instrument, name)
    assert issubclass(lora_train.Run, type(instrument.load_run(ROOT / "tests" / "runs" / "healed")))
    assert lora_train.__version__ == version("lora-vitals")
    assert set(lora_train.__all__) <= set(dir(lora_train))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = lora_train.trian  # pyright: ignore[reportAttributeAccessIssue]


def test_hugging_faces_kernels_library_is_not_shadowed():
    """From the repository's root, `import kernels` finds the installed library or nothing that holds code."""
    code = "import importlib.util; print(importlib.util.find_spec('kernels').origin)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "None\n" or "site-packages" in result.stdout


def test_nothing_under_version_control_is_ignored_or_generated():
    tracked = subprocess.run(["git", "ls-files", "-ci", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    assert tracked.stdout == ""
