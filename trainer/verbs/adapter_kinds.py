"""Which adapters merge and chat compute exactly, told from the folder alone, before torch is imported.

    both           LoRA on linears, embeddings and Conv1D (convolutions are not tested); DoRA, rsLoRA, rank and alpha
                   patterns, biases, modules_to_save, trainable tokens, target_parameters; PiSSA and OLoRA, whose base
                   peft changes in the same way again; AdaLoRA
    merge alone    heads of classifiers (SEQ_CLS, TOKEN_CLS)
    chat alone     what has no merged weights that do the same: layer_replication, aLoRA
    neither        a base that was changed in a way the folder does not tell, and what peft or this release do not know

Whatever is not computed exactly is refused with the key that says so.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ...instrument.messages import say
from ..console import note
from ..errors import UserError, problem
from ..saved.sums import wrong_sum
from .adapter_folder import SETTINGS, WEIGHTS, Adapter, read_adapter
from .inspect_adapter import require_finite

HEADS = ("SEQ_CLS", "TOKEN_CLS")
TASKS = (None, "CAUSAL_LM", *HEADS)
# layers that peft may add to a model at most: one more zero in a list would be an afternoon
MAX_LAYERS = 1000
MERGE, CHAT, PREDICT = "merge", "chat", "predict"
# init_lora_weights that leave the base as it is, or that peft repeats on it exactly
INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal", "mica", "pissa", "olora")
# Chat computes them, but no merged weights do the same.
UNMERGEABLE = ("layer_replication", "alora_invocation_tokens")
NOT_COMPUTED = (
    "arrow_config",
    "kasa_config",
    "megatron_config",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)

_FLAG, _NAMES = "true | false", "[name, ...] | pattern"
# key -> what it should be, beside null
TYPES = {
    "base_model_name_or_path": "text",
    "revision": "text",
    "task_type": "text",
    "bias": "none | all | lora_only",
    "r": "integer >= 1",
    "init_r": "integer >= 1",
    "lora_alpha": "number",
    "lora_dropout": "number",
    "rank_pattern": "{name: integer >= 1}",
    "alpha_pattern": "{name: number}",
    "target_modules": _NAMES,
    "exclude_modules": _NAMES,
    "layers_pattern": _NAMES,
    "modules_to_save": "[name, ...]",
    "target_parameters": "[name, ...]",
    "layers_to_transform": "integer | [integer, ...]",
    "trainable_token_indices": "[integer, ...] | {name: [integer, ...]}",
    "layer_replication": "[[integer, integer], ...]",
    **dict.fromkeys(("fan_in_fan_out", "use_rslora", "use_dora", "lora_bias", "ensure_weight_tying"), _FLAG),
}


def usable_adapter(path: Path, verb: str, trust_remote_code: bool = False) -> Adapter:
    """The adapter that a name means, which `verb` (MERGE, CHAT or PREDICT) can compute with as far as its folder tells.

    Raises:
        UserError: there is none, or it is damaged, not finite, or of a kind that the verb does not compute.
    """
    adapter = read_adapter(path, trust_remote_code)
    require_types(adapter.folder / SETTINGS, adapter.settings)
    require_kind(adapter, verb)
    require_finite(adapter.folder)
    require_as_written(adapter.folder)
    if adapter.others:
        note(say("adapter.others", folder=adapter.folder, names=", ".join(adapter.others)))
    return adapter


def require_as_written(folder: Path) -> None:
    """Refuses a checkpoint whose adapter has changed since its run wrote it.

    Raises:
        UserError: names the file.
    """
    if what := wrong_sum(folder, (WEIGHTS, SETTINGS)):
        raise UserError(problem("adapter.changed", folder=folder, what=what))


def require_types(file: Path, settings: dict[str, Any]) -> None:
    """Refuses an adapter_config.json with a value that peft could not have written.

    Raises:
        UserError: carries every such key.
    """
    adalora = settings.get("peft_type") == "ADALORA"
    wrong = [
        problem("adapter.bad_key", file=file, key=key, value=_short(settings[key]), expected=expected)
        for key, expected in TYPES.items()
        if settings.get(key) is not None
        and not (adalora and key == "rank_pattern")  # there a mask of the kept ranks
        and not _CHECKS[expected](settings[key])
    ]
    if wrong:
        raise UserError(*wrong)


def require_kind(adapter: Adapter, verb: str) -> None:
    """Refuses an adapter that the verb would not compute as it was trained.

    Raises:
        UserError: names the key.
    """
    settings, file = adapter.settings, adapter.folder / SETTINGS
    task, init = settings.get("task_type"), settings.get("init_lora_weights", True)
    init = init.lower() if isinstance(init, str) else init  # as peft does
    if task not in TASKS:
        raise UserError(problem("adapter.task", file=file, task=_short(task)))
    if verb == CHAT and task in HEADS:
        raise UserError(problem("chat.classifier", file=file, task=task))
    if init is not None and init not in INITIALISATIONS:
        raise UserError(problem("adapter.changed_base", file=file, init=_short(init)))
    for key in NOT_COMPUTED:
        if is_on(settings.get(key)):
            raise UserError(problem("adapter.not_computed", file=file, key=key, value=_short(settings[key])))
    for key in UNMERGEABLE if verb == MERGE else ():
        if is_on(settings.get(key)):
            raise UserError(problem("merge.kind", file=file, key=key, value=_short(settings[key])))


def require_known(adapter: Adapter, known: Iterable[str]) -> None:
    """Refuses settings of a newer peft that may change what the adapter computes; peft itself passes them over.

    What is off says nothing, and neither does the size of something that is off: group_size where use_group is false.

    Args:
        adapter: its settings.
        known: the keys of the installed peft.

    Raises:
        UserError: names the first such key.
    """
    settings = adapter.settings
    unknown = sorted(settings.keys() - set(known) - {"runtime_config"})
    off = [re.sub(r"^use_|_config$", "", key) for key in settings if not is_on(settings[key])]
    for key in unknown:
        detail = isinstance(settings[key], int | float | str) and not isinstance(settings[key], bool)
        if is_on(settings[key]) and not (detail and any(key.startswith(f"{name}_") for name in off)):
            file = adapter.folder / SETTINGS
            raise UserError(problem("adapter.unknown_key", file=file, key=key, value=_short(settings[key])))


def is_on(value: Any) -> bool:
    """Whether a setting asks for anything."""
    return value is not None and value is not False and value != 0 and value not in ("", [], {})


def _short(value: Any) -> str:
    text = "true" if value is True else "false" if value is False else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max  # an int may be beyond it; NaN is not at most anything


def _list_of(is_item: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_item, value))


def _map_to(is_value: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(_pattern, value)) and all(map(is_value, value.values()))


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(re.compile(value))
    except (re.error, RecursionError, OverflowError):
        return False


def _pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_integer, value)) and 0 <= value[0] <= value[1]


def _rank(value: Any) -> bool:
    return _integer(value) and value >= 1


def _replication(value: Any) -> bool:
    return _list_of(_pair)(value) and sum(end - begin for begin, end in value) <= MAX_LAYERS


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "text": _text,
    "none | all | lora_only": lambda value: value in ("none", "all", "lora_only"),
    "integer >= 1": _rank,
    "number": _number,
    "{name: integer >= 1}": _map_to(_rank),
    "{name: number}": _map_to(_number),
    _NAMES: lambda value: _pattern(value) or _list_of(_text)(value),
    "[name, ...]": _list_of(_text),
    "integer | [integer, ...]": lambda value: _integer(value) or _list_of(_integer)(value),
    "[integer, ...] | {name: [integer, ...]}": lambda value: (
        _list_of(_integer)(value) or _map_to(_list_of(_integer))(value)
    ),
    "[[integer, integer], ...]": _replication,
    _FLAG: lambda value: isinstance(value, bool),
}
