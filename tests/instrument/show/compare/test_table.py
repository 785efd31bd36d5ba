"""Many runs are one table, best first."""

from __future__ import annotations

from lora_train.instrument.show.compare import compare_runs, comparison_lines

from ...judge.explain.build import falling, history


def test_many_runs_are_a_table_sorted_by_the_metric():
    runs = [
        history(
            loss=falling(40),
            evals={"step": [20, 40], "eval_loss": [loss, loss]},
            config={"training": {"learning_rate": rate, "bf16": flag}},
        )
        for loss, rate, flag in ((1.9, 1e-5, False), (1.5, 1e-4, True), (2.4, 1e-3, False), (1.7, 3e-4, True))
    ]
    lines = comparison_lines(compare_runs(runs), "en")
    assert lines[0].split() == ["eval_loss", "best", "at", "step", "last", "step", "learning_rate", "bf16"]
    assert [line.split()[0] for line in lines[1:5]] == ["B", "D", "A", "C"]
    assert lines[1].split() == ["B", "1.5", "20", "40", "1e-4", "true", "runs/x"]
    widths = {line.index("runs/x") for line in lines[1:5]}
    assert len(widths) == 1
