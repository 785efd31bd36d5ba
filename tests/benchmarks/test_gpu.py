"""The command that proves the GPU path: its runner with planted parts, the wheels it carries, and a typo in a part."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu.parts import CORRECTNESS_SECONDS, PARTS, TOTAL_SECONDS, Part, setup
from benchmarks.gpu.runner import HEAD, LEAST_SECONDS, TAIL, Output, Runner, compiled, environment
from benchmarks.gpu.wheels import WANTED, reduce_wheel, requirements

from ..conftest import ROOT

MIB = 1 << 20
STANDARD_LIBRARY_ALONE = ("__main__", "runner", "child", "context", "machine", "parts", "parts.setup", "wheels")

PLANTED = {
    "good": """
        def run(context):
            context.number(answer=42)
            context.line("a line below the row")
            return "went well"
    """,
    "raises": """
        def run(context):
            context.number(before=1)
            raise ValueError("planted")
    """,
    "checks": """
        def run(context):
            context.check(False, "a promise that is not kept")
            return "to its end"
    """,
    "hangs": """
        import subprocess, sys, time
        def run(context):
            context.number(before=1)
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            print("child", child.pid, flush=True)
            time.sleep(600)
    """,
    "chatty": """
        def run(context):
            print("first words")
            for _ in range(40):
                print("x" * (1 << 20))
            print("last words")
            return "said a lot"
    """,
    "skips": """
        from ..context import Skip
        def run(context):
            raise Skip("no such tool here")
    """,
    "dies": """
        import os, signal
        def run(context):
            print("about to die", flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
    """,
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with the runner and parts of the test's own, on a machine that says it has a GPU."""
    root = tmp_path_factory.mktemp("planted")
    package = root / "benchmarks" / "gpu"
    (package / "parts").mkdir(parents=True)
    for name in ("__init__", "__main__", "runner", "child", "context", "machine"):
        shutil.copy(ROOT / "benchmarks" / "gpu" / f"{name}.py", package)
    machine = (package / "machine.py").read_text()
    (package / "machine.py").write_text(re.sub(r"return shutil\.which.*", "return True", machine))
    parts = (ROOT / "benchmarks" / "gpu" / "parts" / "__init__.py").read_text().partition("PARTS = (")[0]
    rows = [f'Part("{name}", "", {6 if name == "hangs" else 20})' for name in PLANTED if name != "good"]
    listed = ['Part("setup", "", 20, module="good")', *rows, 'Part("last", "", 60, module="good")']
    (package / "parts" / "__init__.py").write_text(f"{parts}\nPARTS = ({', '.join(listed)})\n")
    for name, code in PLANTED.items():
        (package / "parts" / f"{name}.py").write_text("\n".join(line[8:] for line in code.splitlines()))
    return root


def run_planted(root: Path, out: Path, *words: str) -> tuple[int, str, dict[str, dict]]:
    command = [sys.executable, "-S", "-m", "benchmarks.gpu", "--out", str(out), *words]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return done.returncode, done.stdout, {line["part"]: line for line in lines if "part" in line}


def test_no_part_keeps_another_from_running_and_each_is_told_as_it_ended(planted, tmp_path):
    code, text, results = run_planted(planted, tmp_path / "out")
    assert code == 1
    assert {name: result["status"] for name, result in results.items()} == {
        "setup": "ok", "raises": "failed", "checks": "failed", "hangs": "timeout", "chatty": "ok", "skips": "skipped",
        "dies": "failed", "last": "ok",
    }  # fmt: skip
    assert results["setup"]["numbers"]["answer"] == 42
    assert results["hangs"]["numbers"]["before"] == 1
    assert results["hangs"]["row"].startswith("killed after")
    assert results["raises"]["row"] == "ValueError: planted"
    assert results["checks"]["row"] == "a promise that is not kept"
    assert results["skips"]["row"] == "no such tool here"
    assert "about to die" in results["dies"]["log_tail"]
    # the last thing printed is the table, in the order of the parts
    table = text.rstrip().splitlines()[-10:]
    names = [line.split()[0] for line in table if not line.startswith(" ")]
    assert names == ["setup", "raises", "checks", "hangs", "chatty", "skips", "dies", "last"]
    assert "a line below the row" in table[1]
    # a row is printed as a part ends, before the next one's
    assert text.index("\nraises ") < text.index("\nhangs ") < text.index("\nlast ") < text.index("results.jsonl, log")
    check_files(tmp_path / "out")
    assert_dead(int(re.findall(r"child (\d+)", (tmp_path / "out" / "log.txt").read_text())[0]))


def check_files(out: Path) -> None:
    """At most 6 files, no folders, 16 MiB each; of much output the beginning and the end."""
    files = list(out.iterdir())
    assert sorted(path.name for path in files) == ["log.txt", "results.jsonl", "table.txt"]
    assert all(path.is_file() and path.stat().st_size < 16 * MIB for path in files)
    log = (out / "log.txt").read_text()
    assert "first words" in log
    assert "last words" in log
    assert "bytes left out" in log
    assert len(log) < 2 * (HEAD + TAIL)
    assert "last words" in (out / "table.txt").read_text() or "said a lot" in (out / "table.txt").read_text()


def assert_dead(pid: int) -> None:
    """A killed process may be a zombie for a moment, until its new parent has looked."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX":
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} is alive")


def test_what_the_deadline_leaves_no_time_for_is_not_run(planted, tmp_path):
    code, _, results = run_planted(planted, tmp_path, "last", "chatty", "--deadline", f"{LEAST_SECONDS - 1}")
    assert code == 1
    assert {name: result["status"] for name, result in results.items()} == {
        "setup": "not run", "chatty": "not run", "last": "not run",
    }  # fmt: skip


def test_some_parts_by_name_in_their_order(planted, tmp_path):
    code, _, results = run_planted(planted, tmp_path, "last", "skips")
    assert code == 0
    assert list(results) == ["setup", "skips", "last"]


def test_an_unknown_part_and_a_machine_without_a_gpu_are_told():
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run([*command, "nothing"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown: nothing" in done.stderr
    variables = {**os.environ, "PATH": "/nowhere"}
    if not Path("/dev/nvidia0").exists():
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "--dry" in done.stderr


def test_the_runner_needs_nothing_but_the_standard_library():
    code = (
        "import sys; before = set(sys.modules); import "
        + ", ".join(f"benchmarks.gpu.{name}" for name in STANDARD_LIBRARY_ALONE)
        + "; new = {name.split('.')[0] for name in set(sys.modules) - before}"
        + "; print(*sorted(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["benchmarks"]


def test_all_parts_fit_into_eight_minutes_and_those_of_correctness_into_four():
    assert sum(part.seconds for part in PARTS) <= TOTAL_SECONDS < 480
    assert sum(part.seconds for part in PARTS if part.correctness) <= CORRECTNESS_SECONDS == 240
    assert PARTS[0].name == "setup"
    for part in PARTS:
        assert importlib.util.find_spec(f"benchmarks.gpu.parts.{part.module or part.name}")


def test_a_part_gets_its_own_seconds_and_what_others_left(tmp_path):
    runner = Runner(tmp_path / "out", tmp_path, dry=False, deadline=1000.0)
    plain, proof = Part("a", "", 30), Part("b", "", 30, correctness=True)
    assert runner._limit(plain) == runner._limit(proof) == 30
    runner.spend(plain, 20.0)
    assert runner._limit(plain) == 40
    assert runner._limit(proof) == 30  # correctness lends to itself alone
    runner.spend(proof, 5.0)
    assert runner._limit(proof) == 55
    assert runner._limit(plain) == 65
    runner.spend(proof, 55.0)
    assert runner._limit(proof) == 30
    assert runner._limit(plain) == 40


def test_a_part_finds_the_installed_packages_first_and_one_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    found = environment(Part("a", "", 1, interprets=True, environment={"X": "y"}), tmp_path, dry=False)
    assert found["PYTHONPATH"] == f"{tmp_path}/site{os.pathsep}/mine"
    assert found["TRITON_CACHE_DIR"] == f"{tmp_path}/triton"
    assert found["X"] == "y"
    assert "TRITON_INTERPRET" not in found  # with a GPU nothing is interpreted
    assert environment(Part("a", "", 1, interprets=True), tmp_path, dry=True)["TRITON_INTERPRET"] == "1"
    assert compiled(tmp_path) == 0


def test_output_keeps_beginning_and_end(tmp_path):
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe:
        output = Output(pipe)
        with os.fdopen(writer, "wb") as file:
            file.write(b"begin " + bytes(3 * (HEAD + TAIL)) + b" end")
        text = output.text()
    assert text.startswith("begin ")
    assert text.endswith(" end")
    assert "bytes left out" in text
    assert len(text) < HEAD + TAIL + (1 << 17)


def make_wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    """A pure wheel with these files and a RECORD."""
    path, info = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for file, data in files.items():
            wheel.writestr(file, data)
        wheel.writestr(f"{info}/RECORD", "\n".join([*(f"{file},," for file in files), f"{info}/RECORD,,"]))
    return path


def test_a_reduced_wheel_is_smaller_whole_and_installs(tmp_path):
    libraries = {f"thing/lib_{kind}.so": os.urandom(50_000) for kind in ("cuda118", "cuda130", "cpu")}
    path = make_wheel(tmp_path, "thing", {"thing/__init__.py": b"value = 5\n", **libraries})
    before = path.stat().st_size
    reduce_wheel(path, "thing/lib_*", ("lib_cuda130.so", "lib_cpu.so"))
    assert path.stat().st_size < before - 40_000
    with zipfile.ZipFile(path) as wheel:
        assert wheel.testzip() is None
        names = set(wheel.namelist())
        assert "thing/lib_cuda118.so" not in names
        rows = list(csv.reader(io.StringIO(wheel.read("thing-1.0.dist-info/RECORD").decode())))
        assert {row[0] for row in rows} == names
        for name, digest, size in rows:
            if not name.endswith("RECORD"):
                data = wheel.read(name)
                expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                assert (digest, int(size)) == (f"sha256={expected}", len(data))
    setup.pip(str(path), "--target", str(tmp_path / "site"))
    assert (tmp_path / "site" / "thing" / "lib_cuda130.so").read_bytes() == libraries["thing/lib_cuda130.so"]


def test_a_wheel_without_the_library_that_is_kept_is_refused(tmp_path):
    path = make_wheel(tmp_path, "thing", {"thing/lib_cuda140.so": b"x"})
    with pytest.raises(ValueError, match=r"no lib_cuda130\.so; its libraries are lib_cuda140\.so"):
        reduce_wheel(path, "thing/lib_*", ("lib_cuda130.so",))


def test_every_wheel_has_a_release_that_constraints_pins():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    found = requirements(text)
    assert len(found) == len(WANTED)
    # of two lines the one for newer Pythons
    assert f"filelock=={re.findall(r'filelock==([0-9.]+); python_version >=', text)[0]}" in found
    with pytest.raises(KeyError, match="bitsandbytes"):
        requirements(text.replace("bitsandbytes", "other"))


def test_only_wheels_that_are_missing_or_too_old_are_installed(tmp_path, monkeypatch):
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    wheels.mkdir()
    monkeypatch.setattr(setup, "FOLDER", wheels)
    assert setup.install_wheels(site) == []
    make_wheel(wheels, "numpy", {"numpy/__init__.py": b""})  # older than the one that is here
    make_wheel(wheels, "nobody_has_this", {"nobody_has_this/__init__.py": b""})
    make_wheel(wheels, "sometimes_old", {"sometimes_old/__init__.py": b""})
    monkeypatch.setattr(setup, "AT_LEAST", ("sometimes_old",))
    monkeypatch.setattr(setup, "version_of", lambda name, _: {"numpy": "2.0", "sometimes_old": "0.9.12"}.get(name))
    installed = setup.install_wheels(site)
    assert installed == ["nobody_has_this-1.0-py3-none-any.whl", "sometimes_old-1.0-py3-none-any.whl"]
    assert sorted(path.name for path in site.iterdir() if path.is_dir() and "dist-info" not in path.name) == [
        "nobody_has_this", "sometimes_old",
    ]  # fmt: skip


def test_links_stand_in_for_a_product_that_cannot_be_built(tmp_path):
    (tmp_path / "site").mkdir()
    setup.link_product(tmp_path / "site")
    code = "import lora_train.trainer.cli as c, importlib.metadata as m; print(c.__file__, m.version('lora-vitals'))"
    variables = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.stdout.split() == [f"{tmp_path}/site/lora_train/trainer/cli.py", "0"], done.stderr


@pytest.mark.parametrize(
    ("part", "right", "wrong"),
    [
        ("ceilings", "copy = 2 * n_bytes", "copi = 2 * n_bytes"),
        ("kernels", "speed = n_bytes / spent", "speed = n_bites / spent"),
    ],
)
def test_a_typo_in_a_part_turns_a_dry_run_red(tmp_path, part, right, wrong):
    for name in ("benchmarks", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "work").mkdir()
    source = tmp_path / "benchmarks" / "gpu" / "parts" / f"{part}.py"
    command = [sys.executable, "-m", "benchmarks.gpu.child", part, str(tmp_path / "work"), str(time.time() + 200)]
    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}

    def run() -> subprocess.CompletedProcess:
        return subprocess.run(
            [*command, "--dry"], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
        )  # fmt: skip

    green = run()
    assert green.returncode == 0, green.stdout + green.stderr
    text = source.read_text()
    assert text.count(right) == 1
    source.write_text(text.replace(right, wrong))
    red = run()
    assert red.returncode == 1
    assert "NameError" in json.loads((tmp_path / "work" / f"{part}.json").read_text())["failures"][0]
