"""`lora-train env`: what this machine and this installation are, as text to paste into a bug report.

Nothing in it names the user, the host or a folder under a home. Every library is imported on its own, so that a broken
one is named with its error and the rest is still there. Nothing is imported that is not installed.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib
import importlib.metadata
import io
import json
import os
import platform
import re
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...instrument.constants import GIB
from ..errors import first_line

# distribution -> the module that shows whether it works; None: its version is enough
PACKAGES = {
    "torch": "torch",
    "triton": "triton",
    "transformers": "transformers",
    "peft": "peft",
    "accelerate": "accelerate",
    "bitsandbytes": "bitsandbytes",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
    "datasets": None,
    "numpy": "numpy",
    "pandas": None,
    "pyarrow": "pyarrow",
    "pydantic": "pydantic",
    "rich": None,
    "psutil": "psutil",
    "gguf": None,
}
CPU_FLAGS = (
    "avx2", "f16c", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "asimd", "asimdhp", "sve",
)  # fmt: skip
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "TRITON_INTERPRET",
    "LORA_TRAIN_CPU", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "BNB_CUDA_VERSION",
    "HF_HUB_OFFLINE", "LORA_TRAIN_LANG", "LANG",
)  # fmt: skip
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")


def print_environment(as_json: bool) -> int:
    """Prints the environment and returns the exit code 0."""
    facts = without_names(environment())
    print(json.dumps(facts, indent=1, ensure_ascii=False) if as_json else "\n".join(_lines(facts)))
    return 0


def environment() -> dict[str, Any]:
    """Everything a bug report needs, as plain values."""
    # libraries print hints at import; --json has to stay JSON
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        packages = {name: package(name, module) for name, module in PACKAGES.items()}
        works = {name for name, facts in packages.items() if facts["version"] and "error" not in facts}
        return {
            "lora-train": version("lora-vitals"),
            "python": f"{platform.python_implementation()} {platform.python_version()}",
            "os": operating_system(),
            "cpu": cpu(),
            "memory": attempt(memory) if "psutil" in works else {"error": "psutil is missing"},
            "packages": packages,
            "torch": attempt(torch_facts) if "torch" in works else {},
            "gpus": attempt(torch_gpus) if "torch" in works else [],
            "nvidia_smi": nvidia_smi(),
            "bitsandbytes": attempt(bitsandbytes_backend) if "bitsandbytes" in works else {},
            "kernels": attempt(kernels) if "torch" in works else {},
            "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        }


def attempt(facts: Callable[[], Any]) -> Any:
    """The facts, or {"error": first line of why not}."""
    try:
        return facts()
    except Exception as error:  # a broken library raises anything
        return {"error": first_line(error, typed=True)}


def version(name: str) -> str | None:
    """Version of an installed distribution, None where there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def package(name: str, module: str | None) -> dict[str, Any]:
    """{"version"} of a distribution and, where it is installed and cannot be imported, {"error"}."""
    facts: dict[str, Any] = {"version": version(name)}
    if facts["version"] is not None and module is not None:
        try:
            importlib.import_module(module)
        except Exception as error:
            facts["error"] = first_line(error, typed=True)
    return facts


def operating_system() -> str:
    """Kernel and, on Linux, distribution."""
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        name = ""
    return f"{platform.platform()} {name}".strip()


def cpu() -> dict[str, Any]:
    """Name, threads this process may use, and those of CPU_FLAGS that it has (Linux only)."""
    text = ""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.M)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.M)
    has = set(flags[1].split()) if flags else set()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": found[1] if found else platform.processor() or platform.machine(),
        "threads": os.cpu_count(),
        "usable_threads": usable,
        "capabilities": [flag for flag in CPU_FLAGS if flag in has],
    }


def memory() -> dict[str, float]:
    """Host memory in GiB."""
    import psutil

    now = psutil.virtual_memory()
    return {"total_gib": round(now.total / GIB, 1), "available_gib": round(now.available / GIB, 1)}


