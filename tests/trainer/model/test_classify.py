"""Losses and gradients of classifiers beside the stock Trainer's: same rows in the same order, no dropout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lora_train.trainer.config.schema import Config
from lora_train.trainer.console import Console
from lora_train.trainer.data.batches import collate
from lora_train.trainer.data.load import load_data, with_format
from lora_train.trainer.loop.components import Components, build
from lora_train.trainer.loop.engine import Engine
from lora_train.trainer.loop.evaluate import evaluate
from lora_train.trainer.loop.train import forward_backward, train_step
from lora_train.trainer.model.classify import head_of_config, own_names
from lora_train.trainer.model.load import MODEL_CLASSES, load_tokenizer, pad_token_id, trainable
from peft import LoraConfig, get_peft_model
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from ..classifiers import rows_of_kind, tiny, write

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TOLERANCE = 1e-5
STEPS = 4


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("classifiers")
    return {"bert": tiny(folder, "bert", **NO_DROPOUT), "llama": tiny(folder, "llama", classifier_dropout=0.0)}


def components_of(model: Path, kind: str, folder: Path, **settings: Any) -> Components:
    """A run with two micro-batches of four rows an epoch step, as the configuration has it."""
    rows = write(folder / f"{kind}.jsonl", rows_of_kind(kind, n=24))
    training = {
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_steps": STEPS,
    }
    config = Config.model_validate(
        {
            "model": {"name_or_path": str(model), "task": "token_cls" if kind == "words" else "seq_cls"},
            "lora": {"r": 4, "lora_alpha": 8},
            "data": {"train": str(rows)},
            "training": training | settings,
        }
    )
    tokenizer = load_tokenizer(config)
    data, _ = load_data(config, tokenizer, Console(silent=True), own_names(config))
    return build(with_format(config, data), Engine(), data, data, pad_token_id(tokenizer), Console(silent=True))


def stock_losses(components: Components, folder: Path) -> list[float]:
    """Losses of the stock Trainer on the rows of the same steps, from the same weights."""
    config, head = components.config, head_of_config(components.config)
    base = MODEL_CLASSES[head.task].from_pretrained(config.model.name_or_path, **head.settings)
    base.config.pad_token_id = components.pad_token_id
    lora = LoraConfig(
        task_type=head.task, r=4, lora_alpha=8, target_modules="all-linear", exclude_modules=["classifier", "score"]
    )
    model = get_peft_model(base, lora)
    model.load_state_dict(trainable(components.model), strict=False)
    steps = [components.plan.rows(step) for step in range(1, STEPS + 1)]
    batches = [collate(rows.examples, components.pad_token_id) for rows in steps]

    def item(batch: Any) -> dict[str, torch.Tensor]:
        labels = batch.targets
        if config.model.task == "token_cls":
            labels = torch.full_like(batch.input_ids, -100).flatten()
            labels[batch.positions] = batch.targets
            labels = labels.view_as(batch.input_ids)
        found = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": labels}
        return found if batch.token_type_ids is None else {**found, "token_type_ids": batch.token_type_ids}

    weights = config.training.class_weights
    table = None
    if isinstance(weights, dict):
        table = torch.tensor([weights.get(name, 1.0) for name in config.data.labels or ()])

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(batches)

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            if table is None:
                return super().compute_loss(model, inputs, return_outputs)
            labels = inputs.pop("labels")
            return F.cross_entropy(model(**inputs).logits, labels, weight=table)

    arguments = TrainingArguments(
        str(folder / "stock"), max_steps=STEPS, per_device_train_batch_size=1, learning_rate=1e-2,
        lr_scheduler_type="constant", logging_steps=1, report_to=[], save_strategy="no", use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = InOrder(model, arguments, train_dataset=batches, data_collator=lambda one: item(one[0]))  # pyright: ignore
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


CASES = [
    ("single", {}),
    ("pair", {}),
    ("several", {}),
    ("value", {}),
    ("words", {}),
    ("single", {"class_weights": {"bad": 3.0}}),
]


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_losses_are_the_stock_trainers(models, family, kind, settings, tmp_path):
    if (family, kind) == ("llama", "pair"):
        kind, settings = "single", {"class_weights": "balanced"}
    components = components_of(models[family], kind, tmp_path, **settings)
    theirs = stock_losses(components, tmp_path)
    components.model.train()
    ours = [float(train_step(components, components.plan.rows(step))[0]) for step in range(1, STEPS + 1)]
    assert ours == pytest.approx(theirs, abs=TOLERANCE)
    assert max(ours) - min(ours) > 100 * TOLERANCE  # they do change


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_three_micro_batches_are_one_batch_of_their_rows(models, family, kind, settings, tmp_path):
    found = []
    for batch, accumulation in ((12, 1), (4, 3)):
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        components = components_of(models[family], kind, tmp_path, **settings, **sizes)
        components.model.train()
        loss = float(forward_backward(components, components.plan.rows(1))[0])
        gradients = torch.cat([gradient.flatten().clone() for gradient in components.optimizer.gradients])
        found.append((loss, gradients))
    assert found[1][0] == pytest.approx(found[0][0], abs=TOLERANCE)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-6)


def test_stored_rows_of_weighted_classes_add_up_to_the_evaluation_loss(models, tmp_path):
    components = components_of(models["bert"], "single", tmp_path, class_weights={"bad": 3.0})
    evaluation, rows = evaluate(components)
    assert rows.weight is not None
    assert set(rows.weight) == {1.0, 3.0}
    assert evaluation.eval_loss == pytest.approx(rows.loss_sum.sum() / rows.weight.sum(), rel=1e-6)
    assert evaluation.eval_loss != pytest.approx(rows.loss_sum.mean(), rel=1e-3)


def test_weights_of_several_labels_are_those_of_their_presence(models, tmp_path):
    components = components_of(models["bert"], "several", tmp_path, class_weights={"long": 4.0})
    batch = collate(components.plan.rows(1).examples, components.pad_token_id)
    with torch.no_grad():
        loss = components.loss(batch)[0]
        logits = components.loss.logits(batch)  # pyright: ignore[reportAttributeAccessIssue]
    names = components.config.data.labels or []
    weights = torch.tensor([4.0 if name == "long" else 1.0 for name in names])
    expected = F.binary_cross_entropy_with_logits(logits, batch.targets, pos_weight=weights) * len(batch.targets)
    assert float(loss) == pytest.approx(float(expected), abs=TOLERANCE)
