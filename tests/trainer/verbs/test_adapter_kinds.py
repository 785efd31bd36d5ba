"""What adapter_config.json alone tells: no model is made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_train.trainer.errors import UserError
from lora_train.trainer.saved.sums import write_sums
from lora_train.trainer.verbs.adapter_folder import WEIGHTS
from lora_train.trainer.verbs.adapter_kinds import CHAT, MERGE, require_known, usable_adapter
from safetensors.numpy import save_file

SETTINGS: dict[str, Any] = {
    "peft_type": "LORA", "base_model_name_or_path": "owner/model", "task_type": "CAUSAL_LM",
    "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
}  # fmt: skip


def write(folder: Path, **settings) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
    pair = {"A": np.ones((2, 3), np.float32), "B": np.ones((5, 2), np.float32)}
    save_file(
        {f"base_model.model.q_proj.lora_{k}.weight": v for k, v in pair.items()}, folder / "adapter_model.safetensors"
    )
    return folder


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", "8"),
        ("r", 0),
        ("r", True),
        ("r", 8.5),
        ("lora_alpha", "16"),
        ("lora_alpha", float("nan")),
        ("lora_alpha", [16]),
        ("target_modules", 7),
        ("target_modules", {"q_proj": 1}),
        ("target_modules", ["q_proj", None]),
        ("target_modules", "("),
        ("exclude_modules", "["),
        ("modules_to_save", "lm_head"),
        ("rank_pattern", ["q_proj"]),
        ("rank_pattern", {"q_proj": "4"}),
        ("rank_pattern", {"(": 4}),
        ("alpha_pattern", {"q_proj": None}),
        ("bias", "some"),
        ("use_rslora", "yes"),
        ("use_dora", 1),
        ("layers_to_transform", "0"),
        ("layers_to_transform", [0.5]),
        ("trainable_token_indices", ["a"]),
        ("layer_replication", [0, 2]),
        ("layer_replication", [[0, 10**9]]),
        ("task_type", 3),
        ("revision", ["main"]),
        ("base_model_name_or_path", ["owner/model"]),
        ("target_parameters", "experts.down_proj"),
    ],
)
def test_a_value_of_another_type_is_named_with_file_and_key(tmp_path, key, value):
    folder = write(tmp_path / "a", **{key: value})
    with pytest.raises(UserError) as caught:
        usable_adapter(folder, CHAT)
    (problem,) = caught.value.problems
    assert problem.error.startswith(
        f"{folder / 'adapter_config.json'}: {key} is {'true' if value is True else value}"[:90]
    )
    assert problem.hint


def test_every_wrong_key_is_said_at_once(tmp_path):
    with pytest.raises(UserError) as caught:
        usable_adapter(write(tmp_path / "a", r="8", lora_alpha="16", bias=3), MERGE)
    assert len(caught.value.problems) == 3


ON = [("use_qalora", True), ("arrow_config", {"top_k": 3}), ("velora_config", {"a": 1}), ("megatron_config", {"a": 1})]
INITS = ["loftq", "pissa_niter_16", "corda", "lora_ga", "new_one"]


@pytest.mark.parametrize("verb", [MERGE, CHAT])
@pytest.mark.parametrize(("key", "value"), [*ON, *(("init_lora_weights", name) for name in INITS)])
def test_a_kind_that_is_not_computed_exactly_is_refused(tmp_path, key, value, verb):
    with pytest.raises(UserError, match=rf"adapter_config\.json: {key} is "):
        usable_adapter(write(tmp_path / "a", **{key: value}), verb)


@pytest.mark.parametrize(
    ("settings", "verb", "sentence"),
    [
        ({"task_type": "SEQ_2_SEQ_LM"}, MERGE, "task_type is SEQ_2_SEQ_LM"),
        ({"task_type": "FEATURE_EXTRACTION"}, CHAT, "task_type is FEATURE_EXTRACTION"),
        ({"task_type": "SEQ_CLS"}, CHAT, "a classifier has no answers"),
        ({"layer_replication": [[0, 1], [0, 2]]}, MERGE, "no merged weights do the same"),
        ({"alora_invocation_tokens": [3]}, MERGE, "no merged weights do the same"),
        ({"peft_type": "LOHA"}, MERGE, "peft_type is LOHA, not LORA"),
        ({"peft_type": ["LORA"]}, MERGE, "not LORA"),
        ({"base_model_name_or_path": "~no_such_user/model"}, MERGE, "is not there"),
        ({"base_model_name_or_path": "/" + "a" * 5000}, MERGE, "is not there"),
    ],
)
def test_what_one_verb_cannot_do_is_refused(tmp_path, settings, verb, sentence):
    with pytest.raises(UserError, match=sentence):
        usable_adapter(write(tmp_path / "a", **settings), verb)


@pytest.mark.parametrize(
    "settings",
    [
        {"task_type": "SEQ_CLS"},
        {"task_type": None},
        {"target_modules": None},
        {"target_modules": r".*q_proj"},
        {"lora_alpha": 4.0},
        {"lora_alpha": 0.5},
        {"init_lora_weights": "PiSSA"},
        {"init_lora_weights": False},
        {"use_qalora": False, "qalora_group_size": 16},
        {"megatron_core": "megatron.core"},
        {"loftq_config": {}},
        {"peft_type": "ADALORA", "rank_pattern": {"q_proj.lora_E": [True, False]}},
    ],
)
def test_what_peft_writes_is_taken(tmp_path, settings):
    assert usable_adapter(write(tmp_path / "a", **settings), MERGE).base == "owner/model"


@pytest.mark.parametrize(
    ("new", "refused"),
    [
        ({"use_new": True}, "use_new"),
        ({"new_config": {"a": 1}}, "new_config"),
        ({"new": "fast"}, "new"),
        ({"new": 3}, "new"),
        ({"use_new": False}, None),
        ({"new_config": None}, None),
        ({"new": {}}, None),
        ({"new": 0}, None),
        ({"use_new": False, "new_size": 16}, None),
        ({"new_config": None, "new_mode": "fast"}, None),
        ({"runtime_config": {"a": 1}}, None),
    ],
)
def test_a_newer_pefts_key_is_refused_if_it_asks_for_anything(tmp_path, new, refused):
    adapter = usable_adapter(write(tmp_path / "a", **new), MERGE)
    if refused is None:
        require_known(adapter, SETTINGS)
    else:
        with pytest.raises(UserError, match=f"{refused} is .*, which the installed peft does not know"):
            require_known(adapter, SETTINGS)


@pytest.mark.parametrize(
    ("name", "used"), [(WEIGHTS, False), ("adapter_config.json", False), ("optimizer.safetensors", True)]
)
def test_an_adapter_that_changed_since_its_run_wrote_it_is_refused(tmp_path, name, used):
    folder = write(tmp_path)
    for other in ("optimizer.safetensors", "trainer_state.json"):
        (folder / other).write_text("{}")
    write_sums(folder)
    (folder / "trainer_state.json").unlink()
    usable_adapter(folder, MERGE)
    written = (folder / name).read_bytes()
    changed = (
        written.replace(b"{", b"{ ", 1) if name == "adapter_config.json" else written[:-1] + bytes([written[-1] ^ 1])
    )
    (folder / name).write_bytes(changed)
    if used:
        usable_adapter(folder, MERGE)
        return
    with pytest.raises(UserError, match=f"is damaged: {name} is not as it was written"):
        usable_adapter(folder, MERGE)
