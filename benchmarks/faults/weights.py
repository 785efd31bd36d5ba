"""Writes a model with a bad weight to disk: one that fp16 cannot compute with, or that is not a number at all.

A token that stands in one row alone, of all that the run reads, brings it out, so that step and row are known exactly.
For an overflow the token is given a channel of the residual stream of its own, in which all others are zero, as trained
models have channels for their massive activations:

    norm          the weight of that channel: x^ * weight with x^ = sqrt(hidden_size)
    mlp_output    a neuron that reads the channel and writes into another one
    scores        a dimension of the first head in which query and key read the channel: q k grows with its square

Each is scaled until the largest value is `size` times the largest fp16 number. In any other row the model stays what
it was, but for the lost channel.
"""

from __future__ import annotations

import math
import random
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lora_train.instrument.constants import FP16_MAX
from lora_train.trainer.data.batches import Plan
from lora_train.trainer.data.examples import Example
from torch import nn
from transformers import AutoModelForCausalLM

from .draw import Case

# The trainer's first look at a model reads the tokens 0 to 3.
RESERVED = 4
# Embeddings have a norm of about 5.
EMBEDDED = 30.0


def lone_token(plan: Plan, n_steps: int, rng: random.Random) -> tuple[int, int, Example]:
    """A token that stands in one row alone, of all that a run reads, and not in its first step.

    A supervised token follows it: what is not finite where nothing is predicted would not reach the loss.

    Returns:
        the token, the step and the row.
    """
    count: Counter[int] = Counter()
    where: dict[int, tuple[int, Example]] = {}
    for step in range(1, n_steps + 1):
        for example in plan.rows(step).examples:
            count.update(set(example.input_ids.tolist()))
            where |= dict.fromkeys(example.input_ids[:-1][example.supervised[1:]].tolist(), (step, example))
    lone = sorted(token for token, found in where.items() if count[token] == 1 and token >= RESERVED and found[0] > 1)
    token = rng.choice(lone)
    return token, *where[token]


@torch.no_grad()
def break_weight(sound: Path, broken: Path, case: Case, token: int, example: Example) -> None:
    """Copies a model and breaks the case's module in the copy for this token, of which the row is an example."""
    shutil.copytree(sound, broken)
    model = AutoModelForCausalLM.from_pretrained(sound)
    rng = random.Random(f"weight-{case.seed}")
    channel, other = rng.sample(range(model.config.hidden_size), 2)
    if case.fault == "embedding":
        embedding: Any = model.get_input_embeddings()
        embedding.weight[token, channel] = math.inf
        model.save_pretrained(broken)
        return
    _own_channel(model, token, channel)
    ids = torch.from_numpy(example.input_ids).long()[None]
    name = case.module or ""
    wanted = case.size * FP16_MAX
    if case.fault == "norm":
        found = _own_weight(model, name, channel)
    elif case.fault == "mlp_output":
        found = _own_neuron(model, name, channel, other, rng.randrange(model.config.intermediate_size))
    else:
        found = _own_dimension(model, name, channel)
        wanted **= 0.5
    for weight in found.weights:
        weight.fill_(1.0)
    factor = wanted / _peak(model, found, ids)
    for weight in found.weights:
        weight.fill_(factor)
    model.save_pretrained(broken)


@dataclass
class Found:
    """Where a model is broken.

    Attributes:
        weights: views of single weights that decide how large the value gets.
        module: whose output holds it.
        at: index of its channel.
    """

    weights: list[torch.Tensor]
    module: nn.Module
    at: int


def _own_channel(model: Any, token: int, channel: int) -> None:
    """Gives a token a channel that no other token's embedding and no module writes to."""
    embedding = model.get_input_embeddings().weight
    embedding[:, channel] = 0.0
    embedding[token, channel] = EMBEDDED
    for name, module in model.named_modules():
        if name.endswith(("o_proj", "down_proj", "attention.dense", "dense_4h_to_h")):
            module.weight[channel] = 0.0
            if module.bias is not None:
                module.bias[channel] = 0.0


def _own_weight(model: Any, name: str, channel: int) -> Found:
    """The channel's weight of a norm; what reads the norm no longer reads the channel (0 * inf is still nan)."""
    inside = name.rpartition(".")[2]
    readers = [model.get_output_embeddings()]
    if inside.endswith("layernorm"):
        layer = model.get_submodule(name.rpartition(".")[0])
        attention = ("attention.query_key_value", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        mlp = ("mlp.dense_h_to_4h", "mlp.gate_proj", "mlp.up_proj")
        names = dict(layer.named_modules())
        readers = [names[reader] for reader in (attention if inside == "input_layernorm" else mlp) if reader in names]
    for reader in readers:
        reader.weight[:, channel] = 0.0
    norm = model.get_submodule(name)
    return Found([norm.weight[channel : channel + 1]], norm, channel)


def _own_neuron(model: Any, name: str, channel: int, other: int, neuron: int) -> Found:
    """A neuron that fires on the channel; its weight into the other channel."""
    mlp = model.get_submodule(name.rpartition(".")[0])
    if name.endswith("down_proj"):
        inputs, output = (mlp.gate_proj, mlp.up_proj), mlp.down_proj
    else:
        inputs, output = (mlp.dense_h_to_4h,), mlp.dense_4h_to_h
        # a LayerNorm leaves a little in the channel at every token
        mlp.dense_h_to_4h.bias[neuron] = -6.0
    for projection in inputs:
        projection.weight[neuron] = 0.0
        projection.weight[neuron, channel] = 2.0
    output.weight[:, neuron] = 0.0
    return Found([output.weight[other : other + 1, neuron]], output, other)


def _own_dimension(model: Any, name: str, channel: int) -> Found:
    """The last dimension of the first head, where query and key read nothing but the channel."""
    attention, config = model.get_submodule(name), model.config
    size = config.hidden_size // config.num_attention_heads
    if hasattr(attention, "q_proj"):
        rows = [(attention.q_proj, size - 1), (attention.k_proj, size - 1)]
    else:
        rows = [(attention.query_key_value, size - 1), (attention.query_key_value, 2 * size - 1)]
    for projection, row in rows:
        projection.weight[row] = 0.0
        if projection.bias is not None:
            projection.bias[row] = 0.0
    weights = [projection.weight[row, channel : channel + 1] for projection, row in rows]
    return Found(weights, rows[0][0], size - 1)


def _peak(model: Any, found: Found, ids: torch.Tensor) -> float:
    """Largest magnitude of a channel of a module's output for these tokens."""
    seen: list[float] = []
    handle = found.module.register_forward_hook(
        lambda _module, _args, output: seen.append(float(output[..., found.at].abs().max()))
    )
    model(input_ids=ids)
    handle.remove()
    return seen[0]
