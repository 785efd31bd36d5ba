"""The stock Trainer and a head alone, on the rows and with the settings of a configuration of lora-train."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lora_train.trainer.config.schema import Config
from lora_train.trainer.console import Console
from lora_train.trainer.data.load import load_data, with_format
from lora_train.trainer.loop.components import build
from lora_train.trainer.loop.engine import Engine
from lora_train.trainer.loop.train import micro_batch_seed
from lora_train.trainer.model.classify import own_names
from lora_train.trainer.model.load import load_tokenizer, pad_token_id, trainable
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    logging,
)


@dataclass(frozen=True)
class Draws:
    """What lora-train draws at random from a seed, for another trainer to have the same.

    Attributes:
        weights: head and adapter before the first step, by name.
        order: row indices of each epoch in the order of its steps.
        seed: of the run, from which that of each step's dropout follows.
    """

    weights: dict[str, torch.Tensor]
    order: list[list[int]]
    seed: int

    @classmethod
    def of(cls, config: Config) -> Draws:
        """Those of a configuration."""
        tokenizer, console = load_tokenizer(config), Console(silent=True)
        data, _ = load_data(config, tokenizer, console, own_names(config))
        parts = build(with_format(config, data), Engine(), data, None, pad_token_id(tokenizer), console)
        epochs: list[list[int]] = [[] for _ in range(-(-parts.n_steps // parts.plan.steps_per_epoch))]
        for step in range(1, parts.n_steps + 1):
            epochs[(step - 1) // parts.plan.steps_per_epoch] += parts.plan.rows(step).numbers
        weights = {name: weight.detach().clone() for name, weight in trainable(parts.model).items()}
        return cls(weights, epochs, config.training.seed)


def rows_of(file: str, limit: int | None, names: dict[str, int]) -> tuple[list[str], list[int]]:
    """Texts and numbers of the labels."""
    lines = Path(file).read_text(encoding="utf-8").splitlines()[:limit]
    rows = [json.loads(line) for line in lines if line.strip()]
    return [row["text"] for row in rows], [names[str(row["label"])] for row in rows]


def train_stock(config: Config, names: dict[str, int], folder: str, draws: Draws) -> float:
    """Accuracy on the evaluation rows after training from the same draws."""
    logging.set_verbosity_error()
    training, lora, data = config.training, config.lora, config.data
    model_name = config.model.name_or_path
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    base = AutoModelForSequenceClassification.from_pretrained(model_name, num_labels=len(names))
    settings = LoraConfig(
        task_type="SEQ_CLS",
        r=lora.r,
        lora_alpha=lora.lora_alpha,  # pyright: ignore[reportArgumentType] # peft takes any number
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules,
    )
    sets = [
        Rows(tokenizer, rows_of(str(file), limit, names), data.cutoff_len)
        for file, limit in ((data.train, data.limit), (data.eval, data.eval_limit))
    ]
    arguments = TrainingArguments(
        folder,
        num_train_epochs=training.num_train_epochs,
        max_steps=training.max_steps,
        per_device_train_batch_size=training.per_device_train_batch_size,
        per_device_eval_batch_size=training.per_device_eval_batch_size,
        learning_rate=training.learning_rate,
        seed=training.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
    )
    model = get_peft_model(base, settings)
    unknown = model.load_state_dict(draws.weights, strict=False).unexpected_keys
    assert not unknown, unknown
    trainer = InThatOrder(
        draws,
        model,
        arguments,
        train_dataset=sets[0],
        eval_dataset=sets[1],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.evaluate()["eval_accuracy"]


class InThatOrder(Trainer):
    """The stock Trainer on rows in a given order."""

    def __init__(self, draws: Draws, *positional: Any, **named: Any):
        self._draws = draws
        super().__init__(*positional, **named, callbacks=[Reseed(draws.seed)])

    def _get_train_sampler(self, *_: Any) -> Any:
        return Order(self._draws.order)


class Order(torch.utils.data.Sampler[int]):
    """Row indices of one epoch after the other."""

    def __init__(self, epochs: list[list[int]]):
        self._epochs, self._next = epochs, 0

    def __len__(self) -> int:
        return len(self._epochs[0])

    def __iter__(self) -> Iterator[int]:
        self._next += 1
        return iter(self._epochs[self._next - 1])


class Reseed(TrainerCallback):
    """Dropout drops in every step what it drops in lora-train's."""

    def __init__(self, seed: int):
        self._seed = seed

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        torch.manual_seed(micro_batch_seed(self._seed, state.global_step + 1, 0, 0))


def accuracy(said: Any) -> dict[str, float]:
    """Share of the rows whose label is right, of transformers' EvalPrediction."""
    return {"accuracy": float((said.predictions.argmax(-1) == said.label_ids).mean())}


class Rows(torch.utils.data.Dataset):
    """Tokenized rows with their labels."""

    def __init__(self, tokenizer: Any, rows: tuple[list[str], list[int]], longest: int):
        texts, self._labels = rows
        self._encoded = tokenizer(texts, truncation=True, max_length=min(longest, tokenizer.model_max_length))

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**{key: values[index] for key, values in self._encoded.items()}, "labels": self._labels[index]}


def head_alone(config: Config, names: dict[str, int]) -> float:
    """Accuracy of a logistic regression (L2, as scikit-learn's default) on the frozen model's mean-pooled output."""
    tokenizer = AutoTokenizer.from_pretrained(config.model.name_or_path)
    model = AutoModel.from_pretrained(config.model.name_or_path).eval()
    (x, y), (x_eval, y_eval) = (
        features(model, tokenizer, rows_of(str(file), limit, names), config.data.cutoff_len)
        for file, limit in ((config.data.train, config.data.limit), (config.data.eval, config.data.eval_limit))
    )
    head = torch.nn.Linear(x.shape[1], len(names))
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(head(x), y, reduction="sum") + 0.5 * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return float((head(x_eval).argmax(-1) == y_eval).float().mean())


@torch.no_grad()
def features(model: Any, tokenizer: Any, rows: tuple[list[str], list[int]], longest: int):
    """float32 [rows, H] and int64 [rows]: the mean of the output over the tokens of a row, of length 1."""
    texts, labels = rows
    found = []
    for start in range(0, len(texts), 64):
        batch = tokenizer(
            texts[start : start + 64], truncation=True, padding=True, return_tensors="pt",
            max_length=min(longest, tokenizer.model_max_length),
        )  # fmt: skip
        mask = batch["attention_mask"][..., None]
        pooled = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
        found.append(torch.nn.functional.normalize(pooled, dim=-1))
    return torch.cat(found), torch.tensor(labels)
