"""A hub that is away, or answers no, in one process of its own (hub_scenarios.py); no test here waits for a timeout."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from ..conftest import COMMAND_ENVIRONMENT, ROOT


@pytest.fixture(scope="module")
def scenarios(tiny_models) -> tuple[dict[str, dict], str]:
    """What each scenario ended in, and what the process wrote to standard error."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.trainer.hub_scenarios", str(tiny_models["llama"])],
        env=COMMAND_ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout), ran.stderr


@pytest.mark.parametrize("what", ["tokenizer", "data"])
@pytest.mark.parametrize(
    ("scenario", "error", "hint"),
    [
        ("silent", "has not answered within 0.4 seconds", "a firewall that swallows connections"),
        ("hangs", "has not answered within 0.4 seconds", "a firewall that swallows connections"),
        ("no address", "has no address here: its name could not be looked up", "is this machine on the network?"),
        ("refused", "refuses the connection: [Errno 111]", "is HF_ENDPOINT right"),
        ("busy", "answers with error 503", "the trouble is there, not here"),
        ("garbage", "answers, but not as the hub does", "does HF_ENDPOINT name a hub"),
        ("portal", "answers, but not as the hub does", "does HF_ENDPOINT name a hub"),
        ("nowhere", "answers, but not as the hub does", "does HF_ENDPOINT name a hub"),
        ("gated", "is gated", "accept them at http://127.0.0.1:"),
        ("missing", "has no missing/", "check the spelling"),
        ("revision", "has no such revision", "model.revision takes a branch"),
        ("expired", "wrong, expired or revoked", "`hf auth login` with a new one"),
        ("forbidden", "the token may not do that", "its permissions are on"),
    ],
)
def test_the_reason_is_said_with_its_own_hint(scenarios, what, scenario, error, hint):
    found = scenarios[0][f"{what} {scenario}"]
    assert error in found["error"]
    assert found["hint"].startswith(hint)


@pytest.mark.parametrize("scenario", ["silent", "garbage", "busy", "no address", "hangs", "refused"])
def test_a_host_that_does_not_answer_is_asked_once(scenarios, scenario):
    found, _ = scenarios
    reached = scenario in ("silent", "garbage", "busy")
    # one more question than the tokenizer's reaches it; whose, is not known
    assert found[f"data {scenario}"]["asked"] == reached
    assert found[f"tokenizer {scenario}"]["asked"] <= 2 * reached


@pytest.mark.parametrize("kind", ["model", "dataset"])
@pytest.mark.parametrize(
    ("owner", "error"),
    [
        ("silent", "has not answered within 0.4 seconds"),
        ("garbage", "answers, but not as the hub does"),
        ("busy", "answers with error 503"),
        ("portal", "answers, but not as the hub does"),
        ("gated", "is gated"),
        ("missing", "has no missing/name"),
        ("revision", "has no such revision"),
        ("expired", "wrong, expired or revoked"),
        ("forbidden", "the token may not do that"),
    ],
)
def test_a_command_asks_first_and_once(scenarios, kind, owner, error):
    found = scenarios[0][f"first {kind} {owner}"]
    assert error in found["error"]
    assert found["error"].startswith({"model": "model.name_or_path: ", "dataset": "data set "}[kind] + f"{owner}/name")
    assert (found["asked"], found["first"]) == (
        1,
        {"model": f"HEAD /{owner}/name/resolve/main/config.json", "dataset": f"GET /api/datasets/{owner}/name"}[kind],
    )


def test_what_the_hub_gives_or_the_cache_has_is_left_to_who_loads_it(scenarios):
    assert scenarios[0]["first model slow"]["answer"] is None
    assert scenarios[0]["first cached"] == {"answer": None, "asked": 0, "first": ""}
    assert scenarios[0]["imported"] == []  # when all of that had been asked


