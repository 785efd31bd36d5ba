"""axolotl's YAML -> ours. Its defaults (axolotl 0.19) are written out where they differ from ours.

saves_per_epoch and evals_per_epoch become a share of all steps, 1 / (per epoch * epochs), as axolotl itself counts.
"""

from __future__ import annotations

from typing import Any

from ...instrument.messages import say
from ..config.names import is_path
from .draft import Draft, Unreadable, flag, number, whole
from .left_out import is_off

SAME = {
    "base_model": "model.name_or_path",
    "revision_of_model": "model.revision",
    "torch_dtype": "model.dtype",
    "lora_r": "lora.r",
    "lora_alpha": "lora.lora_alpha",
    "lora_dropout": "lora.lora_dropout",
    "lora_modules_to_save": "lora.modules_to_save",
    "peft_use_rslora": "lora.use_rslora",
    "max_steps": "training.max_steps",
    "learning_rate": "training.learning_rate",
    "weight_decay": "training.weight_decay",
    "max_grad_norm": "training.max_grad_norm",
    "adam_beta1": "training.adam_beta1",
    "adam_beta2": "training.adam_beta2",
    "group_by_length": "training.group_by_length",
    "logging_steps": "training.logging_steps",
    "save_total_limit": "training.save_total_limit",
    "early_stopping_patience": "training.early_stopping_patience",
    "load_best_model_at_end": "training.load_best_model_at_end",
    "greater_is_better": "training.greater_is_better",
    "metric_for_best_model": "training.metric_for_best_model",
    "hub_model_id": "training.hub_model_id",
    "sample_packing": "data.packing",
    "chat_template_jinja": "data.chat_template",
}
DEFAULTS = {
    "sequence_len": ("data.cutoff_len", 512),
    "micro_batch_size": ("training.per_device_train_batch_size", 1),
    "num_epochs": ("training.num_train_epochs", 1.0),
    "output_dir": ("training.output_dir", "./model-out"),
    "seed": ("training.seed", 42),
}


def axolotl(raw: dict[str, Any]) -> Draft:
    """The draft of one axolotl configuration."""
    draft = Draft("axolotl", raw)
    _refusals(draft)
    draft.copy_all(SAME)
    for theirs, (ours, default) in DEFAULTS.items():
        draft.copy(ours, theirs, default)
    draft.copy("training.adam_epsilon", "adam_epsilon" if raw.get("adam_epsilon") is not None else "adam_eps")
    draft.take("save_safetensors")
    _model(draft)
    _targets(draft)
    _batch(draft)
    draft.optimizer("optimizer", "adamw_torch_fused")
    _schedule(draft)
    draft.precision(draft.take("bf16", "bfloat16"), draft.take("fp16", "float16"))
    draft.take("float32")
    if draft.take("gradient_checkpointing") not in (None, False):
        draft.put("training.gradient_checkpointing", True, "gradient_checkpointing")
    _data(draft)
    _evaluation(draft)
    _saving(draft)
    return draft.close()


def _refusals(draft: Draft) -> None:
    adapter = draft.take("adapter")
    if adapter not in ("lora", "qlora"):
        draft.refuse("import.refused.no_lora", value=adapter)
    if not is_off(draft.take("rl")):
        draft.refuse("import.refused.not_sft", value=draft.raw["rl"])
    pairs = [key for key in ("reward_model", "process_reward_model") if not is_off(draft.take(key))]
    for key in pairs:
        draft.refuse("import.refused.not_sft", value=key)
    kind = str(draft.raw.get("model_type"))
    if not pairs and "Classification" in kind:
        draft.task(draft.take("model_type"), "model_type")
    elif not pairs and not is_off(draft.take("num_labels")):
        draft.refuse("import.refused.not_sft", value="num_labels")
    draft.labels()
    datasets = draft.raw.get("datasets")
    rows = datasets if isinstance(datasets, list) else []
    if not is_off(draft.take("processor_type")) or any("image" in str(_of(row, "type")) for row in rows):
        draft.refuse("import.refused.multimodal", key="processor_type")
    if flag(draft.take("gptq")):
        draft.refuse("import.refused.quantized", key="gptq")
    for key in ("rl_beta", "trl", "vllm", "ebft", "orpo_alpha", "simpo_gamma", "cpo_alpha", "kto_desirable_weight"):
        draft.take(key)


