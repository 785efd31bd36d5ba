"""Each rule on a run built to trigger it and on one built not to."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from lora_train.instrument.judge.explain import explain
from lora_train.instrument.judge.explain.rules import gradients, loss, outcome, resources, schedule, stock

from ..build import falling, history, settling

NAN = float("nan")
N = 100
NOISE = np.random.default_rng(1).lognormal(0, 0.3, N)
STEPS = np.arange(1, N + 1)
NORMAL = np.random.default_rng(0).standard_normal(N)
WRONG_ROWS = NOISE * np.exp(-STEPS / 400) * np.where(STEPS % 20 == 10, 40, 1)
LATER = np.where(STEPS > 50, 1.0, 0.0)
GREW = 8 + LATER
LONG = np.where(STEPS == 51, 900, 300)
EXPLODED = NOISE * np.where(STEPS > 70, 50, 1)
GROWS = 8 + np.minimum(STEPS / 20, 1)
ENDED = np.where(STEPS > 40, 0.0, NOISE)
IN_BLOCKS = 8.0 + (STEPS > 70) + (STEPS > 20)
SLOWER = {"step_seconds": 1 + STEPS / N, "tokens": np.full(N, 100)}
UNKNOWN_LAST = np.where(STEPS < N, STEPS - 20, np.nan)
SLOW = np.linspace(5.59, 5.51, 20)
PART, THRICE = np.linspace(0, 0.4, 200), np.linspace(0, 3, 200)


def keys(found) -> list[str]:
    return [finding.key.removeprefix("explain.") for finding in found]


def key(finding) -> str | None:
    return finding.key.removeprefix("explain.") if finding else None


@pytest.mark.parametrize(
    ("rule", "columns", "expected"),
    [
        (loss.course, {"loss": falling()}, "loss_fell"),
        (loss.course, {"loss": falling(last=3.0)}, "loss_flat"),
        (loss.course, {"loss": SLOW}, "loss_little"),
        (loss.course, {"loss": falling(last=5.0)}, "loss_rose"),
        (loss.course, {"loss": [2.0, 1.9]}, "loss_short"),
        (loss.course, {"loss": [2.0, 1.9, 2.1, 2.0, 2.2, 2.4]}, "loss_unclear"),
        (loss.course, {"loss": np.concatenate([falling(80, 3.0, 1.5), falling(40, 1.5, 2.5)])}, "loss_turned"),
        (loss.course, {"loss": np.zeros(9)}, "loss_unclear"),
        (loss.blew_up, {"loss": [1.6, 11.8, 11, 10, 10.4, 10.4], "learning_rate": [5.0] * 6}, "loss_blew_up_rate"),
        (loss.blew_up, {"loss": [1.6, 11.8, 11, 10, 10.4], "learning_rate": np.full(5, 1e-4)}, "loss_blew_up"),
        (loss.blew_up, {"loss": [1.6, 11.8, 2.0, 1.7, 1.6]}, None),
        (loss.blew_up, {"loss": [36.0, 77, 115, 104, 70, 55], "learning_rate": [2.2] * 6}, "loss_beyond"),
        (loss.blew_up, {"loss": [36.0, 77, 115, 104, 70, 55], "learning_rate": [1e-4] * 6}, None),
        (loss.no_model, {"loss": [344093.0, 9.0, 8.0]}, "no_model"),
        (loss.no_model, {"loss": [12.4, 9.0, 8.0]}, None),
        (loss.course, {"loss": falling(2000, first=1.5, last=1.2, noise=0.2)}, "loss_fell"),
        (loss.nonfinite, {"loss": [2.0, NAN, 2.0], "nonfinite_micro_batches": [0, 1, 0]}, "loss_nonfinite"),
        (loss.nonfinite, {"loss": [2.0, 2.0, 2.0], "nonfinite_micro_batches": [0, 0, 0]}, None),
        (loss.by_heart, {"loss": 3 * np.exp(-STEPS / 15), "epoch": STEPS / 10}, "by_heart"),
        (loss.by_heart, {"loss": 3 * np.exp(-STEPS / 15)}, "by_heart_sometime"),
        (loss.by_heart, {"loss": falling(), "epoch": STEPS / 10}, None),
        (loss.jagged, {"loss": falling()}, "jagged_log"),
        (loss.jagged, {"loss": 2 + np.where(STEPS > 50, 1.0, 0.1) * NORMAL}, "jagged_more"),
        (gradients.spread, {"grad_norm": NOISE}, "grad_spread"),
        (gradients.spikes, {"grad_norm": np.where(STEPS == 40, 30.0, NOISE)}, "spikes"),
        (gradients.spikes, {"grad_norm": NOISE}, None),
        (gradients.spikes, {"grad_norm": WRONG_ROWS, "loss": 0.02 * WRONG_ROWS}, "spikes_rows"),
        (gradients.spikes, {"grad_norm": WRONG_ROWS, "loss": falling()}, "spikes"),
        (gradients.spread, {"grad_norm": np.zeros(N)}, None),
        (gradients.none_since, {"grad_norm": ENDED, "loss": falling()}, "gradient_none_since"),
        (gradients.none_since, {"grad_norm": np.where(STEPS == 40, 0.0, NOISE), "loss": falling()}, None),
        (gradients.exploding, {"grad_norm": EXPLODED, "loss": falling(last=4.0)}, "exploding"),
        (gradients.exploding, {"grad_norm": EXPLODED, "loss": falling()}, None),
        (gradients.exploding, {"grad_norm": NOISE, "loss": falling(last=4.0)}, None),
        (gradients.vanishing, {"grad_norm": NOISE * np.where(STEPS > 70, 1e-5, 1), "loss": falling()}, "vanishing"),
        (gradients.vanishing, {"grad_norm": NOISE * np.where(STEPS > 70, 1e-5, 1), "loss": falling(last=0.1)}, None),
        (gradients.vanishing, {"grad_norm": NOISE, "loss": falling()}, None),
        (gradients.clipping, {"grad_norm": 5 * NOISE}, "clipped_always"),
        (gradients.clipping, {"grad_norm": NOISE}, "clipped_often"),
        (gradients.clipping, {"grad_norm": 0.1 * NOISE}, "clipped_rarely"),
        (gradients.above_one, {"grad_norm": 6 * NOISE, "loss": falling()}, "above_one"),
        (gradients.above_one, {"grad_norm": 6 * NOISE, "loss": falling(last=3.2)}, None),
        (gradients.above_one, {"grad_norm": 0.1 * NOISE, "loss": falling()}, None),
        (schedule.course, {"learning_rate": 1e-3 * np.minimum(STEPS / 10, 1) * (1 - STEPS / N)}, "rate_course"),
        (schedule.course, {"learning_rate": 1e-3 * STEPS / N}, "warm_up_long"),
        (schedule.course, {"learning_rate": np.full(N, 5.0)}, "rate_far"),
        (schedule.course, {"learning_rate": np.full(N, 1e-9)}, "rate_tiny"),
        (schedule.course, {"learning_rate": np.full(N, 5e-7)}, "rate_course"),
        (schedule.course, {"learning_rate": np.zeros(N)}, "rate_course"),
        (schedule.course, {"learning_rate": np.full(5, 1e-9)}, "rate_course"),
        (schedule.frozen, {"learning_rate": np.maximum(1 - STEPS / N, 0.6), "skipped": STEPS > 40}, "rate_frozen"),
        (schedule.frozen, {"learning_rate": np.maximum(1 - STEPS / N, 0.6), "loss": falling()}, None),
        (schedule.frozen, {"learning_rate": 1 - STEPS / N}, None),
        (schedule.frozen, {"learning_rate": np.ones(N)}, None),
        # constant after its warm-up, and the loss is lost later
        (schedule.frozen, {"learning_rate": np.minimum(STEPS, 9), "loss": np.where(STEPS < 30, 1, NAN)}, None),
        (schedule.unfinished, {"learning_rate": np.linspace(1, 0.2, N), "updates": STEPS - 20}, "rate_unfinished"),
        (schedule.unfinished, {"learning_rate": np.linspace(1, 0.2, N), "updates": UNKNOWN_LAST}, None),
        (schedule.unfinished, {"learning_rate": np.linspace(1, 0.0, N), "updates": STEPS}, None),
        (schedule.scale, {"loss_scale": np.where(STEPS < 3, 65536, 32768), "skipped": STEPS == 2}, "scale_course"),
        (schedule.scale, {"loss_scale": np.where(STEPS < 50, 65536, 16), "skipped": STEPS == 50}, "scale_low"),
        (schedule.scale, {"loss_scale": np.full(N, 2048.0), "skipped": STEPS % 4 == 0}, "scale_restless"),
        (schedule.scale, {"loss_scale": np.ones(N), "skipped": np.zeros(N)}, None),
        (resources.drift, {"step_seconds": np.ones(N), "tokens": np.full(N, 100)}, "time_steady"),
        (resources.drift, {"step_seconds": 1 + STEPS / N, "tokens": 100 * (1 + STEPS / N)}, "time_lengths"),
        (resources.drift, {"step_seconds": 1 + STEPS / N, "tokens": np.full(N, 100)}, "time_slower_cpu"),
        (resources.drift, {**SLOWER, "memory_reserved_gib": np.ones(N)}, "time_slower"),
        (resources.drift, {"step_seconds": 1 + STEPS / N}, "time_slower_seconds"),
        (resources.drift, {"step_seconds": 2 - STEPS / N, "tokens": np.full(N, 100)}, "time_faster"),
        (resources.drift, {"step_seconds": 1 + 0.2 * NOISE, "tokens": np.full(N, 100)}, "time_steady"),
        (resources.memory, {"memory_reserved_gib": np.full(N, 8.0)}, "memory_flat"),
        (resources.memory, {"memory_reserved_gib": 8 + STEPS / N, "eval_seconds_total": np.zeros(N)}, "memory_grows"),
        (resources.memory, {"memory_reserved_gib": IN_BLOCKS, "eval_seconds_total": np.zeros(N)}, "memory_steps"),
        (resources.memory, {"memory_reserved_gib": GROWS, "eval_seconds_total": np.zeros(N)}, "memory_settled"),
        (resources.memory, {"memory_reserved_gib": GREW, "eval_seconds_total": LATER}, "memory_eval"),
        (resources.memory, {"memory_reserved_gib": GREW, "save_seconds_total": LATER}, "memory_save"),
        (resources.memory, {"memory_reserved_gib": 30 + 4 * LATER, "max_sequence_length": LONG}, "memory_lengths"),
        (resources.shares, {"step_seconds": np.ones(N), "save_seconds_total": np.full(N, 1.0)}, "time_shares"),
        (resources.shares, {"step_seconds": np.ones(N), "save_seconds_total": np.full(N, 30.0)}, "time_save"),
    ],
)  # fmt: skip
def test_rule(rule, columns, expected):
    assert key(rule(history(config={"training": {"max_grad_norm": 1.0}}, **columns))) == expected


def test_what_has_hardly_begun_is_not_judged():
    begun: dict[str, Any] = {"loss": SLOW, "planned": 400, "finished": False}
    assert key(loss.course(history(**begun))) == "loss_early"
    assert key(loss.course(history(**{**begun, "loss": np.full(20, 2.0) + NORMAL[:20]}))) == "loss_early"
    assert key(loss.course(history(**{**begun, "loss": falling(last=3.0)}))) == "loss_flat"  # 100 steps of 400
    attached = history(**begun)
    attached.env = {"attached": True}  # another program trains, perhaps all weights
    assert key(loss.course(attached)) != "loss_early"
    tiny: dict[str, Any] = {"learning_rate": np.full(20, 1e-9)}
    found = keys(explain(history(**{**begun, "loss": np.full(20, 2.0) + NORMAL[:20]}, **tiny)))
    assert "rate_tiny" in found
    assert "loss_early" not in found


def test_a_rate_that_moves_nothing_is_wrong_where_the_loss_stayed():
    tiny: dict[str, Any] = {"learning_rate": np.full(N, 1e-9)}
    assert "rate_tiny" in keys(found := explain(history(loss=falling(last=3.0), **tiny)))
    assert "loss_flat" not in keys(found)
    assert "rate_tiny" not in keys(explain(history(loss=falling(), **tiny)))  # as printed with few decimals


@pytest.mark.parametrize(
    ("columns", "config", "expected"),
    [
        ({"learning_rate": np.ones(200), "epoch": PART}, {}, "plateau_first_epoch"),
        ({"learning_rate": np.ones(200), "epoch": THRICE}, {}, "plateau"),
        ({"learning_rate": np.ones(200), "epoch": THRICE}, {"data": {"train_on_inputs": True}}, "plateau_prompts"),
        ({"learning_rate": np.exp(-np.arange(200) / 20), "epoch": THRICE}, {}, "plateau_rate"),
        # a rate that was halved after the loss had settled explains nothing
        ({"learning_rate": np.where(np.arange(200) < 80, 2.0, 1.0), "epoch": THRICE}, {}, "plateau"),
    ],
)  # fmt: skip
def test_a_plateau_and_why(columns, config, expected):
    assert key(loss.plateau(history(loss=settling(), config=config, **columns))) == expected
    still_falling = history(loss=falling(200), config=config, **columns)
    assert loss.plateau(still_falling) is None


def test_a_rate_that_was_halved_where_the_loss_still_fell_explains_a_plateau():
    at = np.arange(200)
    level = 2 + np.maximum(1 - at / 80, 0) + 0.03 * np.random.default_rng(0).standard_normal(200)
    rate = np.where(at < 80, 2e-4, 1e-4)
    found = loss.plateau(history(loss=level, learning_rate=rate, epoch=THRICE))
    assert found is not None
    assert (key(found), found.values["step"], found.values["before"], found.values["after"]) == (
        "plateau_dropped", 81, 2e-4, 1e-4,
    )  # fmt: skip
    warm_again = np.where(at < 80, 2e-4, np.where(at < 120, 1e-4, 2e-4))
    assert key(loss.plateau(history(loss=level, learning_rate=warm_again, epoch=THRICE))) == "plateau"


@pytest.mark.parametrize(
    ("n_spikes", "height", "found"),
    [(1, 2.8, False), (1, 3.1, False), (1, 3.7, True), (1, 4.5, True), (3, 3.1, False), (3, 4.5, True)],
)
def test_a_spike_is_held_against_the_rest_whose_scatter_it_does_not_widen(n_spikes, height, found):
    """Of 51 values the largest is 3.38 deviations of the rest above them in one run of 29, as Student's t of 49 has it.

    Three of one height, which would hide each other in a deviation that counts them, are told as well as one.
    """
    random = np.random.default_rng(1)
    scores = np.array([NormalDist().inv_cdf((i + 0.5) / 51) for i in range(51)])
    logs = 0.9 * random.permutation(scores / np.std(scores[2:-2], ddof=1) / 1.1)
    at = [30, 10, 45][:n_spikes]
    rest = np.delete(logs, at)
    logs[at] = rest.mean() + height * rest.std(ddof=1) * np.sqrt(1 + 1 / len(rest))
    told = gradients.spikes(history(loss=falling(51), grad_norm=np.exp(logs)))
    assert (told is not None) == found
    assert told is None or told.values["n"] == n_spikes


def test_norms_that_differ_by_orders_of_magnitude_have_no_usual_value():
    found = gradients.spread(history(loss=falling(4), grad_norm=[1e-11, 1e-3, 1e9, 1e30]))
    assert found is not None
    assert np.isfinite(found.values["unusual"])


def test_stairs_at_the_borders_of_epochs():
    epoch = np.arange(1, 121) / 40
    noise = 0.02 * np.random.default_rng(0).standard_normal(120)
    steps = 3 - 0.5 * np.ceil(epoch - 1e-9)
    found = loss.stairs(history(loss=steps + noise, epoch=epoch))
    assert found is not None
    assert (key(found), found.values["n"]) == ("stairs", 2)
    assert found.values["drop"] == pytest.approx(0.5, abs=0.05)
    assert loss.stairs(history(loss=3 - 0.5 * epoch + noise, epoch=epoch)) is None


def test_what_a_log_in_intervals_hides():
    steep = 1 + 3 * np.exp(-np.arange(100) / 4)
    found = loss.coarse_log(history(loss=steep, config={"training": {"logging_steps": 10}}))
    assert found is not None
    assert (key(found), found.values["first"], found.values["every"]) == ("coarse", 4.0, 10)
    assert loss.coarse_log(history(loss=steep, config={"training": {"logging_steps": 1}})) is None
    assert key(loss.coarse_log(history(loss=steep[::10], kind="trainer", coarse=10))) == "coarse_stock"
    assert loss.coarse_log(history(loss=falling(10), kind="trainer", coarse=10)) is None


@pytest.mark.parametrize(
    ("norm", "rate", "expected"),
    [
        ([1, 1, 1, NAN, NAN, NAN], [6, 5, 4, 3, 3, 3], "zero_rate_frozen"),
        ([1, 1, 1, NAN, NAN, NAN], [6, 5, 4, 3, 2, 1], "zero_rate_moves"),
        ([1, 1, 1, NAN, NAN, NAN], [3, 3, 3, 3, 3, 3], "zero_unknown_rate"),
        ([1, 1, 1, NAN, NAN, NAN], [2, 3, 3, 3, 3, 3], "zero_rate_frozen"),
        ([1, 1, 1, 0, 0, 0], [6, 5, 4, 3, 2, 1], "zero_no_labels"),
        ([1, 1, 1, NAN, 1, NAN], [6, 5, 4, 3, 2, 1], "zero_other"),
    ],
)
def test_what_a_loss_of_zero_means_in_a_stock_log(norm, rate, expected):
    columns = {"loss": [2.0, 1.9, 1.8, 0, 0, 0], "grad_norm": norm, "learning_rate": rate}
    found = stock.zero(history(kind="trainer", **columns))
    assert found is not None
    assert (key(found), found.verdict, found.values["step"]) == (expected, "wrong", 4)
    assert stock.zero(history(**columns)) is None  # our own log filters nothing
    assert key(stock.other_step(history(kind="trainer", **columns))) == "other_step_stock"
    assert stock.other_step(history(**columns)) is None


def test_a_rate_that_stood_still_before_tells_nothing_of_skips():
    warm = [1, 2, 3, 3, 3, 3, 3, 3, 3, 3]
    lost = {"grad_norm": [1] * 6 + [NAN] * 4, "learning_rate": warm}
    assert key(stock.zero(history(kind="trainer", loss=[2.0] * 6 + [0] * 4, **lost))) == "zero_unknown_rate"
    nan = [2.0] * 6 + [NAN] * 4
    assert key(stock.never_logged(history(kind="trainer", loss=nan, **lost))) == "loss_nan_unknown"
    assert key(stock.never_logged(history(kind="trainer", loss=nan, learning_rate=np.ones(10)))) == "loss_nan_unknown"
    falls = np.append(np.arange(10, 4, -1), [4] * 4)
    assert key(stock.never_logged(history(kind="trainer", loss=nan, learning_rate=falls))) == "loss_nan_frozen"


def test_memory_is_said_to_be_of_the_gpu_or_of_the_host():
    for column, where in (("memory_reserved_gib", "GPU"), ("host_memory_gib", "host")):
        columns: Any = {column: np.full(N, 8.0)}
        found = resources.memory(history(**columns))
        assert found is not None
        assert f"({where})" in found.sentence("en")


def test_a_warm_up_that_still_goes_on_is_not_long():
    rate = 1e-3 * np.arange(1, 51)
    assert key(schedule.course(history(learning_rate=rate, finished=False))) == "rate_course"
    assert key(schedule.course(history(learning_rate=rate, finished=False, planned=1000))) == "rate_course"
    long = schedule.course(history(learning_rate=rate, finished=False, planned=100))
    assert long is not None
    assert (key(long), long.values["n"]) == ("warm_up_long", 100)


def test_a_loss_that_is_too_small_to_be_printed_is_no_collapse():
    norm = [1, 0.1, 0.01, 0.01, 0.001, 0.001]
    found = stock.zero(history(kind="log", loss=[2.0, 0.01, 0.001, 0.0001, 0, 0], grad_norm=norm))
    assert found is not None
    assert (key(found), found.verdict) == ("zero_rounded", "note")


def test_the_other_rows_of_the_table_of_symptoms():
    artefact = history(kind="log", loss=[2.0, 2.1, 1.9, 2.0, 16.0, 0, 0])
    assert key(stock.artefact(artefact)) == "artefact"
    assert stock.artefact(history(kind="log", loss=[2.0, 2.1, 1.9, 2.0, 0, 0])) is None
    late = history(kind="trainer", loss=np.full(40, 2.0), grad_norm=np.where(np.arange(40) > 30, NAN, 1.0))
    assert key(stock.backward_only(late)) == "backward"
    early = history(kind="trainer", loss=np.full(40, 2.0), grad_norm=np.where(np.arange(40) < 3, NAN, 1.0))
    assert key(stock.backward_only(early)) == "scale_search"
    assert stock.backward_only(history(kind="trainer", loss=np.full(9, 2.0), grad_norm=np.ones(9))) is None
    assert (
        key(stock.no_gradient(history(kind="log", loss=np.full(9, 2.0), grad_norm=np.full(9, 1e-9)))) == "no_gradient"
    )
    assert stock.no_gradient(history(kind="log", loss=np.full(9, 2.0), grad_norm=np.ones(9))) is None
    assert key(stock.never_logged(history(kind="log", loss=[2.0, NAN, NAN]))) == "loss_nan"
    assert stock.never_logged(history(kind="log", loss=[2.0, 1.0, 0.0])) is None


def test_a_machine_that_becomes_slower_by_a_fifth_in_fifty_steps():
    """Times scatter by 8%: found in at least 95% of 120, two standard errors of the count below it; rows of one length
    explain nothing."""
    tokens, found = np.full(50, 1000.0), []
    for slower in (0.0, 0.2):
        draws = (np.random.default_rng([seed, 50]).standard_normal(50) for seed in range(120))
        runs = (
            history(step_seconds=np.exp(0.08 * one) * np.linspace(1, 1 + slower, 50), tokens=tokens) for one in draws
        )
        found.append(sum("slower" in str(key(resources.drift(run))) for run in runs))
    assert found[0] <= 10
    assert found[1] >= 110


def test_evaluations_share_of_the_time():
    evals = {"step": [50, 100], "eval_loss": [2.0, 1.9], "eval_runtime": [30.0, 30.0]}
    found = resources.shares(history(step_seconds=np.ones(N), evals=evals))
    assert found is not None
    assert (key(found), found.values["eval_percent"]) == ("time_eval", pytest.approx(37.5))


def test_an_incident_and_why_it_is_another_step_next_time():
    incident = {
        "step": 13, "kind": "forward_overflow", "module": "m", "phase": "forward", "rows": [7, 9], "action": "heal",
        "evidence": {"rows_alone": [7]}, "remedies": [{"change": "precision.fp32_modules=[m]", "verified": True}],
    }  # fmt: skip
    run = history(loss=falling(), incidents=[incident], config={"training": {"seed": 42}})
    healed, *_ = outcome.incidents(run)
    assert (key(healed), healed.verdict, healed.values["rows"]) == ("healed", "watch", "7")
    assert "precision.fp32_modules=[m]" in healed.sentence("en")
    again = outcome.other_step_next_time(run)
    assert again is not None
    assert "training.seed=42" in again.sentence("en")
    stopped, *_ = outcome.incidents(history(loss=falling(), incidents=[{**incident, "action": "stop"}]))
    assert (key(stopped), stopped.verdict) == ("stopped", "wrong")
    bare = {**incident, "action": "stop", "remedies": []}
    many = outcome.incidents(history(loss=falling(), incidents=[bare] * 7))
    assert keys(many) == ["stopped_without_remedy"] * 5 + ["more_incidents"]
    elsewhere = history(loss=falling(), incidents=[{**bare, "action": "none"}])
    elsewhere.env["attached"] = True
    assert keys(outcome.incidents(elsewhere)) == ["attached_went_on"]
    assert outcome.other_step_next_time(history(loss=falling())) is None


def test_a_run_without_steps_and_one_of_nan_everywhere_are_explained():
    empty = history(loss=[1.0])
    empty.steps = empty.steps.iloc[:0]
    assert keys(explain(empty)) == ["no_steps"]
    nothing = history(loss=np.full(60, NAN), grad_norm=np.full(60, NAN), nonfinite_micro_batches=np.ones(60))
    assert "loss_nonfinite" in keys(explain(nothing))
    for finding in explain(nothing):
        assert finding.sentence("ko")
        assert finding.sentence("en")


@pytest.mark.parametrize(("evaluated", "expected"), [(0.05, None), (2.5, "by_heart_sometime")])
def test_rows_are_not_known_by_heart_where_others_are_known_as_well(evaluated, expected):
    evals = {"step": [40.0, 80.0, 120.0], "eval_loss": [3.0, evaluated, evaluated]}
    assert key(loss.by_heart(history(loss=3 * np.exp(-STEPS / 15), evals=evals))) == expected
    leaked = history(loss=3 * np.exp(-STEPS / 15), evals=evals)
    leaked.env = {"eval_overlap": {"exact": 3, "near": 0, "rows": 4}}
    assert key(loss.by_heart(leaked)) == "by_heart_sometime"


@pytest.mark.parametrize(
    ("lines", "bad", "expected"),
    [
        (100, (1, 2, 3, 22, 25, 44, 48), "skips"),
        (84, (1, 2, 13, 52, 53, 57, 71), "skips"),
        (200, range(20, 120, 5), "backward"),
        (70, range(50, 70, 3), "backward"),
        (200, range(150, 200, 10), "skips"),
    ],
)
def test_a_scale_that_settles_is_no_illness(lines, bad, expected):
    norm = np.where(np.isin(np.arange(1, lines + 1), list(bad)), NAN, 1.0)
    assert key(stock.backward_only(history(kind="trainer", loss=np.full(lines, 2.0), grad_norm=norm))) == expected
