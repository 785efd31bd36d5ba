"""Trains a plan with the stock Trainer and returns its trainer_state.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from ..collapse.stock import as_fp16
from .plants import Plan

VOCABULARY, LENGTH = 64, 16


class Planted(Trainer):
    """The Trainer, with what a plan does before each micro-batch."""

    plan: Plan

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        if self.plan.at is not None:
            self.plan.at(model, inputs, self.state.global_step + 1)
        return super().training_step(model, inputs, *args, **kwargs)


def texts(n: int, noise: float, seed: int) -> list[dict[str, Any]]:
    """Rows whose next token is the last times 5 plus 3, or, with probability `noise`, any."""
    draw = np.random.default_rng(seed)
    rows = np.empty((n, LENGTH), dtype=np.int64)
    rows[:, 0] = draw.integers(VOCABULARY, size=n)
    for at in range(1, LENGTH):
        anything = draw.random(n) < noise
        rows[:, at] = np.where(anything, draw.integers(VOCABULARY, size=n), (5 * rows[:, at - 1] + 3) % VOCABULARY)
    return [{"input_ids": row.tolist(), "labels": row.tolist()} for row in rows]


def labelled(n: int, noise: float, seed: int, values: bool) -> list[dict[str, Any]]:
    """Rows of mostly small or mostly large tokens; the label is which, or the share of small ones."""
    draw = np.random.default_rng(seed)
    small = draw.random((n, LENGTH)) < draw.choice([0.1, 0.9], size=(n, 1))
    rows = draw.integers(VOCABULARY // 2, size=(n, LENGTH)) + np.where(small, 0, VOCABULARY // 2)
    share = (rows < VOCABULARY // 2).mean(axis=1)
    wrong = draw.random(n) < noise
    labels = (share + 0.05 * draw.standard_normal(n)) if values else np.where(wrong, share < 0.5, share >= 0.5)
    kind: Any = float if values else int
    return [{"input_ids": row.tolist(), "labels": kind(label)} for row, label in zip(rows, labels, strict=True)]


def model_of(plan: Plan) -> Any:
    """A tiny model with LoRA; of a task with labels a tiny BERT that is trained whole."""
    if plan.task in ("classes", "values"):
        made: Any = BertConfig
        config = made(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=LENGTH, num_labels=1 if plan.task == "values" else 2, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        return BertForSequenceClassification(config)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return get_peft_model(LlamaForCausalLM(config), lora())


def lora() -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear", modules_to_save=["lm_head"]
    )


def metrics(prediction: Any) -> dict[str, float]:
    """What a classifier's user computes."""
    right = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"accuracy": float(right.mean())}


def train(plan: Plan, out: Path, seed: int, callbacks: list[Any] | None = None) -> Path | None:
    """The state's file; None where what the plan needs is not installed.

    Args:
        callbacks: of a contender that watches the run.
    """
    torch.manual_seed(seed)
    arguments: dict[str, Any] = {
        "output_dir": str(out), "per_device_train_batch_size": 4, "learning_rate": 3e-3, "report_to": [],
        "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "seed": seed, **plan.arguments,
    }  # fmt: skip
    if plan.task == "grpo":
        return _grpo(plan, arguments, out)
    if plan.task == "lm":
        rows = [texts(n, plan.noise, seed + i) for i, n in enumerate((plan.rows, plan.eval_rows))]
    else:
        rows = [labelled(n, plan.noise, seed + i, plan.task == "values") for i, n in enumerate((plan.rows, 64))]
    model = model_of(plan)
    if plan.prepare is not None:
        plan.prepare(model)
    trainer = Planted(
        model=model,
        args=TrainingArguments(**arguments),
        train_dataset=rows[0],  # pyright: ignore[reportArgumentType]
        eval_dataset=rows[1] if plan.eval_rows else None,  # pyright: ignore[reportArgumentType]
        compute_metrics=metrics if plan.task == "classes" else None,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.plan = plan
    if plan.scaler:
        as_fp16(trainer, True)
    trainer.train()
    trainer.save_state()
    return out / "trainer_state.json"


def _grpo(plan: Plan, arguments: dict[str, Any], out: Path) -> Path | None:
    """TRL's, whose loss is near 0 by construction."""
    try:
        from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(VOCABULARY)}
    words = {"[PAD]": 0, "[BOS]": 1, "[EOS]": 2, **{word: at for word, at in words.items() if at > 2}}
    core = Tokenizer(WordLevel(words, unk_token="w3"))
    core.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]", unk_token="w3"
    )
    config = GRPOConfig(
        **arguments, num_generations=4, max_completion_length=8, temperature=1.0, generation_batch_size=4
    )
    trainer = GRPOTrainer(
        model=model_of(plan),
        args=config,
        reward_funcs=lambda completions, **_: [float(len(set(text.split()))) for text in completions],
        train_dataset=_prompts(),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_state()
    return out / "trainer_state.json"


def _prompts() -> Any:
    from datasets import Dataset

    return Dataset.from_list([{"prompt": f"w{3 + i % 60} w{3 + (5 * i) % 60}"} for i in range(64)])