def _model(draft: Draft) -> None:
    four, eight = draft.take("load_in_4bit"), draft.take("load_in_8bit")
    if flag(four) or (four is None and draft.raw.get("adapter") == "qlora"):
        kwargs = draft.take("bnb_config_kwargs")
        extra = kwargs if isinstance(kwargs, dict) else {}
        draft.put("quantization.load_in_4bit", True, "load_in_4bit" if four is not None else "adapter")
        double = extra.get("bnb_4bit_use_double_quant", True)
        draft.put("quantization.bnb_4bit_use_double_quant", flag(double), remark=say("import.always", tool="axolotl"))
    elif flag(eight):
        draft.put("quantization.load_in_8bit", True, "load_in_8bit")
    draft.take("bnb_config_kwargs")
    attention = draft.take("attn_implementation")
    eager = attention == "eager" or flag(draft.take("eager_attention"))
    draft.take("flash_attention")
    draft.put("model.attn_implementation", "eager" if eager else None, "attn_implementation")
    if attention is not None and attention not in ("eager", "sdpa"):
        draft.leave("attn_implementation", attention, "harmless")
    tokens = draft.take("special_tokens")
    changed = {key: value for key, value in tokens.items() if key != "pad_token"} if isinstance(tokens, dict) else {}
    if any(not is_off(value) for value in changed.values()):
        draft.leave("special_tokens", changed, "tokens")


def _targets(draft: Draft) -> None:
    linear, listed = draft.take("lora_target_linear"), draft.take("lora_target_modules")
    if flag(linear):
        draft.put("lora.target_modules", "all-linear", "lora_target_linear")
    elif is_off(listed) and not is_off(draft.raw.get("lora_target_parameters")):
        draft.refuse("import.refused.only_parameters", key="lora_target_parameters")
    else:
        draft.targets(listed, "lora_target_modules")


