"""Whether two revisions compute the same, bit for bit: `make same BASE=REV`.

Each revision is built in a clone of its own and runs four tiny trainings there: float32, fp16 with a loss scale, NF4
with checkpointing, and two processes. Their run folders are compared file by file: adapters and checkpoints byte for
byte, every value of every line of metrics.jsonl and every statistic, but for times, memory, paths and versions.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .gpu.models import TINY, model_folder, settings, write_settings

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kernels", "instrument", "trainer")
OF_THE_MACHINE = re.compile(r"seconds|runtime|per_second|_gib$|^started$|^command$|^path$|folder$")
"""Keys of what another run on the same machine has otherwise."""
LEFT_OUT = ("config.yaml", "env.json", "README.md", "*.lock", "trainer_state.json", "SHA256SUMS")
"""Files that name paths, times or versions, or have the sums of those that do."""
SHOWN = 10
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONHASHSEED": "0"}
"""peft writes its set of modules in the order of their hashes."""

TRAINING = {
    "max_steps": 8,
    "gradient_accumulation_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "save_steps": 4,
}
WATCHED = {"histogram_every": 4, "probe_every": 4}
# name -> family, precision (benchmarks/gpu/models.py), processes
CASES = {
    "llama fp32": ("llama", "fp32", 1),
    "llama fp16": ("llama", "fp16", 1),
    "gpt_neox nf4": ("gpt_neox", "nf4", 1),
    "llama fp32, two processes": ("llama", "fp32", 2),
}


def main() -> int:
    """Prints what differs; 1 if anything does."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.same", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--base", required=True, metavar="REV", help="the revision to compare with")
    parser.add_argument("--head", metavar="REV", help="the other one; default: the working tree")
    arguments = parser.parse_args()
    revisions = {"base": arguments.base, "head": arguments.head or working_tree()}
    n_different = 0
    with tempfile.TemporaryDirectory(prefix="same-") as name, ThreadPoolExecutor(2) as pool:
        work = Path(name)
        models = {family: model_folder(work, family, TINY) for family in ("llama", "gpt_neox")}
        clones = dict(
            zip(revisions, pool.map(build, revisions.values(), [work / side for side in revisions]), strict=True)
        )
        for case, (family, precision, processes) in CASES.items():
            folders = list(
                pool.map(train, clones.values(), itertools.repeat((case, models[family], precision, processes)))
            )
            found = list(differences(*folders))
            print(f"{case:<28}{describe(folders[0]) if not found else f'{len(found)} differences'}", flush=True)
            for line in found[:SHOWN]:
                print(f"    {line}")
            n_different += len(found)
    print("the same bits" if not n_different else f"{n_different} differences")
    return int(n_different > 0)


def git(*arguments: str, cwd: Path = ROOT) -> str:
    """What git prints."""
    return subprocess.run(["git", *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


def working_tree() -> str:
    """A commit of the tracked files as they are; HEAD where none was changed."""
    return git("stash", "create") or "HEAD"


def build(revision: str, clone: Path) -> Path:
    """A clone of a revision with its C loops, and beside it `lora_train` for PYTHONPATH."""
    commit = git("rev-parse", "--verify", f"{revision}^{{commit}}")
    git("clone", "--quiet", "--shared", "--no-checkout", str(ROOT), str(clone))
    git("checkout", "--quiet", "--detach", commit, cwd=clone)
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(command, cwd=clone, check=True, stdout=subprocess.DEVNULL)
    package = clone / "same" / "lora_train"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()  # a package without it would stand behind the one that is installed
    for folder in PACKAGES:
        (package / folder).symlink_to(clone / folder)
    return clone


def train(clone: Path, case: tuple[str, Path, str, int]) -> Path:
    """Runs one training of a clone; its run folder."""
    name, model, precision, processes = case
    work = clone / "same" / name.replace(" ", "-")
    work.mkdir()
    values = settings(model, Path("run"), precision, training=TRAINING, instrument=WATCHED)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "lora_train.trainer.cli"]
    command += ["--config", str(write_settings(work / "run.yaml", values))]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(clone / "same")}
    result = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"error: {name} at {git('rev-parse', '--short', 'HEAD', cwd=clone)} ended with "
                         f"{result.returncode}:\n{result.stdout[-1000:]}{result.stderr[-3000:]}")  # fmt: skip
    return work / "run"


def files_of(folder: Path) -> dict[str, Path]:
    """The files to compare, by their path in the run folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path for path in files if not any(map(path.match, LEFT_OUT))}


def describe(folder: Path) -> str:
    files = files_of(folder)
    steps = (folder / "metrics.jsonl").read_text(encoding="utf-8").count('"loss"')
    return f"the same bits in {len(files)} files, {steps} steps"


def differences(base: Path, head: Path) -> Iterator[str]:
    """A line for every value that two run folders have differently."""
    ours, theirs = files_of(base), files_of(head)
    for name in sorted(ours.keys() ^ theirs.keys()):
        yield f"{name}: only {'before' if name in ours else 'now'}"
    for name in sorted(ours.keys() & theirs.keys()):
        pair = [content(path) for path in (ours[name], theirs[name])]
        for where in sorted(pair[0].keys() | pair[1].keys()):
            before, now = (values.get(where, "nothing") for values in pair)
            if before != now:
                yield f"{name}: {where}: {before} before, {now} now"


def content(path: Path) -> dict[str, str]:
    """Everything a file says, as exact text by where it says it."""
    if path.suffix == ".jsonl":
        return {
            f"line {i}, {key}": value
            for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
            for key, value in flat(json.loads(line))
        }
    if path.suffix == ".json":
        return dict(flat(json.loads(path.read_text(encoding="utf-8"))))
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path).to_pydict()
        return {f"{name}[{i}]": repr(value) for name, column in table.items() for i, value in enumerate(column)}
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return {
            name: f"{tensor.dtype}{list(tensor.shape)} {digest(tensor.tobytes())}"
            for name, tensor in load_file(path).items()
        }
    return {"bytes": digest(path.read_bytes())}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def flat(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf of JSON and where it is, without what belongs to the machine."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not OF_THE_MACHINE.search(key):
                yield from flat(inner, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from flat(inner, f"{where}[{i}]")
    else:
        yield where, repr(value)


if __name__ == "__main__":
    sys.exit(main())
