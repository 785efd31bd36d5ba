"""argparse's own words in the user's language: headings of --help, and what it says of a wrong command line."""

from __future__ import annotations

import re

from ...instrument.messages import language, say


def translated_help(text: str) -> str:
    """A help text with its headings in the user's language."""
    if language() == "en":
        return text
    text = re.sub(r"^usage: ", f"{say('usage.usage')}: ", text)
    text = re.sub(r"^positional arguments:$", f"{say('usage.arguments')}:", text, flags=re.MULTILINE)
    text = re.sub(r"^options:$", f"{say('usage.options')}:", text, flags=re.MULTILINE)
    text = text.replace("show this help message and exit", say("usage.help"))
    return text.replace("show program's version number and exit", say("usage.version"))


def translated_error(message: str) -> str:
    """What argparse finds wrong, in the user's language; as it is where it is none of the common ones."""
    if language() == "en":
        return message
    if found := re.fullmatch(r"the following arguments are required: (.*)", message):
        return say("usage.required", names=found[1])
    if found := re.fullmatch(r"unrecognized arguments: (.*)", message):
        return say("usage.unrecognized", names=found[1])
    if found := re.fullmatch(r"argument (.*?): invalid choice: (.*?) \(choose from (.*)\)", message):
        return say("usage.choice", name=found[1], value=found[2], known=found[3].replace("'", ""))
    if found := re.fullmatch(r"argument (.*?): expected (?:one|at least one) arguments?", message):
        return say("usage.expected", name=found[1])
    if found := re.fullmatch(r"argument (.*?): invalid (\w+) value: (.*)", message):
        return say("usage.invalid", name=found[1], kind=found[2], value=found[3])
    return message
