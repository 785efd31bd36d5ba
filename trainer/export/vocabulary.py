"""A tokenizer as the keys of a GGUF file: tokens, what kind each is, and how text is cut.

    bytes      tokens of GPT-2's byte alphabet, joined by merges; text is cut by one of four patterns first
    sentence   SentencePiece's: "▁" for a space, bytes as <0x0A>; the earlier a merge, the higher a token's score

llama.cpp knows patterns by name; a tokenizer that cuts otherwise is refused, because it would give other tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ..errors import UserError, problem

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# What comes before the bytes -> llama.cpp's name.
PATTERNS = {
    (): "gpt-2",
    ("digits",): "smollm",
    (_WORDS + r"\p{N}{1,3}" + _REST,): "llama-bpe",
    (_WORDS + r"\p{N}" + _REST,): "qwen2",
}


def write_vocabulary(writer: Any, tokenizer: Any, n_rows: int) -> None:
    """Adds the tokenizer to a file.

    Args:
        writer: gguf's GGUFWriter.
        tokenizer: transformers'.
        n_rows: of the embedding table; rows without a token get a name of their own.

    Raises:
        UserError: llama.cpp would cut text otherwise.
    """
    told = require_known(tokenizer)
    model = told["model"]
    is_sentence = bool(model.get("byte_fallback"))
    tokens, kinds = tokens_of(told, n_rows, tokenizer.unk_token)
    merges = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
    writer.add_tokenizer_model("llama" if is_sentence else "gpt2")
    if not is_sentence:
        writer.add_tokenizer_pre(pattern_of(told))
    writer.add_token_list(tokens)
    if is_sentence:
        writer.add_token_scores(scores_of(tokens, merges))
        writer.add_add_space_prefix(has_prefix(told))
    else:
        writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_token_types(kinds)
    write_special(writer, tokenizer)


def require_known(tokenizer: Any) -> dict[str, Any]:
    """tokenizer.json of a tokenizer that cuts text as llama.cpp can.

    Raises:
        UserError: it is of another kind.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(problem("export.tokenizer", what=type(tokenizer).__name__))
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    if told["model"]["type"] != "BPE":
        raise UserError(problem("export.tokenizer", what=told["model"]["type"]))
    if not told["model"].get("byte_fallback"):
        pattern_of(told)
    return told


def write_special(writer: Any, tokenizer: Any) -> None:
    """Tokens with a meaning, whether texts begin and end with one, and the chat template."""
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(bool(ids) and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(bool(ids) and ids[-1] == tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def pattern_of(told: dict[str, Any]) -> str:
    """llama.cpp's name for how a byte-level tokenizer cuts text.

    Args:
        told: tokenizer.json.

    Raises:
        UserError: it has none.
    """
    steps = list(_steps(told.get("pre_tokenizer")))
    normalizers = [step["type"] for step in _steps(told.get("normalizer"))]
    bytes_last = bool(steps) and steps[-1]["type"] == "ByteLevel" and not steps[-1].get("add_prefix_space")
    own = tuple(_cut(step) for step in steps[:-1])
    found = PATTERNS.get(own) if bytes_last and normalizers in ([], ["NFC"]) else None
    own_split = bytes_last and steps[-1].get("use_regex", True)
    merges_first = found == "llama-bpe"  # it looks for whole tokens before merges, as the tokenizer has to
    fits = found is not None and own_split == (found in ("gpt-2", "smollm"))
    if not fits or bool(told["model"].get("ignore_merges")) != merges_first:
        what = ", ".join([*normalizers, *(_cut(step)[:60] for step in steps)])
        raise UserError(problem("export.tokenizer", what=what))
    assert found is not None
    return found


def tokens_of(told: dict[str, Any], n_rows: int, unknown: str | None) -> tuple[list[str], list[int]]:
    """The tokens in the order of their numbers, and the kind of each.

    Raises:
        UserError: there are more of them than rows.
    """
    names: dict[int, str] = {number: name for name, number in told["model"]["vocab"].items()}
    kinds = dict.fromkeys(names, NORMAL)
    for number, name in names.items():
        if told["model"].get("byte_fallback") and len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            kinds[number] = BYTE
    for token in told["added_tokens"]:
        names[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    for number, name in names.items():
        if name == unknown and told["model"].get("byte_fallback"):
            kinds[number] = UNKNOWN
    if max(names) >= n_rows:
        raise UserError(problem("export.rows", n=max(names) + 1, rows=n_rows))
    numbers = range(n_rows)
    return [names.get(i, f"[PAD{i}]") for i in numbers], [kinds.get(i, UNUSED) for i in numbers]


def scores_of(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """Minus the place of the first merge that makes a token; 0 for what no merge makes."""
    made: dict[str, float] = {}
    for place, pair in enumerate(merges):
        made.setdefault("".join(pair), -float(place + 1))
    return [made.get(token, 0.0) for token in tokens]


def has_prefix(told: dict[str, Any]) -> bool:
    """Whether a space is put before a text."""
    steps = [*_steps(told.get("normalizer")), *_steps(told.get("pre_tokenizer"))]
    return any(
        step["type"] == "Prepend" or (step["type"] == "Metaspace" and step.get("prepend_scheme") in ("first", "always"))
        for step in steps
    )


def _steps(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The parts of a sequence of normalizers or pre-tokenizers."""
    if step is None:
        return
    inner = step.get("pretokenizers") or step.get("normalizers")
    if inner is None:
        yield step
    for part in inner or []:
        yield from _steps(part)


def _cut(step: dict[str, Any]) -> str:
    if step["type"] == "Digits" and step.get("individual_digits"):
        return "digits"
    if step["type"] == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return step["pattern"].get("Regex", "")
    return json.dumps(step)
