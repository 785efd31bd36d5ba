"""`lora-train merge RUN`: one plain transformers folder, W + s B A in every layer, that needs neither peft nor us.

A run on 4-bit weights is merged into the unquantized ones. Merging into dequantized 4-bit weights would keep exactly
what training saw but also its rounding errors, and other tools would quantize those once more.
"""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from ...instrument.constants import GIB
from ...instrument.messages import say
from ..config.schema import Config
from ..console import Console
from ..errors import UserError, first_line, problem
from ..loop.checkpoint import commit
from ..model.load import LANGUAGE_MODEL, MODEL_CLASSES, Head, cannot_load, load_tokenizer, resolve
from .adapter_folder import Adapter
from .ends import stop_on, trained_end
from .load_adapter import base_config, head_of, load_trained

TOKENIZER = "tokenizer_config.json"


@dataclass(frozen=True)
class Request:
    """What the command line asks for: `dtype` of the merged weights is auto, float16, bfloat16 or float32."""

    adapter: Adapter
    output: Path
    dtype: str


@dataclass(frozen=True)
class Merged:
    """One model where base and adapter were two; its tokenizer, and what it gives out."""

    model: PreTrainedModel
    tokenizer: Any
    head: Head


def merge(request: Request) -> int:
    """Merges and writes; returns the exit code 0.

    Raises:
        UserError: base or adapter cannot be loaded, the merged weights are not finite, or the folder cannot be
            written; nothing is left behind.
    """
    transformers.logging.set_verbosity_error()
    console = Console()
    merged = merged_model(request.adapter, request.dtype, console)
    write_whole(merged.model, merged.tokenizer, request.output)
    kind = MODEL_CLASSES[merged.head.task].__name__
    console.line(say("merge.done", folder=request.output, size=folder_size(request.output) / GIB, kind=kind))
    return 0


def merged_model(adapter: Adapter, asked: str, console: Console) -> Merged:
    """Merges, on the CPU.

    Args:
        asked: the dtype of the merged weights, or auto.
        console: is told what is merged into what.

    Raises:
        UserError: base or adapter cannot be loaded, or the merged weights are not finite.
    """
    config = base_config(adapter)
    own_dtype = unquantized_dtype(config)
    dtype = merged_dtype(config if adapter.config else None, own_dtype, asked)
    console.line(say("merge.what", adapter=adapter.folder, base=adapter.base, dtype=dtype))
    if config.quantization.load_in_4bit:
        console.warn(say("merge.four_bit", dtype=dtype))
    # on the CPU: peft adds one layer at a time, and no GPU need hold the model
    storage = {"quantization.load_in_4bit": False, "training.fp16": False, "training.bf16": False, "model.dtype": dtype}
    model = load_trained(adapter, storage, torch.device("cpu"), merging=True)
    untie(model)
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except ValueError as error:  # safe_merge found a value that is not finite, in fp16 perhaps an overflow
        raise UserError(problem("merge.not_finite", folder=shlex.quote(str(adapter.folder)), dtype=dtype)) from error
    assert isinstance(merged, PreTrainedModel)
    declare_untied(merged)
    tokenizer, head = tokenizer_of(adapter), head_of(adapter)
    if head == LANGUAGE_MODEL:
        stop_on(merged, trained_end(adapter.config, tokenizer))
    return Merged(merged, tokenizer, head)


def tokenizer_of(adapter: Adapter) -> Any:
    """The tokenizer that lies with the adapter, else the base model's."""
    return own_tokenizer(adapter) or load_tokenizer(base_config(adapter))


def untie(model: PeftModel) -> None:
    """Gives an output layer that shares the embedding table's values its own copy, if LoRA is on one of the two.

    Merged into the one, the update would change the other as well, which base and adapter do not.
    """
    base: Any = model.get_base_model()
    table, head = base.get_input_embeddings(), base.get_output_embeddings()
    if head is None or not any(isinstance(module, LoraLayer) for module in (table, head)):
        return
    frozen: Any = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
    looked_up: Any = table.get_base_layer() if isinstance(table, BaseTunerLayer) else table
    if frozen.weight is looked_up.weight:
        frozen.weight = torch.nn.Parameter(frozen.weight.detach().clone(), requires_grad=False)


def declare_untied(model: PreTrainedModel) -> None:
    """Says in a model's config that embedding table and output layer differ, where they do by now.

    Whoever loads the folder would else take the one for the other, and what was trained would be lost.
    """
    table: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    text = model.config.get_text_config()
    if head is None or not getattr(text, "tie_word_embeddings", False):
        return
    if not torch.equal(head.weight, table.weight):
        model.config.tie_word_embeddings = text.tie_word_embeddings = False
        model.all_tied_weights_keys = {}


def own_tokenizer(adapter: Adapter):
    """The tokenizer that lies with the adapter; None where there is none. Code beside it does not run.

    Raises:
        UserError: it is there and cannot be loaded.
    """
    if not (adapter.folder / TOKENIZER).is_file():
        return None
    try:
        return AutoTokenizer.from_pretrained(adapter.folder, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exceptions
        what = first_line(error, typed=True)
        raise UserError(problem("adapter.tokenizer", folder=adapter.folder, what=what)) from error


def unquantized_dtype(config: Config) -> str:
    """The dtype the base model is published in.

    Raises:
        UserError: it is published quantized, so that there are no weights to merge into.
    """
    name, model = config.model.name_or_path, config.model
    try:
        base = AutoConfig.from_pretrained(
            resolve(name), revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise UserError(cannot_load(name, error)) from error
    if getattr(base, "quantization_config", None) is not None:
        raise UserError(problem("merge.quantized_base", name=name))
    return str(base.dtype or torch.float32).removeprefix("torch.")


def merged_dtype(config: Config | None, own_dtype: str, asked: str) -> str:
    """The dtype to merge in. auto: what the run stored its weights in, 16 bit for a run on 4-bit weights.

    Args:
        config: of the run; None for an adapter made elsewhere, whose base keeps its own dtype.
    """
    if asked != "auto":
        return asked
    if config is None:
        return own_dtype
    four_bit = config.quantization.load_in_4bit and config.storage_dtype == "float32"
    return "float16" if four_bit else config.storage_dtype


def write_whole(model: PreTrainedModel, tokenizer, output: Path) -> None:
    """Writes the folder under a temporary name beside its final one, syncs and renames it.

    Raises:
        UserError: the disk refused, or the folder has appeared meanwhile; nothing is left behind.
    """
    partial = output.with_name(f"{output.name}.{os.getpid()}.tmp")
    try:
        partial.mkdir(parents=True)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if output.exists():
            raise UserError(problem("merge.exists", folder=output))
        commit(partial, output)
    except (OSError, SafetensorError) as error:
        what = first_line(error)
        raise UserError(problem("merge.cannot_write", folder=output, what=what)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def folder_size(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
