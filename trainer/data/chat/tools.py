"""Tools and their calls, in the forms that data sets have them: as objects, or as JSON in a text."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..fields import Fault, is_empty, printable
from ..readers import BadRow, parse_row

# What a call's arguments are called by OpenAI, others' schemas, LangChain and Anthropic; and what is not looked at.
ARGUMENTS = ("arguments", "parameters", "args", "input")
SILENT = ("name", "function", "id", "type", "index")


def tools_of(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """What a row says may be called, in OpenAI's form: objects, or JSON of one, of all or of each.

    Raises:
        BadRow: it is something else, or is given twice.
    """
    found: tuple[Mapping[str, Any], ...] = ()
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
        own = tuple({"type": "function", **tool} for tool in nested)
        if found and own != found:
            raise BadRow(("data.no_place", {"field": name}))
        found = own
    return found


def calls_of(place: str, value: Any) -> list[dict[str, Any]]:
    """Calls of tools in OpenAI's form, the arguments as an object where they are JSON.

    Raises:
        BadRow: one has no name or a field that calls have not, or the text is no JSON.
    """
    if isinstance(value, str):
        value = from_json(place, value)
    calls = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise BadRow(("data.not_call", {"field": place}))
        held = next((name for name in ARGUMENTS if not is_empty(function.get(name))), None)
        if faults := _strangers(place, call, function, held):
            raise BadRow(*faults)
        arguments = {} if held is None else function[held]
        if isinstance(arguments, str):
            with suppress(ValueError):  # a tool may take plain text
                arguments = parse_row(arguments) if arguments.strip() else {}
        kept = {key: call[key] for key in ("id",) if call.get(key) is not None}
        named = {"name": function["name"], "arguments": _without_nulls(arguments)}
        calls.append({**kept, "type": "function", "function": named})
    return calls


def _strangers(place: str, call: Mapping[str, Any], function: Mapping[str, Any], held: str | None) -> list[Fault]:
    """Fields of a call that no template is given, and that hold something."""
    names = dict.fromkeys(name for own in (call, function) for name, value in own.items() if not is_empty(value))
    return [("data.no_place", {"field": f"{place}.{name}"}) for name in names if name not in (*SILENT, held)]


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
