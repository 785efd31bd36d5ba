"""PPO's lines, which have no loss: read as they are printed, and judged by the score of the answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from lora_train.instrument.judge.explain import explain, lines, read_history

N = 60
T = np.linspace(0, 1, N)
NOISE = 0.1 * np.random.default_rng(0).standard_normal(N)
RISES = 0.2 + 1.3 * T + NOISE


def records(**other) -> list[dict]:
    """As TRL's PPOTrainer logs them."""
    columns = {
        "eps": np.full(N, 12), "objective/kl": 8 * T + NOISE, "objective/entropy": 60 - 10 * T + NOISE,
        "objective/non_score_reward": -0.05 * 8 * T, "objective/rlhf_reward": RISES - 0.4 * T,
        "objective/scores": RISES, "policy/approxkl_avg": 0.01 + NOISE / 100, "policy/clipfrac_avg": 0.1 + NOISE / 10,
        "loss/policy_avg": -0.02 + NOISE / 10, "loss/value_avg": 0.3 * np.exp(-3 * T), "val/clipfrac_avg": 0 * T,
        "policy/entropy_avg": 1.1 - 0.2 * T, "val/ratio": 1 + NOISE / 10, "val/ratio_var": 1e-4 + 0 * T,
        "val/num_eos_tokens": np.arange(N) % 7, "lr": 3e-6 * (1 - T), "episode": 512 * np.arange(1, N + 1),
        "epoch": T,
    }  # fmt: skip
    columns |= other
    return [{name: float(values[i]) for name, values in columns.items()} for i in range(N)]


@pytest.fixture(params=["console", "state", "wandb"])
def written(request, tmp_path):
    """Writes those lines as one of the files that hold them."""

    def write(**other) -> str:
        lines_ = records(**other)
        if request.param == "console":
            path = tmp_path / "train.log"
            path.write_text("\n".join(str(line) for line in lines_))
        elif request.param == "state":
            path = tmp_path / "trainer_state.json"
            history = [line | {"step": i + 1} for i, line in enumerate(lines_)]
            path.write_text(json.dumps({"log_history": history, "global_step": N, "max_steps": N}))
        else:
            path = tmp_path / "wandb.jsonl"
            renamed = [{f"train/{key}": value for key, value in line.items()} for line in lines_]
            path.write_text("\n".join(json.dumps(line | {"_step": i}) for i, line in enumerate(renamed)))
        return str(path)

    return write


def test_its_lines_are_steps_and_no_evaluation(written):
    history = read_history(written())
    assert (history.task, history.task_known, history.trainer) == ("ppo", True, "trl")
    assert (len(history.steps), len(history.evals)) == (N, 0)
    assert history.column("val/ratio")[0] == pytest.approx(1 + NOISE[0] / 10)
    assert history.column("learning_rate").max() == pytest.approx(3e-6)


CASES = [
    ({}, "ppo_rose", "healthy"),
    ({"objective/scores": RISES[::-1]}, "ppo_fell", "watch"),
    ({"objective/scores": 0.5 + NOISE}, "ppo_flat", "note"),
    ({"objective/rlhf_reward": 1 - T + NOISE}, "ppo_penalty", "watch"),
    ({"objective/kl": -3 * T}, "ppo_kl_negative", "watch"),
    ({"objective/kl": NOISE}, "ppo_kl", "note"),
    ({"val/ratio": 1 + 5 * T}, "ppo_ratio", "watch"),
    ({"policy/clipfrac_avg": 0.1 + 0.5 * T}, "ppo_clipped", "watch"),
    ({"objective/entropy": 60 * np.exp(-5 * T)}, "ppo_entropy", "watch"),
    ({"val/num_eos_tokens": 0 * T}, "ppo_no_end", "note"),
]


@pytest.mark.parametrize(("columns", "key", "verdict"), CASES, ids=[key for _, key, _ in CASES])
def test_what_is_said_of_it(written, columns, key, verdict):
    history = read_history(written(**columns))
    found = explain(history)
    assert (f"explain.{key}", verdict) in [(finding.key, finding.verdict) for finding in found]
    said = {finding.key for finding in found}
    assert said.isdisjoint({"explain.loss_nan_moves", "explain.loss_short", "explain.eval_missing_stock"})
    for lang in ("en", "ko"):
        assert not [line for line in lines(history, found, lang) if "{" in line]


def test_a_healthy_run_is_called_healthy(written):
    assert explain(read_history(written()))[0].verdict == "healthy"


def test_the_first_ppo_trainers_lines_are_read(tmp_path):
    path = tmp_path / "x.log"
    lines_ = [
        {"objective/kl": float(8 * T[i]), "ppo/mean_scores": float(RISES[i]), "ppo/loss/total": 0.1} for i in range(N)
    ]
    path.write_text("\n".join(str(line) for line in lines_))
    history = read_history(str(path))
    assert history.task == "ppo"
    assert "explain.ppo_rose" in {finding.key for finding in explain(history)}


def test_rewards_without_a_loss_are_no_collapse(tmp_path):
    """The same of GRPO's lines: what is not logged is not NaN."""
    path = tmp_path / "x.log"
    path.write_text("\n".join(str({"reward": float(value), "learning_rate": 1e-6}) for value in RISES))
    found = explain(read_history(str(path)))
    assert "explain.reward_rose" in {finding.key for finding in found}
    assert found[0].verdict == "healthy"
