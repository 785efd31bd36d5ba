"""Progress bars: which is the training's, and which step a line beside them has."""

from __future__ import annotations

import pytest
from lora_train.instrument.read.logs.bars import find_bars, seconds, steps_beside, training_bar


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("00:12", 12), ("1:02:03", 3723), ("26:13:05", 94385), ("1 day, 2:03:04", 93784), ("2 days, 0:00:01", 172801),
        ("18h 37m 22s", 67042), ("10d 9h 50m 13s", 899413), ("?", None), ("", None),
    ],
)  # fmt: skip
def test_times(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" 10%|█         | 10/100 [00:12<01:50,  1.20s/it]", (10, 100, 12, 110)),
        ("1010/5000 [20:12<1:19:48, 1.20s/it]", (1010, 5000, 1212, 4788)),
        ("  0%|          | 0/100 [00:00<?, ?it/s]", (0, 100, 0, None)),
        ("{'loss': 1.5}  5%|▌ | 5/100 [00:05<01:35,  1.00it/s, loss=1.5]", (5, 100, 5, 95)),
        (" [ 22/290 02:50 < 38:04, 0.12 it/s, Epoch 0.36/5]", (22, 290, 170, 2284)),
        (" [100/100 12:34, Epoch 1/1]", (100, 100, 754, None)),
        ("Map: 100%|██████████| 100/100 [00:01<00:00, 99.00 examples/s]", None),
        ("Loading checkpoint shards: 50%|█████     | 1/2 [00:01<00:01,  1.00s/it]", None),
        ("model.safetensors: 10%|█ | 10/100 [00:12<01:50, 1.2MB/s]", None),
        ("7/5 [00:12<01:50, 1.2s/it]", None),
        ("2024/12 [see the list]", None),
    ],
)
def test_a_bar_of_the_training(text, expected):
    bars = find_bars(text)
    assert [(bar.n, bar.total, bar.spent, bar.left) for bar in bars] == ([expected] if expected else [])


def test_an_evaluations_bar_is_not_the_trainings():
    text = "".join(
        f"{n}/50 [00:01<00:01, 1.0it/s]\n{{'loss': 1}}\n" + "".join(f"{i}/8 [00:01<00:01, 9.0it/s]\n" for i in range(9))
        for n in (10, 20, 30)
    )
    at = [i for i in range(len(text)) if text.startswith("{", i)]
    bars = training_bar(find_bars(text), at)
    assert [(bar.n, bar.total) for bar in bars] == [(10, 50), (20, 50), (30, 50)]
    assert steps_beside(bars, at) == [10, 20, 30]


def test_streams_that_were_not_written_together_tell_nothing():
    text = "".join(f"{n}/50 [00:01<00:01, 1.0it/s]\n" for n in range(50)) + "{'loss': 1}\n" * 5
    at = [i for i in range(len(text)) if text.startswith("{", i)]
    assert steps_beside(find_bars(text), at) is None


def test_a_bar_for_each_epoch_counts_on():
    text = "".join(f"Epoch {e}: {n}/10 [00:01<00:01, 1.0it/s]\n" for e in (1, 2) for n in (0, 5, 10))
    bars = training_bar(find_bars(text), [])
    assert [bar.n for bar in bars] == [0, 5, 10, 10, 15, 20]


def test_a_line_before_the_first_bar_is_one_interval_ahead():
    text = "{'loss': 1}\n" + "".join(f"{n}/50 [00:01<00:01, 1.0it/s]\n{{'loss': 1}}\n" for n in (20, 30))
    at = [i for i in range(len(text)) if text.startswith("{", i)]
    assert steps_beside(find_bars(text), at) == [10, 20, 30]
