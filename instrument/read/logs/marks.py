"""What is trained and with which program, told by the keys of a log and by words of the console around them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .values import PLANNED_KEYS, STEP_KEYS

# The program, by words of its console; the first that is found.
WORDS = (
    ("axolotl", re.compile(r"axolotl", re.IGNORECASE)),
    ("llamafactory", re.compile(r"llama-?_?factory|llamafactory|llmtuner", re.IGNORECASE)),
    ("unsloth", re.compile(r"unsloth", re.IGNORECASE)),
    ("trl", re.compile(r"\btrl\b|\b(?:SFT|DPO|GRPO|PPO|KTO|ORPO|CPO|RLOO|Reward)(?:Trainer|Config)\b", re.IGNORECASE)),
)
AXOLOTL = re.compile(r"memory/|tokens_per_second_per_gpu|tokens/(?:train_per_sec|total|trainable)|eval_ppl$|ppl$")
TRL = re.compile(
    r"(?:eval_)?(?:mean_token_accuracy|num_tokens|entropy|rewards?/|reward$|reward_std|logps/|logits/|completions?/|"
    r"completion_length|log_odds|mean_reward|min_reward|frac_reward_zero_std|nll_loss|kl$|objective/|policy/|ppo/)"
)

# What is trained, by keys that nothing else logs; the first that is found. Every key without its eval_.
KEYS = (
    ("preference", re.compile(r"rewards/(?:chosen|rejected|margins|accuracies)|logps/(?:chosen|rejected)|log_odds")),
    ("ppo", re.compile(r"objective/|policy/(?:approxkl|clipfrac)|loss/(?:policy|value)_avg|ppo/")),
    ("grpo", re.compile(r"reward$|reward_std|frac_reward_zero_std")),
    ("reward", re.compile(r"(?:mean|min|max)_reward$|rewards_(?:chosen|rejected)|center_rewards")),
    ("token_cls", re.compile(r"overall_(?:f1|precision|recall|accuracy)|(?:PER|LOC|ORG|MISC)[_/]?(?:f1|precision)?$")),
    ("regression", re.compile(r"(?:mse|rmse|mae|r2|r_squared|pearson\w*|spearman\w*)$")),
    (
        "causal_lm",
        re.compile(r"perplexity|ppl$|bleu|sacrebleu|rouge|gen_len|wer$|cer$|mean_token_acc|num_tokens|token_"),
    ),
)
# Tasks of which those keys tell the loss as well.
MEASURED = ("preference", "ppo", "grpo", "reward")
# Metrics of a classifier; of the loss of a language model only where its program says so.
CLASSIFIER = re.compile(
    r"eval_(?:\w*_)?(?:accuracy|acc|f1|precision|recall|matthews\w*|mcc|roc_auc|auc|auroc|balanced_accuracy|exact_match"
    r"|f1_?\w*|precision_\w+|recall_\w+)$|eval_(?:macro|micro|weighted)"
)
HEADS = (
    ("token_cls", re.compile(r"For(?:Token)Classification|TokenClassification|\bTOKEN_CLS\b")),
    ("seq_cls", re.compile(r"For(?:Sequence|Image|Audio)Classification|\bSEQ_CLS\b")),
    ("ppo", re.compile(r"PPO(?:v2)?(?:Trainer|Config)")),
    ("grpo", re.compile(r"(?:GRPO|RLOO)(?:Trainer|Config)")),
    ("preference", re.compile(r"(?<![A-Z])(?:DPO|ORPO|KTO|CPO|SimPO)(?:Trainer|Config)")),
    ("reward", re.compile(r"Reward(?:Trainer|Config)")),
    ("causal_lm", re.compile(r"ForCausalLM|\bCAUSAL_LM\b|SFTTrainer|SFTConfig|ForConditionalGeneration")),
)
# Of trainers of those names the model tells the loss; what is in no list has one of its own, whatever the model is.
PLAIN = re.compile(r"(?:(?:Axolotl|Custom)?(?:Seq2Seq)?Trainer)?")
OTHER = "other"
# Kinds of training whose loss is near 0 by construction.
NO_LOSS = ("grpo", "ppo")
# Of these programs' logs an accuracy is one of tokens.
LANGUAGE = ("axolotl", "llamafactory")


def trainer_of(keys: Iterable[str], text: str) -> str:
    """Whose log it is, one of TRAINERS (judge/wording.py); transformers' where nothing tells."""
    keys = set(keys)
    if {"percentage", "elapsed_time"} <= keys and "current_steps" in keys:
        return "llamafactory"
    if any(AXOLOTL.match(key) for key in keys):
        return "axolotl"
    for name, words in WORDS:
        if name != "trl" and words.search(text):
            return name
    if any(TRL.match(key) for key in keys) or WORDS[-1][1].search(text):
        return "trl"
    return "transformers"


def task_of(keys: Iterable[str], text: str, trainer: str) -> str | None:
    """What is trained, one of history.TASKS; None where nothing tells."""
    names = {key: key.removeprefix("eval_") for key in keys if key not in (*STEP_KEYS, *PLANNED_KEYS)}
    for task, pattern in KEYS:
        if any(pattern.match(name) for name in names.values()):
            return task
    if trainer == "llamafactory" and "accuracy" in names:  # it writes rewards/accuracies under this name
        return "preference"
    if any(CLASSIFIER.match(key) for key in names):
        return "causal_lm" if trainer in LANGUAGE else _head(text) or "seq_cls"
    return "causal_lm" if trainer in LANGUAGE else _head(text)


def is_other(keys: Iterable[str], name: str, own_loss: bool) -> bool:
    """Whether a trainer's loss is of no kind that is known, by its class and by whether others compute that loss.

    Names such as num_tokens tell a language model, and not that its loss is a cross entropy; rewards tell both.
    """
    names = {key.removeprefix("eval_") for key in keys}
    if any(pattern.match(name) for task, pattern in KEYS if task in MEASURED for name in names):
        return False
    return own_loss or not (has_head(name) or PLAIN.fullmatch(name))


def loss_falls(name: str, own_loss: bool) -> bool:
    """Whether the loss of a trainer of that class falls as the model learns: a rise is a fault then."""
    return not is_other((), name, own_loss) and _head(name) not in NO_LOSS


def has_head(name: str) -> bool:
    """Whether a name alone says what is trained."""
    return _head(name) is not None


def _head(text: str) -> str | None:
    return next((task for task, words in HEADS if words.search(text)), None)
