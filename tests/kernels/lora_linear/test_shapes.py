"""LoRA linears of random shapes, with ones in them, on every backend."""

import random

import pytest
import torch

from .lora_layer import Backend, check, make_layer, run

SEEDS = range(24)


def random_length(draw: random.Random, most: int) -> int:
    return draw.choice([1, draw.randint(1, most)])


@pytest.mark.parametrize("seed", SEEDS)
def test_random_shapes_against_fp64(backend: Backend, seed: int):
    """Up to nine projections on one input: more than two launches serve."""
    draw = random.Random(seed)
    group = draw.choice([1, 1, 2, 3, draw.randint(4, 9)])
    m, k = random_length(draw, 70), random_length(draw, 90)
    outs, ranks = (tuple(random_length(draw, most) for _ in range(group)) for most in (90, 20))
    dtype = draw.choice([torch.float32, torch.float16])
    layer = make_layer(m, k, outs, ranks, dtype, bias=draw.random() < 0.5)
    p = draw.choice([0.0, 0.0, 0.3])
    mask_seed = torch.tensor([seed])
    keep = backend.keep(layer.x, mask_seed, p) if p else None
    check(backend, layer, run(backend, layer, p, mask_seed if p else None), p, keep)
