"""Two run folders that differ in one bit, one line or one file are told apart; times and paths are not looked at."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from benchmarks.same import content, differences


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two run folders of the same bits, made at other times."""
    base = tmp_path / "base"
    (base / "adapter").mkdir(parents=True)
    (base / "stats").mkdir()
    save_file({"A": np.array([1.0, 2.0], dtype=np.float32)}, base / "adapter" / "adapter_model.safetensors")
    pq.write_table(pa.table({"sumsq": [1.5, float("nan")], "n": [3, None]}), base / "stats" / "start-0.parquet")
    (base / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5, "step_seconds": 0.1}\n{"step": 2, "loss": null}\n')
    (base / "sites.json").write_text(json.dumps([{"module": "a", "shape": [1, 2]}]))
    head = Path(shutil.copytree(base, tmp_path / "head"))
    (head / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5, "step_seconds": 0.2}\n{"step": 2, "loss": null}\n')
    (head / "env.json").write_text("{}")
    for folder, seconds in ((base, "0.1"), (head, "0.2")):  # a checkpoint has the sums of what holds times
        (folder / "checkpoint-2").mkdir()
        (folder / "checkpoint-2" / "trainer_state.json").write_text(f'{{"train_seconds": {seconds}}}')
        (folder / "checkpoint-2" / "SHA256SUMS").write_text(f"{seconds}  trainer_state.json")
    return base, head


def test_the_same_bits(folders: tuple[Path, Path]):
    assert list(differences(*folders)) == []


def test_one_bit_of_an_adapter(folders: tuple[Path, Path]):
    nearly = np.array([1.0, np.nextafter(np.float32(2), np.float32(3))], dtype=np.float32)
    save_file({"A": nearly}, folders[1] / "adapter" / "adapter_model.safetensors")
    (found,) = differences(*folders)
    assert found.startswith("adapter/adapter_model.safetensors: A: float32[2] ")


def test_one_statistic(folders: tuple[Path, Path]):
    pq.write_table(pa.table({"sumsq": [1.5, None], "n": [3, None]}), folders[1] / "stats" / "start-0.parquet")
    assert list(differences(*folders)) == ["stats/start-0.parquet: sumsq[1]: nan before, None now"]


def test_a_line_and_a_column_more(folders: tuple[Path, Path]):
    with (folders[1] / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1}\n')
    assert list(differences(*folders)) == ["metrics.jsonl: line 3, epoch: nothing before, 1 now"]


def test_a_file_less(folders: tuple[Path, Path]):
    (folders[1] / "sites.json").unlink()
    assert list(differences(*folders)) == ["sites.json: only before"]


def test_content_of_json_says_where(folders: tuple[Path, Path]):
    assert content(folders[0] / "sites.json") == {"[0].module": "'a'", "[0].shape[0]": "1", "[0].shape[1]": "2"}
