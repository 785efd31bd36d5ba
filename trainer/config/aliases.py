"""Other words for values of ours: optimizers, schedules and dtypes as other trainers and papers write them.

`adamw_bnb_8bit` -> adamw_8bit, `cosine_with_warmup` -> cosine, `torch.bfloat16` -> bfloat16. A word means the same
arithmetic as ours for it; torchao's 8- and 4-bit AdamW, which do not, are in NEAR.
"""

from __future__ import annotations

from typing import Any

OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw_hf": "adamw_torch",
    "adamw_fused": "adamw_torch_fused",
    "adamw_apex_fused": "adamw_torch_fused",
    "adamw_torch_xla": "adamw_torch",
    "adamw_torch_npu_fused": "adamw_torch_fused",
    "adamw_bnb_8bit": "adamw_8bit",
    "adamw8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw8bit": "paged_adamw_8bit",
}
# Like ours, but not the same numbers.
NEAR_OPTIMIZERS = {"adamw_torch_8bit": "adamw_8bit", "adamw_torch_4bit": "adamw_8bit", "ao_adamw_8bit": "adamw_8bit"}
SCHEDULES = {
    "cosine_with_warmup": "cosine",
    "cosine_annealing": "cosine",
    "cosine_with_hard_restarts": "cosine_with_restarts",
    "linear_with_warmup": "linear",
    "wsd": "warmup_stable_decay",
    "plateau": "reduce_lr_on_plateau",
    "inverse_square_root": "inverse_sqrt",
}
DTYPES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
    "torch.bfloat16": "bfloat16",
    "torch.float16": "float16",
    "torch.half": "float16",
    "torch.float32": "float32",
    "torch.float": "float32",
}
ATTENTION = {
    "fa2": "flash_attention_2",
    "flash_attn": "flash_attention_2",
    "flash_attn_2": "flash_attention_2",
    "flash_attention": "flash_attention_2",
}
TASKS = {
    "sequence_classification": "seq_cls",
    "text_classification": "seq_cls",
    "text-classification": "seq_cls",
    "token_classification": "token_cls",
    "token-classification": "token_cls",
    "ner": "token_cls",
}
_OWN = ("causal_lm", "seq_cls", "token_cls")
# `auto` takes bfloat16 where the GPU has it; what it has is not known before torch is imported.
PRECISION = {"training.bf16": {"auto": True, "full": True}, "training.fp16": {"auto": False}}
_TABLES = {
    "model.task": {**TASKS, **{f"tasktype.{name}": name for name in _OWN}, **{name: name for name in _OWN}},
    "lora.task_type": {
        **{name: own.upper() for name, own in TASKS.items()},
        **{f"tasktype.{name}": name.upper() for name in _OWN},
        **{name: name.upper() for name in _OWN},
    },
    "training.optim": OPTIMIZERS | NEAR_OPTIMIZERS,
    "training.lr_scheduler_type": SCHEDULES,
    "model.dtype": DTYPES,
    "model.attn_implementation": ATTENTION,
    "quantization.bnb_4bit_compute_dtype": DTYPES,
    "quantization.bnb_4bit_quant_storage": DTYPES,
    **PRECISION,
}


def ours_for(key: str, value: Any) -> Any:
    """The value of `section.key` in our words; as it is where it needs none."""
    table = _TABLES.get(key)
    if table is None or not isinstance(value, str):
        return value
    return table.get(value.lower(), value)
