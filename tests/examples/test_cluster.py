"""The snippets for clusters: what bash, a batch system and Kubernetes would make of them, without either."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from lora_train.trainer.cli import VERBS, _parser

from ..conftest import ROOT

FOLDER = ROOT / "examples" / "cluster"
# Long options of sbatch (slurm.schedmd.com/sbatch.html) that these files use, with what they take.
SBATCH = {
    "job-name": r"[\w-]+", "array": r"\d+-\d+(%\d+)?", "ntasks": r"\d+", "cpus-per-task": r"\d+",
    "gpus-per-task": r"\d+", "mem": r"\d+[KMGT]", "time": r"(\d+-)?\d+:\d\d:\d\d", "requeue": "",
    "signal": r"B:(TERM|INT|USR1)@\d+", "output": r"[\w%-]+\.out",
}  # fmt: skip
# Fields of a Job and of what it holds (Kubernetes API reference 1.37; the file was held against its JSON schema by
# kubernetes-validate --strict).
JOB: dict[str, Any] = {
    "apiVersion": str, "kind": str, "metadata": {"name": str},
    "spec": {
        "parallelism": int, "completions": int, "backoffLimit": int,
        "template": {
            "metadata": {"labels": {"app": str}},
            "spec": {
                "restartPolicy": str, "terminationGracePeriodSeconds": int,
                "containers": [{
                    "name": str, "image": str, "command": [str], "workingDir": str,
                    "resources": {"limits": {"nvidia.com/gpu": int, "memory": str}, "requests": {"cpu": str}},
                    "volumeMounts": [{"name": str, "mountPath": str}],
                }],
                "volumes": [{
                    "name": str, "persistentVolumeClaim": {"claimName": str},
                    "emptyDir": {"medium": str, "sizeLimit": str},
                }],
            },
        },
    },
}  # fmt: skip


def wrong(value: Any, shape: Any, where: str = "") -> list[str]:
    """Where a value has a field that the shape has not, or one of another type."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [where]
        unknown = [f"{where}.{key}" for key in value if key not in shape]
        known = [(key, own) for key, own in value.items() if key in shape]
        return [*unknown, *(found for key, own in known for found in wrong(own, shape[key], f"{where}.{key}"))]
    if isinstance(shape, list):
        items = value if isinstance(value, list) else [None]
        return [found for i, item in enumerate(items) for found in wrong(item, shape[0], f"{where}[{i}]")]
    return [] if type(value) is shape else [where]


def commands(path: Path) -> list[list[str]]:
    """The calls of lora-train in a file, as words."""
    if path.name == "kubernetes.yaml":
        job = yaml.safe_load(path.read_text(encoding="utf-8"))
        return [job["spec"]["template"]["spec"]["containers"][0]["command"]]
    lines = path.read_text(encoding="utf-8").splitlines()
    calls = [re.search(r"^\s*exec (lora-train .*)$", line) for line in lines]
    return [shlex.split(match[1]) for match in calls if match]


@pytest.mark.parametrize("name", ["slurm.sh", "kubernetes.yaml", "skypilot.yaml"])
def test_the_command_of_a_snippet_is_one_of_ours(name):
    (command,) = commands(FOLDER / name)
    arguments = _parser("sweep", VERBS["sweep"]).parse_args(command[2:])
    assert command[:2] == ["lora-train", "sweep"]
    assert (arguments.worker, arguments.yes) == (True, True)


def test_slurm():
    path = FOLDER / "slurm.sh"
    subprocess.run(["bash", "-n", str(path)], check=True)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/bin/bash"
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [line for line in lines if line.startswith("#SBATCH")]
    assert directives == [line for line in lines[:first] if line.startswith("#SBATCH")]  # later ones are not read
    for line in directives:
        match = re.fullmatch(r"#SBATCH --([\w-]+)(?:=(\S+))?", line)
        assert match, line
        assert re.fullmatch(SBATCH[match[1]], match[2] or ""), line
    ended = subprocess.run(["bash", str(path)], capture_output=True, text=True, check=False)
    assert (ended.returncode, "usage: sbatch" in ended.stderr) == (1, True)


def test_kubernetes():
    (job,) = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8"))
    assert wrong(job, JOB) == []
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] in ("OnFailure", "Never")  # a Job takes no other
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_skypilot():
    (task,) = yaml.safe_load_all((FOLDER / "skypilot.yaml").read_text(encoding="utf-8"))
    assert set(task) == {"name", "resources", "volumes", "setup", "run"}
    assert set(task["resources"]) == {"accelerators", "use_spot", "job_recovery"}
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