def torch_facts() -> dict[str, Any]:
    """What torch was built for and what it uses."""
    import torch

    return {
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),
        "cuda_available": torch.cuda.is_available(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def torch_gpus() -> list[dict[str, Any]]:
    """The GPUs torch sees."""
    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "name": properties.name,
                "compute_capability": f"{properties.major}.{properties.minor}",
                "memory_gib": round(properties.total_memory / GIB, 1),
            }
        )
    return gpus


def nvidia_smi() -> list[str]:
    """Name, driver version and memory of each GPU as the driver sees it: also where torch is missing or broken."""
    try:
        result = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [] if isinstance(error, FileNotFoundError) else [first_line(error, typed=True)]
    lines = (result.stdout.strip() or result.stderr.strip()).split("\n")
    return [line for line in lines if line]


def bitsandbytes_backend() -> dict[str, Any]:
    """The native library bitsandbytes found: CUDA, CPU, ... or the reason why there is none."""
    extension = importlib.import_module("bitsandbytes.cextension")
    # a stand-in that raises at the first call takes the place of a library that cannot be loaded
    missing = type(extension.lib).__name__.startswith("ErrorHandler")
    facts: dict[str, Any] = {"backend": getattr(extension, "BNB_BACKEND", None), "native_library": not missing}
    if missing:
        facts["error"] = str(getattr(extension.lib, "error_msg", "")).strip().split("\n")[0]
    return facts


def kernels() -> dict[str, Any]:
    """Which of this package's kernels serve: the C loops on the CPU and the best this chip has, Triton on a GPU."""
    import torch

    from ...kernels import cpu as cpu_kernels

    return {
        "cpu_statistics": "C extension" if cpu_kernels.AVAILABLE else "ATen (the C extension was not compiled)",
        "cpu_loops": cpu_kernels.LEVEL,
        "cpu_best": cpu_kernels.BEST,
        "lora_linear": "Triton" if torch.cuda.is_available() else "CPU",
    }


def without_names(facts: Any) -> Any:
    """The same values without the user's name in paths, home folders and the host's name."""
    if isinstance(facts, dict):
        return {key: without_names(value) for key, value in facts.items()}
    if isinstance(facts, list):
        return [without_names(value) for value in facts]
    return _scrub(facts) if isinstance(facts, str) else facts


def _scrub(text: str) -> str:
    if Path.home() != Path("/"):
        text = re.sub(rf"(?<![\w.-]){re.escape(str(Path.home()))}(?![\w.-])", "~", text)
    text = re.sub(r"(?i)(/home/|/users/|[a-z]:\\users\\)[^/\\\s:]+", "~", text)
    with contextlib.suppress(OSError, KeyError, ImportError):  # a container's user may have no name
        text = re.sub(rf"(?<=[/\\]){re.escape(getpass.getuser())}(?=[/\\]|$)", "USER", text)
    return re.sub(rf"\b{re.escape(platform.node())}\b", "HOST", text) if platform.node() else text


def _lines(facts: dict[str, Any]) -> list[str]:
    """`name  value` lines: nested values one a line, those of packages on few."""
    lines = []
    for name, value in facts.items():
        if name == "packages":
            for key, found in value.items():
                broken = f"   BROKEN {found['error']}" if "error" in found else ""
                lines.append(f"{key:<14} {found['version'] or 'not installed'}{broken}")
        elif isinstance(value, dict):
            lines.append(f"{name:<14} {', '.join(f'{key} {_word(item)}' for key, item in value.items()) or '-'}")
        elif isinstance(value, list):
            words = [
                ", ".join(f"{k} {v}" for k, v in item.items()) if isinstance(item, dict) else item for item in value
            ]
            lines += [f"{name:<14} {word}" for word in words or ["none"]]
        else:
            lines.append(f"{name:<14} {_word(value)}")
    return lines


def _word(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else "none" if value is None else str(value)
