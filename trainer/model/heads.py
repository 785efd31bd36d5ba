"""A classifier's head: which of a model's modules are new, are trained in full and saved with the adapter.

PEFT does so with what is called `classifier` or `score`. A checkpoint may lack more than that (the pooler of BERT and
DeBERTa, DistilBERT's pre_classifier): a random layer that is neither trained nor saved would make another model of the
adapter wherever it is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

# Modules of classifiers that a pretrained checkpoint may lack.
HEAD_MODULES = ("classifier", "score", "pre_classifier", "pooler", "head")
_NEW = "lora_train_new_modules"


def mark_new(base: PreTrainedModel, names: Sequence[str]) -> None:
    """Remembers which modules the checkpoint lacks: they begin with random weights, and are to be trained in full.

    Args:
        base: a classifier.
        names: of the parameters that were not in the checkpoint.
    """
    missing, found = set(names), []
    for name, module in base.named_modules():
        own = {f"{name}.{parameter}" for parameter, _ in module.named_parameters()}
        if name and own and own <= missing and not any(name.startswith(f"{other}.") for other in found):
            found.append(name)
    setattr(base, _NEW, found)


def new_modules(base: PreTrainedModel) -> list[str]:
    """The outermost modules that `mark_new` found, and what PEFT takes for a classifier's head in any case."""
    found = getattr(base, _NEW, None)
    if found is None:
        return []
    heads = [name for name, _ in base.named_children() if name in ("classifier", "score")]
    return list(dict.fromkeys([*found, *heads]))


def linears_in(base: PreTrainedModel, names: Sequence[str]) -> list[str]:
    """The linears in some modules, which are trained in full and get no adapter."""
    inside = tuple(f"{name}." for name in names)
    return [
        name
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear) and (name in names or name.startswith(inside))
    ]
