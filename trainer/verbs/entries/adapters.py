"""Arguments of the verbs that take an adapter, and what they begin with before torch is imported."""

from __future__ import annotations

import argparse
import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ....instrument.messages import say
from ...phases import importing


def merge_arguments(parser: ArgumentParser) -> None:
    """Arguments of `lora-train merge`."""
    parser.add_argument("run", metavar="RUN", type=Path, help=say("cli.adapter"))
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help=say("cli.merge.output"))
    dtypes = ("auto", "float16", "bfloat16", "float32")
    parser.add_argument("--dtype", choices=dtypes, default="auto", help=say("cli.merge.dtype"))
    parser.add_argument("--trust-remote-code", action="store_true", help=say("cli.trust_remote_code"))


def run_merge(arguments: Namespace) -> int:
    """`lora-train merge`; the exit code."""
    from ...console import quiet_libraries
    from ...hub import ask_first
    from ..adapter_folder import require_new_folder
    from ..adapter_kinds import MERGE, usable_adapter

    run: Path = arguments.run
    adapter = usable_adapter(run, MERGE, arguments.trust_remote_code)
    beside = run / "merged" if adapter.folder != run else run.resolve().with_name(f"{run.resolve().name}-merged")
    output = arguments.output or beside
    require_new_folder(output)
    ask_first(adapter.base, adapter.revision)
    quiet_libraries()
    with importing():
        from ..merge import Request, merge

    return merge(Request(adapter, output, arguments.dtype))


def chat_arguments(parser: ArgumentParser) -> None:
    """Arguments of `lora-train chat`."""
    parser.add_argument("run", metavar="RUN", type=Path, help=say("cli.adapter"))
    parser.add_argument("--prompt", metavar="TEXT", help=say("cli.chat.prompt"))
    parser.add_argument(
        "--max-new-tokens", type=_at_least_one, default=256, metavar="N", help=say("cli.chat.max_new_tokens")
    )
    parser.add_argument("--temperature", type=_temperature, default=0.0, metavar="T", help=say("cli.chat.temperature"))
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help=say("cli.chat.seed"))
    parser.add_argument("--trust-remote-code", action="store_true", help=say("cli.trust_remote_code"))


def run_chat(arguments: Namespace) -> int:
    """`lora-train chat`; the exit code."""
    from ...console import quiet_libraries
    from ...hub import ask_first
    from ..adapter_kinds import CHAT, usable_adapter

    adapter = usable_adapter(arguments.run, CHAT, arguments.trust_remote_code)
    ask_first(adapter.base, adapter.revision)
    quiet_libraries()
    with importing():
        from ..chat import Request, chat

    return chat(Request(adapter, arguments.prompt, arguments.max_new_tokens, arguments.temperature, arguments.seed))


def inspect_arguments(parser: ArgumentParser) -> None:
    """Arguments of `lora-train inspect`."""
    parser.add_argument("adapter", metavar="ADAPTER", type=Path, help=say("cli.inspect.adapter"))
    parser.add_argument("--json", action="store_true", help=say("cli.json"))


def run_inspect(arguments: Namespace) -> int:
    """`lora-train inspect`; the exit code."""
    from ..inspect_adapter import inspect_adapter

    return inspect_adapter(arguments.adapter, arguments.json)


def _at_least_one(text: str) -> int:
    return _number(text, int, lambda value: value >= 1, "cli.at_least_one")


def _temperature(text: str) -> float:
    return _number(text, float, lambda value: 0 <= value < math.inf, "cli.not_negative")


def _seed(text: str) -> int:
    return _number(text, int, lambda value: 0 <= value < 2**63, "cli.not_negative")


def _number(text: str, kind: Callable[[str], int | float], allowed: Callable[[float], bool], sentence: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not allowed(value):
        raise argparse.ArgumentTypeError(say(sentence, value=text))
    return value
