"""lora-train explain --what WORD: what a word of a log means, and its value in a run.

A word is a key as any trainer logs it: prefixes (train/, eval/, rewards/) and units in brackets are looked through.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from ...messages import say_in
from ...read.history import History, SourceError
from .finding import VERDICTS, Finding, median

WORDS: dict[str, str] = {
    "loss": "word.loss",
    "train_loss": "word.train_loss",
    "eval_loss": "word.eval_loss",
    "perplexity": "word.perplexity",
    "grad_norm": "word.grad_norm",
    "learning_rate": "word.learning_rate",
    "lr": "word.learning_rate",
    "warmup": "word.warmup",
    "warmup_steps": "word.warmup",
    "epoch": "word.epoch",
    "step": "word.step",
    "global_step": "word.step",
    "updates": "word.updates",
    "loss_scale": "word.loss_scale",
    "eval_runtime": "word.eval_runtime",
    "eval_samples_per_second": "word.eval_samples_per_second",
    "eval_steps_per_second": "word.eval_steps_per_second",
    "train_runtime": "word.train_runtime",
    "train_samples_per_second": "word.train_samples_per_second",
    "train_steps_per_second": "word.train_steps_per_second",
    "tokens_per_second": "word.tokens_per_second",
    "total_flos": "word.total_flos",
    "num_tokens": "word.num_tokens",
    "num_input_tokens_seen": "word.num_tokens",
    "supervised_tokens": "word.supervised_tokens",
    "mean_token_accuracy": "word.token_accuracy",
    "eval_token_accuracy": "word.token_accuracy",
    "entropy": "word.entropy",
    "accuracy": "word.accuracy",
    "eval_accuracy": "word.accuracy",
    "f1": "word.f1",
    "eval_f1": "word.f1",
    "rewards_chosen": "word.rewards",
    "rewards_rejected": "word.rewards",
    "rewards_margins": "word.rewards_margins",
    "rewards_accuracies": "word.rewards_accuracies",
    "logps_chosen": "word.logps",
    "logps_rejected": "word.logps",
    "reward": "word.reward",
    "reward_std": "word.reward_std",
    "kl": "word.kl",
    "scores": "word.ppo_scores",
    "rlhf_reward": "word.ppo_rlhf_reward",
    "non_score_reward": "word.ppo_non_score",
    "approxkl_avg": "word.ppo_approxkl",
    "clipfrac_avg": "word.ppo_clipfrac",
    "policy_avg": "word.ppo_policy_loss",
    "value_avg": "word.ppo_value_loss",
    "val_ratio": "word.ppo_ratio",
    "val_num_eos_tokens": "word.ppo_eos",
    "episode": "word.ppo_episode",
    "completion_length": "word.completion_length",
    "completions_mean_length": "word.completion_length",
    "memory_reserved_gib": "word.memory_reserved",
    "memory_device_reserved": "word.memory_reserved",
    "memory_allocated_gib": "word.memory_allocated",
    "memory_max_allocated": "word.memory_allocated",
    "memory_max_active": "word.memory_allocated",
    "host_memory_gib": "word.host_memory",
    "eta": "word.eta",
    "overfitting": "word.overfitting",
    "underfitting": "word.underfitting",
    "batch_size": "word.batch_size",
    "gradient_accumulation_steps": "word.accumulation",
    "max_grad_norm": "word.max_grad_norm",
    "nan": "word.nan",
    "inf": "word.nan",
}
_UNIT = re.compile(r"\s*[(\[].*?[)\]]\s*$")
_PREFIX = re.compile(r"^(eval|objective|actor|policy|loss)/")


def known_word(word: str) -> str:
    """The word of WORDS that `word` is a spelling of.

    Raises:
        SourceError: there is none; says which are near.
    """
    plain = _UNIT.sub("", word.strip().lower()).removeprefix("train/")
    spellings = (plain, _PREFIX.sub("", plain), plain.replace("eval/", "eval_"), plain.removeprefix("train_"))
    for spelling in spellings:
        key = re.sub(r"[/\-\s.]+", "_", spelling)
        if key in WORDS:
            return key
    near = difflib.get_close_matches(re.sub(r"[/\-\s.]+", "_", plain), WORDS, n=5, cutoff=0.5) or list(WORDS)
    raise SourceError("source.no_such_word", word=word, near=", ".join(near))


def glossary(word: str, history: History | None, findings: Sequence[Finding], lang: str) -> list[str]:
    """What it is, and in this run: its values and what was judged of it.

    Raises:
        SourceError: nobody logs such a word.
    """
    key = known_word(word)
    text = [f"{word}  {say_in(lang, WORDS[key])}"]
    if history is None:
        return text
    names = [name for name in (word, key) if name in history.steps or name in history.evals]
    if names:
        frame = history.steps if names[0] in history.steps else history.evals
        values = frame[names[0]].astype("float64").dropna()
        if len(values):
            worst = {"lowest": float(values.min()), "highest": float(values.max())}
            facts = {"n": len(values), "last": float(values.iloc[-1]), "median": median(values.to_numpy())}
            text.append("  " + say_in(lang, "word.here", name=history.name, **facts, **worst))
    for finding in findings:
        if finding.topic == key:
            text.append(f"  {say_in(lang, VERDICTS[finding.verdict])}  {finding.sentence(lang)}")
    if len(text) == 1:
        text.append("  " + say_in(lang, "word.not_here", name=history.name))
    return text
