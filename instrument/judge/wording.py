"""How a finding is said to people who use another trainer, and of what is no language model. Imports no torch.

Sentences of the catalogue name our own keys, `training.learning_rate`; what they are called elsewhere stands here.
"""

from __future__ import annotations

import re

OURS = "lora-train"
PYTHON = ("transformers", "trl", "unsloth")
"""Trainers whose settings are Python arguments, key=value; those of the others are YAML, `key: value`."""
COLUMNS = (*PYTHON, "axolotl", "llamafactory")
TRAINERS = (OURS, *COLUMNS)
"""Programs whose logs are known."""

# ours: transformers, TRL, Unsloth, axolotl, LLaMA-Factory. Sources: TrainingArguments, LoraConfig, TRL's SFTConfig,
# Unsloth's FastLanguageModel, axolotl's config reference, LLaMA-Factory's arguments.
_SAME = (
    "learning_rate warmup_steps max_steps gradient_accumulation_steps eval_steps save_steps logging_steps "
    "max_grad_norm load_best_model_at_end weight_decay"
)
KEYS: dict[str, tuple[str, ...]] = {
    **{f"training.{key}": (key, key, key, key, key) for key in _SAME.split()},
    "training.num_train_epochs": ("num_train_epochs",) * 3 + ("num_epochs", "num_train_epochs"),
    "training.lr_scheduler_type": ("lr_scheduler_type",) * 3 + ("lr_scheduler", "lr_scheduler_type"),
    "training.per_device_train_batch_size": ("per_device_train_batch_size",) * 3
    + ("micro_batch_size", "per_device_train_batch_size"),
    "training.per_device_eval_batch_size": ("per_device_eval_batch_size",) * 3
    + ("eval_batch_size", "per_device_eval_batch_size"),
    "training.group_by_length": ("group_by_length",) * 5,
    "data.eval": ("eval_dataset",) * 3 + ("test_datasets", "eval_dataset"),
    "data.eval_limit": ("eval_dataset.select(range(100))",) * 3 + ("val_set_size", "val_size"),
    "data.eval_fraction=0.02": ("dataset.train_test_split(0.02)",) * 3 + ("val_set_size: 0.02", "val_size: 0.02"),
    "data.cutoff_len": ("max_length", "max_length", "max_seq_length", "sequence_len", "cutoff_len"),
    "data.train_on_inputs=false": (
        "labels=-100", "assistant_only_loss=True", "train_on_responses_only", "train_on_inputs: false",
        "train_on_prompt: false",
    ),
    "lora.r": ("r", "r", "r", "lora_r", "lora_rank"),
    "lora.target_modules": ("target_modules",) * 3 + ("lora_target_modules", "lora_target"),
    "lora.lora_dropout": ("lora_dropout",) * 5,
    "precision.loss_scale=dynamic": ("fp16=True",) * 3 + ("fp16: true", "fp16: true"),
    "--resume auto": ("resume_from_checkpoint=True",) * 3
    + ("auto_resume_from_checkpoints: true", "resume_from_checkpoint: true"),
}  # fmt: skip

_KEY = re.compile(
    "|".join(re.escape(key) for key in sorted(KEYS, key=len, reverse=True)) + r"(?!\w|\.\w)", re.ASCII
)  # a particle of Korean follows at once
_SETTING = re.compile(r"\b([a-z_]+)=(?=[\w.\[-])")


def keys_of(trainer: str, text: str) -> str:
    """`text` with our keys as `trainer` calls them; a value behind a key is written as its settings are."""
    if trainer == OURS:
        return text
    at = COLUMNS.index(trainer)
    found = _KEY.sub(lambda match: KEYS[match.group()][at], text)
    return found if trainer in PYTHON else _SETTING.sub(r"\1: ", found)


_CLASSES = {"loss": "explain.what.loss_classes", "eval_loss": "explain.what.eval_loss_rows"}
_PAIRS = {"loss": "explain.what.loss_pairs", "eval_loss": "explain.what.eval_loss_rows"}
DESCRIBED: dict[str, dict[str, str]] = {
    "seq_cls": _CLASSES,
    "token_cls": {"loss": "explain.what.loss_labels", "eval_loss": "explain.what.eval_loss_rows"},
    "regression": {"loss": "explain.what.loss_regression", "eval_loss": "explain.what.eval_loss_rows"},
    "preference": _PAIRS,
    "reward": _PAIRS,
    "ppo": {"loss": "explain.what.loss_ppo", "eval_loss": "explain.what.eval_loss_rows"},
    "other": {"loss": "explain.what.loss_other", "eval_loss": "explain.what.eval_loss_rows"},
    "grpo": {"loss": "explain.what.loss_grpo", "eval_loss": "explain.what.eval_loss_rows"},
}
"""Sentence by task and topic, where it is another than that of a language model."""


_STEP = {"en": (re.compile(r"\b(step|steps) (?=[\d,]+)"), "line "), "ko": (re.compile(r"(?<=\d)스텝"), "번째 줄")}


def lines_of(text: str, lang: str) -> str:
    """`text` about a log that does not number its steps: what is counted there are its lines."""
    pattern, word = _STEP[lang]
    return pattern.sub(word, text)


TROUBLES = {
    "forward_overflow": "trouble.forward_overflow",
    "backward_overflow": "trouble.backward_overflow",
    "scale_collapse": "trouble.scale_collapse",
    "scale_underflow": "trouble.scale_underflow",
    "bad_weight": "trouble.bad_weight",
    "dead_adapter": "trouble.dead_adapter",
    "no_supervised_tokens": "trouble.no_supervised_tokens",
    "divergence": "trouble.divergence",
    "not_reproduced": "trouble.not_reproduced",
}
"""What went wrong with a step, as a part of a sentence, by the kinds of detect.py."""
OTHER_TROUBLE = "trouble.other"
