"""Chat templates of a local folder: is what is trained on what the model will be asked?

    python -m benchmarks.templates FOLDER [-o tests/trainer/data/templates.jsonl]

For each *.jinja file (and each chat_template of a tokenizer_config.json or chat_template.json) four conversations of
two answers are rendered, tokenized and masked as training does: plain, with a system prompt, with reasoning, with a
call of a tool. An answer is exact where the tokens up to it are those of
`tokenizer.apply_chat_template(turns before it, add_generation_prompt=True)`, it is trained on from the first token
behind them, and holds the row's words. The tokenizer is a byte-level one that knows the template's marks. Nothing but
transformers' sandboxed Jinja runs a template; the files stay where they are, the table holds names, hashes, verdicts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import transformers
from lora_train.trainer.data.chat.templates import FIXED_DATE, text_of
from lora_train.trainer.data.chat.turns import REASONING, Talk, talk_of
from lora_train.trainer.data.conversations import GENERATION, ChatFormat
from lora_train.trainer.data.masks import end_of, tokenize
from lora_train.trainer.data.readers import BadRow
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

MARKS = re.compile(
    r"<\|[^|<>'\"{}\s]{1,40}\|>|<｜[^｜<>'\"{}]{1,40}｜>|</?[A-Za-z_:0-9]{2,30}>|<\|?[a-z_]+\|?>|\[\|[a-z]+\|\]|\[/?[A-Z_]{3,30}\]"
)
PLAIN = [
    {"role": "user", "content": "How hot is boiling water?"},
    {"role": "assistant", "content": "100 degrees Celsius."},
    {"role": "user", "content": "And in Busan?"},
    {"role": "assistant", "content": "The same there."},
]
CALL = {"type": "function", "id": "call00001", "function": {"name": "weather", "arguments": '{"city": "Seoul"}'}}
TOOL = {"name": "weather", "description": "Tells it.", "parameters": {"type": "object", "properties": {}}}
ROWS: dict[str, dict[str, Any]] = {
    "plain": {"messages": PLAIN},
    "system": {"messages": [{"role": "system", "content": "Be short."}, *PLAIN]},
    "reasoning": {
        "messages": [
            turn | ({"reasoning_content": "Water at sea level."} if turn["role"] == "assistant" else {})
            for turn in PLAIN
        ]
    },
    "tools": {
        "messages": [
            {"role": "user", "content": "Weather in Seoul?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": '{"t": 3}'},
            {"role": "assistant", "content": "Three degrees."},
        ],
        "tools": [{"type": "function", "function": TOOL}],
    },
}


def tokenizer_of(template: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that knows the marks of a template."""
    marks = list(dict.fromkeys(["<s>", "</s>", *MARKS.findall(template)]))
    symbols = marks + sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens(marks)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


def verdict(template: str, row: dict[str, Any]) -> dict[str, Any]:
    """{"verdict": exact, refused, inexact, or as its {% generation %} marks say} and why, of a row under a template."""
    tokenizer = tokenizer_of(template)
    form = ChatFormat("messages", template, tokenizer.special_tokens_map)
    try:
        talk = form.runner.fitted(talk_of("messages", row))
        rendered = form.render(row)
    except BadRow as bad:
        (key, values), *_ = bad.faults
        return {"verdict": "refused", "why": key, "field": values.get("field", ""), "what": values.get("what", "")}
    parts = [*rendered.earlier, rendered]
    pairs = [(ids.tolist(), mask.tolist()) for ids, mask in tokenize(parts, tokenizer, is_chat=True)]
    found, ids_of = [runs_of(*pair) for pair in pairs], [ids for ids, _ in pairs]
    switches = [dict(values)["switch"].split("=") for key, values in rendered.notes if key == "data.switched"]
    choices = [{}, *({name: value == "True"} for name, value in switches)]
    asked = talk.answers if "begins_with_answer" not in str(rendered.notes) else talk.answers[1:]
    wrong = [i for i in asked if not any(is_exact(tokenizer, talk, i, choice, ids_of, found) for choice in choices)]
    found_ends = [end_of(ids, mask, tokenizer) for ids, mask in tokenize(parts, tokenizer, is_chat=True)]
    ends = {str(tokenizer.decode(end)) for end in found_ends if end is not None}
    notes = sorted({key.removeprefix("data.") for key, _ in rendered.notes})
    facts = {"rows": len(parts), "notes": notes, "ends": sorted(ends) if None not in found_ends else []}
    if wrong and GENERATION.search(template):
        return {"verdict": "as marked", **facts}
    return {"verdict": "inexact", "turns": wrong, **facts} if wrong else {"verdict": "exact", **facts}


def runs_of(ids: Sequence[int], mask: Sequence[bool]) -> list[tuple[int, int]]:
    """(start, end) of the runs of tokens that are trained on."""
    edges = [i for i in range(len(ids) + 1) if (i < len(ids) and bool(mask[i])) != (i > 0 and bool(mask[i - 1]))]
    return list(zip(edges[::2], edges[1::2], strict=True))


def is_exact(
    tokenizer: Any,
    talk: Talk,
    i: int,
    choice: dict[str, bool],
    ids_of: Sequence[list[int]],
    found: Sequence[list[tuple[int, int]]],
) -> bool:
    """Whether some row has the tokens of the prompt, and from there on the i-th turn is trained on."""
    asked = {"tools": list(talk.tools) or None, "date_string": FIXED_DATE, **choice}
    try:
        text = tokenizer.apply_chat_template(list(talk.turns[:i]), tokenize=False, add_generation_prompt=True, **asked)
    except Exception:  # whatever a template raises: it can't be asked
        return False
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    turn = talk.turns[i]
    words = [text_of(turn), *(turn[name] for name in REASONING if name in turn)]
    words += [call["function"]["name"] for call in turn.get("tool_calls", ())]
    for ids, runs in zip(ids_of, found, strict=True):
        for start, end in runs:
            if start == len(prompt) and ids[:start] == prompt:
                said = tokenizer.decode(ids[start:end])
                return all(word.strip() in said for word in words)
    return False


def templates_in(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, template) of every file of the folder; the same text once."""
    seen = set()
    for path in sorted(folder.rglob("*")):
        found: list[tuple[str, str]] = []
        name = str(path.relative_to(folder)).replace("__", "/")
        if path.suffix == ".jinja":
            found = [(name, path.read_text(encoding="utf-8"))]
        elif path.name in ("tokenizer_config.json", "chat_template.json"):
            value = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
            several = value if isinstance(value, list) else [{"name": "", "template": value}] if value else []
            found = [(f"{name}#{one['name']}".rstrip("#"), one["template"]) for one in several]
        for title, text in found:
            digest = hashlib.sha256(text.encode()).hexdigest()
            if digest not in seen:
                seen.add(digest)
                yield title, text


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the counts and writes the table; 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.templates", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    lines, counts = [], {name: Counter() for name in ROWS}
    for name, template in templates_in(options.folder):
        digest = hashlib.sha256(template.encode()).hexdigest()
        line: dict[str, Any] = {"file": name, "sha256": digest, "marks": bool(GENERATION.search(template))}
        for kind, row in ROWS.items():
            line[kind] = verdict(template, row)
            counts[kind][line[kind]["verdict"]] += 1
        lines.append(json.dumps(line, ensure_ascii=False))
        shown = [f"{kind} {line[kind]['verdict']} {line[kind].get('why', '')}".strip() for kind in ROWS]
        print(f"{name:70}", " | ".join(shown))
    for kind, count in counts.items():
        print(kind, dict(count))
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
