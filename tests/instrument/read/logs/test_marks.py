"""What is trained and with which program."""

from __future__ import annotations

import pytest
from lora_train.instrument.read.logs.marks import is_other, task_of, trainer_of

BASE = "loss grad_norm learning_rate epoch step eval_loss eval_runtime eval_samples_per_second "


@pytest.mark.parametrize(
    ("keys", "text", "expected"),
    [
        ("", "", ("transformers", None)),
        ("eval_accuracy", "", ("transformers", "seq_cls")),
        ("eval_matthews_correlation", "", ("transformers", "seq_cls")),
        ("eval_f1 eval_precision eval_recall", "BertForTokenClassification", ("transformers", "token_cls")),
        ("eval_f1_macro eval_roc_auc", "", ("transformers", "seq_cls")),
        ("eval_accuracy eval_perplexity", "", ("transformers", "causal_lm")),
        ("eval_accuracy", "LlamaForCausalLM", ("transformers", "causal_lm")),
        ("eval_accuracy", "axolotl", ("axolotl", "causal_lm")),
        ("eval_overall_f1", "", ("transformers", "token_cls")),
        ("eval_LOC_f1", "", ("transformers", "token_cls")),
        ("eval_rmse", "", ("transformers", "regression")),
        ("eval_spearmanr", "", ("transformers", "regression")),
        ("eval_rewards/chosen logps/rejected", "", ("trl", "preference")),
        ("rewards/chosen kl logps/chosen", "", ("trl", "preference")),
        ("reward reward_std completions/mean_length", "", ("trl", "grpo")),
        ("mean_reward min_reward accuracy eval_accuracy", "", ("trl", "reward")),
        ("completions/mean_length num_tokens", "SDPOTrainer", ("trl", "causal_lm")),
        ("mean_token_accuracy num_tokens", "", ("trl", "causal_lm")),
        ("mean_token_accuracy", "Unsloth 2025.3", ("unsloth", "causal_lm")),
        ("ppl tokens/train_per_sec_per_gpu", "", ("axolotl", "causal_lm")),
        ("current_steps percentage elapsed_time", "", ("llamafactory", "causal_lm")),
        ("current_steps percentage elapsed_time accuracy", "", ("llamafactory", "preference")),
        ("", "trainer = SFTTrainer(", ("trl", "causal_lm")),
        ("", "model_type LlamaForCausalLM", ("transformers", "causal_lm")),
    ],
)
def test_program_and_task(keys, text, expected):
    found = (BASE + keys).split()
    trainer = trainer_of(found, text)
    assert (trainer, task_of(found, text, trainer)) == expected


@pytest.mark.parametrize(
    ("keys", "name", "own_loss", "expected"),
    [
        ("", "", False, False),  # a loop written by hand
        ("", "Trainer", False, False),
        ("", "Seq2SeqTrainer", False, False),
        ("", "CustomSeq2SeqTrainer", False, False),
        ("", "UnslothSFTTrainer", False, False),
        ("", "GKDTrainer", False, True),
        ("", "SDPOTrainer", False, True),
        ("", "OnlineDPOTrainer", False, False),
        ("completions/mean_length", "DistillationTrainer", False, True),
        ("", "BaseTrainer", False, True),
        ("num_tokens mean_token_accuracy", "GKDTrainer", False, True),
        ("eval_accuracy", "Trainer", True, True),
        ("", "SFTTrainer", True, True),
        ("rewards/margins", "BCOTrainer", False, False),
        ("eval_rewards/margins", "Trainer", True, False),
        ("reward reward_std", "UnslothGRPOTrainer", True, False),
    ],
)
def test_a_trainer_that_is_in_no_list_has_a_loss_of_its_own(keys, name, own_loss, expected):
    assert is_other(keys.split(), name, own_loss) is expected
