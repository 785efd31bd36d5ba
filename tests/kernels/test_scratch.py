"""Predicted bytes of the other operators, exactly: against torch's recorded allocations with what the C files count."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import torch
from lora_train.kernels import cpu, cross_entropy
from lora_train.kernels.scratch import PREDICTIONS, scratch_of

from .helpers import DTYPES
from .recorder import inside

needs_c = pytest.mark.skipif(not cpu.AVAILABLE, reason="the C extension was not built")


def check(name: str, arguments: tuple) -> tuple:
    """That the operator takes what is predicted; its results."""
    operator = getattr(torch.ops.lora_train, name)
    taken, results = inside(lambda: operator(*arguments))
    about = [tuple(a.shape) if isinstance(a, torch.Tensor) else a for a in arguments]
    assert scratch_of(f"lora_train::{name}", arguments).inside == taken, about
    return results


def test_every_prediction_is_of_an_operator():
    for name in PREDICTIONS:
        assert hasattr(torch.ops.lora_train, name.removeprefix("lora_train::"))
    assert scratch_of("aten::mm", ()) == scratch_of("lora_train::store", ())


@pytest.mark.parametrize("tiles", [True, False], ids=["in tiles", "widened"])
def test_cross_entropy_in_chunks(tiles: bool, monkeypatch: pytest.MonkeyPatch):
    if tiles and not cpu.TILES:
        pytest.skip("this chip multiplies no bf16 in tiles")
    monkeypatch.setattr(cpu, "TILES", tiles)
    rng = random.Random(0)
    for _ in range(25):
        n_tokens, width = rng.choice([1, 31, 64, rng.randint(1, 400)]), rng.randint(1, 200)
        vocabulary, dtype = rng.randint(2, 300), rng.choice(DTYPES)
        monkeypatch.setattr(cross_entropy, "CPU_CHUNK", rng.choice([1 << 25, 50 * vocabulary, vocabulary]))
        hidden = torch.randn(n_tokens, width).to(rng.choice([dtype, torch.float32]))
        weight = torch.randn(vocabulary, width).div(16).to(rng.choice([dtype, torch.float32]))
        bias = torch.randn(vocabulary).to(weight.dtype) if rng.random() < 0.5 else None
        labels, how = torch.randint(0, vocabulary, (n_tokens,)), (rng.random() < 0.7, rng.random() < 0.5)
        arguments = (hidden, weight, labels, bias, dtype, *how)
        torch.ops.lora_train.linear_cross_entropy(*arguments)  # its room for logits stays
        check("linear_cross_entropy", arguments)
        rows = min(n_tokens, max(1, cross_entropy.CPU_CHUNK // vocabulary))
        stays = scratch_of("lora_train::linear_cross_entropy", arguments).stays
        assert stays["logits"] == 4 * vocabulary * rows


def test_a_call_is_not_charged_for_what_is_collected_meanwhile():
    def circle() -> None:
        link: list = [torch.empty(469155, dtype=torch.uint8)]
        link.append(link)

    def call() -> None:
        torch.empty(1000, dtype=torch.uint8)
        [[] for _ in range(5000)]  # enough for a collection

    inside(circle)
    assert inside(call)[0] == 1000


@needs_c
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_and_its_gradient(dtype: torch.dtype):
    rng = random.Random(1)
    for _ in range(8):
        batch, kv_heads, repeats = (rng.randint(1, 3) for _ in range(3))
        length, width = rng.randint(1, 200), 16 * rng.randint(1, 4)
        query, *kv = (torch.randn(batch, kv_heads * n, length, width).to(dtype) for n in (repeats, 1, 1))
        out, lse = check("attention", (query, *kv, 0.3))
        for grad in (torch.randn(out.shape).to(dtype), torch.randn(*out.shape[:-1], 2 * width).to(dtype)[..., ::2]):
            check("attention_backward", (grad, query, *kv, out, lse, 0.3))


@pytest.mark.parametrize("compiled", [True, False])
def test_cast(compiled: bool, monkeypatch: pytest.MonkeyPatch):
    if compiled and not cpu.AVAILABLE:
        pytest.skip("the C extension was not built")
    monkeypatch.setattr(cpu, "AVAILABLE", compiled)
    for shape in ((1, 1), (5, 3), (300, 500)):
        for dtype in (torch.float16, torch.bfloat16):
            check("cast_with_stats", (torch.randn(shape), dtype))


# In a process of its own: what other tests have multiplied stays too.
PLANES = """
import torch
from lora_train.kernels import cpu
from lora_train.kernels.scratch import scratch_of

x, weight = torch.randn(64, 32).half(), torch.randn(48, 32).half()
cpu.product(x, weight, torch.empty(64, 48), transposed=True)
arguments = (x, weight, torch.zeros(64, dtype=torch.int64), None, torch.float16, False, False)
stays = scratch_of("lora_train::linear_cross_entropy", arguments).stays["planes"]
print("the same" if stays == cpu.scratch_bytes() else (stays, cpu.scratch_bytes()))
"""


@needs_c
def test_planes_stay_with_the_process():
    if not cpu.TILES:
        pytest.skip("this chip multiplies no bf16 in tiles")
    result = subprocess.run([sys.executable, "-c", PLANES], capture_output=True, text=True, check=False)
    assert result.stdout == "the same\n", result.stdout + result.stderr
