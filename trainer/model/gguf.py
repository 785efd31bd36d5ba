"""A GGUF file as a folder that transformers loads: converted to float32 on first use and kept by its content.

    $XDG_CACHE_HOME/lora-train/gguf/<name>-<16 digits of its SHA-256>          (~/.cache)

A folder is there whole or not at all; what a kill left half written goes a day later, when another file is converted.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from ..errors import UserError, first_line, problem, reason
from ..saved.sums import sha256_of

PARTIAL = ".tmp"
ABANDONED = 24 * 3600  # seconds; no conversion takes so long


def converted_gguf(path: Path) -> Path:
    """The folder of a GGUF file.

    Raises:
        UserError: the file cannot be converted, or there is no room for the folder; nothing is left half written.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora-train" / "gguf"
    try:
        folder = cache / f"{path.stem}-{sha256_of(path)[:16]}"
    except OSError as error:
        raise UserError(problem("model.gguf_unreadable", path=path, what=reason(error))) from error
    if folder.is_dir():
        return folder
    drop_abandoned(cache)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}{PARTIAL}")
    try:
        _convert(path, partial)
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        if not folder.is_dir():  # else another process was faster
            what = reason(error) if isinstance(error, OSError) else first_line(error)
            raise UserError(problem("model.gguf_cache", folder=cache, what=what)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _convert(path: Path, folder: Path) -> None:
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except ImportError as error:
        raise UserError(problem("model.gguf", path=path, what=first_line(error))) from error
    except Exception as error:  # of a damaged file: gguf, numpy and tokenizers raise of every kind
        raise UserError(problem("model.gguf_unreadable", path=path, what=first_line(error, typed=True))) from error
    # transformers marks the dequantized model as quantized and then refuses to save it
    model.hf_quantizer = None  # pyright: ignore[reportArgumentType]
    del model.config.quantization_config  # pyright: ignore[reportAttributeAccessIssue]
    model.config.name_or_path = path.stem
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def drop_abandoned(cache: Path) -> None:
    """Removes what was begun a day ago and is not whole."""
    for partial in cache.glob(f"*{PARTIAL}"):
        if time.time() - partial.stat().st_mtime > ABANDONED:
            shutil.rmtree(partial, ignore_errors=True)
