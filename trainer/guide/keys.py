"""What --help says of the configuration's keys: those that people set first, then all, and one alone with examples."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from ...instrument.messages import language, say
from ..config.aliases import ours_for
from ..config.reference import Key, keys
from ..config.schema import sections
from ..errors import UserError, problem
from .wrapping import hanging

FIRST = (
    "model.name_or_path", "data.train", "data.eval_fraction", "data.format", "data.cutoff_len",
    "quantization.load_in_4bit", "lora.r", "lora.lora_alpha", "lora.target_modules", "training.output_dir",
    "training.num_train_epochs", "training.learning_rate", "training.per_device_train_batch_size",
    "training.gradient_accumulation_steps", "training.bf16", "training.fp16", "training.gradient_checkpointing",
    "training.eval_steps", "training.save_steps",
)  # fmt: skip
# What people write there, where neither a default nor a word of the type would show it.
EXAMPLES = {
    "model.name_or_path": ["Qwen/Qwen2.5-1.5B-Instruct", "./my-model"],
    "model.revision": ["main"],
    "data.train": ["beomi/KoAlpaca-v1.1a", "./rows.jsonl"],
    "data.eval": ["./eval.jsonl"],
    "data.eval_fraction": ["0.05"],
    "data.cutoff_len": ["512", "2048"],
    "data.columns": ["{instruction: question, output: answer}"],
    "data.labels": ["[negative, positive]"],
    "data.prompt_template": ["'Q: {question} A: {answer}'"],
    "data.chat_template": ["./chat.jinja"],
    "lora.r": ["16", "64"],
    "lora.lora_alpha": ["32"],
    "lora.lora_dropout": ["0.05"],
    "lora.target_modules": ["all-linear", "[q_proj, v_proj]"],
    "lora.modules_to_save": ["[embed_tokens, lm_head]"],
    "training.output_dir": ["runs/first"],
    "training.num_train_epochs": ["1"],
    "training.max_steps": ["500"],
    "training.max_hours": ["11.5"],
    "training.learning_rate": ["1e-4", "2e-4"],
    "training.warmup_ratio": ["0.03"],
    "training.per_device_train_batch_size": ["2"],
    "training.gradient_accumulation_steps": ["8"],
    "training.eval_steps": ["100"],
    "training.save_steps": ["100"],
}
INDENT = 31


def describe_keys(columns: int | None) -> str:
    """Every key with its default and its meaning in the user's language; those that are set first stand first."""
    known = {key.name: key for key in keys()}
    lines = [_heading(say("help.first"), columns)]
    lines += [hanging(f"  {name}", _meaning(known[name]), INDENT + 12, columns) for name in FIRST]
    lines += ["", _heading(say("help.all"), columns)]
    section = ""
    for key in known.values():
        before, (section, _, name) = section, key.name.partition(".")
        lines += [f"\n{section}:"] if section != before else []
        lines.append(hanging(f"  {name}", _meaning(key), INDENT, columns))
    return "\n".join(lines)


def describe_key(word: str, columns: int | None) -> str:
    """One key with examples, or a section's keys.

    Args:
        word: `training.learning_rate`, `learning_rate`, another trainer's name for it, or `training`.

    Raises:
        UserError: nothing is called so.
    """
    known = {key.name: key for key in keys()}
    if word in sections():
        own = [key for key in known.values() if key.name.startswith(f"{word}.")]
        return "\n".join(hanging(key.name, _meaning(key), INDENT + 12, columns) for key in own)
    return "\n".join(_of_key(known[name_of(word)], columns))


def name_of(word: str) -> str:
    """`training.learning_rate` for whatever names it.

    Raises:
        UserError: nothing is called so; names the nearest keys.
    """
    from ..checks.unknown_keys import PEER_NAMES

    plain = word.lstrip("-").replace("-", "_").partition("=")[0]
    names = [key.name for key in keys()]
    if plain in names:
        return plain
    short = {name.partition(".")[2]: name for name in reversed(names)}
    found = short.get(plain) or PEER_NAMES.get(plain)
    if found is not None:
        return found
    pool = {**{name: name for name in names}, **short}
    near = [pool[match] for match in difflib.get_close_matches(plain, pool, n=3)]
    near = list(dict.fromkeys(near))
    if near:
        raise UserError(problem("help.near", word=word, near=", ".join(near)))
    raise UserError(problem("help.unknown", word=word))


def _heading(text: str, columns: int | None) -> str:
    first, _, rest = text.partition(" ")
    return hanging(first, rest, 2, columns)


def _meaning(key: Key) -> str:
    default = say("cli.required") if key.default is None else say("cli.default", value=key.default)
    return f"{key.meaning[language()]} ({default})"


def _of_key(key: Key, columns: int | None) -> Iterator[str]:
    from ..checks.unknown_keys import PEER_NAMES

    section, _, name = key.name.partition(".")
    default = say("cli.required") if key.default is None else say("cli.default", value=key.default)
    yield f"{key.name}   ({', '.join(key.types)}; {default})"
    yield hanging(" ", key.meaning[language()], 2, columns)
    if key.allowed:
        yield hanging(f"  {say('help.allowed')}", ", ".join(key.allowed), 24, columns)
    examples = examples_of(key)
    yield f"  {say('help.in_yaml')}"
    yield f"    {section}:"
    yield f"      {name}: {examples[0]}"
    yield f"  {say('help.on_command_line')}"
    for example in examples:
        value = f"'{example}'" if " " in example and "'" not in example else example
        yield f"    lora-train --config FILE {key.name}={value}"
    peers = [peer for peer, ours in PEER_NAMES.items() if ours == key.name]
    if peers:
        yield hanging(f"  {say('help.called')}", ", ".join(peers), 24, columns)


def examples_of(key: Key) -> list[str]:
    """Values that show how the key is written."""
    if key.name in EXAMPLES:
        return EXAMPLES[key.name]
    words = [word for word in key.allowed if word != key.default and " " not in word and word != "null"]
    if words and not words[0].startswith(("≥", ">", "≤", "<")):
        return [str(ours_for(key.name, word)) for word in words[:2]]
    if "boolean" in key.types and not key.allowed:
        return ["false" if key.default == "true" else "true"]
    return [key.default if key.default not in (None, "") else "null"]
