"""Writes what `lora-train export` was asked for, under a temporary name until it is whole."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from ...instrument.constants import GIB
from ...instrument.messages import say
from ..console import Console
from ..errors import UserError, first_line, problem
from ..model.load import LANGUAGE_MODEL, read_model_config
from ..verbs import merge as merging
from ..verbs.adapter_folder import Adapter
from ..verbs.adapter_kinds import HEADS
from ..verbs.load_adapter import base_config, empty_base, put_on
from . import ollama
from .adapter_file import require_plain, write_adapter_file
from .families import Family, family_of
from .model_file import require_computed, write_model_file
from .vocabulary import require_known


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        adapter: what is exported.
        form: a key of command.FORMS.
        output: file or folder, new.
        dtype: of a merged model's matrices, or auto.
        base: a model that Ollama has, for the adapter alone; None: the two merged.
    """

    adapter: Adapter
    form: str
    output: Path
    dtype: str
    base: str | None = None

    @property
    def is_merged(self) -> bool:
        return self.form != "gguf-adapter" and self.base is None

    @property
    def name(self) -> str:
        """What the adapter is called, without a place: its run, else its folder."""
        folder = self.adapter.folder.resolve()
        return folder.parent.name if folder.name == "adapter" and self.adapter.config else folder.name


def export(request: Request) -> int:
    """Writes; returns the exit code 0.

    Raises:
        UserError: the adapter has no such form, or the disk refuses; nothing is left behind.
    """
    if request.form == "safetensors":
        return merging.merge(merging.Request(request.adapter, request.output, request.dtype))
    transformers.logging.set_verbosity_error()
    console = Console()
    adapter, task = request.adapter, request.adapter.settings.get("task_type")
    if task in HEADS:
        raise UserError(problem("export.classifier", form=request.form, task=task))
    family = family_of(read_model_config(base_config(adapter), LANGUAGE_MODEL), adapter.base)
    if request.is_merged:
        require_computed(family)
        require_known(merging.tokenizer_of(adapter))
    else:
        require_plain(adapter)
        if (base := empty_base(base_config(adapter), LANGUAGE_MODEL)) is not None:
            put_on(
                base, adapter, empty=True
            )  # says which layers its settings ask for and its file lacks, or the reverse
    if request.form == "ollama":
        _write(request.output, lambda partial: _write_folder(request, family, console, partial))
    elif request.is_merged:
        _write(request.output, lambda partial: _write_merged(request, family, console, partial))
    else:
        _write(request.output, lambda partial: write_adapter_file(adapter, family, request.name, partial))
    _tell(request, console)
    return 0


def _write(output: Path, write: Callable[[Path], Any]) -> None:
    partial = output.with_name(f"{output.name}.{os.getpid()}.tmp")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        if output.exists():
            raise UserError(problem("merge.exists", folder=output))
        partial.rename(output)
    except OSError as error:
        raise UserError(problem("merge.cannot_write", folder=output, what=first_line(error))) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True) if partial.is_dir() else partial.unlink(missing_ok=True)


def _write_merged(request: Request, family: Family, console: Console, path: Path) -> Any:
    """Merges and writes one file; returns the tokenizer."""
    merged = merging.merged_model(request.adapter, "auto" if request.dtype == "q8_0" else request.dtype, console)
    dtype = str(merged.model.dtype).removeprefix("torch.") if request.dtype == "auto" else request.dtype
    config = merged.model.config.get_text_config()
    write_model_file(merged.model, merged.tokenizer, Family(family.arch, config, family.base), dtype, path)
    return merged.tokenizer


def _write_folder(request: Request, family: Family, console: Console, folder: Path) -> None:
    folder.mkdir()
    if request.base is None:
        tokenizer = _write_merged(request, family, console, folder / ollama.MODEL)
    else:
        write_adapter_file(request.adapter, family, request.name, folder / ollama.ADAPTER)
        tokenizer = merging.tokenizer_of(request.adapter)
    words = ollama.words_of(request.adapter, tokenizer)
    if words.template is None:
        console.warn(say("export.no_template" if request.base is None else "export.no_template_base"))
    (folder / ollama.MODELFILE).write_text(ollama.modelfile(words, request.base), encoding="utf-8")


def _tell(request: Request, console: Console) -> None:
    output = request.output
    size = (merging.folder_size(output) if output.is_dir() else output.stat().st_size) / GIB
    console.line(say("export.done", path=output, size=size))
    path = shlex.quote(str(output))
    if request.form == "ollama":
        file = shlex.quote(str(output / ollama.MODELFILE))
        console.line(say("export.use_ollama", name=shlex.quote(request.name.lower()), file=file))
    elif request.is_merged:
        console.line(say("export.use_merged", path=path))
    else:
        is_file = request.adapter.base.endswith(".gguf")
        told = "export.use_adapter_on" if is_file else "export.use_adapter"
        console.line(say(told, path=path, base=shlex.quote(request.adapter.base)))
