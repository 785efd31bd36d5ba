"""`lora-train chat RUN`: talks to base and adapter in the words the run was trained with.

On a terminal it is a conversation; lines from a pipe are questions of their own, so that an answer does not depend on
the line before it. Greedy at temperature 0.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from peft import PeftModel
from transformers import GenerationConfig, TextStreamer

from ...instrument.messages import say
from ..config.schema import Config
from ..config.settings import with_settings
from ..console import Console
from ..data.conversations import find_template
from ..data.formats import FORMATS, custom_format, template_fields
from ..data.masks import begins_twice
from ..errors import UserError, problem
from ..model.fit import named
from ..model.load import autocast, load_tokenizer, pad_token_id
from .adapter_folder import Adapter
from .ends import trained_end
from .load_adapter import base_config, load_trained

# What is announced, and what people type who know another tool; on a terminal without the slash too.
EXIT = ("/exit", "/quit", "/bye")
TYPED = (*EXIT, "exit", "quit")
# Formats whose prompt is the user's text itself, and those with a template for one question. All others talk in the
# tokenizer's chat template and remember the conversation.
PLAIN = ("text", "prompt_completion")
ONE_QUESTION = ("koalpaca", "alpaca")
# 16-bit products are slow on most CPUs and generation gains nothing from them there
ON_CPU = {
    "training.fp16": False,
    "training.bf16": False,
    "model.dtype": "float32",
    "quantization.bnb_4bit_compute_dtype": "float32",
}
Message = dict[str, str]


@dataclass(frozen=True)
class Request:
    """What the command line asks for. `prompt` None: talk, or answer the lines of standard input."""

    adapter: Adapter
    prompt: str | None
    max_new_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class Talker:
    """A model with everything needed to ask it."""

    model: PeftModel
    tokenizer: Any
    config: Config
    format: str | None
    request: Request


def chat(request: Request) -> int:
    """Answers until there is nothing more to answer; returns the exit code 0.

    Raises:
        UserError: base or adapter cannot be loaded, or --prompt cannot be answered.
    """
    transformers.logging.set_verbosity_error()
    try:
        talker = load(request)
        if request.prompt is not None:
            answer(talker, [user(request.prompt)])
        elif sys.stdin.isatty():
            converse(talker)
        else:
            answer_lines(talker)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(problem("chat.memory", base=request.adapter.base)) from error
    return 0


def load(request: Request) -> Talker:
    """Loads base, adapter and tokenizer as the run had them; on a CPU in float32."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    adapter, settings = request.adapter, {}
    if device.type == "cpu":
        settings = ON_CPU
    elif adapter.config is None:
        settings = {"training.bf16" if torch.cuda.is_bf16_supported() else "training.fp16": True}
    config = with_settings(base_config(adapter), settings)
    tokenizer = load_tokenizer(config)
    if adapter.config is not None and adapter.config.data.chat_template is not None:
        tokenizer.chat_template = find_template(adapter.config.data.chat_template, tokenizer)
    model = load_trained(adapter, settings, device)
    form = adapter.config.data.format if adapter.config else "text" if tokenizer.chat_template is None else None
    return Talker(model, tokenizer, config, form, request)


def user(text: str) -> Message:
    """What the user says."""
    return {"role": "user", "content": text}


def prompt_ids(form: str | None, tokenizer: Any, messages: Sequence[Message], template: str | None = None) -> list[int]:
    """The tokens before the answer, as in training.

    Args:
        form: data.format; None for an adapter made elsewhere.
        messages: the conversation so far; the last one is the user's.
        template: data.prompt_template, which wins; what the user says is its first field, the others are empty.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    text = plain_prompt(form, messages[-1]["content"], template)
    if text is None:
        if tokenizer.chat_template is None:
            raise UserError(problem("chat.no_template", form=form))
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return tokenizer(text, add_special_tokens=False)["input_ids"]  # the template has written them
    ids = tokenizer(text)["input_ids"]
    ids = ids[1:] if begins_twice(ids, tokenizer) else ids
    # some tokenizers end every text; here the answer is still to come
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def plain_prompt(form: str | None, question: str, template: str | None) -> str | None:
    """The text before the answer to one question; None where the tokenizer's chat template writes it."""
    fields = template_fields(template) if template is not None else []
    if template is not None and len(fields) > 1:
        return custom_format(template).template(dict.fromkeys(fields, "") | {fields[0]: question})[0]
    if form in PLAIN or template is not None:
        return question
    if form in ONE_QUESTION:
        return FORMATS[form].template({"instruction": question, "input": "", "output": ""})[0]
    return None


