"""PEFT's adapter_config.json -> ours: the adapter, and the model it sits on; the rest of a run is not in it."""

from __future__ import annotations

from typing import Any

from .draft import Draft

SAME = {
    "base_model_name_or_path": "model.name_or_path",
    "revision": "model.revision",
    "r": "lora.r",
    "lora_alpha": "lora.lora_alpha",
    "lora_dropout": "lora.lora_dropout",
    "bias": "lora.bias",
    "modules_to_save": "lora.modules_to_save",
    "use_rslora": "lora.use_rslora",
}


def adapter(raw: dict[str, Any]) -> Draft:
    """The draft of an adapter_config.json."""
    draft = Draft("PEFT", raw)
    kind = draft.take("peft_type")
    if str(kind).upper().rpartition(".")[2] != "LORA":
        draft.refuse("import.refused.no_lora", value=kind)
    take_adapter(draft)
    return draft.close()


def take_adapter(draft: Draft) -> None:
    """Takes LoraConfig's keys out of a draft."""
    task = draft.take("task_type")
    if task is not None:
        draft.task(task, "task_type")
    draft.copy_all(SAME)
    draft.targets(draft.take("target_modules"), "target_modules")
