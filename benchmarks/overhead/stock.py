"""The stock Trainer on the same tokens in the same order: transformers.Trainer and peft, padded batches.

Everything between the rows' tokens and the optimizer is the libraries' own. Only tokens, labels and their order come
from lora-train, so that losses can be compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lora_train.instrument import InstrumentCallback
from lora_train.trainer.config.schema import Config
from lora_train.trainer.data.examples import IGNORE_INDEX, Example, load_examples
from lora_train.trainer.loop.components import order_of
from lora_train.trainer.model.load import load_tokenizer, quantization_of, resolve
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    logging,
)

from .rivals import RIVALS
from .watchers import WATCHERS, Log
from .work import ALL_WEIGHTS


def train(settings: dict[str, Any], name: str, gate: Any) -> None:
    """Trains, stopped by the gate before every step.

    Args:
        settings: the configuration of work.py.
        name: "stock", "liger", a name of WATCHERS, one of RIVALS, or of ALL_WEIGHTS.
    """
    config = Config.model_validate(settings)
    logging.set_verbosity_error()
    tokenizer = load_tokenizer(config)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    rows, supervised = rows_of(config, tokenizer)
    make = base_of if name in ALL_WEIGHTS else build
    model = RIVALS[name](config, build) if name in RIVALS else make(config)
    log: Log = {}
    after_backward = WATCHERS[name](model, log) if name in WATCHERS else None
    trainer = InOrder(
        model=model,
        args=arguments_of(config, liger=name == "liger"),
        train_dataset=rows,  # pyright: ignore[reportArgumentType]
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORE_INDEX),
    )

    class Gated(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            done = trainer.state.global_step
            gate(trainer.last, supervised[done - 1] if done else None)

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            if after_backward is not None:
                after_backward()

    if name == "callback":
        trainer.add_callback(InstrumentCallback(Path(config.training.output_dir) / "recorded"))
    trainer.add_callback(Gated())
    if config.training.fp16 and not torch.cuda.is_available():
        as_fp16(trainer)
    trainer.train()


def rows_of(config: Config, tokenizer: Any) -> tuple[list[dict[str, list[int]]], list[int]]:
    """The rows of the whole run in lora-train's order, and the number of supervised tokens of every step."""
    data = load_examples(config.data.train, config.data, tokenizer)
    plan = order_of(config, data, 1)
    steps = [plan.rows(step).examples for step in range(1, config.training.max_steps + 1)]
    rows = [row_of(example) for examples in steps for example in examples]
    return rows, [sum(example.n_supervised for example in examples) for examples in steps]


def row_of(example: Example) -> dict[str, list[int]]:
    """A row as DataCollatorForSeq2Seq takes it."""
    ids = example.input_ids.tolist()
    labels = [token if wanted else IGNORE_INDEX for token, wanted in zip(ids, example.supervised, strict=True)]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def base_of(config: Config) -> Any:
    """The model as it is loaded, all of it to be trained."""
    quantized = config.quantization.load_in_4bit
    return AutoModelForCausalLM.from_pretrained(
        resolve(config.model.name_or_path),
        dtype=getattr(torch, config.storage_dtype),
        device_map={"": 0 if torch.cuda.is_available() else "cpu"},
        **({"quantization_config": quantization_of(config)} if quantized else {}),
    )


def build(config: Config) -> Any:
    """PEFT's model, with the weights that lora-train's has."""
    base = base_of(config)
    torch.manual_seed(config.training.seed)
    lora = config.lora
    return get_peft_model(
        base,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.r,
            lora_alpha=int(lora.lora_alpha),
            lora_dropout=lora.lora_dropout,
            target_modules=lora.target_modules,
        ),
    )


def arguments_of(config: Config, liger: bool = False) -> TrainingArguments:
    """The same training in the Trainer's words."""
    training, on_gpu = config.training, torch.cuda.is_available()
    return TrainingArguments(
        output_dir=training.output_dir,
        per_device_train_batch_size=training.per_device_train_batch_size,
        max_steps=training.max_steps,
        learning_rate=training.learning_rate,
        optim=training.optim,
        logging_steps=int(training.logging_steps),
        fp16=training.fp16 and on_gpu,
        bf16=training.bf16,
        use_liger_kernel=liger,
        seed=training.seed,
        report_to=[],
        save_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
    )


def as_fp16(trainer: Trainer) -> None:
    """What accelerate sets up for fp16=True on a GPU, which it refuses on a CPU: autocast and torch's loss scaler."""
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")  # pyright: ignore[reportAttributeAccessIssue]
    trainer.accelerator.native_amp = True
    trainer.accelerator.state._mixed_precision = "fp16"


class InOrder(Trainer):
    """Keeps the order of the rows, and the loss of the last step."""

    last: torch.Tensor | None = None

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return range(len(self.train_dataset))  # pyright: ignore[reportArgumentType]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.last = super().training_step(*args, **kwargs)
        return self.last
