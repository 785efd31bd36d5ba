"""The page of a study: what it holds, and that it shows it."""

from __future__ import annotations

import json

import pytest
from lora_train.instrument.advise.page import write_study_page
from lora_train.instrument.advise.page.data import shares, study_data
from lora_train.instrument.advise.study import Study
from lora_train.instrument.read.history import SourceError

from .build import RATE, RATES, SHIFTS, claim, study

SCALE = """(() => {
  const svg = document.querySelector("#parallel svg");
  return svg.clientWidth / svg.viewBox.baseVal.width;
})()"""


def test_values_lie_where_their_size_or_its_logarithm_is():
    assert shares([1e-5, 1e-4, 1e-3]) == pytest.approx([0, 0.5, 1])
    assert shares([4, 8, 16]) == pytest.approx([0, 1 / 3, 1])  # less than DECADES
    assert shares([0, 5, 10]) == [0, 0.5, 1]
    assert shares(["b", "a", "b", "c"]) == [0, 0.5, 0, 1]
    assert shares([True, False]) == [0, 1]
    assert shares([1, None, 1]) == [0.5, None, 0.5]
    assert shares([["q"], ["q", "k"]]) == [0, 1]
    assert shares([None, None]) == [None, None]


def test_the_page_holds_every_trial_and_what_each_value_reached(tmp_path):
    data = study_data(study(tmp_path))
    rows = {row["name"]: row for row in data["trials"]}
    assert list(rows) == ["000", "001.2", "002", "003", "004"]
    assert [row["letter"] for row in data["trials"]] == ["A", "B", "C", None, None]
    assert [row["dead"] for row in data["trials"]] == [False, False, False, True, False]
    assert rows["003"]["why"]["ko"] == "거절"
    assert rows["004"]["end"] == {"en": "running", "ko": "도는 중"}
    assert (rows["001.2"]["settings"], rows["001.2"]["seed"]) == (["0.001"], "42")
    assert data["keys"][0]["key"] == RATE
    assert data["keys"][0]["places"] == pytest.approx([0, 0.25, 0.5, 1, None], nan_ok=True)
    assert data["keys"][0]["role"] == {"en": "tuned", "ko": "맞추는 것"}
    (isolation,) = data["isolation"]
    assert [point["value"] for point in isolation["points"]] == ["1e-4", "0.001", "0.01"]
    bests = [point["best"] for point in isolation["points"]]
    assert [best - bests[1] for best in bests] == pytest.approx([SHIFTS[i] for i in RATES])
    low, high = isolation["band"]
    assert (low + high) / 2 == pytest.approx(bests[1])
    assert rows["001.2"]["value"] == pytest.approx(bests[1])
    assert {one["word"].split()[0] for one in data["advice"]["ko"]} >= {"P2", "P14", "P15"}


def test_the_band_of_a_loss_does_not_go_below_0(tmp_path, monkeypatch):
    monkeypatch.setattr(Study, "sigma", 100.0)
    (isolation,) = study_data(study(tmp_path))["isolation"]
    assert isolation["band"][0] == 0.0
    assert isolation["band"][1] > 100


def test_the_page_names_no_folder(tmp_path):
    text = json.dumps(study_data(study(tmp_path)))
    assert str(tmp_path.parent) not in text


def test_a_study_of_which_all_were_refused_has_a_page(tmp_path):
    claim(tmp_path, "000", ended="refused", settings={RATE: 1.0}, why={"en": "no data"})
    (tmp_path / "study.yaml").write_text("sampler: grid\n")
    data = study_data(tmp_path)
    assert (data["isolation"], data["advice"]["en"], len(data["trials"])) == ([], [], 1)


def test_a_study_in_which_nothing_has_ended_has_none(tmp_path):
    claim(tmp_path, "000")
    with pytest.raises(SourceError):
        study_data(tmp_path)


def test_the_page_shows_it_in_both_languages(opened, tmp_path):
    page = opened(write_study_page(study(tmp_path))).page
    assert page.locator("#parallel polyline").count() == 5
    assert page.locator("#parallel polyline[stroke-dasharray]").count() == 1
    assert page.locator("#isolation circle[r='4.5']").count() == 3
    assert page.locator("#trials tbody tr").count() == 5
    assert "<img src=x" in page.locator("#trials tr.wrong").inner_text()  # as text
    page.locator("#curve").scroll_into_view_if_needed()
    page.wait_for_selector("#curve canvas")
    page.select_option("#lit", "002")
    assert page.locator("#parallel polyline[stroke-opacity='0.15']").count() == 4
    assert page.evaluate("rebuild(), document.querySelectorAll('#parallel polyline').length") == 5  # at once, for paper
    page.click("#lang-ko")
    assert "거부됨: 거절" in page.locator("#trials tr.wrong").inner_text()
    assert page.locator("h2").first.inner_text() == "한눈에"


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_the_first_screen_has_the_judgement_tiles_and_a_drawing_and_what_is_answered_is_folded(
    opened, tmp_path, width, height
):
    page = opened(write_study_page(study(tmp_path)), width=width, height=height).page
    for part in (".status.wrong", ".tiles", "#parallel svg"):
        box = page.locator(part).bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= height, part
    tiles = dict(zip(page.locator("dt").all_inner_texts(), page.locator("dt + dd").all_inner_texts(), strict=True))
    assert (tiles["trials"], tiles["best trial"], tiles["sampler"]) == ("4 / 5", "3.459", "grid")
    size = page.evaluate("getComputedStyle(document.querySelector('#parallel text')).fontSize")
    scale = page.evaluate(SCALE)
    assert (size, scale) == ("12px", pytest.approx(1, abs=0.01))  # words stay as large as all others
    told = study_data(tmp_path)["advice"]["en"]
    n = len([one for one in told if one["verdict"] == "healthy"])
    assert page.inner_text("#answered summary") == f"answered · {n}"
    assert page.locator("#advice .topic:visible").count() == len(told) - n