def _batch(draft: Draft) -> None:
    """batch_size, the old key, is the rows of one step: it gives the accumulation where none is named."""
    draft.copy("training.gradient_accumulation_steps", "gradient_accumulation_steps")
    total = draft.take("batch_size")
    try:
        if "training.gradient_accumulation_steps" not in draft.values and total is not None:
            micro = draft.values.get("training.per_device_train_batch_size", 1)
            draft.put("training.gradient_accumulation_steps", max(whole(total) // max(micro, 1), 1), "batch_size")
    except Unreadable:
        draft.leave("batch_size", total, "unknown", say("import.why.unreadable"))
    evaluated = draft.values.get("training.per_device_train_batch_size", 1)
    draft.copy("training.per_device_eval_batch_size", "eval_batch_size", evaluated)


def _schedule(draft: Draft) -> None:
    draft.schedule("lr_scheduler", "cosine")
    if isinstance(kwargs := draft.take("lr_scheduler_kwargs"), dict) and kwargs:
        draft.put("training.lr_scheduler_kwargs", kwargs, "lr_scheduler_kwargs")
    if (ratio := draft.take("cosine_min_lr_ratio")) and isinstance(ratio, float):
        draft.put("training.lr_scheduler_type", "cosine_with_min_lr", "cosine_min_lr_ratio")
        draft.put("training.lr_scheduler_kwargs", {"min_lr_rate": ratio}, "cosine_min_lr_ratio")
    if draft.raw.get("warmup_steps") is not None:
        draft.copy("training.warmup_steps", "warmup_steps")
        draft.take("warmup_ratio")
    else:
        draft.take("warmup_steps")
        draft.copy("training.warmup_ratio", "warmup_ratio", 0.03)


def _data(draft: Draft) -> None:
    draft.copy("data.train_on_inputs", "train_on_inputs")
    sets = draft.take("datasets")
    if is_off(sets):
        sets = draft.take("pretraining_dataset")
    sets = [sets] if isinstance(sets, (dict, str)) else sets if isinstance(sets, list) else []
    sets = [row if isinstance(row, dict) else {"path": row} for row in sets]
    if not sets:
        return
    first = sets[0]
    alike = [row for row in sets if row.get("type") == first.get("type")]
    files = [file for row in alike for file in _files(row)]
    # files of one kind can stand in a list, a hub id stands alone
    together = len(alike) == len(sets) and all(map(is_path, files))
    if files:
        draft.put("data.train", files if together and len(files) > 1 else files[0], "datasets")
    if len(sets) > 1 and not together:
        rest = ", ".join(str(row.get("path")) for row in sets[1:])
        draft.leave("datasets", rest, "rows", say("import.why.more_data"))
    _format(draft, first)


def _files(row: dict) -> list[str]:
    """Where the rows of one data set are: its files, or its path."""
    files = row.get("data_files")
    listed = [files] if isinstance(files, str) else files if isinstance(files, list) else []
    return [one for one in listed if isinstance(one, str)] or [one for one in [row.get("path")] if isinstance(one, str)]


def _format(draft: Draft, row: dict) -> None:
    """The kind of rows; a prompt of axolotl's own has no name here."""
    kind = row.get("type")
    if kind is None or kind == "alpaca":
        draft.put("data.format", "alpaca" if kind else None, "datasets.type")
    elif kind in ("completion", "pretrain"):
        draft.put("data.format", "text", "datasets.type")
    elif isinstance(kind, str) and kind.partition(".")[0] in ("chat_template", "sharegpt"):
        sharegpt = kind.startswith("sharegpt") or row.get("field_messages") == "conversations"
        draft.put("data.format", "sharegpt" if sharegpt else "messages", "datasets.type")
    else:
        draft.leave("datasets.type", kind, "template", say("import.why.prompt_style"))
    template = draft.take("chat_template")
    if template not in (None, "tokenizer_default") and draft.values.get("data.format") in ("messages", "sharegpt"):
        draft.remarks["data.format"] = say("import.own_template", name=template)
    for key in ("roles_to_train", "train_on_eos", "message_field_training", "split_thinking", "drop_system_message"):
        if not is_off(row.get(key)):
            draft.leave(f"datasets.{key}", row[key], "rows")


def _of(row: Any, key: str) -> Any:
    return row.get(key) if isinstance(row, dict) else None


def _per_epoch(draft: Draft, key: str) -> float | None:
    """Share of all steps between two, as axolotl counts it; None where the key asks for nothing."""
    value = draft.take(key)
    try:
        if is_off(value) or (times := number(value)) <= 0:
            return None
        return 1 / (times * draft.values.get("training.num_train_epochs", 1.0))
    except (Unreadable, ZeroDivisionError):
        return None


def _evaluation(draft: Draft) -> None:
    size, other = draft.take("val_set_size"), draft.take("test_datasets")
    share = None
    if isinstance(other, list) and other and isinstance(_of(other[0], "path"), str):
        draft.put("data.eval", other[0]["path"], "test_datasets")
        share = 1.0
    elif not is_off(size):
        try:
            share = number(size)
        except Unreadable:
            draft.leave("val_set_size", size, "harmless", say("import.why.unreadable"))
        if share is not None and 0 < share < 1:
            draft.put("data.eval_fraction", share, "val_set_size")
        elif share is not None:
            draft.leave("val_set_size", size, "harmless", say("import.why.rows_not_share"))
            share = None
    per_epoch = _per_epoch(draft, "evals_per_epoch")
    steps, strategy = draft.take("eval_steps"), draft.take("eval_strategy")
    if share is None:
        draft.take("early_stopping_patience", "load_best_model_at_end")
        for key in ("early_stopping_patience", "load_best_model_at_end"):
            draft.values.pop(f"training.{key}", None)
        return
    if per_epoch is not None and per_epoch < 1:
        draft.put("training.eval_strategy", "steps", "evals_per_epoch")
        draft.put("training.eval_steps", per_epoch, "evals_per_epoch")
    elif steps is not None and not is_off(steps):
        draft.put("training.eval_strategy", "steps", "eval_steps")
        draft.copy("training.eval_steps", "eval_steps")
    elif strategy != "no":
        draft.put("training.eval_strategy", "epoch", "evals_per_epoch" if per_epoch else "val_set_size")


def _saving(draft: Draft) -> None:
    share = _per_epoch(draft, "saves_per_epoch")
    strategy = draft.take("save_strategy")
    if not is_off(draft.raw.get("save_steps")):
        draft.copy("training.save_steps", "save_steps")
    elif share is not None and share < 1:
        draft.put("training.save_steps", share, "saves_per_epoch")
    else:
        draft.put("training.save_strategy", strategy if strategy in ("no", "epoch", "best") else "epoch")
    draft.take("save_steps")
