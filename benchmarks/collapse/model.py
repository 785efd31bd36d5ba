"""The small model whose float16 overflows, and the work that makes it: the same for every contender.

A four-layer GPT-NeoX with random weights. One neuron of layer 2 is always on and writes +X into one channel of the
residual stream and -X into another, as the massive activations of trained models do (Sun et al., arXiv 2402.17762):

    dense_h_to_4h    row NEURON is 0, its bias NEURON_INPUT, and gelu(10) = 10
    dense_4h_to_h    column NEURON is +-OUTPUT_WEIGHT in CHANNELS, so X = 10 * 4000 = 40,000 of 65,504
    norms after it   weight sigma = X * sqrt(2 / hidden_size), which brings the other channels back to their size

Training turns the neuron up: the head starts too sure of itself, and a larger sigma makes it less so (10% more lowers
the first loss from 7.21 to 7.06). The bias of the norm before layer 2's MLP gives every token the same strong signal,
by which LoRA can reach the neuron in few steps. So the output climbs by about 2,000 a step and meets 65,504 within a
step or two in every row of a batch. The same run in float32 goes on to 119,675 and ends at the loss of the healed one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "examples" / "data" / "koalpaca_mini.jsonl"
MODULE = "gpt_neox.layers.2.mlp.dense_4h_to_h"

VOCABULARY, HIDDEN, LAYERS = 512, 128, 4
LAYER, NEURON, CHANNELS = 2, 7, (17, 90)
NEURON_INPUT, OUTPUT_WEIGHT = 10.0, 4000.0
# Standard deviation of the first logits; ln(512) = 6.24 would be the loss of a head that knows nothing.
LOGIT_STD = 1.25
SHARED_SIGNAL = 2.0

N_STEPS = 60
BATCH_SIZE = 4
LEARNING_RATE = 6e-3


def build(folder: Path, seed: int) -> None:
    """Writes the model in float16 and its tokenizer, a byte-level BPE of the training data."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    bpe = ByteLevelBPETokenizer()
    bpe.train([str(DATA)], vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>")
    near_the_limit(seed).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def near_the_limit(seed: int) -> Any:
    """The model in float32."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(seed)
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=4 * HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            max_position_embeddings=512,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    base: Any = model.gpt_neox
    base.embed_in.weight.normal_()
    model.lm_head.weight.normal_(std=LOGIT_STD / HIDDEN**0.5)
    layer = base.layers[LAYER]
    layer.post_attention_layernorm.bias.copy_(SHARED_SIGNAL * torch.randn(HIDDEN).sign())
    layer.mlp.dense_h_to_4h.weight[NEURON] = 0
    layer.mlp.dense_h_to_4h.bias[NEURON] = NEURON_INPUT
    layer.mlp.dense_4h_to_h.weight[CHANNELS[0], NEURON] = OUTPUT_WEIGHT
    layer.mlp.dense_4h_to_h.weight[CHANNELS[1], NEURON] = -OUTPUT_WEIGHT
    norms = [
        norm for later in base.layers[LAYER + 1 :] for norm in (later.input_layernorm, later.post_attention_layernorm)
    ]
    for norm in (*norms, base.final_layer_norm):
        norm.weight.fill_(NEURON_INPUT * OUTPUT_WEIGHT * (2 / HIDDEN) ** 0.5)
        # their normalized value is sqrt(hidden_size / 2) = 8
        norm.weight[list(CHANNELS)] = 1 / 8
    return model


def peak(model: Any, input_ids: torch.Tensor) -> float:
    """Largest magnitude that the module gives for these tokens."""
    peaks: list[float] = []
    keep: Callable[..., None] = lambda module, inputs, output: peaks.append(output.abs().max().item())  # noqa: E731
    handle = model.get_submodule(MODULE).register_forward_hook(keep)
    with torch.no_grad():
        model(input_ids=input_ids)
    handle.remove()
    return peaks[0]


def from_root(path: Path) -> str:
    """The path as it is written in commands that run in the repository's root."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def settings(out: Path, seed: int) -> dict[str, Any]:
    """The configuration of our side; the stock side takes its numbers from it."""
    return {
        "model": {"name_or_path": from_root(out / "model")},
        "lora": {"r": 8, "lora_alpha": 8, "target_modules": ["dense_h_to_4h", "dense_4h_to_h"]},
        "data": {"train": from_root(DATA), "format": "koalpaca", "cutoff_len": 128, "limit": 32},
        "training": {
            "output_dir": from_root(out / "ours"),
            "max_steps": N_STEPS,
            "per_device_train_batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "linear",
            "fp16": True,
            "logging_steps": 1,
            "seed": seed,
        },
    }


def write_work(out: Path, seed: int) -> Path:
    """Writes the model and the configuration.

    Returns:
        the path of the configuration.
    """
    build(out / "model", seed)
    path = out / "collapse.yaml"
    path.write_text(yaml.safe_dump(settings(out, seed), sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path
