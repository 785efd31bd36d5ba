"""The training rows on the page of a run: points, the row under the cursor, a table, and what is not in the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_train.instrument.judge.explain import read_history
from lora_train.instrument.judge.row_ranks import rank_rows
from lora_train.instrument.judge.row_score import Texts
from lora_train.instrument.read.row_log import RowsWriter, read_training_rows
from lora_train.instrument.show.page import as_json
from lora_train.instrument.show.report import write_report
from lora_train.instrument.show.report.rows import COURSES, KEPT, KINDS, training_rows

HOSTILE = "</script><img src=x onerror=alert(1)> {{data}} 한국어"
LOUD, STEEP, LOST = 7, 11, 13
SAID = "document.getElementById('row-said').textContent"


def run_with(folder: Path, n: int = 60, per_step: int = 4, bad: bool = True) -> Path:
    """A run over n rows of 20 tokens, one of which costs far more, one with a far larger gradient, one not finite."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    loss, grad = 2 + 0.1 * draw.normal(size=n), np.exp(0.2 * draw.normal(size=n))
    if bad:
        loss[LOUD], grad[STEEP], loss[LOST] = 6.0, 40.0, np.nan
    data = folder.parent / "rows.jsonl"
    data.write_text("\n" + "\n\n".join(json.dumps({"text": f"row {row}"}) for row in range(n)) + "\n", encoding="utf-8")
    (folder / "config.yaml").write_text(f"data: {{train: {data}, cutoff_len: 48}}\n")
    writer = RowsWriter(folder, 0, ["a"], whole=True)
    lines = []
    for step, rows in enumerate(np.array_split(np.arange(n), n // per_step), start=1):
        of = len(rows)
        writer.write({
            "step": [step] * of, "micro_batch": [0] * of, "process": [0] * of, "row": rows,
            "n_tokens": [48 if row == 3 else 30 for row in rows], "n_supervised": [20] * of,
            "loss_sum": 20 * loss[rows], "sumsq": (grad[rows] / of) ** 2, "known": [True] * of,
        })  # fmt: skip
        lines.append({"step": step, "loss": 2.0, "grad_norm": 1.0, "learning_rate": 1e-3, "epoch": step / 15,
                      "skipped": False, "loss_scale": 1.0})  # fmt: skip
    writer.close()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def rows_of(folder: Path, texts: Texts | None = None) -> dict[str, Any]:
    found = training_rows(read_history(folder), texts)
    assert found is not None
    return found


def test_a_place_for_each_row_with_what_stands_out_first(tmp_path: Path):
    run = run_with(tmp_path / "run")
    found = rows_of(run)
    assert found["rows"][0] == LOST
    assert set(found["rows"][1:3]) == {LOUD, STEEP}
    kinds = {row: KINDS[kind] for row, kind in zip(found["rows"], found["kind"], strict=True)}
    assert (kinds[LOST], kinds[LOUD], kinds[STEEP]) == ("not_finite", "loss", "grad")
    at = found["rows"].index(LOUD)
    assert (found["loss"][at], found["first"][at], found["seen"][at]) == (6.0, 6.0, 1)
    assert found["grad"][found["rows"].index(STEEP)] == pytest.approx(40.0)
    assert found["loss"][0] is None
    ranks = rank_rows(read_training_rows(run)).set_index("row").loc[STEEP]
    assert found["grad_excess_z"][found["rows"].index(STEEP)] == pytest.approx(ranks["grad_excess_z"], rel=1e-3)
    assert "grad_z" not in found, "elsewhere that is the one among rows of any loss"
    assert COURSES[found["course"][at]] == "once"
    assert (found["of"], found["file"], found["texts"]) == (60, "rows.jsonl", None)
    assert found["lines"][at] == 2 * (LOUD + 1), "blank lines are no rows"
    assert found["flagged"] == sum(kind != "" for kind in kinds.values())
    assert [row for row, cut in zip(found["rows"], found["cut"], strict=True) if cut] == [3]


def test_without_rows_there_is_nothing(tmp_path: Path):
    run = run_with(tmp_path / "run")
    (run / "rows" / "start-0.arrows").unlink()
    assert training_rows(read_history(run)) is None


def test_texts_and_copies_are_there_where_they_were_asked_for(tmp_path: Path):
    run = run_with(tmp_path / "run")
    found = rows_of(run, Texts({20: (4, 0.95)}, set(), dict.fromkeys(range(60), HOSTILE)))
    at = found["rows"].index(20)
    assert (KINDS[found["kind"][at]], found["like"][at]) == ("duplicate", [4, 0.95])
    assert found["texts"]["20"] == HOSTILE
    assert "row 20" not in json.dumps(rows_of(run))


def test_ten_thousand_rows_add_at_most_300_kb(tmp_path: Path):
    run = run_with(tmp_path / "run", 10_000, 16)
    plain = rows_of(run)
    assert len(plain["rows"]) == KEPT
    assert {LOST, LOUD, STEEP} <= set(plain["rows"][:3])
    assert max(np.diff(sorted(plain["rows"]))) < 60, "of the others everywhere some"
    texted = rows_of(run, Texts({}, set(), dict.fromkeys(range(10_000), "가나다 " * 80)))
    assert len(as_json(plain).encode()) < 200_000
    assert len(as_json(texted).encode()) < 300_000
    assert len(texted["texts"]) > 80


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_point_is_read_by_click_and_by_key(opened, tmp_path: Path, width: int, scheme: str):
    texts = Texts({}, set(), {row: f"{row} {HOSTILE}" for row in range(60)})
    page = opened(write_report(run_with(tmp_path / "run"), texts=texts), width=width, color_scheme=scheme).page
    page.locator("#scatter").scroll_into_view_if_needed()
    assert page.evaluate(SAID).startswith(f"row {LOST} · NaN or inf")
    at = page.evaluate(f"POINTS[DATA.rows.rows.indexOf({LOUD})]")
    page.click("#scatter", position=at)
    assert page.evaluate(SAID) == f"row {LOUD} · high loss · loss a token (nat) 6 · gradient norm " + page.evaluate(
        f"number(DATA.rows.grad[DATA.rows.rows.indexOf({LOUD})])"
    )
    assert page.inner_text("#row-read blockquote") == f"{LOUD} {HOSTILE}", "as text"
    assert f"rows.jsonl, line {2 * (LOUD + 1)}" in page.inner_text("#row-read")
    assert "This page holds texts" in page.inner_text("#rows")
    page.focus("#scatter")
    order = page.evaluate("DATA.rows.rows")
    for key, place in (
        ("Home", 0),
        ("ArrowRight", 1),
        ("ArrowDown", 2),
        ("ArrowLeft", 1),
        ("End", 59),
        ("ArrowUp", 58),
    ):
        page.keyboard.press(key)
        assert page.evaluate("STATE.row") == order[place]
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelectorAll('#rows-values tbody tr').length") == 60
    first = page.evaluate("[...document.querySelector('#rows-values tbody tr').children].map((e) => e.textContent)")
    assert first[:3] == [str(LOST), "NaN or inf", "–"]
    page.keyboard.press("Enter")
    stops = "[...document.querySelectorAll('#rows *')].filter((e) => e.tabIndex >= 0).map((e) => e.id)"
    assert page.evaluate(stops) == ["scatter"]
    page.click("#lang-ko")
    assert "학습 행" in page.inner_text("#rows h2")
    assert page.evaluate("STATE.row") == order[58]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.emulate_media(media="print", color_scheme="light")
    assert page.evaluate("document.getElementById('scatter').getBoundingClientRect().width") <= width


def test_a_page_holds_no_text_and_no_folder_that_nobody_asked_for(opened, tmp_path: Path):
    path = write_report(run_with(tmp_path / "run"))
    page = opened(path).page
    assert "No text of a row is in this page" in page.inner_text("#rows")
    assert "wrong answer that reads well" in page.inner_text("#rows")
    assert page.locator("#rows blockquote").count() == 0
    assert str(tmp_path) not in path.read_text(encoding="utf-8")


def test_points_lie_where_their_numbers_say(opened, tmp_path: Path):
    page = opened(write_report(run_with(tmp_path / "run"))).page
    points = page.evaluate(
        "DATA.rows.rows.map((row, i) => [DATA.rows.loss[i], DATA.rows.grad[i], POINTS[i].x, POINTS[i].y])"
    )
    known = np.array([point for point in points if None not in point])
    assert (np.diff(known[np.argsort(known[:, 0]), 2]) >= 0).all()
    logs = np.log(known[:, 1])
    assert abs(np.corrcoef(logs, known[:, 3])[0, 1]) > 0.999999, "more than a decade: a logarithmic axis"
    assert (np.diff(known[np.argsort(known[:, 1]), 3]) <= 0).all()
