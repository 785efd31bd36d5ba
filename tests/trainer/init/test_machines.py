from __future__ import annotations

import pytest
from lora_train.trainer.init.machines import GPUS, machine_of


@pytest.mark.parametrize(
    ("text", "gib", "bf16"),
    [
        ("T4", 14.7, False),
        ("NVIDIA GeForce RTX 3090", 23.7, True),
        ("rtx 4090", 23.6, True),
        ("RTX 4060 Ti", 15.7, True),
        ("3090 24GB", 23.7, True),
        ("A100", 39.4, True),
        ("A100 80GB", 79.2, True),
        ("a100-80", 79.2, True),
        ("V100-32GB", 31.7, False),
        ("24", 24, None),
        ("24GB", 24, None),
        ("11.5 GiB", 11.5, None),
        ("cpu", None, False),
        ("none", None, False),
    ],
)
def test_what_people_write(text, gib, bf16):
    machine = machine_of(text)
    assert machine is not None
    assert (machine.gib, machine.bf16) == (gib, bf16)


@pytest.mark.parametrize("text", ["", "big", "GTX", "-5", "4096", "24TB", "1e3", "nan"])
def test_what_nobody_knows(text):
    assert machine_of(text) is None


def test_every_name_is_found():
    for name, (gib, bf16) in GPUS.items():
        machine = machine_of(name)
        assert machine is not None
        assert (machine.gib, machine.bf16) == (gib, bf16)
