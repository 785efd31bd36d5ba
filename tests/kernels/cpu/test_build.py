"""The C files under a compiler that warns, and their tests under AddressSanitizer and UBSan."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from ...conftest import ROOT

FILES = sorted((ROOT / "kernels" / "cpu").glob("*.c"))
GCC = shutil.which("gcc")
FLAGS = re.findall(r'"(-[a-zA-Z][^"{]*)"', (ROOT / "setup.py").read_text())  # as users compile them
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g1")
# Everything that reaches every C function, with shapes that fill no vector, on several threads, at every level.
TESTS = (
    "kernels/cpu/test_scratch.py", "kernels/cpu/test_arguments.py", "kernels/lora_linear/test_passes.py",
    "kernels/attention/test_causal.py", "kernels/statistics/test_tensor_stats_aten.py",
    "kernels/frozen/test_product.py", "kernels/elementwise/test_elementwise.py",
)  # fmt: skip
# Neither what reaches no C, nor the sanitizer's own answer to a limit of the system.
LEFT_OUT = "not (interpreter or cuda or opcheck or compiles or aten or operator or wants or limit_of_the_system)"
# The tests of this process's Python on the extensions of a folder.
RUN = """
import sys, pytest
from lora_train.kernels import cpu
assert cpu._stats.__file__.startswith(sys.argv[1]), cpu._stats.__file__
sys.exit(pytest.main(sys.argv[2:]))
"""

pytestmark = pytest.mark.skipif(GCC is None, reason="needs gcc")


def compile(path: Path, *flags: str) -> subprocess.CompletedProcess:
    """A C file without the optimisation that the extensions have, which takes a minute of a sanitizer."""
    own = [flag for flag in FLAGS if flag != "-O3"]
    command = [str(GCC), "-fPIC", f"-I{sysconfig.get_paths()['include']}", *own, *flags, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_compiler_has_nothing_to_say(path: Path, tmp_path: Path):
    assert {"-Wall", "-Wextra"} <= set(FLAGS)
    result = compile(path, "-O1", "-Werror", "-c", "-o", str(tmp_path / "file.o"))
    assert (result.returncode, result.stderr) == (0, "")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lora_train.kernels in a folder of its own, the C files compiled with sanitizers."""
    folder = tmp_path_factory.mktemp("sanitized")
    trial = folder / "trial.c"
    trial.write_text("int main(void) { return 0; }\n")
    if (
        compile(trial, *SANITIZERS, "-o", str(folder / "trial")).returncode
        or subprocess.run([folder / "trial"]).returncode
    ):
        pytest.skip("gcc has no sanitizers here")
    kernels = folder / "lora_train" / "kernels"
    shutil.copytree(ROOT / "kernels", kernels, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (kernels.parent / "__init__.py").touch()  # a package without it stands behind the one that is installed
    for path in FILES:
        extension = kernels / "cpu" / f"_{path.stem}{sysconfig.get_config_var('EXT_SUFFIX')}"
        result = compile(path, "-O0", *SANITIZERS, "-shared", "-o", str(extension))
        assert result.returncode == 0, result.stderr
    return folder


def test_sanitizers_find_nothing(sanitized: Path):
    libraries = (subprocess.check_output([str(GCC), f"-print-file-name={name}"], text=True).strip() for name in (
        "libasan.so", "libstdc++.so",  # the second because torch throws, which the first wants to see
    ))  # fmt: skip
    settings = {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python never gives back all
        "PYTHONPATH": str(sanitized),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    options = ["-q", "-s", "--no-header", "-p", "no:cacheprovider", "-k", LEFT_OUT]
    result = subprocess.run(
        [sys.executable, "-c", RUN, str(sanitized), *options, *(f"tests/{test}" for test in TESTS)],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    report = [line for line in result.stderr.splitlines() if re.search("ERROR|runtime error|kernels/cpu", line)]
    assert result.returncode == 0, "\n".join([*report[:20], result.stdout[-4000:], result.stderr[-2000:]])
    assert " passed" in result.stdout
