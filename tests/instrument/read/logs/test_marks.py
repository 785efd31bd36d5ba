"""What is trained and with which program."""

from __future__ import annotations

import pytest
from lora_train.instrument.read.logs.marks import task_of, trainer_of

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
