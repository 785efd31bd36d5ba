"""A folder that `ollama create` takes: the model, or the adapter for one it has, and a Modelfile.

FROM ./model.gguf  or  FROM llama3.2:1b and ADAPTER ./lora.gguf
TEMPLATE, SYSTEM, PARAMETER stop
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..data.conversations import find_template
from ..verbs.adapter_folder import Adapter
from ..verbs.chat import plain_prompt
from ..verbs.ends import trained_end
from .go_template import FIRST, GoTemplate, go_template

MODEL, ADAPTER, MODELFILE = "model.gguf", "lora.gguf", "Modelfile"


@dataclass(frozen=True)
class Words:
    """How the model is asked, and where its answer ends.

    Attributes:
        template: None where Ollama has to find one itself, in the model's file.
        default: the system prompt of the chat template.
        stops: texts that end an answer.
    """

    template: str | None
    default: str
    stops: tuple[str, ...]


def words_of(adapter: Adapter, tokenizer: Any) -> Words:
    """What the run was trained with, in Ollama's words."""
    data = adapter.config.data if adapter.config else None
    end = trained_end(adapter.config, tokenizer)
    numbers = [number for number in (end, tokenizer.eos_token_id) if number is not None]
    stops = tuple(dict.fromkeys(str(tokenizer.convert_ids_to_tokens(number)) for number in numbers))
    form = data.format if data else "text" if tokenizer.chat_template is None else None
    plain = plain_prompt(form, FIRST, data.prompt_template if data else None)
    if plain is not None:
        before, _, after = plain.partition(FIRST)
        return Words(f"{before}{{{{ .Prompt }}}}{after}{{{{ .Response }}}}", "", stops)
    found = chat_words(adapter, tokenizer)
    return Words(found.text() if found else None, found.default if found else "", stops)


def chat_words(adapter: Adapter, tokenizer: Any) -> GoTemplate | None:
    """The chat template of the run in Go's language; None where it cannot be said there."""
    if adapter.config is not None and adapter.config.data.chat_template is not None:
        tokenizer.chat_template = find_template(adapter.config.data.chat_template, tokenizer)
    if tokenizer.chat_template is None:
        return None
    ids = tokenizer("a")["input_ids"]
    begins = bool(ids) and ids[0] == tokenizer.bos_token_id

    def render(messages: list[dict[str, str]], asked: bool) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asked)

    return go_template(render, tokenizer.bos_token if begins else None)


def modelfile(words: Words, base: str | None) -> str:
    """The text of the Modelfile.

    Args:
        words: how the model is asked.
        base: a model that Ollama has; None: the folder holds the merged one.
    """
    lines = [f"FROM ./{MODEL}"] if base is None else [f"FROM {base}", f"ADAPTER ./{ADAPTER}"]
    if words.template is not None:
        lines.append(f'TEMPLATE """{words.template}"""')
    if words.default:
        lines.append(f'SYSTEM """{words.default}"""')
    lines += [f'PARAMETER stop "{_quoted(stop)}"' for stop in words.stops]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
