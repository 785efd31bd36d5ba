"""The configuration: YAML -> one validated, frozen object, or every problem at once.

This module imports neither torch nor transformers, so that a typing mistake is answered within a second.
"""

from __future__ import annotations

from typing import Any, cast

from pydantic import model_validator

from .sections import (
    DataSection,
    InstrumentSection,
    LoraSection,
    ModelSection,
    PrecisionSection,
    QuantizationSection,
    Section,
)
from .training import METRIC_DRIVEN, TrainingSection

__all__ = ["METRIC_DRIVEN", "Config", "DataSection", "Section", "TrainingSection", "sections"]


# model.task -> PEFT's name of it.
TASKS = {"causal_lm": "CAUSAL_LM", "seq_cls": "SEQ_CLS", "token_cls": "TOKEN_CLS"}


class Config(Section):
    """One training run."""

    model: ModelSection
    quantization: QuantizationSection = QuantizationSection()
    lora: LoraSection = LoraSection()
    data: DataSection
    training: TrainingSection = TrainingSection()
    precision: PrecisionSection = PrecisionSection()
    instrument: InstrumentSection = InstrumentSection()

    @model_validator(mode="before")
    @classmethod
    def _one_task(cls, values: Any) -> Any:
        """model.task and lora.task_type say the same thing: where one is set the other follows."""
        return with_one_task(values) if isinstance(values, dict) else values

    @property
    def is_classifier(self) -> bool:
        """Whether the model gives labels instead of text."""
        return self.model.task != "causal_lm"

    @property
    def compute_dtype(self) -> str:
        """Dtype of the matrix products: "float16", "bfloat16" or "float32"."""
        return "float16" if self.training.fp16 else "bfloat16" if self.training.bf16 else "float32"

    @property
    def storage_dtype(self) -> str:
        """Dtype of the frozen weights that are not quantized."""
        return self.compute_dtype if self.model.dtype == "auto" else self.model.dtype


def with_one_task(values: dict[str, Any]) -> dict[str, Any]:
    """Sections in which model.task and lora.task_type agree, where only one of the two says what it is."""
    model, lora = (values.get(name) for name in ("model", "lora"))
    model, lora = ({} if part is None else part for part in (model, lora))
    if not isinstance(model, dict) or not isinstance(lora, dict):
        return values
    task, task_type = model.get("task"), lora.get("task_type")
    of_type = {name: own for own, name in TASKS.items() if own != "causal_lm"}
    if task in (None, "causal_lm") and isinstance(task_type, str) and task_type in of_type:
        return {**values, "model": {**model, "task": of_type[task_type]}}
    if isinstance(task, str) and task in TASKS and task != "causal_lm" and task_type in (None, "CAUSAL_LM"):
        return {**values, "lora": {**lora, "task_type": TASKS[task]}}
    return values


def sections() -> dict[str, type[Section]]:
    """Section name -> its schema."""
    return {name: cast("type[Section]", field.annotation) for name, field in Config.model_fields.items()}
