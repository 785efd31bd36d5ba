"""The configuration: YAML -> one validated, frozen object, or every problem at once.

This module imports neither torch nor transformers, so that a typing mistake is answered within a second.
"""

from __future__ import annotations

from typing import cast

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


class Config(Section):
    """One training run."""

    model: ModelSection
    quantization: QuantizationSection = QuantizationSection()
    lora: LoraSection = LoraSection()
    data: DataSection
    training: TrainingSection = TrainingSection()
    precision: PrecisionSection = PrecisionSection()
    instrument: InstrumentSection = InstrumentSection()

    @property
    def compute_dtype(self) -> str:
        """Dtype of the matrix products: "float16", "bfloat16" or "float32"."""
        return "float16" if self.training.fp16 else "bfloat16" if self.training.bf16 else "float32"

    @property
    def storage_dtype(self) -> str:
        """Dtype of the frozen weights that are not quantized."""
        return self.compute_dtype if self.model.dtype == "auto" else self.model.dtype


def sections() -> dict[str, type[Section]]:
    """Section name -> its schema."""
    return {name: cast("type[Section]", field.annotation) for name, field in Config.model_fields.items()}
