"""The three folders are lora_train.*; nothing of ours is importable as `kernels`."""

from __future__ import annotations

import subprocess
import sys
import zipfile

from .conftest import ROOT


def test_wheel_maps_the_folders_and_carries_the_catalogue(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("lora_vitals-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "kernels/statistics/reduce.py",
        "instrument/read/store.py",
        "trainer/cli.py",
        "instrument/catalogue/ko.json",
        "instrument/py.typed",
        "instrument/show/page/charts.js",
        "instrument/show/page/vendor/uPlot.iife.min.js",
        "instrument/show/page/vendor/uPlot.min.css",
        "instrument/show/page/vendor/LICENSE",
    ):
        assert f"lora_train/{name}" in names
    assert not [name for name in names if name.startswith(("kernels/", "trainer/", "tests/", "lora_train/__init__"))]


def test_hugging_faces_kernels_library_is_not_shadowed():
    """From the repository's root, `import kernels` finds the installed library or nothing that holds code."""
    code = "import importlib.util; print(importlib.util.find_spec('kernels').origin)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "None\n" or "site-packages" in result.stdout


def test_nothing_under_version_control_is_ignored_or_generated():
    tracked = subprocess.run(["git", "ls-files", "-ci", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    assert tracked.stdout == ""
