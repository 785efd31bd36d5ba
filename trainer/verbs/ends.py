"""The token that an adapter was trained to end its answers with, which need not be the base model's own.

A base model's end-of-text token is one thing, the "<|im_end|>" of a chat template another: whoever generates has to
stop at the one that was trained.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from ..config.schema import Config
from ..data.conversations import ChatFormat, find_template
from ..data.formats import CHATS
from ..data.masks import end_of, tokenize
from ..data.readers import BadRow
from ..errors import UserError

QUESTION = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def trained_end(config: Config | None, tokenizer: Any) -> int | None:
    """The token that ends an answer in the run's format; None where no token does, or no run is known."""
    if config is None:
        return None
    data = config.data
    if data.prompt_template is not None or data.format not in (*CHATS, "auto"):
        return tokenizer.eos_token_id
    try:
        form = ChatFormat("messages", find_template(data.chat_template, tokenizer), tokenizer.special_tokens_map)
        ((ids, supervised),) = tokenize([form.render(QUESTION)], tokenizer, is_chat=True)
    except (UserError, BadRow):  # the template takes no such conversation, or there is none
        return None
    return end_of(ids, supervised, tokenizer)


def stop_on(model: PreTrainedModel, end: int | None) -> None:
    """Puts the token among those that the model's generation config stops at."""
    generation: Any = model.generation_config
    if end is None or generation is None:
        return
    own = generation.eos_token_id
    ends = list(own) if isinstance(own, (list, tuple)) else [own] if own is not None else []
    if end not in ends:
        generation.eos_token_id = [end, *ends] if ends else end
