"""Downloads what the GPU machine may lack as wheels into .wheels: `python -m benchmarks.gpu.wheels`.

For CPython 3.12 on Linux x86-64, in the releases of constraints.txt. setup.py installs of them what is missing there.
bitsandbytes carries a library for every CUDA and ROCm release; the one for CUDA 13 and the CPU's are kept, and its
RECORD is written anew, so that it stays a wheel that pip installs. Together with the tree the folder must stay below
LIMIT_MIB.
"""

from __future__ import annotations

import argparse
import base64
import fnmatch
import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from .context import ROOT

FOLDER = ROOT / ".wheels"
LIMIT_MIB = 60.0
PYTHON = "3.12"
# pip matches N of manylinux_2_N exactly
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (5, 12, 17, 24, 26, 27, 28, 31, 34, 35)),
    *(f"manylinux{year}_x86_64" for year in (1, 2010, 2014)),
)

# What lora-train needs, and what that needs, without what comes with torch and transformers; then what the tests need.
WANTED = (
    "bitsandbytes", "liger-kernel", "pydantic", "pydantic_core", "annotated-types", "typing-inspection",
    "typing_extensions", "datasets", "dill", "multiprocess", "xxhash", "psutil", "rich", "markdown-it-py", "mdurl",
    "Pygments", "Jinja2", "MarkupSafe", "filelock", "PyYAML", "setuptools", "hypothesis", "sortedcontainers",
)  # fmt: skip
# not in constraints.txt
OTHER_PINS = {"liger-kernel": "0.8.5", "setuptools": "84.2.1"}

CUDA_LIBRARY = "libbitsandbytes_cuda130.so"
KEPT_LIBRARIES = (CUDA_LIBRARY, "libbitsandbytes_cpu.so")


def main() -> int:
    """Downloads, reduces, and checks the sizes; 1 if they are too large."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.wheels", description=str(__doc__).partition("\n")[0]
    ).parse_args()
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.whl"):
        old.unlink()
    download(requirements((ROOT / "constraints.txt").read_text(encoding="utf-8")), FOLDER)
    for wheel in FOLDER.glob("bitsandbytes-*.whl"):
        reduce_wheel(wheel, "bitsandbytes/libbitsandbytes_*", KEPT_LIBRARIES)
    for wheel in sorted(FOLDER.glob("*.whl")):
        print(f"{wheel.stat().st_size / 2**20:>7.2f} MiB  {wheel.name}")
    carried, tree = mib(FOLDER.glob("*.whl")), mib(tree_files())
    print(f"{carried:>7.2f} MiB  wheels\n{tree:>7.2f} MiB  tree\n{carried + tree:>7.2f} MiB  of {LIMIT_MIB:.0f} MiB")
    if carried + tree > LIMIT_MIB:
        print(f"error: wheels and tree are larger than {LIMIT_MIB:.0f} MiB", file=sys.stderr)
        return 1
    return 0


def requirements(constraints: str) -> list[str]:
    """NAME==VERSION for each of WANTED, as constraints.txt has it for Python 3.11 and later.

    Raises:
        KeyError: one is pinned nowhere.
    """
    pins = dict(OTHER_PINS)
    for line in constraints.splitlines():
        pin, _, marker = line.partition(";")
        name, equal, version = pin.strip().partition("==")
        if equal and "<" not in marker:
            pins[name] = version
    return [f"{name}=={pins[name]}" for name in WANTED]


def download(names: Sequence[str], folder: Path) -> None:
    """Downloads the wheels without what they depend on."""
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON, *platforms]
    subprocess.run([*command, "--dest", str(folder), *names], check=True)


def reduce_wheel(path: Path, pattern: str, kept: Sequence[str]) -> None:
    """Takes the files that match a pattern out of a wheel, but for those named in `kept`, and writes its RECORD anew.

    Raises:
        ValueError: a file that is to be kept is not there: another release of the package names it differently.
    """
    fresh = path.with_suffix(".new")
    with zipfile.ZipFile(path) as wheel:
        infos = [info for info in wheel.infolist() if not info.is_dir()]
        names = {Path(info.filename).name for info in infos}
        if lacking := sorted(set(kept) - names):
            found = ", ".join(sorted(name for name in names if name.endswith(".so")))
            raise ValueError(f"{path.name} has no {', '.join(lacking)}; its libraries are {found}")
        record = next(info for info in infos if re.fullmatch(r"[^/]+\.dist-info/RECORD", info.filename))
        lines = []
        with zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as out:
            for info in infos:
                if info is record:
                    continue
                if fnmatch.fnmatch(info.filename, pattern) and Path(info.filename).name not in kept:
                    continue
                data = wheel.read(info)
                info.compress_type = zipfile.ZIP_DEFLATED
                out.writestr(info, data)
                lines.append(f"{info.filename},{digest(data)},{len(data)}")
            out.writestr(record, "\n".join([*lines, f"{record.filename},,"]) + "\n", zipfile.ZIP_DEFLATED)
    fresh.replace(path)


def digest(data: bytes) -> str:
    """As RECORD has it."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def tree_files() -> list[Path]:
    """Files of the repository: tracked, or new and not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def mib(paths) -> float:
    return sum(path.stat().st_size for path in paths) / 2**20


if __name__ == "__main__":
    sys.exit(main())
