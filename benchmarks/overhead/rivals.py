"""Other fast LoRA trainers, as models for the stock Trainer's loop. They need a GPU and join where they are installed.

None of this has been run: it was written from the projects' public code, without a GPU at hand. A rival changes the
model; loop, rows, optimizer and seed stay those of the stock contender.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

MAX_LENGTH = 2048


def unsloth(config: Any, build: Callable[[Any], Any]) -> Any:
    """Unsloth loads the model itself; its own gradient checkpointing is off, as everywhere here."""
    from unsloth import FastLanguageModel  # pyright: ignore[reportMissingImports]

    lora = config.lora
    model, _ = FastLanguageModel.from_pretrained(
        config.model.name_or_path,
        max_seq_length=MAX_LENGTH,
        dtype=getattr(torch, config.storage_dtype),
        load_in_4bit=config.quantization.load_in_4bit,
    )
    return FastLanguageModel.get_peft_model(
        model,
        r=lora.r,
        lora_alpha=int(lora.lora_alpha),
        lora_dropout=lora.lora_dropout,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        use_gradient_checkpointing=False,
        random_state=config.training.seed,
    )


def axolotl(config: Any, build: Callable[[Any], Any]) -> Any:
    """Axolotl's LoRA kernels on PEFT's model. They refuse dropout, so this contender trains without."""
    from axolotl.monkeypatch import lora_kernels  # pyright: ignore[reportMissingImports]
    from axolotl.utils.dict import DictDefault  # pyright: ignore[reportMissingImports]

    kernels = {"lora_mlp_kernel": True, "lora_qkv_kernel": True, "lora_o_kernel": True}
    settings = DictDefault({"base_model": config.model.name_or_path, **kernels})
    lora_kernels.patch_self_attn_lora(settings)
    without = config.lora.model_copy(update={"lora_dropout": 0.0})
    return lora_kernels.apply_lora_kernel_patches(build(config.model_copy(update={"lora": without})), settings)


def lorafusion(config: Any, build: Callable[[Any], Any]) -> Any:
    """LoRAFusion replaces the forward of PEFT's LoRA linears; it takes 16-bit weights."""
    from lorafusion.patch.patch_lora import apply_lora  # pyright: ignore[reportMissingImports]

    apply_lora(use_fused=True)
    return build(config)


RIVALS = {"unsloth": unsloth, "axolotl": axolotl, "lorafusion": lorafusion}


def installed() -> tuple[str, ...]:
    """The rivals that can be measured here: none without a GPU."""
    if not torch.cuda.is_available():
        return ()
    return tuple(name for name in RIVALS if importlib.util.find_spec(name) is not None)
