"""What to say of a key that is not ours: the key that was meant, its opposite, or that there is nothing like it.

A name that means something is taken at its word before any that only looks like it: a key of another section, then a
peer's name for one of ours, then a peer's key without a counterpart; only then the most similar of all of these.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from ...instrument.messages import VARIABLE, say
from ..config.schema import sections
from ..errors import Problem, UserError, problem
from ..importer.left_out import CHANGES, HARMLESS, MEMORY, WHY, is_off, weight

# What other trainers call our keys; asked for by name, answered by name.
PEER_NAMES = {
    "base_model": "model.name_or_path",
    "model_name_or_path": "model.name_or_path",
    "model": "model.name_or_path",
    "model_name": "model.name_or_path",
    "model_path": "model.name_or_path",
    "model_id": "model.name_or_path",
    "pretrained_model_name_or_path": "model.name_or_path",
    "base_model_name_or_path": "model.name_or_path",
    "model_revision": "model.revision",
    "revision_of_model": "model.revision",
    "torch_dtype": "model.dtype",
    "flash_attn": "model.attn_implementation",
    "flash_attention": "model.attn_implementation",
    "flash_attention_2": "model.attn_implementation",
    "use_flash_attention_2": "model.attn_implementation",
    "eager_attention": "model.attn_implementation",
    "micro_batch_size": "training.per_device_train_batch_size",
    "batch": "training.per_device_train_batch_size",
    "batch_size": "training.per_device_train_batch_size",
    "eval_batch_size": "training.per_device_eval_batch_size",
    "num_epochs": "training.num_train_epochs",
    "epoch": "training.num_train_epochs",
    "epochs": "training.num_train_epochs",
    "steps": "training.max_steps",
    "num_steps": "training.max_steps",
    "train_steps": "training.max_steps",
    "max_train_steps": "training.max_steps",
    "output": "training.output_dir",
    "output_path": "training.output_dir",
    "out_dir": "training.output_dir",
    "save_dir": "training.output_dir",
    "lr": "training.learning_rate",
    "lr_scheduler": "training.lr_scheduler_type",
    "scheduler": "training.lr_scheduler_type",
    "optimizer": "training.optim",
    "grad_accum": "training.gradient_accumulation_steps",
    "warmup": "training.warmup_steps",
    "evals_per_epoch": "training.eval_steps",
    "saves_per_epoch": "training.save_steps",
    "random_state": "training.seed",
    "random_seed": "training.seed",
    "gradient_clipping": "training.max_grad_norm",
    "max_norm": "training.max_grad_norm",
    "use_gradient_checkpointing": "training.gradient_checkpointing",
    "early_stopping_steps": "training.early_stopping_patience",
    "sequence_len": "data.cutoff_len",
    "max_seq_length": "data.cutoff_len",
    "max_length": "data.cutoff_len",
    "model_max_length": "data.cutoff_len",
    "max_seq_len": "data.cutoff_len",
    "seq_len": "data.cutoff_len",
    "block_size": "data.cutoff_len",
    "sample_packing": "data.packing",
    "neat_packing": "data.packing",
    "val_set_size": "data.eval_fraction",
    "val_size": "data.eval_fraction",
    "test_size": "data.eval_fraction",
    "validation_split": "data.eval_fraction",
    "eval_split": "data.eval_fraction",
    "test_split": "data.eval_fraction",
    "val_split": "data.eval_fraction",
    "val_ratio": "data.eval_fraction",
    "eval_ratio": "data.eval_fraction",
    "eval_size": "data.eval_fraction",
    "data": "data.train",
    "dataset": "data.train",
    "data_path": "data.train",
    "train_data": "data.train",
    "train_file": "data.train",
    "train_dataset": "data.train",
    "datasets": "data.train",
    "dataset_name": "data.train",
    "validation": "data.eval",
    "val": "data.eval",
    "eval_data": "data.eval",
    "eval_file": "data.eval",
    "eval_dataset": "data.eval",
    "test_datasets": "data.eval",
    "validation_file": "data.eval",
    "patience": "training.early_stopping_patience",
    "per_device_batch_size": "training.per_device_train_batch_size",
    "template": "data.format",
    "prompt_style": "data.format",
    "prompt_format": "data.format",
    "prompt_template_name": "data.format",
    "dataset_format": "data.format",
    "dataset_type": "data.format",
    "formatting_func": "data.prompt_template",
    "chat_template_jinja": "data.chat_template",
    "chat_template_path": "data.chat_template",
    "train_on_prompt": "data.train_on_inputs",
    "max_samples": "data.limit",
    "max_train_samples": "data.limit",
    "max_eval_samples": "data.eval_limit",
    "lora_r": "lora.r",
    "lora_rank": "lora.r",
    "rank": "lora.r",
    "target": "lora.target_modules",
    "targets": "lora.target_modules",
    "lora_target": "lora.target_modules",
    "lora_target_modules": "lora.target_modules",
    "lora_target_linear": "lora.target_modules",
    "lora_modules_to_save": "lora.modules_to_save",
    "additional_target": "lora.modules_to_save",
    "peft_use_rslora": "lora.use_rslora",
    "alpha": "lora.lora_alpha",
    "dropout": "lora.lora_dropout",
    "evaluation_strategy": "training.eval_strategy",
    "quantization_bit": "quantization.load_in_4bit",
    "adapter": "quantization.load_in_4bit",
    "double_quantization": "quantization.bnb_4bit_use_double_quant",
    "use_bnb_nested_quant": "quantization.bnb_4bit_use_double_quant",
    "quantization_type": "quantization.bnb_4bit_quant_type",
}
# Names that mean one of a section's keys there, and something else or nothing elsewhere.
SHORT_NAMES = {
    "model": dict.fromkeys(("name", "path", "id", "repo", "checkpoint"), "model.name_or_path"),
    "data": dict.fromkeys(("path", "file", "files", "name", "source"), "data.train")
    | {"length": "data.cutoff_len", "test": "data.eval"},
    "training": {"folder": "training.output_dir", "rate": "training.learning_rate"},
}
# Keys that say the opposite of ours: true there is false here.
OPPOSITES = {
    "completion_only_loss": "data.train_on_inputs",
    "assistant_only_loss": "data.train_on_inputs",
    "train_on_responses_only": "data.train_on_inputs",
    "train_on_completions_only": "data.train_on_inputs",
    "mask_prompt": "data.train_on_inputs",
    "mask_inputs": "data.train_on_inputs",
    "overwrite_cache": "data.cache",
    "disable_gradient_checkpointing": "training.gradient_checkpointing",
}
# Least likeness of names, in difflib's measure: of a section, in the section, of a peer, in another section.
SECTION, HERE, PEER, ELSEWHERE = 0.6, 0.7, 0.75, 0.8
# Harmless in general, but ours has a key that it is the opposite of, or another name for.
_MEANT = PEER_NAMES.keys() | OPPOSITES.keys()


def take_out(raw: dict[str, Any]) -> list[str]:
    """Takes out the keys of other trainers that change nothing here, and returns their names.

    Those are what is harmless without a counterpart, and what is switched off and does not exist.
    """
    ignored: list[str] = []
    known = sections()
    for name in [key for key in raw if key not in known and _is_idle(key, raw[key])]:
        del raw[name]
        ignored.append(name)
    for section, schema in known.items():
        values = raw.get(section)
        if isinstance(values, dict):
            idle = [key for key in values if key not in schema.model_fields and _is_idle(str(key), values[key])]
            raw[section] = {key: value for key, value in values.items() if key not in idle}
            ignored += [f"{section}.{key}" for key in idle]
    return ignored


def _is_idle(key: str, value: Any) -> bool:
    if key in _MEANT or (isinstance(value, dict) and not value):
        return False
    is_ours = any(key in schema.model_fields for schema in sections().values())
    kind = weight(key)
    return not is_ours and (kind == "harmless" or (kind != "unknown" and is_off(value)))


class Unknown:
    """Sentences about keys that are not ours; the list of a section's keys is printed once."""

    def __init__(self) -> None:
        self._listed: set[str] = set()

    def __call__(self, file: str, key: str, known: list[str], sentence: str) -> Problem:
        section, _, name = key.rpartition(".")
        parts = [_likely_section(key, known) if sentence == "config.unknown_section" else _hint(key, known)]
        is_settled = name in OPPOSITES or weight(name) != "unknown"
        if section not in self._listed and not is_settled:
            self._listed.add(section)
            parts.append(say("config.known_keys" if section else "config.known_sections", keys=", ".join(known)))
        return Problem(say(sentence, file=file, key=key), " ".join(part for part in parts if part))


