"""What a Trainer of another kind measures beside the loss, and what is said of another loss than a language model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lora_train.instrument import InstrumentCallback, load_run
from lora_train.instrument.judge.explain import explain, lines, read_history
from lora_train.instrument.read.schema import STEP_COLUMNS
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, Trainer

from .test_callback import lora, rows
from .test_peers import Pairs, trainer

NATS_A_TOKEN = "how surprised the model is by the tokens"


class Measures(Pairs):
    """Adds means of its own to each line of the log, as TRL's trainers do."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        loss = super().compute_loss(model, inputs)
        return (loss, {"loss": loss}) if return_outputs else loss

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        if "eval_loss" in logs:  # a new dict: on_evaluate is handed the old one
            logs = {**logs, "eval_rewards/margins": 0.25 * self.state.global_step, "eval_note": "x"}
        if "loss" in logs:
            own = {"rewards/margins": 0.5 * self.state.global_step, "rewards/accuracies": float("nan"), "note": "x"}
            logs = {**logs, **own}
        super().log(logs, *args, **kwargs)


def foreign(name: str, base: type[Trainer]) -> Any:
    """A Trainer that another package defines, and a user's own on top of it."""
    theirs = type(name, (base,), {"__module__": f"trl.trainer.{name.lower()}"})
    return type("Mine", (theirs,), {})


def task(run: Path) -> tuple[str, bool]:
    history = read_history(run)
    assert (NATS_A_TOKEN in outcome(run)) == (history.task == "causal_lm")
    return history.task, history.task_known


def outcome(run: Path) -> str:
    history = read_history(run)
    return "\n".join(lines(history, explain(history), "en"))


@pytest.mark.parametrize("fuse", [False, True])
def test_what_the_trainer_logs_stands_on_the_line_of_its_step(tiny_models, tmp_path, fuse):
    how = {"logging_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 5}
    training = trainer(lora(tiny_models["llama"]), tmp_path / "out", foreign("DPOTrainer", Measures), **how)
    training.add_callback(InstrumentCallback(tmp_path / "run", fuse=fuse))
    training.train()
    metrics = load_run(tmp_path / "run").metrics()
    assert metrics["step"].tolist() == [1, 2, 3, 4, 5]
    assert metrics["rewards/margins"].fillna(0).tolist() == [0, 1.0, 0, 2.0, 0]
    assert set(metrics.columns) - {"start", *STEP_COLUMNS} == {"rewards/margins", "rewards/accuracies"}
    assert metrics["loss"].notna().all()
    history = read_history(tmp_path / "run")
    assert (history.task, history.task_known, history.trainer) == ("preference", True, "trl")
    assert history.evals["step"].tolist() == [2, 4, 5]
    assert history.evals["eval_rewards/margins"].tolist() == [0.5, 1.0, 1.25]
    assert history.evals[["eval_loss", "eval_runtime"]].notna().to_numpy().all()
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len([row for row in written if "eval_rewards/margins" in row]) == 3  # a line each
    assert history.finished


def test_what_is_logged_of_an_evaluation_that_nobody_ends_is_recorded(tiny_models, tmp_path):
    class Tests(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            if self.state.global_step == 1:
                self.log({"eval_pass_at_1": 0.5})
            return loss

    training = trainer(lora(tiny_models["llama"]), tmp_path / "out", Tests, eval_strategy="epoch", max_steps=6)
    training.add_callback(InstrumentCallback(tmp_path / "run"))
    training.train()
    evals = read_history(tmp_path / "run").evals
    assert evals["eval_pass_at_1"].fillna(0).tolist() == [0.5, 0]
    assert evals["step"].tolist() == [2, 6]
    assert evals["eval_loss"].notna().tolist() == [False, True]


def test_a_line_is_there_when_its_step_has_ended(tiny_models, tmp_path):
    """Whether or not the step is logged, where a line stands twice: an error loses none."""

    class Watches(Measures):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            file = tmp_path / "run" / "metrics.jsonl"
            seen.append([json.loads(line)["step"] for line in file.read_text().splitlines() if line])
            if len(seen) == 4:
                raise RuntimeError("for the test")
            return super().training_step(*args, **kwargs)

    seen: list[list[int]] = []
    training = trainer(lora(tiny_models["llama"]), tmp_path / "out", Watches, logging_steps=2, max_steps=6)
    training.add_callback(InstrumentCallback(tmp_path / "run"))
    with pytest.raises(RuntimeError, match="for the test"):
        training.train()
    assert seen == [[], [1], [1, 2, 2], [1, 2, 2, 3]]
    assert load_run(tmp_path / "run").metrics()["step"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "task"),
    [("DPOTrainer", "preference"), ("KTOTrainer", "preference"), ("RewardTrainer", "reward"), ("GRPOTrainer", "grpo"),
     ("RLOOTrainer", "grpo"), ("SFTTrainer", "causal_lm")],
)  # fmt: skip
def test_a_trainer_that_logs_nothing_is_known_by_its_name(tiny_models, tmp_path, name, task):
    training = trainer(lora(tiny_models["llama"]), tmp_path / "out", foreign(name, Pairs), logging_strategy="no")
    training.add_callback(InstrumentCallback(tmp_path / "run"))
    training.train()
    history = read_history(tmp_path / "run")
    assert (history.task, history.task_known, history.trainer) == (task, True, "trl")
    assert (NATS_A_TOKEN in outcome(tmp_path / "run")) == (task == "causal_lm")


@pytest.mark.parametrize(("num_labels", "task"), [(1, "regression"), (3, "seq_cls")])
def test_a_classifier_without_metrics_is_known_by_its_model(tiny_models, tmp_path, num_labels, task):
    base = AutoModelForSequenceClassification.from_pretrained(tiny_models["llama"], num_labels=num_labels)
    base.config.pad_token_id = 0
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], task_type="SEQ_CLS"))
    data: Any = [
        {"input_ids": row["input_ids"], "labels": float(at % 2) if num_labels == 1 else at % 3}
        for at, row in enumerate(rows())
    ]
    training = trainer(model, tmp_path / "out")
    training.train_dataset = data
    training.add_callback(InstrumentCallback(tmp_path / "run"))
    training.train()
    history = read_history(tmp_path / "run")
    assert (history.task, history.task_known, history.trainer) == (task, True, "transformers")
    assert NATS_A_TOKEN not in outcome(tmp_path / "run")


