"""Whole runs of classifiers: what follows a metric, what resumes to the same bits, what is replayed and healed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lora_train import train
from lora_train.instrument.read.store import read_metrics
from lora_train.trainer.cli import main
from safetensors.torch import load_file, save_file

from ..classifiers import WORDS, rows_of_kind, tiny, write

ROWS, STEPS = 48, 12
RARE = "grim"
MODULE = "bert.encoder.layer.0.output.dense"


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return tiny(tmp_path_factory.mktemp("bert"), "bert")


def settings_of(model: Path, folder: Path, kind: str = "single", **training: Any) -> dict[str, Any]:
    rows = write(folder / f"{kind}.jsonl", rows_of_kind(kind, n=ROWS))
    held_out = write(folder / f"{kind}-eval.jsonl", rows_of_kind(kind, n=32, seed=7))
    return {
        "model": {"name_or_path": str(model), "task": "token_cls" if kind == "words" else "seq_cls"},
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
        "data": {"train": str(rows), "eval": str(held_out)},
        "training": {
            "output_dir": str(folder / "run"), "max_steps": STEPS, "per_device_train_batch_size": 4,
            "learning_rate": 1e-2, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 4,
            **training,
        },
    }  # fmt: skip


def lines_of(folder: Path, key: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(folder) if key in line]


def test_early_stopping_waits_for_an_accuracy_that_rises(bert, tmp_path):
    """A rate of 0 never gets better: it ends after so many evaluations that are no better than the first."""
    training = {"metric_for_best_model": "accuracy", "early_stopping_patience": 2, "load_best_model_at_end": True}
    given = settings_of(bert, tmp_path, learning_rate=0.0, save_steps=2, **training)
    run = train(given)
    assert run.metrics["step"].max() == 6
    assert [line["step"] for line in lines_of(run.path, "eval_accuracy")] == [2, 4, 6]


@pytest.mark.parametrize(("metric", "kind", "up"), [("auroc", "single", True), ("f1", "words", True),
                                                    ("pearson", "value", True), ("mse", "value", False)])  # fmt: skip
def test_the_best_by_a_metric_is_kept_and_which_way_is_better_needs_no_word(bert, tmp_path, metric, kind, up):
    training = {"metric_for_best_model": metric, "load_best_model_at_end": True, "save_steps": 2}
    run = train(settings_of(bert, tmp_path, kind, **training))
    values = {line["step"]: line[f"eval_{metric}"] for line in lines_of(run.path, f"eval_{metric}")}
    known = {step: value for step, value in values.items() if value is not None}
    assert len(set(known.values())) > 1
    best = max(known, key=lambda step: (known[step] if up else -known[step], -step))
    kept, chosen = run.path / "adapter", run.path / f"checkpoint-{best}"
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (kept, chosen))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_plateau_is_one_of_the_metric(bert, tmp_path):
    """An accuracy that stands still lowers the rate, whatever the loss does; it is better when it is higher."""
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5}}
    training = {"metric_for_best_model": "accuracy", "learning_rate": 1e-6, **plateau}
    run = train(settings_of(bert, tmp_path, **training))
    accuracy = [line["eval_accuracy"] for line in lines_of(run.path, "eval_accuracy")]
    assert len(set(accuracy)) == 1
    rates = run.metrics["learning_rate"].tolist()
    # evaluations after steps 2, 4, ...: the second and each one after it are no better
    assert rates[:4] == [1e-6] * 4
    assert rates[4:] == pytest.approx([0.5**n * 1e-6 for n in (1, 1, 2, 2, 3, 3, 4, 4)])


@pytest.mark.parametrize("kind", ["single", "several", "value", "words"])
def test_a_resumed_classifier_is_the_same_to_the_last_bit(bert, tmp_path, kind):
    whole = train(settings_of(bert, tmp_path, kind))
    half = tmp_path / "half"
    shutil.copytree(whole.path, half)
    shutil.rmtree(half / "adapter")
    for step in (8, 12):
        shutil.rmtree(half / f"checkpoint-{step}")
    given = settings_of(bert, tmp_path, kind, output_dir=str(half))
    again = train(given, resume=str(half / "checkpoint-4"))
    assert again.path == half
    ours, theirs = (load_file(run.path / "adapter" / "adapter_model.safetensors") for run in (again, whole))
    assert ours.keys() == theirs.keys()
    assert any("classifier" in name for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for key in ("grad_norm", "eval_loss"):
        values = [{line["step"]: line[key] for line in lines_of(run.path, key)} for run in (again, whole)]
        assert values[0] == values[1]


def test_a_step_of_a_classifier_is_replayed_with_the_recorded_numbers(bert, tmp_path, capsys):
    run = train(settings_of(bert, tmp_path))
    capsys.readouterr()
    assert main(["replay", str(run.path), "--step", "7"]) == 0
    said = capsys.readouterr().out
    loss = next(line["loss"] for line in lines_of(run.path, "grad_norm") if line["step"] == 7)
    assert f"{loss:.4g}" in said


def test_a_module_that_a_received_run_names_is_not_imported(bert, tmp_path, capsys, monkeypatch):
    run = train(settings_of(bert, tmp_path))
    file = run.path / "config.yaml"
    received = yaml.safe_load(file.read_text(encoding="utf-8"))
    received["training"] |= {"compute_metrics": "scores_of_a_stranger:scores", "metric_for_best_model": "mine"}
    file.write_text(yaml.safe_dump(received), encoding="utf-8")
    (run.path / "scores_of_a_stranger.py").write_text("open('ran', 'w')\n\n\ndef scores(p):\n    return {'mine': 1}\n")
    monkeypatch.chdir(run.path)
    assert main(["replay", ".", "--step", "7"]) == 0
    assert not Path("ran").exists()
    assert "scores_of_a_stranger" not in sys.modules


@pytest.fixture(scope="module")
def brittle(tmp_path_factory) -> Path:
    """A BERT whose first layer overflows float16 on the word RARE, and on no other."""
    path = tiny(tmp_path_factory.mktemp("brittle"), "bert")
    file = path / "model.safetensors"
    weights = load_file(file)
    of = {name.removeprefix("bert."): name for name in weights}
    words = weights[of["embeddings.word_embeddings.weight"]]
    for table in ("word", "position", "token_type"):
        weights[of[f"embeddings.{table}_embeddings.weight"]][:, 0] = 0
    words[WORDS.index(RARE)] = 0
    words[WORDS.index(RARE), 0] = 10.0  # LayerNorm makes sqrt(32) of it
    layer = "encoder.layer.0."
    weights[of[layer + "intermediate.dense.weight"]][0] = 0
    weights[of[layer + "intermediate.dense.weight"]][0, 0] = 50.0
    weights[of[layer + "intermediate.dense.bias"]][0] = -150.0
    weights[of[layer + "output.dense.weight"]][0, 0] = 1000.0
    save_file(weights, file, metadata={"format": "pt"})
    return path


def with_one_rare_word(given: dict[str, Any]) -> int:
    """Puts RARE into one row of the training file, and nowhere else; its number."""
    path, number = Path(given["data"]["train"]), 20
    for file in (path, Path(given["data"]["eval"])):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows = [{**row, "text": row["text"].replace(RARE, "slow")} for row in rows]
        if file == path:
            rows[number]["text"] += f" {RARE}"
        write(file, rows)
    return number


def test_a_planted_collapse_of_a_classifier_is_named_and_healed(brittle, tmp_path):
    given = settings_of(brittle, tmp_path, fp16=True)
    row = with_one_rare_word(given)
    run = train({**given, "precision": {"on_collapse": "heal"}})
    (file,) = run.path.glob("incidents/*/diagnosis.json")
    diagnosis = json.loads(file.read_text())
    assert (diagnosis["kind"], diagnosis["module"]) == ("forward_overflow", MODULE)
    assert diagnosis["evidence"]["rows_alone"] == [row]
    assert diagnosis["action"] == "heal"
    assert run.metrics["step"].max() == STEPS
    assert run.metrics["loss"].notna().sum() == STEPS
    weights = load_file(run.path / "adapter" / "adapter_model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())


def test_the_same_collapse_stops_where_it_is_asked_to(brittle, tmp_path):
    given = settings_of(brittle, tmp_path, fp16=True)
    with_one_rare_word(given)
    run = train({**given, "precision": {"on_collapse": "stop"}})
    (file,) = run.path.glob("incidents/*/diagnosis.json")
    diagnosis = json.loads(file.read_text())
    assert (diagnosis["module"], diagnosis["action"]) == (MODULE, "stop")
    assert any(finding.key.startswith("explain.stopped") for finding in run.explain())