def _likely_section(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=SECTION)
    return say("config.did_you_mean", guess=close[0]) if close else ""


def _hint(key: str, known: list[str]) -> str:
    """The key that was probably meant, that it is the opposite, or that there is none; empty where no name is near."""
    section, dot, name = key.rpartition(".")
    here = {word: section + dot + word for word in known}
    elsewhere = {field: f"{other}.{field}" for other, schema in sections().items() for field in schema.model_fields}
    if meant := elsewhere.get(name) or SHORT_NAMES.get(section, {}).get(name) or PEER_NAMES.get(name):
        return say("config.did_you_mean", guess=meant)
    if name in OPPOSITES:
        return say("config.opposite", key=name, guess=OPPOSITES[name])
    if (kind := weight(name)) != "unknown":
        return say("config.no_counterpart", key=name, why=say(WHY[kind]))
    nothing = dict.fromkeys([*HARMLESS, *MEMORY, *CHANGES], "")
    candidates = [
        (here, HERE),
        (PEER_NAMES, PEER),
        (elsewhere, ELSEWHERE),
        (OPPOSITES, ELSEWHERE),
        (nothing, ELSEWHERE),
    ]
    found = [(_likeness(name, word), -rank, table[word]) for rank, (table, cutoff) in enumerate(candidates)
             for word in difflib.get_close_matches(name, table, n=1, cutoff=cutoff)]  # fmt: skip
    guess = max(found)[2] if found else ""
    return say("config.did_you_mean", guess=guess) if guess else ""


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def flags_as_overrides(argv: Iterable[str], options: Iterable[str]) -> list[str]:
    """Command-line flags of other trainers as overrides: `--learning_rate 1e-3` -> training.learning_rate=1e-3.

    Args:
        argv: arguments of the command.
        options: its own options, which stay as they are.

    Raises:
        UserError: a flag names no key; says which one was meant.
    """
    return list(_translated(list(argv), set(options)))


