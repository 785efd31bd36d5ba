"""TrainingArguments, SFTConfig and the flags of `trl sft` -> ours; most keys have the same names.

What is trained on: plain TrainingArguments do not say. SFTConfig trains on whole rows unless assistant_only_loss or
completion_only_loss is true; that is `data.train_on_inputs`, the other way round.
"""

from __future__ import annotations

from typing import Any

from ...instrument.messages import say
from ..config.schema import TrainingSection
from .draft import Draft, flag

# Ours, or with a rule of their own below.
_OWN = {
    "optim", "lr_scheduler_type", "fp16", "bf16", "eval_strategy", "eval_steps", "resume_from_checkpoint", "report_to",
    "save_safetensors", "max_hours", "on_write_error", "early_stopping_patience", "load_best_model_at_end",
    "save_strategy", "metric_for_best_model",
}  # fmt: skip
SAME = {name: f"training.{name}" for name in TrainingSection.model_fields if name not in _OWN}
SFT = {
    "packing": "data.packing",
    "model_name_or_path": "model.name_or_path",
    "model_revision": "model.revision",
    "load_in_4bit": "quantization.load_in_4bit",
    "load_in_8bit": "quantization.load_in_8bit",
    "use_bnb_nested_quant": "quantization.bnb_4bit_use_double_quant",
    "bnb_4bit_quant_type": "quantization.bnb_4bit_quant_type",
    "lora_dropout": "lora.lora_dropout",
    "lora_modules_to_save": "lora.modules_to_save",
    "use_rslora": "lora.use_rslora",
}
# Keys that only SFTConfig or trl's command line has.
SFT_SIGNS = {
    "max_seq_length", "max_length", "packing", "dataset_text_field", "assistant_only_loss", "completion_only_loss",
    "dataset_name", "use_peft", "eos_token", "dataset_num_proc", "dataset_kwargs", "chat_template_path",
}  # fmt: skip


def arguments(raw: dict[str, Any], tool: str = "TrainingArguments") -> Draft:
    """The draft of a dictionary of TrainingArguments or of TRL's flags."""
    draft = Draft("TRL" if SFT_SIGNS & raw.keys() and tool == "TrainingArguments" else tool, raw)
    take_arguments(draft)
    if draft.tool == "TRL":
        take_defaults(draft)
    if flag(draft.take("use_peft")) or "lora_r" in raw:
        draft.copy("lora.r", "lora_r", 16)
        draft.copy("lora.lora_alpha", "lora_alpha", 32)
        draft.values.setdefault("lora.lora_dropout", 0.05)
        draft.targets(draft.take("lora_target_modules"), "lora_target_modules")
    else:
        draft.remarks["lora.r"] = say("import.no_lora_here")
        draft.put("lora.r", 8)
    return draft.close()


def take_arguments(draft: Draft) -> None:
    """Takes the keys of TrainingArguments and SFTConfig out of a draft."""
    raw = draft.raw
    draft.copy_all(SAME | SFT)
    draft.copy("training.gradient_checkpointing", "activation_checkpointing")  # its name from transformers 5 on
    draft.optimizer("optim", "adamw_torch_fused")
    draft.schedule("lr_scheduler_type", "linear")
    draft.precision(draft.take("bf16"), draft.take("fp16"))
    dtype = draft.take("dtype", "torch_dtype")
    if isinstance(dtype, str):
        draft.put("model.dtype", dtype.removeprefix("torch."), "torch_dtype")
    if draft.take("attn_implementation") == "eager":
        draft.put("model.attn_implementation", "eager", "attn_implementation")
    _data(draft)
    _evaluation(draft)
    draft.take("resume_from_checkpoint", "report_to", "save_safetensors", "padding_free")
    if (task := draft.take("task_type")) is not None and draft.tool != "TRL":
        draft.task(task, "task_type")
    if raw.get("do_train") is False:
        draft.refuse("import.refused.no_training")


def take_defaults(draft: Draft) -> None:
    """What SFTConfig sets otherwise than TrainingArguments (TRL 1.x), where the file is silent."""
    raw, remark = draft.raw, say("import.their_default", tool="TRL")
    if raw.get("learning_rate") is None:
        draft.put("training.learning_rate", 2e-5, remark=remark)
    if raw.get("gradient_checkpointing") is None and raw.get("activation_checkpointing") is None:
        draft.put("training.gradient_checkpointing", True, remark=remark)
    if raw.get("bf16") is None and "training.fp16" not in draft.values:
        draft.put("training.bf16", True, remark=remark)


def _data(draft: Draft) -> None:
    raw = draft.raw
    theirs = "max_seq_length" if raw.get("max_seq_length") is not None else "max_length"
    draft.take("max_seq_length", "max_length")
    sft = bool(SFT_SIGNS & raw.keys()) or draft.tool == "TRL"
    draft.copy("data.cutoff_len", theirs, 1024 if sft else None)
    if isinstance(name := draft.take("dataset_name"), str):
        draft.put("data.train", name, "dataset_name")
    draft.take("dataset_train_split", "dataset_test_split", "dataset_config", "dataset_config_name")
    if draft.take("dataset_text_field") is not None and raw["dataset_text_field"] != "text":
        field = raw["dataset_text_field"]
        draft.put("data.prompt_template", "{" + str(field) + "}", "dataset_text_field")
    only, completion = draft.take("assistant_only_loss"), draft.take("completion_only_loss")
    if sft:
        answers = flag(only) or flag(completion)
        key = "assistant_only_loss" if only is not None else "completion_only_loss" if completion is not None else ""
        draft.put(
            "data.train_on_inputs", not answers, key, say("import.answers_only" if answers else "import.whole_rows")
        )
    if isinstance(path := draft.take("chat_template_path"), str):
        draft.put("data.chat_template", path, "chat_template_path")


def _evaluation(draft: Draft) -> None:
    """There are rows to evaluate on only where the reader has named some, so evaluation is told, not asked for."""
    strategy = draft.take("eval_strategy", "evaluation_strategy")
    draft.take("eval_steps", "do_eval", "metric_for_best_model")
    save = draft.take("save_strategy")
    if save == "best":
        save = "steps"
    draft.put("training.save_strategy", save if save in ("no", "steps", "epoch") else None, "save_strategy")
    best = draft.take("load_best_model_at_end")
    if strategy in ("steps", "epoch") or flag(best):
        draft.leave("eval_strategy", strategy, "harmless", say("import.why.evaluation"))
