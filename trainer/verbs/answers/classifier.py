"""A trained classifier and rows to ask it about: what predict and evaluate have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...config.schema import Config
from ...config.settings import with_settings
from ...data.batches import collate, in_batches
from ...data.dataset import Dataset, Example
from ...data.labels.labels import SEVERAL, SINGLE, VALUE, Labels
from ...data.labels.load import Reading, load_labelled
from ...model.classify import use_padding
from ...model.fit import require_answerable
from ...model.heads import n_places
from ...model.load import autocast, load_tokenizer, pad_token_id
from ..adapter_folder import Adapter
from ..adapter_kinds import HEADS
from ..load_adapter import base_config, head_of, load_trained

ON_CPU = {
    "training.fp16": False,
    "training.bf16": False,
    "model.dtype": "float32",
    "quantization.bnb_4bit_compute_dtype": "float32",
}
BATCH = 32


@dataclass(frozen=True)
class Classifier:
    """A model that gives labels.

    Attributes:
        config: of the run, or the least that names the base model.
        labels: what it gives.
    """

    model: Any
    tokenizer: Any
    config: Config
    labels: Labels
    device: torch.device

    def read(self, file: str, needs_label: bool) -> Dataset:
        """The rows of a file.

        Raises:
            UserError: rows that cannot be used.
        """
        longest = min(self.config.data.cutoff_len, self.tokenizer.model_max_length)
        longest = min(longest, n_places(self.model.get_base_model().config))
        reading = Reading(self.config, self.tokenizer, longest, self.labels, needs_label=needs_label)
        data = load_labelled(file, reading)
        require_answerable(self.config, self.tokenizer, data)
        return data

    @torch.inference_mode()
    def logits(self, examples: Sequence[Example]) -> list[np.ndarray]:
        """float32 [1, n] of each row, [T, n] of one whose words have labels, in the order given."""
        found: dict[int, np.ndarray] = {}
        pad = self.model.get_base_model().config.pad_token_id
        for batch in in_batches(examples, BATCH):
            tensors = collate(batch, pad).to(self.device)
            inputs = {"input_ids": tensors.input_ids, "attention_mask": tensors.attention_mask}
            if tensors.token_type_ids is not None:
                inputs["token_type_ids"] = tensors.token_type_ids
            with autocast(self.config, self.device):
                scores = self.model(**inputs).logits.float().cpu().numpy()
            for example, own in zip(batch, scores, strict=True):
                found[example.row] = (
                    own[: len(example.input_ids)][example.supervised] if example.is_tagged else own[None]
                )
        return [found[example.row] for example in examples]


def load_classifier(adapter: Adapter) -> Classifier:
    """Base, head and adapter in evaluation mode.

    Raises:
        UserError: they cannot be loaded, or nobody knows what the labels are called.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = ON_CPU if device.type == "cpu" else {}
    head = head_of(adapter)
    config = with_settings(base_config(adapter), settings)
    tokenizer = load_tokenizer(config)
    model = load_trained(adapter, settings, device)
    use_padding(model, pad_token_id(tokenizer))
    own: Any = model.get_base_model().config
    names = head.names or tuple(str(own.id2label[number]) for number in sorted(own.id2label))
    task = "seq_cls" if head.task == "SEQ_CLS" else "token_cls"
    kind = config.model.problem_type if config.model.problem_type != "auto" else head.problem_type
    kind = kind or (VALUE if len(names) == 1 else SINGLE)
    labels = Labels(task, kind, () if kind == VALUE else names)
    return Classifier(model, tokenizer, with_settings(config, {"model.task": task}), labels, device)


def is_classifier(adapter: Adapter) -> bool:
    """Whether an adapter gives labels instead of text."""
    return adapter.settings.get("task_type") in HEADS


def probabilities(logits: np.ndarray, labels: Labels) -> np.ndarray:
    """float64 [T, n]: of one of the classes they add up to 1, of several each is its own."""
    logits = logits.astype(np.float64)
    if labels.problem_type == SEVERAL:
        return 1 / (1 + np.exp(-logits))
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)
