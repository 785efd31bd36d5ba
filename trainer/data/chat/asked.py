"""What a chat template asks of a turn, read from its Jinja and not run."""

from __future__ import annotations

import re

from jinja2 import Environment, TemplateError, nodes

# Names that hold tools, their calls or parts of a content, not a turn; and what is taken from them.
_NO_TURN = re.compile(r"tool|func|param|spec|schema|propert|argument|call|content|item|part|chunk|block", re.IGNORECASE)
# transformers' own tag: what stands in it was generated.
_GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")


def fields_of_turns(template: str) -> frozenset[str]:
    """Names asked as turn.NAME, turn["NAME"], turn.get("NAME") or "NAME" in turn.

    A template that Jinja cannot read asks for every word in it.
    """
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do"]).parse(_GENERATION.sub("", template))
    except TemplateError:
        return frozenset(re.findall(r"\w+", template))
    others = _bound_to_no_turn(tree)
    asked = {node.attr for node in tree.find_all(nodes.Getattr) if _is_turn(node.node, others)}
    for item in tree.find_all(nodes.Getitem):
        if _is_turn(item.node, others):
            asked |= _texts(item.arg)
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr == "get" and _is_turn(call.node.node, others):
            asked |= {name for argument in call.args[:1] for name in _texts(argument)}
    for compare in tree.find_all(nodes.Compare):
        if any(one.op in ("in", "notin") and _is_turn(one.expr, others) for one in compare.ops):
            asked |= _texts(compare.expr)
    for test in tree.find_all(nodes.Filter):  # messages|selectattr("NAME", ...)
        if test.name in ("selectattr", "rejectattr", "map"):
            asked |= {name for argument in test.args[:1] for name in _texts(argument)}
    return frozenset(asked)


def _bound_to_no_turn(tree: nodes.Template) -> set[str]:
    """Variables that hold no turn, by their names or by what they are taken from."""
    found = {name.name for name in tree.find_all(nodes.Name) if _NO_TURN.search(name.name)}
    bound = [(loop.target, loop.iter) for loop in tree.find_all(nodes.For)]
    bound += [(assign.target, assign.node) for assign in tree.find_all(nodes.Assign)]
    grown = True
    while grown:
        grown = False
        for target, source in bound:
            names = {name.name for name in _self_and_within(target, nodes.Name)} - found
            if names and _tells_of_others(source, found):
                found |= names
                grown = True
    return found


def _tells_of_others(source: nodes.Node, others: set[str]) -> bool:
    """Whether what a variable is set to is a part of a turn, or of something else."""
    if isinstance(source, nodes.Name):
        return source.name in others
    if isinstance(source, nodes.Getattr):
        return bool(_NO_TURN.search(source.attr)) or _tells_of_others(source.node, others)
    if isinstance(source, nodes.Getitem):
        return any(map(_NO_TURN.search, _texts(source.arg))) or _tells_of_others(source.node, others)
    if isinstance(source, (nodes.Filter, nodes.Call)) and source.node is not None:
        return _tells_of_others(source.node, others)
    return False


def _is_turn(node: nodes.Node, others: set[str]) -> bool:
    """Whether an expression may be a turn: a variable, or one of a list by its number."""
    if isinstance(node, nodes.Getitem):
        return not _texts(node.arg) and _is_turn(node.node, others)
    return isinstance(node, nodes.Name) and node.name not in others


def _texts(node: nodes.Node) -> set[str]:
    return {str(const.value) for const in _self_and_within(node, nodes.Const) if isinstance(const.value, str)}


def _self_and_within(node: nodes.Node, kind: type) -> list:
    return [*([node] if isinstance(node, kind) else []), *node.find_all(kind)]
