"""Speed side by side, without a cause that no log shows."""

from __future__ import annotations

from lora_train.instrument.show.compare import compare_runs, comparison_lines

from ...judge.explain.build import falling, history
from .logs import evaluated, found


def cards(steps: tuple[float, float], rows: tuple[float, float]) -> list:
    return [
        evaluated([2.0], eval_steps_per_second=[s], eval_samples_per_second=[r])
        for s, r in zip(steps, rows, strict=True)
    ]


def test_two_cards_are_compared_by_rows_and_the_clock_is_named_as_not_shown():
    runs = cards((4.553, 17.233), (36.42, 137.86))
    findings = found(runs)
    values = findings["eval_speed_better"].values
    assert (values["winner"], round(values["factor"], 2), values["batches"]) == ("B", 3.79, "A 8, B 8")
    assert "SM clock" in "\n".join(comparison_lines(compare_runs(runs), "en"))
    assert "SM 클럭" in "\n".join(comparison_lines(compare_runs(runs), "ko"))


def test_batches_of_other_sizes_are_not_a_faster_card():
    """Four times the batches of a quarter of the rows are the same speed."""
    findings = found(cards((4.0, 16.0), (32.0, 32.0)))
    assert findings["eval_speed_alike"].values["batches"] == "A 8, B 2"
    assert "speed_cause" not in findings


def test_batches_a_second_alone_are_compared_only_if():
    runs = [evaluated([2.0], eval_steps_per_second=[rate]) for rate in (4.553, 17.233)]
    assert round(found(runs)["eval_steps_better"].values["factor"], 2) == 3.78


def test_on_one_card_no_card_is_the_cause():
    runs = [history(loss=falling(40), tokens_per_second=rate) for rate in (100, 300)]
    assert "speed_cause" not in found(runs)
    for run in runs:
        run.env = {"gpus": ["NVIDIA A100"]}
    assert found(runs)["speed_same_card"].values["card"] == "NVIDIA A100"


def test_the_trainer_s_last_line_is_taken_where_steps_have_no_rate():
    runs = [evaluated([2.0]) for _ in range(2)]
    for run, rate in zip(runs, (10.0, 30.0), strict=True):
        run.summary = {"train_samples_per_second": rate}
    values = found(runs)["train_rate_better"].values
    assert (values["winner"], values["factor"]) == ("B", 3.0)
    assert "speed_cause" in found(runs)
