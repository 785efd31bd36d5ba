"""What PEFT does to X, Y and dY, found by running it."""

import pytest
import torch

from benchmarks.fused_traffic import Linear
from benchmarks.peft_traffic import count_peft
from benchmarks.traffic import Launch

LAYER = Linear(16, 32, 64, 8, torch.float16)
X, Y, W = 16 * 32 * 2, 16 * 64 * 2, 32 * 64 * 2


def steps(launches: list[Launch], at_least: int) -> list[tuple[str, int, int]]:
    """Operators that move a tensor of X's size or more: name, bytes loaded, bytes stored."""
    found = []
    for launch in launches:
        large = [a for a in launch.accesses.values() if a.size >= at_least]
        if large:
            found.append((launch.name, sum(a.loaded for a in large), sum(a.stored for a in large)))
    return found


def test_a_4_bit_base_in_order():
    layer = Linear(16, 32, 64, 1, torch.float16)
    forward, backward = count_peft(layer, "4-bit base")
    assert steps(forward, X // 2) == [
        ("addmm", X + W, Y),
        ("clone", Y, Y),
        ("native_dropout", X, X + X // 2),
        ("mm", X, 0),
        ("mm", 0, Y),
        ("mul", Y, Y),
        ("add", 2 * Y, Y),
    ]
    assert steps(backward, X // 2) == [
        ("mul", Y, Y),
        ("mm", Y, 0),
        ("mm", Y, 0),
        ("mm", X, 0),
        ("mm", 0, X),
        ("native_dropout_backward", X + X // 2, X),
        ("mm", Y + W, X),
        ("add", 2 * X, X),
    ]


def test_a_16_bit_base_makes_an_fp32_copy_of_x():
    forward, backward = count_peft(LAYER, "16-bit base")
    copies = [
        [(a.loaded, a.stored) for a in launch.accesses.values()] for launch in forward if launch.name == "_to_copy"
    ]
    assert [(X, 0), (0, 2 * X)] in copies
    assert "clone" not in {launch.name for launch in forward + backward}


@pytest.mark.parametrize("base", ["16-bit base", "4-bit base"])
def test_without_dropout_there_is_no_mask(base: str):
    layer = Linear(16, 32, 64, 8, torch.float16, dropout=False)
    names = {launch.name for part in count_peft(layer, base) for launch in part}
    assert not any("dropout" in name for name in names)


def test_the_gradient_of_x_is_not_accumulated():
    """A leaf's would be copied; in a model X is no leaf."""
    _, backward = count_peft(LAYER, "4-bit base")
    assert backward[-1].name != "copy_"