ASKS_FIRST = """
import json, sys
from lora_train.trainer.cli import main
for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    print(arguments[0], code, {"torch", "transformers", "datasets"} & sys.modules.keys())
"""


def test_every_command_that_loads_a_model_asks_before_torch_is_imported(tmp_path):
    """The hub is switched off: each says so."""
    run, rows = tmp_path / "run", tmp_path / "rows.jsonl"
    (run / "adapter").mkdir(parents=True)
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "base_model_name_or_path": "owner/model"}
    (run / "adapter" / "adapter_config.json").write_text(json.dumps(settings | {"target_modules": ["q_proj"]}))
    weights = {f"base_model.model.q_proj.lora_{side}.weight": np.ones((1, 1), np.float32) for side in "AB"}
    save_file(weights, run / "adapter" / "adapter_model.safetensors")
    rows.write_text('{"text": "a"}\n')
    (run / "config.yaml").write_text(f"model: {{name_or_path: owner/model}}\ndata: {{train: {rows}}}\n")
    commands = [
        ["--config", str(run / "config.yaml")],
        ["--config", str(run / "config.yaml"), "--dry-run"],
        ["merge", str(run)],
        ["merge", str(run / "adapter")],
        ["chat", str(run)],
        ["predict", str(run), str(rows), "-o", str(tmp_path / "out.jsonl")],
        ["evaluate", str(run), str(rows)],
        ["replay", str(run), "--step", "1"],
    ]
    command = [sys.executable, "-c", ASKS_FIRST, json.dumps(commands)]
    ended = subprocess.run(command, env=COMMAND_ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.stdout.splitlines() == [f"{arguments[0]} 2 set()" for arguments in commands], ended.stderr
    assert ended.stderr.count("owner/model is not in the cache, and HF_HUB_OFFLINE is set") == len(commands)


def test_from_python_too_torch_is_imported_after_the_question(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n')
    config = {"model": {"name_or_path": "owner/model"}, "data": {"train": str(rows)}}
    program = (
        "import json, sys\nfrom lora_train import UserError, train\n"
        "try:\n    train(json.loads(sys.argv[1]))\n"
        "except UserError as error:\n    print(error, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program, json.dumps(config)]
    ended = subprocess.run(command, env=COMMAND_ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert "owner/model is not in the cache, and HF_HUB_OFFLINE is set" in ended.stdout, ended.stderr
    assert ended.stdout.endswith("False\n")


def test_nothing_of_the_libraries_retries_is_printed(scenarios):
    noise = ("Retrying", "thrown while requesting", "Retry ", "Traceback")
    assert not [line for line in scenarios[1].splitlines() if any(word in line for word in noise)]


def test_a_slow_download_that_moves_is_not_cut_and_one_that_never_begins_is(scenarios):
    found, _ = scenarios
    assert found["tokenizer slow"]["answer"] == 512
    assert "has not answered within" in found["tokenizer stalls"]["error"]


def test_what_is_cached_needs_no_hub(scenarios):
    assert scenarios[0]["tokenizer refused but cached"] == {"answer": 512, "asked": 0, "first": ""}


def test_without_a_token_a_closed_door_means_log_in(scenarios):
    found, _ = scenarios
    assert "not logged in" in found["tokenizer anonymous, no token"]["error"]
    assert "wrong, expired or revoked" in found["tokenizer anonymous"]["error"]


def test_offline_with_nothing_cached_is_said(cli, tiny_models, tmp_path):
    """By the real command, which asks for the data first."""
    (tmp_path / "run.yaml").write_text(
        f"model: {{name_or_path: {tiny_models['llama']}}}\ndata: {{train: owner/rows}}\n"
    )
    result = cli("--config", tmp_path / "run.yaml", f"training.output_dir={tmp_path / 'run'}", "--dry-run")
    assert result.returncode == 2
    assert "owner/rows is not in the cache, and HF_HUB_OFFLINE is set" in result.stderr
    assert "`hf download owner/rows`" in result.stderr
