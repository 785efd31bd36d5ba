"""The loss of a classifier: a sum over labelled rows or tokens, by the model's own forward and head.

    logits = model(input_ids, attention_mask)                       [B, n], of tokens [B, S, n] -> [T, n]
    single label      loss = sum of w_c (-log softmax(logits)_c)
    several labels    loss = sum over rows of the mean over labels of BCE with logits, w the weight of a label that is
                      there (pos_weight)
    values            loss = sum over rows of the mean of (logits - value)^2

The caller divides by what all rows of the step count (their number, or the sum of w_c), so that accumulation changes
nothing. With a micro-batch a step this is what transformers' models compute; their losses of several micro-batches are
means of means. Batches are padded and masked.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import PreTrainedModel

from ..config.schema import TASKS, Config
from ..data.batches import Batch
from ..data.labels.labels import SEVERAL, SINGLE, VALUE
from .load import Head, read_model_config

# What transformers calls labels of which nothing is known.
_UNNAMED = "LABEL_"


def head_of_config(config: Config) -> Head:
    """What the model of a run gives out."""
    if not config.is_classifier:
        return Head()
    names = tuple(config.data.labels or ())
    kind = SINGLE if config.model.task == "token_cls" else config.model.problem_type
    return Head(TASKS[config.model.task], len(names) or 1, names, None if kind == "auto" else kind)


def own_names(config: Config) -> tuple[str, ...]:
    """The labels of the base model's own head; empty where it has none, or none with names."""
    if not config.is_classifier:
        return ()
    found = getattr(read_model_config(config), "id2label", None) or {}
    names = tuple(str(found[number]) for number in sorted(found))
    return () if any(name.startswith(_UNNAMED) for name in names) else names


def use_padding(model: PeftModel, pad_token_id: int) -> None:
    """Tells the model which token fills rows up: a decoder's head reads the last token that is another."""
    base: Any = model.get_base_model()
    base.config.get_text_config().pad_token_id = base.config.pad_token_id = pad_token_id


class ClassifierLoss:
    """Sum of the losses of a batch's labels (the interface of loss.py's SupervisedLoss).

    Attributes:
        padding_free: never.
        own_head: always: the model's own forward forms the logits.
    """

    padding_free = False
    own_head = True
    fused = False

    def __init__(self, model: PeftModel, config: Config):
        self._model = cast("PreTrainedModel", model.get_base_model())
        self._kind = SINGLE if config.model.task == "token_cls" else config.model.problem_type
        self._of_tokens = config.model.task == "token_cls"
        weights, names = config.training.class_weights, config.data.labels or []
        table = [weights.get(name, 1.0) for name in names] if isinstance(weights, dict) else None
        self._weights = None if table is None else torch.tensor(table, device=self._model.device)

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss sum float32 []; the number of labels that are right int64 []."""
        return self.of_tokens(batch)[:2]

    def of_tokens(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same, and the loss of each row or labelled token, float32 [T]."""
        return self.scored(batch)[:3]

    def scored(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same, and the logits float32 [T, n]."""
        logits = self.logits(batch).float()
        targets = batch.targets
        if self._kind == SINGLE:
            losses = F.cross_entropy(logits, targets, weight=self._weights, reduction="none")
            right = logits.detach().argmax(-1) == targets
        elif self._kind == SEVERAL:
            losses = F.binary_cross_entropy_with_logits(
                logits, targets, pos_weight=self._weights, reduction="none"
            ).mean(-1)
            right = ((logits.detach() > 0) == (targets > 0)).all(-1)
        else:
            assert self._kind == VALUE
            losses = F.mse_loss(logits, targets, reduction="none").mean(-1)
            right = torch.zeros_like(losses, dtype=torch.bool)
        return losses.sum(), right.sum(), losses, logits

    def logits(self, batch: Batch) -> torch.Tensor:
        """[B, n] of rows, or [T, n] of the labelled tokens, as the model gives them."""
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if batch.token_type_ids is not None:
            inputs["token_type_ids"] = batch.token_type_ids
        logits = self._model(**inputs).logits
        return logits.flatten(0, 1).index_select(0, batch.positions) if self._of_tokens else logits

    def without_padding(self, compute_dtype: torch.dtype) -> str:
        """A classifier's batches stay padded, which needs no word."""
        return ""

    def assume_without_padding(self) -> None:
        """Nothing: batches stay padded."""

    def how_rows_attend(self, dtype: str, longest: int) -> None:
        """Nothing to say."""

    def warning(self) -> None:
        """Nothing to say."""
