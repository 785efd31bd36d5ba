"""What a public configuration says, read plainly, key by key: nothing here is shared with trainer/importer.

A fact is what decides a run: rank, alpha, targets, rate, batch (rows of one step and process), steps, schedule,
warmup, length, precision, mask (what is trained on: "answers" or "all"). A key that is not there has the default that
its trainer gives it: axolotl 0.19.0, LLaMA-Factory 0.9.5.
"""

from __future__ import annotations

from typing import Any

Keys = dict[str, Any]
SCHEDULES = {"cosine", "linear", "constant", "constant_with_warmup"}


def is_lora(keys: Keys) -> bool:
    """Whether a file configures a LoRA adapter of one of the two."""
    nested = keys.get("peft_config")
    return (
        keys.get("adapter") in ("lora", "qlora")
        or keys.get("finetuning_type") == "lora"
        or (isinstance(nested, dict) and nested.get("name") == "lora")
    )


def kind(keys: Keys) -> str:
    """What it trains: "sft" is supervised fine-tuning of a causal language model on text."""
    if "base_model" in keys:
        return _axolotl_kind(keys)
    if keys.get("stage") in ("dpo", "kto", "ppo", "rm"):
        return "preferences"
    if keys.get("stage") == "pt":
        return "pretraining"
    if "image_max_pixels" in keys or "vl" in str(keys.get("template")).split("_"):
        return "pictures"
    return "sft" if ("dataset" in keys and "do_train" in keys) or "train_dataset" in keys else "no training"


def _axolotl_kind(keys: Keys) -> str:
    if keys.get("rl"):
        return "preferences"
    if keys.get("processor_type"):
        return "pictures"
    return "sft"


def facts(keys: Keys) -> Keys:
    """The facts of a configuration."""
    if "base_model" in keys:
        return _axolotl(keys)
    return _factory_1(keys) if "peft_config" in keys else _factory_0(keys)


def _axolotl(keys: Keys) -> Keys:
    micro = keys.get("micro_batch_size") or 1
    accumulation = keys.get("gradient_accumulation_steps")
    if accumulation is None:
        accumulation = keys["batch_size"] // micro if keys.get("batch_size") else 1
    targets = keys.get("lora_target_modules")
    if keys.get("lora_target_linear"):
        targets = "all-linear"
    warmup = ["ratio", 0.03] if keys.get("warmup_ratio") is None else ["ratio", float(keys["warmup_ratio"])]
    if keys.get("warmup_steps") is not None:
        warmup = ["steps", keys["warmup_steps"]]
    kinds = {row.get("type") for row in keys["datasets"]}
    return {
        "rank": keys["lora_r"],
        "alpha": float(keys["lora_alpha"]),
        "targets": sorted(targets) if isinstance(targets, list) else targets,
        "rate": float(keys["learning_rate"]),
        "batch": micro * accumulation,
        "steps": _steps(keys, "num_epochs", 1),
        "schedule": keys.get("lr_scheduler") or "cosine",
        "warmup": warmup,
        "length": keys.get("sequence_len") or 512,
        "precision": _precision(keys.get("bf16") or keys.get("bfloat16"), keys.get("fp16") or keys.get("float16")),
        "mask": "all" if keys.get("train_on_inputs") or kinds & {"completion", "pretrain"} else "answers",
    }


def _factory_0(keys: Keys) -> Keys:
    rank = keys.get("lora_rank", 8)
    warmup = ["steps", keys["warmup_steps"]] if keys.get("warmup_steps") else ["ratio", keys.get("warmup_ratio", 0.0)]
    return {
        "rank": rank,
        "alpha": float(keys.get("lora_alpha", 2 * rank)),
        "targets": _factory_targets(keys.get("lora_target", "all")),
        "rate": float(keys.get("learning_rate", 5e-5)),
        "batch": keys.get("per_device_train_batch_size", 8) * keys.get("gradient_accumulation_steps", 1),
        "steps": _steps(keys, "num_train_epochs", 3),
        "schedule": keys.get("lr_scheduler_type", "linear"),
        "warmup": warmup,
        "length": keys.get("cutoff_len", 2048),
        "precision": _precision(keys.get("bf16"), keys.get("fp16")),
        "mask": "all" if keys.get("train_on_prompt") or keys.get("stage") == "pt" else "answers",
    }


def _factory_1(keys: Keys) -> Keys:
    adapter, micro = keys["peft_config"], keys.get("micro_batch_size", 1)
    return {
        "rank": adapter["r"],
        "alpha": float(adapter["lora_alpha"]),
        "targets": _factory_targets(adapter["target_modules"]),
        "rate": float(keys["learning_rate"]),
        "batch": keys.get("global_batch_size", micro),
        "steps": _steps(keys, "num_train_epochs", 3),
        "schedule": "linear",
        "warmup": ["ratio", 0.0],
        "length": keys["cutoff_len"],
        "precision": _precision(keys.get("bf16"), keys.get("fp16")),
        "mask": "answers",
    }


def _factory_targets(value: str | list[str]) -> str | list[str]:
    if value == "all":
        return "all-linear"
    return sorted(name.strip() for name in (value.split(",") if isinstance(value, str) else value))


def _steps(keys: Keys, epochs: str, default: float) -> list:
    steps = keys.get("max_steps")
    return ["steps", steps] if steps and steps > 0 else ["epochs", float(keys.get(epochs) or default)]


def _precision(bf16: Any, fp16: Any) -> str:
    return "bf16" if bf16 in (True, "auto", "true", "full") else "fp16" if fp16 in (True, "true") else "fp32"
