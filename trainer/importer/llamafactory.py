"""LLaMA-Factory's YAML or JSON -> ours: the flat form, and the form with `peft_config` of its version 1.

Defaults (LLaMA-Factory 0.9.5) are written out where they differ from ours: lora_alpha is twice lora_rank,
gradient checkpointing is on, TrainingArguments' defaults hold for the rest.
"""

from __future__ import annotations

from typing import Any

from ...instrument.messages import say
from .draft import Draft, Unreadable, flag, names, number, whole
from .left_out import is_off

SAME = {
    "model_name_or_path": "model.name_or_path",
    "model_revision": "model.revision",
    "lora_dropout": "lora.lora_dropout",
    "use_rslora": "lora.use_rslora",
    "per_device_train_batch_size": "training.per_device_train_batch_size",
    "per_device_eval_batch_size": "training.per_device_eval_batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation_steps",
    "learning_rate": "training.learning_rate",
    "num_train_epochs": "training.num_train_epochs",
    "max_steps": "training.max_steps",
    "weight_decay": "training.weight_decay",
    "max_grad_norm": "training.max_grad_norm",
    "adam_beta1": "training.adam_beta1",
    "adam_beta2": "training.adam_beta2",
    "adam_epsilon": "training.adam_epsilon",
    "warmup_steps": "training.warmup_steps",
    "warmup_ratio": "training.warmup_ratio",
    "output_dir": "training.output_dir",
    "logging_steps": "training.logging_steps",
    "logging_first_step": "training.logging_first_step",
    "save_strategy": "training.save_strategy",
    "save_steps": "training.save_steps",
    "save_total_limit": "training.save_total_limit",
    "load_best_model_at_end": "training.load_best_model_at_end",
    "seed": "training.seed",
    "data_seed": "training.data_seed",
    "group_by_length": "training.group_by_length",
    "hub_model_id": "training.hub_model_id",
    "push_to_hub": "training.push_to_hub",
    "run_name": "training.run_name",
    "packing": "data.packing",
    "train_on_prompt": "data.train_on_inputs",
    "max_samples": "data.limit",
    "early_stopping_steps": "training.early_stopping_patience",
}


def llamafactory(raw: dict[str, Any]) -> Draft:
    """The draft of one LLaMA-Factory configuration."""
    raw = _flat(raw) if isinstance(raw.get("peft_config"), dict) or "model_name_or_path" not in raw else raw
    draft = Draft("LLaMA-Factory", raw)
    _refusals(draft)
    draft.copy_all(SAME)
    draft.copy("data.cutoff_len", "cutoff_len", 2048)
    draft.take("model_max_length")
    draft.copy("lora.r", "lora_rank", 8)
    draft.copy("lora.lora_alpha", "lora_alpha", 2 * draft.values.get("lora.r", 8))
    target = draft.take("lora_target")
    if isinstance(target, str) and "," in target:
        target = names(target)
    draft.targets("all" if target is None else target, "lora_target", ("all", "all-linear"))
    draft.copy("lora.modules_to_save", "additional_target")
    _model(draft)
    draft.optimizer("optim", "adamw_torch")
    draft.schedule("lr_scheduler_type", "linear")
    if isinstance(kwargs := draft.take("lr_scheduler_kwargs"), dict) and kwargs:
        draft.put("training.lr_scheduler_kwargs", kwargs, "lr_scheduler_kwargs")
    draft.precision(draft.take("bf16") or draft.take("pure_bf16"), draft.take("fp16"))
    draft.take("pure_bf16")
    if not flag(draft.take("disable_gradient_checkpointing")):
        remark = say("import.their_default", tool=draft.tool)
        draft.put("training.gradient_checkpointing", True, remark=remark)
    draft.take("gradient_checkpointing", "resume_from_checkpoint", "report_to", "save_safetensors")
    _data(draft)
    _evaluation(draft)
    return draft.close()


