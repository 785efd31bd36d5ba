"""The product in another folder, with lines of it changed: what a test that is worth its name must notice."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def copied(folder: Path, changes: Sequence[tuple[str, str, str]], beside: str) -> None:
    """`lora_train` in a folder for PYTHONPATH, and one of the top folders beside it.

    Args:
        changes: file of the product, what stands there once, what is to stand there.
    """
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("kernels", "instrument", "trainer"):
        shutil.copytree(ROOT / name, folder / "lora_train" / name, ignore=ignore)
    (folder / "lora_train" / "__init__.py").touch()  # a package without it stands behind the one that is installed
    shutil.copytree(ROOT / beside, folder / beside, ignore=ignore)
    for file, old, new in changes:
        path = folder / "lora_train" / file
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, (file, old)
        path.write_text(text.replace(old, new), encoding="utf-8")
