"""What every operator takes in bytes beside its inputs and outputs: the predictions that stand beside them, by name.

An operator that is not here is not predicted: the elementwise ones, whose compiled loops take some kilobytes, and whose
ATen fallback takes a few tensors as large as theirs.
"""

from collections.abc import Callable, Sequence
from typing import Any

from .attention.causal import attention_backward_scratch, attention_scratch
from .cross_entropy import cross_entropy_scratch
from .ledger import Scratch
from .lora_linear.scratch import backward_scratch, cast_scratch, forward_scratch

PREDICTIONS: dict[str, Callable[..., Scratch]] = {
    "lora_train::lora_linear": forward_scratch,
    "lora_train::lora_linear_backward": backward_scratch,
    "lora_train::cast_with_stats": cast_scratch,
    "lora_train::linear_cross_entropy": cross_entropy_scratch,
    "lora_train::attention": attention_scratch,
    "lora_train::attention_backward": attention_backward_scratch,
}


def scratch_of(name: str, arguments: Sequence[Any]) -> Scratch:
    """Of one call of an operator, by its qualified name."""
    return PREDICTIONS[name](*arguments) if name in PREDICTIONS else Scratch()
