"""A classifier's head: which of a model's modules are new, are trained in full and saved with the adapter.

PEFT does so with what is called `classifier` or `score`. A checkpoint may lack more than that (the pooler of BERT and
DeBERTa, DistilBERT's pre_classifier): a random layer that is neither trained nor saved would make another model of the
adapter wherever it is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PretrainedConfig, PreTrainedModel

# Modules of classifiers that a pretrained checkpoint may lack.
HEAD_MODULES = ("classifier", "score", "pre_classifier", "pooler", "head")
# Families whose positions are a table; the second keep the places before the first token for padding.
TABLES = frozenset(("albert", "bert", "distilbert", "electra", "mobilebert", "mpnet", "deberta", "deberta-v2"))
TABLES |= frozenset(("gpt2", "gpt_neo", "opt", "gptj", "gpt_bigcode"))
FROM_PADDING = frozenset(("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer"))
NO_LIMIT = 10**30  # as tokenizers say it
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


def n_places(model: PretrainedConfig) -> int:
    """Tokens of the longest row that a model has positions for; NO_LIMIT where they are computed."""
    text = model.get_text_config()
    family, places = str(text.model_type), getattr(text, "max_position_embeddings", None)
    if not isinstance(places, int) or places <= 0:
        return NO_LIMIT
    if family in FROM_PADDING:
        return places - (text.pad_token_id or 0) - 1
    return places if family in TABLES else NO_LIMIT
