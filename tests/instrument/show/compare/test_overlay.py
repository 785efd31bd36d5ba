"""The page of a comparison: the same axes for all, evaluations over training, no Python and no path."""

from __future__ import annotations

import numpy as np
import pytest
from lora_train.instrument.judge.explain import read_history
from lora_train.instrument.show.compare import compare_runs, write_comparison
from lora_train.instrument.show.compare.overlay import comparison_data, foretold, metrics

from ....conftest import ROOT
from ...judge.explain.build import falling, history
from ...judge.explain.rules.test_norms import with_rows

RUNS = ROOT / "tests" / "runs"
DRAWN = """(() => {
  const { plot, spec } = CHARTS[0], [x, ...y] = plot.data;
  return { x, y, labels: spec.lines.map((line) => line.label), marks: spec.marks.map((mark) => mark.kind) };
})()"""


def test_the_page_overlays_training_and_evaluation_on_any_axis(opened, tmp_path):
    histories = [read_history(RUNS / name) for name in ("healthy", "overfitting")]
    page = opened(write_comparison(compare_runs(histories), tmp_path / "compare.html")).page
    page.wait_for_selector("#overlay canvas")
    assert page.title() == "healthy / overfitting"
    assert page.evaluate(DRAWN)["labels"] == [
        "A healthy, training", "A healthy, evaluation", "B overfitting, training", "B overfitting, evaluation",
    ]  # fmt: skip
    for axis, values in (("epoch", histories[0].column("epoch")), ("tokens", histories[0].column("tokens").cumsum())):
        page.select_option("#axis", axis)
        found = page.evaluate(DRAWN)
        first = [x for x, y in zip(found["x"], found["y"][0], strict=True) if y is not None]
        assert first[-1] == pytest.approx(values[-1], rel=1e-6)
    page.select_option("#metric", "eval_token_accuracy")
    found = page.evaluate(DRAWN)
    assert len([y for y in found["y"][0] if y is not None]) == len(histories[0].evals)
    assert page.evaluate("CHARTS[0].spec.title") == "token accuracy"
    text = page.inner_text("main")
    assert "learning_rate" in text
    assert not [word for word in ("False", "None", "[]", "['", "e+0", "tests/runs") if word in text]
    phone = opened(tmp_path / "compare.html", width=390, height=844, color_scheme="dark").page
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    phone.click("#lang-ko")
    assert "실행 비교" in phone.inner_text("h1")


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_the_first_screen_has_the_judgement_and_the_curves(opened, tmp_path, width, height):
    compared = compare_runs([read_history(RUNS / name) for name in ("healthy", "overfitting", "stock")])
    page = opened(write_comparison(compared, tmp_path / "compare.html"), width=width, height=height).page
    page.wait_for_selector("#overlay canvas")
    box = page.locator("#overlay .plot").bounding_box()
    assert box["y"] + box["height"] <= height
    first = next(found for found in page.evaluate("DATA.findings.en") if found["verdict"] != "note")
    assert page.inner_text(".status .word") == first["word"]
    assert first["sentence"] in page.inner_text(".status")
    words = page.locator("#words .word")
    assert words.count() == len(compared.findings)
    assert words.first.is_visible()


def test_a_run_is_hidden_with_its_evaluations(opened, tmp_path):
    compared = compare_runs([read_history(RUNS / name) for name in ("healthy", "overfitting")])
    page = opened(write_comparison(compared, tmp_path / "compare.html")).page
    page.wait_for_selector("#overlay canvas")
    shown = "CHARTS[0].plot.series.slice(1).map((one) => one.show)"
    page.click("#overlay .key >> nth=1")
    assert page.evaluate(shown) == [True, True, False, False]
    page.click("#overlay .key >> nth=0")
    assert page.evaluate(shown) == [True, True, False, False]  # the last one stays
    page.click("#overlay .key >> nth=1")
    assert page.evaluate(shown) == [True] * 4


def test_runs_of_very_different_lengths_stand_on_epochs(opened, tmp_path):
    def page_of(*lengths: int) -> str:
        runs = [history(loss=falling(n), epoch=np.linspace(0, 3, n)) for n in lengths]
        page = opened(write_comparison(compare_runs(runs), tmp_path / f"{len(lengths)}{lengths[0]}.html")).page
        return page.evaluate("document.getElementById('axis').value")

    assert page_of(50, 400) == "epoch"
    assert page_of(50, 100) == "step"


def test_a_stock_log_has_an_epoch_axis_and_gaps(opened, tmp_path):
    histories = [read_history(RUNS / name) for name in ("healthy", "stock")]
    page = opened(write_comparison(compare_runs(histories), tmp_path / "compare.html")).page
    page.wait_for_selector("#overlay canvas")
    assert page.evaluate("AXES") == ["step", "epoch"]
    found = page.evaluate(DRAWN)
    assert found["marks"] == ["lost"]
    at = found["labels"].index("B stock, training")
    assert [y for y in found["y"][at] if y is not None][-1] == pytest.approx(5.633, abs=1e-3)
    assert page.locator("#runs tbody tr").nth(1).locator("td").last.inner_text() == "5.633"


def test_only_what_some_run_has_can_be_chosen():
    plain, evaluated = history(loss=falling(10)), history(
        loss=falling(10), grad_norm=1.0, evals={"step": [5], "eval_loss": [2.0], "eval_f1": [0.5]}
    )  # fmt: skip
    assert [metric["id"] for metric in metrics([plain])] == ["loss"]
    assert [metric["id"] for metric in metrics([plain, evaluated])] == ["loss", "eval_f1", "grad_norm"]
    assert metrics([plain])[0]["unit"] == "nat/token"


def test_paths_as_typed_are_not_in_the_data():
    data = comparison_data(compare_runs([read_history(RUNS / name) for name in ("healthy", "overfitting")]))
    assert str(ROOT) not in str(data)


def test_another_batch_is_drawn_over_the_run_that_had_it(opened, tmp_path):
    """The rows of a run with 8 a step foretell the norm of one with 64, within the scatter of its windows."""
    small, large = with_rows(1.0, 4.0, 8), with_rows(1.0, 4.0, 64)
    found = comparison_data(compare_runs([small, large]))
    (own,), (other,) = (run["foretold"] for run in found["runs"])
    assert (own["of"], own["rows"], other["of"], other["rows"]) == (1, 64, 0, 8)
    assert own["at"][-1] == len(small.steps) - 1
    measured = np.sqrt(np.mean(large.column("grad_norm") ** 2))
    assert np.sqrt(np.mean(np.square(own["y"]))) == pytest.approx(measured, rel=0.15)
    page = opened(write_comparison(compare_runs([small, large]), tmp_path / "compare.html")).page
    page.select_option("#metric", "grad_norm")
    labels = page.evaluate(DRAWN)["labels"]
    assert [label for label in labels if "rows a step" in label] == ["A with 64 rows a step", "B with 8 rows a step"]
    assert "foretell" in page.inner_text("#overlay figcaption")
    page.select_option("#metric", "loss")
    assert "foretell" not in page.inner_text("#overlay figcaption")
    small.config["training"]["per_device_train_batch_size"] = 9
    assert foretold(small, [small]) == [], "its own batch, whose last steps are smaller"
    again = with_rows(1.0, 4.0, 8)
    again.config["training"]["per_device_train_batch_size"] = 9
    assert foretold(small, [small, again]) == [], "a batch that is no other"
    assert "compare.norm_foretold" not in {finding.key for finding in compare_runs([small, again]).findings}
    assert foretold(history(loss=[1.0], grad_norm=[1.0]), [small, large]) == []