def _flat(raw: dict[str, Any]) -> dict[str, Any]:
    """Version 1's keys under version 0's names; global_batch_size is the rows of one step."""
    flat: dict[str, Any] = dict(raw)
    given = flat.pop("peft_config", None)
    adapter: dict[str, Any] = {str(key): value for key, value in given.items()} if isinstance(given, dict) else {}
    quantization = flat.pop("quant_config", None)
    flat["finetuning_type"] = adapter.pop("name", None)
    own = {"r": "lora_rank", "target_modules": "lora_target", "modules_to_save": "additional_target"}
    flat |= {own.get(key, key): value for key, value in adapter.items()}
    if isinstance(quantization, dict):
        flat["quantization_method"] = quantization.get("name")
        flat["quantization_bit"] = quantization.get("quantization_bit")
    own = {"model": "model_name_or_path", "train_dataset": "dataset", "micro_batch_size": "per_device_train_batch_size"}
    for theirs, name in own.items():
        if theirs in flat:
            flat[name] = flat.pop(theirs)
    total, micro = flat.pop("global_batch_size", None), flat.get("per_device_train_batch_size", 1)
    flat.setdefault("per_device_train_batch_size", 1)
    if total is not None:
        try:
            flat["gradient_accumulation_steps"] = max(whole(total) // max(whole(micro), 1), 1)
        except Unreadable:
            flat["global_batch_size"] = total
    return flat


def _refusals(draft: Draft) -> None:
    kind, stage = draft.take("finetuning_type"), draft.take("stage")
    if kind not in (None, "lora"):
        draft.refuse("import.refused.no_lora", value=kind)
    if stage not in (None, "sft", "pt"):
        draft.refuse("import.refused.not_sft", value=stage)
    trains = draft.raw.get("do_train") is not False and not is_off(draft.raw.get("dataset"))
    if not trains or flag(draft.raw.get("do_predict")) or not is_off(draft.raw.get("export_dir")):
        draft.refuse("import.refused.no_training")
    method = draft.take("quantization_method")
    if method not in (None, "bnb", "bitsandbytes"):
        draft.refuse("import.refused.quantized", key=f"quantization_method: {method}")
    template = str(draft.raw.get("template"))
    pictures = [key for key in ("image_max_pixels", "video_max_pixels", "audio_sampling_rate") if draft.take(key)]
    if pictures or template.endswith("_vl") or "_vl_" in template:
        draft.refuse("import.refused.multimodal", key=pictures[0] if pictures else f"template: {template}")
    for key in ("pref_beta", "pref_loss", "kto_chosen_weight", "kto_rejected_weight"):
        draft.take(key)


def _model(draft: Draft) -> None:
    bits = draft.take("quantization_bit")
    kind, double = draft.take("quantization_type"), draft.take("double_quantization")
    if bits in (4, "4"):
        draft.put("quantization.load_in_4bit", True, "quantization_bit")
        draft.put("quantization.bnb_4bit_use_double_quant", double is None or flag(double), "double_quantization")
        draft.put("quantization.bnb_4bit_quant_type", kind if kind in ("nf4", "fp4") else None, "quantization_type")
    elif bits in (8, "8"):
        draft.put("quantization.load_in_8bit", True, "quantization_bit")
    elif bits is not None:
        draft.refuse("import.refused.quantized", key=f"quantization_bit: {bits}")
    if draft.take("flash_attn") in ("disabled", "off"):
        draft.put("model.attn_implementation", "eager", "flash_attn")


def _sets(value: object) -> list[str]:
    """The names of data sets: a list, or one text with commas; none where it is neither."""
    try:
        return names(value) if value is not None else []
    except Unreadable:
        return []


def _data(draft: Draft) -> None:
    if sets := _sets(draft.take("dataset")):
        draft.put("data.train", sets if len(sets) > 1 else sets[0], "dataset", say("import.dataset_info"))
    template = draft.take("template")
    if draft.raw.get("stage") == "pt":
        draft.put("data.format", "text", "stage")
    elif template in ("alpaca", "default_alpaca"):
        draft.put("data.format", "alpaca", "template")
    elif template is not None:
        draft.put("data.format", "auto", "template", say("import.own_template", name=template))
    if "data.limit" in draft.values:
        draft.remarks["data.limit"] = say("import.each_set")


def _evaluation(draft: Draft) -> None:
    size, sets = draft.take("val_size"), _sets(draft.take("eval_dataset"))
    steps, strategy = draft.take("eval_steps"), draft.take("eval_strategy", "evaluation_strategy")
    try:
        share = 0.0 if is_off(size) else number(size)
    except Unreadable:
        share = 0.0
    if sets:
        draft.put("data.eval", sets if len(sets) > 1 else sets[0], "eval_dataset", say("import.dataset_info"))
    elif 0 < share < 1:
        draft.put("data.eval_fraction", share, "val_size")
    elif share >= 1:
        return draft.leave("val_size", size, "harmless", say("import.why.rows_not_share"))
    else:
        draft.values.pop("training.load_best_model_at_end", None)
        draft.values.pop("training.early_stopping_patience", None)
        return None
    if strategy in ("steps", "epoch"):
        draft.put("training.eval_strategy", strategy, "eval_strategy")
    if strategy == "steps" and steps is not None:
        draft.copy("training.eval_steps", "eval_steps")
    return None
