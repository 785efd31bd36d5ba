"""The stock Trainer and a head alone, on the rows and with the settings of a configuration of lora-train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lora_train.trainer.config.schema import Config
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    logging,
    set_seed,
)


def rows_of(file: str, limit: int | None, names: dict[str, int]) -> tuple[list[str], list[int]]:
    """Texts and numbers of the labels."""
    lines = Path(file).read_text(encoding="utf-8").splitlines()[:limit]
    rows = [json.loads(line) for line in lines if line.strip()]
    return [row["text"] for row in rows], [names[str(row["label"])] for row in rows]


def train_stock(config: Config, names: dict[str, int], folder: str) -> float:
    """Accuracy on the evaluation rows after training with the seed of the configuration."""
    logging.set_verbosity_error()
    training, lora, data = config.training, config.lora, config.data
    set_seed(training.seed)
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
    trainer = Trainer(
        get_peft_model(base, settings),
        arguments,
        train_dataset=sets[0],
        eval_dataset=sets[1],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.evaluate()["eval_accuracy"]


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
