"""`lora-train rows` on a run of a tiny model: the list, CSV, YAML, a probe, and what it says where it cannot."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from lora_train.instrument.judge import row_noise
from lora_train.instrument.judge.row_score import FLAGGED
from lora_train.instrument.read.load import load_run
from lora_train.trainer.cli import main

from ...conftest import Cli

QUESTIONS = [
    {"instruction": f"What is the colour of thing {i}?", "output": f"Thing {i} is {('red', 'blue')[i % 2]} and {i}."}
    for i in range(40)
]
GARBLED = {"instruction": "What is the colour of thing 3?", "output": "zqx vkj ### %% wqp zzz qqq xkcd jjj"}


@pytest.fixture(scope="module")
def run(tiny_models: dict[str, Path], cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    rows = [*QUESTIONS, QUESTIONS[4], GARBLED]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = {
        "model": {"name_or_path": str(tiny_models["llama"])},
        "data": {"train": str(folder / "rows.jsonl"), "format": "alpaca", "cutoff_len": 200},
        "training": {"output_dir": str(folder / "run"), "max_steps": 21, "per_device_train_batch_size": 4},
        "instrument": {"rows_every": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    result = cli("--config", folder / "config.yaml")
    assert result.returncode == 0, result.stderr
    return folder / "run"


def listed(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_all_rows_are_listed_worst_first(run: Path, cli: Cli):
    result = cli("rows", run, "--csv")
    assert result.returncode == 0, result.stderr
    rows = listed(result.stdout)
    assert next(iter(rows[0])) == "row"
    assert sorted(int(row["row"]) for row in rows) == list(range(42))
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    same = {row["row"]: row for row in rows if row["like"]}
    assert {same["40"]["like"], same["4"]["like"]} == {"4", "40"}
    assert float(same["40"]["duplicate"]) == 1.0
    assert {int(row["seen"]) for row in rows} == {1, 2}
    assert all("colour of thing" in row["text"] for row in rows)


def test_the_list_says_what_it_cannot_tell(run: Path, cli: Cli):
    result = cli("rows", run, "-n", "3")
    lines = result.stdout.splitlines()
    assert lines[0].endswith("Look at them before you leave them out.")
    assert lines[1].split()[:2] == ["row", "score"]
    assert len(lines) == 2 + 3 + 2
    assert "cannot tell a wrong answer" in lines[5]
    assert lines[6].endswith(f"lora-train rows {run} --probe")
    korean = cli("rows", run, "-n", "1", "--lang", "ko").stdout
    assert "눈에 띕니다" in korean


def test_the_row_that_weighed_far_more_than_its_length_is_named(run: Path, monkeypatch, capsys):
    monkeypatch.setattr(row_noise, "WEIGHTY", 0.1)
    assert main(["rows", str(run)]) == 0
    found = re.search(
        r"Row (\d+) weighed .* at step (\d+): .* would have been (\S+) instead of (\S+)\.", capsys.readouterr().out
    )
    assert found
    recorded = load_run(run)
    own = recorded.rows(steps=[int(found[2])]).set_index("row")
    assert own["sumsq"].idxmax() == int(found[1])
    norm = recorded.metrics().set_index("step")["grad_norm"][int(found[2])]
    n, row = own["n_supervised"].sum(), own.loc[int(found[1])]
    rest = (norm**2 - 2 * row["along"] + row["sumsq"]) ** 0.5 * n / (n - row["n_supervised"])
    assert (found[3], found[4]) == (f"{rest:.3g}", f"{norm:.3g}")
    monkeypatch.setattr(row_noise, "WEIGHTY", 100.0)
    assert main(["rows", str(run)]) == 0
    assert "weighed" not in capsys.readouterr().out


def test_rows_to_skip_are_a_configuration(run: Path, cli: Cli):
    result = cli("rows", run, "--yaml")
    assert result.stdout.splitlines()[0].endswith(f"read them first: lora-train rows {run}")
    skipped = yaml.safe_load(result.stdout)["data"]["skip_rows"]
    flagged = [int(row["row"]) for row in listed(cli("rows", run, "--csv").stdout) if float(row["score"]) >= FLAGGED]
    assert {4, 40} <= set(flagged), "copies of each other"
    assert skipped == sorted({*flagged} - {4}), "of copies the first stays"


def test_a_probe_says_what_it_costs_and_adds_what_questions_save(run: Path, cli: Cli):
    result = cli("rows", run, "--probe", "--csv")
    assert result.returncode == 0, result.stderr
    assert "probing 42 rows: 4 forward passes each" in result.stderr
    rows = listed(result.stdout)
    assert all(np.isfinite(float(row["saved"])) for row in rows)
    assert all(row["probe_z"] for row in rows)


def test_without_the_data_the_numbers_are_enough(run: Path, cli: Cli, tmp_path: Path):
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    config = yaml.safe_load((moved / "config.yaml").read_text(encoding="utf-8"))
    config["data"]["train"] = str(tmp_path / "gone.jsonl")
    (moved / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    result = cli("rows", moved, "--csv")
    assert result.returncode == 0, result.stderr
    assert "without texts and duplicates" in result.stderr
    rows = listed(result.stdout)
    assert len(rows) == 42
    assert not any(row["text"] or row["like"] for row in rows)
    refused = cli("rows", moved, "--probe")
    assert refused.returncode == 2
    assert "--probe needs the rows of the run" in refused.stderr


def test_a_folder_without_rows_is_refused(run: Path, cli: Cli, tmp_path: Path):
    result = cli("rows", tmp_path)
    assert result.returncode == 2
    assert "holds no run" in result.stderr
    bare = tmp_path / "bare"
    shutil.copytree(run, bare)
    shutil.rmtree(bare / "rows")
    result = cli("rows", bare)
    assert result.returncode == 2
    assert "recorded no rows" in result.stderr


def test_metrics_that_are_no_file_are_named(run: Path, cli: Cli, tmp_path: Path):
    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy" / "metrics.jsonl").unlink()
    (tmp_path / "copy" / "metrics.jsonl").mkdir()
    result = cli("rows", tmp_path / "copy")
    assert result.returncode == 2
    assert "copy cannot be read: it is not a regular file" in result.stderr


def test_a_page_has_texts_only_where_it_is_asked_for_them(run: Path, cli: Cli, tmp_path: Path):
    pages = {}
    for name, more in (("plain", ()), ("texts", ("--rows-text",))):
        result = cli("report", run, "-o", tmp_path / f"{name}.html", *more)
        assert result.returncode == 0, result.stderr
        text = (tmp_path / f"{name}.html").read_text(encoding="utf-8")
        found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
        assert found
        pages[name] = json.loads(found[1])["rows"]
        assert ("the colour of thing" in text) == (name == "texts")
    assert pages["plain"]["texts"] is None
    assert "colour of thing 3" in pages["texts"]["texts"]["3"]
    assert {own[0] for own in pages["texts"]["like"] if own} == {4, 40}
    assert not any(pages["plain"]["like"])


def test_texts_are_asked_of_a_run(cli: Cli, tmp_path: Path):
    (tmp_path / "log.txt").write_text("{'loss': 1.0, 'epoch': 0.1}\n")
    result = cli("report", tmp_path / "log.txt", "--rows-text")
    assert result.returncode == 2
    assert "--rows-text takes the folder of one run" in result.stderr


def test_code_that_comes_with_a_runs_model_runs_at_the_users_word_alone(run: Path, tmp_path: Path, capsys):
    received = Path(shutil.copytree(run, tmp_path / "run"))
    config = yaml.safe_load((received / "config.yaml").read_text())
    model, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(config["model"]["name_or_path"], model)
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "Foreign", "auto_map": {"AutoTokenizer": ["foreign.Foreign", "foreign.Foreign"]}}
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (model / "foreign.py").write_text(
        f"open({str(ran)!r}, 'w')\nimport transformers as t\nclass Foreign(t.PreTrainedTokenizerFast): 0\n"
    )
    config["model"] |= {"name_or_path": str(model), "trust_remote_code": True}
    (received / "config.yaml").write_text(yaml.safe_dump(config))
    page = ["report", str(received), "--rows-text", "-o", str(tmp_path / "page.html")]
    for verb in (["rows", str(received)], page):
        assert main(verb) == 0
        assert "read that code, then --trust-remote-code lets it run" in capsys.readouterr().err
    assert main(["rows", str(received), "--probe"]) == 2
    assert not ran.exists()
    for verb in (["rows", str(received)], page):
        assert main([*verb, "--trust-remote-code"]) == 0
    assert ran.exists()
    assert "colour of thing" in (tmp_path / "page.html").read_text()