def answer(talker: Talker, messages: Sequence[Message]) -> str:
    """Generates one answer and prints it: as it comes on a terminal, whole elsewhere.

    Raises:
        UserError: the question is empty, is not text, or leaves no room for an answer.
    """
    request, tokenizer = talker.request, talker.tokenizer
    question = messages[-1]["content"]
    if not question.strip():
        raise UserError(problem("chat.empty"))
    if any("\ud800" <= character <= "\udfff" for character in question):
        raise UserError(problem("chat.not_text"))
    trained = request.adapter.config
    ids = prompt_ids(talker.format, tokenizer, messages, trained.data.prompt_template if trained else None)
    live = sys.stdout.isatty()
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if live else None
    text, cut = written_after(talker, ids, streamer)
    if not live:
        print(text, flush=True)
    if cut:
        print(say("chat.cut", n=request.max_new_tokens), file=sys.stderr, flush=True)
    return text


def written_after(talker: Talker, ids: Sequence[int], streamer: TextStreamer | None = None) -> tuple[str, bool]:
    """What the model writes after these tokens, and whether it was cut off before it came to an end.

    Raises:
        UserError: they leave no room for an answer, or the model has no embedding for one.
    """
    request, device = talker.request, talker.model.device
    own_config: Any = talker.model.get_base_model().config
    n_rows = getattr(own_config.get_text_config(), "vocab_size", None)
    if n_rows and (beyond := [token for token in ids if token >= n_rows]):
        raise UserError(problem("chat.no_embedding", tokens=named(beyond, talker.tokenizer), rows=n_rows))
    limit = getattr(own_config, "max_position_embeddings", None)
    if limit is not None and len(ids) >= limit:
        raise UserError(problem("chat.too_long", n=len(ids), limit=limit))
    room = request.max_new_tokens if limit is None else min(request.max_new_tokens, limit - len(ids))
    settings = generation_of(talker, room)
    torch.manual_seed(request.seed)
    with torch.inference_mode(), autocast(talker.config, device):
        output = talker.model.generate(
            input_ids=torch.tensor([ids], device=device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=device),
            generation_config=settings,
            streamer=streamer,
        )
    own = output[0, len(ids) :].tolist()
    cut = len(own) >= room and own[-1] not in (settings.eos_token_id or ())
    return talker.tokenizer.decode(own, skip_special_tokens=True).strip(), cut


def generation_of(talker: Talker, max_new_tokens: int) -> GenerationConfig:
    """Greedy or sampled at a temperature; ends where the tokenizer or the model says an answer ends."""
    own = getattr(talker.model.get_base_model().generation_config, "eos_token_id", None)
    trained = trained_end(talker.request.adapter.config, talker.tokenizer)
    ends = {talker.tokenizer.eos_token_id, trained, *(own if isinstance(own, list) else [own])} - {None}
    sampling = {"temperature": talker.request.temperature} if talker.request.temperature > 0 else {}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=bool(sampling),
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad_token_id(talker.tokenizer),
        **sampling,
    )


def converse(talker: Talker) -> None:
    """Question and answer on a terminal, until /exit, Ctrl-D or Ctrl-C. What cannot be answered is said."""
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  # editing and history for input()

    console = Console()
    remembers = talker.format not in (*PLAIN, *ONE_QUESTION)
    console.line(say("chat.hello" if remembers else "chat.hello_single", base=talker.request.adapter.base))
    messages: list[Message] = []
    try:
        while (question := input("> ").strip()) not in TYPED:
            if not question:
                continue
            messages = [*messages, user(question)] if remembers else [user(question)]
            try:
                messages.append({"role": "assistant", "content": answer(talker, messages)})
            except UserError as error:
                console.line(str(error))
                messages = []  # a conversation that has become too long starts anew
    except (EOFError, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt) and error.args:  # SIGTERM: not the user at the keyboard
            raise
        print()


def answer_lines(talker: Talker) -> None:
    """Answers every line of standard input.

    Raises:
        UserError: a line cannot be answered.
    """
    for question in _lines():
        if question in EXIT:
            return
        answer(talker, [user(question)])


def _lines() -> Iterator[str]:
    try:
        for line in sys.stdin:
            if line.strip():
                yield line.strip()
    except UnicodeDecodeError as error:
        raise UserError(problem("chat.not_text")) from error
