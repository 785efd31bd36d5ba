"""Reading: a run folder, trainer_state.json, a pasted log, and what is none of these."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
from lora_train.instrument.judge.explain import SourceError, explain, lines, read_history

from ....conftest import ROOT

RUNS = ROOT / "tests" / "runs"
LOG = """
 10%|█         | 10/100 [00:12<01:50,  1.2s/it]{'loss': '1.934', 'grad_norm': '0.4', 'learning_rate': '9e-05'}
{'loss': 1.8, 'grad_norm': 0.39, 'learning_rate': 8e-05, 'epoch': 0.2}
{'eval_loss': 1.85, 'eval_runtime': 3.2, 'epoch': 0.2}
{"loss": 0.0, "grad_norm": NaN, "learning_rate": 8e-05, "epoch": 0.3}
{'loss': 0.0, 'grad_norm': nan, 'learning_rate': 8e-05, 'epoch': 0.4}
{'train_runtime': 12.0, 'train_loss': 0.9, 'epoch': 0.4}
"""


def test_a_pasted_log(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text(LOG)
    history = read_history(path)
    assert (history.kind, history.stock) == ("log", True)
    assert history.steps["step"].tolist() == [1, 2, 3, 4]
    assert history.steps["loss"].tolist() == [1.934, 1.8, 0, 0]
    assert math.isnan(history.column("grad_norm")[3])
    assert history.evals[["step", "eval_loss"]].values.tolist() == [[2, 1.85]]
    assert "zero_rate_frozen" in [finding.key.removeprefix("explain.") for finding in explain(history)]


def test_a_trainers_state_and_its_checkpoint_folder(tmp_path):
    log = [{"loss": 2.0 - i / 10, "grad_norm": 1.0, "learning_rate": 1e-4, "step": 10 * (i + 1)} for i in range(8)]
    state = {
        "log_history": [*log, {"eval_loss": 1.5, "step": 80}],
        "global_step": 80,
        "max_steps": 80,
        "train_batch_size": 2,
    }
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    for source in (tmp_path / "trainer_state.json", tmp_path):
        history = read_history(source)
        assert (history.kind, history.coarse, history.finished) == ("trainer", 10, True)
        assert history.steps["step"].tolist() == list(range(10, 90, 10))
        assert history.setting("training.per_device_train_batch_size") == 2
    assert [f.key.removeprefix("explain.") for f in explain(history) if f.topic == "outcome"] == ["finished"]


def test_a_run_folder_reads_the_last_word_on_each_step():
    history = read_history(RUNS / "healed")
    assert history.steps["step"].tolist() == list(range(1, 61))
    assert history.steps["start"].tolist() == [0] * 12 + [1] * 48
    assert [incident["kind"] for incident in history.incidents] == ["forward_overflow"]
    assert history.finished
    layers = history.layers
    assert layers is not None
    stored = history.run.stats(r"layers\.1\..*dense_h_to_4h:lora_[AB]\.grad", ["norm"], 20) if history.run else None
    assert stored is not None
    expected = math.sqrt((stored["norm"] ** 2).sum())
    assert layers.loc[20].filter(like="layers.1.mlp.dense_h_to_4h").iloc[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "content", "key"),
    [
        ("nothing.txt", "no training here", "source.no_loss"),
        ("other.json", "{}", "source.no_log_history"),
        ("list.json", "[1, 2]", "source.no_log_history"),
        ("torn.json", '{"log_history": [', "source.no_log_history"),
        ("empty.json", '{"log_history": []}', "source.no_loss"),
        ("odd.json", '{"log_history": [1, null, {"loss": "x"}]}', "source.no_loss"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, name, content, key):
    (tmp_path / name).write_text(content)
    with pytest.raises(SourceError) as caught:
        read_history(tmp_path / name)
    assert caught.value.key == key


def test_missing_empty_and_newer_sources_are_refused(tmp_path):
    for path, key in ((tmp_path / "gone", "source.missing"), (tmp_path, "source.no_run")):
        with pytest.raises(SourceError) as caught:
            read_history(path)
        assert caught.value.key == key
    run = shutil.copytree(RUNS / "healthy", tmp_path / "run")
    (run / "env.json").write_text('{"schema_version": 99}')
    with pytest.raises(SourceError, match="schema 99"):
        read_history(run)
    with pytest.raises(SourceError) as caught:
        read_history(tmp_path)
    assert (caught.value.key, caught.value.values["first"], caught.value.values["n"]) == ("source.runs_below", run, 1)


def test_a_run_with_odd_values_is_explained(tmp_path):
    run = shutil.copytree(RUNS / "healed", tmp_path / "run")
    (run / "config.yaml").write_text(
        "training: {logging_steps: x, max_grad_norm: [1], per_device_train_batch_size: y}\ndata: 3\n"
    )
    (run / "sites.json").write_text("[1, 2")
    diagnosis = next(run.glob("incidents/*/diagnosis.json"))
    odd = {"evidence": None, "remedies": None, "rows": "all", "module": None}
    diagnosis.write_text(json.dumps({**json.loads(diagnosis.read_text()), **odd}))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"eval_loss": "low"}\n{"step": [1], "loss": 2.0}\n5\n{"step": 61, "eval_loss": 2.0}\n')
    history = read_history(run)
    assert history.evals["step"].tolist() == [61]
    assert lines(history, explain(history), "ko")
    assert lines(read_history(run / "metrics.jsonl"), explain(history), "en")


def test_steps_of_which_nothing_is_known_are_not_judged(tmp_path):
    run = shutil.copytree(RUNS / "healthy", tmp_path / "run")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    known = ("step", "start", "eval_loss", "train_runtime")
    nothing = [{key: value if key in known else None for key, value in row.items()} for row in rows]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in nothing))
    assert not [f.key.removeprefix("explain.") for f in explain(read_history(run)) if f.verdict == "wrong"]


def test_a_resumed_state_keeps_the_last_word_on_a_step(tmp_path):
    log = [{"loss": float(i), "step": step} for i, step in enumerate([1, 2, 3, 2, 3, 4])]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    assert read_history(tmp_path).steps[["step", "loss"]].values.tolist() == [[1, 0], [2, 3], [3, 4], [4, 5]]


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize("run", ["healthy", "healed", "overfitting", "lengths", "stock"])
def test_explanations_of_recorded_runs_are_those_that_were_read(monkeypatch, run, lang):
    """After a change: python -m tests.runs.make --words, and read what it says."""
    monkeypatch.chdir(RUNS)
    history = read_history(run)
    text = "\n".join(lines(history, explain(history), lang)) + "\n"
    assert text == (RUNS / run / f"explain.{lang}.txt").read_text(encoding="utf-8")


def test_what_the_recorded_runs_are_recorded_for():
    found = {
        run: {f.key.removeprefix("explain.") for f in explain(read_history(RUNS / run))}
        for run in ("healthy", "healed", "overfitting", "lengths", "stock")
    }
    assert {"finished", "loss_fell", "grad_spread"} <= found["healthy"]
    assert {"healed", "other_step"} <= found["healed"]
    assert "overfitting" in found["overfitting"]
    assert "memory_lengths" in found["lengths"]
    assert "zero_rate_frozen" in found["stock"]
    wrong = [f.key.removeprefix("explain.") for f in explain(read_history(RUNS / "healthy")) if f.verdict == "wrong"]
    assert wrong == []


def test_a_spike_is_put_down_to_the_module_that_carried_it(tmp_path):
    """A real run with one step's numbers raised: the layer whose share grew is named."""
    history = read_history(RUNS / "healthy")
    layers = history.layers
    assert layers is not None
    module = layers.columns[3]
    layers.loc[40, module] = 50 * np.sqrt((layers.loc[40] ** 2).sum())
    history.steps.loc[history.steps["step"] == 40, "grad_norm"] *= 50
    (spike,) = [finding for finding in explain(history) if finding.key.removeprefix("explain.") == "spikes_layer"]
    assert (spike.values["step"], spike.values["module"]) == (40, module)
