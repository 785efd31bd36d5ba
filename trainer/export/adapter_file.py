"""An adapter as one GGUF file, which llama.cpp puts on its copy of the base model while it loads it (`--lora`).

    general.type adapter, adapter.type lora, adapter.lora.alpha
    blk.0.attn_q.weight.lora_a [r, in], .lora_b [out, r], float32

llama.cpp scales B @ A by alpha / r. Where peft's factor of a module is another (rsLoRA, alpha_pattern), B takes the
rest.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from safetensors import safe_open

from ..errors import UserError, problem
from ..verbs.adapter_folder import SETTINGS, WEIGHTS, Adapter, scaling
from ..verbs.adapter_kinds import is_on
from .families import OUTPUT_LAYERS, Family
from .values import as_values

_PAIR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<matrix>[AB])\.weight")
# They change the base model itself, which llama.cpp loads as it was published.
_CHANGES_BASE = ("pissa", "olora")


def require_plain(adapter: Adapter) -> None:
    """Refuses what is more than B @ A on linear layers.

    Raises:
        UserError: names the key, and the merged file, which holds all of it.
    """
    settings, file = adapter.settings, adapter.folder / SETTINGS
    init = settings.get("init_lora_weights")
    if settings.get("peft_type") != "LORA":
        raise UserError(problem("export.not_plain", file=file, what=f"peft_type {settings['peft_type']}"))
    if isinstance(init, str) and init.lower() in _CHANGES_BASE:
        raise UserError(problem("export.not_plain", file=file, what=f"init_lora_weights {init}"))
    if is_on(settings.get("use_dora")):
        raise UserError(problem("export.not_plain", file=file, what="use_dora true"))
    if is_on(settings.get("target_parameters")):
        raise UserError(problem("export.not_plain", file=file, what="target_parameters"))


def pairs_of(adapter: Adapter, n_rows: int) -> dict[str, dict[str, np.ndarray]]:
    """{module: {"A": [r, in], "B": [out, r]}} in float32.

    Args:
        n_rows: of the base model's tables. Of a table with LoRA peft saves a copy, which is left out if it is as large.

    Raises:
        UserError: the file holds weights of another kind: tables, biases, heads.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    with safe_open(adapter.folder / WEIGHTS, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  # it is no dict
            match = _PAIR.fullmatch(name)
            if match is None and name.endswith(".base_layer.weight") and file.get_slice(name).get_shape()[0] == n_rows:
                continue
            if match is None:
                raise UserError(problem("export.not_plain", file=adapter.folder / WEIGHTS, what=name))
            found.setdefault(match["module"], {})[match["matrix"]] = file.get_tensor(name).float().numpy()
    return found


def exported_pairs(adapter: Adapter, family: Family) -> dict[str, np.ndarray]:
    """The tensors of the file under llama.cpp's names.

    Raises:
        UserError: one of them has no place there.
    """
    alpha, tensors = alpha_of(adapter), {}
    for module, pair in pairs_of(adapter, family.config.vocab_size).items():
        weight = f"{module}.weight"
        if module in OUTPUT_LAYERS and family.config.tie_word_embeddings:
            raise UserError(problem("export.not_plain", file=adapter.folder / WEIGHTS, what=f"{module} (tied)"))
        r = len(pair["A"])
        order, rest = family.row_order(weight), scaling(adapter.settings, module, r) * r / alpha
        b = pair["B"] if order is None else pair["B"][order]
        name = family.tensor_name(weight)
        tensors[f"{name}.lora_a"] = pair["A"]
        tensors[f"{name}.lora_b"] = b if rest == 1 else (b * rest).astype(np.float32)
    return tensors


def alpha_of(adapter: Adapter) -> float:
    """adapter.lora.alpha; 0 would mean there that nothing is scaled, so that 1 stands for it."""
    return float(adapter.settings.get("lora_alpha") or 1)


def write_adapter_file(adapter: Adapter, family: Family, name: str, path: Path) -> None:
    """Writes the file.

    Args:
        adapter: a plain one (`require_plain`).
        family: of its base model.
        name: what the adapter is called, without a place.
        path: new, in a folder that is there.

    Raises:
        UserError: the adapter holds what such a file cannot.
        OSError: the disk refused.
    """
    from gguf import GGUFType, GGUFWriter, Keys

    tensors = exported_pairs(adapter, family)
    writer = GGUFWriter(path, family.arch)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha_of(adapter))
    writer.add_name(name)
    for tensor, values in tensors.items():
        writer.add_tensor(tensor, as_values(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
