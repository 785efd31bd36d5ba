"""That nothing of a run is left in the process, however it ended: read by test_train.py in a process of its own.

    python -m pytest tests/trainer/api/leftovers.py

All tensors of the process are counted: other tests' would be among them.
"""

from __future__ import annotations

import gc
import signal
import sys
import warnings
from typing import Any

import pytest
import torch
import transformers
from lora_train import train
from lora_train.instrument.record import recorder
from lora_train.kernels import cross_entropy
from peft import PeftModel

from .test_train import EXPECTED, config, ended_by


def live_bytes() -> int:
    """Of all tensors that Python still knows."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def live_models() -> int:
    gc.collect()
    return sum(isinstance(thing, PeftModel) for thing in gc.get_objects() if issubclass(type(thing), torch.nn.Module))


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def rotary() -> Any:
    from transformers.models.llama import modeling_llama

    return modeling_llama.apply_rotary_pos_emb


@pytest.mark.parametrize("how", ["an error", "the stop button", "pressed twice"])
def test_nothing_is_left_of_a_run_that_ended_before_its_end(tiny_models, tmp_path, monkeypatch, how):
    """The traceback is kept, as a notebook keeps it; the same cell then runs again."""
    given = config(tiny_models["llama"], tmp_path / "run", max_steps=6)
    train(given, max_steps=1, output_dir=tmp_path / "first")  # what is imported and compiled once stays
    level, filters, rope = transformers.logging.get_verbosity(), list(warnings.filters), rotary()
    bytes_before, models_before, signals = live_bytes(), live_models(), handlers()
    with monkeypatch.context() as patched:
        ended_by(patched, how)
        with pytest.raises(EXPECTED[how]) as kept:
            train(given)
    sys.last_value = kept.value  # where interpreters keep it
    assert kept.value.__traceback__ is not None
    assert (live_bytes(), live_models()) == (bytes_before, models_before)
    assert handlers() == signals
    assert recorder._active is None
    assert rotary() is rope
    assert not hasattr(rope, "replaces")
    assert transformers.logging.get_verbosity() == level
    assert list(warnings.filters) == filters
    again = train(given)
    assert again.metrics["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert again.path == tmp_path / "run-2"
    assert (live_bytes(), live_models()) == (bytes_before, models_before)


def test_no_buffer_stays_after_a_run(tiny_models, tmp_path):
    """On the CPU the logits of a chunk take 128 MiB, which a command keeps until it ends."""
    train(config(tiny_models["llama"], tmp_path / "run"))
    assert live_bytes() < cross_entropy.CPU_CHUNK
