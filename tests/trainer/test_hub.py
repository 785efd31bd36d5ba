"""A hub that is away, or answers no, in one process of its own (hub_scenarios.py); no test here waits for a timeout."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

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


def test_the_hub_is_asked_while_libraries_are_imported(scenarios):
    silent, gated = (scenarios[0][f"ahead {owner}"] for owner in ("silent", "gated"))
    assert silent["first"] == "HEAD /silent/model/resolve/main/config.json"
    assert silent["asked"] == 1  # and the model is not asked for again
    assert "has not answered within" in silent["error"]
    assert gated["first"] == "HEAD /gated/model/resolve/main/config.json"
    assert "is gated" in gated["error"]  # which the question ahead does not say


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
