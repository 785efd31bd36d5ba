"""What the machine is and which versions are on it, without importing any of them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

PACKAGES = (
    "torch", "triton", "transformers", "peft", "accelerate", "safetensors", "numpy", "bitsandbytes", "liger-kernel",
    "pydantic", "datasets", "lora-vitals",
)  # fmt: skip


DRY_CHIP = 90
"""Compute capability of the chip that is stood in for where there is none."""


def has_gpu() -> bool:
    """Whether an NVIDIA card is there."""
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()


def machine() -> dict[str, str]:
    """Card, driver, compiler, processor."""
    return {
        "gpu": said(
            "nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm", "--format=csv,noheader"
        ),
        "nvcc": said("nvcc", "--version"),
        "gcc": said("gcc", "-dumpfullversion"),
        "system": platform.platform(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
    }


def versions(site: Path) -> dict[str, str]:
    """Installed packages; those in `site` come first."""
    found: dict[str, str] = dict.fromkeys(PACKAGES, "missing")
    for name in PACKAGES:
        inside = importlib.metadata.distributions(name=name, path=[str(site)])
        for distribution in (*inside, *importlib.metadata.distributions(name=name)):
            found[name] = distribution.version
            break
    return found


def said(*command: str) -> str:
    """The last line a command prints; nothing if it is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "none"
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "none"
