"""Evaluation rows that stand in the training rows, exactly or nearly, in any language; and what is none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from lora_train.trainer.data import overlap as module
from lora_train.trainer.data.examples import Example
from lora_train.trainer.data.overlap import alike, overlap

TEMPLATE = list(range(900, 960))


def examples(rows: Sequence[Sequence[int]], first: int = 0) -> list[Example]:
    return [
        Example(first + i, np.array(ids, "int32"), np.arange(len(ids)) > len(ids) // 2) for i, ids in enumerate(rows)
    ]


def texts(n: int, length: int = 60, seed: int = 0) -> list[list[int]]:
    return np.random.default_rng(seed).integers(0, 500, (n, length)).tolist()


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_the_same_row_is_found_whatever_its_mask_and_place():
    train = texts(50)
    found = overlap(examples(train), examples([*texts(3, seed=1), train[17], train[3]], first=100))
    assert found.exact == [(103, 17), (104, 3)]
    assert found.near == []
    assert found.facts() == {"rows": 5, "exact": 2, "near": 0, "exact_rows": [(103, 17), (104, 3)], "near_rows": []}


def test_a_row_with_a_few_changes_is_nearly_the_same():
    train = texts(50)
    changed = list(train[17])
    changed[20], changed[40] = 777, 778
    shortened = train[3][:40]
    half = train[5][:30] + texts(1, 30, seed=9)[0]
    found = overlap(examples(train), examples([changed, shortened, half], first=100))
    assert found.exact == []
    assert found.near == [(100, 17), (101, 3)]


@pytest.mark.parametrize("n", [4, 20, 200])
def test_what_all_rows_have_is_the_template_and_no_overlap(n: int):
    train = [TEMPLATE + text for text in texts(n, 12)]
    found = overlap(examples(train), examples([TEMPLATE + text for text in texts(20, 12, seed=1)]))
    assert not found
    changed = list(train[1])
    changed[-1] = 777
    assert overlap(examples(train), examples([changed], first=7)).near == [(7, 1)]


def test_korean():
    train = [
        "대한민국의 수도는 서울이고 가장 큰 항구 도시는 부산입니다. 두 도시는 고속철도로 이어져 있습니다.",
        "양파는 껍질을 벗긴 다음 찬물에 담가 두었다가 썰면 눈이 덜 맵습니다. 칼이 잘 들어야 합니다.",
        "퇴직금은 1년 이상 일한 근로자에게 30일분 이상의 평균임금으로 지급해야 합니다.",
    ]
    near = "대한민국의 수도는 서울이며 가장 큰 항구 도시는 부산입니다. 두 도시는 고속철도로 이어집니다."
    other = "비가 오는 날에는 우산을 챙기고 신발이 젖지 않도록 장화를 신는 것이 좋겠습니다."
    found = overlap(
        examples([letters(text) for text in train]), examples([letters(near), letters(other), letters(train[2])])
    )
    assert found.exact == [(2, 2)]
    assert found.near == [(0, 0)]


def test_nothing_is_found_among_unlike_rows_and_short_ones():
    assert not overlap(examples(texts(300)), examples(texts(300, seed=1)))
    assert not overlap(examples([[1, 2, 3]]), examples([[1, 2, 4], [5]]))
    assert not overlap(examples(texts(3)), [])


def test_of_many_runs_a_share_finds_the_same(monkeypatch: pytest.MonkeyPatch):
    train = texts(400, 200)
    changed = [[*text[:100], 777, *text[101:]] for text in train[:100]]
    whole = overlap(examples(train), examples([*changed, *texts(50, 200, seed=1)]))
    monkeypatch.setattr(module, "MOST", (400 + 150) * 200 // 8)
    part = overlap(examples(train), examples([*changed, *texts(50, 200, seed=1)]))
    assert whole.near == part.near == [(i, i) for i in range(100)]


def test_a_question_and_its_answer_that_changed_places_are_no_copy():
    """Opposites: every run of one row stands in the other, in another order."""
    high, low, mark = list(range(10, 22)), list(range(30, 42)), [5, 6, 7]
    other_rows = [np.array([*range(100 + 20 * i, 118 + 20 * i)], np.int32) for i in range(8)]
    rows = [
        np.array([*mark, *high, *mark, *low, *mark], np.int32),
        np.array([*mark, *low, *mark, *high, *mark], np.int32),
    ]
    found = {mine: share for mine, _, share in alike([*rows, *other_rows])}
    assert 0.3 < found[0] == found[1] < 0.8
    assert {mine: share for mine, _, share in alike([rows[0], rows[0], *other_rows])}[0] == 1.0