def _translated(argv: list[str], options: set[str]) -> Iterator[str]:
    waiting = iter(range(len(argv)))
    for index in waiting:
        word, equals, value = argv[index].partition("=")
        if not word.startswith("--") or word in options or word == "--":
            yield argv[index]
            continue
        if not equals:
            following = argv[index + 1 : index + 2]
            has_value = bool(following) and not following[0].startswith("--")
            value = following[0] if has_value else "true"
            next(waiting, None) if has_value else None
        yield f"{_flag_key(word, options)}={value}"


def _flag_key(word: str, options: set[str]) -> str:
    return full_key(word.lstrip("-").replace("-", "_"), options, word)


def full_key(name: str, options: Collection[str], word: str) -> str:
    """`training.learning_rate` of `learning_rate`.

    Args:
        options: what may have been meant instead.
        word: what stands there, for the error.

    Raises:
        UserError: it is the name of no key.
    """
    if "." in name:
        return name
    owner = next((section for section, schema in sections().items() if name in schema.model_fields), None)
    if owner is not None:
        return f"{owner}.{name}"
    if name in PEER_NAMES:
        return PEER_NAMES[name]
    if weight(name) == "harmless" and name not in OPPOSITES:
        return f"training.{name}"
    option = difflib.get_close_matches(word, options, n=1, cutoff=ELSEWHERE)
    meant = say("config.did_you_mean", guess=option[0]) if option else _hint(name, [])
    if name == "lang":  # of the verbs that print what they read; all else follows the variable
        meant = say("config.lang", variable=VARIABLE)
    hint = meant or problem("cli.usage", message="").hint
    raise UserError(Problem(say("config.unknown_flag", flag=word), hint))


def bad_override(text: str) -> Problem:
    """What is said of a value on the command line that is not of the form section.key=value."""
    found = problem("config.bad_override", text=text)
    name, equals, value = text.partition("=")
    if not equals or not name:
        return found
    with contextlib.suppress(UserError):  # `training.` was left out
        return Problem(found.error, say("config.did_you_mean", guess=f"{full_key(name, (), name)}={value}"))
    return found
