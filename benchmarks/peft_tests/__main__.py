"""Do PEFT's own tests pass with the fused forward as they do without?

    python -m benchmarks.peft_tests [--source FOLDER] [-k EXPRESSION] [-n WORKERS] [--limit SECONDS] [FILE ...]

FOLDER is PEFT's source distribution of the installed version; without it pip downloads that. Its tests run twice: with
PEFT's forward, and with ours on every LoRA linear (plugin.py), with a line of progress a minute. Without FILE those
whose models are made on the spot run, by the tests or by models.py; what asks the hub for another one fails alike.
Prints how many ran, how many LoRA linears were computed fused, why the others were not, and every test that ended
otherwise. test_mixed.py wants the package parameterized; without it that file is left out. Exit code 1 if there is a
difference, or if fewer than `--at-least` tests passed with fused layers.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from .models import fill_cache
from .outcomes import Outcome, differences, n_fused, read_outcomes, summary

FILES = (
    "test_low_level_api.py", "test_mixed.py", "test_lora_variants.py", "test_lora_conversion.py",
    "test_lora_intruders.py", "test_trainable_tokens.py", "test_token_classification_qa.py", "test_seq_classifier.py",
    "test_feature_extraction_models.py", "test_encoder_decoder_models.py", "test_decoder_models.py",
    "test_custom_models.py",
)  # fmt: skip
PROGRESS_SECONDS = 60
ROOT = Path(__file__).parents[2]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.peft_tests", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="*", default=FILES, metavar="FILE")
    parser.add_argument("--source", type=Path, help="PEFT's unpacked source distribution")
    parser.add_argument("-k", default="", help="as pytest's")
    parser.add_argument("-n", type=int, default=2, help="processes")
    parser.add_argument("--limit", type=int, help="seconds for each of the two runs")
    parser.add_argument("--at-least", type=int, default=500, help="tests that must have passed with fused LoRA linears")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as kept:
        source = as_package(given.source or download(Path(kept)), Path(kept) / "source")
        fill_cache(Path(kept) / "cache")
        plain, fused = (run(source, Path(kept), given, is_fused) for is_fused in (False, True))
    print("\n".join(summary(plain, fused)))
    return int(bool(differences(plain, fused)) or n_fused(fused) < given.at_least)


def download(folder: Path) -> Path:
    """PEFT's source distribution of the installed version, unpacked."""
    version = importlib.metadata.version("peft")
    ask = [sys.executable, "-m", "pip", "download", "--no-binary", ":all:", "--no-deps", "--no-build-isolation"]
    subprocess.run([*ask, "-q", "-d", str(folder), f"peft=={version}"], check=True)
    with tarfile.open(folder / f"peft-{version}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / f"peft-{version}"


def as_package(source: Path, copy: Path) -> Path:
    """A copy of the tests that can import one another: the distribution leaves out what makes them a package."""
    shutil.copytree(source / "tests", copy / "tests")
    (copy / "tests" / "__init__.py").touch()
    return copy


def run(source: Path, folder: Path, given: argparse.Namespace, is_fused: bool) -> dict[str, Outcome]:
    """One run of the tests: what each came to."""
    lines = folder / ("fused" if is_fused else "plain")
    lines.mkdir()
    own = {"PEFT_TESTS_LINES": str(lines), "PEFT_TESTS_FUSED": str(int(is_fused)), "HF_HUB_OFFLINE": "1"}
    own |= {"HF_HUB_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    own["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.peft_tests.plugin", "-p", "no:cacheprovider"]
    command += ["-o", "addopts=", "--tb=line", "-W", "ignore::FutureWarning", "--continue-on-collection-errors"]
    command += ["-n", str(given.n)] if given.n > 1 else []
    command += ["-k", given.k] if given.k else []
    command += [f"tests/{name}" for name in given.files]
    log = folder / f"{lines.name}.log"
    with log.open("w") as file:
        done = subprocess.Popen(command, cwd=source, env={**os.environ, **own}, stdout=file, stderr=subprocess.STDOUT)
        _wait(done, lines, given.limit)
    found = read_outcomes(lines)
    if not found:
        raise SystemExit(f"no test ran in {source}:\n{log.read_text()[-2000:]}")
    return found


def _wait(process: subprocess.Popen, lines: Path, limit: float | None) -> None:
    """Until it ends or the limit is over; says every minute how far it is."""
    began = time.monotonic()
    while process.poll() is None:
        seconds = time.monotonic() - began
        if limit is not None and seconds > limit:
            process.terminate()
        try:
            process.wait(PROGRESS_SECONDS)
        except subprocess.TimeoutExpired:
            found = read_outcomes(lines)
            last = next(reversed(found), "no test yet").partition("::")[0].rpartition("/")[2]
            print(f"{lines.name}: {len(found)} tests in {seconds:.0f} s, {n_fused(found)} fused ({last})", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
