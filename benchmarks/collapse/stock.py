"""The stock side: transformers.Trainer and peft on the same model, rows and order, three times.

    python -m benchmarks.collapse.stock CONFIG OUT [ROW ...]

Row 1 of the table "from symptom to cause" has paged_adamw_8bit under a loss scaler, row 2 no scaler, row 3 fused AdamW
under a scaler. Frozen weights float16, adapters float32 (peft's default), compute under float16 autocast.

The Trainer has no loss scaling on a CPU; `as_fp16` attaches torch's own, which is what fp16=True does on a GPU. What is
printed after each mark `== n` is the Trainer's own log. `Observed` reads the loss that the log filters and copies the
adapter; it changes nothing.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lora_train.trainer.checks.read_config import read_config
from lora_train.trainer.config.schema import Config
from lora_train.trainer.data.batches import Plan, collate
from lora_train.trainer.data.examples import IGNORE_INDEX, Example, load_examples
from lora_train.trainer.model.load import load_tokenizer, pad_token_id
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

ON_GPU = torch.cuda.is_available()


@dataclass(frozen=True)
class Row:
    """One stock contender."""

    number: int
    name: str
    optim: str
    scaler: bool


ROWS = (
    Row(1, "stock, paged_adamw_8bit, loss scaler", "paged_adamw_8bit", True),
    Row(2, "stock, adamw_torch, no scaler", "adamw_torch", False),
    Row(3, "stock, adamw_torch_fused, loss scaler", "adamw_torch_fused", True),
)


@dataclass
class Outcome:
    """What a stock run did.

    Attributes:
        log: the Trainer's log_history, one entry a step; NaN as null.
        losses: the true loss of every step; null where it is not finite.
        n_values: values of the adapter.
        n_nonfinite: those that are not finite at the end.
        unchanged: whether the adapter at the end is the one it was when losses stopped being finite, bit for bit.
        loss_scale: at the end; null without a scaler.
    """

    name: str
    log: list[dict[str, Any]]
    losses: list[float | None]
    n_values: int
    n_nonfinite: int
    unchanged: bool
    loss_scale: float | None


class Observed(Trainer):
    """The Trainer in our order of rows, watched."""

    order: list[int]
    losses: list[float]
    at_collapse: dict[str, torch.Tensor] | None = None

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return self.order

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(model, *args, **kwargs)
        self.losses.append(loss.item())
        if torch.isfinite(loss):
            self.at_collapse = None
        elif self.at_collapse is None:
            self.at_collapse = adapter(model)
        return loss


def adapter(model: Any) -> dict[str, torch.Tensor]:
    """A copy of the trained weights."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def as_fp16(trainer: Trainer, enabled: bool) -> None:
    """What accelerate sets up for fp16=True on a GPU: autocast, and torch's loss scaler unless it is not enabled."""
    scaler = torch.amp.GradScaler("cuda" if ON_GPU else "cpu", enabled=enabled)
    trainer.accelerator.scaler = scaler  # pyright: ignore[reportAttributeAccessIssue] # declared as CUDA's
    trainer.accelerator.native_amp = True
    trainer.accelerator.state._mixed_precision = "fp16"


def loss_scaler(trainer: Trainer) -> Any:
    """What scales the loss."""
    return trainer.accelerator.scaler


def collator(pad_id: int) -> Any:
    """Pads on the right; labels are -100 on prompts and padding."""

    def together(items: list[dict[str, Example]]) -> dict[str, torch.Tensor]:
        batch = collate([item["example"] for item in items], pad_id)
        labels = torch.full_like(batch.input_ids, IGNORE_INDEX)
        labels.view(-1)[batch.positions + 1] = batch.targets
        mask = torch.zeros_like(batch.input_ids)
        for index, item in enumerate(items):
            mask[index, : len(item["example"].input_ids)] = 1
        return {"input_ids": batch.input_ids, "attention_mask": mask, "labels": labels}

    return together


def arguments_of(config: Config, row: Row, out: Path) -> TrainingArguments:
    """The same training in the Trainer's words."""
    training = config.training
    return TrainingArguments(
        output_dir=str(out / f"stock-{row.number}"),
        per_device_train_batch_size=training.per_device_train_batch_size,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.lr_scheduler_type,
        max_steps=training.max_steps,
        max_grad_norm=training.max_grad_norm,
        optim=row.optim,
        seed=training.seed,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=not ON_GPU,
        fp16=ON_GPU,
    )


def train(config: Config, row: Row, plan: Plan, pad_id: int, out: Path) -> Outcome:
    """Trains one row."""
    training, lora, examples = config.training, config.lora, plan.dataset.examples
    place = {example.row: at for at, example in enumerate(examples)}
    base = AutoModelForCausalLM.from_pretrained(config.model.name_or_path, dtype=torch.float16)
    torch.manual_seed(training.seed)
    peft_config = LoraConfig(
        task_type="CAUSAL_LM", r=lora.r, lora_alpha=int(lora.lora_alpha), target_modules=lora.target_modules
    )
    trainer = Observed(
        model=get_peft_model(base, peft_config),
        args=arguments_of(config, row, out),
        train_dataset=[{"example": example} for example in examples],  # pyright: ignore[reportArgumentType]
        data_collator=collator(pad_id),
    )
    trainer.order = [place[row] for batch in batches(plan, training.max_steps) for row in batch]
    trainer.losses = []
    if not (ON_GPU and row.scaler):
        as_fp16(trainer, row.scaler)
    trainer.train()
    trainer.save_state()

    end = adapter(trainer.model)
    before = trainer.at_collapse or {}
    return Outcome(
        name=row.name,
        log=[entry for entry in trainer.state.log_history if "grad_norm" in entry],
        losses=[*trainer.losses],
        n_values=sum(weight.numel() for weight in end.values()),
        n_nonfinite=sum(int((~torch.isfinite(weight)).sum()) for weight in end.values()),
        unchanged=all(torch.equal(weight, before.get(name, torch.empty(0))) for name, weight in end.items()),
        loss_scale=loss_scaler(trainer).get_scale() if row.scaler else None,
    )


def batches(plan: Plan, n_steps: int) -> list[list[int]]:
    """The rows of the data that each step sees."""
    return [list(plan.rows(step).numbers) for step in range(1, n_steps + 1)]


def without_nan(value: Any) -> Any:
    """The value with null for what JSON cannot hold."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def main() -> None:
    """Trains all rows and writes stock.json."""
    from lora_train.trainer.console import quiet_libraries
    from transformers.utils.logging import disable_progress_bar

    quiet_libraries()
    disable_progress_bar()
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true")
    config, out = read_config(sys.argv[1], []), Path(sys.argv[2])
    training = config.training
    tokenizer = load_tokenizer(config)
    data = load_examples(config.data.train, config.data, tokenizer, config.data.limit)
    plan = Plan(data, training.per_device_train_batch_size, training.gradient_accumulation_steps, training.seed)
    outcomes = []
    wanted = {int(number) for number in sys.argv[3:]} or {row.number for row in ROWS}
    for row in (row for row in ROWS if row.number in wanted):
        print(f"== {row.number}", flush=True)
        outcomes.append(without_nan(asdict(train(config, row, plan, pad_token_id(tokenizer), out))))
    written = {"rows": outcomes, "batches": batches(plan, training.max_steps)}
    (out / "stock.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
