"""trainer_state.json of another version, of another hand, or damaged: said with file and key, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lora_train.trainer.config.schema import Config
from lora_train.trainer.saved.state import Progress, Torn, read_state, state_text
from lora_train.trainer.saved.sums import STATE

CONFIG = Config.model_validate({"model": {"name_or_path": "o/m"}, "data": {"train": "o/d", "format": "text"}})
HEAL = {
    "step": 4, "kind": "bad_weight", "module": None,
    "settings": {"training.learning_rate": 1e-4}, "before": {"training.learning_rate": 1e-3},
}  # fmt: skip
PROGRESS = Progress(step=6, start=1, heals=[HEAL], evaluations=[(3, 2.5), (6, float("nan"))], final_loss=1.5)


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "checkpoint-6"
    folder.mkdir()
    (folder / STATE).write_text(state_text(PROGRESS, CONFIG.model_dump()))
    return folder


def edit(folder: Path, key: str, value: Any) -> None:
    state = json.loads((folder / STATE).read_text())
    *parents, last = key.split("/")
    at = state
    for parent in parents:
        at = at[int(parent)] if isinstance(at, list) else at[parent]
    at[last] = value
    (folder / STATE).write_text(json.dumps(state))


def test_it_reads_what_it_writes(folder):
    progress, config = read_state(folder)
    assert repr(progress) == repr(PROGRESS)  # NaN is not equal to itself
    assert config == CONFIG


def test_a_file_of_the_first_release_is_read():
    progress, config = read_state(Path(__file__).parents[2] / "runs" / "v0_1_0" / "healthy" / "checkpoint-4")
    assert (progress.step, progress.evaluations, progress.evaluation_due) == (4, [(4, 5.84578369140625)], False)
    assert (config.lora.r, config.model.resize_embeddings) == (2, False)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("later", 1, "later"),
        ("config/later", {}, "config.later"),
        ("config/training/later", 1, "config.training.later"),
        ("config", [1], "config"),
        ("config/lora/r", "many", "config.lora.r"),
        ("config/training/learning_rate", float("nan"), "config.training.learning_rate"),
        ("step", "6", "step"),
        ("step", -1, "step"),
        ("step", 6.5, "step"),
        ("step", True, "step"),
        ("step", 10**30, "step"),
        ("start", None, "start"),
        ("train_seconds", float("inf"), "train_seconds"),
        ("final_loss", "1.5", "final_loss"),
        ("heals", [{"a": 1}], "heals.0"),
        ("heals", {}, "heals"),
        ("heals/0/settings", {"training.learning_rate": "fast"}, "heals.0.settings"),
        ("heals/0/before", {}, "heals.0.settings: training.learning_rate"),
        ("heals/0/settings", {"model.trust_remote_code": True}, "heals.0.settings: model.trust_remote_code"),
        ("heals/0/settings", {"model.name_or_path": "a/b"}, "heals.0.settings: model.name_or_path"),
        ("evaluations", [3, 2.5], "evaluations.0"),
        ("evaluations", [[3]], "evaluations.0"),
        ("evaluations", {"3": 2.5}, "evaluations"),
        ("schema_version", "1", "schema_version"),
    ],
)
def test_what_is_not_understood_is_named(folder, key, value, named):
    edit(folder, key, value)
    with pytest.raises(Torn) as error:
        read_state(folder)
    assert str(error.value).startswith(f"{STATE}: {named}")


@pytest.mark.parametrize("key", ["step", "start", "skipped", "train_seconds", "final_loss", "config"])
def test_a_key_that_is_missing_is_named(folder, key):
    state = json.loads((folder / STATE).read_text())
    del state[key]
    (folder / STATE).write_text(json.dumps(state))
    with pytest.raises(Torn, match=f"{STATE}: {key}: Field required"):
        read_state(folder)


def test_a_newer_version_and_another_step_are_named(folder):
    edit(folder, "schema_version", 99)
    with pytest.raises(Torn, match="schema_version 99 is newer than 1"):
        read_state(folder)
    edit(folder, "schema_version", 1)
    edit(folder, "step", 7)
    with pytest.raises(Torn, match="step is 7, the folder is named after step 6"):
        read_state(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"7",
        b"{",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"step": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_object_is_said(folder, content):
    (folder / STATE).write_bytes(content)
    with pytest.raises(Torn, match=f"^{STATE} "):
        read_state(folder)
