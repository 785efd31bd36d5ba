"""Whose configuration a file is, by the keys it has."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...instrument.messages import say
from ..config.schema import TrainingSection, sections
from ..errors import UserError, problem
from .adapter import adapter
from .arguments import SFT_SIGNS, arguments
from .axolotl import axolotl
from .draft import Draft
from .left_out import weight
from .llamafactory import llamafactory
from .script import script
from .sources import SCRIPTS, read_source

Reader = Callable[[dict[str, Any]], Draft]
FACTORY_SIGNS = {"finetuning_type", "lora_rank", "lora_target", "quantization_bit", "cutoff_len", "stage", "template"}
FACTORY_MODELS = {"model_name_or_path", "model", "dataset"}
AXOLOTL_SIGNS = {
    "adapter", "datasets", "micro_batch_size", "sequence_len", "num_epochs", "lora_r", "pretraining_dataset",
    "dataset_prepared_path", "val_set_size", "sample_packing", "optimizer", "lr_scheduler",
}  # fmt: skip
TOOLS: dict[str, Reader] = {
    "axolotl": axolotl,
    "LLaMA-Factory": llamafactory,
    "PEFT": adapter,
    "TRL": arguments,
    "TrainingArguments": arguments,
}


def tool_of(raw: Mapping[str, Any]) -> str | None:
    """The tool whose keys these are, a key of TOOLS; None for ours and for what is nobody's."""
    keys = raw.keys()
    if any(isinstance(raw.get(name), dict) for name in sections()) and "peft_config" not in keys:
        return None
    if "log_history" in keys:  # trainer_state.json: the log of a run
        return None
    if isinstance(raw.get("peft_type"), str):
        return "PEFT"
    if "base_model" in keys and AXOLOTL_SIGNS & keys:
        return "axolotl"
    factory = isinstance(raw.get("peft_config"), dict) and "model" in keys
    if factory or "finetuning_type" in keys or (len(FACTORY_SIGNS & keys) > 1 and FACTORY_MODELS & keys):
        return "LLaMA-Factory"
    of_trainer = (TrainingSection.model_fields.keys() | {"evaluation_strategy"}) & keys
    if SFT_SIGNS & keys and (of_trainer or "use_peft" in keys):
        return "TRL"
    near = [key for key in keys if key not in of_trainer and weight(key) in ("harmless", "memory")]
    return "TrainingArguments" if len(of_trainer) + len(near) > 1 and of_trainer else None


def is_foreign_script(path: Path) -> bool:
    """Whether a file is a script or a notebook by its name."""
    return path.suffix in SCRIPTS


def read_foreign(path: Path) -> Draft:
    """The draft of another tool's file.

    Raises:
        UserError: it cannot be read, is ours already, or is nobody's that is known.
    """
    source = read_source(path)
    if isinstance(source, ast.Module):
        draft = script(source)
        if draft is None:
            raise UserError(problem("import.no_training_script", file=path))
        return draft
    tool = tool_of(source.given)
    if tool is None:
        ours = any(isinstance(source.given.get(name), dict) for name in sections())
        raise UserError(problem("import.ours" if ours else "import.unknown", file=path, quoted=shlex.quote(str(path))))
    draft = TOOLS[tool](source.given)
    for key, text in source.unknown.items():
        draft.leave(key, text, "unknown", say("import.why.not_literal"))
    return draft