def distils(self: Any, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
    return 0.5 * model(**inputs).loss


OWN_LOSS = {"compute_loss": distils}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Trainer, ("causal_lm", True)),
        (type("Mine", (Trainer,), {}), ("causal_lm", True)),
        (type("Mine", (Trainer,), OWN_LOSS), ("other", False)),
        (type("Mine", (foreign("SFTTrainer", Pairs),), OWN_LOSS), ("other", False)),
        (foreign("GKDTrainer", Pairs), ("other", False)),
        (type("UnslothSFTTrainer", (Trainer,), OWN_LOSS | {"__module__": "UnslothSFTTrainer"}), ("causal_lm", True)),
        (type("UnslothGKDTrainer", (Trainer,), OWN_LOSS | {"__module__": "UnslothGKDTrainer"}), ("other", False)),
        (type("AxolotlTrainer", (Trainer,), OWN_LOSS | {"__module__": "axolotl.core.base"}), ("causal_lm", True)),
    ],
    ids=["plain", "subclass", "own loss", "own loss over SFT", "GKD", "Unsloth's SFT", "Unsloth's GKD", "axolotl"],
)  # fmt: skip
def test_a_loss_that_nobody_knows_is_in_no_unit(tiny_models, tmp_path, kind, expected):
    training = trainer(lora(tiny_models["llama"]), tmp_path / "out", kind)
    training.add_callback(InstrumentCallback(tmp_path / "run"))
    training.train()
    assert task(tmp_path / "run") == expected


class Rises(Trainer):
    """A loss that is ten times as high from its thirteenth step on."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        return model(**inputs).loss * (10 if self.state.global_step >= 12 else 1)


@pytest.mark.parametrize(
    ("kind", "stopped"),
    [
        (foreign("SFTTrainer", Rises), True),
        (foreign("DPOTrainer", Rises), True),
        (foreign("GRPOTrainer", Rises), False),
        (foreign("RLOOTrainer", Rises), False),
        (foreign("GMPOTrainer", Rises), False),
        (Rises, False),
    ],
    ids=["SFT", "DPO", "GRPO", "RLOO", "a trainer nobody knows", "own loss"],
)
def test_a_loss_that_may_rise_ends_no_training(tiny_models, tmp_path, kind, stopped):
    """What rewards are worth is no fault: the loss of GRPO is near 0 by construction, and goes up and down."""
    training = trainer(lora(tiny_models["llama"]), tmp_path / "out", kind, max_steps=24, learning_rate=1e-4)
    training.add_callback(InstrumentCallback(tmp_path / "run"))
    training.train()
    assert (training.state.global_step < 24) == stopped
    assert bool(list((tmp_path / "run").glob("incidents/*"))) == stopped


@pytest.mark.parametrize(("kind", "known"), [("nll", True), ("chunked_nll", True), ("dft", False)])
def test_a_loss_of_sft_that_is_no_cross_entropy_is_in_no_unit(tiny_models, tmp_path, kind, known):
    training = trainer(lora(tiny_models["llama"]), tmp_path / "out", foreign("SFTTrainer", Pairs))
    training.args.loss_type = kind
    training.add_callback(InstrumentCallback(tmp_path / "run"))
    training.train()
    assert task(tmp_path / "run") == (("causal_lm", True) if known else ("other", False))


def test_a_loss_that_is_handed_to_the_trainer_is_its_own(tiny_models, tmp_path):
    training = trainer(lora(tiny_models["llama"]), tmp_path / "out")
    training.compute_loss_func = lambda outputs, labels, **_: outputs.logits.square().mean()
    training.add_callback(InstrumentCallback(tmp_path / "run"))
    training.train()
    assert task(tmp_path / "run") == ("other", False)
