"""Logs and run folders of evaluations made for one comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from lora_train.instrument.judge.explain.finding import Finding
from lora_train.instrument.read.eval_rows import EvaluationRows, write_rows
from lora_train.instrument.read.history import History
from lora_train.instrument.show.compare import compare_runs, comparison_lines

from ...judge.explain.build import falling, history


def evaluated(loss: Sequence[float] | np.ndarray, **more: Any) -> History:
    """A stock log whose evaluations have that loss; what is given besides are columns of them."""
    n = len(loss)
    evals = {"step": [10 * i + 10 for i in range(n)], "eval_loss": [float(x) for x in loss], **more}
    return history(kind="trainer", loss=falling(10 * n), evals=evals)


def folder(path: Path, rows: EvaluationRows, config: dict[str, dict[str, Any]] | None = None) -> Path:
    """A run folder with one evaluation at step 10, whose rows are stored."""
    path.mkdir()
    mean = float(rows.loss_sum.sum() / rows.n_tokens.sum())
    lines = [{"start": 0, "step": step, "loss": 2.0, "tokens": 9} for step in range(1, 11)]
    lines.append({"start": 0, "step": 10, "eval_loss": mean, "eval_runtime": 1.0})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "config.yaml").write_text(yaml.safe_dump({"training": {"max_steps": 10}, **(config or {})}))
    write_rows(path, 10, 0, rows)
    return path


def rows_of(seed: int, n: int = 100, first: int = 0, factor: float = 1.0, noise: float = 0.1) -> EvaluationRows:
    """Rows whose losses scatter as those of texts do, times a factor, with a heavy-tailed change of each."""
    tokens = np.random.default_rng(1).integers(5, 400, n + first)[first:].astype("int32")
    level = np.random.default_rng(2).lognormal(0.3, 0.5, n + first)[first:]
    change = np.clip(1 + noise * np.random.default_rng(seed).standard_t(3, n), 0.2, 5)
    row = np.arange(first, first + n, dtype="int32")
    return EvaluationRows(row, tokens * level * factor * change, tokens, (row + 7).astype("uint64"))


def found(runs: Sequence[History]) -> dict[str, Finding]:
    """The findings by key without its first word; said in both languages."""
    comparison = compare_runs(runs)
    for lang in ("en", "ko"):
        assert comparison_lines(comparison, lang)
    return {finding.key.removeprefix("compare."): finding for finding in comparison.findings}
