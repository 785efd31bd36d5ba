from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from lora_train.trainer.checks.read_config import read_config, read_settings
from lora_train.trainer.checks.unknown_keys import (
    OPPOSITES,
    PEER_NAMES,
    SHORT_NAMES,
    flags_as_overrides,
    take_out,
)
from lora_train.trainer.cli import TRAIN_OPTIONS, _train_parser, main
from lora_train.trainer.config.schema import sections
from lora_train.trainer.errors import UserError

from ...conftest import DATA

MINIMAL = {"model": {"name_or_path": "owner/model"}, "data": {"train": str(DATA), "format": "koalpaca"}}
KEYS = {f"{section}.{key}" for section, schema in sections().items() for key in schema.model_fields}
ANOTHER_TRAINERS_KEYS = """
model: {name_or_path: m, load_in_8bit: true}
load_in_8bit: true
train_on_inputs: false
sample_packing: true
flash_attention: true
local_rank: 0
data: {train: x.jsonl}
training:
  {deepspeed: ds.json, eval_accumulation_steps: 4, logging_nan_inf_filter: false, completion_only_loss: true,
   overwrite_cache: true}
"""


def write(folder: Path, content: object) -> Path:
    path = folder / "run.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def problems(path: Path, *overrides: str) -> dict[str, str]:
    """Key -> hint."""
    with pytest.raises(UserError) as raised:
        read_config(path, overrides)
    return {problem.error.split(": ")[1].split(" ")[0]: problem.hint for problem in raised.value.problems}


def test_hints_name_the_key_that_was_meant(tmp_path):
    found = problems(write(tmp_path, ANOTHER_TRAINERS_KEYS))
    sections_listed = " sections: model, quantization, lora, data, training, precision, instrument"
    assert found["load_in_8bit"] == "did you mean quantization.load_in_8bit?" + sections_listed
    assert found["train_on_inputs"] == "did you mean data.train_on_inputs?"
    assert found["sample_packing"] == "did you mean data.packing?"
    assert found["flash_attention"] == "did you mean model.attn_implementation?"
    assert found["model.load_in_8bit"].startswith("did you mean quantization.load_in_8bit?")
    assert found["training.deepspeed"].startswith("lora-train has nothing for deepspeed (it is about memory")
    assert found["training.eval_accumulation_steps"].startswith("lora-train has nothing for eval_accumulation_steps")
    assert found["training.logging_nan_inf_filter"].startswith("lora-train has nothing for logging_nan_inf_filter")
    opposite = "data.train_on_inputs is the opposite of completion_only_loss: true there is false here."
    assert found["training.completion_only_loss"] == opposite
    assert found["training.overwrite_cache"].startswith("data.cache is the opposite of overwrite_cache")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("model.name", "model.name_or_path"), ("model.path", "model.name_or_path"),
        ("model.model", "model.name_or_path"),
        ("data.path", "data.train"), ("data.file", "data.train"), ("data.data", "data.train"),
        ("data.val", "data.eval"),
        ("training.epochs", "training.num_train_epochs"), ("training.steps", "training.max_steps"),
        ("training.output", "training.output_dir"), ("training.batch", "training.per_device_train_batch_size"),
        ("lora.target", "lora.target_modules"),
    ],
)  # fmt: skip
def test_a_short_name_is_what_its_section_makes_of_it(tmp_path, key, meant):
    assert problems(write(tmp_path, MINIMAL), f"{key}=x")[key].startswith(f"did you mean {meant}?")


@pytest.mark.parametrize("key", ["data.split", "data.shards", "training.momentum", "training.curriculum", "lora.scale"])
def test_a_name_that_is_not_near_gets_no_guess(tmp_path, key):
    section, name = key.split(".")
    found = problems(write(tmp_path, {**MINIMAL, section: {**MINIMAL.get(section, {}), name: 3}}))
    assert "did you mean" not in found[key]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("training.per_device_batch_size", "training.per_device_train_batch_size"),
        ("training.learning_rte", "training.learning_rate"),
        ("training.num_epochs", "training.num_train_epochs"),
        ("training.patience", "training.early_stopping_patience"),
        ("data.cutof_len", "data.cutoff_len"),
        ("lora.lora_alhpa", "lora.lora_alpha"),
    ],
)
def test_a_slip_gets_its_guess(tmp_path, key, meant):
    section, name = key.split(".")
    found = problems(write(tmp_path, {**MINIMAL, section: {**MINIMAL.get(section, {}), name: 3}}))
    assert found[key].startswith(f"did you mean {meant}?")


def test_harmless_keys_are_taken_with_one_note(tmp_path):
    content = {**MINIMAL, "wandb_project": "p", "training": {"dataloader_num_workers": 4, "tf32": True, "seed": 3}}
    told: list[str] = []
    config = read_config(write(tmp_path, content), (), told.append)
    assert config.training.seed == 3
    assert told == [
        "ignored, because nothing that is learned depends on it here: wandb_project, training.dataloader_num_workers, "
        "training.tf32"
    ]


def test_what_is_off_and_does_not_exist_is_taken(tmp_path):
    told: list[str] = []
    read_config(write(tmp_path, {**MINIMAL, "training": {"deepspeed": None, "use_dora": False}}), (), told.append)
    assert len(told) == 1


