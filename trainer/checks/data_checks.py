"""What can be said about the data section before torch is imported and any row is read."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator

from ..config.names import at_home, is_path
from ..config.schema import DataSection
from ..data.conversations import is_jinja
from ..data.formats import CHATS, template_fields
from ..data.readers import READERS, kind_of
from ..data.sources import data_files, globbed, is_saved
from ..errors import Problem, UserError, problem


def data_problems(data: DataSection, where: Callable[[str], str]) -> Iterator[Problem]:
    """Contradictions between the keys of the data section, and files that are not there.

    Args:
        data: the section.
        where: key -> the file or command line that set it.
    """
    for key, value in (("data.train", data.train), ("data.eval", data.eval)):
        names = [value] if isinstance(value, str) else value or []
        for name in names:
            if is_path(name):
                try:
                    yield from _source_problems(key, name, where)
                except UserError as error:
                    yield from error.problems
            elif not isinstance(value, str):
                yield problem("config.no_file", file=where(key), key=key, path=name)
        if value is not None and not names:
            yield problem("config.no_sources", file=where(key), key=key)
    yield from _template_problems(data, where)
    if data.packing and not data.padding_free:
        yield problem("config.packing_padded", file=where("data.packing"))
    if data.eval_limit is not None and data.eval is None and data.eval_fraction == 0:
        yield problem("config.eval_limit_without_data", file=where("data.eval_limit"))


def _source_problems(key: str, name: str, where: Callable[[str], str]) -> Iterator[Problem]:
    path, known = at_home(name), ", ".join(READERS)
    if not path.exists() and glob.has_magic(name):
        if not globbed(name):
            yield problem("config.no_match", file=where(key), key=key, path=name)
    elif not path.exists():
        yield problem("config.no_file", file=where(key), key=key, path=name)
    elif path.is_dir():
        if not data_files(path) and not is_saved(path):
            yield problem("config.no_data_files", file=where(key), key=key, path=name, known=known)
    elif not path.is_file():
        yield problem("data.no_regular_file", source=f"{where(key)}: {key}: {name}")
    elif not kind_of(path):
        yield problem("config.unknown_data_kind", file=where(key), key=key, path=name, known=known)


def _template_problems(data: DataSection, where: Callable[[str], str]) -> Iterator[Problem]:
    prompt, chat = data.prompt_template, data.chat_template
    theirs = [name for name in data.columns.values() if name is not None]
    for name in dict.fromkeys(name for name in theirs if theirs.count(name) > 1):
        yield problem("config.column_twice", file=where("data.columns"), column=name)
    if prompt is not None:
        try:
            fields, what = template_fields(prompt), ""
        except ValueError as error:
            fields, what = [], str(error)
        if what:
            yield problem("config.bad_prompt_template", file=where("data.prompt_template"), what=what)
        elif not fields:
            yield problem("config.no_prompt_field", file=where("data.prompt_template"))
        if data.format != "auto":
            yield problem("config.format_twice", file=where("data.prompt_template"), format=data.format)
    if chat is not None:
        if prompt is not None or data.format not in ("auto", *CHATS):
            yield problem("config.chat_template_unused", file=where("data.chat_template"))
        elif not is_jinja(chat) and not at_home(chat).is_file():
            yield problem("config.no_chat_template_file", file=where("data.chat_template"), path=chat)
