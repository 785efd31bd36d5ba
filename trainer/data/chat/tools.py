"""Tools and their calls, in the forms that data sets have them: as objects, or as JSON in a text."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..fields import is_empty, printable
from ..readers import BadRow, parse_row

# What the arguments of a call are called: by OpenAI, in schemas, by LangChain, by Anthropic.
ARGUMENTS = ("arguments", "parameters", "args", "input")
OF_CALL = ("name", "function", "type", "id", "index")


def tools_of(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """What a row says may be called, in OpenAI's form: objects, or JSON of one, of all or of each.

    Raises:
        BadRow: it is something else.
    """
    for name in ("tools", "functions"):
        tools = row.get(name)
        if is_empty(tools):
            continue
        if isinstance(tools, str):
            tools = from_json(name, tools)
            if is_empty(tools):
                continue
        tools = [tools] if isinstance(tools, dict) else tools
        if isinstance(tools, list):
            tools = [from_json(f"{name}[{i}]", tool) if isinstance(tool, str) else tool for i, tool in enumerate(tools)]
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise BadRow(("data.not_tools", {"field": name}))
        tools = [_without_nulls(tool) for tool in tools]
        nested = [tool if isinstance(tool.get("function"), dict) else {"function": tool} for tool in tools]
        return tuple({"type": "function", **tool} for tool in nested)
    return ()


def calls_of(place: str, value: Any) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Calls of tools in OpenAI's form, the arguments as an object where they are JSON; and the fields not read.

    Raises:
        BadRow: one has no name, or the text is no JSON.
    """
    if isinstance(value, str):
        value = from_json(place, value)
    calls, unread = [], []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise BadRow(("data.not_call", {"field": place}))
        given = [name for name in ARGUMENTS if name in function]
        held = next((name for name in given if not is_empty(function[name])), "")
        arguments = function.get(held, {})
        if isinstance(arguments, str):
            with suppress(ValueError):  # a tool may take plain text
                arguments = parse_row(arguments) if arguments.strip() else {}
        else:
            arguments = _without_nulls(arguments)
        kept = {key: call[key] for key in ("id",) if call.get(key) is not None}
        named = {"name": function["name"], "arguments": arguments}
        calls.append({**kept, "type": "function", "function": named})
        more = {**function, **(call if function is not call else {})}
        unread += [f"[].{name}" for name in more if name not in (held, *OF_CALL) and not is_empty(more[name])]
    return calls, tuple(map(printable, unread))


def from_json(place: str, text: str) -> Any:
    """The value of a field that holds JSON as text.

    Raises:
        BadRow: it is none.
    """
    try:
        return parse_row(text)
    except ValueError as error:
        raise BadRow(("data.bad_json", {"field": place, "what": printable(str(error))})) from None


def _without_nulls(value: Any) -> Any:
    """What parquet fills with null is not there: templates take null for a value."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