@pytest.mark.parametrize("key", ["training.deepspeed=ds.json", "training.neftune_noise_alpha=5", "lora.use_dora=true"])
def test_what_would_change_something_is_refused(tmp_path, key):
    with pytest.raises(UserError, match="is not a known key"):
        read_config(write(tmp_path, MINIMAL), [key], print)


@pytest.mark.parametrize("key", ["logging_step", "wandb", "dataloader_num_worker", "save_step", "overwrite_cache"])
def test_a_mistyped_key_is_never_taken_for_a_harmless_one(tmp_path, key):
    with pytest.raises(UserError, match="is not a known key"):
        read_config(write(tmp_path, MINIMAL), [f"training.{key}=1"], print)


def test_a_setting_for_a_replay_is_one_that_does_something(tmp_path):
    with pytest.raises(UserError, match=r"training\.tf32 is not a known key"):
        read_settings(write(tmp_path, MINIMAL), ["training.tf32=true"])


def test_the_list_of_keys_is_printed_once(tmp_path):
    found = problems(write(tmp_path, MINIMAL), "training.zzz=1", "training.yyy=1", "lora.xxx=1", "lora.www=1")
    assert [("known keys" in hint) for hint in found.values()].count(True) == 2


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("training.local_rank", ""),
        ("training.deepsped", ""),
        ("evals_per_epoch", "training.eval_steps"),
        ("saves_per_epoch", "training.save_steps"),
        ("quantization_bit", "quantization.load_in_4bit"),
        ("warmup", "training.warmup_steps"),
        ("training.sequence_lenght", "data.cutoff_len"),
        ("lora.leanring_rate", "training.learning_rate"),
        ("model.torch_dtpye", "model.dtype"),
    ],
)
def test_a_near_miss_that_means_something_else_is_no_hint(tmp_path, key, meant):
    (hint,) = problems(
        write(tmp_path, {**MINIMAL, key: 1} if "." not in key else MINIMAL), *([f"{key}=1"] if "." in key else ())
    ).values()
    assert hint.startswith(f"did you mean {meant}?") if meant else "did you mean" not in hint


def test_names_of_peers_are_keys_of_ours():
    short = {key for names in SHORT_NAMES.values() for key in names.values()}
    assert {*PEER_NAMES.values(), *OPPOSITES.values(), *short} <= KEYS
    assert not PEER_NAMES.keys() & OPPOSITES.keys()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--learning_rate", "1e-3"], ["training.learning_rate=1e-3"]),
        (["--learning-rate=1e-3"], ["training.learning_rate=1e-3"]),
        (["--lora.r", "16", "a.b=c"], ["lora.r=16", "a.b=c"]),
        (["--fp16", "--dry-run"], ["training.fp16=true", "--dry-run"]),
        (["--max_steps", "-1"], ["training.max_steps=-1"]),
        (["--model_name_or_path", "m"], ["model.name_or_path=m"]),
        (["--lora_r=8"], ["lora.r=8"]),
        (["--dataloader_num_workers", "4"], ["training.dataloader_num_workers=4"]),
        (["--config", "c.yaml", "--resume=auto"], ["--config", "c.yaml", "--resume=auto"]),
        (["lora.r=3"], ["lora.r=3"]),
        (["--"], ["--"]),
    ],
)
def test_flags_of_other_trainers_are_overrides(argv, expected):
    assert flags_as_overrides(argv, TRAIN_OPTIONS) == expected


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("--learing_rate", "did you mean training.learning_rate?"),
        ("--completion_only_loss", "data.train_on_inputs is the opposite of completion_only_loss"),
        ("--deepspeed", "lora-train has nothing for deepspeed"),
        ("--zzzz", "lora-train --config"),
        ("--resmue", "did you mean --resume?"),
        ("--dryrun", "did you mean --dry-run?"),
        ("--lang", "LORA_TRAIN_LANG=ko"),
    ],
)
def test_a_flag_that_names_no_key(flag, hint):
    with pytest.raises(UserError) as raised:
        flags_as_overrides([flag, "1"], TRAIN_OPTIONS)
    (problem,) = raised.value.problems
    assert problem.error == f"command line: {flag} is no option of lora-train and no key of its configuration"
    assert problem.hint.startswith(hint)


def test_the_options_that_stay_are_those_of_the_parser():
    known = {option for action in _train_parser()._actions for option in action.option_strings if len(option) > 2}
    assert known == set(TRAIN_OPTIONS)


def test_nothing_of_ours_is_taken_out():
    raw = {"training": {"padding_free": True, "tf32": 1}, "data": {"padding_free": True}, "lora": None}
    assert take_out(raw) == ["training.tf32"]
    assert raw == {"training": {"padding_free": True}, "data": {"padding_free": True}, "lora": None}


@pytest.mark.parametrize("verb", [[], ["train"]])
def test_flags_and_the_word_train_reach_the_configuration(tmp_path, capsys, verb):
    path = str(write(tmp_path, MINIMAL))
    assert main([*verb, "--config", path, "--learning_rate", "fast", "--lora_rank=0"]) == 2
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")] == [
        "error: command line: lora.r must be at least 1, not 0",
        "error: command line: training.learning_rate must be a number, not fast",
    ]
