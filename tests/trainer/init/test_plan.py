"""What fits, on models of known sizes; nothing is downloaded."""

from __future__ import annotations

import pytest
from lora_train.instrument.constants import GIB
from lora_train.trainer.init import plan as module
from lora_train.trainer.init.machines import Machine
from lora_train.trainer.init.plan import Plan, plan_for, size_in_name


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("beomi/polyglot-ko-12.8b-safetensors", 12.8),
        ("meta-llama/Llama-3.1-8B-Instruct", 8),
        ("Qwen/Qwen2.5-0.5B", 0.5),
        ("SmolLM2-135M-Instruct.Q4_1", 0.135),
        ("google/gemma-2-2b-it", 2),
        ("EleutherAI/pythia_70m", 0.07),
        ("owner/model", None),
        ("owner/model-v2", None),
        ("mistralai/Mixtral-8x7B", None),
    ],
)
def test_sizes_in_names(name, billions):
    assert size_in_name(name) == billions


def test_less_memory_takes_the_next_measure(tiny_models):
    """Each measure is reached by a memory between what the one before and it need."""
    model = str(tiny_models["llama"])
    roomy = plan_for(model, Machine("24", 24.0, True))
    assert (roomy.rows, roomy.four_bit, roomy.checkpointing, roomy.precision) == (8, False, False, "bf16")
    assert roomy.fits
    assert roomy.needed is not None
    smaller = plan_for(model, Machine("x", (roomy.needed - 1) / GIB / module.USABLE, True))
    assert smaller.rows < 8 or smaller.checkpointing
    assert smaller.needed is not None
    assert smaller.needed < roomy.needed
    nothing = plan_for(model, Machine("1", 0.1, False))
    assert (nothing.fits, nothing.rows, nothing.length, nothing.precision) == (False, 1, 512, "fp16")
    assert (nothing.four_bit, nothing.checkpointing) == (True, True)
    cpu = plan_for(model, Machine("cpu", None, False))
    assert (cpu.precision, cpu.four_bit, cpu.rows, cpu.fits) == ("none", False, 8, True)


def test_a_model_that_is_not_here_is_stood_for_by_its_size(monkeypatch):
    monkeypatch.setattr(module, "SHAPES", {0.2: (64, 2, 128, 512)})
    found = plan_for("owner/model-135M", Machine("24", 24.0, True))
    assert found.billions == 0.135
    assert "a LLaMA of 0.135 billion parameters" in found.words(Machine("24", 24.0, True))


def test_a_step_has_sixteen_rows():
    assert [Plan(rows=rows).accumulation for rows in (1, 2, 4, 8)] == [16, 8, 4, 2]


def test_what_cannot_be_predicted_is_said(monkeypatch, tiny_models):
    def fails(*_):
        raise RuntimeError("values are read")

    monkeypatch.setattr(module, "make_fake", fails)
    machine = Machine("24", 24.0, True)
    found = plan_for(str(tiny_models["llama"]), machine)
    assert (found.needed, found.four_bit, found.checkpointing) == (None, True, True)
    assert found.words(machine) == "what the model needs could not be predicted; --dry-run says why"
