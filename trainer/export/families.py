"""How llama.cpp stores each family of models: its name, what its tensors are called, and the order of their rows.

Names come from the gguf library. The rows of three tensors stand otherwise than in transformers: llama.cpp turns
neighbouring pairs of a head where transformers turns its two halves (h heads of d values), and takes fused ones apart:

    LLaMA     q_proj, k_proj       (h, 2, d/2) -> (h, d/2, 2)
    GPT-NeoX  query_key_value      (h, 3, d)   -> (3, h, d)

Rows of lora_B move as those of the weight do; lora_A stays. Gemma's norms hold 1 + weight there, weight here.
Source: llama.cpp's conversion/llama.py, gpt_neox.py and gemma.py.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError, problem

if TYPE_CHECKING:
    from transformers import PretrainedConfig


OUTPUT_LAYERS = ("lm_head", "embed_out")
"""GPT-NeoX had the second before transformers 5.20."""


@dataclass(frozen=True)
class Family:
    """A kind of models.

    Attributes:
        arch: GGUF's name of it.
        config: of the base model, without what is not text.
        base: the base model, for errors.
    """

    arch: str
    config: PretrainedConfig
    base: str

    def tensor_name(self, name: str) -> str:
        """`blk.0.attn_q.weight` of `model.layers.0.self_attn.q_proj.weight`.

        Raises:
            UserError: llama.cpp has no such tensor in this family.
        """
        import gguf

        kinds = {word: kind for kind, word in gguf.MODEL_ARCH_NAMES.items()}
        names = gguf.get_tensor_name_map(kinds[self.arch], self.config.num_hidden_layers)
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UserError(problem("export.no_tensor", name=name, arch=self.arch))
        return found

    def row_order(self, name: str) -> np.ndarray | None:
        """For each row that is written, which of the tensor's own it is; None: as they stand.

        Args:
            name: of a weight or bias, as transformers calls it.
        """
        heads, module = self.config.num_attention_heads, name.rpartition(".")[0].rpartition(".")[2]
        width = getattr(self.config, "head_dim", None) or self.config.hidden_size // heads
        if self.arch == "llama" and module in ("q_proj", "k_proj"):
            n = heads if module == "q_proj" else self.config.num_key_value_heads
            return np.arange(n * width).reshape(n, 2, width // 2).swapaxes(1, 2).reshape(-1)
        if self.arch == "gptneox" and module == "query_key_value":
            return np.arange(3 * heads * width).reshape(heads, 3, width).swapaxes(0, 1).reshape(-1)
        return None

    def offset(self, name: str) -> float:
        """What is added to every value of a tensor."""
        return 1.0 if self.arch.startswith("gemma") and name.endswith("norm.weight") else 0.0


# transformers' model_type -> llama.cpp's architecture
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt_neox": "gptneox",
}


def family_of(config: Any, base: str) -> Family:
    """The family of a base model.

    Raises:
        UserError: it is none of those whose files are tested, or the gguf library is not there.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError(problem("export.needs_gguf"))
    if config.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(problem("export.family", base=base, kind=config.model_type, known=known))
    return Family(ARCHITECTURES[config.model_type], config, base)
